package node

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/outbox"
	"tandem/xfrm"
)

// scopeSet are the Nodes of a process that has several, each with what it owns or stands by
// for, and what it keeps for all of them. It is not safe for concurrent use.
type scopeSet struct {
	scopes  map[cluster.ScopeID]*Node
	order   []cluster.ScopeID
	peers   map[cluster.NodeID]cluster.Peer
	streams map[cluster.NodeID]cluster.ProcessID
	notes   []cluster.ScopeID     // whose WriteNote is open; nobody's: that of the whole
	framed  []cluster.ScopeID     // whose frames were acknowledged and are still to be dealt with
	collect func(cluster.ScopeID) // takes over what a scope wants done
	out     outbox.Box[Effect]
}

func newScopeSet() scopeSet {
	return scopeSet{
		scopes: map[cluster.ScopeID]*Node{}, peers: map[cluster.NodeID]cluster.Peer{}, streams: map[cluster.NodeID]cluster.ProcessID{},
	}
}

// Poll returns the next effect; drain it before the next input.
func (f *scopeSet) Poll() (Effect, bool) {
	for f.out.Empty() && len(f.framed) > 0 {
		id := f.framed[0]
		f.framed = f.framed[1:]
		f.collect(id)
	}
	return f.out.Poll()
}

func (f *scopeSet) emit(e Effect) { f.out.Emit(e) }

// each runs do on every scope in order and takes over the effects.
func (f *scopeSet) each(do func(*Node)) {
	for _, id := range f.order {
		do(f.scopes[id])
		f.collect(id)
	}
}

// with runs do on one scope, if this process has to do with it.
func (f *scopeSet) with(id cluster.ScopeID, do func(*Node)) {
	if n := f.scopes[id]; n != nil {
		do(n)
		f.collect(id)
	}
}

// put adds a scope in its place.
func (f *scopeSet) put(id cluster.ScopeID, n *Node) {
	f.scopes[id] = n
	i, _ := slices.BinarySearch(f.order, id)
	f.order = slices.Insert(f.order, i, id)
}

// tellStreams tells a new scope which streams stand.
func (f *scopeSet) tellStreams(now time.Time, n *Node) {
	for _, k := range slices.Sorted(maps.Keys(f.streams)) {
		n.HandleStream(now, k, f.streams[k], true)
	}
}

// HandleRemoved is the guardian's word on a scope, as are HandleEntitled and HandleClaimed.
func (f *scopeSet) HandleRemoved(now time.Time, s cluster.ScopeID, id cluster.NodeID) {
	f.with(s, func(n *Node) { n.HandleRemoved(now, id) })
}

// HandleEntitled says that our guardian holds our entitlement.
func (f *scopeSet) HandleEntitled(now time.Time, s cluster.ScopeID, e cluster.Epoch) {
	f.with(s, func(n *Node) { n.HandleEntitled(now, e) })
}

// HandleClaimed answers cluster.Claim.
func (f *scopeSet) HandleClaimed(now time.Time, s cluster.ScopeID, e cluster.Epoch, ok bool) {
	f.with(s, func(n *Node) { n.HandleClaimed(now, e, ok) })
}

// HandleStream says that the stream towards a member came or went.
func (f *scopeSet) HandleStream(now time.Time, id cluster.NodeID, process cluster.ProcessID, up bool) {
	if up {
		f.streams[id] = process
	} else if f.streams[id] == process {
		delete(f.streams, id)
	}
	f.each(func(n *Node) { n.HandleStream(now, id, process, up) })
}

// HandleAck takes a member's acknowledgement for a scope.
func (f *scopeSet) HandleAck(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, seq uint64) {
	f.with(s, func(n *Node) { n.HandleAck(now, from, process, seq) })
}

// frame gives a scope a frame of another member's journal.
func (f *scopeSet) frame(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, frame []byte) error {
	n := f.scopes[s]
	err := n.HandleFrame(now, from, process, frame)
	for !n.out.Empty() { // acknowledgements, which what the frame asks for follows; see Poll
		e, _ := n.out.Poll()
		f.emit(e)
	}
	f.framed = append(f.framed, s)
	return err
}

// HandleNote answers the oldest open WriteNote.
func (f *scopeSet) HandleNote(now time.Time, err error) {
	if len(f.notes) == 0 {
		return
	}
	s := f.notes[0]
	f.notes = f.notes[1:]
	f.with(s, func(n *Node) { n.HandleNote(now, err) })
}

