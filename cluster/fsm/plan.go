package fsm

import (
	"slices"

	"tandem/proto/clusterpb"
)

// Plan is what the leader of a farm should propose next for its slots, each a
// command without ID: slots for every able member, standbys for each slot, and as its
// successor the first of them that holds the records; before all others the member that
// the slot was made for.
// Where all is as it should be, the plan is empty. A member that is being drained keeps
// the records that it holds, beside the standbys asked for.
//
// The eight slots of a member have different first standbys, so that its load is
// spread when it dies. Whether a member is lost changes nothing in the order, only
// who is passed over: a member that comes back finds its old place. The slots of a
// site's members go together: see sites.go.
func (m *Machine) Plan(standbys int) (out []*clusterpb.Command) {
	var as []*clusterpb.Assignment
	for _, p := range m.members {
		for k := range SlotsPerMember {
			id := Slot(p.Node, k)
			s := m.scope(uint32(id))
			owner := m.firstOwner(p, s)
			if s != nil && s.Owner != 0 {
				owner = s.Owner
			}
			if owner == 0 {
				continue
			}
			want := m.standbysFor(p, k, owner, standbys)
			if standbys > 0 {
				want = m.withDraining(want, s, p.Node, owner)
			}
			if s != nil && s.Owner == owner && slices.Equal(s.Standbys, want) {
				continue
			}
			as = append(as, &clusterpb.Assignment{Scope: uint32(id), Owner: uint32(owner), Standbys: numbers(want)})
		}
	}
	if len(as) > 0 {
		out = append(out, &clusterpb.Command{What: &clusterpb.Command_AssignSlots{AssignSlots: &clusterpb.AssignSlots{Assignments: as}}})
	}
	for i := range m.scopes {
		s := &m.scopes[i]
		if s.ID.Home() == 0 || s.Owner == 0 {
			continue
		}
		h := m.home(s.ID)
		if !m.mayFollow(s, h, false) {
			h = m.first(s) // of the standbys, so that the load is spread when the owner dies
		}
		if s.Successor != h && m.mayFollow(s, h, false) {
			out = append(out, &clusterpb.Command{What: &clusterpb.Command_SetSuccessor{
				SetSuccessor: &clusterpb.SetSuccessor{Scope: uint32(s.ID), Epoch: s.Epoch.Proto(), Node: uint32(h)}}})
		}
	}
	for _, c := range out {
		c.Version = 1
	}
	return out
}

// standbysFor lists who should stand by for the k-th slot of a member: the member
// itself if another owns it, then the others in a ring whose beginning and
// direction differ from slot to slot.
func (m *Machine) standbysFor(home Member, k int, owner NodeID, n int) (out []NodeID) {
	if home.Site().Number != 0 {
		return m.siteStandbys(Slot(home.Node, k), owner, n)
	}
	var ring []Member
	for _, p := range m.members {
		if p.Node != home.Node && p.State != Left && !p.Witness {
			ring = append(ring, p)
		}
	}
	if home.Node != owner && home.Able() && n > 0 {
		out = append(out, home.Node)
	}
	for i := range ring {
		at := k + i
		if k/len(ring)%2 == 1 {
			at = k + len(ring) - i
		}
		if p := ring[at%len(ring)]; len(out) < n && p.Able() && p.Node != owner {
			out = append(out, p.Node)
		}
	}
	return out
}

// withDraining adds the members that are being drained and hold the slot's records: as
// long as routers send to them, they must know whose a packet is. A drained member
// follows only where nobody else can.
func (m *Machine) withDraining(list []NodeID, s *Scope, home, owner NodeID) []NodeID {
	for _, p := range m.members {
		site := m.siteOf(home)
		held := p.Node == home || site != 0 && p.Site().Number == site || s != nil && slices.Contains(s.Standbys, p.Node)
		if p.State == Draining && !p.Lost && !p.Witness && p.Node != owner && held && !slices.Contains(list, p.Node) {
			list = append(list, p.Node)
		}
	}
	return list
}
