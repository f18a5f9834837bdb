package raftauth

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// group is a farm in fake time: real Raft over transports and disks in memory.
type group struct {
	t        *testing.T
	voters   []fsm.NodeID
	members  []fsm.NodeID
	standbys int
	mu       sync.Mutex
	nodes    map[fsm.NodeID]*Node
	trans    map[fsm.NodeID]*raft.InmemTransport
	disks    map[fsm.NodeID]*slowDisk
	cut      map[fsm.NodeID]int
	events   map[fsm.NodeID][]Event
	process  uint64
}

// slowDisk is a disk that can be made to hang.
type slowDisk struct {
	*Disk
	raft.LogStore
	hang  atomic.Pointer[chan struct{}]
	delay atomic.Int64
}

func (d *slowDisk) StoreLogs(ls []*raft.Log) error {
	if c := d.hang.Load(); c != nil {
		<-*c
	}
	if slow := time.Duration(d.delay.Load()); slow > 0 {
		<-time.After(slow) // the disk's own time, which is fake
	}
	return d.LogStore.StoreLogs(ls)
}

func newGroup(t *testing.T, voters, others int) *group {
	g := &group{t: t, nodes: map[fsm.NodeID]*Node{}, trans: map[fsm.NodeID]*raft.InmemTransport{}, disks: map[fsm.NodeID]*slowDisk{},
		cut: map[fsm.NodeID]int{}, events: map[fsm.NodeID][]Event{}}
	for n := fsm.NodeID(1); int(n) <= voters+others; n++ {
		if int(n) <= voters {
			g.voters = append(g.voters, n)
		}
		g.members = append(g.members, n)
		g.wipe(n)
	}
	return g
}

// wipe gives a member a new disk.
func (g *group) wipe(n fsm.NodeID) {
	d := MemoryDisk()
	g.disks[n] = &slowDisk{Disk: d, LogStore: d.Log}
	d.Log = g.disks[n]
}

func (g *group) start(n fsm.NodeID, change ...func(*Options)) *Node {
	g.t.Helper()
	_, trans := raft.NewInmemTransportWithTimeout(Address(n), 500*time.Millisecond)
	g.mu.Lock()
	g.trans[n], g.events[n] = trans, nil
	g.process++
	g.connect()
	g.mu.Unlock()
	o := Options{Self: n, Name: fmt.Sprintf("gw%d", n), Process: g.process, Voters: g.voters, Members: g.members, Standbys: g.standbys,
		Disk: g.disks[n].Disk, Transport: trans, Peers: &caller{g, n}, Notify: func(e Event) {
			g.mu.Lock()
			defer g.mu.Unlock()
			if e.Changed == nil {
				g.events[n] = append(g.events[n], e)
			}
		}}
	for _, f := range change {
		f(&o)
	}
	node, err := New(o)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.nodes[n] = node
	g.mu.Unlock()
	return node
}

// connect lets those reach each other who are in one part.
func (g *group) connect() {
	for a, x := range g.trans {
		x.DisconnectAll()
		for b, y := range g.trans {
			if g.cut[a] == g.cut[b] {
				x.Connect(Address(b), y)
			}
		}
	}
}

func (g *group) partition(part int, nodes ...fsm.NodeID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range nodes {
		g.cut[n] = part
	}
	g.connect()
}

// kill ends a member without its having a say.
func (g *group) kill(n fsm.NodeID) {
	g.mu.Lock()
	node := g.nodes[n]
	delete(g.nodes, n)
	delete(g.trans, n)
	g.connect()
	g.mu.Unlock()
	node.cancel()
	node.r.Shutdown().Error()
	node.wg.Wait()
	node.gate.Close()
}

func (g *group) close() {
	for n := range g.nodes {
		g.kill(n)
	}
}

type caller struct {
	g    *group
	self fsm.NodeID
}

func (c *caller) Call(ctx context.Context, to fsm.NodeID, q *clusterpb.RaftCall) (*clusterpb.RaftAnswer, error) {
	c.g.mu.Lock()
	node, ok := c.g.nodes[to]
	ok = ok && c.g.cut[to] == c.g.cut[c.self]
	c.g.mu.Unlock()
	if !ok {
		return nil, errors.New("unreachable")
	}
	return node.Answer(c.self, q), nil
}

// throughout looks again and again, for a span of fake time, that something is so.
func (g *group) throughout(d time.Duration, what string, so func() bool) {
	g.t.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for start := time.Now(); time.Since(start) <= d; <-look.C {
		if !so() {
			g.t.Fatalf("no longer after %v: %s", time.Since(start), what)
		}
	}
}

