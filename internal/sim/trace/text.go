package trace

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
)

// columns of WriteText that grow with their content do so up to these widths.
const (
	maxPathColumn  = 36
	maxClassColumn = 12
)

// WriteText writes one line for each event that is kept, by time: when, what,
// on which lifelines, of which class, the text, and for a message how long it
// was on its way. Events that follow each other and differ in nothing but
// their time become one line with their number.
func (l *Log) WriteText(w io.Writer) error {
	events := l.Events()
	type line struct {
		e     Event
		last  time.Duration
		count int
	}
	var lines []line
	dec := decimals(events)
	timeW, pathW, classW := len("time (s)"), 0, 0
	for _, e := range events {
		if n := len(lines); n > 0 && alike(lines[n-1].e, e) {
			lines[n-1].count++
			lines[n-1].last = e.At
			continue
		}
		lines = append(lines, line{e, e.At, 1})
		timeW = max(timeW, len(seconds(e.At, dec)))
		pathW = max(pathW, min(maxPathColumn, width(path(e))))
		classW = max(classW, min(maxClassColumn, width(clean(e.Class))))
	}
	out := bufio.NewWriter(w)
	for _, d := range l.dropped {
		fmt.Fprintf(out, "# left out for want of room: %d %s events between %s and %s s\n",
			d.Count, strings.TrimSpace(d.Kind.String()+" "+clean(d.Class)), seconds(d.First, dec), seconds(d.Last, dec))
	}
	for _, n := range lines {
		text := clean(n.e.Text)
		switch {
		case n.e.Lost():
			text += "  LOST"
		case n.e.Kind == Message && n.e.arrival() > n.e.At && n.count == 1:
			text += "  (+" + span(n.e.arrival()-n.e.At) + ")"
		}
		if n.count > 1 {
			text += fmt.Sprintf("  … ×%d until %s", n.count, seconds(n.last, dec))
		}
		s := fmt.Sprintf("%*s  %s  %s  %s  %s", timeW, seconds(n.e.At, dec), pad(n.e.Kind.String(), len("VIOLATION")),
			pad(path(n.e), pathW), pad(clean(n.e.Class), classW), text)
		fmt.Fprintln(out, strings.TrimRight(s, " "))
	}
	return out.Flush()
}

// alike says whether b repeats a at another time.
func alike(a, b Event) bool {
	return a.Kind == b.Kind && a.From == b.From && a.To == b.To && a.Class == b.Class && a.Text == b.Text && a.Lost() == b.Lost()
}

func path(e Event) string {
	from, to := clean(e.From), clean(e.To)
	switch {
	case e.Kind == Message:
		return from + " → " + to
	case to == "":
		return from
	case from == "":
		return to
	}
	return from + " – " + to
}
