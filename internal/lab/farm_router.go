package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// routing decides to which members, or sites, the routers send. What the lab does with routes
// of its own (staticRouting) a routing protocol may do instead.
type routing interface {
	// lost says that a member was hurt. The channel gives the moment from which the
	// routers no longer send to it, and is closed without one if they never stopped.
	lost(member string, at time.Time) <-chan time.Time
	// back lets a member that is synchronised have traffic again.
	back(member string) error
	// rehash sends to the members given, in another way than before.
	rehash(members []string) error
	// active are the members that have traffic.
	active() []string
	// changes lists what was done, in order.
	changes() []routeChange
	// close waits for what is under way.
	close() error
}

// routeChange is one replacement of the ECMP routes.
type routeChange struct {
	at      time.Time
	why     string // fault, rejoin, rehash
	member  string
	members []string // from then on
}

// staticRouting replaces the routers' ECMP routes itself, a set time after a fault.
type staticRouting struct {
	topo *Topology
	f    FarmSetup
	wg   sync.WaitGroup

	mu      sync.Mutex
	rng     *rand.Rand
	members []string
	done    []routeChange
	err     error
}

func newStaticRouting(t *Topology, f FarmSetup) *staticRouting {
	return &staticRouting{topo: t, f: f, rng: rand.New(rand.NewPCG(f.Seed, 0)), members: f.hops()}
}

// replace is called with mu held.
func (s *staticRouting) replace(members []string, why, member string) error {
	err := s.topo.setRoutes(&s.f, members)
	s.members = members
	s.done = append(s.done, routeChange{timeNow(), why, member, slices.Clone(members)})
	return err
}

func (s *staticRouting) lost(member string, at time.Time) <-chan time.Time {
	moved := make(chan time.Time, 1)
	s.mu.Lock()
	wait := s.f.MoveMin
	if d := s.f.MoveMax - s.f.MoveMin; d > 0 {
		wait += time.Duration(s.rng.Int64N(int64(d)))
	}
	known := slices.Contains(s.members, member)
	s.mu.Unlock()
	if !known {
		close(moved)
		return moved
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer close(moved)
		time.Sleep(time.Until(at.Add(wait)))
		s.mu.Lock()
		defer s.mu.Unlock()
		left := slices.DeleteFunc(slices.Clone(s.members), func(m string) bool { return m == member })
		if err := s.replace(left, "fault", member); err != nil {
			s.err = errors.Join(s.err, err)
			return
		}
		moved <- s.done[len(s.done)-1].at
	}()
	return moved
}

func (s *staticRouting) back(member string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.members, member) {
		return nil
	}
	// At its old place, so that the flows that the others keep stay with them.
	next := append(slices.Clone(s.members), member)
	slices.SortFunc(next, func(a, b string) int { return s.f.hopIndex(a) - s.f.hopIndex(b) })
	return s.replace(next, "rejoin", member)
}

func (s *staticRouting) rehash(members []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(members) == 0 { // another order: every flow finds another member
		members = append(slices.Clone(s.members[1:]), s.members[0])
	}
	if len(members) < 1 {
		return fmt.Errorf("the routers have nobody left to send to")
	}
	return s.replace(members, "rehash", strings.Join(members, " "))
}

func (s *staticRouting) active() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.members)
}

func (s *staticRouting) changes() []routeChange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.done)
}

func (s *staticRouting) close() error {
	s.wg.Wait()
	return s.err
}
