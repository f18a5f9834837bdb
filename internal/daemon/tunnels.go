package daemon

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"tandem/internal/config"
	"tandem/xfrm"
)

const (
	defaultMTU = 1500
	// tunnelAlias marks the tunnel interfaces that are ours: they outlive a daemon
	// that was killed, and the next one takes them over or removes them.
	tunnelAlias = "tandem"
)

// tunnels keeps one tunnel interface for each phase 1. Called by the event loop only.
type tunnels struct {
	log   *slog.Logger
	plane xfrm.DataPlane
	have  map[string]xfrm.Tunnel
	view  map[string]tunnelView
	given map[string][]netip.Addr // that peers assigned to us, by tunnel
}

func newTunnels(log *slog.Logger, plane xfrm.DataPlane) *tunnels {
	return &tunnels{log: log, plane: plane, have: map[string]xfrm.Tunnel{}, view: map[string]tunnelView{}, given: map[string][]netip.Addr{}}
}

// tunnelOf is how a phase 1's interface shall be, above a link of outer bytes.
// After encapsulation the outer packet may be fragmented, so the inner MTU stays
// 1500 and TCP is kept smaller by the MSS; before it, the interface itself tells
// senders what fits.
func tunnelOf(c *config.Config, p *config.Phase1, outer int) xfrm.Tunnel {
	v6 := p.RemoteGW.Is6() || p.LocalGW.Is6()
	inner := tunnelInnerMTU(c, p, outer, v6)
	t := xfrm.Tunnel{Name: p.Name, Scope: scopeOf(c, p), MTU: defaultMTU, MaxMSS: [2]int{inner - 40, inner - 60}}
	if p.IPFragmentation == "pre-encapsulation" {
		t.MTU, t.DontFragment = inner, true
	}
	if in := interfaceOf(c, p.Name); in != nil && in.MTU > 0 {
		t.MTU = in.MTU
	}
	return t
}

func interfaceOf(c *config.Config, name string) *config.Interface {
	for i := range c.Interfaces {
		if c.Interfaces[i].Name == name {
			return &c.Interfaces[i]
		}
	}
	return nil
}

func outerMTU(dev string) int {
	if link, err := netlink.LinkByName(dev); err == nil {
		return link.Attrs().MTU
	}
	return defaultMTU
}

// configure makes the interfaces of a configuration, and removes those that it
// no longer names. What a live interface cannot change is said, not done: its
// SAs are worth more.
func (t *tunnels) configure(c *config.Config) error {
	wanted := map[string]bool{}
	for i := range c.Phase1 {
		p := &c.Phase1[i]
		wanted[p.Name] = true
		outer := outerMTU(p.Interface)
		next := tunnelOf(c, p, outer)
		if old, ok := t.have[p.Name]; ok {
			if old != next {
				t.log.Warn("tunnel interface keeps its old MTU settings until the next start", "tunnel", p.Name)
			}
		} else {
			if err := foreign(p.Name); err != nil {
				return err
			}
			if err := t.plane.AddTunnel(next); err != nil {
				return fmt.Errorf("tunnel interface %s: %w", p.Name, err)
			}
			t.have[p.Name] = next
		}
		v, err := t.dress(p.Name, interfaceOf(c, p.Name))
		if err != nil {
			return fmt.Errorf("tunnel interface %s: %w", p.Name, err)
		}
		v.OuterMTU = outer
		t.view[p.Name] = v
	}
	for name := range t.have {
		if !wanted[name] {
			if err := t.plane.RemoveTunnel(name); err != nil {
				t.log.Error("tunnel interface not removed", "tunnel", name, "error", err)
			}
			delete(t.have, name)
			delete(t.view, name)
		}
	}
	t.removeLeftovers(wanted)
	return nil
}

// foreign says that a tunnel cannot have its interface here.
func (t *tunnels) foreign(c *config.Config) error {
	for i := range c.Phase1 {
		if _, ok := t.have[c.Phase1[i].Name]; ok {
			continue
		}
		if err := foreign(c.Phase1[i].Name); err != nil {
			return err
		}
	}
	return nil
}

