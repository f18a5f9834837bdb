package trace

import (
	"sort"
	"strings"
	"time"
	"unicode/utf8"
)

// DefaultLimit is how many events a Log keeps when it is not told otherwise.
const DefaultLimit = 1 << 16

const (
	maxText    = 1024 // bytes of a Text that are kept
	maxName    = 64   // bytes of a lifeline's name or a class that are kept
	maxClasses = 32   // classes whose dropped events are counted apart
)

// Log collects events. The zero Log is ready and keeps DefaultLimit events.
// It is not safe for concurrent use.
//
// A full Log makes room for an eighth of its limit at a time: it forgets the
// oldest messages of the background classes, then the oldest other messages
// and notes, then states and faults, and violations last.
type Log struct {
	limit   int
	events  []Event
	dropped []Dropped
}

// Dropped counts the events of one kind that a full Log forgot.
type Dropped struct {
	Kind        Kind
	Class       string
	Count       int
	First, Last time.Duration // when the earliest and the latest of them happened
}

// NewLog makes a Log that keeps at most limit events; limit < 1 means
// DefaultLimit.
func NewLog(limit int) *Log {
	if limit < 1 {
		limit = DefaultLimit
	}
	return &Log{limit: limit}
}

// Add appends e. Events may come out of order; those of the same time keep the
// order in which they were added. Add a message when it is sent if its arrival
// is known by then, so that it stands before what it causes.
func (l *Log) Add(e Event) {
	if l.limit < 1 {
		l.limit = DefaultLimit
	}
	e.Text, e.From, e.To, e.Class = cut(e.Text, maxText), cut(e.From, maxName), cut(e.To, maxName), cut(e.Class, maxName)
	if len(l.events) >= l.limit {
		l.makeRoom()
	}
	l.events = append(l.events, e)
}

// Events returns a copy of what is kept, by time.
func (l *Log) Events() []Event {
	return sorted(l.events)
}

// Dropped says what was forgotten, in the order in which it first happened.
func (l *Log) Dropped() []Dropped {
	return append([]Dropped(nil), l.dropped...)
}

func (l *Log) makeRoom() {
	goal := l.limit - max(1, l.limit/8)
	excess := len(l.events) - goal
	for rank := 0; rank <= 3 && excess > 0; rank++ {
		kept := l.events[:0]
		for _, e := range l.events {
			if excess > 0 && e.rank() == rank {
				excess--
				l.count(e)
				continue
			}
			kept = append(kept, e)
		}
		clear(l.events[len(kept):])
		l.events = kept
	}
}

func (l *Log) count(e Event) {
	if e.Kind != Message {
		e.Class = ""
	}
	for i := range l.dropped {
		if d := &l.dropped[i]; d.Kind == e.Kind && (d.Class == e.Class || i >= maxClasses) {
			d.Count++
			d.First, d.Last = min(d.First, e.At), max(d.Last, e.At)
			return
		}
	}
	if len(l.dropped) >= maxClasses {
		e.Class = "other"
	}
	l.dropped = append(l.dropped, Dropped{e.Kind, e.Class, 1, e.At, e.At})
}

func sorted(events []Event) []Event {
	out := append([]Event(nil), events...)
	sort.SliceStable(out, func(i, j int) bool { return out[i].At < out[j].At })
	return out
}

// cut shortens s to at most n bytes, without holding on to the rest.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.Clone(s[:n]) + "…"
}
