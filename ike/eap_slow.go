package ike

import (
	"log/slog"
	"net/netip"
	"time"
)

// Failed passwords make the next attempt with the same name from the same address wait, twice as long
// each time: an attempt before that fails whatever its password. Others with the name, from elsewhere, do
// not suffer for it. This is the process's own: after a takeover it begins at nothing.

const (
	slowFirst = time.Second
	slowMost  = time.Minute
	slowKept  = 4096 // names and addresses
)

// attempt is who tries from where.
type attempt struct {
	user string
	from netip.Addr
}

type slowness struct {
	wait  time.Duration
	until time.Time
}

// slowed are those who have failed lately.
type slowed struct{ of map[attempt]slowness }

func (x *slowed) waits(now time.Time, a attempt) bool { return now.Before(x.of[a].until) }

func (x *slowed) failed(now time.Time, a attempt) {
	if x.of == nil {
		x.of = map[attempt]slowness{}
	}
	s, known := x.of[a]
	if !known && len(x.of) >= slowKept {
		x.forget(now)
	}
	if !known && len(x.of) >= slowKept {
		return // more than anybody in good faith makes: half-open limits and the log's tell of it
	}
	s.wait = min(max(2*s.wait, slowFirst), slowMost)
	s.until = now.Add(s.wait)
	x.of[a] = s
}

func (x *slowed) succeeded(a attempt) { delete(x.of, a) }

// forget drops those whose latest failure is long past.
func (x *slowed) forget(now time.Time) {
	for a, s := range x.of {
		if now.After(s.until.Add(slowMost)) {
			delete(x.of, a)
		}
	}
}

// eapRefused counts and logs an EAP that failed; lines are limited, as anybody can cause them.
func (e *Engine) eapRefused(sa *ikeSA, s *eapState, reason string) {
	e.counters.AuthRefused++
	if !e.refusals.allow(e.now) {
		e.counters.RefusalsUnsaid++
		return
	}
	e.warn(sa, "authentication failed", slog.String("user", quoted(s.identity)), slog.String("eap", s.method.String()), slog.String("reason", reason))
}

// quoted is a name as it is fit for a log line.
func quoted(name string) string {
	b := []byte(name[:min(len(name), 128)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
