// Package cluster decides who owns each scope: epochs, election, entitlement,
// takeover, healing. It knows no tunnel, only scopes and owners.
//
// The pair engine (Pair) is pure. The guardian is a small parent process that
// sends heartbeats, holds the entitlement and fences its daemon; its logic
// (Guard) is pure too, its sockets and signals are a thin shell around it.
package cluster

import (
	"slices"
	"time"

	"tandem/cluster/fsm"
	"tandem/internal/config"
)

// NodeID is a member's number within the cluster, from its certificate: 1–16.
type NodeID = fsm.NodeID

// Epoch numbers the ownership of a scope: it grows with every change of owner,
// and no two nodes ever make the same one. Zero: nobody has ever owned it.
type Epoch = fsm.Epoch

// ScopeID names what is owned and moves as one. A pair has one, 0, or its virtual clusters.
type ScopeID = fsm.ScopeID

// ProcessID is a random number of a daemon process: what is in memory lives as long as it.
type ProcessID uint64

// Coverage is what a starting node knows about its last life (architecture, Invariants).
type Coverage uint8

const (
	CoverageProven Coverage = iota // disk intact, no note: it never went on alone
	CoverageNote                   // it went on alone: the survivor must rekey early
	CoverageLost                   // disk lost: the same
)

// Role of this node for a scope.
type Role uint8

const (
	RoleNone    Role = iota // starting, or nothing known
	RoleStandby             // copies (Synchronised says whether entitled)
	RoleOwner
)

// Election is what FGCP's election compares.
type Election struct {
	MonitorsUp int
	Age        time.Duration // since the cluster process or the monitored interfaces last failed
	Priority   int
	Override   bool
	Serial     string
	Failover   bool // `execute ha failover set`: ranks below a node without it
	// Penalty is the sum of ha-priority of the link monitors that failed, if it reaches
	// pingserver-failover-threshold: the lower one goes first.
	Penalty      int
	Handed       Handed        // why it handed its last ownership over, until it owns again
	OverrideWait time.Duration // override-wait-time; the longer one of both nodes counts
}

// Peer is what another node's heartbeats say, as the guardian hands it up when it changes.
type Peer struct {
	Node       NodeID
	Name       string
	Process    ProcessID
	Running    bool // its daemon lives
	Role       Role
	Epoch      Epoch // of the scope as that node knows it
	Entitled   bool  // its guardian would let it succeed
	Coverage   Coverage
	Election   Election
	Links      []Link // heartbeat devices on which it is heard
	StreamPort uint16
	Chosen     NodeID // whom it chose to own, in an election or a healing that it decides; 0: nobody
	Deaf       bool   // its heartbeats say that it does not hear us
	// In a farm: the scopes that it owns, and those whose owners its guardian would
	// let it succeed, with the owners' epochs; by number.
	Owned      []Tenure
	EntitledTo []Tenure
	VClusters  []VCluster // by scope; see Of
}

// Link is a heartbeat device with the peer's address on it, or the address from
// which a peer's unicast comes.
type Link struct {
	Device string // "": unicast
	Addr   string // on a device IPv6 link-local, without zone
}

// Loss says how a peer was lost.
type Loss uint8

const (
	LossSilence      Loss = iota // nothing on any link for hb-lost-threshold intervals
	LossDeath                    // its guardian announced the end of its daemon
	LossUnresponsive             // its guardian could not end its daemon
)

// PairOptions configure a Pair.
type PairOptions struct {
	Self     NodeID
	Name     string
	Serial   string
	HA       config.HA
	Scope    ScopeID // 0, or the virtual cluster 1 to 30 that HA is of
	Coverage Coverage
	Epoch    Epoch // highest that this node's disk knows; zero on a new disk
	// Floor is a counter that surely lies above every epoch this node ever made:
	// the wall clock in milliseconds. Only a node whose disk is lost uses it.
	Floor uint64
}

// Effect is what the pair wants done. Concrete types are below.
type Effect interface{ effect() }

// Own begins ownership: activate, announce, resume. Covered says that every SA may
// go on as it is; Trusted=false that the old SAs must not be used at all (this
// node was not entitled: the last resort).
type Own struct {
	Epoch    Epoch
	Covered  bool
	Trusted  bool
	Reason   string        // one line for people: who, why
	Evidence string        // what the decision rests on
	By       NodeID        // who decided; 0: this node
	Logged   bool          // the members' log decided, not a node
	From     string        // name of the owner before, if there was one
	Detected time.Duration // from the last sign of life to the decision
	Handover bool          // exact windows were imported
	// Renewal: we own already and go on. Only the epoch changes and the sync set
	// is empty again: start the journal anew at the epoch, keep SAs, addresses
	// and exchanges as they are. With Covered=false (healing) the other side's
	// state follows: bounds must be raised when it has come.
	Renewal bool
	// Stay are members that were told of the epoch by Renew and go on being counted:
	// only the epoch changes.
	Stay []NodeID
}

