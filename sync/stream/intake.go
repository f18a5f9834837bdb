package stream

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"tandem/cluster"
	"tandem/proto/syncpb"
)

var errScopes = errors.New("too many scopes")

// receiver is our side of the streams from one node.
type receiver struct {
	// Held around the handler's Frame, so that first arrivals keep their order. No
	// mutex, because the handler may wait for long, and streams end meanwhile.
	order chan struct{}

	mu       sync.Mutex
	process  cluster.ProcessID
	retired  []cluster.ProcessID         // that it was before
	intakes  map[cluster.ScopeID]*intake // of process
	second   uint64                      // how many frames arrived again
	arrivals uint64                      // of frames and streams
	inflight int                         // bytes with the handler, whichever streams and scopes brought them
	streams  []*incoming
	room     chan struct{} // inflight has shrunk
}

// intake is how far one scope has come.
type intake struct {
	acked  uint64 // highest acknowledged frame
	handed uint64 // highest that the handler was given
	asking bool   // the streams will be asked to begin again
}

// incoming is one stream.
type incoming struct {
	r       *receiver
	scoped  bool          // the client knows of scopes
	version uint32        // spoken
	wake    chan struct{} // owed has grown
	ended   chan struct{} // closed by stop
	once    sync.Once
	reason  error // set before ended is closed

	// Under r.mu.
	heard uint64                     // the receiver's arrivals when it brought something last
	told  map[cluster.ScopeID]uint64 // acknowledgements that it carried
	owed  map[cluster.ScopeID]bool   // what is to be told; true: with the request to begin again
	queue []cluster.ScopeID          // the keys of owed
}

// stop ends the stream.
func (s *incoming) stop(reason error) {
	s.once.Do(func() {
		s.reason = reason
		close(s.ended)
	})
}

func (s *incoming) owe(scope cluster.ScopeID, resync bool) {
	before, ok := s.owed[scope]
	if s.owed[scope] = before || resync; !ok {
		s.queue = append(s.queue, scope)
	}
	signal(s.wake)
}

// hello is what the stream begins with.
func (s *incoming) hello(self cluster.ProcessID) *syncpb.Hello {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	h := &syncpb.Hello{Process: uint64(self), Scoped: true, Version: Version}
	for _, scope := range slices.Sorted(maps.Keys(s.r.intakes)) {
		acked := s.r.intakes[scope].acked
		s.told[scope] = acked
		switch {
		case scope == 0:
			h.Have = acked
		case acked > 0 && s.scoped:
			h.Scopes = append(h.Scopes, uint32(scope))
			h.Haves = append(h.Haves, acked)
		}
	}
	return h
}

// held is what a server's hello says.
func held(h *syncpb.Hello) (map[cluster.ScopeID]uint64, error) {
	if len(h.Scopes) > maxScopes || len(h.Scopes) != len(h.Haves) {
		return nil, fmt.Errorf("a hello of %d scopes and %d numbers", len(h.Scopes), len(h.Haves))
	}
	have := make(map[cluster.ScopeID]uint64)
	if h.Have > 0 {
		have[0] = h.Have
	}
	for i, n := range h.Scopes {
		scope, err := scopeOf(n)
		if err != nil {
			return nil, err
		}
		if _, twice := have[scope]; twice || scope == 0 || h.Haves[i] == 0 {
			return nil, fmt.Errorf("a hello that says of %v what it may not", scope)
		}
		have[scope] = h.Haves[i]
	}
	return have, nil
}

// answer is the next message for the client, if there is any.
func (s *incoming) answer() (*syncpb.StreamDown, bool) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for len(s.queue) > 0 {
		scope := s.queue[0]
		s.queue = s.queue[1:]
		resync := s.owed[scope]
		delete(s.owed, scope)
		in := s.r.intakes[scope]
		if in == nil || !resync && in.acked <= s.told[scope] {
			continue
		}
		s.told[scope] = in.acked
		return &syncpb.StreamDown{Scope: uint32(scope), Ack: in.acked, Resync: resync}, true
	}
	return nil, false
}

func (r *receiver) give(n int) {
	r.mu.Lock()
	r.inflight -= n
	r.mu.Unlock()
	signal(r.room)
}

