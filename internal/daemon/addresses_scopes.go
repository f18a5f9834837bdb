package daemon

import (
	"log/slog"
	"slices"

	"github.com/vishvananda/netlink"

	"tandem/internal/config"
	"tandem/xfrm"
)

// scopedAddresses are the shared addresses of this node: those of each virtual cluster
// come and go by themselves; without virtual clusters scope 0 has all. Called by the
// event loop.
type scopedAddresses struct {
	log  *slog.Logger
	link func(dev string) (netlink.Link, error)
	sets map[xfrm.Scope]*addresses
	ids  []xfrm.Scope
	tell func([]sharedAddr) // as in addresses, of all together
	macs *virtualMACs
}

func newScopedAddresses(log *slog.Logger, c *config.Config) (*scopedAddresses, error) {
	s := &scopedAddresses{log: log, link: netlink.LinkByName, sets: map[xfrm.Scope]*addresses{}, ids: []xfrm.Scope{0}, macs: &virtualMACs{log: log}}
	if c.Virtual() {
		s.ids = nil
		for _, v := range c.VirtualClusters() {
			s.ids = append(s.ids, xfrm.Scope(v.ID))
		}
	}
	for _, id := range s.ids {
		a, err := newAddresses(log)
		if err != nil {
			return nil, err
		}
		a.vcluster, a.macs = int(id), s.macs
		a.link = func(dev string) (netlink.Link, error) { return s.link(dev) }
		a.tell = func([]sharedAddr) { s.told() }
		s.sets[id] = a
	}
	return s, nil
}

// told says which of all are here now.
func (s *scopedAddresses) told() {
	if s.tell != nil {
		s.tell(s.here())
	}
}

// here are the shared addresses that are on this node.
func (s *scopedAddresses) here() (all []sharedAddr) {
	for _, id := range s.ids {
		if a := s.sets[id]; a.held {
			all = append(all, a.shared...)
		}
	}
	return all
}

func (s *scopedAddresses) configure(c *config.Config) {
	here := s.here()
	s.macs.configure(c, func(dev string) bool {
		return slices.ContainsFunc(here, func(x sharedAddr) bool { return x.dev == dev })
	}, s.link)
	for _, id := range s.ids {
		s.sets[id].configure(c)
	}
}

func (s *scopedAddresses) claim(id xfrm.Scope, ready func()) {
	if a := s.sets[id]; a != nil {
		a.claim(ready)
	}
}

func (s *scopedAddresses) reassert(id xfrm.Scope) {
	if a := s.sets[id]; a != nil {
		a.reassert()
	}
}

func (s *scopedAddresses) release(id xfrm.Scope) {
	if a := s.sets[id]; a != nil {
		a.release()
	}
}

func (s *scopedAddresses) releaseAll() {
	for _, id := range s.ids {
		s.release(id)
	}
}

// repair puts back what interfaces lost that came up again.
func (s *scopedAddresses) repair(cameUp []string) {
	for _, id := range s.ids {
		a := s.sets[id]
		if a.held && slices.ContainsFunc(a.shared, func(x sharedAddr) bool { return slices.Contains(cameUp, x.dev) }) {
			a.claim(nil)
		}
	}
}

func (s *scopedAddresses) close() {
	for _, id := range s.ids {
		s.sets[id].close()
	}
}

// scopeOf is the scope of a phase 1's tunnel.
func scopeOf(c *config.Config, p *config.Phase1) xfrm.Scope {
	if !c.Virtual() {
		return 0
	}
	return xfrm.Scope(c.VClusterOf(p))
}

// reassigned names what of the virtual clusters is different, which a running daemon
// cannot change: which there are, and which of them a tunnel or an interface that stays
// belongs to.
func reassigned(old, next *config.Config) string {
	ids := func(c *config.Config) (out []int) {
		for _, v := range c.VirtualClusters() {
			out = append(out, v.ID)
		}
		return out
	}
	if !slices.Equal(ids(old), ids(next)) {
		return "system ha: virtual clusters"
	}
	if !old.Virtual() {
		return ""
	}
	for i := range next.Phase1 {
		if p := old.Phase1ByName(next.Phase1[i].Name); p != nil && old.VClusterOf(p) != next.VClusterOf(&next.Phase1[i]) {
			return "system ha: the virtual cluster of " + p.Name
		}
	}
	for i := range next.Interfaces {
		name := next.Interfaces[i].Name
		if interfaceOf(old, name) != nil && old.VClusterOfInterface(name) != next.VClusterOfInterface(name) {
			return "system ha: the virtual cluster of " + name
		}
	}
	return ""
}
