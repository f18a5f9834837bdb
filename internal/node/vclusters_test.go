package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/ike/message"
)

// TestVirtualClustersRekeyWhileTheyMove: both sides of every tunnel rekey by their key
// lives, each virtual cluster moves by priority again and again, and now and then a gateway
// is killed. 24 virtual hours at full length.
func TestVirtualClustersRekeyWhileTheyMove(t *testing.T) {
	hours := 24
	if testing.Short() {
		hours = 2
	}
	w := newVWorld(t, 1)
	priority := [2]int{100, 200} // gw2's; gw1 has 200 and 100
	before := map[*vpeer]struct{ child, ike int }{}
	for _, p := range w.peers {
		before[p] = p.rekeyed
	}
	moves, kills := 0, 0
	for minute := range hours * 60 {
		w.pass(time.Minute)
		switch {
		case minute%60 == 59:
			o := w.gw[minute/60%2]
			o.kill()
			kills++
			w.pass(time.Second)
			o.boot()
			w.run(20*time.Second, "synchronised again", w.synchronised)
		case minute%5 == 0:
			id := 1 + minute/5%2
			from := w.owner(id)
			other := w.owner(3 - id)
			if from == nil || other == nil {
				t.Fatalf("minute %d: no owner", minute)
			}
			epoch := other.node.scopes[cluster.ScopeID(3-id)].epoch
			if priority[id-1] = 300 - priority[id-1]; from == w.gw[1] {
				priority[id-1] = 50
			} else {
				priority[id-1] = 250
			}
			w.gw[1].reload(priority[0], priority[1])
			w.run(20*time.Second, "moved", func() bool { o := w.owner(id); return o != nil && o != from && w.synchronised() })
			moves++
			if now := w.owner(3 - id); now != other || now.node.scopes[cluster.ScopeID(3-id)].epoch != epoch {
				t.Errorf("minute %d: the move of virtual cluster %d disturbed the other one", minute, id)
			}
		}
		if t.Failed() {
			return
		}
	}
	w.run(10*time.Second, "of one mind", w.agree)
	rekeys := func() (n int) {
		for _, p := range w.peers {
			n += p.rekeyed.ike - before[p].ike
		}
		return n
	}
	// One IKE SA a tunnel, one a rekey. One that is seconds old may not have been used.
	w.run(10*time.Minute, "an IKE SA a rekey", func() bool { return len(w.ikeSAs) == len(w.peers)+rekeys() })
	w.pass(time.Second)
	if w.inits > 0 {
		t.Errorf("%d IKE_SA_INIT after up", w.inits)
	}
	if w.syncs > 0 {
		t.Errorf("%d message ID syncs, though every takeover was covered", w.syncs)
	}
	for k, r := range w.requests {
		if r.answers == 0 {
			t.Errorf("%v %d of %s was never answered", r.kind, k.id, k.spis)
		}
		if r.differing {
			t.Errorf("%v %d of %s was answered in different ways", r.kind, k.id, k.spis)
		}
	}
	least := hours * 3600 / 600 * 3 / 4
	for _, p := range w.peers {
		c, i := p.rekeyed.child-before[p].child, p.rekeyed.ike-before[p].ike
		t.Logf("%s: %d Child SA rekeys, %d IKE SA rekeys", p.tunnel, c, i)
		if i < least || c < 2*least {
			t.Errorf("%s: too few rekeys", p.tunnel)
		}
	}
	t.Logf("%d moves, %d kills", moves, kills)
}

// onTheSecondNode is a world whose second virtual cluster was moved to gw2 by a change of
// its priority there, as where rekeys began to fail.
func onTheSecondNode(t *testing.T) *vworld {
	w := newVWorld(t, 7)
	w.gw[1].reload(100, 50) // both on gw1 first
	w.run(20*time.Second, "both on gw1", func() bool { return w.owner(1) == w.gw[0] && w.owner(2) == w.gw[0] && w.synchronised() })
	w.gw[1].reload(100, 250)
	w.run(20*time.Second, "the second on gw2", func() bool { return w.owner(1) == w.gw[0] && w.owner(2) == w.gw[1] && w.synchronised() })
	w.pass(5 * time.Second)
	w.inits, w.syncs, w.requests = 0, 0, map[vexchange]*vrequest{}
	return w
}

func (w *vworld) peer(tunnel string) *vpeer {
	for _, p := range w.peers {
		if p.tunnel == tunnel {
			return p
		}
	}
	w.t.Fatalf("no peer has %s", tunnel)
	return nil
}

// creates are the CREATE_CHILD_SA exchanges seen.
func (w *vworld) creates() (all []*vrequest) {
	for _, r := range w.requests {
		if r.kind == message.CreateChildSA {
			all = append(all, r)
		}
	}
	return all
}

