package node

import (
	"log/slog"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/outbox"
	statesync "tandem/sync"
	"tandem/xfrm"
)

const (
	// initialCeiling is where every member lets a new outbound SA begin, so that
	// its first packets need no acknowledgement.
	initialCeiling = 32
	// queueLimit bounds what is queued for one member, in bytes.
	queueLimit = 64 << 20
	// lagEvery is how often the age of unacknowledged frames is looked at.
	lagEvery = 50 * time.Millisecond

	defaultHalfOpenLimit = 1000
)

// Node is one gateway. It is not safe for concurrent use.
type Node struct {
	opt   Options
	cfg   *config.Config
	ike   *ike.Engine
	scope xfrm.Scope
	// authority is nil when standalone; pair or slot is the same engine as what it is.
	authority cluster.Authority
	pair      *cluster.Pair
	slot      *cluster.Slot
	elector   elector // nil: nothing here is elected
	journal   *statesync.Journal
	replica   *statesync.Replica
	ledger    *statesync.Ledger

	owner   bool
	ownedAt time.Time
	epoch   cluster.Epoch
	peers   map[cluster.NodeID]cluster.ProcessID
	handing *cluster.HandOver // waiting for the windows
	// IKE has still to go on after a takeover; see resume.
	resuming *cluster.Own
	resumeAt time.Time
	windows  []xfrm.Window // received with a handover to us
	copies   []*copying    // for members that join, the oldest first
	lagging  map[cluster.NodeID]bool
	lagAt    time.Time

	leaving time.Time // standalone: when to stop waiting for peers; zero: not leaving
	stopped bool
	spare   bool      // of a farm: this member has nothing to do with the scope
	dropAt  time.Time // when what it holds is dropped; zero: it is not
	moved   uint64    // tunnels that came by a planned handover

	sas       map[ipsec.ESPSPI]*childSA
	buried    map[ipsec.ESPSPI]burial // see bury
	told      uint64                  // a mark: who owns beside us or after has to hear what was united by then
	moving    []moving
	departing map[ipsec.ESPSPI]cluster.ScopeID // tunnels that go when no packet of theirs waits
	quietFrom time.Time                        // the latest of the Child SAs'
	asked     int                              // bounds that are not effective yet, of all Child SAs
	finishing time.Time                        // since when a handover waits for them; zero: none does
	detached  map[ipsec.ESPSPI]*childSA
	pool      poolShare
	ranges    rangeShare
	assigned  map[ownAddress]int // to us: IKE SAs that say so
	wanted    []xfrm.Bound
	reach     map[reach]int // how many need each
	reachIs   setSum
	out       outbox.Box[Effect]
	lines     outbox.Box[Log] // that follow what is in out
	framed    bool            // what a frame asks for has still to be done
	framedAt  time.Time

	//lint:ignore U1000 what uses it is in test builds
	testBuild
}

// elector is an authority whose owner FGCP's election chooses.
type elector interface {
	HandleMonitors(now time.Time, up int)
	HandlePingservers(now time.Time, penalty, stale int)
	Reconfigure(now time.Time, ha config.HA)
	Failover(now time.Time, set bool) error
}

// childSA is what the node knows of an installed Child SA. The bounds are the
// latest asked for: what a copy must contain.
type childSA struct {
	sa             ipsec.ChildSA
	ceiling, fence uint64
	skipped        [2]uint64 // by direction: what the IKE SA's record leaves out
	asked          int       // bounds that are not effective yet: packets may wait for them
	quietFrom      time.Time // when what waited behind the last answer would have asked, too
	dialup, bare   bool      // whether its selectors lead to it, and whether without a route
}

// burial is what is remembered of an SA that has gone. awaited: the other side of a split
// brings it back, and its installation may still wait for the sync set; or it was forgotten
// here, and may be brought back.
type burial struct {
	ceiling, fence uint64
	awaited        bool
}

