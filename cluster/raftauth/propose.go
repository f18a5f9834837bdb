package raftauth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// Propose has a command decided, by whichever member leads, and returns when that
// is done. It repeats the same command, under the same ID, until it has an answer
// or the context ends; after that it may still be decided. Commands of one member
// are decided one after the other.
func (n *Node) Propose(ctx context.Context, c *clusterpb.Command) (fsm.Result, error) {
	n.proposing.Lock()
	defer n.proposing.Unlock()
	n.number(c)
	for {
		r, err := n.attempt(ctx, fsm.Encode(c))
		switch {
		case err == nil && r.Code == fsm.Superseded && r.Value >= n.life:
			// The log knows of a later life of ours: the clock was ahead once.
			n.life, n.seq = r.Value+1, 0
			if err := setUint(n.opt.Disk.Stable, keyLife, n.life); err != nil {
				return fsm.Result{}, fmt.Errorf("state-dir: %w", err)
			}
			n.number(c)
		case err == nil && r.Code == fsm.Superseded:
			n.number(c)
		case err == nil:
			return r, nil
		case ctx.Err() != nil:
			return fsm.Result{}, errors.Join(ErrNoLeader, ctx.Err())
		}
		select {
		case <-ctx.Done():
			return fsm.Result{}, errors.Join(ErrNoLeader, ctx.Err())
		case <-n.ctx.Done():
			return fsm.Result{}, ErrNoLeader
		case <-time.After(HeartbeatTimeout / 10):
		}
	}
}

// leads: as leader with a disk that answers.
func (n *Node) leads() bool {
	return n.r.State() == raft.Leader && !n.disk.silent(n.opt.DiskPatience)
}

func (n *Node) number(c *clusterpb.Command) {
	n.seq++
	c.Id = &clusterpb.CommandID{Node: uint32(n.opt.Self), Life: n.life, Seq: n.seq}
	c.Version = max(c.Version, 1)
}

// attempt tries once: here if this member leads, else with the leader, or with
// whoever may know it.
func (n *Node) attempt(ctx context.Context, entry []byte) (fsm.Result, error) {
	if n.leads() {
		return n.commit(entry)
	}
	ask, led := n.opt.Members, n.Leader()
	if led != 0 && led != n.opt.Self {
		ask = []fsm.NodeID{led}
	}
	ctx, cancel := n.whileLed(ctx, led)
	defer cancel()
	tried := map[fsm.NodeID]bool{n.opt.Self: true}
	var errs error
	for i := 0; i < len(ask) && ctx.Err() == nil; i++ {
		to := ask[i]
		if tried[to] {
			continue
		}
		tried[to] = true
		a, err := n.call(ctx, to, &clusterpb.RaftCall{Entry: entry})
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("node %d: %w", to, err))
			continue
		}
		if !a.GetNotLeader() {
			return fsm.Result{Code: fsm.Code(a.GetCode()), Why: a.GetWhy(), Repeated: a.GetRepeated(), Value: a.GetValue()}, nil
		}
		if l := fsm.NodeID(a.GetLeader()); l >= 1 && l <= fsm.MaxNodes && !tried[l] {
			ask = append([]fsm.NodeID{l}, ask[i+1:]...)
			i = -1
		}
	}
	return fsm.Result{}, errors.Join(ErrNoLeader, errs)
}

// whileLed ends as soon as another leader is known, or none: of those who have died no
// answer comes, and what waits its turn is wanted of the next leader.
func (n *Node) whileLed(ctx context.Context, led fsm.NodeID) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		look := time.NewTicker(HeartbeatTimeout / 20)
		defer look.Stop()
		for n.Leader() == led {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
			}
		}
		cancel()
	}()
	return ctx, cancel
}

func (n *Node) call(ctx context.Context, to fsm.NodeID, c *clusterpb.RaftCall) (*clusterpb.RaftAnswer, error) {
	t := callTimeout
	if len(c.GetEntry()) > 0 {
		t = commitTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, t)
	defer cancel()
	return n.opt.Peers.Call(ctx, to, c)
}

func (n *Node) commit(entry []byte) (fsm.Result, error) {
	f := n.r.Apply(entry, commitTimeout)
	if err := wait(f, commitTimeout); err != nil {
		return fsm.Result{}, err
	}
	return f.Response().(fsm.Result), nil
}

var errNoAnswer = errors.New("no answer from Raft in time")

// wait bounds what Raft does not: while its disk hangs, a leader answers nothing.
func wait(f raft.Future, d time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return errNoAnswer
	}
}

// Answer answers another member's call. Who it is, the transport knows from its certificate.
func (n *Node) Answer(from fsm.NodeID, c *clusterpb.RaftCall) *clusterpb.RaftAnswer {
	a := &clusterpb.RaftAnswer{NotLeader: true, Leader: uint32(n.Leader()), Blank: n.blank()}
	if len(c.GetEntry()) == 0 || !n.leads() {
		return a
	}
	if by := fsm.Proposer(c.GetEntry()); by != from {
		return &clusterpb.RaftAnswer{Code: uint32(fsm.NotYours), Why: fmt.Sprintf("node %d sends a command of node %d", from, by)}
	}
	r, err := n.commit(c.GetEntry())
	if err != nil {
		a.Leader = 0
		return a
	}
	return &clusterpb.RaftAnswer{Code: uint32(r.Code), Why: r.Why, Repeated: r.Repeated, Value: r.Value}
}
