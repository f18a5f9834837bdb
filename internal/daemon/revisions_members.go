package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tandem/cluster"
	"tandem/cluster/revision"
	"tandem/proto/syncpb"
	"tandem/sync/stream"
)

// heard: heartbeats tell of a member. Called on the loop.
func (r *revisions) heard(p cluster.Peer) {
	process := p.Process
	if !p.Running {
		process = 0
	}
	r.present(p.Node, p.Name, process)
}

// lost: heartbeats do not tell of a member any more. Called on the loop.
func (r *revisions) lost(n cluster.NodeID) { r.present(n, "", 0) }

func (r *revisions) present(n cluster.NodeID, name string, process cluster.ProcessID) {
	r.mu.Lock()
	if name != "" {
		r.names[n] = name
	}
	c := r.callers[n]
	same := c != nil && c.process == process || c == nil && process == 0
	if !same {
		if c != nil {
			c.cancel()
			delete(r.callers, n)
		}
		if process != 0 {
			c = &caller{process: process, wake: make(chan struct{}, 1)}
			var ctx context.Context
			ctx, c.cancel = context.WithCancel(r.ctx)
			r.callers[n] = c
			r.begin(func() { r.call(ctx, n, c.wake) })
		}
	}
	r.mu.Unlock()
	if !same {
		r.learn(func(k *revision.Keeper) { k.HandlePresence(time.Now(), n, uint64(process)) })
	}
}

func (r *revisions) name(n cluster.NodeID) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case n == 0:
		return ""
	case n == r.c.identity.Node && r.running.Hostname != "":
		return r.running.Hostname
	case n == r.c.identity.Node:
		return r.c.identity.Name
	case r.names[n] != "":
		return r.names[n]
	}
	return fmt.Sprintf("node %d", n)
}

// call tells a member what this one has, and hears what it has, again and again.
func (r *revisions) call(ctx context.Context, n cluster.NodeID, wake chan struct{}) {
	for ctx.Err() == nil {
		err := r.exchange(ctx, n)
		wait := tellEvery
		if err != nil && !errors.Is(err, stream.ErrOld) {
			wait = tellAgain
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-wake:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

func (r *revisions) exchange(ctx context.Context, n cluster.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	mine := ask(r, (*revision.Keeper).Mine)
	a, err := r.c.streams.e.ConfigState(ctx, n, mine.Message())
	switch {
	case errors.Is(err, stream.ErrOld):
		r.learn(func(k *revision.Keeper) { k.HandleOld(n) })
		return err
	case err != nil:
		return err
	}
	s, err := revision.OfMessage(a)
	if err != nil {
		r.d.log.Warn("configuration: a member's word is not understood", "node", n, "error", err)
		return err
	}
	r.learn(func(k *revision.Keeper) { k.HandleState(n, s) })
	return nil
}

// tell has all others told at once.
func (r *revisions) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.callers {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// settle calls up when the member that a stream leads to, and this one, run the same
// configuration, or it is known that they will not: what follows takes tunnels from one
// to the other. Down ends the waiting, and then says nothing itself.
func (r *revisions) settle(n cluster.NodeID, up func()) {
	if ask(r, func(k *revision.Keeper) bool { return k.Settled(n) }) {
		r.settling.Lock()
		defer r.settling.Unlock()
		up()
		return
	}
	wait := new(bool)
	r.settling.Lock()
	r.pending[n] = wait
	r.settling.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begin(func() {
		ctx, cancel := context.WithTimeout(r.ctx, settleWithin)
		defer cancel()
		if !r.until(ctx, func(k *revision.Keeper) bool { return k.Settled(n) }) && r.ctx.Err() == nil {
			r.d.log.Warn("a member takes part although it is not known to run the same configuration", "node", n)
		}
		r.settling.Lock()
		defer r.settling.Unlock()
		if r.pending[n] == wait {
			delete(r.pending, n)
			up()
		}
	})
}

// down calls f unless the member's up has not been said.
func (r *revisions) down(n cluster.NodeID, f func()) {
	r.settling.Lock()
	defer r.settling.Unlock()
	if r.pending[n] != nil {
		delete(r.pending, n)
		return
	}
	f()
}

// State answers a member that says what it has.
func (r *revisions) State(_ context.Context, from cluster.NodeID, m *syncpb.ConfigState) (*syncpb.ConfigState, error) {
	s, err := revision.OfMessage(m)
	if err != nil {
		return nil, err
	}
	r.learn(func(k *revision.Keeper) { k.HandleState(from, s) })
	mine := ask(r, (*revision.Keeper).Mine)
	a := mine.Message()
	if m.GetDetail() {
		r.detail(a)
	}
	return a, nil
}

// Text is what this member runs or proposes.
func (r *revisions) Text(_ cluster.NodeID, digest []byte) ([]byte, error) {
	d, err := revision.OfBytes(digest)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	shared, offer, offered := r.shared, r.offer, r.offered
	r.mu.Unlock()
	switch {
	case offer != nil && d == offered:
		return offer, nil
	case d == r.digest(shared):
		return shared, nil
	}
	return nil, errors.New("this member does not run it any more")
}