// intake finds or makes the intake of a scope; nil when there are too many. The lock
// is held.
func (r *receiver) intake(scope cluster.ScopeID) *intake {
	in := r.intakes[scope]
	if in == nil && len(r.intakes) < maxScopes {
		in = &intake{}
		r.intakes[scope] = in
	}
	return in
}

func (r *receiver) ack(process cluster.ProcessID, scope cluster.ScopeID, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if process != r.process {
		return
	}
	in := r.intake(scope)
	if in == nil || seq <= in.acked {
		return
	}
	in.acked, in.handed = seq, max(in.handed, seq)
	for _, s := range r.streams {
		s.owe(scope, false)
	}
}

// verdict on a frame.
type verdict int

const (
	stale   verdict = iota // arrived before, or not in its turn, or its stream has ended
	early                  // new, but the handler has enough
	fresh                  // new, and the handler is given it now
	refused                // of one scope too many
)

// judge counts a frame. A stream that has ended brings nothing any more; that it is
// asked under the lock keeps what an older process or an interrupted run left behind
// from counting.
func (r *receiver) judge(s *incoming, scope cluster.ScopeID, seq uint64, first bool, size int) verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-s.ended:
		return stale
	default:
	}
	r.arrivals++
	s.heard = r.arrivals
	in := r.intake(scope)
	switch {
	case in == nil:
		return refused
	case seq <= in.handed:
		r.second++
		return stale
	case s.scoped && !first && seq != in.handed+1:
		// On its way when the scope was begun again: what is missing before it comes,
		// and this after it. A client that knows of no scope ends its stream instead.
		return stale
	case r.inflight > 0 && r.inflight+size > maxInflight:
		return early
	}
	in.handed = seq
	r.inflight += size
	return fresh
}

// resync begins a scope again; what was not acknowledged will be new again. The streams
// are asked after a pause, so that frames refused again and again keep nobody busy.
func (r *receiver) resync(scope cluster.ScopeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := r.intakes[scope]
	if in == nil {
		return
	}
	in.handed = in.acked
	for _, s := range r.streams {
		if !s.scoped {
			s.stop(errResync)
		}
	}
	if in.asking {
		return
	}
	in.asking = true
	time.AfterFunc(minBackoff, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		in.asking = false
		if r.intakes[scope] != in {
			return // another process speaks for the node
		}
		for _, s := range r.streams {
			if s.scoped {
				s.owe(scope, true)
			}
		}
	})
}

// add counts a stream of a process. The newest one is right: a former one's end may
// not have been noticed yet, and its hello may still have been on its way. But what
// heartbeats tell, if they do, is right in any case: as long as the process that they
// name is connected, no other takes its place.
func (r *receiver) add(process, told cluster.ProcessID, h *syncpb.Hello) (*incoming, error) {
	s := &incoming{
		r: r, scoped: h.Scoped, version: common(h), wake: make(chan struct{}, 1), ended: make(chan struct{}),
		told: make(map[cluster.ScopeID]uint64), owed: make(map[cluster.ScopeID]bool),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if process != r.process {
		if told != 0 && process != told && slices.Contains(r.retired, process) {
			return nil, fmt.Errorf("process %x is a former one", uint64(process))
		}
		if told != 0 && told == r.process && len(r.streams) > 0 {
			// Not a successor, of which heartbeats would tell before it can call, but a
			// second node with the same number. A successor in a hurry tries again.
			return nil, fmt.Errorf("process %x: heartbeats name process %x, which is connected", uint64(process), uint64(told))
		}
		for _, o := range r.streams {
			o.stop(errReplaced)
		}
		if r.process != 0 {
			r.retired = retire(r.retired, r.process)
		}
		r.process, r.intakes = process, make(map[cluster.ScopeID]*intake)
	}
	if len(r.streams) >= maxStreams {
		// Not the oldest: that may be the one that works, and the others half-open.
		i, quiet := 0, r.streams[0]
		for j, o := range r.streams {
			if o.heard < quiet.heard {
				i, quiet = j, o
			}
		}
		quiet.stop(errTooMany)
		r.streams = slices.Delete(slices.Clone(r.streams), i, i+1)
	}
	r.arrivals++
	s.heard = r.arrivals
	r.streams = append(r.streams, s)
	return s, nil
}

func (r *receiver) remove(s *incoming) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, o := range r.streams {
		if o == s {
			r.streams = append(r.streams[:i:i], r.streams[i+1:]...)
			return
		}
	}
}
