package raftauth

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

var (
	errStalled = errors.New("this leader's disk does not answer: its heartbeats stop")
	errNoVote  = errors.New("this member's disk is blank: it does not vote before it has caught up")
)

// diskWatch knows how long the log's disk has been at work.
type diskWatch struct {
	since atomic.Int64 // unix nanoseconds; 0: idle
	worst atomic.Int64 // the longest that has ended since it was last asked
	quiet atomic.Int64 // until when this member shall not lead; unix nanoseconds
}

// mute keeps a leader from being heard, so that another is elected and it steps down itself.
func (d *diskWatch) mute(t time.Duration) { d.quiet.Store(time.Now().Add(t).UnixNano()) }

// silent says whether a leader with this disk must not be heard.
func (d *diskWatch) silent(patient time.Duration) bool {
	return d.busy() > patient || time.Now().UnixNano() < d.quiet.Load()
}

func (d *diskWatch) busy() time.Duration {
	if s := d.since.Load(); s != 0 {
		return time.Duration(time.Now().UnixNano() - s)
	}
	return 0
}

func (d *diskWatch) do(f func() error) error {
	start := time.Now()
	d.since.Store(start.UnixNano())
	err := f()
	d.since.Store(0)
	if took := int64(time.Since(start)); took > d.worst.Load() {
		d.worst.Store(took)
	}
	return err
}

// watchedLog is a log store under watch. Only Raft's main loop writes.
type watchedLog struct {
	raft.LogStore
	disk *diskWatch
}

func (w *watchedLog) StoreLog(l *raft.Log) error {
	return w.disk.do(func() error { return w.LogStore.StoreLog(l) })
}

func (w *watchedLog) StoreLogs(ls []*raft.Log) error {
	return w.disk.do(func() error { return w.LogStore.StoreLogs(ls) })
}

// gate is a transport that falls silent where Raft alone would do harm. A leader
// whose disk hangs is stuck in its main loop, which can neither step down nor hand
// over, while other goroutines go on sending heartbeats: the gate holds those
// back. And it answers no vote for a member that has lost its log, until it has caught up.
type gate struct {
	raft.Transport
	disk    *diskWatch
	patient time.Duration
	mayVote func() bool
	in      chan raft.RPC
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

func newGate(t raft.Transport, d *diskWatch, patient time.Duration, mayVote func() bool) *gate {
	g := &gate{Transport: t, disk: d, patient: patient, mayVote: mayVote, in: make(chan raft.RPC), done: make(chan struct{})}
	g.wg.Add(1)
	go g.receive()
	return g
}

func (g *gate) receive() {
	defer g.wg.Done()
	for {
		select {
		case <-g.done:
			return
		case rpc := <-g.Transport.Consumer():
			switch rpc.Command.(type) {
			case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
				if !g.mayVote() {
					rpc.Respond(nil, errNoVote)
					continue
				}
			}
			select {
			case g.in <- rpc:
			case <-g.done:
				rpc.Respond(nil, raft.ErrTransportShutdown)
				return
			}
		}
	}
}

// campaign makes this member a candidate at once, as a leader does that hands over to
// it: others vote for it though they have not missed the leader yet.
func (g *gate) campaign() {
	rpc := raft.RPC{RespChan: make(chan raft.RPCResponse, 1),
		Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}}
	t := time.NewTimer(HeartbeatTimeout)
	defer t.Stop()
	select {
	case g.in <- rpc:
	case <-g.done:
	case <-t.C: // Raft's main loop is busy; its own timeout comes next
	}
}

func (g *gate) Consumer() <-chan raft.RPC { return g.in }

// AppendEntriesPipeline: every entry goes through AppendEntries, and so through the gate.
func (g *gate) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (g *gate) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if g.disk.silent(g.patient) {
		return errStalled
	}
	return g.Transport.AppendEntries(id, to, q, a)
}

func (g *gate) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	if g.disk.silent(g.patient) {
		return errStalled
	}
	return g.Transport.InstallSnapshot(id, to, q, a, data)
}

func (g *gate) RequestVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	if !g.mayVote() {
		return errNoVote
	}
	return g.Transport.RequestVote(id, to, q, a)
}

// RequestPreVote keeps a member that was cut off from disturbing a healthy leader when it comes back.
func (g *gate) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	t, ok := g.Transport.(raft.WithPreVote)
	if !ok {
		return errors.New("the transport knows no pre-vote")
	}
	if !g.mayVote() {
		return errNoVote
	}
	return t.RequestPreVote(id, to, q, a)
}

// Close ends the gate and what lies behind it.
func (g *gate) Close() (err error) {
	g.once.Do(func() {
		close(g.done)
		if c, ok := g.Transport.(raft.WithClose); ok {
			err = c.Close()
		}
		g.wg.Wait()
	})
	return err
}
