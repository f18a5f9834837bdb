package node

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// What a node of an FGCP group of three or four does beyond one of a pair: its virtual
// clusters are decided by the members' log. The log's leader has FGCP's election rank who
// should own and who should succeed, and proposes that; everything else is a Slot's.

const (
	planEvery   = time.Second            // ages are compared anew
	planAgain   = 500 * time.Millisecond // a proposal of which nothing came
	unheardLoss = 2 * time.Second        // and the time of a loss: then a member that was never heard is lost
)

// group says that the members decide by a log.
func (v *VClusters) group() bool { return v.opt.Slot != nil }

// self is this node's number.
func (v *VClusters) self() cluster.NodeID {
	if v.group() {
		return v.opt.Slot.Self
	}
	return v.opt.Pair.Self
}

// lostAfter is how long a member must be silent to be lost.
func (v *VClusters) lostAfter() time.Duration {
	return v.cfg.HA.HBInterval * time.Duration(v.cfg.HA.HBLostThreshold)
}

// HandleDecided takes the state that the members' log has led to. The machine must not
// change afterwards.
func (v *VClusters) HandleDecided(now time.Time, m *fsm.Machine) {
	v.decided = m
	granted, wanted := v.grants(v.self(), v.opt.Process), m.HandOvers(v.self())
	for _, id := range v.order {
		s, _ := m.Scope(id)
		s.ID = id
		v.with(id, func(n *Node) {
			n.slot.HandleDecided(now, s, granted)
			n.slot.HandleWanted(now, slices.Contains(wanted, id))
			n.pump(now)
		})
	}
	v.planNot = time.Time{} // what was proposed has been answered, or is void
	v.plan(now)
	v.reports(now, v.emit)
	v.leases(now, true)
}

// HandleQuorum says whether the log has a leader.
func (v *VClusters) HandleQuorum(now time.Time, q Quorum) {
	v.quorum = q
	v.emit(q.alarm())
	v.each(func(n *Node) { n.slot.HandleQuorum(now, q.Lost, q.Stop); n.pump(now) })
	v.plan(now)
}

// HandleLeader says whether this member leads the log.
func (v *VClusters) HandleLeader(now time.Time, leads bool) {
	v.leads, v.ledAt = leads, now
	v.plan(now)
	v.reports(now, v.emit)
}

// leases does what is due about the ranges of the virtual clusters (pool_ranges.go). Who may
// succeed has some ready, too: all clients fall to one owner.
func (v *VClusters) leases(now time.Time, all bool) {
	for _, id := range v.order {
		n := v.scopes[id]
		if pools := v.poolsOf(n); n.opt.ranged && len(pools)+len(n.ranges.mine) > 0 && (all || !now.Before(n.rangesDue())) {
			v.with(id, func(n *Node) {
				n.considerRanges(now, v.decided, pools, v.quorum.Lost, true)
				n.pump(now)
			})
		}
	}
}

func (v *VClusters) nextLeases() (t time.Time, ok bool) {
	for _, id := range v.order {
		if n := v.scopes[id]; n.opt.ranged && (n.hasPool() || len(n.ranges.mine) > 0) {
			t, ok = earlier(t, ok, func() (time.Time, bool) { return n.rangesDue(), true })
		}
	}
	return t, ok
}

func (v *VClusters) poolsOf(n *Node) []poolRange {
	out := poolRanges(n.cfg)
	for i := range out {
		out[i].chunk = min(max(out[i].size()/poolShares, 1), maxPoolChunk)
	}
	return out
}

// groupPeer is what a member's heartbeats say of one virtual cluster, as a Slot wants it:
// the epoch is the one that it owns or is entitled for. x is Peer.Of.
func groupPeer(p, x cluster.Peer, id cluster.ScopeID) cluster.Peer {
	y := peerOf(p, id)
	y.Election, y.Coverage, y.VClusters = x.Election, x.Coverage, nil
	if y.Role != cluster.RoleOwner {
		y.Role = min(x.Role, cluster.RoleStandby)
	}
	return y
}

// able says whether a member may own a virtual cluster, or stand by for it: the log counts
// the process that is heard, and that one has it.
func (v *VClusters) able(k cluster.NodeID, id cluster.ScopeID) bool {
	p, _ := v.decided.Member(k)
	process := v.peers[k].Process
	if k == v.self() {
		process = v.opt.Process
	}
	return p.Able() && p.Process == uint64(process) && !slices.Contains(v.missing[id], k)
}

// assembled says that nobody who could own is waited for: all that are configured are
// there, or have had their time.
func (v *VClusters) assembled(now time.Time, there int) bool {
	return there > len(v.cfg.LogPeers()) || !now.Before(v.ledAt.Add(max(time.Second, 2*v.lostAfter())))
}

