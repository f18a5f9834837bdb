package trace

import (
	"sort"
	"time"
)

// Around is the stretch of events that leads to the violation found at the time
// violation: back over the last faults and exchanges, as much as fits into
// DefaultRows once background is folded, on the lifelines that took part. When
// there is no violation at that time it ends there all the same.
func Around(events []Event, violation time.Duration) View {
	const (
		lifelines = 8
		important = DefaultRows / 2 // events that are not background; the rest is room for folded rows
		faults    = 4               // how many of them are reason to look further back
	)
	events = sorted(events)
	v := View{To: violation, Title: "What led to " + seconds(violation, decimals(events)) + " s"}
	var found []Event
	for _, e := range events {
		if e.Kind == Violation && e.At == violation {
			if len(found) == 0 {
				v.Title = "A rule was broken at " + seconds(violation, decimals(events)) + " s: " + e.Text
			}
			found = append(found, e)
		}
	}
	end := sort.Search(len(events), func(i int) bool { return events[i].At > violation })
	kept, seen := 0, 0
	from := violation
	for i := end - 1; i >= 0 && kept < important; i-- {
		e := events[i]
		if e.background() {
			continue
		}
		if seen >= faults && kept >= important/2 && from-e.At > time.Second {
			break // the story begins after a pause
		}
		if e.Kind == Fault {
			seen++
		}
		kept++
		from = e.At
	}
	if kept == 0 { // nothing but background
		from = 0
	}
	v.From = from
	v.Lifelines = takingPart(events[:end], from, found, lifelines)
	return v
}

// takingPart chooses at most n lifelines: those of the violations, then those
// of the latest events that are not background, then those of background.
func takingPart(events []Event, from time.Duration, found []Event, n int) []string {
	seen := map[string]bool{"": true}
	var out []string
	take := func(e Event) {
		for _, name := range [2]string{e.From, e.To} {
			if !seen[name] && len(out) < n {
				seen[name] = true
				out = append(out, name)
			}
		}
	}
	for _, e := range found {
		take(e)
	}
	for _, background := range [2]bool{false, true} {
		for i := len(events) - 1; i >= 0 && events[i].At >= from; i-- {
			if events[i].background() == background {
				take(events[i])
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return before(out[i], out[j]) })
	return out
}
