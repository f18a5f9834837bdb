// Package fsm is what the members of a farm, or of an FGCP group of three or four,
// decide together, as a state machine: the same entries in the same order give the
// same state on each of them, to the byte. It is pure, and knows nothing of how entries come to be agreed.
//
// Decided are: who the members are, which of them owns each scope under which
// epoch, who holds its records, who succeeds and with which epoch, which ranges
// of SPIs and addresses belong to whom, the configuration's revision. Nothing
// here lies on a tunnel's path: its set-up, its records and a takeover wait for
// no entry. A successor acts first, under the epoch that it was promised, and the
// entry follows.
//
// # Invariants
//
//  1. A scope's epochs only rise, and none is promised twice. An epoch's counter is
//     a term (upper 48 bits), which only an entry can give, and 16 bits that belong
//     to the term's owner: it renews its epoch without asking anybody, and its
//     successor's promised term outranks all of these. To change a successor burns
//     its term: who was promised it can never again succeed with it. Who had not heard
//     of that, and acted, goes on if the one promised after leaves the scope to it
//     (Decline), under a term above both.
//  2. Only a member of the sync set succeeds: one that is there, not drained, no
//     witness. What a process knew ends with it: a member's new process is in no
//     sync set and owns nothing.
//  3. Two ranges that are delegated never overlap. See Holdings for what that is
//     worth to a member that starts again alone.
//  4. A command is carried out once, whatever was repeated or reordered: a
//     proposer's commands count in the order of their numbers, and one that comes
//     after a later one is refused. One that is refused says why and changes nothing
//     but the memory of its number.
//  5. No entry and no snapshot has a field for a key, a secret or a tunnel.
//
// # A walk: a member's host is lost
//
// The successors of its eight slots hear no heartbeats and act, each under
// Scope.Next. Their TakeOver commands reach the leader, or the leader's ReportLoss
// is first: both orders give the same owners under the same epochs, and each slot
// has its next successor in the same entry. A slot whose sync set the log had not heard
// of yet is given to somebody else; that one hears who holds the records, and leaves it
// to them (Decline). What a member has to say at once goes together in one entry (Batch):
// who takes over many slots waits for one decision. When the member comes again, AddMember
// clears the loss; the owners of its slots copy to it, name it in SetSyncSet, and
// SetSuccessor prepares the planned return.
package fsm
