package bfd

import (
	"time"

	"tandem/internal/outbox"
)

// Config is our side of a session.
type Config struct {
	Discr         uint32        // ours, not 0, of no other session
	DesiredMinTx  time.Duration // how often we wish to send when up; from 1 ms
	RequiredMinRx time.Duration // how often we can take packets; from 1 ms
	DetectMult    uint8         // of our packets may be missing in a row; 1–255
	// Rand returns a number below n, for the jitter of RFC 5880 §6.8.7.
	Rand func(n uint32) uint32
}

// slow is the least interval of transmission while a session is not up (RFC 5880 §6.8.3).
const slow = time.Second

// Effect is what a session wants done.
type Effect interface{ effect() }

// Send wants a packet sent to the neighbour.
type Send struct{ Packet Packet }

// Changed says that the session's state has changed.
type Changed struct {
	From, To State
	Diag     Diag
	// Remote is the neighbour's state as it said it last. AdminDown is a decision of
	// its operator and no failure of the path (RFC 5882 §3.2).
	Remote State
}

func (Send) effect()    {}
func (Changed) effect() {}

// Session is one session, active and asynchronous. It is not safe for concurrent use.
type Session struct {
	cfg    Config
	state  State
	diag   Diag
	remote struct {
		state      State
		discr      uint32
		minRx      time.Duration // 0: it wants no periodic packets
		desiredTx  time.Duration
		detectMult uint8
		demand     bool
	}
	polling   bool
	usedTx    time.Duration // transmission goes by it: DesiredMinTx, or the one before while a poll is open
	usedRx    time.Duration // detection goes by it, likewise
	wantTx    time.Duration // as said in packets
	lastSent  time.Time
	nextSend  time.Time
	lastHeard time.Time // zero: no valid packet within a detection time
	said      Packet    // last sent, poll and final aside
	effects   outbox.Box[Effect]
}

// New makes a session that is down and sends its first packet at once.
func New(now time.Time, cfg Config) *Session {
	s := &Session{cfg: cfg, state: Down, usedTx: max(slow, cfg.DesiredMinTx), usedRx: cfg.RequiredMinRx}
	s.wantTx = s.usedTx
	s.remote.state, s.remote.minRx = Down, time.Microsecond // RFC 5880 §6.8.1
	s.send(now, false)
	return s
}

// State is the session's state.
func (s *Session) State() State { return s.state }

// Discr is our discriminator.
func (s *Session) Discr() uint32 { return s.cfg.Discr }

// Poll returns the next effect; drain it after each input.
func (s *Session) Poll() (Effect, bool) {
	return s.effects.Poll()
}

// HandlePacket takes a packet that Decode has let through and that belongs to this
// session (RFC 5880 §6.8.6).
func (s *Session) HandlePacket(now time.Time, p Packet) {
	if p.YourDiscr != 0 && p.YourDiscr != s.cfg.Discr {
		return
	}
	r := &s.remote
	r.discr, r.state, r.demand = p.MyDiscr, p.State, p.Demand
	r.minRx, r.desiredTx, r.detectMult = p.RequiredMinRx, p.DesiredMinTx, p.DetectMult
	if s.polling && p.Final {
		s.polling = false
		s.usedTx, s.usedRx = s.wantTx, s.cfg.RequiredMinRx
	}
	if s.state == AdminDown {
		return
	}
	s.lastHeard = now
	switch {
	case p.State == AdminDown:
		if s.state != Down {
			s.change(Down, DiagNeighbourDown)
		}
	case s.state == Down && p.State == Down:
		s.change(Init, s.diag)
	case s.state == Down && p.State == Init, s.state == Init && p.State >= Init:
		s.change(Up, DiagNone)
	case s.state == Up && p.State == Down:
		s.change(Down, DiagNeighbourDown)
	}
	if p.Poll {
		s.send(now, true)
	}
	s.update(now)
}

// HandleTimeout runs what is due.
func (s *Session) HandleTimeout(now time.Time) {
	if at, ok := s.detectAt(); ok && !now.Before(at) {
		s.lastHeard = time.Time{}
		s.remote.discr = 0 // RFC 5880 §6.8.1: it may come back with another
		if s.state == Init || s.state == Up {
			s.change(Down, DiagExpired)
		}
		s.update(now)
	}
	if s.periodic() && !now.Before(s.nextSend) {
		s.send(now, false)
	}
}

