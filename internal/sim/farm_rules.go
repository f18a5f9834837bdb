package sim

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// The rules that only farms have.
const (
	RuleForward Rule = "wrong-member packets reach the owner"
	RuleRanges  Rule = "no number of a range is given out twice"
	RuleDrain   Rule = "a drained member owns nothing"
	RuleQuorum  Rule = "without quorum owners and successors go on"
)

// farmRules knows the truth about who owns, and judges.
type farmRules struct {
	w      *farm
	scopes map[cluster.ScopeID]*scopeTruth
	epochs map[cluster.Tenure]cluster.ProcessID
	frames map[frameID]handedOver

	cuts        int           // partitions so far
	united      time.Duration // end of the latest one
	disturbedAt time.Duration // when anything but a crash disturbed the farm last, to its end
	broken      time.Duration // end of the latest fault, crashes included
	wholeSince  time.Duration // since when everything can reach everything; -1: it cannot
	heals       time.Duration
	slots       int           // that were decided
	slotsAt     time.Duration // when their number changed last
	logSince    time.Duration // since when all that live have a leader whom they reach
	quorate     map[cluster.NodeID]lostQuorum
	logNoted    uint64                // the entry that was noted last
	strayed     map[ipsec.ESPSPI]bool // clients' Child SAs, by inbound SPI, and whether the client alone may know them; see stray
}

type frameID struct {
	process, to cluster.ProcessID
	scope       cluster.ScopeID
	seq         uint64
}

// handedOver is a frame that was handed to a replica.
type handedOver struct {
	epoch  cluster.Epoch
	passed cluster.Epoch // another member's later one that the receiver had seen by then; zero: none
}

// scopeTruth is one scope as it really is.
type scopeTruth struct {
	id       cluster.ScopeID
	active   []*farmLife
	split    bool          // two are active, or were and it has not healed
	sides    []*farmLife   // were active beside another in that split, and have ended
	tolerate time.Duration // until when rules 2 to 4 rest
	double   time.Duration // since when two are active although nothing keeps them apart; 0: they are not
	changed  time.Duration // last change of who is active
	handed   bool          // that was a planned handover
	fell     *fallenOwner
	before   *farmLife     // who stopped owning last, alive
	reached  cluster.Epoch // under which it owned then
}

// fallenOwner is an owner that died while somebody was entitled and nothing else was wrong.
type fallenOwner struct {
	m        *member
	at       time.Duration
	entitled []*farmDaemon
}

// lostQuorum is what was owned on a member's side when it lost its quorum.
type lostQuorum struct {
	since  time.Duration
	scopes []cluster.ScopeID
}

// farmLife is one run of a member's daemon, as far as checkers remember it.
type farmLife struct {
	m       *member
	process cluster.ProcessID
	dead    bool
	used    map[*farmRecord]bool              // in splits
	seen    map[cluster.ScopeID]cluster.Epoch // latest that it owned, or acknowledged a frame of
	owned   map[cluster.ScopeID]cluster.Epoch // now
}

// takeover is how a daemon tells that it owns.
type takeover struct {
	covered, trusted, handover bool
	scope, reason              string
}

func (r *farmRules) init(w *farm) {
	r.w = w
	r.scopes, r.epochs = map[cluster.ScopeID]*scopeTruth{}, map[cluster.Tenure]cluster.ProcessID{}
	r.frames, r.quorate = map[frameID]handedOver{}, map[cluster.NodeID]lostQuorum{}
	r.strayed = map[ipsec.ESPSPI]bool{}
}

func (r *farmRules) scope(id cluster.ScopeID) *scopeTruth {
	s := r.scopes[id]
	if s == nil {
		s = &scopeTruth{id: id}
		r.scopes[id] = s
	}
	return s
}

// settleTime is how long after a disturbance the farm may still be finding its feet:
// silence is noticed, a leader elected, what was lost reported and decided.
const settleTime = 6 * time.Second

// calm: nothing but crashes has happened for a while.
func (r *farmRules) calm() bool { return r.w.now-r.disturbedAt > settleTime && r.w.whole() }

// disturbed notes a fault that lasts for d.
func (r *farmRules) disturbed(v Verb, d time.Duration) {
	r.broken = max(r.broken, r.w.now+d)
	switch v {
	case Kill, CrashAt:
	default:
		r.disturbedAt = max(r.disturbedAt, r.w.now+d)
	}
}

// excused: rules 2 to 4 rest for this SA.
func (r *farmRules) excused(x *farmRecord) bool {
	if x.tainted {
		return true
	}
	s := r.scopes[x.scope]
	return s != nil && (s.split || r.w.now < s.tolerate)
}

