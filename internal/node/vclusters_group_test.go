package node

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/config"
	"tandem/proto/clusterpb"
)

const groupConf = `
config system ha
    set mode a-p
    set hbdev "hb0" 50
    set hb-interval 1
    set hb-interval-in-milliseconds 10ms
    set hb-lost-threshold 3
    set monitor "wan0" "lan0"
    set unicast-status enable
    config unicast-peers
        edit 1
            set peer-ip 172.31.1.2
        next
        edit 2
            set peer-ip 172.31.1.3
        next
        edit 3
            set peer-ip 172.31.1.4
        next
    end
end
`

// planner is the member of a group that leads the log, with the log's state machine and
// what the others' heartbeats say. Everything proposed is decided at once.
type planner struct {
	t       testing.TB
	now     time.Time
	v       *VClusters
	m       *fsm.Machine
	seq     map[cluster.NodeID]uint64
	peers   map[cluster.NodeID]cluster.Peer
	decided []*clusterpb.Command // since somebody looked
}

func newPlanner(t testing.TB, nodes int) *planner {
	c, faults := config.Load("f", []byte(groupConf))
	if c == nil {
		t.Fatal(faults)
	}
	c.HA.UnicastPeers = c.HA.UnicastPeers[:nodes-1]
	p := &planner{t: t, now: time.Unix(1e6, 0), m: fsm.New(), seq: map[cluster.NodeID]uint64{}, peers: map[cluster.NodeID]cluster.Peer{}}
	p.v = NewVClusters(Options{Config: c, Process: 1, Rand: rand.New(rand.NewSource(1)),
		Slot: &cluster.SlotOptions{Self: 1, Name: "gw1", Serial: "s1", Interval: 10 * time.Millisecond, Threshold: 3}})
	p.v.Start(p.now)
	p.v.HandleMonitored(p.now, func(m []string) int { return len(m) })
	for n := cluster.NodeID(1); int(n) <= nodes; n++ {
		p.join(n, uint64(n))
	}
	return p
}

// join has the log count a process of a member.
func (p *planner) join(n cluster.NodeID, process uint64) {
	p.apply(n, &clusterpb.Command{What: &clusterpb.Command_AddMember{AddMember: &clusterpb.AddMember{
		Node: uint32(n), Name: fmt.Sprint("gw", n), MinVersion: fsm.MinVersion, MaxVersion: fsm.MaxVersion, Process: process, Store: 1}}})
}

func (p *planner) apply(by cluster.NodeID, c *clusterpb.Command) {
	p.t.Helper()
	p.seq[by]++
	c.Id, c.Version = &clusterpb.CommandID{Node: uint32(by), Life: 1, Seq: p.seq[by]}, 1
	if r := p.m.Apply(fsm.Encode(c)); !r.OK() {
		p.t.Fatalf("%v is refused: %s", c, r.Why)
	}
}

// settle has everything decided that is proposed, until nothing is.
func (p *planner) settle() {
	p.t.Helper()
	for turn := 0; ; turn++ {
		if turn == 20 {
			p.t.Fatal("the plan never comes to rest")
		}
		p.v.HandleDecided(p.now, p.m.Clone())
		p.v.HandleTimeout(p.now)
		proposed := 0
		for e, ok := p.v.Poll(); ok; e, ok = p.v.Poll() {
			if c, ok := e.(cluster.Propose); ok {
				proposed++
				p.decided = append(p.decided, c.Command)
				p.apply(1, c.Command)
			}
		}
		if proposed == 0 {
			return
		}
	}
}

// heard has another member's heartbeats say that it stands by with an election.
func (p *planner) heard(n cluster.NodeID, running bool, e cluster.Election) {
	x := cluster.Peer{Node: n, Name: fmt.Sprint("gw", n), Process: cluster.ProcessID(n), Running: running, Role: cluster.RoleNone,
		VClusters: []cluster.VCluster{{Scope: 1, Role: cluster.RoleStandby, Election: e}}}
	p.peers[n] = x
	p.v.HandlePeer(p.now, x)
}

// sync has the log's owner say who holds the records.
func (p *planner) sync(nodes ...cluster.NodeID) {
	p.t.Helper()
	s := p.scope()
	p.apply(s.Owner, &clusterpb.Command{What: &clusterpb.Command_SetSyncSet{SetSyncSet: &clusterpb.SetSyncSet{
		Scope: 1, Epoch: s.Epoch.Proto(), Members: numbersOf(nodes)}}})
}

func (p *planner) scope() fsm.Scope {
	s, _ := p.m.Scope(1)
	return s
}

func (p *planner) lead() {
	p.v.HandleQuorum(p.now, Quorum{})
	p.v.HandleLeader(p.now, true)
}

