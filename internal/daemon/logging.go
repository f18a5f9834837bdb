package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"tandem/internal/logqueue"
)

// logHub is the daemon's slog handler: lines go to the log as configured, and at
// debug level to whoever watches through `diagnose debug application ike`. The
// filters of `diagnose vpn ike log filter` apply to the watchers only.
type logHub struct {
	next  slog.Handler
	level *slog.LevelVar
	attrs []slog.Attr
	close func()
	*hubState
}

type hubState struct {
	mu        sync.Mutex
	watchers  map[*watcher]struct{}
	timestamp bool
	name      string
	dst       netip.Addr
}

// watcher receives lines; one that does not keep up loses lines, counted.
type watcher struct {
	lines chan string
	lost  int
}

// watcherLines bounds what waits for one watcher.
const watcherLines = 4096

// newLogHub makes the handler. format is text or json; level is debug, info,
// warning or error. Nobody who logs waits for out; close writes what is left.
func newLogHub(out io.Writer, format, level string) (*logHub, error) {
	h := &logHub{level: new(slog.LevelVar), hubState: &hubState{watchers: map[*watcher]struct{}{}, timestamp: true}}
	if err := h.setLevel(level); err != nil {
		return nil, err
	}
	o := &slog.HandlerOptions{Level: h.level}
	handler := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, o) }
	switch format {
	case "", "text":
	case "json":
		handler = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, o) }
	default:
		return nil, fmt.Errorf("log format %q: text and json are allowed", format)
	}
	w := logqueue.New(out, logqueue.Lines, logqueue.Say(slog.New(handler(out))))
	h.next, h.close = handler(w), w.Close
	return h, nil
}

func (h *logHub) setLevel(level string) error {
	switch level {
	case "debug":
		h.level.Set(slog.LevelDebug)
	case "", "info", "information", "notification":
		h.level.Set(slog.LevelInfo)
	case "warning":
		h.level.Set(slog.LevelWarn)
	case "error":
		h.level.Set(slog.LevelError)
	default:
		return fmt.Errorf("log level %q: debug, info, warning and error are allowed", level)
	}
	return nil
}

func (h *logHub) Enabled(_ context.Context, l slog.Level) bool {
	if l >= h.level.Level() {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watchers) > 0
}

func (h *logHub) Handle(ctx context.Context, r slog.Record) error {
	h.show(r)
	if r.Level < h.level.Level() {
		return nil
	}
	return h.next.Handle(ctx, r)
}

func (h *logHub) WithAttrs(a []slog.Attr) slog.Handler {
	c := *h
	c.next = h.next.WithAttrs(a)
	c.attrs = append(append([]slog.Attr(nil), h.attrs...), a...)
	return &c
}

func (h *logHub) WithGroup(name string) slog.Handler {
	c := *h
	c.next = h.next.WithGroup(name)
	return &c
}

// show hands a line to the watchers, in FortiOS's form: "ike 0:TUNNEL: words key=value".
func (h *logHub) show(r slog.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) == 0 {
		return
	}
	var tunnel, peer string
	var rest bytes.Buffer
	each := func(a slog.Attr) bool {
		switch a.Key {
		case "tunnel":
			tunnel = a.Value.String()
		case "peer", "remote":
			peer = a.Value.String()
			fmt.Fprintf(&rest, " %s=%s", a.Key, peer)
		default:
			fmt.Fprintf(&rest, " %s=%s", a.Key, a.Value.Resolve())
		}
		return true
	}
	for _, a := range h.attrs {
		each(a)
	}
	r.Attrs(each)
	if h.name != "" && tunnel != h.name {
		return
	}
	if h.dst.IsValid() && peer != h.dst.String() {
		if a, err := netip.ParseAddrPort(peer); err != nil || a.Addr() != h.dst {
			return
		}
	}
	line := "ike 0"
	if tunnel != "" {
		line += ":" + tunnel
	}
	line += ": " + r.Message + rest.String() + "\n"
	if h.timestamp {
		line = r.Time.Format("2006-01-02 15:04:05.000000 ") + line
	}
	for w := range h.watchers {
		select {
		case w.lines <- line:
		default:
			w.lost++
		}
	}
}

func (h *logHub) watch() *watcher {
	w := &watcher{lines: make(chan string, watcherLines)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[w] = struct{}{}
	return w
}

func (h *logHub) unwatch(w *watcher) (lost int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
	return w.lost
}

// noiseLimit lets through so many lines of one text a second that nobody
// authenticated: anybody on the network can cause them.
const noiseLimit = 5

// noise is a rate limit for each text; owned by the event loop.
type noise struct {
	second  int64
	seen    map[string]int
	dropped int
}

// allow says whether a line goes to the log; summary is the number of lines
// withheld in the second that just ended, 0 most of the time.
func (n *noise) allow(now time.Time, text string) (ok bool, summary int) {
	if s := now.Unix(); s != n.second || n.seen == nil {
		summary, n.dropped = n.dropped, 0
		n.second, n.seen = s, map[string]int{}
	}
	if len(n.seen) > 1000 { // texts are ours, but let no mistake grow it
		n.dropped++
		return false, summary
	}
	n.seen[text]++
	if n.seen[text] > noiseLimit {
		n.dropped++
		return false, summary
	}
	return true, summary
}
