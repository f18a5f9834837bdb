package fsm

import (
	"fmt"
	"slices"
)

// Bounds of the state. All of them hold after every entry and in every snapshot.
const (
	MaxNodes       = 16
	SlotsPerMember = 8
	MaxVoters      = 5
	MaxVClusters   = 31 // 0: the only one of a group without virtual clusters
	MaxRanges      = 4096
	MaxRangeCount  = 1 << 24 // numbers in one range
	MaxName        = 64      // bytes
	MaxEntry       = 16 << 10
	MaxSnapshot    = 1 << 20
	DigestLen      = 32

	remembered = 64      // outcomes of a proposer's commands
	maxCounter = 1 << 62 // of an epoch that somebody claims to have seen
)

// The log versions that this build understands: see Machine.Version.
const (
	MinVersion = 1
	MaxVersion = 1 + raised
)

// NodeID is a member's number, from its certificate: 1–16. 0: nobody.
type NodeID uint32

// Epoch numbers the ownership of a scope. Of its counter, the upper 48 bits are the
// term, which the members agree on; the lower LocalBits belong to the owner.
type Epoch struct {
	Counter uint64
	Node    NodeID
}

// LocalBits is how much of a counter its owner counts by itself.
const LocalBits = 16

// Term is what the members have agreed on.
func (e Epoch) Term() uint64 { return e.Counter >> LocalBits }

// SameTenure says whether both are of one owner in one term.
func (e Epoch) SameTenure(o Epoch) bool { return e.Node == o.Node && e.Term() == o.Term() }

// Less orders epochs by counter, then node.
func (e Epoch) Less(o Epoch) bool {
	return e.Counter < o.Counter || e.Counter == o.Counter && e.Node < o.Node
}

// Next is the epoch that node makes after e.
func (e Epoch) Next(node NodeID) Epoch { return Epoch{e.Counter + 1, node} }

func (e Epoch) String() string { return fmt.Sprintf("%d.%d", e.Counter, e.Node) }

// termAbove is the first counter of the term above that of c.
func termAbove(c uint64) uint64 { return (c>>LocalBits + 1) << LocalBits }

// ScopeID names a scope: 0 to 30 the virtual clusters of an FGCP group, from 256
// on the slots of FGSP members.
type ScopeID uint16

const firstSlot = 256

// Slot is the k-th slot of a member, k in [0, SlotsPerMember).
func Slot(home NodeID, k int) ScopeID {
	return firstSlot + ScopeID((int(home)-1)*SlotsPerMember+k)
}

// Home is the member that a slot was made for; 0 for a virtual cluster.
func (s ScopeID) Home() NodeID {
	if s < firstSlot {
		return 0
	}
	return NodeID((s-firstSlot)/SlotsPerMember) + 1
}

func (s ScopeID) valid() bool {
	return s < MaxVClusters || s >= firstSlot && s < firstSlot+MaxNodes*SlotsPerMember
}

func (s ScopeID) String() string {
	if h := s.Home(); h != 0 {
		return fmt.Sprintf("slot %d/%d", h, (s-firstSlot)%SlotsPerMember)
	}
	return fmt.Sprintf("vcluster %d", s)
}

// MemberState is what an administrator made of a member.
type MemberState uint8

const (
	Active   MemberState = iota
	Draining             // gives away what it owns, and gets nothing
	Left                 // removed; its number and its ranges stay known
)

// Member is one node of the farm.
type Member struct {
	Node       NodeID
	Name       string
	State      MemberState
	Voter      bool // takes part in decisions; the others only learn of them
	Witness    bool // holds no tunnel, key or secret
	Lost       bool // its process was reported lost and has not come again
	MinVersion uint32
	MaxVersion uint32
	Features   uint64 // Site
	Process    uint64 // of its daemon: its memory
	Store      uint64 // of its disk
}

// Able says whether the member may own, or stand by for, a scope.
func (m Member) Able() bool { return m.State == Active && !m.Lost && !m.Witness }

// Reason of a change of owner.
type Reason uint8

const (
	ReasonNone Reason = iota
	ReasonAssigned
	ReasonSilence      // heartbeats ended
	ReasonDeath        // its guardian announced the end of the daemon
	ReasonUnresponsive // its guardian could not end the daemon
	ReasonHandover
	ReasonReported // the leader's ReportLoss came before the successor's own word
	ReasonRestart  // the owner came again as another process
	ReasonDeclined // another had been given it, and this one holds what was acknowledged
	lastReason
)

var reasons = [...]string{"none", "assigned", "silence", "death", "unresponsive", "handover", "reported lost", "restarted", "holds the records"}

func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Scope is what is owned and moves as one.
type Scope struct {
	ID    ScopeID
	Owner NodeID // 0: nobody; then Epoch is the last owner's
	Epoch Epoch  // the owner's; it may have renewed it within its term
	// Successor was promised Next, and acts under it without asking, if its
	// guardian holds the entitlement. 0: there is none.
	Successor NodeID
	Next      Epoch
	Burnt     uint64   // highest counter ever promised
	Standbys  []NodeID // who shall hold the records, in order of preference
	Sync      []NodeID // who holds them, as the owner said
	Reason    Reason   // of the last change of owner
}

func (s Scope) clone() Scope {
	s.Standbys, s.Sync = slices.Clone(s.Standbys), slices.Clone(s.Sync)
	return s
}

// ConfigRevision is the configuration that the members should have. The digest is
// keyed with a secret of the cluster: a bare hash would let a weak pre-shared key be guessed.
type ConfigRevision struct {
	Number uint64
	Digest [DigestLen]byte
}
