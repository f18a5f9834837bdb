// Package forward carries packets from the member of a farm that they arrived at to
// the member that owns their tunnel: ESP and IKE with their outer addresses, and
// inner packets, over UDP between the sync addresses. It carries, too, what members tell
// each other about inner prefixes, so that they know where inner packets go.
//
// # Datagrams
//
// Each starts with a header of 20 bytes: type, version, sender and receiver (one
// byte each), the sender's session, a counter (8 bytes each).
//
//   - data: one message, sealed with AES-256-GCM, the header authenticated.
//   - fragment: a part of a message, sealed likewise; 8 more bytes of header tell
//     which: message number (4), index, count, length of the message (2).
//   - hello, token, reset: a token (8), HMAC-SHA256 (32).
//
// A message is the packet behind what it was taken with: kind, scope, traffic class,
// outer addresses, tunnel.
//
// # Keys
//
// All follow from the cluster's secret. What one member sends to another is sealed
// under HKDF(secret, session ‖ token, sender ‖ receiver). The session is chosen at
// random by the sender, for each peer and each life of its process; the nonce is a
// counter that never goes back as long as the session lives. So no nonce comes twice
// under a key, whatever the other side says. The token is chosen at random by the
// receiver for each session that it hears of. So what was recorded in an earlier
// life of the sender, or of the receiver, opens under no key that is accepted now,
// and no clock and no disk is needed for this.
//
// The sender says hello with its session and a random echo; the receiver answers
// with the token and the echo. The receiver keeps two sessions of a member: the one
// that is in use, and the last one that said hello, which takes its place with its
// first authentic message. A replayed hello therefore achieves nothing. What belongs
// to neither session is answered with a reset, which asks for a hello. Whoever hears
// a hello from a new session says hello, too: that peer has restarted and has
// forgotten our token.
//
// Within a session a window of 4096 datagrams rejects replays.
//
// # Size
//
// A packet of full size does not fit through a sync link of the same MTU. It is cut
// here, not by IP: IPv4 counts fragmented packets with 16 bits, which wrap in less
// than a second at full rate while receivers keep fragments for 30, so that each
// loss spoils strangers' packets; and a receiver would have to keep fragments that
// anybody may have sent. Here each fragment is authentic before it takes memory, and
// a member has at most 16 messages under way, the newest. The DF bit is set, and the
// kernel's path MTU is asked for.
//
// # A walk
//
// Handler.Stray → Send copies the packet into the queue → the sending goroutine
// seals what has come meanwhile into a batch → sendmmsg. recvmmsg → peer of this
// address → session → window, open → reassembly → Deliver with the batch. What has
// another member's name on it already is marked as the last hop; Send refuses what
// came with that mark.
package forward
