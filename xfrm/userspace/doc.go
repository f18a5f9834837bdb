// Package userspace carries ESP over TUN interfaces, UDP and raw sockets.
//
// # Goroutines
//
// One for each tunnel interface, one for each socket (UDP 500, UDP 4500 and
// protocol 50, for IPv4 and IPv6), one ticker that sleeps while no lease may have
// to shrink, the caller, and the callers of Inject, who take turns. Each works on a
// batch from reading to writing; there is no queue between them. An idle tunnel
// holds no buffers, and an SA builds its ciphers and its replay window with its
// first packet.
//
// # What keeps a scope silent
//
// A packet reads the scope's state once, in one atomic: active or not, and a count
// of activations. An SA whose own count differs resumes first: what becomes of its
// numbers say esp.Sender and esp.Receiver (its next sequence number is ceiling+1,
// everything up to the fence is a replay), and what waited is dropped. So Activate costs one store for any number of SAs. Deactivate stores,
// then waits until each goroutine has left the batch that it may have begun before
// (its epoch is odd meanwhile).
//
// # Order of questions
//
// An SA puts a question into the plane's list under its own lock, and one
// goroutine at a time delivers that list. Otherwise a withdrawal could overtake
// the question after it.
//
// # A walk
//
// Out: drain reads a packet, or a superpacket of up to 64 KB (vnet.go) → parseInner →
// clampMSS → routes.lookup (longest remote prefix, newest SA) → sealFor, once for all
// segments: scope; for each the cutter writes headers before its payload, ceiling, SealTo
// into the outbox. It goes on until the interface is empty or half the outbox is full →
// flush: one sendmmsg, in which a run of packets of one length to one peer is one message
// that the kernel or the card cuts (UDP_SEGMENT). In: receive, one recvmmsg, whose messages
// may be several datagrams each (UDP_GRO) → natt tells each one apart → spiTable → espIn:
// scope, Open in place → ECN, selectors, MSS → fence → merger, which joins a flow's packets
// where they lie → one writev for each superpacket, at the end of the batch. A packet above
// a bound waits, at most 256 for each direction of an SA; SetBounds sends on what it covers,
// in order. So that nothing overtakes, what is sealed is sent, and what is joined is written,
// before a packet of the SA begins to wait.
//
// # Superpackets
//
// A merger joins only what the segments of the superpacket would give back bit by bit, but
// for the identification of IPv4 packets with DF; it verifies every checksum, as nobody does
// after it. Where a device does not cut (EIO), or packets of that length do not fit the path,
// a run is sent packet by packet; the peer remembers, and the first time is logged. Where
// the interface takes no superpacket, packets are written one by one from then on.
//
// There is one queue for each tunnel and socket. With two cores, which its two directions
// keep busy, more would gain nothing.
//
// # Memory
//
// Ciphers are most of an SA. They are made by the first packet of a direction and given
// back after half a minute without one (warm.go); numbers, windows and the counters of
// explicit IVs stay. TestMemoryOfManyPairs prints what a pair takes.
//
// # The wrong member
//
// Where the scope read last says that the SA is silent, the packet goes to
// Handler.Stray instead (stray.go), without any lock held, still in the buffer that
// it was read into. What other members hand over enters at espIn and outbound, as if
// read from a socket or an interface, marked so that it is handed up no more. The
// mark stays with a packet that waits.
//
// # Sizes
//
// Outer packets longer than the path are fragmented after encapsulation, by the
// kernel, and reassembled by the far kernel: inner packets of 1,500 bytes with DF
// pass over 1,500-byte links. With Tunnel.DontFragment the outer DF bit is set,
// inner packets with DF that would not fit are answered with an ICMP error, and
// those without DF are cut before they are sealed.
package userspace
