package sim

import (
	"fmt"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

// poll looks at the farm now and then.
func (r *farmRules) poll() {
	w := r.w
	if w.done {
		return
	}
	w.after(100*time.Millisecond, r.poll)
	switch {
	case !w.whole():
		r.wholeSince = -1
	case r.wholeSince < 0:
		r.wholeSince = w.now
	}
	r.pollLog()
	r.pollNumbers()
	for _, id := range sortedScopes(r.scopes) {
		r.pollScope(r.scopes[id])
	}
	for _, c := range w.clients {
		r.pollClient(c)
	}
	for _, m := range w.members[1:] {
		r.pollQuorum(m)
		r.pollDrain(m)
	}
}

// pollLog finds since when everybody who lives can have something decided.
func (r *farmRules) pollLog() {
	w := r.w
	l := w.log.Leader()
	ok := l != 0 && w.now >= w.slowLog
	for _, m := range w.members[1:] {
		ok = ok && (m.d == nil || w.reach(m, w.members[l]))
	}
	switch {
	case !ok:
		r.logSince = -1
	case r.logSince < 0:
		r.logSince = w.now
	}
}

// pollNumbers judges what an owner would do with the next packet, before one comes: no
// number that the cluster has used, and nothing delivered that it has delivered. Not every
// SA whose bounds were forgotten is used beneath them, or attacked, in time.
func (r *farmRules) pollNumbers() {
	for _, m := range r.w.members[1:] {
		if m.d == nil || m.d.dead {
			continue
		}
		for _, s := range m.d.p.list {
			t := r.scopes[cluster.ScopeID(s.scope.id)]
			if !s.scope.active || t == nil || t.split || r.w.now < t.tolerate || len(t.active) != 1 || t.active[0].process != m.d.process {
				continue
			}
			r.judge(m, s)
		}
	}
}

func (r *farmRules) judge(m *member, s *farmSA) {
	if x := r.w.ledger.records[saID{s.SPIOut, s.keyOut}]; x != nil && !r.excused(x) {
		next := s.out // a copy: what the next packet would find
		if next.Activate(s.scope.gen); next.Seq() < x.maxSent {
			r.w.violate(RuleSequence, "%s would send #%d on SPI %s of %v, on which the cluster had sent #%d", m.name, next.Seq()+1, s.SPIOut, x.scope, x.maxSent)
		}
	}
	x := r.w.ledger.records[saID{s.SPIIn, s.keyIn}]
	if x == nil || s.ReplayWindow == 0 || r.excused(x) {
		return
	}
	var again uint64
	for _, seq := range x.gotBy {
		if s.in.Window().Check(seq) && (s.in.Generation() == s.scope.gen || s.in.Bound() < seq) {
			again = max(again, seq)
		}
	}
	if again > 0 {
		r.w.violate(RuleReplay, "%s would deliver #%d of SPI %s of %v again", m.name, again, s.SPIIn, x.scope)
	}
}

// healed is how long two may own after nothing keeps them apart any more.
const healed = time.Second

func (r *farmRules) pollScope(s *scopeTruth) {
	w := r.w
	r.heal(s)
	silence := w.s.Setup.HBInterval * time.Duration(w.s.Setup.Threshold)
	switch {
	case len(s.active) < 2 || r.wholeSince < 0:
		s.double = 0
	case s.double == 0:
		s.double = w.now
	case w.now-s.double > healed+silence && w.now-r.wholeSince > healed+silence:
		w.violate(RuleOwners, "%s and %s own %v, and nothing has come between them for %v", s.active[0].m.name, s.active[1].m.name, s.id, w.now-s.double)
	}
	f := s.fell
	if f == nil {
		return
	}
	f.entitled = slices.DeleteFunc(f.entitled, func(d *farmDaemon) bool { return d.dead || d.stopped })
	if len(f.entitled) == 0 || len(s.active) > 0 || !r.calm() || r.logSince < 0 {
		s.fell = nil
		return
	}
	if w.now-max(f.at, r.logSince) > settleTime {
		w.violate(RuleCoverage, "nobody owns %v %v after %s died, although %s was entitled", s.id, w.now-f.at, f.m.name, f.entitled[0].m.name)
	}
}

// pollClient excuses a client that could not reach an owner for long.
func (r *farmRules) pollClient(c *caller) {
	w := r.w
	if c.d == nil {
		return
	}
	ok := false
	for _, s := range c.d.p.list {
		if _, known := r.strayed[s.SPIIn]; !known {
			t := r.scopes[c.scope]
			r.strayed[s.SPIIn] = t != nil && (t.split || w.now < t.tolerate)
		}
		o, id, owners := w.find(s.SPIOut)
		if owners == 0 {
			continue
		}
		c.scope = id
		ok = owners == 1 && s.order > 0 && !o.frozen && !o.d.stopped && c.route.powered && c.route.d != nil && !c.route.d.stopped && w.reach(c.route, o) && w.s.Setup.Loss < 0.2
		if ok && w.ike(c) {
			c.up = true
		}
		if t := r.scopes[id]; t != nil && (t.split || w.now < t.tolerate) {
			c.excuse(90 * time.Second)
		}
	}
	switch {
	case ok:
		c.noPath = 0
	case c.noPath == 0:
		c.noPath = w.now
	case w.now-c.noPath >= 2*time.Second:
		c.excuse(90 * time.Second)
		c.noPath = w.now - 2*time.Second
	}
}

// ike says that a client has one IKE SA and no more.
func (w *farm) ike(c *caller) bool {
	n := 0
	for _, g := range c.d.n.Status(w.at()).Gateways {
		for _, k := range g.IKE {
			if k.State == "established" {
				n++
			}
		}
	}
	return n == 1
}

// pollQuorum: who lost the quorum goes on with what is owned on its side, or stops if it
// shall.
func (r *farmRules) pollQuorum(m *member) {
	w := r.w
	d := m.d
	if d == nil || d.quorum || m.frozen || d.stopped || w.now-d.led < quorumGrace+200*time.Millisecond {
		delete(r.quorate, m.id)
		return
	}
	mine := d.lifetime
	if w.s.Farm.Stop {
		if w.now-d.led > quorumGrace+time.Second {
			for _, id := range sortedScopes(r.scopes) {
				if slices.Contains(r.scopes[id].active, mine) {
					w.violate(RuleQuorum, "%s owns %v without a quorum, although it shall stop then", m.name, id)
				}
			}
		}
		return
	}
	q, known := r.quorate[m.id]
	if !known {
		q = lostQuorum{since: w.now}
		for _, id := range sortedScopes(r.scopes) {
			if t := r.scopes[id]; len(t.active) == 1 && t.active[0] == mine {
				q.scopes = append(q.scopes, id)
			}
		}
		r.quorate[m.id] = q
		if len(q.scopes) > 0 {
			w.Result.States["owner without quorum"]++
		}
		return
	}
	for _, id := range q.scopes {
		t := r.scopes[id]
		if len(t.active) == 0 && w.now-t.changed > 4*time.Second && !d.dead && r.wholeSince >= 0 && w.now-r.wholeSince > 4*time.Second {
			w.violate(RuleQuorum, "%s lost its quorum at %v and owned %v, which nobody owns now", m.name, q.since, id)
		}
	}
}

// fellWithoutQuorum: an owner died without a quorum. Who owned before it, and gave way to
// it as to the successor promised, does not own again: nobody is promised anything after
// that one until something can be decided.
func (r *farmRules) fellWithoutQuorum(id cluster.ScopeID) {
	for n, q := range r.quorate {
		q.scopes = slices.DeleteFunc(q.scopes, func(x cluster.ScopeID) bool { return x == id })
		r.quorate[n] = q
	}
}

// drainTime is how long draining a member may take when nothing is wrong.
const drainTime = 15 * time.Second

func (r *farmRules) pollDrain(m *member) {
	w := r.w
	d := m.d
	if d == nil || m.drainedAt == 0 || w.now-m.drainedAt < drainTime || w.now-r.broken < drainTime || w.now-r.disturbedAt < drainTime || r.logSince < 0 || w.now-r.logSince < drainTime || w.s.Farm.LogLoss > 0 {
		return
	}
	if p, ok := d.state.Member(m.id); !ok || p.State != fsm.Draining {
		return
	}
	able := slices.ContainsFunc(d.state.Members(), func(p fsm.Member) bool { return p.Able() })
	for _, id := range sortedScopes(r.scopes) {
		if able && slices.Contains(r.scopes[id].active, d.lifetime) {
			w.violate(RuleDrain, "%s is being drained since %v and still owns %v", m.name, m.drainedAt, id)
		}
	}
}

// heal ends the schedule: everything works again, and the farm has to settle.
func (w *farm) heal() {
	w.healing = true
	w.armed = nil
	w.slowLog = 0
	w.unite()
	w.streams.heal()
	for _, m := range w.members[1:] {
		switch {
		case !m.powered:
			m.boot()
		case m.frozen:
			m.thaw()
		case m.guard == nil:
			m.startGuardian()
			m.startDaemon()
		}
		if m.d != nil && m.d.stopped {
			m.d.goOn()
		}
		if m.drainedAt > 0 {
			w.undrain(m)
		}
	}
	w.fault("", "everything works again")
	w.rule.heals = w.now
	w.rule.disturbed(Partition, 0)
	w.after(2*time.Second, w.settled)
}

func (w *farm) settled() {
	if w.done || w.ends(w.unsettled(), w.rule.heals) {
		return
	}
	for _, m := range w.members[1:] { // a drain that was not decided, or by a process that died
		if m.d != nil && m.drainedAt == 0 {
			if p, ok := m.d.state.Member(m.id); ok && p.State == fsm.Draining {
				w.undrain(m)
			}
		}
	}
	w.after(500*time.Millisecond, w.settled)
}

// unsettled says what is not well yet.
func (w *farm) unsettled() string {
	var state *fsm.Machine
	for _, m := range w.members[1:] {
		if m.d == nil || !m.d.synced {
			return m.name + " is no member"
		}
		if m.d.index != w.log.Len() {
			return m.name + " does not know all that was decided"
		}
		state = m.d.state
	}
	if len(state.Plan(w.s.Farm.Standbys)) > 0 {
		return "not all is as it was planned"
	}
	scopes := state.Scopes()
	if len(scopes) != 8*w.s.Farm.Members {
		return fmt.Sprintf("there are %d slots", len(scopes))
	}
	for _, s := range scopes {
		t := w.rule.scopes[s.ID]
		switch {
		case t == nil || len(t.active) != 1:
			return fmt.Sprintf("%v has not one owner", s.ID)
		case t.active[0].m.id != s.Owner || s.Owner != s.ID.Home():
			return fmt.Sprintf("%v is owned by %s, and decided to be node %d's", s.ID, t.active[0].m.name, s.Owner)
		case len(s.Sync) != min(w.s.Farm.Standbys, w.s.Farm.Members-1) || s.Successor == 0:
			return fmt.Sprintf("%v has standbys %v, the sync set %v and successor %d", s.ID, s.Standbys, s.Sync, s.Successor)
		}
	}
	for _, c := range w.clients {
		if why := w.unserved(c); why != "" {
			return why
		}
	}
	return w.leftBehind()
}

// unserved says what a client lacks.
func (w *farm) unserved(c *caller) string {
	if c.d == nil {
		return c.name + " is not there"
	}
	if !w.ike(c) {
		return c.name + " has not one IKE SA"
	}
	list := slices.DeleteFunc(slices.Clone(c.d.p.list), w.stray)
	if len(list) != 1 {
		return fmt.Sprintf("%s has %d Child SAs", c.name, len(list))
	}
	if _, id, n := w.find(list[0].SPIOut); n != 1 {
		return fmt.Sprintf("the SA of %s, in %v, has %d owners", c.name, id, n)
	}
	for dir, at := range c.arrived {
		if w.now-at > 2500*time.Millisecond {
			return fmt.Sprintf("nothing of %s arrives in direction %d", c.name, dir)
		}
	}
	return ""
}

// stray says that nobody but the client knows a Child SA of it, and that this may be: the
// member that made it died alone, or it came about in a split in which both sides had sent a
// request with the same message ID, and the answer that made it went to the one whose request
// was not answered. Nothing in IKE tells a peer of that. The client keeps it until its
// lifetime ends, beside the one that carries its traffic.
func (w *farm) stray(s *farmSA) bool { return w.rule.strayed[s.SPIIn] && !w.held(s) }

// held says that a member which lives has the Child SA of a client.
func (w *farm) held(s *farmSA) bool {
	return slices.ContainsFunc(w.members[1:], func(m *member) bool { return m.d != nil && !m.d.dead && m.d.p.sas[s.SPIOut] != nil })
}

// leftBehind finds SAs of members that no client has.
func (w *farm) leftBehind() string {
	for _, m := range w.members[1:] {
		for _, s := range m.d.p.list {
			if !slices.ContainsFunc(w.clients, func(c *caller) bool { return c.d.p.sas[s.SPIOut] != nil }) {
				return fmt.Sprintf("%s holds SPI %s of %v, which no client has", m.name, s.SPIIn, cluster.ScopeID(s.scope.id))
			}
		}
	}
	return ""
}