// plan proposes, as the log's leader, an owner for what nobody owns, who stands by for
// each virtual cluster, the one that goes first at the beginning, and that one as successor.
// Where all is as it should be, it proposes nothing.
func (v *VClusters) plan(now time.Time) {
	if !v.leads || v.quorum.Lost || now.Before(v.planNot) {
		return
	}
	v.planAt = now.Add(planEvery)
	v.missed(now)
	var as []*clusterpb.Assignment
	var next []*clusterpb.Command
	for _, id := range v.order {
		s, _ := v.decided.Scope(id)
		able := func(k cluster.NodeID) bool { return v.able(k, id) }
		order, _ := v.scopes[id].slot.Ranking(now, able)
		owner := s.Owner
		if owner == 0 {
			if len(order) == 0 || !v.assembled(now, len(order)) {
				continue
			}
			owner = order[0]
		}
		for _, p := range v.decided.Members() { // the others may hear those that we do not
			if p.Able() && !slices.Contains(order, p.Node) {
				order = append(order, p.Node)
			}
		}
		order = slices.DeleteFunc(order, func(k cluster.NodeID) bool { return k == owner })
		if s.Owner == 0 || !slices.Equal(order, s.Standbys) {
			as = append(as, &clusterpb.Assignment{Scope: uint32(id), Owner: uint32(owner), Standbys: numbersOf(order)})
		}
		i := slices.IndexFunc(order, func(k cluster.NodeID) bool { return able(k) && slices.Contains(s.Sync, k) })
		if s.Owner != 0 && i >= 0 && order[i] != s.Successor {
			next = append(next, &clusterpb.Command{What: &clusterpb.Command_SetSuccessor{SetSuccessor: &clusterpb.SetSuccessor{
				Scope: uint32(id), Epoch: s.Epoch.Proto(), Node: uint32(order[i])}}})
		}
	}
	if len(as) > 0 {
		next = append(next, &clusterpb.Command{What: &clusterpb.Command_AssignSlots{AssignSlots: &clusterpb.AssignSlots{Assignments: as}}})
	}
	for _, c := range next {
		v.emit(cluster.Propose{Command: c})
		v.planNot = now.Add(planAgain)
		v.planAt = v.planNot
	}
}

func numbersOf(nodes []cluster.NodeID) []uint32 {
	out := make([]uint32, len(nodes))
	for i, n := range nodes {
		out[i] = uint32(n)
	}
	return out
}

// missed counts as lost those whom the log knows and whom this process has never heard:
// what they owned when all stopped would wait for them for ever.
func (v *VClusters) missed(now time.Time) {
	for _, p := range v.decided.Members() {
		_, heard := v.peers[p.Node]
		if heard || p.Node == v.self() || p.Witness || p.Lost || p.State == fsm.Left || v.Lost(p.Node) {
			continue
		}
		v.losses[p.Node] = loss{process: cluster.ProcessID(p.Process), at: now, report: now.Add(unheardLoss + v.lostAfter())}
	}
}

// HandleEntitled says that our guardian holds our entitlement.
func (v *VClusters) HandleEntitled(now time.Time, s cluster.ScopeID, e cluster.Epoch) {
	v.scopeSet.HandleEntitled(now, s, e)
	v.considerNote()
}

// HandleAck takes a member's acknowledgement for a scope.
func (v *VClusters) HandleAck(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, seq uint64) {
	v.scopeSet.HandleAck(now, from, process, s, seq)
	v.considerNote()
}

// considerNote takes off the disk what was noted of virtual clusters that are held by
// others, too, by now; a Pair does so by itself.
func (v *VClusters) considerNote() {
	if !v.group() || v.quorum.Lost {
		return
	}
	off := false
	var top cluster.Epoch
	for _, id := range v.order {
		if v.noted[id] && v.scopes[id].slot.Covered() {
			v.noted[id], off = false, true
		}
		for _, t := range v.said[id].Owned {
			if top.Less(t.Epoch) {
				top = t.Epoch
			}
		}
	}
	if off {
		v.notes = append(v.notes, 0) // a virtual cluster here has another number
		v.emit(cluster.WriteNote{On: v.anyNoted(), Epoch: top})
	}
}

// miss notes whether a member lacks a virtual cluster, and tells of it.
func (v *VClusters) miss(id cluster.ScopeID, p *cluster.Peer, lacks bool) {
	at := slices.Index(v.missing[id], p.Node)
	switch {
	case lacks == (at >= 0):
		return
	case lacks:
		v.missing[id] = append(v.missing[id], p.Node)
	default:
		v.missing[id] = slices.Delete(v.missing[id], at, at+1)
	}
	var names []string
	for _, k := range v.missing[id] {
		names = append(names, v.peers[k].Name)
	}
	v.emit(cluster.Alarm{Name: v.alarmName(id, "configuration"), On: len(names) > 0,
		Text: fmt.Sprintf("%s does not have virtual cluster %d: it cannot succeed this node there", strings.Join(names, ", "), id)})
}
