package ike

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// Addresses by configuration payload (RFC 7296 §2.19, §3.15). As the responder of a dialup
// phase 1 with mode-cfg the engine leases addresses of its pool (pool.go); as the initiator
// of a static one it asks for some. What was assigned is in the record of the IKE SA, so
// every standby knows it before the client does.

const (
	// maxAddresses bounds how many addresses of a family an IKE SA gets.
	maxAddresses = 4
	// maxAssigned bounds what a client keeps of each kind of a reply.
	maxAssigned = 16
)

// assigned is what a configuration payload assigned to the initiator of an IKE SA. What is
// only told (DNS, subnets, domains) is kept by the initiator alone.
type assigned struct {
	addrs   []netip.Addr
	dns     []netip.Addr
	subnets []netip.Prefix
	domains []string
	client  bool // it was assigned to us
}

// OwnAddress says that an address was assigned to us for the interface of a phase 1, or no
// longer (Gone). Each IKE SA says so for itself.
type OwnAddress struct {
	Phase1 string
	Addr   netip.Addr
	Gone   bool
}

func (OwnAddress) effect() {}

// leased are the addresses that an IKE SA's peer has from our pools.
func (sa *ikeSA) leased() []netip.Addr {
	if sa.isClient() || sa.assigned == nil {
		return nil
	}
	return sa.assigned.addrs
}

// isClient says that the addresses were assigned to us.
func (sa *ikeSA) isClient() bool { return sa.assigned != nil && sa.assigned.client }

