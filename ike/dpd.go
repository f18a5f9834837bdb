package ike

import (
	"log/slog"
	"time"
)

// dpdRetry are the interval and count of probes; a peer that answers none of
// count probes is dead one interval after the last.
func (e *Engine) dpdRetry(sa *ikeSA) (interval time.Duration, count int) {
	interval, count = defaultRetryInterval, defaultRetryCount
	if p1 := sa.p1; p1 != nil {
		if p1.DPDRetryInterval > 0 {
			interval = p1.DPDRetryInterval
		}
		if p1.DPDRetryCount > 0 {
			count = p1.DPDRetryCount
		}
	}
	return interval, count
}

const (
	defaultRetryInterval = 20 * time.Second
	defaultRetryCount    = 3
)

// probeSlack is by how much a probe may come later than its interval: those of many
// idle tunnels leave together, since waking up costs more than a probe.
const probeSlack = 100 * time.Millisecond

func nextProbe(t time.Time) time.Time { return t.Add(probeSlack - 1).Truncate(probeSlack) }

// lastTraffic is when the peer last proved its life, and when we last sent to it.
func (e *Engine) lastTraffic(sa *ikeSA) (in, out time.Time) {
	in = sa.lastIn
	if e.o.Traffic == nil {
		return in, out
	}
	for _, c := range sa.children {
		i, o := e.o.Traffic(c.SPIIn)
		if i.After(in) {
			in = i
		}
		if o.After(out) {
			out = o
		}
	}
	return in, out
}

// dpdDue looks whether a probe is due, and sets when to look again.
func (e *Engine) dpdDue(sa *ikeSA) bool {
	if sa.p1 == nil || !sa.lives() || sa.p1.DPD == "disable" || sa.p1.DPD == "" {
		sa.dpdAt = time.Time{}
		return false
	}
	interval, _ := e.dpdRetry(sa)
	if sa.dpdAt.IsZero() {
		sa.dpdAt = nextProbe(sa.lastIn.Add(interval))
	}
	if sa.dpdAt.After(e.now) {
		return false
	}
	in, out := e.lastTraffic(sa)
	if idle := in.Add(interval); idle.After(e.now) {
		sa.dpdAt = nextProbe(idle)
		return false
	}
	if sa.p1.DPD == "on-demand" && !out.After(in) {
		// Nothing was sent since the peer was last heard: nothing may be lost.
		sa.dpdAt = nextProbe(e.now.Add(interval))
		return false
	}
	return true
}

// sendDPD asks whether the peer is there (RFC 7296 §2.4).
func (e *Engine) sendDPD(sa *ikeSA) bool {
	sa.dpdSent++
	e.debug(sa, "send IKEv2 DPD probe", slog.Uint64("seqno", uint64(sa.dpdSent)))
	return e.start(sa, &exchange{kind: kindDPD}, e.dpdPayloads(sa))
}
