package integration

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem/internal/lab"
)

// stream is numbered datagrams one way, from behind the client to behind the gateways.
type stream struct {
	t    *testing.T
	out  *net.UDPConn
	to   netip.AddrPort
	mu   sync.Mutex
	sent []time.Time // by number
	got  map[uint64]int
	stop chan struct{}
	over sync.WaitGroup
}

func (p *site) stream(node, from, server, to string) *stream {
	const port = 7100
	s := &stream{t: p.t, out: p.socket(node, from, port), to: netip.AddrPortFrom(netip.MustParseAddr(to), port), got: map[uint64]int{}}
	in := p.socket(server, to, port)
	go func() {
		b := make([]byte, 64)
		for {
			n, _, err := in.ReadFromUDPAddrPort(b)
			if err != nil {
				return // closed at the end of the test
			}
			if n == 8 {
				s.mu.Lock()
				s.got[binary.BigEndian.Uint64(b)]++
				s.mu.Unlock()
			}
		}
	}()
	return s
}

func (s *stream) send() {
	s.mu.Lock()
	n := uint64(len(s.sent))
	s.sent = append(s.sent, time.Now())
	s.mu.Unlock()
	if _, err := s.out.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, n), s.to); err != nil {
		s.t.Error(err)
	}
}

// flow sends until it is paused.
func (s *stream) flow() {
	s.stop = make(chan struct{})
	s.over.Go(func() {
		tick := time.NewTicker(4 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
				s.send()
			}
		}
	})
}

func (s *stream) pause() {
	close(s.stop)
	s.over.Wait()
}

// state is how many were sent, and how often each arrived.
func (s *stream) state() (sent []time.Time, got []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got = make([]int, len(s.sent))
	for i := range got {
		got[i] = s.got[uint64(i)]
	}
	return append(sent, s.sent...), got
}

func (s *stream) arrived() []int {
	_, got := s.state()
	return got
}

// whole wants what was sent after the client's answer to have arrived, all of it, and
// nothing twice; and some of what was sent before to be lost.
func (s *stream) whole(answer time.Time) (sent []time.Time, got []int, lost int) {
	s.t.Helper()
	settled := holds(5*time.Second, func() bool {
		sent, got = s.state()
		lost = 0
		missing := false
		for i, n := range got {
			if n == 0 && sent[i].Before(answer) {
				lost++
			}
			missing = missing || n == 0 && sent[i].After(answer)
		}
		return !missing
	})
	for i, n := range got {
		if n == 0 && sent[i].After(answer) || n > 1 {
			s.t.Errorf("datagram %d, sent %v after the answer, arrived %d times", i, sent[i].Sub(answer), n)
		}
	}
	if !settled || lost < 20 {
		s.t.Fatalf("%d datagrams of %d were lost before the answer", lost, len(sent))
	}
	return sent, got, lost
}

// noneAgain wants none of the n captured packets that were sent again to have been
// delivered, beside what had arrived, and what the client sends now to arrive.
func (s *stream) noneAgain(got []int, n int) {
	s.t.Helper()
	_, now := s.state()
	delivered := 0
	for i := range got {
		delivered += now[i] - got[i]
	}
	if delivered > 0 {
		s.t.Errorf("%d of %d captured packets were delivered", delivered, n)
	}
	first := len(now)
	for range 20 {
		s.send()
	}
	if !holds(5*time.Second, func() bool { now = s.arrived(); return !slices.Contains(now[first:], 0) }) || slices.ContainsFunc(now, func(n int) bool { return n > 1 }) {
		s.t.Errorf("what the client goes on with arrives so often: %v", now[first:])
	}
}

