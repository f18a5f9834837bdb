// Package statesync carries the state of tunnels from its owner to the members of
// the sync set: the Journal on the owner, the Replica on the standby, the Ledger
// of nonce ranges in each process. All three are pure; sync/stream holds the
// gRPC ends.
//
// It does not look into records: an entry is a key, bytes, and the KeyIDs of the
// secrets inside, for which the Journal gives the receiving process ranges.
package statesync

import (
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// Entry is the replicated state of one IKE SA; see ike.Entry for its fields.
type Entry struct {
	SPIs        ipsec.IKESPIs
	Value       []byte
	PeerDeleted bool
	KeyIDs      []ipsec.KeyID
	ChildSPIs   []ipsec.ESPSPI
}

// Effect is what the Journal or the Replica wants done. Concrete types are below.
type Effect interface{ effect() }

// Effects of the Journal.

// SendFrame goes to a member on every link; the first arrival counts. Frame is a
// marshalled syncpb.Frame; Seq rises by one per (scope, our process, member process).
// Restart: earlier frames to this process need not be delivered any more.
type SendFrame struct {
	Scope   cluster.ScopeID
	Node    cluster.NodeID
	Process cluster.ProcessID
	Seq     uint64
	Restart bool
	Frame   []byte
}

// Committed: the whole sync set holds the record of this ticket and all before.
type Committed struct{ Ticket uint64 }

// BoundsEffective: the whole sync set holds these bounds.
type BoundsEffective struct{ Bounds []xfrm.Bound }

// Entered: the member acknowledged its entry; it counts since the entry was sent.
type Entered struct{ Node cluster.NodeID }

// HandedOver: the member acknowledged the last frame of a handover.
type HandedOver struct {
	Node  cluster.NodeID
	Epoch cluster.Epoch
}

// RenewedBy: the member acknowledged our latest epoch, and thereby all records before
// it; its guardian holds its entitlement for that epoch.
type RenewedBy struct{ Node cluster.NodeID }

// United: the owner acknowledged the whole of our state, or cannot be sent it.
type United struct{ Node cluster.NodeID }

// Overflow: the member's queue grew beyond the limit; it must leave and join again.
type Overflow struct{ Node cluster.NodeID }

// CopyStalled: no part of the copy was acknowledged for CopyTimeout; Join it again.
type CopyStalled struct {
	Node    cluster.NodeID
	Process cluster.ProcessID
}

// Letter is about tunnels that move between two scopes, from the owner of Other to that
// of the journal's scope. Whoever writes it does so again until it is answered.
type Letter struct {
	Kind    LetterKind
	Other   cluster.ScopeID
	Entries []Entry
}

// LetterKind says what is wanted, or answered, of the entries.
type LetterKind uint8

const (
	LetterOffer   LetterKind = 1 + iota // they are ready to be adopted
	LetterAdopted                       // their IKE SAs are, and committed
	LetterRefused                       // they cannot be
	LetterAsked                         // do their tunnels, named by Value, still exist?
	LetterEnded                         // they do not
)

// Effects of the Replica.

// SendAck acknowledges frames of an owner process up to Seq.
type SendAck struct {
	Scope   cluster.ScopeID
	Node    cluster.NodeID
	Process cluster.ProcessID
	Seq     uint64
}

// CopyBegins starts a full copy: what follows replaces everything.
type CopyBegins struct{ Epoch cluster.Epoch }

// ApplyRecord is one event to take over, whole.
type ApplyRecord struct{ Entries []Entry }

// ApplyBounds are bounds to hold, last value counts.
type ApplyBounds struct{ Bounds []xfrm.Bound }

// CopyComplete: the copy is whole and the owner counts us; ask for entitlement, then ConfirmEntry.
type CopyComplete struct{ Epoch cluster.Epoch }

// Renewed: the owner goes on under Epoch and counts us still, with what we hold; ask for
// entitlement at Epoch, then ConfirmEntryAt. Until then nothing more is acknowledged.
type Renewed struct{ Epoch cluster.Epoch }

// HandoverReceived: the owner stopped and hands the scope to us at Epoch.
type HandoverReceived struct {
	Epoch   cluster.Epoch
	Windows []xfrm.Window
}

// UniteReceived is the other side's state at healing, whole.
type UniteReceived struct {
	From       cluster.NodeID
	Entries    []Entry
	Bounds     []xfrm.Bound
	Tombstones []ipsec.IKESPIs
}

// LetterReceived is about tunnels that move between our scope and Other: see Letter.
type LetterReceived struct {
	From cluster.NodeID
	Letter
}

func (LetterReceived) effect()   {}
func (SendFrame) effect()        {}
func (Committed) effect()        {}
func (BoundsEffective) effect()  {}
func (Entered) effect()          {}
func (HandedOver) effect()       {}
func (RenewedBy) effect()        {}
func (United) effect()           {}
func (Overflow) effect()         {}
func (CopyStalled) effect()      {}
func (SendAck) effect()          {}
func (CopyBegins) effect()       {}
func (ApplyRecord) effect()      {}
func (ApplyBounds) effect()      {}
func (CopyComplete) effect()     {}
func (Renewed) effect()          {}
func (HandoverReceived) effect() {}
func (UniteReceived) effect()    {}

// CopyTimeout: a copy of which nothing more was acknowledged for this long is begun again.
const CopyTimeout = 5 * time.Second
