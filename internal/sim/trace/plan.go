package trace

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// maxLifelines is how many lifelines a diagram has room for.
const maxLifelines = 12

type rowKind uint8

const (
	rowMessage rowKind = iota // a message, both of its ends
	rowDepart                 // its sending; rowArrive comes later
	rowArrive
	rowNote
	rowFault
	rowState
	rowViolation
	rowGap // time or events left out
)

// row is one line of a diagram, the same in text and in SVG.
type row struct {
	kind     rowKind
	at       time.Duration
	from, to int // indexes of lifelines; -1: none that is shown
	e        Event
	count    int           // > 1: so many events folded into this one
	last     time.Duration // of the last of them
	lastText string        // of the last of them
	tag      int           // rowDepart, rowArrive: the number that joins them
	other    int           // rowDepart, rowArrive: the row at the other end, or -1
	gap      time.Duration // rowGap: how long
	left     int           // rowGap: how many events are not shown
	states   []string      // of the lifelines after this row
	unit     int           // its event, counted from 0
	seq      int           // the same; -1 for an arrival, which precedes all of its time
}

// plan is what a diagram shows, before it is drawn.
type plan struct {
	lifelines []string
	initial   []string // states of the lifelines above the first row
	rows      []row
	hidden    int      // events on lifelines that are not shown
	without   []string // lifelines that found no room
	decimals  int
	lost      bool // some message in rows is lost
	background, tags, folded,
	notes bool
}

func newPlan(events []Event, v View) *plan {
	events = sorted(events)
	if v.To <= 0 {
		for _, e := range events {
			v.To = max(v.To, e.At, e.Until)
		}
	}
	p := &plan{lifelines: v.Lifelines}
	if len(p.lifelines) == 0 {
		p.lifelines = names(events)
	}
	if len(p.lifelines) > maxLifelines {
		p.without = p.lifelines[maxLifelines:]
		p.lifelines = p.lifelines[:maxLifelines]
	}
	index := map[string]int{}
	for i, name := range p.lifelines {
		index[name] = i
	}
	units := p.fold(events, v, index)
	limit := v.MaxRows
	if limit <= 0 {
		limit = DefaultRows
	}
	// Ends of messages that are drawn apart cost rows of their own.
	for budget := limit; ; {
		p.rows = split(thin(units, budget), v)
		over := len(p.rows) - limit
		if over <= 0 || budget <= 1 {
			break
		}
		budget = max(1, budget-over)
	}
	p.follow(events, v, index)
	p.markGaps(units)
	p.describe()
	return p
}

