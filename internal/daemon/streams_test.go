package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"tandem/internal/quiet"
	statesync "tandem/sync"
	"tandem/sync/stream"
)

// TestRefusedFramesAreSaidOnce: frames of an older epoch, of which many may be on their
// way, are one line for each member and reason.
func TestRefusedFramesAreSaidOnce(t *testing.T) {
	var log bytes.Buffer
	to := quiet.NewRefusals(slog.New(slog.NewTextHandler(&log, nil)), "frame refused")
	for i := range 1000 {
		for node := range 2 {
			r := stream.Received{}
			r.Node++
			if node == 1 {
				r.Node++
			}
			frameRefused(to, r, fmt.Errorf("%w: %d.1, fence %d.2", statesync.ErrOldEpoch, i, i+1))
			frameRefused(to, r, fmt.Errorf("%w: %x is a former process of node 1", statesync.ErrAddress, 7))
		}
	}
	text := log.String()
	if strings.Count(text, "\n") != 4 || strings.Count(text, "older epoch") != 2 || strings.Count(text, `from="node 2"`) != 2 {
		t.Error(text)
	}
}
