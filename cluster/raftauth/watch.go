package raftauth

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// watch looks at the disk and for the leader.
func (n *Node) watch() {
	defer n.wg.Done()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	led, has, stalled, yielding := time.Now(), true, false, false
	yielded := make(chan error, 1)
	for {
		select {
		case <-n.ctx.Done():
			return
		case err := <-yielded:
			yielding = false
			if err != nil {
				n.opt.Log.Warn("HA handing over failed: silent, so that another is elected", "error", err)
			}
			continue
		case <-tick.C:
		}
		now := time.Now()
		if n.Leader() != 0 {
			led = now
		}
		if h := now.Sub(led) < quorumGrace; h != has {
			has = h
			n.m.mu.Lock()
			stop := n.m.m.StopOnQuorumLoss()
			n.m.mu.Unlock()
			n.opt.Log.Warn("HA quorum", "has", h, "stop", stop)
			n.opt.Notify(Event{Quorum: &Quorum{Has: h, Stop: stop && !h}})
		}
		if s := n.disk.busy() > n.opt.DiskPatience; s != stalled {
			stalled = s
			n.opt.Log.Warn("HA disk of the log", "stalled", s)
			n.opt.Notify(Event{Disk: &DiskState{Stalled: s}})
		}
		if worst := time.Duration(n.disk.worst.Swap(0)); worst > n.opt.DiskPatience && n.r.State() == raft.Leader && !yielding {
			n.opt.Log.Warn("HA the leader's disk is slow: handing over", "took", worst)
			yielding = true
			go func() { yielded <- n.yield() }()
		}
	}
}

// Lost says which members' heartbeats have ended. If the leader is among them, another is
// elected at once, long before Raft would miss it, where a majority of voters is left: a
// witness sends no heartbeats and counts as there. Candidates begin one after another in
// the order of their numbers, or they would split the votes.
func (n *Node) Lost(lost func(fsm.NodeID) bool) {
	l := n.Leader()
	if l == 0 || l == n.opt.Self || !lost(l) || !slices.Contains(n.opt.Voters, n.opt.Self) {
		return
	}
	m, term, left, before := n.View(), n.r.CurrentTerm(), 0, 0
	for _, v := range n.opt.Voters {
		if v != n.opt.Self && lost(v) {
			continue
		}
		left++
		if p, _ := m.Member(v); v < n.opt.Self && !p.Witness {
			before++
		}
	}
	if 2*left <= len(n.opt.Voters) {
		return
	}
	time.AfterFunc(time.Duration(before)*campaignAfter, func() {
		if n.ctx.Err() == nil && n.Leader() == l && n.r.State() == raft.Follower && n.r.CurrentTerm() == term { // nobody began before
			n.opt.Log.Info("HA the leader is lost", "leader", l)
			n.gate.campaign()
		}
	})
}

// yield hands the lead over, or falls silent if that fails: a leader that is busy
// with its disk can be too late for its own handover.
func (n *Node) yield() error {
	err := wait(n.r.LeadershipTransfer(), 2*HeartbeatTimeout)
	if err != nil && n.r.State() == raft.Leader {
		n.disk.mute(4 * HeartbeatTimeout)
	}
	return err
}

// serve does a member's part: forms the first group, joins, and as leader brings
// the group and the plan in line with what was decided.
func (n *Node) serve() {
	defer n.wg.Done()
	tick := time.NewTicker(HeartbeatTimeout)
	defer tick.Stop()
	var notBefore time.Time // of the next attempt to join
	patience := HeartbeatTimeout
	var led time.Time // since when a witness leads, or when it last tried to hand over
	for {
		// What was refused is decided, too, and so a change of the state: after a
		// refusal only time may bring the next attempt, not the change.
		kick := n.kick
		if n.refused {
			kick, n.refused = nil, false
		}
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		case <-kick:
		}
		if n.fresh && !n.admitted.Load() {
			n.form()
		}
		switch {
		case n.Joined():
			patience = HeartbeatTimeout
		case !n.removed() && !time.Now().Before(notBefore):
			if n.join() {
				notBefore = time.Now().Add(patience)
				patience = min(2*patience, maxPatience)
			}
		}
		if n.r.State() != raft.Leader {
			led = time.Time{}
			continue
		}
		n.lead()
		if n.opt.Witness {
			led = n.handOver(led, time.Now())
		}
	}
}

// handOver gives the lead to a member as soon as one follows: a witness hears no
// heartbeats, so as leader it could report no loss. Raft picks who has the most of the
// log; that is nobody dead once an entry of this term is committed.
func (n *Node) handOver(since, now time.Time) time.Time {
	switch {
	case since.IsZero():
		return now.Add(HeartbeatTimeout - witnessLeads)
	case now.Sub(since) < witnessLeads || n.r.CommitIndex() < n.r.LastIndex():
		return since
	}
	n.logged("hand over to a member", n.r.LeadershipTransfer())
	return now
}