// excuseScope lets the clients of a scope begin anew for a while.
func (r *farmRules) excuseScope(id cluster.ScopeID, d time.Duration) {
	for _, c := range r.w.clients {
		if c.scope == id {
			c.excuse(d)
		}
	}
}

// taint gives up on the SAs of a scope: their peers may be further than anybody knows.
func (r *farmRules) taint(id cluster.ScopeID) {
	for _, x := range r.w.ledger.list {
		if x.scope == id {
			x.tainted = true
		}
	}
	for _, c := range r.w.clients {
		if c.scope != id || c.d == nil {
			continue
		}
		for _, s := range c.d.p.list {
			if !r.w.held(s) {
				r.strayed[s.SPIIn] = true
			}
		}
	}
	r.excuseScope(id, 90*time.Second)
}

// announced: an epoch belongs to one process.
func (r *farmRules) announced(d *farmDaemon, a cluster.Announce) {
	l := d.lifetime
	l.owned = map[cluster.ScopeID]cluster.Epoch{}
	for _, t := range a.Owned {
		if t.Epoch.Node != d.m.id {
			r.w.violate(RuleEpoch, "%s owns %v in epoch %s, which is another member's", d.m.name, t.Scope, t.Epoch)
		}
		if p, ok := r.epochs[t]; ok && p != d.process {
			r.w.violate(RuleEpoch, "%s owns %v in epoch %s, as another process did", d.m.name, t.Scope, t.Epoch)
		}
		r.epochs[t] = d.process
		l.owned[t.Scope] = t.Epoch
		l.sees(t.Scope, t.Epoch)
	}
}

func (l *farmLife) sees(s cluster.ScopeID, e cluster.Epoch) {
	if l.seen == nil {
		l.seen = map[cluster.ScopeID]cluster.Epoch{}
	}
	if l.seen[s].Less(e) {
		l.seen[s] = e
	}
}

// activates: d's data plane begins to carry a scope's packets.
func (r *farmRules) activates(d *farmDaemon, id cluster.ScopeID) {
	w, s, l := r.w, r.scope(id), d.lifetime
	if slices.Contains(s.active, l) {
		return
	}
	if len(s.active) > 0 {
		if r.calm() {
			w.violate(RuleOwners, "%s begins to own %v while %s owns it, although nothing has come between them", d.m.name, id, s.active[0].m.name)
		}
		s.split = true
		w.Result.States["split of a slot"]++
		w.note(d.m.name, "truth", "two owners of %v now: %s and %s", id, s.active[0].m.name, d.m.name)
	} else if s.changed > 0 {
		w.Result.Takeovers++
		r.leftBehind(d, s)
	}
	s.active = append(s.active, l)
	s.changed, s.handed = w.now, false
	w.state(d.m.name, "owner")
}

// leftBehind: with quorum-loss stop, who lost its last standby by silence goes on alone until
// it hears that the quorum is lost, and who was left behind acts when it hears that there is
// one. If that comes after, the two never own at once; and still nobody but the first knows
// what it used last, so that this takeover is not covered. It is a split as any other, until
// that has reached the owner.
func (r *farmRules) leftBehind(d *farmDaemon, s *scopeTruth) {
	l, b := d.lifetime, s.before
	if !r.w.s.Farm.Stop || r.calm() || b == nil || b == l || b.dead || !l.seen[s.id].Less(s.reached) {
		return
	}
	s.split, s.sides = true, []*farmLife{b}
	r.w.Result.States["owner left its successor behind"]++
	r.w.note(d.m.name, "truth", "%s had gone on alone with %v, in %v", b.m.name, s.id, s.reached)
}

func (r *farmRules) deactivates(d *farmDaemon, id cluster.ScopeID) { r.ends(d.lifetime, r.scope(id)) }

func (r *farmRules) ends(l *farmLife, s *scopeTruth) {
	if i := slices.Index(s.active, l); i >= 0 {
		s.active = slices.Delete(s.active, i, i+1)
		s.before, s.reached, s.changed = l, l.owned[s.id], r.w.now
		if s.split {
			s.sides = append(s.sides, l)
		}
		r.heal(s)
	}
}

// heal ends a split when one owner is left and nothing keeps members apart any more, nor
// the streams by which the other sides tell it what they did. What all did is one within a
// second.
func (r *farmRules) heal(s *scopeTruth) {
	if s.split && len(s.active) <= 1 && r.w.whole() && r.told(s) {
		s.split, s.sides = false, nil
		s.tolerate = max(s.tolerate, r.w.now+time.Second)
		r.w.note("", "truth", "the split of %v has healed", s.id)
	}
}

// told says that everybody who lives of a split's sides has a stream to the owner.
func (r *farmRules) told(s *scopeTruth) bool {
	for _, o := range s.active {
		for _, l := range s.sides {
			if l.dead || l == o {
				continue
			}
			if p := r.w.streams.pipe(l.m, o.m); !p.up || r.w.now < p.stalled {
				return false
			}
		}
	}
	return true
}

