// Package bfd is the asynchronous mode of Bidirectional Forwarding Detection (RFC
// 5880) as single-hop sessions need it (RFC 5881): packets, the state machine, the
// timers and the poll sequence. It is pure: inputs take the time and bytes, effects
// say what to send and what has changed. Package bfdnet gives it sockets.
//
// Not here: authentication (packets that carry it are dropped), the echo function and
// a demand mode of our own; a neighbour's demand mode is honoured.
//
// A walk: the neighbour's packet → Decode → the session that Your Discriminator names
// → HandlePacket → the state table of §6.8.6 → Changed, and Send at once when what we
// say differs from what we said. NextTimeout is the earlier of the next periodic
// packet and of the end of the detection time.
package bfd
