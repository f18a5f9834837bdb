package ike

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"

	"tandem/ike/message"
	"tandem/internal/config"
)

// What two Tandems tell each other in IKE_AUTH beyond RFC 7296: the address of the tunnel
// interface (exchange-interface-ip) and the number of the overlay network (network-id).
// Both are notifications of the private-use range, which mean something else to everybody
// else: they are sent to, and read from, a peer only whose vendor ID says that it is Tandem.

// PeerAddress says that a peer's interface address is reached through the interface of a
// phase 1, or no longer (Gone). Each IKE SA that has learnt it says so for itself, so it
// holds while any of them stands, with or without Child SAs.
type PeerAddress struct {
	Phase1 string
	Addr   netip.Addr
	Gone   bool
}

func (PeerAddress) effect() {}

// isTandem says that the peer's vendor ID is ours. AUTH covers it (RFC 7296 §2.15).
func (sa *ikeSA) isTandem() bool {
	return slices.ContainsFunc(sa.vendorIDs, func(id []byte) bool { return bytes.Equal(id, ownVendorID) })
}

// vendor names the peer's implementation, where it does.
func (sa *ikeSA) vendor() string {
	for _, id := range sa.vendorIDs {
		if name := vendorName(id); name != "unknown" {
			return name
		}
	}
	return "unknown"
}

// announced is the address that a phase 1 tells its peer; ok says that it tells any, and
// wants to know the peer's. Without an address it tells that it has none.
func announced(cfg *config.Config, p1 *config.Phase1) (a netip.Addr, ok bool) {
	if p1 == nil || !p1.ExchangeInterfaceIP {
		return a, false
	}
	if p1.ExchangeIPAddr4.IsValid() && !p1.ExchangeIPAddr4.IsUnspecified() {
		return p1.ExchangeIPAddr4, true
	}
	for i := range cfg.Interfaces {
		if in := &cfg.Interfaces[i]; in.Name == p1.Name && len(in.IP) > 0 {
			return in.IP[0].Addr(), true
		}
	}
	return a, true
}