// died: a process is gone, and its memory with it.
func (r *farmRules) died(d *farmDaemon) {
	w, l := r.w, d.lifetime
	l.dead = true
	r.broken = max(r.broken, w.now)
	for _, id := range sortedScopes(r.scopes) {
		s := r.scopes[id]
		was := slices.Contains(s.active, l)
		apart := s.split || w.now < s.tolerate+time.Second
		r.ends(l, s)
		s.fell = nil
		if apart {
			for x := range l.used {
				if x.scope == id {
					x.tainted = true
				}
			}
			r.excuseScope(id, 90*time.Second)
		}
		if !was {
			continue
		}
		if !d.quorum && len(s.active) == 0 {
			r.fellWithoutQuorum(id)
		}
		if !r.calm() {
			// It may have gone on alone behind a cut.
			if w.now-r.disturbedAt < settleTime || !w.whole() {
				r.taint(id)
			}
			continue
		}
		f := &fallenOwner{m: d.m, at: w.now}
		for _, o := range w.members[1:] {
			if o.guard == nil || o.d == nil {
				continue
			}
			if e, ok := o.guard.EntitledTo(id); ok && e.Node == d.m.id && !e.Less(l.owned[id]) {
				f.entitled = append(f.entitled, o.d)
			}
		}
		if len(f.entitled) == 0 {
			w.Result.States["owner died alone"]++
			r.taint(id)
			continue
		}
		s.fell = f
	}
}

// takesOver: d tells that it owns a scope.
func (r *farmRules) takesOver(d *farmDaemon, t takeover) {
	w := r.w
	var id cluster.ScopeID
	for _, x := range sortedScopes(r.scopes) {
		if x.String() == t.scope {
			id = x
		}
	}
	s := r.scopes[id]
	if s == nil {
		return
	}
	if t.handover {
		w.Result.Handovers++
		s.handed = true
	}
	if !t.covered || !t.trusted {
		w.Result.Uncovered++
		w.Result.States["uncovered takeover"]++
		r.taint(id)
	}
	f := s.fell
	s.fell = nil
	if f == nil || !r.calm() || t.covered && t.trusted {
		return
	}
	for _, o := range f.entitled {
		if !o.dead {
			w.violate(RuleCoverage, "%s died when %s was entitled to succeed it in %v and nothing else was wrong; %s says covered=%v trusted=%v (%s)",
				f.m.name, o.m.name, id, d.m.name, t.covered, t.trusted, t.reason)
			return
		}
	}
}

// uses: an owner uses a number of an SA. Everybody who is entitled to succeed it under
// this epoch or a later one must know of a bound that lies above.
func (r *farmRules) uses(p *farmPlane, s *farmSA, x *farmRecord, dir xfrm.Direction, seq uint64) {
	w := r.w
	id := x.scope
	t := r.scopes[id]
	var l *farmLife
	if t != nil {
		for _, o := range t.active {
			if o.process == p.process {
				l = o
			}
		}
	}
	if l == nil {
		if dir == xfrm.Outbound {
			w.violate(RuleOwners, "%s sends on SPI %s of %v, which it does not own", p.who, x.id.spi, id)
		}
		return
	}
	if t.split {
		l.used[x] = true
	}
	mine := l.owned[id]
	if dir == xfrm.Inbound && s.ReplayWindow == 0 {
		return
	}
	for _, o := range w.members[1:] {
		if o == l.m || o.guard == nil || o.d == nil {
			continue
		}
		e, ok := o.guard.EntitledTo(id)
		if e.Node == l.m.id && e.Less(mine) { // left behind, or what it claims
			l.used[x] = true
		}
		if !ok || e.Node != l.m.id || e.Less(mine) || mine == (cluster.Epoch{}) {
			continue
		}
		have := o.d.p.sas[s.SPIIn]
		switch {
		case have == nil && o.d.p.gone[s.SPIIn]: // the record that ends it comes here first
		case have == nil && s.Phase1 != "vpn1" && w.now-r.slotsAt < settleTime:
			// Slots came: the site's tunnel falls to another, and o has heard that sooner.
		case have == nil && ended(l.m.d, s.SPIIn):
			// The owner has, but for somebody else who has not acknowledged that yet. The
			// copy that o got since is without the SA, so nobody can use it after.
		case have == nil:
			w.violate(RuleGate, "%s uses #%d of SPI %s of %v, which %s does not know, who is entitled to succeed it", p.who, seq, x.id.spi, id, o.name)
		case dir == xfrm.Outbound && have.out.Bound() < seq, dir == xfrm.Inbound && have.in.Bound() < seq:
			w.violate(RuleGate, "%s uses #%d of SPI %s (%s) of %v; %s is entitled to succeed it and knows the bound %d", p.who, seq, x.id.spi, boundName(dir), id, o.name,
				map[xfrm.Direction]uint64{xfrm.Outbound: have.out.Bound(), xfrm.Inbound: have.in.Bound()}[dir])
		}
	}
}

