package cluster

import "time"

// Authority decides who owns one scope: Pair for exactly two nodes, Slot where the
// members' log decides. It is pure; inputs take now first, and Poll is drained after
// each.
type Authority interface {
	Start(now time.Time)
	Poll() (Effect, bool)

	// What guardians and heartbeats say.
	HandlePeer(now time.Time, p Peer)
	HandleLoss(now time.Time, id NodeID, kind Loss, entitled bool, detected time.Duration)
	HandleRemoved(now time.Time, id NodeID)
	HandleEntitled(now time.Time, e Epoch) bool
	HandleClaimed(now time.Time, e Epoch, ok bool)

	// What streams and journals say.
	HandleStream(now time.Time, id NodeID, process ProcessID, up bool)
	HandleLag(now time.Time, id NodeID, oldest time.Duration)
	HandleCopyMoved(now time.Time, id NodeID)
	HandleEntered(now time.Time, id NodeID)
	HandleCopied(now time.Time, e Epoch)
	HandleHandover(now time.Time, e Epoch)
	HandleHandedOver(now time.Time, id NodeID, ok bool)

	HandleNote(now time.Time, err error)
	HandleTimeout(now time.Time)
	NextTimeout() (time.Time, bool)
	Shutdown(now time.Time)

	SyncSet() []NodeID
	// Uniting: what this node holds must reach the owner before a copy replaces it. For a
	// Slot it has when the owner's acknowledgement has come, for a Pair when it is sent.
	Uniting() bool
	Status(now time.Time) HAStatus
}

var (
	_ Authority = (*Pair)(nil)
	_ Authority = (*Slot)(nil)
)
