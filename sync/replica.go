package statesync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	"tandem/xfrm"
)

// What HandleFrame refuses. Nothing of a refused frame is taken over or acknowledged.
var (
	ErrMalformed = errors.New("malformed frame")
	ErrAddress   = errors.New("frame of or for another process, or of another scope")
	ErrOldEpoch  = errors.New("frame of an older epoch")
	ErrGap       = errors.New("frames are missing before this one")
	ErrNoCopy    = errors.New("frame outside of a copy")
	ErrTooLarge  = errors.New("handed-over state beyond the bounds")
	ErrNotOwner  = errors.New("state for an owner, which this process is not")
)

const (
	maxAssembly = 256 << 20 // bytes of a unite or a handover under way
	maxSenders  = 64
	maxRetired  = 8 // former processes of a node that are remembered
)

// ReplicaStats count what a Replica did not take over.
type ReplicaStats struct {
	Duplicates, Echoes, Malformed, Misaddressed, OldEpoch, Gaps, NoCopy, NotOwner uint64
}

// Replica receives the state of an owner. It passes on each frame once and in
// order, acknowledges what it passed on, and refuses what is older than its fence.
// All methods are called from one goroutine; after each, Poll until it has nothing more.
type Replica struct {
	scope   cluster.ScopeID
	self    cluster.ProcessID
	led     *Ledger
	fence   cluster.Epoch
	senders map[cluster.NodeID]*sender
	refuses bool          // Unites; see RefuseUnites
	copying *sender       // whose copy and records we take; nil: nobody's
	epoch   cluster.Epoch // of that copy
	stats   ReplicaStats

	effects fifo[Effect]
	acks    fifo[*sender] // those with something to acknowledge
}

// sender is a process that sends frames to us.
type sender struct {
	node    cluster.NodeID
	process cluster.ProcessID
	retired []cluster.ProcessID

	seq    uint64 // highest taken over
	acked  uint64 // highest acknowledged
	entry  uint64 // first frame with an entry or a renewal that is not confirmed; 0: none
	whole  bool   // the copy is complete
	queued bool   // in acks
	unread bool   // a Unite was refused: what follows it is, too

	unite    *UniteReceived // under way
	windows  []xfrm.Window  // of a handover under way
	assembly int            // bytes of both
}

// NewReplica makes the replica of scope 0 for a process that holds nothing yet.
func NewReplica(self cluster.ProcessID, l *Ledger) *Replica { return NewScopeReplica(0, self, l) }

// NewScopeReplica makes the replica of any scope. A process has one for each scope that
// it ever stands by for, or takes back at healing, and keeps it: it knows the numbers.
// The Ledger is one for all.
func NewScopeReplica(scope cluster.ScopeID, self cluster.ProcessID, l *Ledger) *Replica {
	return &Replica{scope: scope, self: self, led: l, senders: make(map[cluster.NodeID]*sender)}
}

// Fence refuses everything of an epoch below this one from now on. A Unite is
// exempt: it is older by nature.
func (r *Replica) Fence(e cluster.Epoch) {
	if r.fence.Less(e) {
		r.fence = e
	}
	if r.copying != nil && r.epoch.Less(r.fence) {
		r.copying.windows = nil
		r.copying = nil // its entry, if unconfirmed, never will be
	}
}

// RefuseUnites says whether a Unite is refused, because this process does not own. Its
// sender learns that by the acknowledgement that does not come.
func (r *Replica) RefuseUnites(on bool) { r.refuses = on }

// ConfirmEntry acknowledges the entry of the copy that is complete, and a renewal.
// Without one that waits it does nothing.
func (r *Replica) ConfirmEntry() {
	if s := r.copying; s != nil && s.entry != 0 {
		s.entry = 0
		r.acknowledge(s)
	}
}

// ConfirmEntryAt is ConfirmEntry for an entitlement at an epoch: it does nothing if the
// owner has gone on to a later one since, for which the entitlement does not stand.
func (r *Replica) ConfirmEntryAt(e cluster.Epoch) {
	if r.copying != nil && r.epoch == e {
		r.ConfirmEntry()
	}
}

// Abandon refuses the rest of a copy that has begun, and what follows one: what came of it
// is kept nowhere any more. Another copy may begin.
func (r *Replica) Abandon() {
	if s := r.copying; s != nil {
		r.copying, s.windows = nil, nil
	}
}

// Stats counts what was not taken over.
func (r *Replica) Stats() ReplicaStats { return r.stats }

