package xfrm

import (
	"math"
	"net/netip"
	"time"

	"tandem/internal/ipsec"
)

// Scope is what moves between owners as one.
type Scope uint16

// Direction of an SA within a Child SA, seen from here.
type Direction uint8

const (
	Outbound Direction = iota // bound is a ceiling
	Inbound                   // bound is a fence
)

// Bound is a ceiling or a fence of the Child SA that SPIIn names. N is a full
// sequence number (64 bits with ESN, else at most 2^32-1): the highest that may
// be sent, or delivered.
type Bound struct {
	SPIIn ipsec.ESPSPI
	Dir   Direction
	N     uint64
}

// Unbounded as N means that nobody has to be asked: the data plane never asks
// about this bound, and never withdraws it.
const Unbounded = math.MaxUint64

// SA is a Child SA as installed.
type SA struct {
	ipsec.ChildSA
	Scope Scope
	IV    *ipsec.IVCounter // of KeyID in this process; nil unless the suite is an AEAD
	// Ceiling and Fence are the bounds that hold at installation.
	Ceiling, Fence uint64
	// Known: it was used elsewhere. It goes on above the ceiling and rejects up to
	// the fence, also when its scope is active.
	Known bool
	// SoftBytes and HardBytes limit the traffic (either direction); 0: no limit.
	SoftBytes, HardBytes uint64
}

// Window is the exact state of an SA pair, carried by a planned handover.
type Window = ipsec.Window

// Tunnel is one tunnel interface; its name is that of the phase 1.
type Tunnel struct {
	Name         string
	MTU          int // of the interface, bytes
	Scope        Scope
	DontFragment bool   // outer DF set: packets are never fragmented after encapsulation
	MaxMSS       [2]int // clamp for TCP SYNs, IPv4 and IPv6; 0: none
}

// Counters of one Child SA. Times are zero when nothing has happened yet.
type Counters struct {
	InPackets, InBytes, OutPackets, OutBytes                    uint64 // inner
	InErrors, OutErrors                                         uint64
	InReplayed, InFenced, InAuthFailed, InSelector, OutSelector uint64
	LastIn, LastOut                                             time.Time
	OutSeq, InSeq                                               uint64
	Ceiling, Fence                                              uint64
	IVUsed                                                      uint64
	// FenceWidened is the factor by which the fence's lead exceeds the ordinary one
	// because answers come late; 0 and 1: it does not.
	FenceWidened uint64
}

// TunnelCounters count what no SA accounts for: packets without an SA, those of
// SAs whose scope is not active here, and those too big for the path. Strays were
// handed to Handler.Stray, and are not among Inactive; Injected came by Inject,
// whatever became of them.
type TunnelCounters struct {
	NoSA, Inactive, TooBig, Strays, Injected uint64
}

// PlaneCounters count what no tunnel accounts for.
type PlaneCounters struct {
	UnknownSPI, Malformed uint64
	Strays                uint64 // of SPIs that no SA here has
	NoTunnel              uint64 // injected for an interface that does not exist
}

// IKEDatagram is one IKE message on UDP 500 or 4500, or in a TCP connection (RFC 9329).
// NonESP says that it is (or shall be) preceded by the non-ESP marker (RFC 3948 §2.2); Data
// is without it. With TCP a local port of 0 means that the connection is ours to open.
type IKEDatagram struct {
	Local, Remote netip.AddrPort
	NonESP, TCP   bool
	Data          []byte
}

// Stray is a packet of an SA whose scope is not active here, on its way to the
// member that owns it, or that would make it.
type Stray struct {
	Scope  Scope  // of the SA
	Tunnel string // of the SA
	From   uint8  // the member that handed it over, as a cluster.NodeID; 0: it arrived here
	Last   bool   // two members have handed it on: it goes no further

	// Outer: Packet is ESP, from the SPI on, as it came from Remote to Local, with the
	// traffic class TOS; the ports are 0 without UDPEncap. Otherwise Packet is an inner
	// packet that was read from the tunnel's interface, and the rest says nothing.
	Outer, UDPEncap bool
	TCP             bool // with UDPEncap: it came in a TCP connection
	TOS             uint8
	Local, Remote   netip.AddrPort
	Packet          []byte
}

// Event is what a data plane reports. Concrete types are below.
type Event interface{ event() }

// BoundWanted asks for a bound, to be answered by SetBounds.
type BoundWanted struct{ Bound }

// Acquire reports an outbound packet that no SA matched: traffic-triggered
// negotiation. The packet waits briefly in a bounded queue of the tunnel.
type Acquire struct {
	Tunnel   string
	Protocol uint8
	Src, Dst netip.AddrPort // inner; ports 0 where the protocol has none
}

// PeerMoved reports an authenticated packet from another outer source than the SA's. With
// TCP it is the first one in another connection (RFC 9329), which the peer has opened.
type PeerMoved struct {
	SPIIn ipsec.ESPSPI
	From  netip.AddrPort
	TCP   bool
}

// StreamLost reports that the TCP connection of an SA, which is ours to open, has ended.
type StreamLost struct{ SPIIn ipsec.ESPSPI }

// FirstInbound reports the first authenticated packet of an SA since its
// installation, or since its scope became active here.
type FirstInbound struct{ SPIIn ipsec.ESPSPI }