// ended says that a member's engine has ended a Child SA that its data plane still has.
func ended(d *farmDaemon, spi ipsec.ESPSPI) bool {
	for _, g := range d.f.Status(d.m.w.at()).Gateways {
		for _, c := range g.Children {
			if c.SA.SPIIn == spi {
				return false
			}
		}
	}
	return true
}

// handed: a frame of d is about to be handed to o.
func (r *farmRules) handed(o, d *farmDaemon, e statesync.SendFrame) {
	f := &syncpb.Frame{}
	// A side that gives way tells what it did, and who writes a letter does not own.
	if proto.Unmarshal(e.Frame, f) == nil && len(f.Events) > 0 && f.Events[0].GetUnite() == nil && f.Events[0].GetLetter() == nil {
		h := handedOver{epoch: cluster.Epoch{Counter: f.EpochCounter, Node: cluster.NodeID(f.EpochNode)}}
		if seen := o.lifetime.seen[e.Scope]; h.epoch.Less(seen) && h.epoch.Node != seen.Node {
			h.passed = seen
		}
		r.frames[frameID{d.process, o.process, e.Scope, e.Seq}] = h
	}
}

// acks: d acknowledges a frame. What an owner sent under an epoch that has passed, and
// another member has owned since, is refused.
func (r *farmRules) acks(d *farmDaemon, a statesync.SendAck) {
	h, ok := r.frames[frameID{a.Process, d.process, a.Scope, a.Seq}]
	if !ok {
		return
	}
	if h.passed != (cluster.Epoch{}) {
		r.w.violate(RuleEpoch, "%s acknowledges a frame of %v from epoch %s, which came when it had seen %s", d.m.name, a.Scope, h.epoch, h.passed)
	}
	d.lifetime.sees(a.Scope, h.epoch)
}

// forwards: a member sends a packet on to another. The number of hops bounds every loop;
// back to the first it goes where that has become the owner meanwhile.
func (r *farmRules) forwards(from, to *member, trail []cluster.NodeID) {
	if len(trail) > forwardHops || from == to {
		r.w.violate(RuleForward, "%s forwards to %s what was forwarded already, by %v", from.name, to.name, trail)
	}
}

// dropped: a member drops an ESP packet whose SA is not active there.
func (r *farmRules) dropped(p *farmPlane, id cluster.ScopeID, x *farmESP, forwarded bool) {
	w := r.w
	s := r.scopes[id]
	if !forwarded || s == nil || len(s.active) != 1 || !r.calm() || w.now-r.broken < settleTime || w.now-s.changed < time.Second || s.active[0].process == p.process {
		return
	}
	w.violate(RuleForward, "%s got a forwarded packet of %v (SPI %s), which %s owns", p.who, id, x.spi, s.active[0].m.name)
}

// pays: an owner refuses an authentic packet that was not delivered before. A planned
// handover costs none.
func (r *farmRules) pays(p *farmPlane, s *farmSA, x *farmESP) {
	w := r.w
	t := r.scopes[cluster.ScopeID(s.scope.id)]
	rec := w.ledger.record(s.SPIIn, s.keyIn)
	if t == nil || !t.handed || !r.calm() || w.now-r.broken < settleTime || r.excused(rec) || w.now-t.changed > time.Second || w.now-x.inner.at > 500*time.Millisecond {
		return
	}
	w.violate(RulePrice, "%s rejects #%d of SPI %s after the planned handover of %v at %v", p.who, x.seq, s.SPIIn, t.id, t.changed)
}

// begins: a client sends something. Once its tunnel was up, it never begins anew unless
// something excuses that.
func (r *farmRules) begins(c *caller, raw []byte) {
	if len(raw) < 20 || raw[18] != 34 || raw[19]&0x20 != 0 || !c.up || r.w.now < c.excused {
		return
	}
	r.w.violate(RuleLost, "%s begins anew; its tunnel was in %v", c.name, c.scope)
}

// find is where a client's Child SA is in use: its owner, and its scope.
func (w *farm) find(spi ipsec.ESPSPI) (o *member, id cluster.ScopeID, owners int) {
	for _, m := range w.members[1:] {
		if m.d == nil {
			continue
		}
		if s := m.d.p.sas[spi]; s != nil && s.scope.active {
			o, id = m, cluster.ScopeID(s.scope.id)
			owners++
		}
	}
	return o, id, owners
}
