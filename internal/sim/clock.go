package sim

import "time"

// epoch is when virtual time begins on a clock that is right.
var epoch = time.Unix(1_800_000_000, 0)

// clock is one host's: it drifts, and stands still when the host's hypervisor does.
// Steps of the wall clock are apart from it, as Go's monotonic readings are.
type clock struct {
	ppm  int64
	late time.Duration // stood still
	wall time.Duration // steps of the wall clock
}

func (c *clock) elapsed(now time.Duration) time.Duration {
	return now + now/1_000_000*time.Duration(c.ppm) - c.late
}

// at is what the clock shows at a moment of virtual time.
func (c *clock) at(now time.Duration) time.Time { return epoch.Add(c.elapsed(now)) }

// unix is the wall clock, in milliseconds.
func (c *clock) unix(now time.Duration) int64 { return c.at(now).Add(c.wall).UnixMilli() }

// when is a moment of virtual time at which the clock has just come to show t.
func (c *clock) when(t time.Time) time.Duration {
	want := t.Sub(epoch) + c.late
	now := want - want/1_000_000*time.Duration(c.ppm)
	for missing := time.Duration(1); missing > 0; now += max(0, missing) {
		missing = want - c.late - c.elapsed(now)
	}
	return now
}