// kept says that a member's disk holds the state as it is known there.
func (g *group) kept(n fsm.NodeID) bool {
	index, _ := g.nodes[n].m.marshal()
	b, err := stable(g.disks[n].Stable, keyState)
	return err == nil && len(b) >= 8 && binary.BigEndian.Uint64(b) == index
}

// within waits in fake time until something is so, and says how long it took.
func (g *group) within(d time.Duration, what string, so func() bool) time.Duration {
	g.t.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	start := time.Now()
	for ; !so(); <-look.C {
		if time.Since(start) > d {
			g.t.Fatalf("not within %v: %s", d, what)
		}
	}
	return time.Since(start)
}

// leader is whom a majority of the running members calls so, among those in a part.
func (g *group) leader(part int) fsm.NodeID {
	g.mu.Lock()
	defer g.mu.Unlock()
	for n, node := range g.nodes {
		if g.cut[n] == part && node.r.State() == raft.Leader && wait(node.r.VerifyLeader(), HeartbeatTimeout) == nil {
			return n
		}
	}
	return 0
}

func (g *group) allJoined() bool {
	for _, node := range g.nodes {
		if !node.Joined() {
			return false
		}
	}
	return true
}

// same: all running members have one state.
func (g *group) same() bool {
	var first []byte
	for _, node := range g.nodes {
		_, b := node.m.marshal()
		if first == nil {
			first = b
		} else if !bytes.Equal(first, b) {
			return false
		}
	}
	return true
}

func (g *group) propose(n fsm.NodeID, c *clusterpb.Command) fsm.Result {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 5*time.Second)
	defer cancel()
	r, err := g.nodes[n].Propose(ctx, c)
	if err != nil {
		g.t.Fatalf("%v: %v", c, err)
	}
	return r
}

func drain(n fsm.NodeID, on bool) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_Drain{Drain: &clusterpb.Drain{Node: uint32(n), On: on}}}
}

func (g *group) startAll() {
	for _, n := range g.members {
		g.start(n)
	}
	g.within(5*time.Second, "all have joined", g.allJoined)
	g.within(time.Second, "one state", g.same)
}

func (g *group) other(not fsm.NodeID) fsm.NodeID {
	for _, n := range g.voters {
		if n != not && g.nodes[n] != nil {
			return n
		}
	}
	g.t.Fatal("nobody else")
	return 0
}

func TestALeaderIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 3, 1)
		defer g.close()
		g.standbys = 2
		g.startAll()
		g.within(5*time.Second, "slots are assigned", func() bool { return len(g.nodes[4].View().Scopes()) == 32 })
		old := g.leader(0)
		g.kill(old)
		took := g.within(2*time.Second, "another leads", func() bool { l := g.leader(0); return l != 0 && l != old })
		t.Logf("another leader after %v", took)
		// A non-voter proposes, through whoever leads by now.
		if r := g.propose(4, drain(4, true)); r.Code != fsm.Done {
			t.Fatalf("%+v", r)
		}
		g.start(old)
		g.within(5*time.Second, "it is back with its log", func() bool { return g.allJoined() && g.same() })
		if m, _ := g.nodes[old].View().Member(4); m.State != fsm.Draining {
			t.Errorf("%+v", m)
		}
	})
}

func TestQuorumIsLostAndHeals(t *testing.T) {
	for _, stop := range []bool{false, true} {
		t.Run(fmt.Sprintf("stop=%v", stop), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t, 3, 0)
				defer g.close()
				g.startAll()
				g.propose(1, &clusterpb.Command{What: &clusterpb.Command_SetQuorumLoss{SetQuorumLoss: &clusterpb.SetQuorumLoss{Stop: stop}}})
				old := g.leader(0)
				g.partition(1, old)
				g.within(time.Second, "the other two go on", func() bool { return g.leader(0) != 0 })
				g.within(2*time.Second, "the one that is cut off says so", func() bool {
					g.mu.Lock()
					defer g.mu.Unlock()
					ev := g.events[old]
					return len(ev) > 0 && ev[len(ev)-1].Quorum != nil && !ev[len(ev)-1].Quorum.Has && ev[len(ev)-1].Quorum.Stop == stop
				})
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				if r, err := g.nodes[old].Propose(ctx, drain(2, true)); !errors.Is(err, ErrNoLeader) {
					t.Errorf("decided without a majority: %+v", r)
				}
				if r := g.propose(g.other(old), drain(3, true)); r.Code != fsm.Done {
					t.Errorf("%+v", r)
				}
				g.partition(0, old)
				g.within(3*time.Second, "one state again", func() bool {
					p, _ := g.nodes[old].View().Member(3)
					return g.same() && p.State == fsm.Draining
				})
				g.within(time.Second, "the alarm ends", func() bool {
					g.mu.Lock()
					defer g.mu.Unlock()
					ev := g.events[old]
					return ev[len(ev)-1].Quorum != nil && ev[len(ev)-1].Quorum.Has
				})
			})
		})
	}
}

