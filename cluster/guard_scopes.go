package cluster

import (
	"cmp"
	"slices"
	"time"

	"tandem/cluster/fsm"
)

// Entitlement, its removal and its claim, each per scope. A pair's one scope is 0:
// whose it is, heartbeats say by role and epoch. Of the others they list those that
// the sender owns.

// holding is our daemon's right to succeed the owner of a scope.
type holding struct {
	scope ScopeID
	state entitled
	epoch Epoch // its node is the owner
}

type entitled uint8

const (
	isEntitled entitled = iota
	// hasClaimed: turned into a takeover that the daemon carries out: no removal is
	// granted until it owns or gives up.
	hasClaimed
)

const (
	// maxTenures bounds the scopes of one node: every virtual cluster but 0, every slot.
	maxTenures = fsm.MaxVClusters - 1 + fsm.MaxNodes*fsm.SlotsPerMember
	// A heartbeat carries so many removals at most; what is more takes turns, as
	// many a heartbeat as always find room.
	maxRemovals  = 48
	sureRemovals = 16
)

// listable says whether heartbeats can list the scope: a virtual cluster or a slot,
// and not scope 0.
func listable(s ScopeID) bool {
	return s > 0 && s < fsm.MaxVClusters || s.Home() >= 1 && s.Home() <= fsm.MaxNodes
}

func byScope(t Tenure, s ScopeID) int { return cmp.Compare(t.Scope, s) }

// epochIn is the epoch of a scope in a list by number; zero if it is not there.
func epochIn(ts []Tenure, s ScopeID) Epoch {
	i, ok := slices.BinarySearchFunc(ts, s, byScope)
	if !ok {
		return Epoch{}
	}
	return ts[i].Epoch
}

// ownedAt is the epoch under which the sender owns the scope; of scope 0, the epoch
// that it knows. Zero: it does not own it.
func (a *Announce) ownedAt(s ScopeID) Epoch {
	if s == 0 {
		return a.Epoch
	}
	return epochIn(a.Owned, s)
}

// ownTenures is what of a list makes sense for ourselves, by number.
func (g *Guard) ownTenures(in []Tenure) []Tenure {
	out := slices.DeleteFunc(slices.Clone(in), func(t Tenure) bool {
		return !listable(t.Scope) || t.Epoch.Node != g.opt.Self || checkEpoch(t.Epoch) != nil
	})
	slices.SortStableFunc(out, func(a, b Tenure) int { return cmp.Compare(a.Scope, b.Scope) })
	return slices.CompactFunc(out, func(a, b Tenure) bool { return a.Scope == b.Scope })
}

// owns says whether our daemon owns the scope.
func (g *Guard) owns(s ScopeID) bool {
	if s == 0 {
		return g.attached && g.said.Role == RoleOwner
	}
	return g.attached && g.said.ownedAt(s) != (Epoch{})
}

// entitlement is what we hold for the scope; nil: nothing.
func (g *Guard) entitlement(s ScopeID) *holding {
	i, ok := slices.BinarySearchFunc(g.held, s, func(h holding, s ScopeID) int { return cmp.Compare(h.scope, s) })
	if !ok {
		return nil
	}
	return &g.held[i]
}

func (g *Guard) hold(s ScopeID, e Epoch) {
	i, ok := slices.BinarySearchFunc(g.held, s, func(h holding, s ScopeID) int { return cmp.Compare(h.scope, s) })
	if !ok {
		g.held = slices.Insert(g.held, i, holding{})
	}
	g.held[i] = holding{s, isEntitled, e}
}

func (g *Guard) release(s ScopeID) {
	g.held = slices.DeleteFunc(g.held, func(h holding) bool { return h.scope == s })
}

// HandleEntitle holds or drops our entitlement for a scope. It is not granted when
// the owner is not heard, went on under a later epoch, or had us removed from this
// one; and of a listed scope, when the owner does not list it yet or any more,
// somebody else lists it at a later epoch, or a later one is held already.
func (g *Guard) HandleEntitle(now time.Time, e Entitle) {
	if !g.attached {
		return
	}
	if !e.On {
		g.release(e.Scope)
		g.send(now, 1, true)
		return
	}
	p := g.find(e.Epoch.Node)
	if h := g.entitlement(e.Scope); h != nil && h.state == hasClaimed && h.epoch.Node == e.Epoch.Node && (p == nil || p.lost) {
		// Asked for before the daemon heard of the loss: what we held then is the claim.
		g.logf("no longer entitled%s at epoch %v: the owner is lost", of(e.Scope), e.Epoch)
		return
	}
	if p == nil || !p.heard || !p.hb.Running || p.lost {
		g.refuse(e.Scope, "the owner is not heard")
		return
	}
	if r := epochIn(g.removed, e.Scope); !r.Less(e.Epoch) {
		g.refuse(e.Scope, "this node was removed from epoch "+r.String())
		return
	}
	at := p.hb.Announce.ownedAt(e.Scope)
	if e.Epoch.Less(at) {
		g.refuse(e.Scope, "the owner is at epoch "+at.String())
		return
	}
	if e.Scope != 0 {
		if why := g.unlisted(e, at); why != "" {
			g.refuse(e.Scope, why)
			return
		}
	}
	g.hold(e.Scope, e.Epoch)
	g.emit(TellEntitled{Scope: e.Scope, Epoch: e.Epoch})
	g.send(now, 1, true)
}

