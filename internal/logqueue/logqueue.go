// Package logqueue lets a process log without waiting for whoever writes the log down: a
// disk that stands still and a full pipe stop what is written, not who says it.
package logqueue

import (
	"bytes"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Lines is how many lines of a process may wait: some seconds of a busy one.
const Lines = 4096

// closeMost is how long Close waits for an output that does not take what is left.
const closeMost = time.Second

// Writer passes on each Write, a whole line, from a goroutine of its own, in order. Lines
// that find the queue full are lost, and counted. It is safe for concurrent use.
type Writer struct {
	out  io.Writer
	lost func(n uint64)

	mu     sync.RWMutex // of closed
	closed bool
	lines  chan []byte
	done   chan struct{}
	count  atomic.Uint64
}

// New begins to pass lines on to out, of which at most size wait. lost is told, between
// two lines and from the goroutine that writes them, how many were lost since it was told
// last; it may write to out.
func New(out io.Writer, size int, lost func(n uint64)) *Writer {
	w := &Writer{out: out, lost: lost, lines: make(chan []byte, size), done: make(chan struct{})}
	go w.run()
	return w
}

// Say tells a log that lines were lost.
func Say(log *slog.Logger) func(n uint64) {
	return func(n uint64) {
		log.Warn("lines are missing here: the log was not written down for a while", "lines", n)
	}
}

func (w *Writer) run() {
	defer close(w.done)
	for b := range w.lines {
		_, _ = w.out.Write(b)
		if n := w.count.Swap(0); n > 0 {
			w.lost(n)
		}
	}
}

// Write takes a line; it never fails and never waits. After Close it writes by itself.
func (w *Writer) Write(b []byte) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return w.out.Write(b)
	}
	select {
	case w.lines <- bytes.Clone(b):
	default:
		w.count.Add(1)
	}
	return len(b), nil
}

// Close returns when all lines are written, or after a second.
func (w *Writer) Close() {
	w.mu.Lock()
	was := w.closed
	if w.closed = true; !was {
		close(w.lines)
	}
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-time.After(closeMost):
	}
}
