package fsm

import (
	"cmp"
	"slices"
)

// Site is the FGCP group that a member belongs to, as its configuration has it: a pair
// that acts as one member of the farm. One node of a site is active; it owns the slots
// of all of them.
type Site struct {
	Number   int // 1–16; 0: the member is a site by itself and acts alone
	Priority int // 0–255: the higher one becomes active, where that is open
	Override bool
}

// The site travels in Member.Features, which every build carries through the log and
// its snapshots as it is: so builds that know nothing of sites come to the same state.
const (
	siteBits      = 5
	priorityShift = 8
	overrideShift = 16
)

// Features is the site as bits of Member.Features.
func (s Site) Features() uint64 {
	f := uint64(s.Number) | uint64(s.Priority)<<priorityShift
	if s.Override {
		f |= 1 << overrideShift
	}
	return f
}

// Site is what the member's features say; the zero Site where they name none.
func (m Member) Site() Site {
	n := int(m.Features & (1<<siteBits - 1))
	if n == 0 || n > MaxNodes {
		return Site{}
	}
	return Site{Number: n, Priority: int(m.Features >> priorityShift & 0xff), Override: m.Features>>overrideShift&1 == 1}
}

// siteOf is a member's site; 0: none.
func (m *Machine) siteOf(n NodeID) int {
	if p := m.member(n); p != nil {
		return p.Site().Number
	}
	return 0
}

// mates are the able members of a site: the active one first, then by priority and number.
func (m *Machine) mates(site int) (out []NodeID) {
	active := m.Active(site)
	var all []Member
	for _, p := range m.members {
		if p.Able() && p.Site().Number == site {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b Member) int {
		switch active {
		case a.Node:
			return -1
		case b.Node:
			return 1
		}
		return cmp.Compare(b.Site().Priority, a.Site().Priority)
	})
	for _, p := range all {
		out = append(out, p.Node)
	}
	return out
}

// AddressScope is the scope whose owner has the site's shared addresses, if it is a node
// of the site: the first slot of its lowest member. 0: there is no such site.
func (m *Machine) AddressScope(site int) ScopeID {
	for _, p := range m.members {
		if site != 0 && p.State != Left && !p.Witness && p.Site().Number == site {
			return Slot(p.Node, 0)
		}
	}
	return 0
}

// Active is the node of a site that is home to its slots: it owns the first of them
// that anybody owns. 0: another site does, or nobody.
func (m *Machine) Active(site int) NodeID {
	for i := range m.scopes {
		s := &m.scopes[i]
		if h := s.ID.Home(); site != 0 && h != 0 && s.Owner != 0 && m.siteOf(h) == site {
			if m.siteOf(s.Owner) == site {
				return s.Owner
			}
			return 0
		}
	}
	return 0
}

// home is the member that a slot shall be owned by: the one that it was made for, or the
// node of its site that is or becomes active. There is no move back to a node that
// comes again, except by override to one of higher priority. 0: the site has none.
func (m *Machine) home(id ScopeID) NodeID {
	site := m.siteOf(id.Home())
	if site == 0 {
		return id.Home()
	}
	var best *Member
	for i := range m.members {
		p := &m.members[i]
		if p.Able() && p.Site().Number == site && (best == nil || best.Site().Priority < p.Site().Priority) {
			best = p
		}
	}
	a := m.member(m.Active(site))
	switch {
	case a != nil && a.Able() && (!best.Site().Override || best.Site().Priority <= a.Site().Priority):
		return a.Node
	case best != nil:
		return best.Node
	}
	return 0
}

// firstOwner is who gets a slot that nobody owns; 0: it waits.
func (m *Machine) firstOwner(p Member, s *Scope) NodeID {
	site := p.Site().Number
	switch {
	case site == 0 && s != nil && !p.Able() && p.State != Left && !p.Witness:
		return m.anybody(s) // its owner was lost with nobody promised, and its home cannot take it
	case site == 0 || s == nil:
		if !p.Able() {
			return 0
		}
	case p.Witness || p.State == Left:
		return 0
	}
	if site == 0 {
		return p.Node
	}
	if a := m.member(m.Active(site)); a != nil && a.Able() {
		return a.Node
	}
	return m.home(Slot(p.Node, 0))
}

// anybody is an able member for a slot that nobody owns: of its standbys, who may hold the
// records, if one is.
func (m *Machine) anybody(s *Scope) NodeID {
	for _, n := range s.Standbys {
		if p := m.member(n); p != nil && p.Able() {
			return n
		}
	}
	for _, p := range m.members {
		if p.Able() {
			return p.Node
		}
	}
	return 0
}

// siteStandbys lists who should stand by for a site's slot, the same for all of them: the
// node that it shall go home to, the owner's partners, then the active node of the next
// site. Of these it takes so many as asked for, but somebody in another site always, so
// that the loss of a whole site loses nothing; and with that one its partners, because
// if one of them must succeed there, it has to know whose each packet is.
func (m *Machine) siteStandbys(id ScopeID, owner NodeID, n int) []NodeID {
	here := m.siteOf(owner)
	all := append([]NodeID{m.home(id)}, m.mates(here)...)
	for i := range MaxNodes {
		if site := 1 + (here+i)%MaxNodes; site != here {
			all = append(all, m.mates(site)...)
		}
	}
	all = append(all, m.mates(0)...)
	var order []NodeID
	for _, x := range all {
		if x != 0 && x != owner && !slices.Contains(order, x) {
			order = append(order, x)
		}
	}
	away := func(x NodeID) bool { return here == 0 || m.siteOf(x) != here }
	out := slices.Clone(order[:max(0, min(n, len(order)))])
	if i := slices.IndexFunc(order, away); i >= len(out) && len(out) > 1 {
		out[len(out)-1] = order[i]
	}
	for _, x := range order {
		if len(out) > 0 && !slices.Contains(out, x) && away(x) && m.siteOf(x) != 0 &&
			slices.ContainsFunc(out, func(y NodeID) bool { return m.siteOf(y) == m.siteOf(x) }) {
			out = append(out, x)
		}
	}
	return out
}

// turn says that a slot may be handed home: the scope of the addresses goes first, so that
// the site has its addresses before its tunnels.
func (m *Machine) turn(s *Scope) bool {
	first := m.AddressScope(m.siteOf(s.ID.Home()))
	a := m.scope(uint32(first))
	return first == 0 || a == nil || a.ID == s.ID || a.Owner == m.home(s.ID)
}
