package bfd

import (
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const tx50 = 50 * time.Millisecond

func config(discr uint32) Config {
	return Config{Discr: discr, DesiredMinTx: tx50, RequiredMinRx: tx50, DetectMult: 3, Rand: func(n uint32) uint32 { return n - 1 }}
}

// drain returns what a session wants: packets, and changes.
func drain(s *Session) (sent []Packet, changed []Changed) {
	for e, ok := s.Poll(); ok; e, ok = s.Poll() {
		switch e := e.(type) {
		case Send:
			sent = append(sent, e.Packet)
		case Changed:
			changed = append(changed, e)
		}
	}
	return sent, changed
}

// in makes a session that is in a state, with nothing left to do.
func in(t *testing.T, st State) *Session {
	t.Helper()
	s := New(start, config(1))
	hear := func(x State) {
		s.HandlePacket(start, Packet{State: x, DetectMult: 3, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50, RequiredMinRx: tx50})
	}
	switch st {
	case Init:
		hear(Down)
	case Up:
		hear(Init)
	case AdminDown:
		s.Close(start)
	}
	drain(s)
	if s.State() != st {
		t.Fatalf("is %v, want %v", s.State(), st)
	}
	return s
}

// RFC 5880 §6.2 and §6.8.6: state and what the neighbour says, and what comes of it.
func TestStateTable(t *testing.T) {
	for _, tc := range []struct {
		from, heard, to State
		diag            Diag
	}{
		{Down, AdminDown, Down, DiagNone},
		{Down, Down, Init, DiagNone},
		{Down, Init, Up, DiagNone},
		{Down, Up, Down, DiagNone},
		{Init, AdminDown, Down, DiagNeighbourDown},
		{Init, Down, Init, DiagNone},
		{Init, Init, Up, DiagNone},
		{Init, Up, Up, DiagNone},
		{Up, AdminDown, Down, DiagNeighbourDown},
		{Up, Down, Down, DiagNeighbourDown},
		{Up, Init, Up, DiagNone},
		{Up, Up, Up, DiagNone},
		{AdminDown, AdminDown, AdminDown, DiagAdminDown},
		{AdminDown, Down, AdminDown, DiagAdminDown},
		{AdminDown, Init, AdminDown, DiagAdminDown},
		{AdminDown, Up, AdminDown, DiagAdminDown},
	} {
		s := in(t, tc.from)
		s.HandlePacket(start, Packet{State: tc.heard, DetectMult: 3, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50, RequiredMinRx: tx50})
		sent, changed := drain(s)
		if s.State() != tc.to || s.diag != tc.diag {
			t.Errorf("%v hears %v: is %v (%v), want %v (%v)", tc.from, tc.heard, s.State(), s.diag, tc.to, tc.diag)
		}
		if (len(changed) == 1) != (tc.from != tc.to) {
			t.Errorf("%v hears %v: says %v", tc.from, tc.heard, changed)
		}
		if tc.from != tc.to && (len(sent) == 0 || sent[len(sent)-1].State != tc.to) {
			t.Errorf("%v hears %v: the neighbour is not told at once: %v", tc.from, tc.heard, sent)
		}
	}
}

func TestDetectionTimeExpires(t *testing.T) {
	for _, st := range []State{Init, Up} {
		s := in(t, st)
		if d := s.DetectionTime(); d != 150*time.Millisecond {
			t.Fatalf("detection time %v, want 3 × 50 ms", d)
		}
		s.HandleTimeout(start.Add(149 * time.Millisecond))
		if s.State() != st {
			t.Fatalf("%v: gone after 149 ms", st)
		}
		drain(s)
		s.HandleTimeout(start.Add(150 * time.Millisecond))
		sent, changed := drain(s)
		if s.State() != Down || len(changed) != 1 || changed[0].Diag != DiagExpired {
			t.Errorf("%v: after 150 ms %v, %v", st, s.State(), changed)
		}
		if len(sent) != 1 || sent[0].State != Down || sent[0].YourDiscr != 0 || sent[0].Diag != DiagExpired || sent[0].DesiredMinTx != time.Second {
			t.Errorf("%v: tells the neighbour %+v", st, sent)
		}
	}
}

// Before it is up a session sends once a second at most; after, every 50 ms at most
// and never in less than 75 % of that (RFC 5880 §6.8.3, §6.8.7).
func TestPaceOfPackets(t *testing.T) {
	cfg := config(1)
	low := false
	cfg.Rand = func(n uint32) uint32 {
		if low {
			return 0
		}
		return n - 1
	}
	s := New(start, cfg)
	if at, _ := s.NextTimeout(); at != start.Add(time.Second) {
		t.Errorf("next packet while down after %v, want 1 s", at.Sub(start))
	}
	low = true
	s.HandlePacket(start, Packet{State: Init, DetectMult: 3, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50, RequiredMinRx: tx50})
	if at, _ := s.NextTimeout(); at != start.Add(37500*time.Microsecond) {
		t.Errorf("next packet when up after %v, want 75 %% of 50 ms", at.Sub(start))
	}
	// The neighbour can take one packet every 200 ms only.
	s.HandlePacket(start, Packet{State: Up, Final: true, DetectMult: 30, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50, RequiredMinRx: 200 * time.Millisecond})
	now := start.Add(37500 * time.Microsecond)
	s.HandleTimeout(now)
	if at, _ := s.NextTimeout(); at != now.Add(150*time.Millisecond) {
		t.Errorf("next packet after %v, want 75 %% of 200 ms", at.Sub(now))
	}
	// And then none at all.
	s.HandlePacket(now, Packet{State: Up, DetectMult: 30, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50})
	drain(s)
	if at, _ := s.NextTimeout(); at != now.Add(30*tx50) {
		t.Errorf("next timeout after %v: only the detection time should be left", at.Sub(now))
	}
}

func TestJitterOfSinglePackets(t *testing.T) {
	cfg := config(1)
	cfg.DetectMult = 1
	s := New(start, cfg)
	if at, _ := s.NextTimeout(); at != start.Add(900*time.Millisecond) {
		t.Errorf("with a multiplier of 1 the next packet comes after %v, want 90 %% at most", at.Sub(start))
	}
}

// RFC 5880 §6.5, §6.8.3: what the neighbour relies on changes when it has answered.
func TestPollSequence(t *testing.T) {
	s := in(t, Up)
	heard := Packet{State: Up, DetectMult: 3, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50, RequiredMinRx: time.Millisecond}
	heard.Final = true
	s.HandlePacket(start, heard) // ends the poll of coming up
	drain(s)
	heard.Final = false

	s.SetTimers(start, 300*time.Millisecond, 10*time.Millisecond) // send less often, detect sooner
	sent, _ := drain(s)
	if len(sent) != 1 || !sent[0].Poll || sent[0].Final || sent[0].DesiredMinTx != 300*time.Millisecond || sent[0].RequiredMinRx != 10*time.Millisecond {
		t.Fatalf("the poll is %+v", sent)
	}
	if s.interval() != tx50 || s.DetectionTime() != 3*tx50 {
		t.Errorf("before the answer: interval %v, detection %v", s.interval(), s.DetectionTime())
	}
	s.HandlePacket(start, heard)
	if s.interval() != tx50 {
		t.Error("a packet without the final bit ended the poll")
	}
	now := start.Add(tx50)
	s.HandleTimeout(now)
	if sent, _ := drain(s); len(sent) != 1 || !sent[0].Poll {
		t.Errorf("the poll is not repeated: %+v", sent)
	}
	heard.Final, heard.DesiredMinTx = true, 10*time.Millisecond
	s.HandlePacket(now, heard)
	if s.interval() != 300*time.Millisecond || s.DetectionTime() != 30*time.Millisecond {
		t.Errorf("after the answer: interval %v, detection %v", s.interval(), s.DetectionTime())
	}

	// A poll of the neighbour's is answered at once, and the answer polls nothing.
	s.HandlePacket(now, Packet{State: Up, Poll: true, DetectMult: 3, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50, RequiredMinRx: tx50})
	if sent, _ := drain(s); len(sent) != 1 || !sent[0].Final || sent[0].Poll {
		t.Errorf("the neighbour's poll is answered by %+v", sent)
	}
}

// A neighbour in demand mode gets no periodic packets, and is still watched (RFC 5880 §6.6).
func TestNeighbourInDemandMode(t *testing.T) {
	s := in(t, Up)
	s.HandlePacket(start, Packet{State: Up, Demand: true, Final: true, DetectMult: 3, MyDiscr: 9, YourDiscr: 1, DesiredMinTx: tx50, RequiredMinRx: tx50})
	drain(s)
	if at, ok := s.NextTimeout(); !ok || at != start.Add(150*time.Millisecond) {
		t.Errorf("the next timeout is %v, want the end of the detection time", at.Sub(start))
	}
}

// Packets of another session change nothing.
func TestOtherDiscriminator(t *testing.T) {
	s := in(t, Up)
	s.HandlePacket(start, Packet{State: Down, DetectMult: 3, MyDiscr: 9, YourDiscr: 7, DesiredMinTx: tx50, RequiredMinRx: tx50})
	if sent, changed := drain(s); len(sent)+len(changed) != 0 || s.State() != Up {
		t.Errorf("%v %v %v", sent, changed, s.State())
	}
}

// wire is two sessions with a link between them, in fake time.
type wire struct {
	now  time.Time
	ends [2]*Session
	cut  [2]bool // what this end sends is lost
	sent [2]int
	log  [2][]State
}

func (w *wire) carry(t *testing.T) {
	t.Helper()
	for busy := true; busy; {
		busy = false
		for i, s := range w.ends {
			for e, ok := s.Poll(); ok; e, ok = s.Poll() {
				busy = true
				switch e := e.(type) {
				case Changed:
					w.log[i] = append(w.log[i], e.To)
				case Send:
					w.sent[i]++
					if p, err := Decode(e.Packet.Append(nil)); err != nil {
						t.Fatal(err)
					} else if !w.cut[i] {
						w.ends[1-i].HandlePacket(w.now, p)
					}
				}
			}
		}
	}
}

func (w *wire) run(t *testing.T, d time.Duration) {
	t.Helper()
	w.carry(t)
	for end := w.now.Add(d); ; {
		next := end
		for _, s := range w.ends {
			if at, ok := s.NextTimeout(); ok && at.Before(next) {
				next = at
			}
		}
		w.now = next
		if !next.Before(end) {
			return
		}
		for _, s := range w.ends {
			s.HandleTimeout(w.now)
		}
		w.carry(t)
	}
}

func TestTwoEnds(t *testing.T) {
	w := &wire{now: start, ends: [2]*Session{New(start, config(1)), New(start, config(2))}}
	w.run(t, time.Second)
	up := func() bool { return w.ends[0].State() == Up && w.ends[1].State() == Up }
	if !up() {
		t.Fatalf("after a second: %v and %v", w.ends[0].State(), w.ends[1].State())
	}
	w.sent = [2]int{}
	w.run(t, time.Second)
	for i, n := range w.sent {
		if n < 20 || n > 27 {
			t.Errorf("end %d sent %d packets in a second at 50 ms", i, n)
		}
	}
	if w.ends[0].polling || w.ends[1].polling {
		t.Error("a poll sequence does not end")
	}

	// One direction is cut: the other end detects it, and says so to this one.
	w.log = [2][]State{}
	w.cut[0] = true
	w.run(t, 150*time.Millisecond)
	if w.ends[0].State() == Up || w.ends[1].State() != Down {
		t.Errorf("150 ms after the cut: %v and %v", w.ends[0].State(), w.ends[1].State())
	}
	w.run(t, 10*time.Second)
	if len(w.log[1]) != 1 {
		t.Errorf("the deaf end went through %v", w.log[1])
	}
	w.cut[0] = false
	w.run(t, 3*time.Second)
	if !up() {
		t.Fatalf("after healing: %v and %v", w.ends[0].State(), w.ends[1].State())
	}

	// One end starts again with another discriminator, as a new process does.
	w.ends[0] = New(w.now, config(77))
	w.run(t, 4*time.Second)
	if !up() {
		t.Fatalf("after a restart: %v and %v", w.ends[0].State(), w.ends[1].State())
	}

	// One end is closed by its operator: the other is down at once and knows why.
	w.ends[0].Close(w.now)
	w.carry(t)
	if w.ends[1].State() != Down || w.ends[1].remote.state != AdminDown {
		t.Errorf("after Close: %v, remote %v", w.ends[1].State(), w.ends[1].remote.state)
	}
}
