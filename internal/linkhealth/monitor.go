package linkhealth

import "time"

// Options say when a server is dead and when it is live again.
type Options struct {
	Interval time.Duration // between probes of a server
	Timeout  time.Duration // an answer that comes later does not count
	Fail     int           // unanswered probes in a row, from 1 on
	Recover  int           // answers in a row, from 1 on
}

const (
	// maxOpen bounds the probes of a server that wait for their answers, where the
	// timeout is many intervals long: the oldest beyond it counts as unanswered.
	maxOpen = 64
	// stall is how late a timeout may come before it proves that this process stood
	// still; what was not answered meanwhile was perhaps only not read.
	stall = 100 * time.Millisecond
)

// Probe is one to be sent now.
type Probe struct {
	Server int
	Seq    uint16
}

// Monitor watches some servers while it runs. It fails when all of them are dead. A
// server is live until the opposite is proven. It is not safe for concurrent use.
type Monitor struct {
	opt     Options
	running bool
	servers []server
}

type server struct {
	dead     bool
	since    time.Time // of the last change, or of the start
	lost     int       // unanswered in a row
	answered int       // in a row
	seq      uint16
	next     time.Time // of the next probe
	open     []open
}

type open struct {
	seq uint16
	due time.Time
}

// NewMonitor makes one for n servers, which does not run yet.
func NewMonitor(o Options, n int) *Monitor { return &Monitor{opt: o, servers: make([]server, n)} }

// Start begins to probe. What was known before is forgotten.
func (m *Monitor) Start(now time.Time) {
	if m.running {
		return
	}
	m.running = true
	for i := range m.servers {
		s := &m.servers[i]
		*s = server{since: now, next: now, seq: s.seq} // answers to old probes stay old
	}
}

// Stop ends that; what is known stays as it is.
func (m *Monitor) Stop() {
	m.running = false
	for i := range m.servers {
		m.servers[i].open = nil
	}
}

// Running says whether servers are probed.
func (m *Monitor) Running() bool { return m.running }

// HandleAnswer takes an answer to a probe.
func (m *Monitor) HandleAnswer(now time.Time, server int, seq uint16) {
	if !m.running || server < 0 || server >= len(m.servers) {
		return
	}
	s := &m.servers[server]
	for i, o := range s.open {
		if o.seq != seq {
			continue
		}
		if now.After(o.due) {
			return // HandleTimeout judges it
		}
		s.open = append(s.open[:i], s.open[i+1:]...)
		s.lost = 0
		if s.answered++; s.dead && s.answered >= m.opt.Recover {
			s.dead, s.since = false, now
		}
		return
	}
}

// HandleTimeout counts what was not answered in time and returns the probes that are
// due. A probe that cannot be sent is one that is not answered.
func (m *Monitor) HandleTimeout(now time.Time) (send []Probe) {
	if !m.running {
		return nil
	}
	for i := range m.servers {
		s := &m.servers[i]
		if at := s.wake(); now.Sub(at) > stall {
			s.open = nil
		}
		for len(s.open) > 0 && !now.Before(s.open[0].due) {
			s.miss(now, m.opt.Fail)
		}
		if now.Before(s.next) {
			continue
		}
		if len(s.open) >= maxOpen {
			s.miss(now, m.opt.Fail)
		}
		s.seq++
		s.open = append(s.open, open{s.seq, now.Add(m.opt.Timeout)})
		s.next = now.Add(m.opt.Interval)
		send = append(send, Probe{i, s.seq})
	}
	return send
}

// miss counts the oldest open probe as unanswered.
func (s *server) miss(now time.Time, fail int) {
	s.open = s.open[1:]
	s.answered = 0
	if s.lost++; !s.dead && s.lost >= fail {
		s.dead, s.since = true, now
	}
}

// wake is when something is due for the server.
func (s *server) wake() time.Time {
	if len(s.open) > 0 && s.open[0].due.Before(s.next) {
		return s.open[0].due
	}
	return s.next
}

// NextTimeout is when HandleTimeout is due.
func (m *Monitor) NextTimeout() (at time.Time, ok bool) {
	if !m.running {
		return at, false
	}
	for i := range m.servers {
		if w := m.servers[i].wake(); !ok || w.Before(at) {
			at, ok = w, true
		}
	}
	return at, ok
}

// Failed says that every server is dead.
func (m *Monitor) Failed() bool {
	for i := range m.servers {
		if !m.servers[i].dead {
			return false
		}
	}
	return len(m.servers) > 0
}

// Server says whether a server is dead and since when it is, or is not; the time is zero
// before the first Start.
func (m *Monitor) Server(i int) (dead bool, since time.Time) {
	return m.servers[i].dead, m.servers[i].since
}
