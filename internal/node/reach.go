package node

import "go4.org/netipx"

// reach is an inner prefix that is reached through a tunnel interface.
type reach struct {
	AddRoute
	// bare: who leads packets for it into the interface is the administrator; add-route is off.
	bare bool
}

// compareReach orders them.
func compareReach(a, b reach) int {
	if c := a.Prefix.Compare(b.Prefix); c != 0 {
		return c
	}
	if a.Tunnel != b.Tunnel {
		if a.Tunnel < b.Tunnel {
			return -1
		}
		return 1
	}
	switch {
	case a.bare == b.bare:
		return 0
	case b.bare:
		return -1
	}
	return 1
}

// sum is the entry's part of a set's digest, which is the sum of all: FNV-1a, mixed so
// that sums of similar entries do not meet.
func (r reach) sum() uint64 {
	h := uint64(14695981039346656037)
	add := func(b byte) { h = (h ^ uint64(b)) * 1099511628211 }
	for i := range len(r.Tunnel) {
		add(r.Tunnel[i])
	}
	a := r.Prefix.Addr().As16()
	for _, b := range a {
		add(b)
	}
	add(byte(r.Prefix.Bits()))
	if r.bare {
		add(1)
	}
	if r.Prefix.Addr().Is4() {
		add(4)
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// setSum is what a set of entries is: how many, and the sum of theirs.
type setSum struct {
	n   uint32
	sum uint64
}

func (s *setSum) add(r reach)  { s.n++; s.sum += r.sum() }
func (s *setSum) take(r reach) { s.n--; s.sum -= r.sum() }

// tellable says whether the format can carry an entry.
func (r reach) tellable() bool {
	return r.Tunnel != "" && len(r.Tunnel) <= maxLANName && r.Prefix.IsValid() && r.Prefix.Bits() > 0 && r.Prefix == r.Prefix.Masked() && !r.Prefix.Addr().Is4In6()
}

// reached is what a scope of a farm tells the Farm; it never leaves that.
type reached struct {
	reach
	gone bool
}

// addReach and removeReach count who is reached by a prefix: Child SAs of dialup clients,
// with a route if add-route says so, and IKE SAs whose peer told the address of its tunnel
// interface.
func (n *Node) addReach(r reach) {
	if n.reach[r]++; n.reach[r] > 1 {
		return
	}
	if r.tellable() {
		n.reachIs.add(r)
	}
	switch {
	case n.opt.ofFarm:
		n.emit(reached{reach: r})
	case !r.bare:
		n.emit(AddRoute{r.Tunnel, r.Prefix})
	}
}

func (n *Node) removeReach(r reach) {
	if n.reach[r]--; n.reach[r] > 0 {
		return
	}
	delete(n.reach, r)
	if r.tellable() {
		n.reachIs.take(r)
	}
	switch {
	case n.opt.ofFarm:
		n.emit(reached{reach: r, gone: true})
	case !r.bare:
		n.emit(RemoveRoute{r.Tunnel, r.Prefix})
	}
}

func (n *Node) peerReach(r reach, gone bool) {
	if gone {
		n.removeReach(r)
	} else {
		n.addReach(r)
	}
}

func (n *Node) removeReaches(c *childSA) {
	for _, r := range c.reaches() {
		n.removeReach(r)
	}
}

// dialup says whether a phase 1 is for dialup clients, and whether without add-route.
func (n *Node) dialup(phase1 string) (dialup, bare bool) {
	for i := range n.cfg.Phase1 {
		if p := &n.cfg.Phase1[i]; p.Name == phase1 {
			return p.Dialup(), !p.AddRoute
		}
	}
	return false, false
}

// reaches are the remote selectors of a dialup client.
func (c *childSA) reaches() (out []reach) {
	if !c.dialup {
		return nil
	}
	for _, ts := range c.sa.TSRemote {
		for _, p := range netipx.IPRangeFrom(ts.Start, ts.End).Prefixes() {
			if p.Bits() > 0 {
				out = append(out, reach{AddRoute: AddRoute{c.sa.Phase1, p}, bare: c.bare})
			}
		}
	}
	return out
}