// unlisted says what else keeps a listed scope's entitlement from being granted;
// at is the epoch at which its owner lists it.
func (g *Guard) unlisted(e Entitle, at Epoch) string {
	switch h := g.entitlement(e.Scope); {
	case !listable(e.Scope):
		return "no such scope"
	case at == Epoch{}:
		return "the owner does not say that it owns it"
	case g.owns(e.Scope):
		return "this node owns it"
	case h != nil && e.Epoch.Less(h.epoch):
		return "a later epoch was asked for before"
	}
	for _, p := range g.peers {
		if at := p.hb.Announce.ownedAt(e.Scope); p.heard && e.Epoch.Less(at) {
			return p.hb.Name + " is at epoch " + at.String()
		}
	}
	return ""
}

func of(s ScopeID) string {
	if s == 0 {
		return ""
	}
	return " for " + s.String()
}

func (g *Guard) refuse(s ScopeID, why string) {
	g.release(s)
	g.logf("not entitled%s: %s", of(s), why)
	g.toDaemon(TellRemoved{Scope: s, Node: g.opt.Self})
}

// drop gives our entitlement up.
func (g *Guard) drop(s ScopeID, why string) {
	if h := g.entitlement(s); h != nil && h.state == isEntitled {
		g.release(s)
		g.logf("entitlement given up%s: %s", of(s), why)
		g.toDaemon(TellRemoved{Scope: s, Node: g.opt.Self})
	}
}

// overtake ends what we hold for epochs that have passed, says a heartbeat.
func (g *Guard) overtake(h *Heartbeat) {
	var passed []holding
	for _, held := range g.held {
		if held.epoch.Less(h.Announce.ownedAt(held.scope)) {
			passed = append(passed, held)
		}
	}
	for _, held := range passed {
		at := h.Announce.ownedAt(held.scope)
		switch {
		case held.state == isEntitled && (held.scope != 0 || held.epoch.Node == h.Node):
			g.drop(held.scope, "the owner went on under epoch "+at.String())
		// A takeover that our daemon has not carried out yet, and now comes too late.
		case held.state == hasClaimed && (held.scope != 0 || h.Running && h.Announce.Role == RoleOwner):
			g.release(held.scope)
			g.logf("takeover too late%s: %s owns at epoch %s", of(held.scope), h.Name, at)
			g.toDaemon(TellRemoved{Scope: held.scope, Node: g.opt.Self})
		}
	}
}

// claimAll turns what we hold of a lost owner's scopes into claims: of scope 0, and
// of the others.
func (g *Guard) claimAll(owner NodeID) (entitled bool, claimed []Tenure) {
	for i := range g.held {
		h := &g.held[i]
		if h.epoch.Node != owner {
			continue
		}
		h.state = hasClaimed
		if h.scope == 0 {
			entitled = true
		} else {
			claimed = append(claimed, Tenure{h.scope, h.epoch})
		}
	}
	return entitled, claimed
}

// holdings are what heartbeats say that we hold, of scope 0 and of the others.
func (g *Guard) holdings() (pair Epoch, others []Tenure) {
	for _, h := range g.held {
		if h.scope == 0 {
			pair = h.epoch
		} else {
			others = append(others, Tenure{h.scope, h.epoch})
		}
	}
	return pair, others
}

// HandleClaim turns an entitlement into ownership of an epoch: handed over to us, or
// promised to us as the lost owner's successor.
func (g *Guard) HandleClaim(_ time.Time, c Claim) {
	h := g.entitlement(c.Scope)
	ok := g.attached && h != nil && (c.Scope == 0 || h.epoch.Less(c.Epoch))
	if ok {
		h.state = hasClaimed
	}
	g.toDaemon(TellClaimed{Scope: c.Scope, Epoch: c.Epoch, OK: ok})
}

