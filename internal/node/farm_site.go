package node

import (
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

// site is the site that this member is a node of; 0: none.
func (f *Farm) site() int {
	p, _ := f.decided.Member(f.opt.Self)
	return p.Site().Number
}

// address lets what a scope wants of shared addresses through if they go with it: a
// site's move with one of its slots. For all other scopes the router moves the traffic.
func (f *Farm) address(id cluster.ScopeID, e Effect) {
	if site := f.site(); site == 0 || f.decided.AddressScope(site) != id {
		return
	}
	switch e.(type) { // all of this member's shared addresses
	case Claim:
		f.claimed, e = true, Claim{}
	case Release:
		if !f.claimed {
			return
		}
		f.claimed, e = false, Release{}
	case Reassert:
		e = Reassert{}
	}
	f.emit(e)
}

// siteAddresses claims or releases where not the owner has changed but the scope that
// the addresses go with: by a member that joined its site, or left it.
func (f *Farm) siteAddresses() {
	id := f.decided.AddressScope(f.site())
	n := f.scopes[id]
	switch owns := id != 0 && n != nil && n.owner; {
	case owns && !f.claimed:
		f.claimed = true
		f.emit(Claim{})
	case !owns && f.claimed:
		f.claimed = false
		f.emit(Release{})
	}
}

// SiteStatus is one site: a pair that is one member of the farm.
type SiteStatus struct {
	Number int
	Nodes  []cluster.NodeID
	Active cluster.NodeID // 0: nobody in the site
	Owner  cluster.NodeID // of the scope that the addresses go with, as heard, else as decided
	Here   bool           // this member has the site's addresses
}

// sites lists them by number.
func (f *Farm) sites() (out []SiteStatus) {
	for number := 1; number <= fsm.MaxNodes; number++ {
		s := SiteStatus{Number: number, Here: f.claimed && number == f.site()}
		for _, p := range f.decided.Members() {
			if p.Site().Number == number && p.State != fsm.Left {
				s.Nodes = append(s.Nodes, p.Node)
			}
		}
		if len(s.Nodes) == 0 {
			continue
		}
		id := f.decided.AddressScope(number)
		x, _ := f.decided.Scope(id)
		s.Owner = x.Owner
		if n := f.scopes[id]; n != nil && n.owner {
			s.Owner = f.opt.Self
		} else if o := f.ownerOf(id); o != 0 {
			s.Owner = o
		}
		if p, ok := f.decided.Member(s.Owner); ok && p.Site().Number == number {
			s.Active = s.Owner
		}
		out = append(out, s)
	}
	return out
}

// HandlePingservers is for pairs, as HandleMonitors is.
func (f *Farm) HandlePingservers(time.Time, int, int) {}