// overlayPayloads are what we tell a Tandem in IKE_AUTH; as its responder only what it
// told us, too.
func (e *Engine) overlayPayloads(sa *ikeSA, offered *message.Message) (ps []message.Payload) {
	if !sa.isTandem() {
		if _, ok := announced(e.cfg, sa.p1); ok && offered == nil {
			e.info(sa, "exchange-interface-ip: the peer is no Tandem, nothing is exchanged", slog.String("vendor", sa.vendor()))
		}
		return nil
	}
	if sa.p1.NetworkOverlay {
		ps = append(ps, notify(message.TandemNetworkID, []byte{byte(sa.p1.NetworkID)}))
	}
	a, ok := announced(e.cfg, sa.p1)
	if ok && offered != nil {
		_, ok = offered.Notify(message.TandemInterfaceAddress)
	}
	if ok {
		e.debug(sa, "exchange-interface-ip: sending own address", slog.String("address", addrText(a)))
		ps = append(ps, notify(message.TandemInterfaceAddress, a.AsSlice()))
	}
	return ps
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

// network is the number of an overlay network, as a peer tells it; -1: none.
type network int

func (n network) String() string {
	if n < 0 {
		return "none"
	}
	return strconv.Itoa(int(n))
}

func networkOf(p1 *config.Phase1) network {
	if !p1.NetworkOverlay {
		return -1
	}
	return network(p1.NetworkID)
}

// peerNetwork is the network that the peer tells in IKE_AUTH. One that no octet holds
// matches nothing.
func (sa *ikeSA) peerNetwork(m *message.Message) network {
	if !sa.isTandem() {
		return -1
	}
	n, ok := m.Notify(message.TandemNetworkID)
	switch {
	case !ok:
		return -1
	case len(n.Data) != 1:
		return 1 << 16
	}
	return network(n.Data[0])
}

// notePeerAddress takes the address of the peer's tunnel interface from an authenticated
// IKE_AUTH message.
func (e *Engine) notePeerAddress(sa *ikeSA, m *message.Message) {
	if !sa.isTandem() {
		return
	}
	n, told := m.Notify(message.TandemInterfaceAddress)
	_, want := announced(e.cfg, sa.p1)
	switch {
	case !told && want:
		e.info(sa, "exchange-interface-ip: not enabled on the peer, nothing is exchanged")
	case told && !want:
		e.debug(sa, "exchange-interface-ip: not enabled here, the peer's address is ignored")
	}
	if !told || !want || len(n.Data) == 0 {
		return
	}
	a, ok := netip.AddrFromSlice(n.Data)
	if !ok || e.foreignAddr(sa, a) {
		e.counters.Malformed++
		e.warn(sa, "exchange-interface-ip: the peer's address is not acceptable", slog.String("address", addrText(a)))
		return
	}
	e.touch(sa)
	sa.peerAddr = a
	e.info(sa, "exchange-interface-ip: peer's address learnt", slog.String("address", a.String()))
}

// foreignAddr says that an address cannot be the peer's: it is none of a host, or is ours
// or one between which the tunnels themselves run.
func (e *Engine) foreignAddr(sa *ikeSA, a netip.Addr) bool {
	if a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || a == sa.local.Addr() || a == sa.remote.Addr() {
		return true
	}
	for i := range e.cfg.Phase1 {
		if p := &e.cfg.Phase1[i]; a == p.RemoteGW || a == p.LocalGW || a == p.ExchangeIPAddr4 {
			return true
		}
	}
	return slices.ContainsFunc(e.cfg.Interfaces, func(in config.Interface) bool {
		own := func(p netip.Prefix) bool { return p.Addr() == a }
		return slices.ContainsFunc(in.IP, own) || slices.ContainsFunc(in.ManagementIP, own)
	})
}

// routable says whether the peer's address gets a route: some phase 2 entry must allow
// traffic there, else a peer could draw to itself what is none of its business; and the
// kernel may have that route by itself, as the interface's other end.
func (e *Engine) routable(sa *ikeSA) bool {
	a := sa.peerAddr
	if !a.IsValid() || sa.state != stateEstablished && sa.state != stateRekeyed {
		return false
	}
	for i := range e.cfg.Interfaces {
		if in := &e.cfg.Interfaces[i]; in.Name == sa.phase1 && in.RemoteIP.IsSingleIP() && in.RemoteIP.Addr() == a {
			return false
		}
	}
	for _, p2 := range e.phase2sOf(sa.phase1) {
		for _, ts := range p2.Dst {
			if ts.Start.Is4() == a.Is4() && ts.Start.Compare(a) <= 0 && a.Compare(ts.End) <= 0 {
				return true
			}
		}
	}
	return false
}

// route has the peer's address routed while this IKE SA stands.
func (e *Engine) route(sa *ikeSA) {
	e.place(sa)
	if !sa.routed && e.routable(sa) {
		sa.routed = true
		e.countedEffect(PeerAddress{Phase1: sa.phase1, Addr: sa.peerAddr})
	}
}

func (e *Engine) unroute(sa *ikeSA) {
	e.unplace(sa)
	if sa.routed {
		sa.routed = false
		e.countedEffect(PeerAddress{Phase1: sa.phase1, Addr: sa.peerAddr, Gone: true})
	}
}

// countedEffect rests on the record, but may not be left out when a later event has ended
// the IKE SA: the two are counted against each other.
func (e *Engine) countedEffect(x Effect) {
	if e.active {
		e.tx.held = append(e.tx.held, x)
	} else {
		e.free(x)
	}
}

// inheritRoute passes the route of what was known of an IKE SA to what takes its place.
func (sa *ikeSA) inheritRoute(old *ikeSA) {
	if old.placed && !sa.placed && sa.isClient() && slices.Equal(old.assigned.addrs, sa.assigned.addrs) && old.phase1 == sa.phase1 {
		sa.placed, old.placed = true, false
	}
	if old.routed && !sa.routed && old.peerAddr == sa.peerAddr && old.phase1 == sa.phase1 {
		sa.routed, old.routed = true, false
	}
}
