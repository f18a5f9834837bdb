package node

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/proto/clusterpb"
)

// Where more than two nodes share pools, what a scope leases from is delegated to it by the
// members' log, in ranges. A range belongs to one process, which leases from it while it owns
// the scope: so neither a split nor a lost quorum gives one address out twice. It is asked for
// ahead of need; no tunnel waits for the log. Leased addresses stand in the scope's records,
// and stay when the scope has another owner. What is free in the old owner's ranges comes to
// the new one when that process gives them, as a standby with a full copy, or has ended. What
// is idle is returned.
//
// Ranges change hands, and an address whose client has not said that it goes is free again,
// only while the scope is settled: nobody can go on with IKE SAs of it that ended here.

const (
	// poolShares is which part of a pool lies ready at all members together: 1/poolShares.
	poolShares = 16
	// maxPoolChunk bounds the addresses of a range.
	maxPoolChunk = 4096
	// rangeIdle is how long a range has been without a lease, and not needed as what lies
	// ready, when it is returned.
	rangeIdle = time.Minute
	// rangeAgain is when what was proposed is proposed again.
	rangeAgain = 500 * time.Millisecond
	// rangeLook is how often what nothing announces is looked at.
	rangeLook = time.Second
	// quietLong is how long a member that may have owned a scope must be heard without a claim
	// to it: longer than it takes for its state to come to the owner.
	quietLong = 30 * time.Second
)

// rangeShare is what a node knows of the ranges of its scope.
type rangeShare struct {
	others  map[cluster.NodeID]*otherNode
	mine    []fsm.Range // leased from
	closed  map[fsm.RangeID]bool
	idle    map[fsm.RangeID]time.Time // since when
	asked   map[string]time.Time      // what was proposed
	copied  cluster.Epoch             // of the latest full copy here
	seen    uint64                    // changes of leases that were looked at
	due     time.Time
	settled bool
}

// otherNode is what is known of what another member may go on with.
type otherNode struct {
	process  cluster.ProcessID
	running  bool // and heard
	ended    bool // this process, as its guardian said
	owner    bool
	entitled bool
	epoch    cluster.Epoch
	suspect  bool // it may have owned the scope unheard
	quiet    time.Time
}

func newRangeShare() rangeShare {
	return rangeShare{others: map[cluster.NodeID]*otherNode{}, closed: map[fsm.RangeID]bool{}, idle: map[fsm.RangeID]time.Time{}, asked: map[string]time.Time{}}
}

// heard takes what a member's heartbeats say of the scope.
func (r *rangeShare) heard(now time.Time, p *cluster.Peer) {
	o := r.others[p.Node]
	if o == nil || o.process != p.Process {
		o = &otherNode{process: p.Process, suspect: o == nil}
		r.others[p.Node] = o
	}
	owner, entitled := p.Role == cluster.RoleOwner, p.Entitled
	if owner || entitled || !o.running {
		o.quiet = now
	}
	was := *o
	o.running, o.owner, o.entitled, o.epoch = p.Running, owner, entitled, p.Epoch
	if o.suspect = o.suspect || owner; *o != was {
		r.due = time.Time{}
	}
}

// lost says that a member is not heard any more, or that its process has ended.
func (r *rangeShare) lost(id cluster.NodeID, kind cluster.Loss) {
	if o := r.others[id]; o != nil {
		o.running = false
		o.ended = o.ended || kind == cluster.LossDeath
		o.suspect = o.suspect || o.owner || o.entitled
	}
	r.due = time.Time{}
}

// mayGoOn says that a member may own the scope, or come to own it, with IKE SAs that the owner
// under epoch e does not know, or has ended.
func (o *otherNode) mayGoOn(now time.Time, e cluster.Epoch) bool {
	switch {
	case o == nil:
		return true
	case o.ended:
		return false
	case o.entitled && o.running && o.epoch == e:
		o.suspect = false
		return false
	case o.owner:
		return o.epoch != e
	case o.entitled:
		return true
	}
	return o.suspect && (!o.running || now.Sub(o.quiet) < quietLong)
}

// tenure is the scope's epoch as this node knows it.
func (n *Node) tenure(s fsm.Scope) cluster.Epoch {
	if n.owner {
		return n.epoch
	}
	if h := n.ranges.others[s.Owner]; h != nil && h.owner && h.epoch.SameTenure(s.Epoch) {
		return h.epoch
	}
	return s.Epoch
}

// considerSettled has the engine know whether what ends here has ended.
func (n *Node) considerSettled(now time.Time, m *fsm.Machine) {
	s, ok := m.Scope(cluster.ScopeID(n.scope))
	settled := ok && m.Applied() > 0
	e := n.tenure(s)
	for _, p := range m.Members() {
		if p.Node != n.number() && !p.Witness && p.State != fsm.Left && n.ranges.others[p.Node].mayGoOn(now, e) {
			settled = false
		}
	}
	if settled != n.ranges.settled {
		n.ranges.settled = settled
		n.log(slog.LevelDebug, "mode-cfg: addresses of clients that went silent", slog.Bool("free", settled))
		n.sharePools()
	}
}