// TestPairCounterSync: the active daemon ends by SIGKILL under the traffic of a Tandem
// client, and for a moment the survivor receives nothing either: what the client sends
// then is on the wire for whoever listens, and nobody has seen its numbers. The survivor
// has the client raise them (RFC 6311). From then on nothing captured before is delivered,
// when it is sent again, whether the client goes on or has fallen silent; and nothing is
// lost of what the client sends after its answer.
func TestPairCounterSync(t *testing.T) {
	for _, c := range []struct {
		name   string
		esn    string
		silent bool // the client sends nothing more after its answer
	}{
		{"under traffic", "disable", false}, {"under traffic, ESN", "require", false},
		{"client falls silent", "disable", true}, {"client falls silent, ESN", "require", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			esn := func(conf string) string {
				return strings.Replace(conf, "set nattraversal forced", "set nattraversal forced\n        set esn "+c.esn, 1)
			}
			p := newPair(t, program(t), esn)
			p.tandemClient(esn)
			p.traffic()
			active, standby := p.synchronised()
			inits := p.begun(exchInit)

			s := p.stream(lab.NodeHost, hostIn, lab.NodeServer, serverIn)
			s.flow()
			eventually(t, 10*time.Second, "the stream flows", func() bool { sent, got := s.state(); return len(sent) > 200 && got[100] == 1 })
			p.nft(standby.node, `table inet deaf {
	chain in {
		type filter hook prerouting priority -300
		ip saddr `+peerWAN+` drop
	}
}
`)
			asked, begun := p.begun(exchInfo), time.Now()
			p.kill(active)
			p.takenOver(standby)
			before, _ := s.state()
			eventually(t, 10*time.Second, "some are lost", func() bool { sent, _ := s.state(); return len(sent) > len(before)+50 })
			if c.silent {
				s.pause()
			}
			p.must(standby.node, "nft", "delete", "table", "inet", "deaf")
			if c.silent {
				s.send() // by which the survivor hears that the client is there
			}
			eventually(t, 10*time.Second, "the counters are synchronised", func() bool {
				return contains(standby.proc.LogPath, "synced replay counters")
			})
			if n := p.begun(exchInfo); n <= asked {
				t.Errorf("%d INFORMATIONAL exchanges", n-asked)
			}
			answer := p.wan.answered(peerWAN, begun)
			if !c.silent {
				after, _ := s.state()
				eventually(t, 10*time.Second, "the stream goes on", func() bool { sent, _ := s.state(); return len(sent) > len(after)+250 })
				s.pause()
			}

			// What was sent after the answer arrives, all of it.
			sent, got, lost := s.whole(answer)

			// All that was captured, again: what was delivered, and what was not.
			frames := p.wan.sentBy(peerWAN, begun.Add(-time.Second), answer)
			if len(frames) == 0 {
				t.Fatal("nothing was captured")
			}
			refused := standby.refused()
			n, err := p.topo.Inject(standby.node, frames[len(frames)-1][:6], frames) // where the client sends now
			if err != nil || n < lost {
				t.Fatalf("%d of %d frames injected, %v", n, len(frames), err)
			}
			if !holds(10*time.Second, func() bool { return standby.refused() >= refused+uint64(n) }) {
				t.Errorf("the survivor refused %d of %d", standby.refused()-refused, n)
			}
			s.noneAgain(got, n)
			t.Logf("%d captured packets sent again, %d of which had been lost; %d datagrams after the answer", n, lost, after(sent, answer))
			if !c.silent {
				p.traffic()
			}
			if n := p.begun(exchInit); n != inits {
				t.Errorf("%d new IKE_SA_INIT", n-inits)
			}
		})
	}
}

func after(all []time.Time, at time.Time) (n int) {
	for _, x := range all {
		if x.After(at) {
			n++
		}
	}
	return n
}

// tandemClient starts the example's client.
func (p *pair) tandemClient(change func(string) string) {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(examplePair, "client.conf"))
	if err != nil {
		p.t.Fatal(err)
	}
	dir := filepath.Join(p.topo.Dir, lab.NodeClient)
	conf := dir + ".conf"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte(change(strings.ReplaceAll(string(text), "@DIR@", p.topo.Dir))), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.topo.Start(lab.NodeClient, lab.NodeClient, []string{p.bin, "run", "--config", conf, "--log-format", "json"}, nil); err != nil {
		p.t.Fatal(err)
	}
}

// answered is when a client's last INFORMATIONAL response since then was on its wire.
func (tp *tap) answered(client string, since time.Time) (at time.Time) {
	tp.t.Helper()
	by := from(client)
	eventually(tp.t, 5*time.Second, "the client's answer is captured", func() bool {
		for _, pk := range tp.packets() {
			if pk.kind == kindIKE && by(pk) && pk.response() && pk.exchange() == exchInfo && pk.at.After(since) {
				at = pk.at
			}
		}
		return !at.IsZero()
	})
	return at
}

// sentBy are the ESP frames that a client sent within a span.
func (tp *tap) sentBy(client string, since, to time.Time) (frames [][]byte) {
	tp.t.Helper()
	if err := tp.c.Flush(); err != nil {
		tp.t.Fatal(err)
	}
	by := from(client)
	_ = lab.ReadCapture(tp.c.Path, func(f lab.Frame) error {
		if pk, ok := decodePacket(f.Data); ok && (pk.kind == kindUDPESP || pk.kind == kindESP) && by(pk) && f.Time.After(since) && f.Time.Before(to) {
			frames = append(frames, append([]byte(nil), f.Data...))
		}
		return nil
	})
	return frames
}

// refused are the ESP packets that a gateway took for replays or, with ESN, for numbers
// that its peer has not reached.
func (g *gateway) refused() (n uint64) {
	g.t.Helper()
	var all []struct {
		Selectors []struct {
			SAs []struct {
				InReplayed   uint64 `json:"in_replayed"`
				InAuthFailed uint64 `json:"in_auth_failed"`
			} `json:"sas"`
		} `json:"proxyids"`
	}
	g.decode("diagnose vpn tunnel list", &all)
	for _, tn := range all {
		for _, sel := range tn.Selectors {
			for _, c := range sel.SAs {
				n += c.InReplayed + c.InAuthFailed
			}
		}
	}
	return n
}
