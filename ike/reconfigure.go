package ike

import (
	"log/slog"
	"reflect"
	"slices"
	"time"

	"tandem/internal/config"
)

// Reconfigure takes a new configuration. Only what it changes is touched: a
// tunnel that is gone, turned passive or active, or speaks to another peer or as
// another one, is deleted (with DELETE) and negotiated as configured; phase 2
// entries alike; timers and lifetimes count from the next SA on.
func (e *Engine) Reconfigure(now time.Time, cfg *config.Config) {
	defer e.begin(now)()
	old := e.cfg
	e.cfg = cfg
	for _, t := range e.sortedTunnels() {
		e.reconfigureTunnel(old, t)
	}
	for _, sa := range e.sorted() {
		if sa.tunnel == nil { // half open
			sa.p1 = e.phase1(sa.phase1)
		}
	}
	if !e.active {
		return
	}
	for i := range cfg.Phase1 {
		if p1 := &cfg.Phase1[i]; !p1.Dialup() {
			t := e.staticTunnel(p1)
			if len(t.sas) == 0 {
				e.startTunnel(t)
			} else {
				e.scheduleNegotiation(t)
			}
		}
	}
}

func (e *Engine) reconfigureTunnel(old *config.Config, t *tunnel) {
	was := t.p1
	t.p1 = e.phase1(t.phase1)
	if t.p1 != nil && t.p1.Dialup() != t.dialup {
		t.p1 = nil
	}
	for _, sa := range slices.Clone(t.sas) {
		sa.p1 = t.p1
		for _, c := range sa.children {
			c.p2 = e.phase2(sa.phase1, c.Phase2)
		}
	}
	if e.active {
		e.logTunnelUpdate(was, t)
	}
	reason := ""
	switch {
	case t.p1 == nil:
		reason = "removed from the configuration"
	case was != nil && (renews(was, t.p1) || announcesAnew(old, was, e.cfg, t.p1) || asksAnew(old, was, e.cfg, t.p1)):
		reason = "configuration changed"
	}
	for _, sa := range slices.Clone(t.sas) {
		if !e.active {
			continue
		}
		if reason != "" {
			e.close(sa, reason)
		} else if userGone(old, was, e.cfg, t.p1, sa.peerID) {
			e.close(sa, "user changed")
		} else {
			for _, c := range slices.Clone(sa.children) {
				if c.p2 == nil || !fits(c, c.p2) || phase2Renews(old, c) {
					e.endChild(c)
				}
			}
		}
		e.proceed(sa)
		e.arm(sa)
	}
	if t.p1 == nil && len(t.sas) == 0 {
		t.tryAt = time.Time{}
		e.arm(t)
		e.forgetTunnel(t)
		return
	}
	if t.p1 == nil || t.p1.PassiveMode {
		t.wants = nil
	}
	t.tryAt = time.Time{}
	e.scheduleNegotiation(t)
}

// closeUnconfigured ends an IKE SA that came from somebody else whose phase 1 is no longer
// configured here: had this engine been active when that changed, it would have ended then.
func (e *Engine) closeUnconfigured(sa *ikeSA) {
	if t := sa.tunnel; t != nil && t.p1 == nil {
		e.close(sa, "removed from the configuration")
		sa.stalled = e.now.Add(stallWait) // what came at healing is recorded first
	}
}

func (e *Engine) logTunnelUpdate(was *config.Phase1, t *tunnel) {
	if was != nil && (t.p1 == nil || !samePhase1(was, t.p1)) {
		e.logTunnel(t, slog.LevelInfo, "update")
	}
}

func samePhase1(a, b *config.Phase1) bool {
	x, y := *a, *b
	x.Line, y.Line = 0, 0
	return reflect.DeepEqual(x, y)
}

// renews says whether a change of phase 1 needs new IKE SAs: who the peer is, how
// both prove themselves, by what means, and who begins.
func renews(a, b *config.Phase1) bool {
	type essence struct {
		Type, Interface, AuthMethod, PeerType, PeerID, LocalID, LocalIDType, NATTraversal string
		LocalGW, RemoteGW                                                                 any
		PSK, PPK                                                                          string
		Passive                                                                           bool
		Proposals, Groups                                                                 any
		Network                                                                           network
	}
	of := func(p *config.Phase1) essence {
		return essence{p.Type, p.Interface, p.AuthMethod, p.PeerType, p.PeerID, p.LocalID, p.LocalIDType, p.NATTraversal,
			p.LocalGW, p.RemoteGW, string(p.PSK.Bytes()), ppkEssence(p), p.PassiveMode, p.Proposals, [2]any{p.DHGroups, p.AddKE}, networkOf(p)}
	}
	return !reflect.DeepEqual(of(a), of(b))
}

// ppkEssence is all that a phase 1 entry says of its PPK.
func ppkEssence(p *config.Phase1) string {
	if !usesPPK(p) {
		return ""
	}
	return p.PPK + "\x00" + p.PPKIdentity + "\x00" + string(p.PPKSecret.Bytes())
}

// announcesAnew says whether the peer is to be told another address, which is done in
// IKE_AUTH only.
func announcesAnew(was *config.Config, a *config.Phase1, is *config.Config, b *config.Phase1) bool {
	x, xok := announced(was, a)
	y, yok := announced(is, b)
	return x != y || xok != yok || a.ModeCfg != b.ModeCfg
}

// fits says whether a Child SA still lies within its phase 2 entry.
func fits(c *childSA, p2 *config.Phase2) bool {
	return allCovered(p2.Src, c.TSLocal) && allCovered(p2.Dst, c.TSRemote)
}

// phase2Renews says whether a change of phase 2 needs a new Child SA.
func phase2Renews(old *config.Config, c *childSA) bool {
	for i := range old.Phase2 {
		was := &old.Phase2[i]
		if was.Phase1 != c.Phase1 || was.Name != c.Phase2 {
			continue
		}
		return !reflect.DeepEqual(was.Proposals, c.p2.Proposals) || was.PFS != c.p2.PFS || !reflect.DeepEqual(was.AddKE, c.p2.AddKE) || was.Replay != c.p2.Replay ||
			!reflect.DeepEqual(was.Src, c.p2.Src) || !reflect.DeepEqual(was.Dst, c.p2.Dst)
	}
	return false
}
