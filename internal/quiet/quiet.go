// Package quiet takes the log lines of libraries that say the same thing many times a
// second, and passes each on once in a while.
package quiet

import (
	"strings"
	"sync"
	"time"
)

// maxKinds bounds the memory for what has been said, and with it the lines: addresses
// of strangers are part of a kind, and who forges one can forge many. Beyond it all
// others are one kind.
const maxKinds = 256

// Lines is an io.Writer of whole lines. Those that differ in numbers only are one kind;
// numbers after " from=" are kept, but for the port.
type Lines struct {
	// Every is how long a kind is silent after a line.
	Every time.Duration
	// Say gets a line, and how many of its kind were kept back before it.
	Say func(line string, before int)
	// Now is the clock; nil: the machine's.
	Now func() time.Time

	mu    sync.Mutex
	said  map[string]*kind
	swept time.Time
}

type kind struct {
	at   time.Time
	kept int
}

// Write takes one line.
func (l *Lines) Write(b []byte) (int, error) {
	line := strings.TrimRight(string(b), "\n")
	now := time.Now
	if l.Now != nil {
		now = l.Now
	}
	if before, ok := l.may(lineKind(line), now()); ok {
		l.Say(line, before)
	}
	return len(b), nil
}

func (l *Lines) may(key string, now time.Time) (before int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said == nil {
		l.said = map[string]*kind{}
	}
	if l.said[key] == nil && len(l.said) >= maxKinds {
		l.sweep(now)
		if len(l.said) >= maxKinds {
			key = ""
		}
	}
	k := l.said[key]
	if k == nil {
		l.said[key] = &kind{at: now}
		return 0, true
	}
	if now.Sub(k.at) < l.Every {
		k.kept++
		return 0, false
	}
	before = k.kept
	*k = kind{at: now}
	return before, true
}

// sweep forgets what may be said again, seldom: a flood shall not make it the main work.
func (l *Lines) sweep(now time.Time) {
	if now.Sub(l.swept) < l.Every {
		return
	}
	l.swept = now
	for key, k := range l.said {
		if now.Sub(k.at) >= l.Every {
			delete(l.said, key)
		}
	}
}

// lineKind is the kind of a whole line.
func lineKind(line string) string {
	text, from, _ := strings.Cut(line, " from=")
	if i := strings.LastIndexByte(from, ':'); i >= 0 {
		from = from[:i]
	}
	return kindOf(text, from)
}

// kindOf is a text without its numbers, and whom it is about.
func kindOf(text, from string) string {
	var b strings.Builder
	for _, r := range text {
		if r < '0' || r > '9' {
			b.WriteRune(r)
		}
	}
	return b.String() + " " + from
}
