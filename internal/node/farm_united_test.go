package node

import (
	"errors"
	"math/rand"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// carrier is the scope that carries a tunnel, and the tunnel's Child SA.
func (w *farmWorld) carrier() (n *Node, sa xfrm.SA) {
	w.t.Helper()
	for _, m := range w.members[1:] {
		for _, x := range m.sas {
			if m.active[x.Scope] {
				n, sa = m.farm.scopes[cluster.ScopeID(x.Scope)], x
			}
		}
	}
	if n == nil {
		w.t.Fatal("nobody carries the tunnel")
	}
	return n, sa
}

// What the other side of a split brings back is installed when the sync set has
// acknowledged it. A member that enters the sync set meanwhile changes nothing: the SA
// goes on above what the other side used.
func TestUnitedSAKeepsItsBoundsWhileAMemberEnters(t *testing.T) {
	w := upFarm(t, 1, 3, 1)
	n, sa := w.carrier()
	const used = 200
	n.remove(ike.Remove{SPIIn: sa.SPIIn})
	n.unite(w.now, statesync.UniteReceived{From: 2, Bounds: []xfrm.Bound{{SPIIn: sa.SPIIn, Dir: xfrm.Outbound, N: used}, {SPIIn: sa.SPIIn, Dir: xfrm.Inbound, N: used}}})
	n.journalEffect(w.now, statesync.Entered{Node: 3})
	n.install(ike.Install{SA: sa.ChildSA})
	for {
		e, ok := n.Poll()
		if !ok {
			t.Fatal("nothing was installed")
		}
		if x, ok := e.(Install); ok {
			if x.SA.Ceiling < used || x.SA.Fence < used {
				t.Errorf("ceiling %d and fence %d, after %d were used", x.SA.Ceiling, x.SA.Fence, used)
			}
			return
		}
	}
}

// What the peer has ended on this side does not come back from the other side of a split,
// not even as the exchange that began it, before the peer had chosen its SPI.
func TestUnitedSAsThatThePeerEndedStayAway(t *testing.T) {
	in := []statesync.Entry{{SPIs: ipsec.IKESPIs{I: 1, R: 2}}, {SPIs: ipsec.IKESPIs{I: 3}}, {SPIs: ipsec.IKESPIs{I: 3, R: 9}}, {SPIs: ipsec.IKESPIs{I: 5}}}
	out := living(in, []ipsec.IKESPIs{{I: 1, R: 2}, {I: 3, R: 4}})
	if len(out) != 2 || out[0].SPIs != in[2].SPIs || out[1].SPIs != in[3].SPIs {
		t.Errorf("%v are left of %v", out, in)
	}
}

// Whoever may own after knows what the peer has ended: who stood by, and who was copied to
// since. Only so does it stay away when a member comes back that has not heard of it.
func TestEveryStandbyKnowsWhatThePeerEnded(t *testing.T) {
	w := upFarm(t, 1, 4, 1)
	var id cluster.ScopeID
	var owner *farmer
	for _, m := range w.members[1:] {
		for _, x := range m.sas {
			if m.active[x.Scope] {
				owner, id = m, cluster.ScopeID(x.Scope)
			}
		}
	}
	dead := owner.farm.scopes[id].ike.SPIs()
	w.clients[0].do(func(n *Node) { n.Clear(w.now, "") })
	knows := func(m *farmer) bool {
		n := m.farm.scopes[id]
		return n != nil && len(dead) == 1 && slices.Contains(n.journal.Tombstones(), dead[0])
	}
	w.run(5*time.Second, "ended", func() bool { return knows(owner) })
	w.pass(time.Second)
	s, _ := owner.state.Scope(id)
	for _, k := range s.Sync {
		if m := w.members[k]; !knows(m) {
			t.Errorf("member %d stands by and does not know", m.id)
		}
	}
	old := s.Sync
	w.kill(w.members[old[0]])
	w.run(30*time.Second, "copied to another", func() bool {
		s, _ = owner.state.Scope(id)
		return len(s.Sync) == len(old) && !slices.Contains(s.Sync, old[0])
	})
	for _, k := range s.Sync {
		if m := w.members[k]; !knows(m) {
			t.Errorf("member %d was copied to and does not know", m.id)
		}
	}
}

// Slots that come move static tunnels to others; whose they were hears of it also where
// no new slot concerns it, and does not hold them any longer.
func TestStaticTunnelsFollowTheSlots(t *testing.T) {
	w := upFarm(t, 2, 4, 1)
	m := w.members[1]
	state := w.members[1].state.Clone()
	before := m.farm.scopes[m.farm.order[0]].cfg
	m.do(func(f *Farm) { f.HandleDecided(w.now, fsm.New()) })
	if m.farm.scopes[m.farm.order[0]].cfg == before {
		t.Error("other slots, and the configuration is as it was")
	}
	before = m.farm.scopes[m.farm.order[0]].cfg
	m.do(func(f *Farm) { f.HandleDecided(w.now.Add(time.Millisecond), state) })
	if m.farm.scopes[m.farm.order[0]].cfg == before {
		t.Error("the slots are back, and the configuration is as it was")
	}
}

// An owner has begun to copy to a member, and gives that up: the member has nothing to do
// with the slot any more, nobody tells it, and what has come does not stay in its data plane.
func TestACopyThatIsGivenUpIsDropped(t *testing.T) {
	w := upFarm(t, 1, 5, 1)
	var owner, other *farmer
	var sa xfrm.SA
	for _, m := range w.members[1:] {
		for _, x := range m.sas {
			if m.active[x.Scope] {
				owner, sa = m, x
			}
		}
	}
	id := cluster.ScopeID(sa.Scope)
	s, _ := owner.state.Scope(id)
	for _, m := range w.members[1:] {
		if !m.farm.concerns(s) {
			other = m
		}
	}
	w.pass(5 * time.Second) // what it was copied in the beginning is dropped
	owner.do(func(f *Farm) {
		f.with(id, func(n *Node) {
			n.journal.Join(w.now, other.id, other.process, toSync(n.ike.Snapshot(w.now)), n.bounds())
			n.pump(w.now)
			n.journal.Leave(w.now, other.id)
		})
	})
	holds := func() bool { _, ok := other.sas[sa.SPIIn]; return ok }
	w.run(time.Second, "begun", holds)
	w.run(time.Minute, "dropped", func() bool { return !holds() })
	if s, _ := owner.state.Scope(id); other.farm.concerns(s) {
		t.Fatal("setup: the slot was given to the member")
	}
}

// An owner was told by the other side of a split what that did, and gives way before its
// sync set has heard of it: the owner after it gets that from this one, for who told it does
// not tell it twice. What the sync set has acknowledged is not told again.
func TestAnOwnerThatGivesWayTellsWhatItWasTold(t *testing.T) {
	for name, acknowledged := range map[string]bool{"not acknowledged": false, "acknowledged": true} {
		t.Run(name, func(t *testing.T) {
			w := upFarm(t, 1, 3, 1)
			n, sa := w.carrier()
			to := w.members[n.authority.SyncSet()[0]]
			n.unite(w.now, statesync.UniteReceived{From: 9, Bounds: []xfrm.Bound{{SPIIn: sa.SPIIn, Dir: xfrm.Inbound, N: 200}}})
			n.pump(w.now)
			for _, f := range framesOf(n) {
				if acknowledged {
					n.HandleAck(w.now, f.Node, w.members[f.Node].process, f.Seq)
				}
			}
			n.HandlePeer(w.now, cluster.Peer{Node: to.id, Process: to.process, Running: true, Role: cluster.RoleOwner,
				Epoch: cluster.Epoch{Counter: n.epoch.Counter + 9<<fsm.LocalBits, Node: to.id}, Links: []cluster.Link{{Addr: "172.31.1.9"}}})
			if n.owner {
				t.Fatal("setup: it owns still")
			}
			told := uint64(0)
			for _, f := range framesOf(n) {
				x := &syncpb.Frame{}
				if err := proto.Unmarshal(f.Frame, x); err != nil {
					t.Fatal(err)
				}
				for _, e := range x.Events {
					told = max(told, slices.Max(append(e.GetUnite().GetBounds().GetN(), 0)))
				}
			}
			if acknowledged != (told == 0) || !acknowledged && told < 200 {
				t.Errorf("the owner after it was told of the bound %d", told)
			}
		})
	}
}

// framesOf are the frames that a scope wants sent.
func framesOf(n *Node) (out []statesync.SendFrame) {
	for {
		e, ok := n.Poll()
		if !ok {
			return out
		}
		if f, is := e.(statesync.SendFrame); is {
			out = append(out, f)
		}
	}
}

// A packet has just asked for a bound when the other side's state comes: what that side used
// below must be refused at once, and not when everybody has acknowledged.
func TestUnitedBoundBelowOneThatWasAskedFor(t *testing.T) {
	w := upFarm(t, 1, 3, 1)
	n, sa := w.carrier()
	n.want(xfrm.Bound{SPIIn: sa.SPIIn, Dir: xfrm.Inbound, N: 20})
	n.unite(w.now, statesync.UniteReceived{From: 2, Bounds: []xfrm.Bound{{SPIIn: sa.SPIIn, Dir: xfrm.Inbound, N: 19}}})
	for {
		e, ok := n.Poll()
		if _, active := e.(Activate); !ok || active {
			t.Fatal("the SA goes on as if the other side had used nothing")
		}
		if b, ok := e.(SetBounds); ok {
			if len(b.Bounds) != 1 || b.Bounds[0].N < 19 {
				t.Errorf("%v", b.Bounds)
			}
			return
		}
	}
}

// One side of a split has handed over, or is about to, when what the other side did comes to
// it: it does not take it, and its sender sees that by the acknowledgement that is missing.
// The successor would never hear of it.
func TestWhoHandsOverTakesNothingOfTheOtherSide(t *testing.T) {
	for name, way := range map[string]func(*Node){
		"owner":        func(*Node) {},
		"handing over": func(n *Node) { n.handing = &cluster.HandOver{} },
		"no owner":     func(n *Node) { n.owner = false },
	} {
		t.Run(name, func(t *testing.T) {
			w := upFarm(t, 1, 3, 1)
			n, sa := w.carrier()
			way(n)
			was := n.sas[sa.SPIIn].fence
			const other = 77 // a process
			j := statesync.NewScopeJournal(cluster.ScopeID(n.scope), other, statesync.NewLedger(rand.New(rand.NewSource(1))), queueLimit)
			j.Unite(w.now, 9, n.opt.Process, nil, []xfrm.Bound{{SPIIn: sa.SPIIn, Dir: xfrm.Inbound, N: was + 200}}, nil)
			e, _ := j.Poll()
			f, ok := e.(statesync.SendFrame)
			if !ok {
				t.Fatalf("setup: %v", e)
			}
			err := n.HandleFrame(w.now, 9, other, f.Frame)
			acknowledged := false
			for {
				e, ok := n.Poll()
				if !ok {
					break
				}
				_, is := e.(statesync.SendAck)
				acknowledged = acknowledged || is
			}
			takes := name == "owner"
			if acknowledged != takes || (err == nil) != takes || errors.Is(err, statesync.ErrGap) || (n.sas[sa.SPIIn].fence > was) != takes {
				t.Errorf("acknowledged %v (%v), fence %d after %d", acknowledged, err, n.sas[sa.SPIIn].fence, was)
			}
		})
	}
}

// Nobody held what was acknowledged when a slot was given to a member, or it had nothing to
// do with it any more: it forgot what it had. Another one that was away brings the SA back,
// and knows of less than this process has used. A member that enters meanwhile changes nothing.
func TestForgottenSAComesBackAboveWhatWasUsed(t *testing.T) {
	for name, forget := range map[string]func(*farmWorld, *Node){
		"given": func(w *farmWorld, n *Node) { n.own(w.now, cluster.Own{Epoch: n.epoch.Next(n.epoch.Node)}) },
		"spare": func(w *farmWorld, n *Node) { w.members[n.epoch.Node].farm.drop(w.now, cluster.ScopeID(n.scope)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := upFarm(t, 1, 3, 1)
			n, sa := w.carrier()
			const used = 300
			c := n.sas[sa.SPIIn]
			c.ceiling, c.fence = used, used
			n.disown(w.now, cluster.Disown{})
			forget(w, n)
			if n.sas[sa.SPIIn] != nil {
				t.Fatal("setup: it is not forgotten")
			}
			n.owner = true
			n.journalEffect(w.now, statesync.Entered{Node: 3})
			n.unite(w.now, statesync.UniteReceived{From: 9, Bounds: []xfrm.Bound{{SPIIn: sa.SPIIn, Dir: xfrm.Outbound, N: 64}, {SPIIn: sa.SPIIn, Dir: xfrm.Inbound, N: 64}}})
			n.install(ike.Install{SA: sa.ChildSA})
			if c := n.sas[sa.SPIIn]; c.ceiling < used || c.fence < used {
				t.Errorf("ceiling %d and fence %d, after %d were used", c.ceiling, c.fence, used)
			}
		})
	}
}
