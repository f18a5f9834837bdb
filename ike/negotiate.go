package ike

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// negotiateInterval is how often auto-negotiate tries until the SA stands.
const negotiateInterval = 5 * time.Second

// Acquire is an outbound packet that no SA matched; ports are 0 where the
// protocol has none.
type Acquire struct {
	Protocol uint8
	Src, Dst netip.AddrPort
}

// mayInitiate says whether a tunnel may begin a negotiation at all.
func (t *tunnel) mayInitiate() bool {
	return t.p1 != nil && !t.dialup && !t.p1.Dialup() && !t.p1.PassiveMode
}

// autoWants are the phase 2 entries that must stand without being asked for.
func (e *Engine) autoWants(t *tunnel) []string {
	if !t.mayInitiate() || !t.p1.AutoNegotiate {
		return nil
	}
	var out []string
	for _, p2 := range e.phase2sOf(t.phase1) {
		if p2.AutoNegotiate {
			out = append(out, p2.Name)
		}
	}
	return out
}

// missing are the phase 2 entries to negotiate now: asked for or automatic, and
// without a Child SA.
func (e *Engine) missing(t *tunnel) []string {
	var out []string
	for _, name := range slices.Concat(t.wants, e.autoWants(t)) {
		if t.child(name) == nil && e.phase2(t.phase1, name) != nil && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// idleStart says that phase 1 itself wants an IKE SA: auto-negotiate, its default.
func (e *Engine) idleStart(t *tunnel) bool {
	return t.mayInitiate() && t.p1.AutoNegotiate && len(e.phase2sOf(t.phase1)) > 0 &&
		!slices.ContainsFunc(t.sas, func(sa *ikeSA) bool { return !sa.closing })
}

// scheduleNegotiation sets when the tunnel is looked at again.
func (e *Engine) scheduleNegotiation(t *tunnel) {
	need := e.idleStart(t) || len(e.missing(t)) > 0
	switch {
	case !need:
		t.tryAt = time.Time{}
	case t.tryAt.IsZero() && e.active:
		t.tryAt = e.now.Add(negotiateInterval)
		e.logTunnel(t, slog.LevelDebug, "schedule auto-negotiate")
	}
	e.arm(t)
}

func (t *tunnel) fire(e *Engine) {
	if t.tryAt.IsZero() || t.tryAt.After(e.now) || e.tunnels[t.name] != t {
		return
	}
	t.tryAt = time.Time{}
	e.negotiate(t)
	if t.tryAt.IsZero() && (e.idleStart(t) || len(e.missing(t)) > 0) {
		t.tryAt = e.now.Add(negotiateInterval)
	}
	e.arm(t)
}

// negotiate begins what the tunnel lacks: an IKE SA, or Child SAs on the one there is.
func (e *Engine) negotiate(t *tunnel) {
	missing := e.missing(t)
	if t.p1 == nil || len(missing) == 0 && !e.idleStart(t) {
		return
	}
	if !e.permitted(t.p1) {
		t.failure = "no policy configured"
		return
	}
	if sa := t.live(); sa != nil {
		for _, name := range missing {
			sa.want(name)
		}
		e.proceed(sa)
		return
	}
	if t.connecting() || !t.mayInitiate() {
		return
	}
	if slices.ContainsFunc(t.sas, func(sa *ikeSA) bool { return sa.state == stateEstablished && !sa.closing }) {
		return
	}
	e.logTunnel(t, slog.LevelDebug, "auto-negotiate connection")
	if len(missing) == 0 {
		// Phase 1 comes up by itself, and with it all of its phase 2 entries, once.
		for _, p2 := range e.phase2sOf(t.phase1) {
			missing = append(missing, p2.Name)
		}
	}
	t.wants = missing
	e.initiate(t, missing[0], nil)
}

// nextWanted takes the first phase 2 entry that an IKE SA is to make a Child SA for.
func (e *Engine) nextWanted(sa *ikeSA) *config.Phase2 {
	for len(sa.wants) > 0 {
		name := sa.wants[0]
		sa.wants = sa.wants[1:]
		p2 := e.phase2(sa.phase1, name)
		if p2 == nil || sa.has(name) {
			continue
		}
		if local, remote := sa.selectors(p2); len(local) > 0 && len(remote) > 0 { // of a family that was assigned
			return p2
		}
	}
	return nil
}

// settled takes off the list of those asked for what stands.
func (e *Engine) settled(t *tunnel) {
	t.wants = slices.DeleteFunc(t.wants, func(name string) bool { return t.child(name) != nil })
	e.scheduleNegotiation(t)
}

// HandleAcquire negotiates for traffic that no SA matched.
func (e *Engine) HandleAcquire(now time.Time, name string, a Acquire) {
	defer e.begin(now)()
	p1 := e.phase1(name)
	if !e.active || p1 == nil || p1.Dialup() {
		return
	}
	for _, p2 := range e.phase2sOf(name) {
		if inAny(p2.Src, a.Src, a.Protocol) && inAny(p2.Dst, a.Dst, a.Protocol) {
			t := e.staticTunnel(p1)
			if t.acquired == nil {
				t.acquired = map[string]Acquire{}
			}
			t.acquired[p2.Name] = a
			e.ask(t, p2.Name)
			return
		}
	}
}

func inAny(ts []ipsec.TrafficSelector, a netip.AddrPort, proto uint8) bool {
	return slices.ContainsFunc(ts, func(t ipsec.TrafficSelector) bool { return t.Contains(a.Addr().Unmap(), proto, a.Port()) })
}

// ask negotiates one phase 2 entry now.
func (e *Engine) ask(t *tunnel, phase2 string) {
	if !t.mayInitiate() && t.live() == nil || t.p1 == nil || t.p1.PassiveMode || t.child(phase2) != nil {
		return
	}
	if !slices.Contains(t.wants, phase2) {
		t.wants = append(t.wants, phase2)
	}
	e.negotiate(t)
	if sa := t.live(); sa != nil {
		e.arm(sa)
	}
	if t.tryAt.IsZero() {
		t.tryAt = e.now.Add(negotiateInterval)
	}
	e.arm(t)
}

// Up negotiates a phase 2 entry of a tunnel, or all of them when phase2 is empty.
func (e *Engine) Up(now time.Time, phase1, phase2 string) error {
	defer e.begin(now)()
	if !e.active {
		return errNotActive
	}
	p1 := e.phase1(phase1)
	switch {
	case p1 == nil:
		return fmt.Errorf("tunnel %s is not configured", phase1)
	case p1.Dialup():
		return fmt.Errorf("tunnel %s is dialup: only its clients begin", phase1)
	case p1.PassiveMode:
		return fmt.Errorf("tunnel %s is passive: only its peer begins", phase1)
	case phase2 != "" && e.phase2(phase1, phase2) == nil:
		return fmt.Errorf("phase 2 %s of tunnel %s is not configured", phase2, phase1)
	case !e.permitted(p1):
		return fmt.Errorf("tunnel %s has no firewall policy", phase1)
	}
	for _, p2 := range e.phase2sOf(phase1) {
		if phase2 == "" || p2.Name == phase2 {
			e.ask(e.staticTunnel(p1), p2.Name)
		}
	}
	return nil
}