// names lists the lifelines of events in their order.
func names(events []Event) []string {
	seen := map[string]bool{}
	var out []string
	for _, e := range events {
		for _, name := range [2]string{e.From, e.To} {
			if name != "" && !seen[name] {
				seen[name] = true
				out = append(out, name)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return before(out[i], out[j]) })
	return out
}

// fold makes rows of the events in the view. Between two events that are not
// background, background of the same path, class and fate becomes one row. The
// last ESP packet before a violation stays apart: it is most likely the one.
func (p *plan) fold(events []Event, v View, index map[string]int) (rows []row) {
	find := func(name string) int {
		if i, ok := index[name]; ok {
			return i
		}
		return -1
	}
	apart := map[int]bool{}
	lastESP := -1
	for seq, e := range events {
		if e.Kind == Violation && lastESP >= 0 {
			apart[lastESP] = true
		} else if e.Kind == Message && e.Class == ClassESP {
			lastESP = seq
		}
	}
	var group []row // of background
	byKey := map[string]int{}
	flush := func() {
		rows = append(rows, group...)
		group = nil
		clear(byKey)
	}
	for seq, e := range events {
		inFlight := e.Kind == Message && !e.background() && e.At < v.From && e.Until >= v.From && e.Until <= v.To
		if e.At > v.To || e.At < v.From && !inFlight {
			continue
		}
		r := row{at: e.At, from: find(e.From), to: find(e.To), e: e, count: 1, last: e.At, lastText: e.Text, unit: seq, seq: seq, other: -1}
		hide := false
		switch e.Kind {
		case Fault:
			r.kind = rowFault
		case Violation:
			r.kind = rowViolation
		case Note:
			r.kind, r.to, hide = rowNote, -1, r.from < 0
		case State:
			r.kind, r.to, hide = rowState, -1, r.from < 0
		default:
			hide = r.from < 0 || r.to < 0
		}
		if hide {
			p.hidden++
			continue
		}
		if !e.background() {
			flush()
			rows = append(rows, r)
			continue
		}
		if apart[seq] {
			group = append(group, r)
			continue
		}
		if i, ok := byKey[key(e)]; ok {
			group[i].count++
			group[i].last, group[i].lastText = e.At, e.Text
		} else {
			byKey[key(e)] = len(group)
			group = append(group, r)
		}
	}
	flush()
	return rows
}

// key is the same for messages that fold together.
func key(e Event) string {
	return fmt.Sprintf("%q %q %q %v", e.From, e.To, e.Class, e.Lost())
}

// thin leaves out rows until at most budget remain: the least important first,
// the oldest first among those.
func thin(units []row, budget int) []row {
	excess := len(units) - budget
	out := append([]row(nil), units...)
	for rank := 0; rank <= 3 && excess > 0; rank++ {
		kept := out[:0]
		for _, r := range out {
			if excess > 0 && r.e.rank() == rank {
				excess--
				continue
			}
			kept = append(kept, r)
		}
		out = kept
	}
	return out
}

// split draws the two ends of a message apart where the order of things would
// else be wrong: something happened while it was on its way that its receiver
// did or saw, or a fault, or a change of state.
func split(units []row, v View) []row {
	var out, arrivals []row
	tag := 0
	for i, r := range units {
		e := r.e
		if e.Kind != Message || e.Lost() || r.count > 1 || e.arrival() == e.At {
			out = append(out, r)
			continue
		}
		apart := e.At < v.From || e.arrival() > v.To
		for _, o := range units[i+1:] {
			if apart || o.at >= e.arrival() {
				break
			}
			if o.at == e.At || o.e.background() {
				continue
			}
			switch o.e.Kind {
			case Note:
				apart = o.e.From == e.To
			case Message:
				apart = o.e.From == e.To || o.e.To == e.To && !o.e.Lost() && o.e.arrival() < e.arrival()
			default:
				apart = true
			}
		}
		if !apart || e.background() && e.At >= v.From {
			out = append(out, r)
			continue
		}
		tag++
		r.tag = tag
		if e.At >= v.From {
			r.kind = rowDepart
			out = append(out, r)
		}
		if e.arrival() <= v.To {
			r.kind, r.at, r.last, r.seq = rowArrive, e.arrival(), e.arrival(), -1
			arrivals = append(arrivals, r)
		}
	}
	out = append(arrivals, out...) // an arrival stands before what it causes
	sort.SliceStable(out, func(i, j int) bool { return out[i].at < out[j].at })
	return out
}

// follow notes the states of the lifelines beside each row, also those whose
// change is not shown.
func (p *plan) follow(events []Event, v View, index map[string]int) {
	now := make([]string, len(p.lifelines))
	next := 0
	advance := func(until func(seq int, e Event) bool) {
		for ; next < len(events) && until(next, events[next]); next++ {
			e := events[next]
			if i, ok := index[e.From]; ok && e.Kind == State {
				now[i], _, _ = strings.Cut(strings.TrimSpace(e.Text), " ")
				now[i] = strings.TrimRight(now[i], ",;:.")
			}
		}
	}
	advance(func(_ int, e Event) bool { return e.At < v.From })
	p.initial = append([]string(nil), now...)
	for i := range p.rows {
		r := &p.rows[i]
		advance(func(seq int, e Event) bool { return e.At < r.at || e.At == r.at && seq <= r.seq })
		r.states = append([]string(nil), now...)
	}
}

// markGaps puts a row where much time passes, and where events are left out.
func (p *plan) markGaps(units []row) {
	shown := map[int]bool{}
	var steps []time.Duration
	for i, r := range p.rows {
		shown[r.unit] = true
		if i > 0 && r.at > p.rows[i-1].at {
			steps = append(steps, r.at-p.rows[i-1].at)
		}
	}
	sort.Slice(steps, func(i, j int) bool { return steps[i] < steps[j] })
	least := 100 * time.Millisecond
	if len(steps) > 0 {
		least = min(least, max(5*time.Millisecond, 20*steps[len(steps)/2]))
	}
	var out []row
	states := p.initial
	end := time.Duration(-1) // of what is drawn so far
	next := 0                // of the units
	place := func(r row) {
		left := 0
		for ; next < len(units) && units[next].at <= r.at && units[next].unit != r.unit; next++ {
			if !shown[units[next].unit] {
				left += units[next].count
			}
		}
		gap := time.Duration(0)
		if end >= 0 && r.at-end >= least {
			gap = r.at - end
		}
		if gap > 0 || left > 0 {
			out = append(out, row{kind: rowGap, at: max(end, 0), gap: gap, left: left, states: states, from: -1, to: -1, other: -1})
		}
	}
	for _, r := range p.rows {
		place(r)
		out = append(out, r)
		states = r.states
		end = max(end, r.at, r.last)
	}
	rest := 0
	for ; next < len(units); next++ {
		if !shown[units[next].unit] {
			rest += units[next].count
		}
	}
	if rest > 0 {
		out = append(out, row{kind: rowGap, at: max(end, 0), left: rest, states: states, from: -1, to: -1, other: -1})
	}
	p.rows = out
}

// describe joins the ends of split messages and collects what the legend has to
// explain.
func (p *plan) describe() {
	ends := map[int]int{}
	shown := make([]Event, 0, len(p.rows))
	for i, r := range p.rows {
		if r.kind == rowGap {
			continue
		}
		shown = append(shown, r.e)
		p.lost = p.lost || r.e.Lost()
		p.background = p.background || r.e.background()
		p.folded = p.folded || r.count > 1
		p.notes = p.notes || r.kind == rowNote
		if r.tag == 0 {
			continue
		}
		p.tags = true
		if j, ok := ends[r.tag]; ok {
			p.rows[i].other, p.rows[j].other = j, i
		}
		ends[r.tag] = i
	}
	p.decimals = decimals(shown)
}

// label is what stands beside a row.
func (p *plan) label(r row) string {
	e := r.e
	text := clean(e.Text)
	who := path(Event{Kind: Fault, From: e.From, To: e.To})
	switch r.kind {
	case rowGap:
		var parts []string
		if r.gap > 0 {
			parts = append(parts, span(r.gap))
		}
		if r.left > 0 {
			parts = append(parts, plural(r.left, "event")+" left out")
		}
		return "⋮ " + strings.Join(parts, ", ")
	case rowNote:
		return clean(e.From) + ": " + text
	case rowState:
		return clean(e.From) + " is now " + text
	case rowFault, rowViolation:
		word := "FAULT"
		if r.kind == rowViolation {
			word = "VIOLATION"
		}
		if who != "" {
			word += " " + who
		}
		return word + ": " + text
	case rowDepart:
		if r.other < 0 {
			return fmt.Sprintf("[%d] %s (still on its way at the end)", r.tag, text)
		}
		return fmt.Sprintf("[%d] %s (+%s, arrives below)", r.tag, text, span(e.arrival()-e.At))
	case rowArrive:
		if r.other < 0 {
			return fmt.Sprintf("[%d] arrives: %s (sent at %s)", r.tag, text, seconds(e.At, p.decimals))
		}
		return fmt.Sprintf("[%d] arrives: %s", r.tag, text)
	}
	if r.count > 1 {
		text += differs(text, clean(r.lastText))
		text += fmt.Sprintf(" ×%d until %s", r.count, seconds(r.last, p.decimals))
	}
	switch {
	case e.Lost():
		text += " LOST"
	case r.count == 1 && e.arrival() > e.At:
		text += " (+" + span(e.arrival()-e.At) + ")"
	}
	if e.From == e.To {
		text = clean(e.From) + " to itself: " + text
	}
	return strings.TrimSpace(text)
}

// differs is " … " and the words from which on last is not first.
func differs(first, last string) string {
	if first == last {
		return ""
	}
	from := 0
	for i := 0; i < len(first) && i < len(last) && first[i] == last[i]; i++ {
		if first[i] == ' ' {
			from = i + 1
		}
	}
	return " … " + last[from:]
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// remarks is what is said below a diagram about what it does not show.
func (p *plan) remarks() []string {
	var out []string
	if len(p.without) > 0 {
		var all []string
		for _, name := range p.without {
			all = append(all, clean(name))
		}
		out = append(out, "No room for: "+strings.Join(all, ", ")+".")
	}
	if p.hidden > 0 {
		out = append(out, plural(p.hidden, "event")+" of this time on other lifelines not shown.")
	}
	return out
}
