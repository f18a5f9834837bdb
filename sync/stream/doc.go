// Package stream carries frames and acknowledgements between the nodes of a cluster:
// gRPC over mutual TLS, one stream for each direction on every heartbeat link.
//
// Who sends frames is the stream's client; acknowledgements come back on the same
// stream, so they never wait behind records. Every frame travels on every live link,
// and the first arrival counts: the Replica knows the second by its number. So the
// flap of one link is nothing that anybody has to notice.
//
// Each scope is numbered, acknowledged and begun again by itself; all share the streams
// and take turns on them, so that no scope waits for another's copy.
//
// Unacknowledged frames are kept once for all links, and each link sends from those
// logs at its own pace. One that stalls holds up nobody, costs no memory and is torn
// down; one that comes (back) begins where the receiver stands.
//
// One walk: Send → log of the scope → write of each link → the member's
// server → Handler.Frame … Ack → answer of each stream → Handler.Ack, and the log
// forgets what was acknowledged.
package stream