// TestGroupPlan: the leader has the member that goes first own what nobody owns, when all
// are there or had their time; the others stand by in their order, and the first that holds
// the records is promised the next epoch, again when the order changes. Who owns stays.
func TestGroupPlan(t *testing.T) {
	p := newPlanner(t, 4)
	e := func(priority int) cluster.Election { return cluster.Election{MonitorsUp: 2, Priority: priority} }
	want := func(owner, successor cluster.NodeID, standbys ...cluster.NodeID) {
		t.Helper()
		p.settle()
		if s := p.scope(); s.Owner != owner || s.Successor != successor || !slices.Equal(s.Standbys, standbys) {
			t.Fatalf("owner %d, successor %d, standbys %v; want %d, %d, %v", s.Owner, s.Successor, s.Standbys, owner, successor, standbys)
		}
	}
	p.heard(2, true, e(50))
	p.heard(3, true, e(200))
	p.settle()
	if len(p.decided) > 0 {
		t.Fatalf("decided by who does not lead: %v", p.decided)
	}
	p.lead()
	if p.settle(); p.scope().Owner != 0 {
		t.Fatal("gw4 is not waited for")
	}
	p.heard(4, true, e(100))
	want(3, 0, 1, 4, 2) // gw1: 128
	p.sync(2, 4)
	want(3, 4, 1, 4, 2)
	p.sync(1, 2, 4)
	want(3, 1, 1, 4, 2)
	p.heard(2, true, e(250)) // who owns stays, without override
	want(3, 2, 2, 1, 4)
	p.heard(2, true, cluster.Election{MonitorsUp: 1, Priority: 250})
	want(3, 1, 1, 4, 2)
	p.v.HandlePinged(p.now, func([]string) (int, int) { return 10, 0 })
	want(3, 4, 4, 1, 2)
	p.heard(4, false, e(100)) // gone, and the log does not know yet
	want(3, 1, 1, 2, 4)
	p.heard(4, true, e(100))
	want(3, 4, 4, 1, 2)
	epoch := p.scope().Epoch
	p.now = p.now.Add(time.Minute)
	if want(3, 4, 4, 1, 2); p.scope().Epoch != epoch {
		t.Fatal("an epoch was made for nothing")
	}
}

// TestGroupPlanWithoutSomebody: a member that is not there is not waited for without end,
// nor is one that the log has as owner and that was never heard.
func TestGroupPlanWithoutSomebody(t *testing.T) {
	p := newPlanner(t, 3)
	e := cluster.Election{MonitorsUp: 2, Priority: 100}
	p.heard(2, true, e)
	p.lead()
	p.settle()
	if p.scope().Owner != 0 {
		t.Fatal("gw3 is not waited for")
	}
	p.now = p.now.Add(time.Second)
	if p.settle(); p.scope().Owner != 1 {
		t.Fatalf("owned by %d after a second", p.scope().Owner)
	}

	p = newPlanner(t, 3)
	p.apply(3, &clusterpb.Command{What: &clusterpb.Command_AssignSlots{AssignSlots: &clusterpb.AssignSlots{Assignments: []*clusterpb.Assignment{{Scope: 1, Owner: 3}}}}})
	p.heard(2, true, e)
	p.lead()
	for range 4 {
		p.settle()
		p.now = p.now.Add(time.Second)
	}
	if s := p.scope(); s.Owner != 1 || !slices.Equal(s.Standbys, []cluster.NodeID{2, 3}) && !slices.Equal(s.Standbys, []cluster.NodeID{2}) {
		t.Fatalf("owned by %d, standbys %v", s.Owner, s.Standbys)
	}
}

// TestGroupPlanRandom: whatever heartbeats say and whoever is lost, the log's order is
// FGCP's of those that are heard, the first of them that holds the records is promised the
// next epoch, and who owns changes by no plan.
func TestGroupPlanRandom(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 60
	}
	for seed := range rounds {
		r := rand.New(rand.NewSource(int64(seed)))
		p := newPlanner(t, 4)
		p.lead()
		elections := map[cluster.NodeID]cluster.Election{}
		for n := cluster.NodeID(2); n <= 4; n++ {
			elections[n] = cluster.Election{MonitorsUp: 2, Priority: 128}
			p.heard(n, true, elections[n])
		}
		p.settle()
		owner := p.scope().Owner
		for range 30 {
			p.now = p.now.Add(time.Duration(r.Intn(3000)) * time.Millisecond)
			n := cluster.NodeID(2 + r.Intn(3))
			switch r.Intn(3) {
			case 0:
				var set []cluster.NodeID
				for _, k := range r.Perm(4) {
					if k := cluster.NodeID(k + 1); k != owner && r.Intn(3) > 0 {
						set = append(set, k)
					}
				}
				p.sync(set...)
			default:
				e := cluster.Election{MonitorsUp: 1 + r.Intn(2), Priority: 64 * (1 + r.Intn(3)), Penalty: 5 * r.Intn(2), Serial: fmt.Sprint("s", r.Intn(3)),
					Age: time.Duration(r.Intn(4)) * 200 * time.Second, Override: r.Intn(5) == 0}
				elections[n] = e
				p.heard(n, r.Intn(5) > 0, e)
			}
			p.settle()
			s := p.scope()
			if s.Owner != owner {
				t.Fatalf("seed %d: the owner has changed", seed)
			}
			order, _ := p.v.scopes[1].slot.Ranking(p.now, func(k cluster.NodeID) bool { return k != owner && (k == 1 || p.peers[k].Running) })
			for k := cluster.NodeID(1); k <= 4; k++ {
				if k != owner && !slices.Contains(order, k) {
					order = append(order, k) // not heard here
				}
			}
			next := cluster.NodeID(0)
			for _, k := range order {
				if slices.Contains(s.Sync, k) && (k == 1 || p.peers[k].Running) {
					next = k
					break
				}
			}
			if !slices.Equal(s.Standbys, order) || next != 0 && s.Successor != next {
				t.Fatalf("seed %d: standbys %v, successor %d; want %v, %d (sync set %v)", seed, s.Standbys, s.Successor, order, next, s.Sync)
			}
		}
	}
}