// Renew tells members of the sync set that stay in it of the owner's next epoch; those
// who are not named are sent nothing more, and hold up what they have not acknowledged
// until they leave. HandleRenewed answers for each, then Own with Renewal follows.
type Renew struct {
	Epoch Epoch
	Stay  []NodeID
}

// Reassert announces the shared addresses again. Either the owner that we succeeded lived,
// has only now learnt of us, and may have drawn the neighbours' traffic meanwhile; or
// another owner beside us was lost, whom the neighbours may believe in.
type Reassert struct{}

// Disown ends ownership at once: silence, remove the shared addresses.
type Disown struct {
	To     Epoch // of the new owner, as far as known
	Reason string
}

// Announce is what the guardian shall send from now on.
type Announce struct {
	Role     Role
	Epoch    Epoch
	Election Election
	Coverage Coverage
	Chosen   NodeID // see Peer
	// Owned are the scopes that a member of a farm owns, by number. Role and Epoch
	// are those of a pair's one scope.
	Owned     []Tenure
	VClusters []VCluster // by scope, owned or not
}

func (a Announce) equal(b Announce) bool {
	return a.Role == b.Role && a.Epoch == b.Epoch && a.Election == b.Election && a.Coverage == b.Coverage &&
		a.Chosen == b.Chosen && slices.Equal(a.Owned, b.Owned) && slices.Equal(a.VClusters, b.VClusters)
}

// Tenure is the ownership of a scope under an epoch.
type Tenure struct {
	Scope ScopeID
	Epoch Epoch
}

// Join starts the copy to a member; Leave takes it out of the sync set: what
// waits for it alone is committed.
type Join struct {
	Node    NodeID
	Process ProcessID
}
type Leave struct{ Node NodeID }

// AskRemoval makes the guardian ask the member's guardian to give up its entitlement.
type AskRemoval struct {
	Scope ScopeID
	Node  NodeID
}

// Entitle makes our guardian hold our entitlement for the epoch (or drop it).
// HandleEntitled answers; when the guardian refuses (the member was removed from
// this epoch meanwhile), HandleRemoved with our own node.
type Entitle struct {
	Scope ScopeID
	Epoch Epoch
	On    bool
}

// Claim asks our guardian to turn our entitlement into ownership of the epoch: from
// its yes on it no longer grants a removal. It says no if the entitlement was
// given up or overtaken meanwhile. HandleClaimed answers.
type Claim struct {
	Scope ScopeID
	Epoch Epoch
}

// WriteNote writes (On) or removes the note "went on alone" and the epoch, with
// fsync, before anything that depends on it; HandleNote answers.
type WriteNote struct {
	On    bool
	Epoch Epoch
}

// HandOver begins a planned handover to the member: stop sending and delivering,
// release addresses, send the exact windows. Disown follows when the member owns,
// Own when it did not come about.
type HandOver struct {
	Node  NodeID
	Epoch Epoch // that the successor will own
}

// Unite sends our whole state to the owner that healing chose; we then copy from it.
type Unite struct{ Owner NodeID }

// RekeyEarly: what we took over may have been continued elsewhere.
type RekeyEarly struct{ Reason string }

// Alarm is a condition people must see (alone, not synchronised…); On=false clears it.
type Alarm struct {
	Name, Text string
	On         bool
}

// Stopped ends a Shutdown.
type Stopped struct{}

func (Own) effect()        {}
func (Disown) effect()     {}
func (Reassert) effect()   {}
func (Announce) effect()   {}
func (Join) effect()       {}
func (Leave) effect()      {}
func (AskRemoval) effect() {}
func (Entitle) effect()    {}
func (Claim) effect()      {}
func (WriteNote) effect()  {}
func (HandOver) effect()   {}
func (Unite) effect()      {}
func (RekeyEarly) effect() {}
func (Renew) effect()      {}
func (Alarm) effect()      {}
func (Stopped) effect()    {}

// HAStatus is what `get system ha status` shows.
type HAStatus struct {
	Self, Owner  NodeID
	Name, Serial string
	Role         Role
	Epoch        Epoch
	Synchronised bool // as owner: the sync set is not empty; as standby: entitled
	Alone        bool
	LastChange   time.Time
	LastReason   string
	LastCovered  bool
	LastDetected time.Duration
	Change       Change // the last one, in full; of a pair
	Takeovers    int
	Peers        []Peer
	Election     Election
	Coverage     Coverage
	Alarms       []Alarm
	// Successor is who was promised the scope; 0: nobody, or no log decides.
	Successor NodeID
	// Seen is how many monitored interfaces work at this moment; Held is when they count
	// in the election if they stay so, and Flip when pingservers may cause a change again.
	// Zero times: nothing is waited for. Of a pair.
	Seen       int
	Held, Flip time.Time
	// Next is the change of owner that this owner waits for, until NextAt; "": none.
	Next   string
	NextAt time.Time
}