// New makes a node that does nothing before Start.
func New(o Options) *Node {
	if o.HalfOpenLimit == 0 {
		o.HalfOpenLimit = defaultHalfOpenLimit
	}
	n := &Node{
		opt: o, cfg: o.Config,
		ledger:    o.ledger,
		peers:     map[cluster.NodeID]cluster.ProcessID{},
		lagging:   map[cluster.NodeID]bool{},
		sas:       map[ipsec.ESPSPI]*childSA{},
		buried:    map[ipsec.ESPSPI]burial{},
		detached:  map[ipsec.ESPSPI]*childSA{},
		departing: map[ipsec.ESPSPI]cluster.ScopeID{},
		reach:     map[reach]int{},
		assigned:  map[ownAddress]int{},
		ranges:    newRangeShare(),
	}
	if n.opt.turns == nil {
		n.opt.turns = &copyTurns{}
	}
	if n.ledger == nil {
		n.ledger = statesync.NewLedger(o.Rand)
		n.opt.nonces = n.ledger
	}
	n.ike = ike.New(ike.Options{
		Config: o.Config, Rand: o.Rand, Nonces: n.opt.nonces, Traffic: o.Traffic, Numbers: n.numbers, LocalAddr: o.LocalAddr, Revocation: o.Revocation, RADIUS: o.RADIUS,
		CookieSecret: o.CookieSecret, TokenSecret: o.TokenSecret, Sole: n.sole, HalfOpenLimit: o.HalfOpenLimit, Share: o.Share, Logs: o.Logs,
	})
	switch {
	case o.Pair != nil:
		n.scope = xfrm.Scope(o.Pair.Scope)
		n.pair = cluster.NewPair(*o.Pair)
		n.authority, n.elector = n.pair, n.pair
	case o.Slot != nil:
		n.scope = xfrm.Scope(o.Slot.Scope)
		n.slot = cluster.NewSlot(*o.Slot)
		n.authority = n.slot
		if o.Slot.HA != nil {
			n.elector = n.slot
		}
	}
	n.sharePools()
	n.journal = statesync.NewScopeJournal(cluster.ScopeID(n.scope), o.Process, n.ledger, queueLimit)
	n.replica = statesync.NewScopeReplica(cluster.ScopeID(n.scope), o.Process, n.ledger)
	return n
}

// Start begins: a standalone gateway owns its scope at once, a member of a pair
// listens for its peer first.
func (n *Node) Start(now time.Time) {
	if n.authority == nil {
		n.own(now, cluster.Own{Epoch: cluster.Epoch{Counter: 1}, Covered: true, Trusted: true, Reason: "standalone"})
	} else {
		n.authority.Start(now)
	}
	n.pump(now)
}

// sole says that no other node can have an IKE SA of this scope that is unknown here: there
// is none, or the only one is in the sync set. Where the members' log decides, which are of
// a scope changes, and tunnels move between scopes: it is never certain.
func (n *Node) sole() bool {
	switch {
	case n.authority == nil:
		return !n.opt.ofFarm
	case n.pair == nil || !n.owner || n.handing != nil || n.pair.Uniting():
		return false
	}
	s := n.pair.Status(n.ownedAt) // what depends on the time is not asked for
	return s.Role == cluster.RoleOwner && s.Synchronised
}

// HandleIKE takes one IKE datagram. Only the owner answers.
func (n *Node) HandleIKE(now time.Time, d ike.Datagram) {
	if n.owner && n.handing == nil {
		n.resume(now)
		n.ike.HandleDatagram(now, d)
		n.pump(now)
		n.left(now)
	}
}