// TestRekeysOfAVirtualClusterOnTheSecondNode replays how a cluster of another make lost its
// tunnels when one virtual cluster's primary was the second node.
func TestRekeysOfAVirtualClusterOnTheSecondNode(t *testing.T) {
	// There the owner took its own IKE SA for one that the other node had sent it, and
	// ignored the peer's request until that gave up.
	t.Run("the peer's rekey is answered at once", func(t *testing.T) {
		w := onTheSecondNode(t)
		p := w.peer("b-answers")
		was, sas := p.rekeyed, len(w.ikeSAs)
		p.do(func(n *Node) { n.Rekey(w.now, "gw", false) })
		w.run(time.Second, "rekeyed", func() bool { return p.rekeyed.child == was.child+1 && w.agree() })
		if c := w.creates(); len(c) != 1 || c[0].times != 1 || c[0].answers != 1 || w.inits > 0 || len(w.ikeSAs) != sas {
			t.Errorf("%d exchanges, %+v; %d IKE_SA_INIT, %d IKE SAs more", len(c), c, w.inits, len(w.ikeSAs)-sas)
		}
		p.do(func(n *Node) { n.Rekey(w.now, "gw", true) })
		w.run(time.Second, "IKE SA rekeyed", func() bool { return p.rekeyed.ike == was.ike+1 })
		for _, r := range w.creates() {
			if r.times != 1 || r.answers != 1 {
				t.Errorf("%+v", r)
			}
		}
	})
	// There the owner found no IKE SA for its own rekey, and negotiated from the beginning.
	t.Run("the owner's rekey uses the IKE SA that stands", func(t *testing.T) {
		w := onTheSecondNode(t)
		p := w.peer("b-begins")
		was, sas := p.rekeyed, len(w.ikeSAs)
		w.gw[1].do(func(n *VClusters) {
			if n.Rekey(w.now, "b-begins", false) != 1 {
				t.Error("nothing to rekey")
			}
		})
		w.gw[0].do(func(n *VClusters) {
			if n.Rekey(w.now, "b-begins", false) != 0 {
				t.Error("the standby rekeys")
			}
		})
		w.run(time.Second, "rekeyed", func() bool { return p.rekeyed.child == was.child+1 && w.agree() })
		if c := w.creates(); len(c) != 1 || c[0].times != 1 || c[0].answers != 1 || w.inits > 0 || len(w.ikeSAs) != sas {
			t.Errorf("%d exchanges, %+v; %d IKE_SA_INIT, %d IKE SAs more", len(c), c, w.inits, len(w.ikeSAs)-sas)
		}
	})
	// There each retransmission of the peer's request was answered by another message ID
	// sync, until the SA expired.
	t.Run("a retransmission is answered and begins no sync", func(t *testing.T) {
		w := onTheSecondNode(t)
		p := w.peer("b-answers")
		was := p.rekeyed
		lost := 0
		w.lost = func(from netip.Addr, h message.Header) bool {
			drop := h.Response && h.Exchange == message.CreateChildSA && from == netip.MustParseAddr("198.51.100.1") && lost < 3
			if drop {
				lost++
			}
			return drop
		}
		p.do(func(n *Node) { n.Rekey(w.now, "gw", false) })
		w.run(time.Minute, "rekeyed", func() bool { return p.rekeyed.child == was.child+1 && w.agree() })
		if c := w.creates(); len(c) != 1 || c[0].times != 4 || c[0].answers != 4 || c[0].differing {
			t.Errorf("%+v", c[0])
		}
		if w.syncs > 0 || w.inits > 0 {
			t.Errorf("%d message ID syncs, %d IKE_SA_INIT", w.syncs, w.inits)
		}
		for k, r := range w.requests {
			if r.answers == 0 {
				t.Errorf("%v %d unanswered", r.kind, k.id)
			}
		}
	})
	// There the owner's news came back from the other node and were applied.
	t.Run("an echo changes nothing", func(t *testing.T) {
		w := onTheSecondNode(t)
		p := w.peer("b-answers")
		p.do(func(n *Node) { n.Rekey(w.now, "gw", false) })
		w.run(time.Second, "rekeyed", w.agree)
		w.pass(time.Second)
		owner := w.gw[1]
		sas := len(owner.sas)
		echoed := 0
		for _, f := range w.gw[0].frames { // as gw2 sent them
			if f.scope != 2 || f.from != owner.id {
				continue
			}
			echoed++
			for _, from := range []struct {
				id      cluster.NodeID
				process cluster.ProcessID
			}{{owner.id, owner.process}, {w.gw[0].id, w.gw[0].process}} {
				stats := owner.node.scopes[2].replica.Stats()
				owner.do(func(n *VClusters) {
					if err := n.HandleFrame(w.now, from.id, from.process, 2, f.frame); err != nil {
						t.Errorf("an echo makes the stream begin again, or a log line each: %v", err)
					}
				})
				if owner.node.scopes[2].replica.Stats().Echoes != stats.Echoes+1 {
					t.Errorf("a frame of its own, as from node %d, was taken", from.id)
				}
			}
		}
		if echoed == 0 {
			t.Fatal("there was nothing to echo")
		}
		if len(owner.sas) != sas || w.owner(2) != owner || !w.agree() {
			t.Error("the echo changed something")
		}
		was := p.rekeyed
		p.do(func(n *Node) { n.Rekey(w.now, "gw", false) })
		w.run(time.Second, "rekeyed once more", func() bool { return p.rekeyed.child == was.child+1 && w.agree() })
		for _, l := range w.logs {
			if strings.Contains(l, "ignoring message") {
				t.Error(l)
			}
		}
	})
}