// NextTimeout is when HandleTimeout is due.
func (s *Session) NextTimeout() (at time.Time, ok bool) {
	at, ok = s.detectAt()
	if s.periodic() && (!ok || s.nextSend.Before(at)) {
		at, ok = s.nextSend, true
	}
	return at, ok
}

// SetTimers changes the intervals; the neighbour is told by a poll sequence, and what
// it relies on changes only when it has answered (RFC 5880 §6.8.3).
func (s *Session) SetTimers(now time.Time, desiredMinTx, requiredMinRx time.Duration) {
	s.cfg.DesiredMinTx, s.cfg.RequiredMinRx = desiredMinTx, requiredMinRx
	s.retime()
	s.update(now)
}

// Close takes the session down by decision: the neighbour hears AdminDown.
func (s *Session) Close(now time.Time) {
	if s.state != AdminDown {
		s.change(AdminDown, DiagAdminDown)
		s.lastHeard = time.Time{}
		s.update(now)
	}
}

// DetectionTime is how long the neighbour may be silent (RFC 5880 §6.8.4); 0 before
// its first packet.
func (s *Session) DetectionTime() time.Duration {
	return time.Duration(s.remote.detectMult) * max(s.usedRx, s.remote.desiredTx)
}

func (s *Session) detectAt() (time.Time, bool) {
	if s.lastHeard.IsZero() {
		return time.Time{}, false
	}
	return s.lastHeard.Add(s.DetectionTime()), true
}

func (s *Session) change(to State, d Diag) {
	from := s.state
	s.state, s.diag = to, d
	s.effects.Emit(Changed{From: from, To: to, Diag: d, Remote: s.remote.state})
	if (from == Up) != (to == Up) {
		s.retime()
	}
}

// retime settles what our intervals are in this state, and begins a poll sequence if
// the neighbour must learn of a change.
func (s *Session) retime() {
	want := s.cfg.DesiredMinTx
	if s.state != Up {
		want = max(want, slow)
	}
	if want == s.wantTx && s.cfg.RequiredMinRx == s.usedRx {
		return
	}
	s.wantTx = want
	if s.state != Up {
		// There is nothing that the neighbour could lose.
		s.usedTx, s.usedRx = want, s.cfg.RequiredMinRx
	}
	s.usedTx = min(s.usedTx, want)                   // more often at once, less often when it knows
	s.usedRx = max(s.usedRx, s.cfg.RequiredMinRx)    // more patient at once, less when it knows
	s.polling = s.state == Up || s.remote.discr != 0 // a neighbour that is not there answers no poll
}

// interval is ours between packets before jitter (RFC 5880 §6.8.7).
func (s *Session) interval() time.Duration { return max(s.usedTx, s.remote.minRx) }

// periodic says whether packets leave by the clock.
func (s *Session) periodic() bool {
	if s.remote.minRx == 0 {
		return false
	}
	return s.polling || !(s.remote.demand && s.state == Up && s.remote.state == Up)
}

// update sends at once when what we say has changed, so that the neighbour learns of
// a state sooner than by the clock (RFC 5880 §6.8.7), and else keeps to an interval
// that has become shorter.
func (s *Session) update(now time.Time) {
	if next := s.Packet(); next != s.said {
		if s.remote.minRx != 0 {
			s.send(now, false)
		}
		return
	}
	if at := s.lastSent.Add(s.interval()); at.Before(s.nextSend) {
		s.nextSend = at
	}
}

// Packet is what the session says now, outside of a poll sequence.
func (s *Session) Packet() Packet {
	return Packet{
		Diag: s.diag, State: s.state, DetectMult: s.cfg.DetectMult, MyDiscr: s.cfg.Discr, YourDiscr: s.remote.discr,
		DesiredMinTx: s.wantTx, RequiredMinRx: s.cfg.RequiredMinRx,
	}
}

func (s *Session) send(now time.Time, final bool) {
	p := s.Packet()
	s.said = p
	p.Final, p.Poll = final, s.polling && !final
	s.effects.Emit(Send{p})
	s.lastSent = now
	s.nextSend = now.Add(s.jittered(s.interval()))
}

// jittered takes 0 to 25 % off, and at least 10 % where a single packet counts.
func (s *Session) jittered(d time.Duration) time.Duration {
	percent := 75 + s.cfg.Rand(26)
	if s.cfg.DetectMult == 1 {
		percent = 75 + s.cfg.Rand(16)
	}
	return d * time.Duration(percent) / 100
}
