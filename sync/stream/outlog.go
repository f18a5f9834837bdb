package stream

import (
	"errors"
	"maps"
	"slices"

	"tandem/cluster"
	statesync "tandem/sync"
)

// outlog is what of one scope the node's process has not acknowledged: frames without
// gaps, for what cannot be kept ends the log until a copy begins it anew.
type outlog struct {
	frames []statesync.SendFrame
	bytes  int
	last   uint64 // highest number that it had
	broken bool   // a frame was not kept
}

// cursor is where one stream stands in one log.
type cursor struct {
	sent  uint64 // highest number that this stream need not send any more
	ready bool   // the scope is in the link's queue
}

// send appends a frame to the log of its scope.
func (s *sender) send(f statesync.SendFrame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Process != s.process || s.logs == nil {
		return
	}
	o := s.logs[f.Scope]
	if o == nil {
		// An earlier build would take every frame for one of scope 0.
		if f.Scope != 0 && !s.scoped || len(s.logs) >= maxScopes {
			if !s.complained {
				s.complained = true
				s.e.log.Error("replication stream: the node takes no frames of the scope", "node", s.node, "scope", f.Scope.String(), "scopes", len(s.logs))
			}
			return
		}
		o = &outlog{}
		s.logs[f.Scope] = o
	}
	if f.Restart {
		s.bytes -= o.bytes
		*o = outlog{last: o.last}
	}
	// A scope's share is its own even if the others have filled the log.
	if n := len(f.Frame); s.bytes+n > s.e.opt.Backlog && o.bytes+n > s.e.opt.Backlog/maxScopes {
		o.broken = true
	}
	if o.broken {
		return
	}
	o.frames = append(o.frames, f)
	o.bytes += len(f.Frame)
	s.bytes += len(f.Frame)
	o.last = f.Seq
	for _, l := range s.links {
		l.turn(f.Scope)
	}
}

// turn puts a scope in the link's queue. The sender's lock is held.
func (l *link) turn(scope cluster.ScopeID) {
	if l.end == nil {
		return // a stream begins with everything there is
	}
	c := l.cursors[scope]
	if c == nil {
		c = &cursor{}
		l.cursors[scope] = c
	}
	if !c.ready {
		c.ready = true
		l.ready = append(l.ready, scope)
	}
	signal(l.wake)
}

// begin puts a stream's cursors behind what the process acknowledged before. The
// sender's lock is held, and l.end is set.
func (l *link) begin(have map[cluster.ScopeID]uint64) {
	l.cursors, l.ready = make(map[cluster.ScopeID]*cursor), nil
	for scope, seq := range have {
		l.cursors[scope] = &cursor{sent: seq}
	}
	for _, scope := range slices.Sorted(maps.Keys(l.s.logs)) {
		l.turn(scope)
	}
}

// next is a frame that the link's stream has not sent; scopes take turns. What another
// link carried and was acknowledged need not travel again. first: nothing of the scope
// before it is owed.
func (s *sender) next(l *link) (f statesync.SendFrame, first, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(l.ready) > 0 {
		scope := l.ready[0]
		l.ready = l.ready[1:]
		c, o := l.cursors[scope], s.logs[scope]
		c.ready = false
		if o == nil {
			continue
		}
		i := o.after(c.sent)
		if i == len(o.frames) {
			continue
		}
		c.sent = o.frames[i].Seq
		if i+1 < len(o.frames) {
			c.ready = true
			l.ready = append(l.ready, scope)
		}
		return o.frames[i], i == 0, true
	}
	return f, false, false
}

// after is the index of the first frame above a number.
func (o *outlog) after(seq uint64) int {
	i, _ := slices.BinarySearchFunc(o.frames, seq+1, func(f statesync.SendFrame, seq uint64) int {
		switch {
		case f.Seq < seq:
			return -1
		case f.Seq > seq:
			return 1
		}
		return 0
	})
	return i
}

// rewind makes the link's stream send again what follows a number.
func (s *sender) rewind(l *link, scope cluster.ScopeID, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := l.cursors[scope]; c != nil {
		c.sent = min(c.sent, seq)
		l.turn(scope)
	}
}

// acked drops what is acknowledged. ok is false if that was never sent.
func (s *sender) acked(process cluster.ProcessID, scope cluster.ScopeID, seq uint64) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if process != s.process {
		return true
	}
	o := s.logs[scope]
	if o == nil || seq > o.last {
		return false
	}
	n := o.after(seq)
	for i := range n {
		o.bytes -= len(o.frames[i].Frame)
		s.bytes -= len(o.frames[i].Frame)
		o.frames[i] = statesync.SendFrame{}
	}
	if o.frames = o.frames[n:]; len(o.frames) == 0 {
		o.frames = nil
	}
	return true
}

var errScope = errors.New("no number of a scope")

// scopeOf checks a scope's number from the wire.
func scopeOf(n uint32) (cluster.ScopeID, error) {
	if n > 1<<16-1 {
		return 0, errScope
	}
	return cluster.ScopeID(n), nil
}
