// Package xfrm is the contract between the node and whatever carries packets:
// SAs, tunnel interfaces, bounds, counters, events. xfrm/userspace implements it
// over TUN and sockets, xfrm/kernel over netlink; xfrm/xfrmtest is the one
// conformance suite for both.
//
// A data plane knows ceilings, fences and scopes as numbers only:
//
//   - An SA belongs to a scope. While the scope is inactive here the SA is silent:
//     it neither seals nor delivers. Activate flips all SAs of a scope at once.
//   - Outbound, no packet carries a sequence number above the SA's ceiling.
//     When a scope becomes active the next sequence number is ceiling+1 of what
//     was known then, so that it lies above anything an earlier owner sent.
//   - Inbound, nothing above the fence is delivered: authenticated packets wait in
//     a bounded queue. When a scope becomes active everything at or below the
//     fence is rejected as a replay, unless an exact window was imported.
//   - An SA installed into an active scope is new, unless it is said to be Known: its
//     numbers begin at 1. One installed into an inactive scope is known from elsewhere.
//   - An exact window (SetWindows) holds for the next activation only, and not if a
//     higher bound is recorded before it: then the exporter has gone on.
//   - Skip leaves numbers out, in an active scope too: nothing up to N is sent, or accepted,
//     from then on. A bound granted below changes nothing about that.
//   - With Unbounded nobody is asked. With replay detection off (ReplayWindow 0)
//     sequence numbers prove nothing, and the fence does not apply.
//   - A tunnel may hold SAs of many scopes: each SA's own scope decides. The tunnel's
//     decides what becomes of packets that no SA matches. Where an SA that is put to use
//     has the selectors of another one, the newest is meant, active here or not.
//   - A packet that arrives at the wrong member is handed up as a Stray there, and put in
//     with Inject at the owner. If that has just ceased to own, it hands the packet up once
//     more, and the next member (Last) never does.
//   - The data plane asks (BoundWanted) and goes on when SetBounds answers. Asking
//     for less than the present bound is a withdrawal: it stopped above N before asking.
//     Every question of an active scope must be answered, in the order of asking;
//     one that is not is put again after two seconds.
//
// A walk, for a packet to a busy SA: the ceiling's lead is half used → BoundWanted
// through Handler.Events → the node writes a record, the standbys acknowledge it →
// SetBounds, long before the ceiling is reached. For a packet from an SA that was
// idle: authenticated, above the fence → it waits; BoundWanted for exactly its
// number → acknowledged → SetBounds → delivered.
package xfrm