// HandlePlane takes what the data plane reports.
func (n *Node) HandlePlane(now time.Time, events []xfrm.Event) {
	if !n.owner {
		return
	}
	for _, e := range events {
		if b, ok := e.(xfrm.BoundWanted); ok {
			n.want(b.Bound)
			continue
		}
		n.resume(now)
		switch e := e.(type) {
		case xfrm.Acquire:
			n.ike.HandleAcquire(now, e.Tunnel, ike.Acquire{Protocol: e.Protocol, Src: e.Src, Dst: e.Dst})
		case xfrm.FirstInbound:
			n.ike.HandleFirstInbound(now, e.SPIIn)
		case xfrm.PeerMoved:
			if e.TCP {
				n.ike.HandleStreamMoved(now, e.SPIIn, e.From)
			} else {
				n.ike.HandlePeerMoved(now, e.SPIIn, e.From)
			}
		case xfrm.StreamLost:
			n.ike.HandleStreamLost(now, e.SPIIn)
		case xfrm.Expiring:
			n.log(slog.LevelInfo, "Child SA expiring", slog.String("spi", e.SPIIn.String()), slog.String("reason", e.Reason))
			n.ike.HandleExpiring(now, e.SPIIn, e.Hard)
		}
	}
	n.pump(now)
}

// HandleWindows answers TakeWindows: the last frames of a handover can go.
func (n *Node) HandleWindows(now time.Time, ws []xfrm.Window) {
	if h := n.handing; h != nil {
		n.journal.HandOver(now, h.Node, h.Epoch, ws)
		n.pump(now)
		n.emit(Release{n.scope})
	}
}

// HandleFrame takes a frame of another node's journal. An error means that the
// stream must be begun again. Its acknowledgement is the first effect, because the owner
// waits for it; Poll does what the frame asks for when that one was taken.
func (n *Node) HandleFrame(now time.Time, from cluster.NodeID, process cluster.ProcessID, frame []byte) error {
	if n.authority != nil && n.authority.Uniting() {
		return errUniting
	}
	if n.slot != nil { // in a pair it is sent once, whatever becomes of it
		n.replica.RefuseUnites(!n.owner || n.handing != nil)
	}
	n.pool.from = from
	err := n.replica.HandleFrame(now, from, process, frame)
	for a, ok := n.replica.PollAck(); ok; a, ok = n.replica.PollAck() {
		n.acknowledge(a)
	}
	n.framed, n.framedAt = true, now
	return err
}

func (n *Node) acknowledge(e statesync.Effect) { n.emit(e) }

// HandleAck takes a member's cumulative acknowledgement.
func (n *Node) HandleAck(now time.Time, from cluster.NodeID, process cluster.ProcessID, seq uint64) {
	n.journal.HandleAck(now, from, process, seq)
	if n.journal.Copying(from) {
		n.copyMoved(now, from)
	}
	n.pump(now)
}

// HandleStream says that the stream towards a member came or went.
func (n *Node) HandleStream(now time.Time, from cluster.NodeID, process cluster.ProcessID, up bool) {
	if n.authority == nil {
		return
	}
	if up {
		n.peers[from] = process
	}
	n.authority.HandleStream(now, from, process, up)
	n.pump(now)
}

// HandlePeer takes what another node's heartbeats say.
func (n *Node) HandlePeer(now time.Time, p cluster.Peer) {
	if n.opt.ranged {
		n.ranges.heard(now, &p)
	}
	n.authority.HandlePeer(now, p)
	n.pump(now)
}

// HandleLoss says that a peer was lost; entitled is what our guardian held then.
func (n *Node) HandleLoss(now time.Time, id cluster.NodeID, l cluster.Loss, entitled bool, detected time.Duration) {
	if n.opt.ranged {
		n.ranges.lost(id, l)
		n.unsettle(id)
	}
	n.authority.HandleLoss(now, id, l, entitled, detected)
	n.pump(now)
}

// HandleRemoved says that a member gave up its entitlement.
func (n *Node) HandleRemoved(now time.Time, id cluster.NodeID) {
	n.authority.HandleRemoved(now, id)
	n.pump(now)
}

