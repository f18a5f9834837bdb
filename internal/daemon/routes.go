package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tandem/internal/config"
)

// routeProtocol marks our routes in the kernel's tables, so that what an earlier
// life left behind is recognised. It is in nobody's use (rtnetlink.h, FRR, bird).
const routeProtocol = 211

// routes keeps the kernel's routes: those of `config router static` and those
// that add-route promises. Called by the event loop only.
type routes struct {
	log     *slog.Logger
	static  []config.Route
	pending map[config.Route]bool // static routes that the kernel would not take yet
	*dynamicRoutes
}

func newRoutes(log *slog.Logger) (*routes, error) {
	d, err := newDynamicRoutes(log)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	return &routes{log: log, pending: map[config.Route]bool{}, dynamicRoutes: d}, nil
}

// end removes all routes; no others follow.
func (r *routes) end() {
	r.close()
	r.clean()
}

// clean removes the routes of an earlier life: one for each dialup client that it had.
func (r *routes) clean() {
	b, err := newRouteBatch()
	if err != nil {
		r.log.Warn("old routes not removed", "error", err)
		return
	}
	defer b.close()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		old, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			r.log.Warn("old routes not listed", "error", err)
			continue
		}
		for i := range old {
			if c, ok := dynamicRouteOf(&old[i]); ok {
				r.told(b.put(c, r.refused))
				continue
			}
			if err := netlink.RouteDel(&old[i]); err != nil && !errors.Is(err, unix.ESRCH) {
				r.log.Warn("old route not removed", "route", old[i].String(), "error", err)
			}
		}
	}
	r.told(b.flush(r.refused))
}

// dynamicRouteOf is a listed route as the removal of one that add-route promised, if it can be one.
func dynamicRouteOf(x *netlink.Route) (c routeChange, ok bool) {
	if x.Dst == nil || x.Gw != nil || len(x.MultiPath) > 0 || x.Type != unix.RTN_UNICAST || x.Table != unix.RT_TABLE_MAIN ||
		x.LinkIndex == 0 || x.Family == netlink.FAMILY_V4 && x.Priority != 0 {
		return c, false
	}
	a, ok := netip.AddrFromSlice(x.Dst.IP)
	bits, size := x.Dst.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return routeChange{index: x.LinkIndex, prefix: netip.PrefixFrom(a, bits)}, ok
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func nlRoute(dev string, prefix netip.Prefix, gateway netip.Addr) (*netlink.Route, error) {
	route := &netlink.Route{Dst: ipNet(prefix), Protocol: routeProtocol, Scope: netlink.SCOPE_LINK}
	if dev != "" {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return nil, err
		}
		route.LinkIndex = link.Attrs().Index
	}
	if gateway.IsValid() && !gateway.IsUnspecified() {
		route.Gw, route.Scope = gateway.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	return route, nil
}

// staticRoute is a configured route; its distance is the kernel's metric.
func staticRoute(s config.Route) (*netlink.Route, error) {
	if s.Blackhole {
		return &netlink.Route{Dst: ipNet(s.Dst), Protocol: routeProtocol, Type: unix.RTN_BLACKHOLE, Priority: s.Distance}, nil
	}
	route, err := nlRoute(s.Device, s.Dst, s.Gateway)
	if err == nil {
		route.Priority = s.Distance
	}
	return route, err
}

// setStatic takes the static routes of a configuration.
func (r *routes) setStatic(next []config.Route) {
	for _, old := range r.static {
		keep := false
		for _, n := range next {
			keep = keep || n == old
		}
		if !keep {
			if route, err := staticRoute(old); err == nil {
				_ = netlink.RouteDel(route)
			}
		}
	}
	r.static = next
	clear(r.pending)
	r.apply(nil)
}

// apply installs every static route again, or those that want selects and those
// that are pending. A route whose gateway cannot be
// reached yet (the shared address is elsewhere, the link is down) stays pending
// without noise: apply is called again whenever links or addresses change.
func (r *routes) apply(want func(config.Route) bool) {
	for _, s := range r.static {
		if s.Disabled || want != nil && !want(s) && !r.pending[s] {
			continue
		}
		route, err := staticRoute(s)
		if err == nil {
			err = netlink.RouteReplace(route)
		}
		switch {
		case err == nil && r.pending[s]:
			delete(r.pending, s)
			r.log.Info("static route installed", "id", s.ID, "dst", s.Dst.String())
		case err != nil && !r.pending[s]:
			r.pending[s] = true
			r.log.Info("static route pending", "id", s.ID, "dst", s.Dst.String(), "device", s.Device, "reason", err)
		}
	}
	if want != nil {
		return
	}
	r.again()
}
