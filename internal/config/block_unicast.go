package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// UnicastPeer is one `config unicast-peers` entry: another member of an FGCP group.
type UnicastPeer struct {
	ID     int
	PeerIP netip.Addr
}

// maxGroup is how many members an FGCP group has at most.
const maxGroup = 4

var unicastSpec = &spec[UnicastPeer]{
	path:  "unicast-peers",
	help:  "Within `config system ha`, with `set unicast-status enable`: the other members of a group of three or four, one an entry.",
	label: "unicast-peers",
	entry: "ID (1–255)",
	make:  numbered("unicast-peers", 1, 255, func(id int) UnicastPeer { return UnicastPeer{ID: id} }),
	own:   true,
	rows: []row[UnicastPeer]{
		{key: "peer-ip", value: address{0}, at: func(p *UnicastPeer) any { return &p.PeerIP }, local: true, help: "the member's own address on a network that all members share; required"},
	},
}

func unicastTable(peers []UnicastPeer) *table[UnicastPeer] {
	return newTable(unicastSpec, "").fill(peers, func(p *UnicastPeer) string { return strconv.Itoa(p.ID) })
}

// Group says that this gateway is a member of an FGCP group of three or four, which
// decide by a log. In a site the farm's log decides.
func (c *Config) Group() bool {
	return c.HA.Mode == "a-p" && c.HA.UnicastStatus && len(c.HA.UnicastPeers) > 0 && !c.Standalone.Farm()
}

// LogPeers are the addresses of the other members with whom this one decides by a log:
// those of a farm, or of an FGCP group. A pair has none.
func (c *Config) LogPeers() (out []netip.Addr) {
	for i := range c.Standalone.Peers {
		out = append(out, c.Standalone.Peers[i].PeerIP)
	}
	if c.Group() {
		for _, p := range c.HA.UnicastPeers {
			out = append(out, p.PeerIP)
		}
	}
	return out
}

// buildUnicast settles the members of a group.
func (ld *loader) buildUnicast(h *HA, farm bool) {
	d, s := ld.ha.val, ld.ha.src
	fault := func(line int, key, format string, args ...any) {
		ld.fault(line, s.object, key, fmt.Sprintf(format, args...))
	}
	if d.unicast == nil {
		d.unicast = newTable(unicastSpec, "system ha")
	}
	h.UnicastPeers = d.unicast.values()
	n, at := len(h.UnicastPeers), s.at("unicast-status")
	switch {
	case !h.UnicastStatus && n > 0:
		ld.warn(at, s.object, "unicast-status", "config unicast-peers has no effect without `set unicast-status enable`")
		return
	case !h.UnicastStatus:
		return
	case h.Mode != "a-p":
		fault(at, "unicast-status", "unicast-status (enable) needs `set mode a-p`")
	case farm:
		fault(at, "unicast-status", "unicast-status (enable) is impossible in a site: its nodes are cluster peers of `config system standalone-cluster`")
	case n == 0:
		fault(at, "unicast-status", "unicast-status (enable) needs `config unicast-peers` with the other members")
	case n == 1:
		fault(at, "unicast-status", "unicast-status (enable) with one peer would be a pair, whose nodes find each other on hbdev: leave it out, or name two or three peers")
	case n >= maxGroup:
		fault(at, "unicast-status", "an FGCP group has at most %d members: %d peers beside this one are too many (`config system standalone-cluster` has up to 16)", maxGroup, n)
	}
	for i, o := range d.unicast.entries {
		p := o.val
		if !p.PeerIP.IsValid() {
			if !o.src.bad["peer-ip"] {
				ld.fault(o.src.line, o.src.object, "peer-ip", "peer-ip is missing: a unicast peer needs its address on a network that all members share")
			}
			continue
		}
		if k := slices.IndexFunc(h.UnicastPeers[:i], func(q UnicastPeer) bool { return q.PeerIP == p.PeerIP }); k >= 0 {
			ld.fault(o.src.at("peer-ip"), o.src.object, "peer-ip", fmt.Sprintf("peer-ip (%s) belongs to unicast-peers %d already", p.PeerIP, h.UnicastPeers[k].ID))
		}
	}
}

// checkUnicast: a peer is known by an address of its own, that stays with it.
func (ld *loader) checkUnicast(c *Config) {
	if !c.Group() {
		return
	}
	for _, o := range ld.ha.val.unicast.entries {
		for i := range c.Interfaces {
			in := &c.Interfaces[i]
			has := func(list []netip.Prefix) bool {
				return slices.ContainsFunc(list, func(x netip.Prefix) bool { return x.Addr() == o.val.PeerIP })
			}
			switch {
			case has(in.IP):
				ld.fault(o.src.at("peer-ip"), o.src.object, "peer-ip", fmt.Sprintf("peer-ip (%s) is the shared address of %s, which moves: name the member's own", o.val.PeerIP, in.Name))
			case has(in.ManagementIP):
				ld.fault(o.src.at("peer-ip"), o.src.object, "peer-ip", fmt.Sprintf("peer-ip (%s) is this member's own address on %s: name the others", o.val.PeerIP, in.Name))
			}
		}
	}
}