// HandleFrame takes one frame from a process of a node, as the stream vouches for
// them. A second arrival and our own news are ignored without error. After ErrGap the
// stream must begin again from what was acknowledged; of the other errors that would
// bring nothing new, and what the sender begins next mends them.
func (r *Replica) HandleFrame(now time.Time, from cluster.NodeID, process cluster.ProcessID, frame []byte) error {
	r.led.Expire(now)
	if process == r.self {
		r.stats.Echoes++
		return nil
	}
	if s := r.senders[from]; s != nil && s.process == process {
		// Nearly every second arrival is seen here, before any decoding.
		if seq, ok := peekSeq(frame); ok && seq <= s.seq {
			r.stats.Duplicates++
			return nil
		}
	}
	f, err := decodeFrame(frame)
	if err != nil {
		r.stats.Malformed++
		return err
	}
	if f.OriginProcess == uint64(r.self) {
		r.stats.Echoes++
		return nil
	}
	if f.OriginProcess != uint64(process) || f.ToProcess != uint64(r.self) {
		r.stats.Misaddressed++
		return fmt.Errorf("%w: %x to %x", ErrAddress, f.OriginProcess, f.ToProcess)
	}
	if f.Scope != uint32(r.scope) {
		r.stats.Misaddressed++
		return fmt.Errorf("%w: of scope %d", ErrAddress, f.Scope)
	}
	s := r.sender(from, process)
	if s == nil {
		r.stats.Misaddressed++
		return fmt.Errorf("%w: %x is a former process of node %d", ErrAddress, uint64(process), from)
	}
	return r.take(s, f)
}

// take applies a decoded frame that is for us.
func (r *Replica) take(s *sender, f *syncpb.Frame) error {
	begins := f.Events[0].GetCopyBegin() != nil
	unites := f.Events[0].GetUnite() != nil
	renews := f.Events[0].GetRenew() != nil
	letter := f.Events[0].GetLetter() != nil // of any epoch: who writes does not own
	epoch := cluster.Epoch{Counter: f.EpochCounter, Node: cluster.NodeID(f.EpochNode)}
	gap := f.Seq != s.seq+1 && !begins && !f.Events[0].GetUnite().GetFirst() && !f.Events[0].GetLetter().GetFirst()
	switch {
	case !unites && !letter && epoch.Less(r.fence):
		r.stats.OldEpoch++
		return fmt.Errorf("%w: %v, fence %v", ErrOldEpoch, epoch, r.fence)
	case f.Seq <= s.seq:
		r.stats.Duplicates++
		return nil
	case unites && r.refuses, gap && s.unread:
		s.unread = true
		r.stats.NotOwner++
		return fmt.Errorf("%w: from epoch %v", ErrNotOwner, epoch)
	case gap:
		r.stats.Gaps++
		return fmt.Errorf("%w: %d follows %d", ErrGap, f.Seq, s.seq)
	case renews && (r.copying != s || !r.epoch.Less(epoch)):
		r.stats.NoCopy++
		return fmt.Errorf("%w: renewal at %v", ErrNoCopy, epoch)
	case !begins && !unites && !renews && !letter && (r.copying != s || r.epoch != epoch):
		r.stats.NoCopy++
		return fmt.Errorf("%w: epoch %v", ErrNoCopy, epoch)
	case unites && !f.Events[0].GetUnite().GetFirst() && s.unite == nil:
		r.stats.NoCopy++
		return fmt.Errorf("%w: unite without its beginning", ErrNoCopy)
	}
	// Bounds on what is put together are checked before anything is taken over.
	for _, e := range f.Events {
		if e.GetHandover() != nil || e.GetUnite() != nil {
			if e.GetUnite().GetFirst() {
				s.assembly = 0
			}
			if s.assembly += proto.Size(f); s.assembly > maxAssembly {
				s.unite, s.windows, s.assembly = nil, nil, 0
				r.stats.Malformed++
				return ErrTooLarge
			}
			break
		}
	}
	s.seq, s.unread = f.Seq, false
	for _, e := range f.Events {
		r.event(s, epoch, f.Seq, e)
	}
	r.acknowledge(s)
	return nil
}

func (r *Replica) event(s *sender, epoch cluster.Epoch, seq uint64, e *syncpb.Frame_Event) {
	switch k := e.Kind.(type) {
	case *syncpb.Frame_Event_CopyBegin:
		r.copying, r.epoch, r.fence = s, epoch, epoch
		s.entry, s.whole, s.windows, s.unite, s.assembly = 0, false, nil, nil, 0
		r.effects.push(CopyBegins{epoch})
	case *syncpb.Frame_Event_Record:
		r.effects.push(ApplyRecord{r.entries(k.Record.Entries)})
	case *syncpb.Frame_Event_Bounds:
		r.effects.push(ApplyBounds{boundsFromPB(k.Bounds)})
	case *syncpb.Frame_Event_Entry:
		s.entry, s.whole = seq, true
		r.effects.push(CopyComplete{epoch})
	case *syncpb.Frame_Event_Renew:
		r.epoch, r.fence = epoch, epoch
		if !s.whole {
			return // the copy goes on, and asks at its end
		}
		if s.entry == 0 {
			s.entry = seq
		}
		r.effects.push(Renewed{epoch})
	case *syncpb.Frame_Event_Handover:
		for _, w := range k.Handover.Windows {
			s.windows = append(s.windows, xfrm.Window{
				SPIIn: ipsec.ESPSPI(w.SpiIn), OutSeq: w.OutSeq, InSeq: w.InSeq, InAccepted: w.InAccepted})
		}
		if k.Handover.Last {
			to := cluster.Epoch{Counter: k.Handover.EpochCounter, Node: cluster.NodeID(k.Handover.EpochNode)}
			r.effects.push(HandoverReceived{Epoch: to, Windows: s.windows})
			s.windows, s.assembly = nil, 0
		}
	case *syncpb.Frame_Event_Unite:
		r.uniteEvent(s, k.Unite)
	case *syncpb.Frame_Event_Letter:
		l := k.Letter
		r.effects.push(LetterReceived{From: s.node, Letter: Letter{
			Kind: LetterKind(l.Kind), Other: cluster.ScopeID(l.Other), Entries: r.entries(l.Entries)}})
	}
}