func foreign(name string) error {
	if link, err := netlink.LinkByName(name); err == nil && link.Attrs().Alias != tunnelAlias {
		return fmt.Errorf("tunnel interface %s: an interface of that name exists and is not ours", name)
	}
	return nil
}

// removeLeftovers removes the interfaces of an earlier life that nobody names any more.
func (t *tunnels) removeLeftovers(wanted map[string]bool) {
	links, err := netlink.LinkList()
	if err != nil {
		t.log.Warn("interfaces of an earlier life not looked for", "error", err)
		return
	}
	for _, link := range links {
		if a := link.Attrs(); a.Alias == tunnelAlias && link.Type() == "tuntap" && !wanted[a.Name] {
			if err := netlink.LinkDel(link); err != nil {
				t.log.Warn("tunnel interface of an earlier life not removed", "tunnel", a.Name, "error", err)
			}
		}
	}
}

// dress gives an interface its addresses and brings it up.
func (t *tunnels) dress(name string, in *config.Interface) (tunnelView, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return tunnelView{}, err
	}
	v := tunnelView{Index: link.Attrs().Index, MTU: link.Attrs().MTU}
	if link.Attrs().Alias != tunnelAlias {
		if err := netlink.LinkSetAlias(link, tunnelAlias); err != nil {
			return v, err
		}
	}
	// No link-local address of its own: the kernel's chatter about it (router
	// solicitations, MLD) would count as traffic that asks for a negotiation.
	if err := netlink.LinkSetIP6AddrGenMode(link, 1); err != nil {
		t.log.Debug("IPv6 address generation not switched off", "tunnel", name, "error", err)
	}
	keep := map[netip.Addr]bool{}
	if in != nil {
		for _, p := range in.IP {
			a := nlAddr(p)
			if in.RemoteIP.IsValid() && in.RemoteIP.Addr().Is4() == p.Addr().Is4() {
				a.Peer = &net.IPNet{IP: in.RemoteIP.Addr().AsSlice(), Mask: net.CIDRMask(in.RemoteIP.Bits(), in.RemoteIP.Addr().BitLen())}
				a.IPNet.Mask = net.CIDRMask(p.Addr().BitLen(), p.Addr().BitLen())
			}
			if err := netlink.AddrReplace(link, a); err != nil {
				return v, fmt.Errorf("address %s: %w", p, err)
			}
			keep[p.Addr()] = true
			if !v.IP.IsValid() {
				v.IP = p
			}
		}
		v.RemoteIP = in.RemoteIP.Addr()
	}
	for _, a := range t.given[name] {
		keep[a] = true
	}
	old, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return v, err
	}
	for i := range old {
		if ip, ok := netip.AddrFromSlice(old[i].IP); ok && !keep[ip.Unmap()] {
			if err := netlink.AddrDel(link, &old[i]); err != nil {
				t.log.Warn("old tunnel address not removed", "tunnel", name, "address", old[i].IPNet.String(), "error", err)
			}
		}
	}
	return v, netlink.LinkSetUp(link)
}

// assign puts an address that a peer assigned to us on its tunnel's interface, where it is
// the source of what begins here.
func (t *tunnels) assign(name string, a netip.Addr) {
	t.given[name] = append(t.given[name], a)
	t.change(name, a, netlink.AddrReplace)
}

// unassign takes it off again, unless the configuration names it as well.
func (t *tunnels) unassign(name string, a netip.Addr) {
	t.given[name] = slices.DeleteFunc(t.given[name], func(b netip.Addr) bool { return a == b })
	if v := t.view[name]; v.IP.Addr() != a {
		t.change(name, a, netlink.AddrDel)
	}
}

func (t *tunnels) change(name string, a netip.Addr, do func(netlink.Link, *netlink.Addr) error) {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = do(link, nlAddr(netip.PrefixFrom(a, a.BitLen())))
	}
	if err != nil {
		t.log.Error("assigned address not changed", "tunnel", name, "address", a.String(), "error", err)
	}
}

// views are the interfaces as commands show them.
func (t *tunnels) views() map[string]tunnelView {
	out := make(map[string]tunnelView, len(t.view))
	for name, v := range t.view {
		v.Counters = t.plane.TunnelCounters(name)
		out[name] = v
	}
	return out
}