// Expiring reports that an SA must be rekeyed for other reasons than time:
// SoftBytes reached, or sequence numbers or explicit IVs nearly used up.
// Hard means that it has stopped.
type Expiring struct {
	SPIIn  ipsec.ESPSPI
	Reason string
	Hard   bool
}

// ForwardedTraffic reports that authenticated packets of an SA keep arriving at
// member From, which forwards them. Packets have come that way since the last
// report, Direct have arrived here. Forwarded packets make a report, at most one in
// 100 ms for an SA; when From changes both counts begin anew.
type ForwardedTraffic struct {
	SPIIn           ipsec.ESPSPI
	From            uint8
	Packets, Direct uint64
}

func (BoundWanted) event()      {}
func (Acquire) event()          {}
func (PeerMoved) event()        {}
func (StreamLost) event()       {}
func (FirstInbound) event()     {}
func (Expiring) event()         {}
func (ForwardedTraffic) event() {}

// Handler receives what comes up from a data plane, from several goroutines at
// once. It must not block and must not call back into the data plane.
type Handler struct {
	IKE    func(IKEDatagram) // Data is the callee's to keep
	Events func([]Event)     // the slice is the callee's to keep
	// Stray takes what belongs to another member: ESP whose SPI is that of an SA of an
	// inactive scope, and inner packets that such an SA would carry. Packet is the data
	// plane's again when it returns. nil: these packets are dropped and counted.
	Stray func(Stray)
	// ScopeOf tells the scope of an SPI that no SA here has: then ESP with it is a Stray,
	// too, without Tunnel. nil, or no scope: it is counted as unknown.
	ScopeOf func(ipsec.ESPSPI) (Scope, bool)
	// Begins tells the scope in which another member makes a tunnel's SAs: then an inner
	// packet that no SA here would carry is a Stray, too, and no Acquire. nil, or no
	// scope: the Acquire is this member's.
	Begins func(tunnel string) (Scope, bool)
	// Leads tells the scope, owned by another member, to whose SAs an inner packet for an
	// address belongs that no SA here would carry: then it is a Stray, too. nil, or no scope:
	// nobody is known to have such an SA.
	Leads func(tunnel string, dst netip.Addr) (Scope, bool)
}

// DataPlane carries ESP. Its methods are called from one goroutine and return
// without waiting for packets. Naming an SPI that is not installed is no error:
// it may just have been removed.
type DataPlane interface {
	AddTunnel(Tunnel) error
	RemoveTunnel(name string) error

	// Install adds both directions of a Child SA. Inbound works at once (if the
	// scope is active), outbound after SetOutbound.
	Install(SA) error
	// SetOutbound makes the pair the one that its selectors send through, or stops it.
	SetOutbound(spiIn ipsec.ESPSPI, use bool)
	// SetPeer changes the outer addresses and the encapsulation, as those of ipsec.ChildSA.
	SetPeer(spiIn ipsec.ESPSPI, local, remote netip.AddrPort, udpEncap, tcp bool)
	// Remove removes both directions. Whoever calls it for a live SA has the whole
	// sync set's word that it is gone; so what waits for its bounds is delivered,
	// or sent through the SA that its selectors lead to next.
	Remove(spiIn ipsec.ESPSPI)

	// Linger is Remove for a pair that another one has replaced: inbound takes what is under
	// way for so long, without any bound, if its scope is active and remains so. Nobody can
	// tell it from a pair that is gone otherwise; Install may use its SPI again.
	Linger(spiIn ipsec.ESPSPI, d time.Duration)

	SetBounds([]Bound)
	// Skip uses numbers up, at once and without a question: outbound, what leaves after it
	// returns lies above N, inbound everything up to N is a replay; what has been opened
	// already is delivered all the same. In an inactive scope it is a higher bound.
	Skip([]Bound)
	Activate(Scope)
	// Retire has a scope take no more packets, in either direction: they are strays. What
	// waits for a bound still goes its way when SetBounds answers. Deactivate, or Activate
	// to take it back, follows.
	Retire(Scope)
	// Deactivate silences a scope. When it returns no packet of it is under way
	// in either direction, and none follows.
	Deactivate(Scope)
	// Detach takes pairs out and returns their exact state. When it returns no packet of
	// theirs is under way in either direction. ok is false, and nothing has changed, while
	// packets of theirs wait for a bound.
	Detach([]ipsec.ESPSPI) (ws []Window, ok bool)
	// Windows exports the exact state of a scope's SAs, meaningful after Deactivate.
	Windows(Scope) []Window
	// SetWindows imports it, before Activate.
	SetWindows([]Window)

	Counters(ipsec.ESPSPI) (Counters, bool)
	TunnelCounters(name string) TunnelCounters
	PlaneCounters() PlaneCounters

	// Inject processes packets that other members have handed over, as if they had
	// arrived here: ESP with its original outer addresses, inner packets as read from
	// the interface. One becomes a Stray again, with its From, where the scope is not active
	// here either; with Last it is dropped and counted. It overwrites the packets. It may be called
	// from any goroutine, beside the other methods; not from a Handler.
	Inject([]Stray)

	// ListenTCP takes TCP connections for IKE and ESP (RFC 9329) on a port, instead of the
	// one before; 0: none any more. Connections that stand stay.
	ListenTCP(port uint16) error

	SendIKE(IKEDatagram) error
	// Keepalive sends one NAT keepalive (RFC 3948 §2.3).
	Keepalive(local, remote netip.AddrPort) error
	Close() error
}
