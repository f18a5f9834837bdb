package raftauth

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"tandem/cluster/fsm"
)

// newWitnessed is a running group of four members and a witness, number 5.
func newWitnessed(t *testing.T) *group {
	g := newGroup(t, 5, 0)
	for n := fsm.NodeID(1); n <= 5; n++ {
		g.start(n, func(o *Options) { o.Witness = n == 5 })
	}
	g.within(5*time.Second, "all have joined", g.allJoined)
	return g
}

// loseLeader kills the leader and so many other members that are no witness, and tells
// those who are left.
func (g *group) loseLeader(others int) (old fsm.NodeID) {
	g.within(5*time.Second, "a member leads", func() bool { l := g.leader(0); return l != 0 && l != 5 })
	old = g.leader(0)
	dead := map[fsm.NodeID]bool{old: true}
	for _, n := range g.voters {
		if n != old && n != 5 && len(dead) <= others {
			dead[n] = true
		}
	}
	for n := range dead {
		g.kill(n)
	}
	for n, node := range g.nodes {
		if n != 5 { // a witness hears no heartbeats
			node.Lost(func(n fsm.NodeID) bool { return dead[n] })
		}
	}
	return old
}

// Two of four members die, the leader among them, and heartbeats say so: with a witness
// there is another leader long before Raft would have missed the one before.
func TestALeaderIsHeardToBeLost(t *testing.T) {
	for range 8 { // whoever led
		synctest.Test(t, func(t *testing.T) {
			g := newWitnessed(t)
			defer g.close()
			old := g.loseLeader(1)
			took := g.within(time.Second, "another leads", func() bool { l := g.leader(0); return l != 0 && l != old })
			if took > HeartbeatTimeout/2 {
				t.Errorf("another leader after %v", took)
			}
		})
	}
}

// Where no majority is left nobody begins an election: a term that it raised in vain
// would depose a healthy leader when the cut heals.
func TestAMinorityDoesNotCampaign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newWitnessed(t)
		defer g.close()
		g.loseLeader(2)
		g.throughout(HeartbeatTimeout/2, "two members are left, and both follow", func() bool {
			for _, n := range g.nodes {
				if n.r.State() != raft.Follower {
					return false
				}
			}
			return len(g.nodes) == 2
		})
	})
}
