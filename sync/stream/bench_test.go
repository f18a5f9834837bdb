package stream

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/cluster"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
	"tandem/xfrm"
)

func opaqueDial(to *host) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) {
		c, err := dial(ctx, cluster.Link{Addr: "127.0.0.1"}, to.port)
		return c, err
	}
}

// replicas is an owner and a standby as a daemon would join them: one goroutine each,
// fed by a channel.
type replicas struct {
	j         *statesync.Journal
	owner     *Endpoint
	in        chan func(time.Time)
	committed uint64
	effective int // batches of bounds
	entered   bool
}

func newReplicas(b *testing.B, links ...string) *replicas {
	a := newAuthority(b)
	ports := map[cluster.NodeID]uint16{}
	endpoint := func(node cluster.NodeID, process cluster.ProcessID, h Handler) *Endpoint {
		e, err := New(Options{Self: node, Process: process, TLS: a.tls(b, node), PeerNode: nodeOfCert, Handler: h, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		addr, err := e.Listen("127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		ports[node] = uint16(addr.(*net.TCPAddr).Port)
		b.Cleanup(func() { e.Close() })
		return e
	}
	nop := func(cluster.NodeID, cluster.ProcessID) {}

	frames := make(chan Received, 256)
	r := statesync.NewReplica(0xb, statesync.NewLedger(nil))
	standby := endpoint(2, 0xb, Handler{Up: nop, Down: nop, Ack: func(cluster.NodeID, cluster.ProcessID, cluster.ScopeID, uint64) {}, Frame: func(f Received) { frames <- f }})
	stop := make(chan struct{})
	b.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case f := <-frames:
				if err := r.HandleFrame(time.Now(), f.Node, f.Process, f.Frame); err != nil {
					panic(err)
				}
				f.Done()
			case <-stop:
				return
			}
			for e, ok := r.Poll(); ok; e, ok = r.Poll() {
				switch e := e.(type) {
				case statesync.SendAck:
					standby.Ack(e)
				case statesync.CopyComplete:
					r.ConfirmEntry()
				}
			}
		}
	}()

	o := &replicas{in: make(chan func(time.Time), 256), j: statesync.NewJournal(0xa, statesync.NewLedger(nil), 64<<20)}
	up := make(chan struct{}, 1)
	o.owner = endpoint(1, 0xa, Handler{
		Up: func(cluster.NodeID, cluster.ProcessID) { up <- struct{}{} }, Down: nop, Frame: func(f Received) { f.Done() },
		Ack: func(n cluster.NodeID, p cluster.ProcessID, _ cluster.ScopeID, seq uint64) {
			o.in <- func(now time.Time) { o.j.HandleAck(now, n, p, seq) }
		},
	})
	var where []cluster.Link
	for _, l := range links {
		where = append(where, cluster.Link{Device: l, Addr: "127.0.0.1"})
	}
	o.owner.SetPeers(2, 0xb, where, ports[2])
	<-up
	o.j.Start(time.Now(), cluster.Epoch{Counter: 1, Node: 1})
	o.j.Join(time.Now(), 2, 0xb, nil, nil)
	o.poll()
	for !o.entered {
		(<-o.in)(time.Now())
		o.poll()
	}
	return o
}

func (o *replicas) poll() {
	for e, ok := o.j.Poll(); ok; e, ok = o.j.Poll() {
		switch e := e.(type) {
		case statesync.SendFrame:
			o.owner.Send(e)
		case statesync.Committed:
			o.committed = e.Ticket
		case statesync.BoundsEffective:
			o.effective++
		case statesync.Entered:
			o.entered = true
		}
	}
}

func (o *replicas) append(ticket uint64, value []byte) {
	o.j.Append(time.Now(), ticket, []statesync.Entry{{SPIs: ipsec.IKESPIs{I: 1, R: 2}, Value: value}})
}

// cpu is the processor time this process has used; unlike the clock it means something
// on a machine that others use too.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func reportCPU(b *testing.B, before time.Duration) {
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkCommit: one record at a time, from Append to Committed.
func BenchmarkCommit(b *testing.B) {
	for _, links := range [][]string{{"hb1"}, {"hb1", "hb2"}} {
		b.Run(map[int]string{1: "one link", 2: "two links"}[len(links)], func(b *testing.B) {
			o := newReplicas(b, links...)
			value := make([]byte, 1000)
			ticket, before := uint64(0), cpu()
			for b.Loop() {
				ticket++
				o.append(ticket, value)
				o.poll()
				for o.committed < ticket {
					(<-o.in)(time.Now())
					o.poll()
				}
			}
			reportCPU(b, before)
		})
	}
}

// BenchmarkRecords: as many as the pair carries with 500 uncommitted at most.
func BenchmarkRecords(b *testing.B) {
	for _, links := range [][]string{{"hb1"}, {"hb1", "hb2"}} {
		b.Run(map[int]string{1: "one link", 2: "two links"}[len(links)], func(b *testing.B) {
			o := newReplicas(b, links...)
			value := make([]byte, 1000)
			ticket, before := uint64(0), cpu()
			for b.Loop() {
				ticket++
				o.append(ticket, value)
				for ; ticket-o.committed > 500; o.poll() {
					o.poll()
					(<-o.in)(time.Now())
				}
			}
			reportCPU(b, before)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkBounds: counters of 100,000 SAs, 500 in a batch, with 16 batches not yet
// acknowledged at most. Each update goes to the standby and comes out of its Replica.
func BenchmarkBounds(b *testing.B) {
	const sas, batch, open = 100_000, 500, 16
	o := newReplicas(b, "hb1")
	bounds := make([]xfrm.Bound, sas)
	for i := range bounds {
		bounds[i] = xfrm.Bound{SPIIn: ipsec.ESPSPI(0x10000 + 41*i), Dir: xfrm.Direction(i & 1)}
	}
	at, sent, before := 0, 0, cpu()
	for b.Loop() {
		if at+batch > sas {
			at = 0
		}
		part := make([]xfrm.Bound, batch) // the journal keeps it
		copy(part, bounds[at:at+batch])
		for i := range part {
			part[i].N = uint64(sent + i)
		}
		at += batch
		sent++
		o.j.SetBounds(time.Now(), part)
		for o.poll(); sent-o.effective > open; o.poll() {
			(<-o.in)(time.Now())
		}
	}
	for ; o.effective < sent; o.poll() {
		(<-o.in)(time.Now())
	}
	reportCPU(b, before)
	b.ReportMetric(float64(sent*batch)/b.Elapsed().Seconds(), "updates/s")
}