func addressText(as []netip.Addr) string {
	var out []string
	for _, a := range as {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// hosts are selectors of exactly these addresses.
func hosts(as []netip.Addr) (out []ipsec.TrafficSelector) {
	for _, a := range as {
		out = append(out, ipsec.SelectorFromPrefix(netip.PrefixFrom(a, a.BitLen())))
	}
	return out
}

// within narrows selectors of the side that has the assigned addresses to these.
func (sa *ikeSA) within(ts []ipsec.TrafficSelector) []ipsec.TrafficSelector {
	if sa.assigned == nil || len(sa.assigned.addrs) == 0 {
		return ts
	}
	return narrow(ts, hosts(sa.assigned.addrs))
}

// selectors are those of a phase 2 entry for this IKE SA: where addresses were assigned,
// only these on the side that has them.
func (sa *ikeSA) selectors(p2 *config.Phase2) (local, remote []ipsec.TrafficSelector) {
	switch {
	case sa.assigned == nil:
		return p2.Src, p2.Dst
	case sa.assigned.client:
		return sa.within(p2.Src), p2.Dst
	}
	return p2.Src, sa.within(p2.Dst)
}

// ranges are a pool's.
func ranges(p *config.Pool) [2]addressRange {
	if !p.AssignIP {
		return [2]addressRange{}
	}
	return [2]addressRange{{p.Start4, p.End4}, {p.Start6, p.End6}}
}

// ownAddress says that an address of a pool is one of this gateway's interfaces.
func (e *Engine) ownAddress(a netip.Addr) bool {
	return slices.ContainsFunc(e.cfg.Interfaces, func(in config.Interface) bool {
		own := func(p netip.Prefix) bool { return p.Addr() == a }
		return slices.ContainsFunc(in.IP, own) || slices.ContainsFunc(in.ManagementIP, own)
	})
}

// configAnswer answers a CFG_REQUEST in IKE_AUTH. An error means that no Child SA is made;
// the IKE SA stands (RFC 7296 §3.15.4).
func (e *Engine) configAnswer(sa *ikeSA, m *message.Message) ([]message.Payload, *NotifyError) {
	if sa.p1 == nil || !sa.p1.ModeCfg || !sa.p1.Dialup() {
		return nil, nil
	}
	pool := &sa.p1.Pool
	req, ok := message.Get[*message.CP](m)
	if !ok || req.CFGType != message.CFGRequest {
		if pool.AssignIP {
			return nil, refuse(message.FailedCPRequired, "the client does not ask for an address")
		}
		return nil, nil
	}
	e.touch(sa)
	sa.assigned = &assigned{}
	reply := &message.CP{CFGType: message.CFGReply}
	add := func(t uint16, v []byte) {
		reply.Attributes = append(reply.Attributes, message.CPAttribute{Type: t, Value: v})
	}
	asked := map[uint16]int{}
	for _, a := range req.Attributes {
		asked[a.Type]++
		switch a.Type {
		case message.InternalIP4Address, message.InternalIP6Address:
			if asked[a.Type] > maxAddresses {
				continue
			}
			if x, ok := e.lease(sa, pool, a); ok && x.Is4() {
				add(a.Type, x.AsSlice())
			} else if ok {
				add(a.Type, append(x.AsSlice(), byte(pool.Prefix6)))
			}
		}
	}
	wanted := asked[message.InternalIP4Address] + asked[message.InternalIP6Address]
	if pool.AssignIP && len(sa.assigned.addrs) == 0 {
		sa.assigned = nil
		if wanted == 0 {
			return nil, refuse(message.FailedCPRequired, "the client does not ask for an address")
		}
		return nil, refuse(message.InternalAddressFailure, "no address of the pool is free")
	}
	e.tell(sa, pool, asked, add)
	if len(sa.assigned.addrs) > 0 {
		sa.leaseAt = e.last + 1
		e.info(sa, "assigned address to client", slog.String("address", addressText(sa.assigned.addrs)),
			slog.String("peer_id", sa.peerID.String()))
	} else {
		sa.assigned = nil
	}
	return []message.Payload{reply}, nil
}

// noAddress says why there is no Child SA.
func (e *Engine) noAddress(sa *ikeSA, n *NotifyError) message.Payload {
	e.warn(sa, "negotiation failure", slog.String("notify", n.Type.String()), slog.String("reason", n.Err.Error()))
	sa.tunnel.failure = n.Error()
	return n.payload()
}

// lease takes an address for an attribute that asks for one. Its value is a wish.
func (e *Engine) lease(sa *ikeSA, pool *config.Pool, a message.CPAttribute) (netip.Addr, bool) {
	family, n := 0, 4
	if a.Type == message.InternalIP6Address {
		family, n = 1, 16
	}
	var wish netip.Addr
	if len(a.Value) >= n {
		wish, _ = netip.AddrFromSlice(a.Value[:n])
	}
	x, ok := sa.leasedBefore(family == 0, wish)
	if !ok {
		x, ok = e.leases.pick(ranges(pool)[family], sa.peerID, wish, e.ownAddress)
	}
	if ok {
		sa.assigned.addrs = append(sa.assigned.addrs, x)
		e.leases.add(sa.peerID, x)
	} else if ranges(pool)[family].valid() {
		e.warn(sa, "no free address in the pool", slog.String("from", ranges(pool)[family].start.String()),
			slog.String("to", ranges(pool)[family].end.String()))
	}
	return x, ok
}

// tell answers what else a client may ask for, each kind once.
func (e *Engine) tell(sa *ikeSA, pool *config.Pool, asked map[uint16]int, add func(uint16, []byte)) {
	has := func(v4 bool) bool {
		return slices.ContainsFunc(sa.assigned.addrs, func(a netip.Addr) bool { return a.Is4() == v4 })
	}
	for _, d := range []struct {
		attribute uint16
		servers   [3]netip.Addr
	}{{message.InternalIP4DNS, pool.DNS4}, {message.InternalIP6DNS, pool.DNS6}} {
		for _, s := range d.servers {
			if asked[d.attribute] > 0 && s.IsValid() && !s.IsUnspecified() {
				add(d.attribute, s.AsSlice())
			}
		}
	}
	if asked[message.InternalIP4Netmask] > 0 && has(true) && pool.Netmask4.IsValid() {
		add(message.InternalIP4Netmask, pool.Netmask4.AsSlice())
	}
	for _, p := range prefixes(pool.SplitInclude4Subnets) {
		if asked[message.InternalIP4Subnet] > 0 {
			mask := uint32(0xffffffff) << (32 - p.Bits())
			add(message.InternalIP4Subnet, binary.BigEndian.AppendUint32(p.Addr().AsSlice(), mask))
		}
	}
	for _, p := range prefixes(pool.SplitInclude6Subnets) {
		if asked[message.InternalIP6Subnet] > 0 {
			add(message.InternalIP6Subnet, append(p.Addr().AsSlice(), byte(p.Bits())))
		}
	}
	if asked[message.InternalDNSDomain] > 0 && pool.Domain != "" {
		add(message.InternalDNSDomain, []byte(pool.Domain)) // RFC 8598 §4.1
	}
}

// configAsk is the CFG_REQUEST of a client: for the families that its phase 2 entries have.
// What it had before, it wishes again.
func (e *Engine) configAsk(sa *ikeSA) []message.Payload {
	if !asks(sa.p1) {
		return nil
	}
	req := &message.CP{CFGType: message.CFGRequest}
	add := func(t uint16, v []byte) {
		req.Attributes = append(req.Attributes, message.CPAttribute{Type: t, Value: v})
	}
	for _, v4 := range []bool{true, false} {
		if !slices.ContainsFunc(e.phase2sOf(sa.phase1), func(p2 *config.Phase2) bool {
			return slices.ContainsFunc(p2.Src, func(t ipsec.TrafficSelector) bool { return t.Start.Is4() == v4 })
		}) {
			continue
		}
		var wish []byte
		if sa.tunnel != nil {
			for _, a := range sa.tunnel.had {
				if a.Is4() == v4 && wish == nil {
					wish = a.AsSlice()
				}
			}
		}
		if v4 {
			add(message.InternalIP4Address, wish)
			add(message.InternalIP4Netmask, nil)
			add(message.InternalIP4DNS, nil)
			add(message.InternalIP4Subnet, nil)
			continue
		}
		if wish != nil {
			wish = append(wish, 128)
		}
		add(message.InternalIP6Address, wish)
		add(message.InternalIP6DNS, nil)
		add(message.InternalIP6Subnet, nil)
	}
	add(message.InternalDNSDomain, nil)
	return []message.Payload{req}
}

// asks says that a phase 1 is a client of mode-cfg.
func asks(p1 *config.Phase1) bool { return p1 != nil && p1.ModeCfg && !p1.Dialup() }

// configTaken takes the CFG_REPLY to our request; false: no address was assigned, and
// nothing can be done with the IKE SA.
func (e *Engine) configTaken(sa *ikeSA, m *message.Message) bool {
	if !asks(sa.p1) {
		return true
	}
	got := &assigned{client: true}
	reply, ok := message.Get[*message.CP](m)
	if ok && reply.CFGType == message.CFGReply {
		for _, a := range reply.Attributes {
			got.take(a)
		}
	}
	got.addrs = slices.DeleteFunc(got.addrs, func(a netip.Addr) bool { return e.foreignAddr(sa, a) })
	if len(got.addrs) == 0 {
		reason := "the peer assigned no address"
		if n, refused := m.Notify(message.InternalAddressFailure); refused {
			reason = "peer sent " + n.NotifyType.String()
		}
		e.warn(sa, "mode-cfg: no address", slog.String("reason", reason))
		sa.tunnel.failure = reason
		return false
	}
	e.touch(sa)
	sa.assigned = got
	sa.tunnel.had = got.addrs
	e.info(sa, "mode-cfg: address assigned to us", slog.String("address", addressText(got.addrs)), slog.String("dns", addressText(got.dns)),
		slog.String("domain", strings.Join(got.domains, " ")))
	e.place(sa)
	return true
}

// take reads one attribute of a reply; what is malformed is left out.
func (x *assigned) take(a message.CPAttribute) {
	v := a.Value
	switch a.Type {
	case message.InternalIP4Address, message.InternalIP6Address:
		n := 4
		if a.Type == message.InternalIP6Address {
			n = 16
		}
		if len(v) < n || n == 4 && len(v) > 4 || len(v) > 17 {
			return
		}
		if y, ok := netip.AddrFromSlice(v[:n]); ok && len(x.addrs) < 2*maxAddresses && !slices.Contains(x.addrs, y) {
			x.addrs = append(x.addrs, y)
		}
	case message.InternalIP4DNS, message.InternalIP6DNS:
		if y, ok := netip.AddrFromSlice(v); ok && y.Is4() == (a.Type == message.InternalIP4DNS) && len(x.dns) < maxAssigned {
			x.dns = append(x.dns, y)
		}
	case message.InternalIP4Subnet, message.InternalIP6Subnet:
		if p, ok := subnetOf(v); ok && len(x.subnets) < maxAssigned {
			x.subnets = append(x.subnets, p)
		}
	case message.InternalDNSDomain:
		if len(v) > 0 && len(v) <= 255 && len(x.domains) < maxAssigned && !slices.ContainsFunc(v, func(c byte) bool { return c <= ' ' || c > '~' }) {
			x.domains = append(x.domains, string(v))
		}
	}
}

// subnetOf reads INTERNAL_IP4_SUBNET or INTERNAL_IP6_SUBNET (RFC 7296 §3.15.1).
func subnetOf(v []byte) (p netip.Prefix, ok bool) {
	switch len(v) {
	case 8:
		mask := binary.BigEndian.Uint32(v[4:])
		bits := 0
		for mask&(1<<31) != 0 {
			mask, bits = mask<<1, bits+1
		}
		if mask != 0 {
			return p, false
		}
		a, _ := netip.AddrFromSlice(v[:4])
		return netip.PrefixFrom(a, bits), true
	case 17:
		a, _ := netip.AddrFromSlice(v[:16])
		return netip.PrefixFrom(a, int(v[16])), v[16] <= 128
	}
	return p, false
}

// place has the addresses that were assigned to us on the tunnel's interface while this IKE
// SA stands, here and on every standby.
func (e *Engine) place(sa *ikeSA) {
	if sa.placed || !sa.isClient() || sa.state != stateEstablished && sa.state != stateRekeyed {
		return
	}
	sa.placed = true
	for _, a := range sa.assigned.addrs {
		e.countedEffect(OwnAddress{Phase1: sa.phase1, Addr: a})
	}
}

func (e *Engine) unplace(sa *ikeSA) {
	if !sa.placed {
		return
	}
	sa.placed = false
	for _, a := range sa.assigned.addrs {
		e.countedEffect(OwnAddress{Phase1: sa.phase1, Addr: a, Gone: true})
	}
}

// holdAddresses counts what an IKE SA that becomes known has of our pools.
func (e *Engine) holdAddresses(sa *ikeSA) {
	for _, a := range sa.leased() {
		e.leases.add(sa.peerID, a)
	}
	if sa.isClient() && sa.tunnel != nil {
		sa.tunnel.had = sa.assigned.addrs
	}
}

// dropAddresses ends that.
func (e *Engine) dropAddresses(sa *ikeSA, ended bool) {
	for _, a := range sa.leased() {
		e.leases.drop(a, ended, e.last+1)
	}
	if len(sa.leased()) > 0 && e.active {
		e.info(sa, "released address of client", slog.String("address", addressText(sa.leased())))
	}
}

func encodeAssigned(x *assigned) *syncpb.Assigned {
	if x == nil {
		return nil
	}
	p := &syncpb.Assigned{Client: x.client}
	for _, a := range x.addrs {
		p.Addresses = append(p.Addresses, a.AsSlice())
	}
	for _, a := range x.dns {
		p.Dns = append(p.Dns, a.AsSlice())
	}
	for _, s := range x.subnets {
		p.Subnets = append(p.Subnets, append(s.Addr().AsSlice(), byte(s.Bits())))
	}
	for _, d := range x.domains {
		p.Domains = append(p.Domains, []byte(d))
	}
	return p
}

func decodeAssigned(p *syncpb.Assigned) *assigned {
	if p == nil {
		return nil
	}
	x := &assigned{client: p.Client}
	for _, b := range p.Addresses {
		if a, ok := netip.AddrFromSlice(b); ok {
			x.addrs = append(x.addrs, a)
		}
	}
	for _, b := range p.Dns {
		if a, ok := netip.AddrFromSlice(b); ok {
			x.dns = append(x.dns, a)
		}
	}
	for _, b := range p.Subnets {
		if len(b) == 0 {
			continue
		}
		if a, ok := netip.AddrFromSlice(b[:len(b)-1]); ok {
			x.subnets = append(x.subnets, netip.PrefixFrom(a, int(b[len(b)-1])))
		}
	}
	for _, d := range p.Domains {
		x.domains = append(x.domains, string(d))
	}
	return x
}

// prefixes are what selectors cover, as prefixes.
func prefixes(ts []ipsec.TrafficSelector) (out []netip.Prefix) {
	for _, t := range ts {
		out = append(out, netipx.IPRangeFrom(t.Start, t.End).Prefixes()...)
	}
	return out[:min(len(out), 64)]
}
