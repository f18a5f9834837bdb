package cluster

import (
	"time"

	"tandem/internal/outbox"
)

// engine is what Pair and Slot have in common: where they stand, what they wait for, and
// what they tell. Both are level-triggered: an input changes what is known, and consider
// then looks at everything known. Whatever waits for a time asks due, which arms the
// timer.
type engine struct {
	phase   phase
	started bool
	effects outbox.Box[Effect]

	wake  time.Time // earliest time that due was asked for
	grace time.Time // nothing is due before

	alarms map[string]Alarm
	names  []string // of alarms, in order of appearance
}

// Poll returns the next effect; drain it after each input.
func (g *engine) Poll() (Effect, bool) { return g.effects.Poll() }

func (g *engine) emit(e Effect) { g.effects.Emit(e) }

// due says whether t has come, and arms the timer for it if not. After a stall
// nothing is due until pending input has had its chance.
func (g *engine) due(now, t time.Time) bool { return g.sharp(now, later(t, g.grace)) }

// sharp is due without the grace after a stall.
func (g *engine) sharp(now, t time.Time) bool {
	if !now.Before(t) {
		return true
	}
	if g.wake.IsZero() || t.Before(g.wake) {
		g.wake = t
	}
	return false
}

// enter begins an input: a timer far overdue means that this process was stopped.
func (g *engine) enter(now time.Time) {
	if !g.wake.IsZero() && g.wake.After(g.grace) && now.Sub(g.wake) > stallGrace {
		g.grace = now.Add(stallGrace)
	}
}

// NextTimeout is when HandleTimeout is due.
func (g *engine) NextTimeout() (time.Time, bool) {
	return g.wake, g.phase != stopped && !g.wake.IsZero()
}

// raise raises or clears the alarm of a condition, which people know by another name
// maybe; repeating it is silent.
func (g *engine) raise(condition, name, text string, on bool) {
	a, known := g.alarms[condition]
	if on && a.On && a.Text == text || !on && !a.On {
		return
	}
	if !known {
		g.names = append(g.names, condition)
	}
	a = Alarm{Name: name, Text: text, On: on}
	g.alarms[condition] = a
	g.emit(a)
}

// raised are the alarms that are on.
func (g *engine) raised() (list []Alarm) {
	for _, n := range g.names {
		if a := g.alarms[n]; a.On {
			list = append(list, a)
		}
	}
	return list
}