func (r *Replica) uniteEvent(s *sender, m *syncpb.Frame_Unite) {
	if m.First {
		s.unite, s.entry = &UniteReceived{From: s.node}, 0
	}
	u := s.unite
	if u == nil {
		return
	}
	u.Entries = append(u.Entries, r.entries(m.Entries)...)
	u.Bounds = append(u.Bounds, boundsFromPB(m.Bounds)...)
	for i := 0; i < len(m.Tombstones); i += 2 {
		u.Tombstones = append(u.Tombstones, ipsec.IKESPIs{I: ipsec.IKESPI(m.Tombstones[i]), R: ipsec.IKESPI(m.Tombstones[i+1])})
	}
	if m.Last {
		r.effects.push(*u)
		s.unite, s.assembly = nil, 0
	}
}

// entries converts entries and adopts the ranges that came with their keys.
func (r *Replica) entries(in []*syncpb.Frame_Entry) []Entry {
	out := make([]Entry, len(in))
	for i, m := range in {
		e := Entry{SPIs: ipsec.IKESPIs{I: ipsec.IKESPI(m.SpiI), R: ipsec.IKESPI(m.SpiR)}, PeerDeleted: m.PeerDeleted}
		if len(m.Value) > 0 {
			e.Value = m.Value
		}
		for _, k := range m.KeyIds {
			e.KeyIDs = append(e.KeyIDs, ipsec.KeyID(k))
		}
		for _, c := range m.ChildSpis {
			e.ChildSPIs = append(e.ChildSPIs, ipsec.ESPSPI(c))
		}
		for _, g := range m.Ranges {
			if slices.Contains(m.KeyIds, g.KeyId) {
				r.led.Adopt(ipsec.KeyID(g.KeyId), ipsec.SenderRange{Lo: g.Lo, Hi: g.Hi})
			}
		}
		out[i] = e
	}
	return out
}

func boundsFromPB(m *syncpb.Frame_Bounds) []xfrm.Bound {
	if m == nil {
		return nil
	}
	out := make([]xfrm.Bound, len(m.Sa))
	for i, sa := range m.Sa {
		out[i] = xfrm.Bound{SPIIn: ipsec.ESPSPI(sa >> 1), Dir: xfrm.Direction(sa & 1), N: m.N[i]}
	}
	return out
}

// sender finds or makes what we know of the process; nil when it is a former one.
func (r *Replica) sender(from cluster.NodeID, process cluster.ProcessID) *sender {
	s := r.senders[from]
	if s == nil {
		if len(r.senders) == maxSenders {
			return nil
		}
		s = &sender{node: from, process: process}
		r.senders[from] = s
	}
	if s.process == process {
		return s
	}
	if slices.Contains(s.retired, process) {
		return nil
	}
	retired := append(s.retired, s.process)
	if len(retired) > maxRetired {
		retired = retired[1:]
	}
	if r.copying == s {
		r.copying = nil
	}
	n := &sender{node: from, process: process, retired: retired}
	r.senders[from] = n
	return n
}

// acknowledge notes that the sender may have an acknowledgement.
func (r *Replica) acknowledge(s *sender) {
	if !s.queued && s.ackable() > s.acked {
		s.queued = true
		r.acks.push(s)
	}
}

// ackable ends before an entry that is not confirmed.
func (s *sender) ackable() uint64 {
	if s.entry != 0 {
		return s.entry - 1
	}
	return s.seq
}

// Poll returns the next effect. An acknowledgement comes after everything that it
// acknowledges, unless PollAck was asked for it before.
func (r *Replica) Poll() (Effect, bool) {
	if r.effects.len() > 0 {
		return r.effects.pop(), true
	}
	if a, ok := r.PollAck(); ok {
		return a, true
	}
	return nil, false
}

// PollAck returns an acknowledgement before the effects of the frames that it
// acknowledges: they are in memory, and their sender waits. Who sends it carries out
// those effects before anything else happens to this process.
func (r *Replica) PollAck() (a SendAck, ok bool) {
	for r.acks.len() > 0 {
		s := r.acks.pop()
		s.queued = false
		if seq := s.ackable(); seq > s.acked && r.senders[s.node] == s {
			s.acked = seq
			return SendAck{Scope: r.scope, Node: s.node, Process: s.process, Seq: seq}, true
		}
	}
	return a, false
}

// peekSeq reads the number of a frame that begins with it, as ours do.
func peekSeq(b []byte) (uint64, bool) {
	if len(b) < 9 || b[0] != 1<<3|1 { // field 1, fixed64
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[1:]), true
}