// HandleEntitled says that our guardian holds our entitlement: the owner may count on us.
func (n *Node) HandleEntitled(now time.Time, e cluster.Epoch) {
	if n.authority.HandleEntitled(now, e) {
		n.replica.ConfirmEntryAt(e)
	}
	n.pump(now)
}

// HandleClaimed answers cluster.Claim.
func (n *Node) HandleClaimed(now time.Time, e cluster.Epoch, ok bool) {
	n.authority.HandleClaimed(now, e, ok)
	n.pump(now)
}

// HandleNote answers WriteNote.
func (n *Node) HandleNote(now time.Time, err error) {
	n.authority.HandleNote(now, err)
	n.pump(now)
}

// HandleMonitors says how many monitored interfaces work.
func (n *Node) HandleMonitors(now time.Time, up int) {
	if n.elector != nil {
		n.elector.HandleMonitors(now, up)
		n.pump(now)
	}
}

// HandlePingservers says what the servers weigh that do not answer, see cluster.Pair.
func (n *Node) HandlePingservers(now time.Time, penalty, stale int) {
	if n.elector != nil {
		n.elector.HandlePingservers(now, penalty, stale)
		n.pump(now)
	}
}

// HandleTimeout runs what is due.
func (n *Node) HandleTimeout(now time.Time) {
	if !now.Before(n.resumeAt) {
		n.resume(now)
	}
	n.ike.HandleTimeout(now)
	n.ledger.Expire(now)
	n.considerFinish(now)
	n.considerLeaving(now)
	if n.authority != nil {
		n.lag(now)
		n.copyOn(now)
		n.journal.HandleTimeout(now)
		n.authority.HandleTimeout(now)
	}
	n.pump(now)
	n.left(now)
}

// NextTimeout is when HandleTimeout is due.
func (n *Node) NextTimeout() (time.Time, bool) {
	t, ok := n.ike.NextTimeout()
	if n.resuming != nil {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return n.resumeAt, true })
	}
	if !n.leaving.IsZero() {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return n.leaving, !n.stopped })
	}
	if n.authority != nil {
		t, ok = earlier(t, ok, n.authority.NextTimeout)
		t, ok = earlier(t, ok, n.journal.NextTimeout)
		t, ok = earlier(t, ok, n.finishAt)
		t, ok = earlier(t, ok, n.nextLeave)
		t, ok = earlier(t, ok, n.nextCopy)
		if n.owner && n.journal.Pending() {
			t, ok = earlier(t, ok, func() (time.Time, bool) { return n.lagAt, true })
		}
	}
	return t, ok
}

func earlier(t time.Time, ok bool, f func() (time.Time, bool)) (time.Time, bool) {
	if u, uok := f(); uok && (!ok || u.Before(t)) {
		return u, true
	}
	return t, ok
}

// lag reports how old the oldest unacknowledged frame of each member is.
func (n *Node) lag(now time.Time) {
	if !n.owner || now.Before(n.lagAt) {
		return
	}
	n.lagAt = now.Add(lagEvery)
	for _, id := range n.authority.SyncSet() {
		old := n.journal.Lag(now, id)
		if old >= lagEvery || n.lagging[id] {
			n.lagging[id] = old >= lagEvery
			n.authority.HandleLag(now, id, old)
		}
	}
}

// Reload takes a new configuration; what did not change is not touched.
func (n *Node) Reload(now time.Time, c *config.Config) {
	n.cfg = c
	n.resume(now)
	n.ike.Reconfigure(now, c)
	if n.elector != nil {
		n.elector.Reconfigure(now, c.HA)
	}
	n.pump(now)
}

// Up negotiates a phase 2; Down deletes it.
func (n *Node) Up(now time.Time, phase1, phase2 string) error {
	defer n.pump(now)
	n.resume(now)
	return n.ike.Up(now, phase1, phase2)
}

// Down deletes the Child SAs of a phase 2, with DELETE to the peer.
func (n *Node) Down(now time.Time, phase1, phase2 string) error {
	defer n.pump(now)
	n.resume(now)
	return n.ike.Down(now, phase1, phase2)
}