// TestAVirtualClusterNodeShutsDown hands over what it owns, gives up at once what it stands
// by for, and ends; the other node's virtual cluster stays where it is.
func TestAVirtualClusterNodeShutsDown(t *testing.T) {
	w := newVWorld(t, 3)
	w.gw[0].do(func(n *VClusters) { n.Shutdown(w.now) })
	if _, held := w.gw[0].entitled[2]; held {
		t.Error("gw2 waits for a standby that is about to end")
	}
	w.run(3*time.Second, "ended", func() bool { return !w.gw[0].alive })
	w.run(time.Second, "both on gw2", func() bool { return w.owner(1) == w.gw[1] && w.owner(2) == w.gw[1] })
	if s := w.gw[1].node.scopes[1].pair.Status(w.now); !s.LastCovered || !strings.Contains(s.LastReason, "handed over") {
		t.Errorf("virtual cluster 1: %+v", s)
	}
	w.pass(time.Minute)
	if n := w.gw[1].node.scopes[2].pair.Status(w.now).Takeovers; n != 1 || w.owner(2) != w.gw[1] {
		t.Errorf("virtual cluster 2 has changed hands: %d takeovers", n)
	}
	w.gw[0].boot()
	w.run(20*time.Second, "back", func() bool { return w.owner(1) == w.gw[0] && w.owner(2) == w.gw[1] && w.synchronised() })
	w.run(time.Second, "of one mind", w.agree)
	if w.inits > 0 {
		t.Errorf("%d IKE_SA_INIT", w.inits)
	}
}

// TestTheNoteOfVirtualClusters: one file says that this node went on alone with any of
// them, until each is covered again.
func TestTheNoteOfVirtualClusters(t *testing.T) {
	w := newVWorld(t, 4)
	if w.gw[0].note || w.gw[1].note {
		t.Fatal("a note, though everything is covered")
	}
	w.gw[0].end(cluster.LossSilence, detectDelay)
	w.run(time.Second, "both on gw2", func() bool { return w.owner(1) == w.gw[1] && w.owner(2) == w.gw[1] })
	w.pass(time.Second)
	if !w.gw[1].note {
		t.Fatal("no note, though the other node may have gone on")
	}
	w.gw[0].boot()
	covered := func(id cluster.ScopeID) bool {
		return w.gw[0].entitled[id] != (cluster.Epoch{}) || w.owner(int(id)) == w.gw[0]
	}
	w.run(20*time.Second, "covered again", func() bool {
		if !w.gw[1].note && !(covered(1) && covered(2)) {
			t.Fatal("the note has gone, and not everything is covered")
		}
		return w.synchronised()
	})
	w.pass(time.Second)
	if w.gw[0].note || w.gw[1].note {
		t.Error("the note stays")
	}
	if w.inits > 0 {
		t.Errorf("%d IKE_SA_INIT", w.inits)
	}
}

// TestAVirtualClusterThatTheOtherNodeLacks is an alarm, and is owned here.
func TestAVirtualClusterThatTheOtherNodeLacks(t *testing.T) {
	w := newVWorld(t, 5)
	g := w.gw[0]
	g.do(func(n *VClusters) {
		p := n.peers[2]
		p.Owned, p.EntitledTo, p.VClusters = nil, nil, p.VClusters[:1]
		n.HandlePeer(w.now, p)
	})
	found := false
	for _, l := range w.alarms {
		found = found || strings.Contains(l, "vcluster 2: configuration") && strings.Contains(l, "gw2 does not have virtual cluster 2")
	}
	if !found {
		t.Errorf("no alarm: %v", w.alarms)
	}
}