// form makes the first group: only when all voters have been heard and no disk
// knows of a log. A voter that has lost its disk must not found a second one.
func (n *Node) form() {
	if !slices.Contains(n.opt.Voters, n.opt.Self) || n.Leader() != 0 || n.r.LastIndex() > 0 {
		return
	}
	var c raft.Configuration
	for _, v := range n.opt.Voters {
		if v != n.opt.Self {
			a, err := n.call(n.ctx, v, &clusterpb.RaftCall{})
			if err != nil {
				return
			}
			if !a.GetBlank() {
				return
			}
		}
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: serverID(v), Address: Address(v)})
	}
	if err := wait(n.r.BootstrapCluster(c), commitTimeout); err != nil {
		n.opt.Log.Warn("HA the first group cannot be formed", "error", err)
		return
	}
	n.opt.Log.Info("HA first group formed", "voters", n.opt.Voters)
	n.admitted.Store(true)
}

// blank says that this member's log holds no decision: at most the first group, which
// has not met yet.
func (n *Node) blank() bool {
	n.m.mu.Lock()
	index := n.m.index
	n.m.mu.Unlock()
	return index == 0 && n.r.LastIndex() <= 1 && n.Leader() == 0
}

// removed says whether an administrator removed this very process.
func (n *Node) removed() bool {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	p, ok := n.m.m.Member(n.opt.Self)
	return ok && p.State == fsm.Left && p.Process == n.opt.Process
}

// join says whether it was refused: then there is no haste.
func (n *Node) join() (refused bool) {
	c := &clusterpb.Command{What: &clusterpb.Command_AddMember{AddMember: &clusterpb.AddMember{
		Node: uint32(n.opt.Self), Name: n.opt.Name, Witness: n.opt.Witness || n.opt.Aside, MinVersion: n.opt.MinVersion, MaxVersion: n.opt.MaxVersion,
		Process: n.opt.Process, Store: n.store, Floor: n.opt.Floor, Features: n.opt.Site.Features()}}}
	_, refused = n.try(c)
	return refused
}

// try proposes what will be proposed again if it does not come about.
func (n *Node) try(c *clusterpb.Command) (ok, refused bool) {
	n.proposing.Lock()
	defer n.proposing.Unlock()
	n.number(c)
	r, err := n.attempt(n.ctx, fsm.Encode(c))
	if err == nil && r.Code == fsm.Superseded && r.Value >= n.life {
		n.life, n.seq = r.Value+1, 0
		err = setUint(n.opt.Disk.Stable, keyLife, n.life)
	}
	if err != nil {
		n.refused = true
		return false, false
	}
	n.refused = n.refused || !r.OK()
	if !r.OK() && r.Code != fsm.Superseded {
		n.opt.Log.Warn("HA refused", "command", c.String(), "why", r.Why)
	}
	return r.OK(), !r.OK() && r.Code != fsm.Superseded
}

// lead: the group follows what was decided. Nobody is ever taken out because it is
// slow or silent; only RemoveMember does that.
func (n *Node) lead() {
	m := n.View()
	f := n.r.GetConfiguration()
	if wait(f, commitTimeout) != nil {
		return
	}
	group := map[fsm.NodeID]raft.ServerSuffrage{}
	for _, s := range f.Configuration().Servers {
		group[nodeOf(s.ID)] = s.Suffrage
	}
	lowest := ^uint32(0)
	for _, p := range m.Members() {
		has, in := group[p.Node]
		switch {
		case p.State == fsm.Left:
			if in && p.Node != n.opt.Self {
				n.logged("remove a member", n.r.RemoveServer(serverID(p.Node), 0, commitTimeout))
			}
			continue
		case p.Voter && (!in || has != raft.Voter):
			n.logged("promote a voter", n.r.AddVoter(serverID(p.Node), Address(p.Node), 0, commitTimeout))
		case !in:
			n.logged("add a member", n.r.AddNonvoter(serverID(p.Node), Address(p.Node), 0, commitTimeout))
		case !p.Voter && slices.Contains(n.opt.Voters, p.Node):
			n.try(&clusterpb.Command{What: &clusterpb.Command_PromoteVoter{PromoteVoter: &clusterpb.PromoteVoter{Node: uint32(p.Node)}}})
		}
		lowest = min(lowest, p.MaxVersion)
	}
	if lowest != ^uint32(0) && lowest > m.Version() {
		n.try(&clusterpb.Command{What: &clusterpb.Command_SetVersion{SetVersion: &clusterpb.SetVersion{Version: m.Version() + 1}}})
	}
	if n.opt.Standbys > 0 {
		for _, c := range m.Plan(n.opt.Standbys) {
			n.try(proto.CloneOf(c))
		}
	}
}

func (n *Node) logged(what string, f raft.Future) {
	if err := wait(f, commitTimeout); err != nil {
		n.opt.Log.Warn("HA cannot "+what, "error", err)
	}
}