// HandleWindows answers TakeWindows of a scope.
func (f *scopeSet) HandleWindows(now time.Time, s xfrm.Scope, ws []xfrm.Window) {
	f.with(cluster.ScopeID(s), func(n *Node) { n.HandleWindows(now, ws) })
}

// dueScopes runs what is due in the scopes.
func (f *scopeSet) dueScopes(now time.Time) {
	f.each(func(n *Node) {
		if t, ok := n.NextTimeout(); ok && !now.Before(t) {
			n.HandleTimeout(now)
		}
	})
}

// planeEvents gives each scope what of the data plane's events is its own.
func (f *scopeSet) planeEvents(now time.Time, events []xfrm.Event, scopeOf func(xfrm.Event) (cluster.ScopeID, bool)) {
	by := map[cluster.ScopeID][]xfrm.Event{}
	for _, e := range events {
		if id, ok := scopeOf(e); ok {
			by[id] = append(by[id], e)
		}
	}
	for _, id := range f.order {
		if es := by[id]; len(es) > 0 {
			f.with(id, func(n *Node) { n.HandlePlane(now, es) })
		}
	}
}

// more adds some of the gateways that keep wants, scope by scope; see Node.More.
func (f *scopeSet) more(now time.Time, s *Status, at *Place, keep func(n *Node, g *ike.GatewayStatus) bool) (more bool) {
	i, same := slices.BinarySearch(f.order, at.scope)
	if i == len(f.order) {
		return false
	}
	if !same {
		*at = Place{scope: f.order[i]}
	}
	n := f.scopes[at.scope]
	part, last, more := n.ike.StatusAfter(now, at.after, statusPart)
	at.after = last
	for j := range part {
		if keep(n, &part[j]) {
			s.Gateways = append(s.Gateways, part[j])
		}
	}
	if !more {
		*at = Place{scope: at.scope + 1}
	}
	return more || i+1 < len(f.order)
}

var errNotHere = errors.New("no scope of this member has that tunnel")

// Up negotiates a phase 2 of a tunnel whose scope is owned here.
func (f *scopeSet) Up(now time.Time, phase1, phase2 string) error {
	return f.first(func(n *Node) error { return n.Up(now, phase1, phase2) })
}

// Down deletes the Child SAs of a phase 2, with DELETE to the peer.
func (f *scopeSet) Down(now time.Time, phase1, phase2 string) error {
	return f.first(func(n *Node) error { return n.Down(now, phase1, phase2) })
}

// first tries the scopes that are owned here until one says yes.
func (f *scopeSet) first(do func(*Node) error) error {
	err := errNotHere
	done := false
	for _, id := range f.order {
		if f.scopes[id].owner && !done {
			f.with(id, func(n *Node) { err = do(n); done = err == nil })
		}
	}
	return err
}

// Clear deletes the IKE SAs of a tunnel that this member owns, or of all for an empty name.
func (f *scopeSet) Clear(now time.Time, name string) int {
	return f.sum(func(n *Node) int { return n.Clear(now, name) })
}

// Rekey rekeys the Child SAs of a tunnel that this member owns, or its IKE SAs.
func (f *scopeSet) Rekey(now time.Time, name string, ikeSA bool) int {
	return f.sum(func(n *Node) int { return n.Rekey(now, name, ikeSA) })
}

// Redirect is Node.Redirect for every scope: on for those that are owned here.
func (f *scopeSet) Redirect(now time.Time, away bool) (told int) {
	f.each(func(n *Node) {
		if !away || n.owner && n.handing == nil {
			told += n.Redirect(now, away)
		}
	})
	return told
}

// Redirectable is how many IKE SAs are still here whose peers were told to go elsewhere.
func (f *scopeSet) Redirectable() int { return f.sum((*Node).Redirectable) }

// sum adds up what do returns for the scopes that are owned here.
func (f *scopeSet) sum(do func(*Node) int) (sum int) {
	f.each(func(n *Node) {
		if n.owner {
			sum += do(n)
		}
	})
	return sum
}

// ownSPI is our SPI in an IKE header (RFC 7296 §3.1): the responder's if the sender is
// the original initiator; zero in a request that begins something new.
func ownSPI(b []byte) (spi uint64, ok bool) {
	if len(b) < 28 {
		return 0, false
	}
	spi = binary.BigEndian.Uint64(b)
	if b[19]&flagInitiator != 0 {
		spi = binary.BigEndian.Uint64(b[8:])
	}
	return spi, true
}

const flagInitiator = 0x08