// unsettle comes before what waits for a lost member's acknowledgement goes without it.
func (n *Node) unsettle(id cluster.NodeID) {
	if o := n.ranges.others[id]; n.ranges.settled && o != nil && o.suspect && !o.ended {
		n.ranges.settled = false
		n.sharePools()
	}
}

// poolRange is one family of a configured pool.
type poolRange struct {
	ike.AddressRange
	chunk int // addresses to ask for, and to have ready; 0: this scope asks for none
}

func (p poolRange) numbers() (fsm.Space, fsm.Number, fsm.Number) {
	space, first := fsm.AddrNumber(p.Start)
	_, last := fsm.AddrNumber(p.End)
	return space, first, last
}

// size is how many addresses a range has, at most fsm.MaxRangeCount.
func (p poolRange) size() int {
	_, first, last := p.numbers()
	return int(first.Span(last))
}

// poolRanges are those of a configuration, each once.
func poolRanges(c *config.Config) (out []poolRange) {
	for i := range c.Phase1 {
		p := &c.Phase1[i]
		if !p.ModeCfg || !p.Dialup() || !p.Pool.AssignIP {
			continue
		}
		for _, r := range []ike.AddressRange{{Start: p.Pool.Start4, End: p.Pool.End4}, {Start: p.Pool.Start6, End: p.Pool.End6}} {
			x := poolRange{AddressRange: r}
			if r.Start.IsValid() && !slices.Contains(out, x) {
				out = append(out, x)
			}
		}
	}
	return out
}

func addressesOf(r fsm.Range) ike.AddressRange {
	return ike.AddressRange{Start: r.Space.Addr(r.First), End: r.Space.Addr(r.Last())}
}

// considerRanges does what is due about the ranges of the scope. reserve: as a standby it has
// some, too.
func (n *Node) considerRanges(now time.Time, m *fsm.Machine, pools []poolRange, lostQuorum, reserve bool) {
	r := &n.ranges
	r.seen, r.due = n.ike.LeaseChanges(), now.Add(rangeLook)
	id, self := cluster.ScopeID(n.scope), n.number()
	n.takeRanges(m.ScopeRanges(id, self, uint64(n.opt.Process)))
	n.considerSettled(now, m)
	p, _ := m.Member(self)
	s, ok := m.Scope(id)
	if !ok || lostQuorum || p.Process != uint64(n.opt.Process) || p.State == fsm.Left {
		return
	}
	owns := n.owner && n.handing == nil && s.Owner == self
	if owns && r.settled {
		n.takeOrphans(now, m)
	}
	for _, x := range pools {
		free := n.freeIn(x.AddressRange)
		if x.chunk > 0 && (owns || reserve && !n.owner) && p.State == fsm.Active && free < x.chunk {
			n.askRange(now, m, x, p.Store)
		}
	}
	for _, have := range m.ScopeRanges(id, self, uint64(n.opt.Process)) {
		if r.closed[have.ID] { // it was proposed, and not decided yet
			n.partWith(now, have, owns)
			continue
		}
		if !r.settled || !n.spareRange(have, pools, owns, reserve) {
			delete(r.idle, have.ID)
			continue
		}
		since, known := r.idle[have.ID]
		if !known {
			since = now
			r.idle[have.ID] = now
		}
		elsewhere := !n.owner && s.Owner != 0 && s.Owner != self && r.copied.SameTenure(s.Epoch) && !n.authority.Uniting()
		if owns && now.Sub(since) >= rangeIdle || elsewhere {
			r.closed[have.ID] = true
			n.takeRanges(m.ScopeRanges(id, self, uint64(n.opt.Process)))
			n.partWith(now, have, owns)
		}
	}
}

// takeRanges has the engine lease from what was decided, but for what is given away.
func (n *Node) takeRanges(have []fsm.Range) {
	r := &n.ranges
	for k := range r.closed {
		if !slices.ContainsFunc(have, func(x fsm.Range) bool { return x.ID == k }) {
			delete(r.closed, k)
		}
	}
	for k := range r.idle {
		if !slices.ContainsFunc(have, func(x fsm.Range) bool { return x.ID == k }) {
			delete(r.idle, k)
		}
	}
	have = slices.DeleteFunc(have, func(x fsm.Range) bool { return r.closed[x.ID] })
	if slices.Equal(have, r.mine) {
		return
	}
	r.mine = have
	var out []ike.AddressRange
	for _, x := range have {
		out = append(out, addressesOf(x))
	}
	n.ike.SetRanges(out)
}