// HandleAskRemoval asks a member's guardian to give up its entitlement for a scope
// that we own, until it answers or is lost.
func (g *Guard) HandleAskRemoval(now time.Time, a AskRemoval) {
	p := g.find(a.Node)
	if p == nil || !p.heard || !g.attached {
		return // its loss has been told, or is about to be
	}
	if a.Scope != 0 && !g.owns(a.Scope) {
		g.logf("the daemon asks for a removal%s, which it does not own", of(a.Scope))
		return
	}
	g.nonce++
	p.requests = setRemoval(p.requests, Removal{Scope: a.Scope, Node: a.Node, Nonce: g.nonce, Epoch: g.said.ownedAt(a.Scope)})
	g.send(now, 1, true)
}

// setRemoval puts the removal in its scope's place of a list by scope.
func setRemoval(rs []Removal, r Removal) []Removal {
	i, ok := slices.BinarySearchFunc(rs, r.Scope, func(r Removal, s ScopeID) int { return cmp.Compare(r.Scope, s) })
	if !ok {
		rs = slices.Insert(rs, i, Removal{})
	}
	rs[i] = r
	return rs
}

// grant answers the peer's requests to give up our entitlement.
func (g *Guard) grant(now time.Time, p *guardPeer) {
	before := p.answered
	p.answered = nil
	for _, r := range p.hb.Requests {
		if r.Node != g.opt.Self || r.Nonce == 0 {
			continue
		}
		if !slices.ContainsFunc(before, func(a Removal) bool { return a.Scope == r.Scope && a.Nonce == r.Nonce }) {
			if h := g.entitlement(r.Scope); h != nil && h.state == hasClaimed || g.owns(r.Scope) {
				continue // too late: our daemon owns, or is about to
			}
			if epochIn(g.removed, r.Scope).Less(r.Epoch) {
				g.setRemoved(r.Scope, r.Epoch)
			}
			if h := g.entitlement(r.Scope); h != nil && !r.Epoch.Less(h.epoch) {
				g.drop(r.Scope, p.hb.Name+" asked for it")
			}
			g.send(now, 1, true)
		}
		p.answered = setRemoval(p.answered, Removal{Scope: r.Scope, Nonce: r.Nonce})
	}
}

func (g *Guard) setRemoved(s ScopeID, e Epoch) {
	i, ok := slices.BinarySearchFunc(g.removed, s, byScope)
	if !ok {
		g.removed = slices.Insert(g.removed, i, Tenure{Scope: s})
	}
	g.removed[i].Epoch = e
}

// takeAnswers tells the daemon which of the removals that we asked for are done.
func (g *Guard) takeAnswers(p *guardPeer) {
	for _, a := range p.hb.Answers {
		i := slices.IndexFunc(p.requests, func(r Removal) bool { return r.Scope == a.Scope && r.Nonce == a.Nonce })
		if i < 0 || a.Node != g.opt.Self {
			continue
		}
		p.requests = slices.Delete(p.requests, i, i+1)
		g.toDaemon(TellRemoved{Scope: a.Scope, Node: p.hb.Node})
	}
}

// someOf takes as many removals as a heartbeat may carry, those of scope 0 always.
// Where there are many, each call begins further on; the first are the last to be
// left out (Heartbeat.Marshal).
func someOf(all []Removal, at *int) (out []Removal) {
	if len(all) <= sureRemovals {
		return all
	}
	var others []Removal
	for _, r := range all {
		if r.Scope == 0 {
			out = append(out, r)
		} else {
			others = append(others, r)
		}
	}
	if len(others) == 0 {
		return out
	}
	begin := *at % len(others)
	*at = begin + sureRemovals
	n := min(len(others), maxRemovals)
	out = append(out, others[begin:min(begin+n, len(others))]...)
	return append(out, others[:max(0, begin+n-len(others))]...)
}

// succeedable says whether somebody can take our daemon's place in something it owns;
// stalled: somebody who makes no progress either counts.
func (g *Guard) succeedable(stalled bool) bool {
	return slices.ContainsFunc(g.peers, func(p *guardPeer) bool {
		if !p.heard || !p.hb.Running || p.hb.Stalled && !stalled {
			return false
		}
		return g.said.Role == RoleOwner && p.hb.Entitled == g.said.Epoch ||
			slices.ContainsFunc(g.said.Owned, func(t Tenure) bool { return epochIn(p.hb.EntitledTo, t.Scope) == t.Epoch })
	})
}

// Entitled says whether our entitlement for scope 0 is held, and for which epoch.
func (g *Guard) Entitled() (Epoch, bool) { return g.EntitledTo(0) }

// EntitledTo says whether our entitlement for a scope is held and not claimed, and
// for which epoch.
func (g *Guard) EntitledTo(s ScopeID) (Epoch, bool) {
	h := g.entitlement(s)
	if h == nil {
		return Epoch{}, false
	}
	return h.epoch, h.state == isEntitled
}
