package linkhealth

import "time"

// The rule of link-flap damping: an interface that fails counts as failed at once. The
// first time that it comes back it counts at once as well. When it had failed before, in
// the last five minutes, it must have worked for a while first: one second after the
// second failure, two after the third, and so on, doubling, at most a minute. Five minutes
// without a failure and all is forgotten. So a cable that is pulled costs one failover, and
// a flapping one does not drag the cluster to and fro.
const (
	dampMemory = 5 * time.Minute
	dampFirst  = time.Second
	dampMost   = time.Minute
)

// Damper says which interfaces can be relied on. The zero Damper is ready, and damps.
type Damper struct {
	off   bool
	links map[string]*link
}

type link struct {
	up       bool
	failures int
	failed   time.Time // last
	from     time.Time // from then on it counts as working, if it is up
}

// Damp switches the damping on or off; off, an interface counts as what it is.
func (d *Damper) Damp(on bool) { d.off = !on }

// Set says whether an interface is up. The first word about an interface is no failure.
func (d *Damper) Set(now time.Time, name string, up bool) {
	if d.links == nil {
		d.links = map[string]*link{}
	}
	l := d.links[name]
	if l == nil {
		d.links[name] = &link{up: up}
		return
	}
	switch {
	case l.up && !up:
		if l.failures > 0 && now.Sub(l.failed) >= dampMemory {
			l.failures = 0
		}
		l.failures++
		l.failed = now
	case !l.up && up:
		l.from = now.Add(wait(l.failures))
	}
	l.up = up
}

func wait(failures int) time.Duration {
	if failures < 2 {
		return 0
	}
	return min(dampFirst<<min(failures-2, 10), dampMost)
}

// Works says whether the interface is up and counts. An unknown one does not.
func (d *Damper) Works(now time.Time, name string) bool {
	l := d.links[name]
	return l != nil && l.up && (d.off || !now.Before(l.from))
}

// Held is how long an interface that is up has still to wait, and how often it failed.
func (d *Damper) Held(now time.Time, name string) (left time.Duration, failures int) {
	l := d.links[name]
	if l == nil {
		return 0, 0
	}
	if l.up && !d.off {
		left = max(0, l.from.Sub(now))
	}
	if l.failures > 0 && now.Sub(l.failed) < dampMemory {
		failures = l.failures
	}
	return left, failures
}

// Next is when the first of the interfaces begins to count that do not yet.
func (d *Damper) Next(now time.Time, names []string) (at time.Time, ok bool) {
	for _, n := range names {
		if left, _ := d.Held(now, n); left > 0 && (!ok || now.Add(left).Before(at)) {
			at, ok = now.Add(left), true
		}
	}
	return at, ok
}