// All restart, each with its disk, two of them alone: what was decided is known at once.
func TestRestartFromDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 3, 0)
		defer g.close()
		g.startAll()
		r := g.propose(2, &clusterpb.Command{What: &clusterpb.Command_DelegateRange{DelegateRange: &clusterpb.DelegateRange{
			Node: 2, Store: g.nodes[2].store, Space: uint32(fsm.SpaceSPI), First: []byte{0, 1, 0, 0}, Last: []byte{255, 255, 255, 255}, Count: 1 << 16}}})
		if r.Code != fsm.Done {
			t.Fatalf("%+v", r)
		}
		g.within(time.Second, "node 2 knows", func() bool { return len(g.nodes[2].Usable(fsm.SpaceSPI, false)) == 1 })
		g.within(time.Second, "the state is on disk", func() bool { return g.kept(1) && g.kept(2) && g.kept(3) })
		for _, n := range g.members {
			g.kill(n)
		}
		g.start(2)
		synctest.Wait()
		if got := g.nodes[2].Usable(fsm.SpaceSPI, false); len(got) != 1 {
			t.Fatalf("alone it knows of %v", got)
		}
		if err := g.nodes[2].Holdings().Open(fsm.RangeID(r.Value)); err != nil {
			t.Fatal(err)
		}
		g.kill(2)
		g.start(2)
		if got := g.nodes[2].Usable(fsm.SpaceSPI, false); len(got) != 0 {
			t.Fatalf("after a second restart it takes %v for fresh", got)
		}
		g.start(1)
		g.start(3)
		g.within(5*time.Second, "all have joined", func() bool { return g.allJoined() && g.same() })
		if got := g.nodes[2].Usable(fsm.SpaceSPI, true); len(got) != 1 {
			t.Fatalf("synchronised it may use %v", got)
		}
	})
}

// A voter whose disk is lost neither founds another group nor votes before it has caught up.
func TestAVoterLosesItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 3, 0)
		defer g.close()
		g.startAll()
		old := g.leader(0)
		late, lost := g.other(old), fsm.NodeID(6)-old-g.other(old)
		g.kill(late)
		g.propose(old, drain(late, true)) // only two of three have it
		g.kill(lost)
		g.kill(old)
		g.wipe(lost)
		g.start(lost)
		g.start(late)
		g.throughout(10*time.Second, "nobody leads without the last decision", func() bool { return g.leader(0) == 0 })
		g.start(old)
		g.within(5*time.Second, "all have joined", func() bool { return g.allJoined() && g.same() })
		if m, _ := g.nodes[lost].View().Member(late); m.State != fsm.Draining {
			t.Error("a decision was lost")
		}
		g.kill(old)
		g.within(3*time.Second, "it votes again", func() bool { return g.leader(0) != 0 })
	})
}

func TestALeadersDiskStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 3, 0)
		defer g.close()
		g.startAll()
		old := g.leader(0)
		hang := make(chan struct{})
		g.disks[old].hang.Store(&hang)
		start := time.Now()
		if r := g.propose(g.other(old), drain(3, true)); !r.OK() {
			t.Fatalf("%+v", r)
		}
		t.Logf("decided %v after the disk began to hang", time.Since(start))
		g.within(2*time.Second, "an alarm", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			ev := g.events[old]
			return len(ev) > 0 && ev[0].Disk != nil && ev[0].Disk.Stalled
		})
		g.disks[old].hang.Store(nil)
		close(hang)
		g.within(3*time.Second, "it follows", func() bool { return g.same() && g.nodes[old].r.State() == raft.Follower })

		// One that is slow hands over, and nobody is taken out of the group.
		old = g.leader(0)
		g.disks[old].delay.Store(int64(400 * time.Millisecond))
		g.propose(old, drain(3, false))
		g.within(3*time.Second, "another leads", func() bool { l := g.leader(0); return l != 0 && l != old })
		if v := g.nodes[old].View().Voters(); len(v) != 3 {
			t.Errorf("voters: %v", v)
		}
		g.disks[old].delay.Store(0)
		g.within(3*time.Second, "one state", g.same)
	})
}

func TestRollingUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 3, 1)
		defer g.close()
		g.startAll()
		young := func(o *Options) { o.MinVersion, o.MaxVersion = 1, 2 }
		for i, n := range g.members {
			if v := g.nodes[1].View().Version(); v != 1 {
				t.Fatalf("version %d after %d upgrades", v, i)
			}
			g.kill(n)
			g.start(n, young)
			g.within(5*time.Second, "it is back", func() bool { return g.allJoined() && g.leader(0) != 0 })
		}
		g.within(5*time.Second, "all agree on version 2", func() bool { return g.same() && g.nodes[4].View().Version() == 2 })
		// An old build in place of a new one says that it cannot follow.
		g.within(time.Second, "the state is on disk", func() bool { return g.kept(4) })
		g.kill(4)
		_, trans := raft.NewInmemTransport(Address(4))
		_, err := New(Options{Self: 4, Name: "gw4", Process: 99, Voters: g.voters, Members: g.members, Disk: g.disks[4].Disk, Transport: trans, Peers: &caller{g, 4}})
		if err == nil {
			t.Fatal("an old build starts with a state that it does not understand")
		}
		// With an empty disk it only finds out from the log.
		g.wipe(4)
		g.start(4)
		g.within(5*time.Second, "the old build says that it cannot follow", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			ev := g.events[4]
			return len(ev) > 0 && ev[len(ev)-1].Unfit != nil
		})
		// What follows it passes over without a trace, so that a new build on its disk is
		// like the others.
		index, _ := g.nodes[4].m.marshal()
		for _, on := range []bool{true, false} {
			if r := g.propose(g.leader(0), drain(2, on)); !r.OK() {
				t.Fatalf("%+v", r)
			}
		}
		g.throughout(time.Second, "the old build stands still", func() bool { now, _ := g.nodes[4].m.marshal(); return now == index })
		g.mu.Lock()
		told := 0
		for _, e := range g.events[4] {
			if e.Unfit != nil {
				told++
			}
		}
		g.mu.Unlock()
		if told != 1 {
			t.Errorf("it says %d times that it cannot follow", told)
		}
		g.kill(4)
		g.start(4, young)
		g.within(5*time.Second, "the new build on its disk is like the others", func() bool { return g.allJoined() && g.same() })
	})
}

// A pair with a witness: it votes, and owns nothing.
func TestWitness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 3, 0)
		defer g.close()
		g.standbys = 1
		g.start(1)
		g.start(2)
		g.start(3, func(o *Options) { o.Witness = true })
		g.within(5*time.Second, "all have joined", g.allJoined)
		g.within(5*time.Second, "slots are assigned", func() bool { return len(g.nodes[3].View().Scopes()) == 16 })
		for round := range 8 { // chance elects the witness, too
			g.within(5*time.Second, "a member leads", func() bool { return g.leader(0) == 1 || g.leader(0) == 2 })
			other := 3 - g.leader(0)
			g.kill(3 - other)
			g.within(5*time.Second, "the other member leads", func() bool { return g.leader(0) == other })
			g.throughout(time.Second, fmt.Sprintf("the member leads in round %d", round), func() bool { return g.leader(0) == other })
			g.start(3 - other)
			g.within(5*time.Second, "all have joined again", g.allJoined)
		}
		g.partition(1, 1, 2)
		g.within(5*time.Second, "the members lead without the witness", func() bool { l := g.leader(1); return l == 1 || l == 2 })
		g.partition(0, 1, 2)
		g.within(5*time.Second, "the witness is back", g.allJoined)
		g.kill(1)
		g.within(5*time.Second, "the pair's other half leads", func() bool { return g.leader(0) == 2 })
		if r := g.propose(2, drain(2, true)); !r.OK() {
			t.Errorf("%+v", r)
		}
		for _, s := range g.nodes[2].View().Scopes() {
			if s.Owner == 3 || s.Successor == 3 {
				t.Errorf("the witness has %+v", s)
			}
		}
	})
}

func TestVoters(t *testing.T) {
	for _, c := range []struct {
		all     []fsm.NodeID
		witness fsm.NodeID
		want    []fsm.NodeID
	}{
		{[]fsm.NodeID{3, 1, 2}, 0, []fsm.NodeID{1, 2, 3}},
		{[]fsm.NodeID{1, 2, 9}, 9, []fsm.NodeID{1, 2, 9}},
		{[]fsm.NodeID{4, 3, 2, 1}, 0, []fsm.NodeID{1, 2, 3}},
		{[]fsm.NodeID{4, 3, 2, 1}, 4, []fsm.NodeID{1, 2, 4}},
		{[]fsm.NodeID{4, 3, 2, 1, 16}, 16, []fsm.NodeID{1, 2, 3, 4, 16}},
		{[]fsm.NodeID{7, 6, 5, 4, 3, 2, 1}, 7, []fsm.NodeID{1, 2, 3, 4, 7}},
		{[]fsm.NodeID{1, 2}, 0, []fsm.NodeID{1, 2}},
	} {
		if got := Voters(c.all, c.witness); !slices.Equal(got, c.want) {
			t.Errorf("Voters(%v, %d) = %v, want %v", c.all, c.witness, got, c.want)
		}
	}
}
