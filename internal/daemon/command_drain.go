package daemon

import (
	"errors"
	"fmt"
	"time"
)

// A drain is waited for so long; how often it is looked at. Variables for tests.
var (
	drainLimit = 2 * time.Minute
	drainLook  = 100 * time.Millisecond
)

// drainJSON is `execute ha drain --json`, printed once at the end.
type drainJSON struct {
	Draining    bool    `json:"draining"`
	ScopesOwned int     `json:"scopes_owned"` // still
	Owned       int     `json:"owned"`        // tunnels, still
	Moved       int     `json:"moved"`        // scopes
	Seconds     float64 `json:"seconds"`
}

// drain is `execute ha drain [on|off]`. It ends when nothing is owned here any more;
// off ends when that is decided: what comes back is copied here first, and that is
// seen in `get system ha status`.
func drain(s *session, args []string) error {
	on := true
	if len(args) > 0 {
		word, _, ok := pick(args[0], []string{"on", "off"})
		if !ok || len(args) > 1 {
			return usagef("expected: [on|off]")
		}
		on = word == "on"
	}
	v, err := s.d.view(s.ctx, false)
	switch {
	case err != nil:
		return err
	case v.Node.Farm == nil:
		return s.redirect(on)
	}
	if err := s.redirect(on); err != nil && !errors.Is(err, errNoFarm) {
		return err
	}
	begun, had := time.Now(), v.Node.Farm.ScopesOwned()
	if err := s.d.drain(s.ctx, on); err != nil {
		return err
	}
	if !on {
		if s.json {
			return s.printJSON(drainJSON{ScopesOwned: had, Owned: v.farmJSON().Owned})
		}
		s.printf("drain ended: this member's scopes come back when they are copied\n")
		return nil
	}
	result, err := s.drained(begun, had)
	if s.json {
		if jerr := s.printJSON(result); jerr != nil {
			return jerr
		}
	} else if err == nil {
		s.printf("drained: %d scopes moved in %.1f s; this member owns nothing until `execute ha drain off`\n", result.Moved, result.Seconds)
	}
	return err
}

// redirectLimit is how long peers have to follow a redirect. A variable for tests.
var redirectLimit = 5 * time.Second

// redirect sends peers that can follow to their phase 1's other gateways (RFC 5685), and
// waits until they have gone. A gateway that is in no farm is drained by that alone.
func (s *session) redirect(on bool) error {
	told, known, err := s.d.redirect(s.ctx, on)
	switch {
	case err != nil:
		return err
	case !known:
		return errNoFarm
	case !on:
		if !s.json {
			s.printf("peers are not redirected any more\n")
		}
		return nil
	}
	limit := time.NewTimer(redirectLimit)
	defer limit.Stop()
	look := time.NewTicker(drainLook)
	defer look.Stop()
	left := 0
	for done := false; !done; {
		if left, err = s.d.redirectable(s.ctx); err != nil {
			return err
		}
		if left == 0 {
			break
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-limit.C:
			done = true
		case <-look.C:
		}
	}
	if !s.json {
		s.printf("%d peers were redirected, %d of them are still here; who begins is redirected until `execute ha drain off`\n", told, left)
	}
	return nil
}

// drained waits, and says what is left whenever that changes.
func (s *session) drained(begun time.Time, had int) (r drainJSON, err error) {
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	look := time.NewTicker(drainLook)
	defer look.Stop()
	last := -1
	for {
		v, err := s.d.view(s.ctx, false)
		if err != nil {
			return r, fmt.Errorf("this member stays drained: %w", err)
		}
		f := v.Node.Farm
		r = drainJSON{Draining: f.Draining(), ScopesOwned: f.ScopesOwned(), Owned: v.farmJSON().Owned, Seconds: time.Since(begun).Seconds()}
		r.Moved = max(0, had-r.ScopesOwned)
		if r.Draining && r.ScopesOwned == 0 {
			return r, nil
		}
		if r.ScopesOwned != last && !s.json {
			last = r.ScopesOwned
			s.printf("%d scopes with %d tunnels are owned here\n", r.ScopesOwned, r.Owned)
			if err := s.flush(); err != nil {
				return r, err
			}
		}
		select {
		case <-s.ctx.Done():
			return r, fmt.Errorf("no longer waited for; this member stays drained: %w", s.ctx.Err())
		case <-limit.C:
			return r, fmt.Errorf("after %v %d scopes are owned here still; this member stays drained, and they move when another can take them", drainLimit, r.ScopesOwned)
		case <-look.C:
		}
	}
}
