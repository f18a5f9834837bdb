package config

import (
	"fmt"
	"net/netip"
)

func staticSpec(path string, family int, dst string) *spec[Route] {
	zero := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == 6 {
		zero = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return &spec[Route]{
		path:  path,
		help:  fmt.Sprintf("Static IPv%d routes; a route through a tunnel interface exists while the tunnel does.", family),
		label: "route",
		entry: "ID (1–4294967295)",
		make:  numbered("route", 0, 4294967295, func(id int) Route { return Route{ID: id, Dst: zero} }),
		rows: []row[Route]{
			{key: "status", value: enabledAs{}, def: "enable", at: func(r *Route) any { return &r.Disabled }, help: "a disabled route does not exist"},
			{key: "dst", value: network{family: family}, def: dst, at: func(r *Route) any { return &r.Dst }, help: "destination"},
			{key: "gateway", value: address{family}, at: func(r *Route) any { return &r.Gateway }, help: "next hop; not needed through a tunnel"},
			{key: "device", value: text{max: 15, what: "an interface name", check: interfaceName}, at: func(r *Route) any { return &r.Device }, help: "interface; required unless blackhole"},
			{key: "distance", value: number{1, 255, 0}, def: "10", at: func(r *Route) any { return &r.Distance }, help: "the lower one wins; the kernel's metric"},
			{key: "blackhole", value: toggle{}, def: "disable", at: func(r *Route) any { return &r.Blackhole }, help: "discards what it matches"},
		},
		ignored: append(plain("comment weight priority link-monitor-exempt vrf bfd devindex preferred-source tag"),
			ignored{key: "dynamic-gateway", only: []string{"disable"}}, ignored{key: "sdwan", only: []string{"disable"}},
			ignored{key: "virtual-wan-link", only: []string{"disable"}}, ignored{key: "internet-service", only: []string{"0"}},
			ignored{key: "dstaddr", only: []string{}, why: "write the network with `set dst`"},
			ignored{key: "sdwan-zone", only: []string{}, why: "there is no SD-WAN here"},
			ignored{key: "src", only: []string{"0.0.0.0", "0.0.0.0/0"}, why: "routes look at destinations only"}),
	}
}

var (
	staticRoute  = staticSpec("router static", 4, "0.0.0.0 0.0.0.0")
	staticRoute6 = staticSpec("router static6", 6, "::/0")
)

// enabledAs is enable or disable, in a bool that says the opposite.
type enabledAs struct{}

func (enabledAs) allowed() string { return toggle{}.allowed() }
func (enabledAs) parse(words []word, into any) string {
	var on bool
	msg := toggle{}.parse(words, &on)
	if msg == "" {
		*into.(*bool) = !on
	}
	return msg
}
func (enabledAs) format(from any) string {
	on := !*from.(*bool)
	return toggle{}.format(&on)
}

func (ld *loader) buildRoutes() (out []Route) {
	for _, t := range []*table[Route]{ld.route, ld.route6} {
		for _, o := range t.entries {
			r, s := *o.val, o.src
			if r.Device == "" && !r.Blackhole && !s.bad["device"] {
				ld.fault(s.line, s.object, "device", "device is missing: a route needs its interface, or `set blackhole enable`")
			}
			out = append(out, r)
		}
	}
	return out
}