// freeIn is how many addresses of a pool this node could lease at once.
func (n *Node) freeIn(pool ike.AddressRange) (free int) {
	for _, x := range n.ranges.mine {
		if a := addressesOf(x); pool.Contains(a.Start) {
			free += int(x.Count) - n.ike.LeasesIn(a)
		}
	}
	return free
}

// canLease says that an address of each of the scope's pools is free, or that it has none.
func (n *Node) canLease(pools []poolRange) bool {
	return !slices.ContainsFunc(pools, func(x poolRange) bool { return n.freeIn(x.AddressRange) == 0 })
}

// spareRange says that a range is not needed here: an owner keeps what is leased, and a
// chunk of a pool ready; a standby one chunk, where it has a reserve.
func (n *Node) spareRange(have fsm.Range, pools []poolRange, owns, reserve bool) bool {
	a := addressesOf(have)
	i := slices.IndexFunc(pools, func(x poolRange) bool { return x.Contains(a.Start) })
	if owns {
		return n.ike.LeasesIn(a) == 0 && (i < 0 || n.freeIn(pools[i].AddressRange)-int(have.Count) >= pools[i].chunk)
	}
	return n.ike.LeasesIn(a) > 0 || !reserve || i < 0 || n.freeIn(pools[i].AddressRange)-int(have.Count) >= pools[i].chunk
}

func (n *Node) askRange(now time.Time, m *fsm.Machine, x poolRange, store uint64) {
	space, first, last := x.numbers()
	if !m.AnyFree(space, first, last) {
		return
	}
	n.proposeRange(now, &clusterpb.Command{What: &clusterpb.Command_DelegateRange{DelegateRange: &clusterpb.DelegateRange{
		Node: uint32(n.number()), Store: store, Space: uint32(space), First: space.Bytes(first), Last: space.Bytes(last), Count: uint64(x.chunk),
		Process: uint64(n.opt.Process), Scope: uint32(n.scope)}}})
}

// takeOrphans takes the ranges of processes that have ended, as this owner knows all that was
// leased from them and lives.
func (n *Node) takeOrphans(now time.Time, m *fsm.Machine) {
	for _, x := range m.ScopeRanges(cluster.ScopeID(n.scope), 0, 0) {
		if x.Node == n.number() && x.Process == uint64(n.opt.Process) {
			continue
		}
		o := n.ranges.others[x.Node]
		ended := o != nil && (o.process == cluster.ProcessID(x.Process) && o.ended)
		if ended || m.Orphan(x) {
			n.proposeRange(now, &clusterpb.Command{What: &clusterpb.Command_MoveRange{MoveRange: &clusterpb.MoveRange{
				Range: uint64(x.ID), Node: uint32(n.number()), Process: uint64(n.opt.Process), Ended: ended}}})
		}
	}
}

// partWith returns a range that nothing is leased from, or gives one to the scope's owner.
// Nothing is leased from it here any more, whatever comes of it.
func (n *Node) partWith(now time.Time, have fsm.Range, owns bool) {
	c := &clusterpb.Command{What: &clusterpb.Command_MoveRange{MoveRange: &clusterpb.MoveRange{
		Range: uint64(have.ID), Node: uint32(n.number()), Process: uint64(n.opt.Process)}}}
	if owns {
		c = &clusterpb.Command{What: &clusterpb.Command_ReturnRange{ReturnRange: &clusterpb.ReturnRange{
			Range: uint64(have.ID), Node: uint32(n.number()), Process: uint64(n.opt.Process)}}}
	}
	n.proposeRange(now, c)
}

// proposed is what whoever has the log proposes for the scope.
type proposed struct{ *clusterpb.Command }

func (n *Node) proposeRange(now time.Time, c *clusterpb.Command) {
	key := fsm.Subject(c)
	r := &n.ranges
	if at, ok := r.asked[key]; ok && now.Sub(at) < rangeAgain {
		r.due = earliest(r.due, at.Add(rangeAgain))
		return
	}
	for k, at := range r.asked {
		if now.Sub(at) >= rangeAgain {
			delete(r.asked, k)
		}
	}
	r.asked[key] = now
	n.emit(proposed{c})
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// rangesDue is when considerRanges is due: at once when leases have changed.
func (n *Node) rangesDue() time.Time {
	if n.ike.LeaseChanges() != n.ranges.seen {
		return time.Time{}
	}
	return n.ranges.due
}

// PoolStatus is what a member has of a pool.
type PoolStatus struct {
	Start, End netip.Addr
	Size       int // of the pool; at most 2^24
	Leased     int // by scopes that this member owns
	Free       int // it could lease so many more without asking
	Delegated  int // to all members
	Unsettled  int // scopes owned here in which addresses of silent clients stay taken
}
