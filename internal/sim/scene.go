package sim

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"tandem/internal/node"
	"tandem/internal/sim/trace"
)

// scene is what runs of pairs and of farms have in common: virtual time, chance, what is
// counted and what is told.
type scene struct {
	s     *Schedule
	now   time.Duration
	queue queue
	steps int

	chance  *rand.Rand // of what is outside the network
	armed   []Action   // CrashAt that wait for their moment
	healing bool       // the schedule is over; everything works again
	done    bool
	Result  *Result
	digest  uint64
	tracing *trace.Log // nil: nobody looks
	serial  uint64
	skips   map[saID]uint64 // up to where senders left numbers out at their peers' request
}

func newScene(s *Schedule, log *trace.Log, name string) scene {
	return scene{s: s, tracing: log, chance: stream(s.Seed, name), Result: newResult(), skips: map[saID]uint64{}}
}

// after plans something.
func (w *scene) after(d time.Duration, do func()) { w.queue.push(w.now+max(0, d), do) }

// fifo plans f not before what was planned last in the same queue.
func (w *scene) fifo(last, d time.Duration, f func()) time.Duration {
	at := max(last, w.now+d)
	w.queue.push(at, f)
	return at
}

// hop is what a message takes between two processes of a host.
func (w *scene) hop() time.Duration {
	if w.s.Setup.TightLoop {
		return between(w.chance, 0, 20*time.Microsecond)
	}
	return between(w.chance, 10*time.Microsecond, 400*time.Microsecond)
}

// mix makes the digest of what happens: equal runs have equal digests.
func (w *scene) mix(what string, a, b uint64) {
	d := w.digest ^ uint64(w.now)
	for i := range len(what) {
		d = (d ^ uint64(what[i])) * 0x100000001b3
	}
	d = (d ^ a) * 0x100000001b3
	w.digest = (d^b)*0x100000001b3 ^ d>>29
}

// play lets happen what plan plans, and what follows from that, until all is well again
// or something is violated. A panic is a violation as any other: it can be replayed and
// shrunk.
func (w *scene) play(plan func()) (r *Result) {
	defer func() {
		r = w.Result
		if p := recover(); p != nil {
			r.Violations = nil
			w.violate(RulePanic, "%v, in %s", p, panicked())
		}
		r.Virtual, r.Digest, r.Steps = w.now, w.digest, w.steps
	}()
	plan()
	for !w.done && len(w.Result.Violations) == 0 && len(w.queue.heap) > 0 {
		e := w.queue.pop()
		if e.at > w.now {
			w.now = e.at
		}
		e.do()
		if w.steps++; w.steps > maxSteps {
			w.violate(RuleBounded, "the run does not come to an end: %d events in %v", w.steps, w.now)
		}
	}
	return w.Result
}

// maxSteps bounds a run; an ordinary one has some ten thousand.
const maxSteps = 5_000_000

// planActions has act do what the schedule wants, when it wants it.
func (w *scene) planActions(act func(Action)) {
	for i := range w.s.Actions {
		a := w.s.Actions[i]
		w.queue.push(a.At, func() { act(a) })
	}
}

// begins counts and tells what the schedule does now, if it can be done.
func (w *scene) begins(a Action, found bool) bool {
	if w.healing || !found && a.Verb.Fault() && a.Node != "" {
		return false
	}
	if a.Verb != CrashAt {
		w.Result.Faults[a.Verb]++
	}
	w.mix(string(a.Verb), uint64(a.For), uint64(a.Count))
	w.fault("", "%s", a)
	return true
}

// logLine is a line of a daemon's log, for people.
func logLine(e node.Log) string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, a := range e.Attrs {
		if a.Value.Kind() != slog.KindGroup {
			b.WriteString(" " + a.String())
		}
	}
	return b.String()
}

// burst sends count times at a rate, each way or one.
func (w *scene) burst(r *rand.Rand, count int, rate float64, direction int, send func(toSite bool)) {
	gap := time.Duration(float64(time.Second) / rate)
	var next func()
	next = func() {
		if count--; count < 0 || w.done {
			return
		}
		if direction != 2 {
			send(false)
		}
		if direction != 1 {
			send(true)
		}
		w.after(gap+between(r, 0, gap/8+1), next)
	}
	next()
}

// healLimit is how long after healing a tunnel may take until it carries traffic: a
// client finds out by its probes that the cluster lost everything (its dead peer
// detection takes up to a minute), begins anew, and waits for a cookie.
const healLimit = 150 * time.Second

// ends says that the run is over: nothing is unsettled, or something is long after
// healing.
func (w *scene) ends(unsettled string, healed time.Duration) bool {
	switch {
	case unsettled == "":
		w.done = true
	case w.now-healed < healLimit:
		return false
	case strings.HasPrefix(unsettled, "left behind"):
		w.violate(RuleLeft, "%v after everything works again: %s", healLimit, unsettled)
	default:
		w.violate(RuleLiveness, "%v after everything works again: %s", healLimit, unsettled)
	}
	return true
}

// violate ends the run.
func (w *scene) violate(rule Rule, format string, args ...any) {
	if len(w.Result.Violations) > 0 {
		return
	}
	v := Violation{Rule: rule, At: w.now, Text: fmt.Sprintf(format, args...)}
	w.Result.Violations = append(w.Result.Violations, v)
	w.trace(trace.Event{Kind: trace.Violation, Text: string(rule) + ": " + v.Text})
}

// trace adds to the log, if there is one. Whoever makes texts asks w.tracing first.
func (w *scene) trace(e trace.Event) {
	if w.tracing != nil {
		if e.At == 0 {
			e.At = w.now
		}
		w.tracing.Add(e)
	}
}

func (w *scene) note(who, class, format string, args ...any) {
	if w.tracing != nil {
		w.trace(trace.Event{Kind: trace.Note, From: who, Class: class, Text: fmt.Sprintf(format, args...)})
	}
}

func (w *scene) state(who, text string) {
	w.trace(trace.Event{Kind: trace.State, From: who, Text: text})
}

func (w *scene) fault(who, format string, args ...any) {
	if w.tracing != nil {
		w.trace(trace.Event{Kind: trace.Fault, From: who, Text: fmt.Sprintf(format, args...)})
	}
}

// message tells of a message; until < 0: it is lost.
func (w *scene) message(from, to, class string, until time.Duration, text func() string) {
	if w.tracing != nil {
		w.trace(trace.Event{Kind: trace.Message, From: from, To: to, Until: until, Class: class, Text: text()})
	}
}
