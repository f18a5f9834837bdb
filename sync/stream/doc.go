// Package stream carries journal frames and their acknowledgements between nodes:
// gRPC over mTLS, one stream for each peer and heartbeat device, in each direction.
//
// Every frame travels on every live link, and the first arrival counts: the replica
// recognises the second by its number. So a flapping link is nothing that anybody
// has to notice. Each link reads from one buffer of unacknowledged frames at its own
// pace; a stalled one holds up neither the others nor the caller, and begins again
// where the receiver stands.
//
// One walk: Send → outbox of the peer process → a sender of each link → the peer's
// server → Handler.Frame … SendAck → the ack writer of each stream → Handler.Ack,
// and the outbox forgets what was acknowledged.
package stream
