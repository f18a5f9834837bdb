package guardian

import (
	"context"
	"log/slog"
	"sync"
)

// asyncHandler writes log lines from another goroutine: a full pipe behind the log
// must not stop heartbeats. Lines that do not fit are dropped.
type asyncHandler struct {
	slog.Handler
	q *asyncQueue
}

type asyncQueue struct {
	lines chan func()
	done  sync.WaitGroup
}

func newAsyncLogger(l *slog.Logger) (*slog.Logger, func()) {
	q := &asyncQueue{lines: make(chan func(), 1024)}
	q.done.Go(func() {
		for f := range q.lines {
			f()
		}
	})
	return slog.New(asyncHandler{l.Handler(), q}), func() {
		close(q.lines)
		q.done.Wait()
	}
}

func (h asyncHandler) Handle(ctx context.Context, r slog.Record) error {
	r = r.Clone()
	select {
	case h.q.lines <- func() { _ = h.Handler.Handle(ctx, r) }:
	default:
	}
	return nil
}

func (h asyncHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return asyncHandler{h.Handler.WithAttrs(a), h.q}
}

func (h asyncHandler) WithGroup(name string) slog.Handler {
	return asyncHandler{h.Handler.WithGroup(name), h.q}
}
