package ike

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/internal/config"
)

// tunnel is a static phase 1, or an instance of a dialup one: what stays while
// IKE SAs come and go.
type tunnel struct {
	name    string
	phase1  string
	p1      *config.Phase1 // nil when not configured any more
	index   int            // of a dialup instance
	dialup  bool
	seq     uint64
	created time.Time
	sas     []*ikeSA
	t       timer

	up       bool // oper up: an IKE SA is established
	tryAt    time.Time
	wants    []string           // phase 2 entries that traffic or a command asked for
	acquired map[string]Acquire // the latest packet that asked, by phase 2 entry
	failure  string
	statsIKE stats
	statsCh  stats

	had []netip.Addr // assigned to us last: wished again

	redirects []time.Time // that were followed lately; see redirect.go

	childCreated, childEstablished int
	ikeCreated, ikeEstablished     int
}

// stats are the minimum, average and maximum of times to establish.
type stats struct {
	n             int
	min, max, sum time.Duration
}

func (s *stats) add(d time.Duration) {
	if s.n == 0 || d < s.min {
		s.min = d
	}
	s.max = max(s.max, d)
	s.sum += d
	s.n++
}

func (s *stats) all() [3]time.Duration {
	if s.n == 0 {
		return [3]time.Duration{}
	}
	return [3]time.Duration{s.min, s.sum / time.Duration(s.n), s.max}
}

func (t *tunnel) timer() *timer { return &t.t }

func (t *tunnel) deadline() (time.Time, bool) { return t.tryAt, !t.tryAt.IsZero() }

// tunnelOf returns the tunnel of a name, made on first use.
func (e *Engine) tunnelOf(name, phase1 string, dialup bool, index int) *tunnel {
	if t := e.tunnels[name]; t != nil {
		return t
	}
	e.seq++
	t := &tunnel{name: name, phase1: phase1, p1: e.phase1(phase1), dialup: dialup, index: index,
		seq: e.seq, created: e.now}
	e.tunnels[name] = t
	return t
}

// forgetTunnel forgets a tunnel; a dialup instance's index is free again.
func (e *Engine) forgetTunnel(t *tunnel) {
	delete(e.tunnels, t.name)
	e.freeIndex(t)
}

// freeIndex says that the index of a dialup instance may be free.
func (e *Engine) freeIndex(t *tunnel) {
	if low, ok := e.lowest[t.phase1]; t.dialup && ok && t.index < low && t.index%e.o.Share.of() == e.o.Share.Part {
		e.lowest[t.phase1] = t.index
	}
}

// staticTunnel is the tunnel of a phase 1 that is not dialup.
func (e *Engine) staticTunnel(p1 *config.Phase1) *tunnel {
	return e.tunnelOf(p1.Name, p1.Name, false, 0)
}

func (e *Engine) phase1(name string) *config.Phase1 {
	for i := range e.cfg.Phase1 {
		if e.cfg.Phase1[i].Name == name {
			return &e.cfg.Phase1[i]
		}
	}
	return nil
}

func (e *Engine) phase2(phase1, name string) *config.Phase2 {
	for i := range e.cfg.Phase2 {
		if p := &e.cfg.Phase2[i]; p.Phase1 == phase1 && p.Name == name {
			return p
		}
	}
	return nil
}

func (e *Engine) phase2sOf(phase1 string) []*config.Phase2 {
	var out []*config.Phase2
	for i := range e.cfg.Phase2 {
		if e.cfg.Phase2[i].Phase1 == phase1 {
			out = append(out, &e.cfg.Phase2[i])
		}
	}
	return out
}

// live is the tunnel's IKE SA on which new Child SAs are made: the newest one.
func (t *tunnel) live() *ikeSA {
	for _, sa := range slices.Backward(t.sas) {
		if sa.lives() {
			return sa
		}
	}
	return nil
}

// connecting says that an IKE SA is being negotiated.
func (t *tunnel) connecting() bool {
	return slices.ContainsFunc(t.sas, func(sa *ikeSA) bool {
		return sa.state == stateInitSent || sa.state == stateAuthSent
	})
}

// child finds an installed Child SA of a phase 2 entry.
func (t *tunnel) child(phase2 string) *childSA {
	for _, sa := range t.sas {
		for _, c := range sa.children {
			if c.Phase2 == phase2 && c.state != childOwed {
				return c
			}
		}
	}
	return nil
}

// stands says that a phase 2 entry has a Child SA on an IKE SA that is not about to end.
func (t *tunnel) stands(phase2 string) bool {
	return slices.ContainsFunc(t.sas, func(sa *ikeSA) bool {
		return !sa.closing && sa.deleteBy.IsZero() && slices.ContainsFunc(sa.children, func(c *childSA) bool {
			return c.Phase2 == phase2 && c.state != childOwed
		})
	})
}

func (t *tunnel) attrs(more ...slog.Attr) []slog.Attr {
	return append([]slog.Attr{slog.String("tunnel", t.name)}, more...)
}

func (e *Engine) logTunnel(t *tunnel, level slog.Level, msg string, more ...slog.Attr) {
	if e.logs(level) {
		e.log(level, msg, t.attrs(more...)...)
	}
}

// tunnelChanged follows an IKE SA's end or beginning: oper state, instances, the
// next negotiation.
func (e *Engine) tunnelChanged(t *tunnel, reason string) {
	up := slices.ContainsFunc(t.sas, func(sa *ikeSA) bool { return sa.state == stateEstablished && !sa.closing })
	if up != t.up {
		t.up = up
		if up {
			e.logTunnel(t, slog.LevelInfo, "set oper up")
		} else {
			e.logTunnel(t, slog.LevelInfo, "set oper down", slog.String("reason", reason))
		}
	}
	if len(t.sas) == 0 && (t.dialup || t.p1 == nil) {
		if t.t.in {
			t.tryAt = time.Time{}
			e.arm(t)
		}
		e.forgetTunnel(t)
		return
	}
	e.scheduleNegotiation(t)
}

// localAddr is the address from which a phase 1 speaks.
func (e *Engine) localAddr(p1 *config.Phase1, v6 bool) (netip.Addr, bool) {
	if p1.LocalGW.IsValid() && !p1.LocalGW.IsUnspecified() {
		return p1.LocalGW, true
	}
	if e.o.LocalAddr == nil {
		return netip.Addr{}, false
	}
	return e.o.LocalAddr(p1.Interface, v6)
}