// Clear deletes the IKE SAs of a tunnel, or of all for an empty name, and returns how many.
func (n *Node) Clear(now time.Time, name string) int {
	defer n.pump(now)
	n.resume(now)
	return n.ike.Clear(now, name)
}

// Rekey rekeys the Child SAs of a tunnel now, or its IKE SAs if ike, and returns how many.
func (n *Node) Rekey(now time.Time, name string, ike bool) int {
	defer n.pump(now)
	n.resume(now)
	return n.ike.Rekey(now, name, ike)
}

// Redirect sends peers that can follow to their phase 1's other gateways from now on, or no
// longer, and returns how many IKE SAs that concerns.
func (n *Node) Redirect(now time.Time, away bool) int {
	defer n.pump(now)
	n.resume(now)
	return n.ike.Redirect(now, away)
}

// Redirectable is how many IKE SAs of such peers are still here.
func (n *Node) Redirectable() int {
	if !n.owner {
		return 0
	}
	return n.ike.Redirectable()
}

// Failover asks for (or takes back) a planned handover to the other node.
func (n *Node) Failover(now time.Time, set bool) error {
	if n.elector == nil {
		return errStandalone
	}
	defer n.pump(now)
	return n.elector.Failover(now, set)
}

// Shutdown hands over if somebody can take over, deletes its SAs where nobody ever
// could (standalone), and ends with cluster.Stopped.
func (n *Node) Shutdown(now time.Time) {
	if n.authority == nil {
		n.leave(now)
		return
	}
	n.authority.Shutdown(now)
	n.pump(now)
}

// Status is what diagnose shows.
func (n *Node) Status(now time.Time) Status { return statusOf(now, n) }

// Summary is Status without the gateways.
func (n *Node) Summary(now time.Time) Status {
	s := Status{Owner: n.owner, IKE: n.ike.Counters()}
	if n.authority != nil {
		ha := n.authority.Status(now)
		s.HA = &ha
	}
	return s
}

// More adds some of the gateways to a Summary, and says whether there are others. With
// tens of thousands the whole takes longer than whoever watches this process allows.
func (n *Node) More(now time.Time, s *Status, at *Place) (more bool) {
	part, last, more := n.ike.StatusAfter(now, at.after, statusPart)
	s.Gateways = append(s.Gateways, part...)
	at.after = last
	return more
}

// statusPart is how many gateways More adds at a time.
const statusPart = 512

// Place is how far More has come; the zero value is the beginning.
type Place struct {
	scope cluster.ScopeID // of a farm; those before are done
	after uint64          // in the scope, as the engine numbers them
}

// statusOf puts a whole Status together.
func statusOf(now time.Time, g interface {
	Summary(time.Time) Status
	More(time.Time, *Status, *Place) bool
}) Status {
	s := g.Summary(now)
	var at Place
	for g.More(now, &s, &at) {
	}
	return s
}

// Poll returns the next effect; drain it before the next input. Log lines come last:
// writing them takes as long as a frame takes to a member.
func (n *Node) Poll() (Effect, bool) {
	if n.out.Empty() && n.framed {
		n.pump(n.framedAt)
	}
	if n.out.Empty() {
		if l, ok := n.lines.Poll(); ok {
			n.line(l)
		}
	}
	return n.out.Poll()
}

func (n *Node) line(l Log) { n.emit(l) }

func (n *Node) emit(e Effect) { n.out.Emit(e) }

func (n *Node) log(l slog.Level, msg string, attrs ...slog.Attr) {
	n.lines.Emit(Log{Level: l, Message: msg, Attrs: attrs})
}

// coverage is what this node knew about its last life when it started.
func (n *Node) coverage() cluster.Coverage {
	if n.slot != nil {
		return n.opt.Slot.Coverage
	}
	return n.opt.Pair.Coverage
}
