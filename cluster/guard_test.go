package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// bench is one Guard whose peer is played by the test.
type bench struct {
	t    *testing.T
	g    *Guard
	now  time.Time
	peer Heartbeat
	got  []GuardEffect
	sent *Heartbeat
	next time.Time // Tick
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, now: time.Unix(1e9, 0), g: NewGuard(GuardOptions{
		Self: 2, Name: "gw2", Incarnation: 50, Interval: 10 * time.Millisecond, Threshold: 3,
	})}
	b.peer = Heartbeat{
		Node: 1, Name: "gw1", Incarnation: 7, Process: 100, Running: true,
		Announce: Announce{Role: RoleOwner, Epoch: Epoch{Counter: 5, Node: 1}}, Heard: []Heard{{2, 50}},
	}
	b.g.DaemonStarted(b.now, 200)
	b.g.HandleAnnounce(b.now, Announce{Role: RoleStandby, Epoch: Epoch{Counter: 5, Node: 1}})
	b.drain()
	b.got = nil
	return b
}

func (b *bench) drain() {
	for {
		e, ok := b.g.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case SendHeartbeat:
			h := e.Heartbeat
			b.sent = &h
		case GuardLog:
		default:
			b.got = append(b.got, e)
		}
	}
}

// beat plays one heartbeat of the peer on a device; then gives what the Guard made of it.
func (b *bench) beat(devices ...string) []GuardEffect {
	b.t.Helper()
	b.peer.Seq++
	for _, d := range devices {
		h := b.peer
		if err := b.g.HandleHeartbeat(b.now, Link{Device: d, Addr: "fe80::1"}, &h); err != nil {
			b.t.Errorf("heartbeat refused: %v", err)
		}
	}
	return b.take()
}

func (b *bench) take() []GuardEffect {
	b.drain()
	got := b.got
	b.got = nil
	return got
}

// ticks lets so many ticks pass; one Tick may stand for several.
func (b *bench) ticks(n int) []GuardEffect {
	end := b.now.Add(time.Duration(n) * b.g.tick)
	if !b.next.After(b.now) || b.next.After(b.now.Add(b.g.TickInterval())) {
		b.next = b.now.Add(b.g.TickInterval())
	}
	for !b.next.After(end) {
		b.now = b.next
		b.g.Tick(b.now)
		b.next = b.now.Add(b.g.TickInterval())
	}
	b.now = end
	return b.take()
}

func find[E GuardEffect](got []GuardEffect) (x E, ok bool) {
	for _, e := range got {
		if x, ok = e.(E); ok {
			return x, true
		}
	}
	return x, false
}

func (b *bench) entitle(e Epoch) bool {
	b.g.HandleEntitle(b.now, Entitle{Epoch: e, On: true})
	_, ok := find[TellEntitled](b.take())
	return ok
}

func TestSilenceIsCountedInOwnTicks(t *testing.T) {
	b := newBench(t)
	b.beat("hb0", "hb1")
	b.ticks(1) // tells of the second device
	if got := b.ticks(5); len(got) != 0 {
		t.Fatalf("lost after 30 ms: %v", got)
	}
	got := b.ticks(1)
	if l, ok := find[TellLoss](got); !ok || l.Kind != LossSilence || l.Entitled || l.Detected != 35*time.Millisecond {
		t.Fatalf("%+v", got)
	}
	if got := b.ticks(100); len(got) != 0 {
		t.Fatalf("told again: %v", got)
	}
	if p, ok := find[TellPeer](b.beat("hb1")); !ok || len(p.Peer.Links) != 1 {
		t.Fatal("its return is not told")
	}
}

func TestALateTickIsOneTick(t *testing.T) {
	b := newBench(t)
	b.beat("hb0")
	b.ticks(10)
	for range 20 { // each 25 ms late, as on a machine that cannot keep up
		b.now = b.now.Add(25 * time.Millisecond)
		b.beat("hb0")
		b.g.Tick(b.now)
	}
	if got := b.take(); len(got) != 0 {
		t.Fatalf("%v", got)
	}
	b.now = b.now.Add(time.Second) // stopped: what was missed proves nothing
	if got := b.ticks(6); len(got) != 0 {
		t.Fatalf("%v", got)
	}
	if _, ok := find[TellLoss](b.ticks(2)); !ok {
		t.Fatal("silence since then is not seen")
	}
}

func TestOneLinkSuffices(t *testing.T) {
	b := newBench(t)
	b.beat("hb0", "hb1")
	for range 20 {
		b.ticks(4)
		if _, lost := find[TellLoss](b.beat("hb1")); lost {
			t.Fatal("lost with a link alive")
		}
	}
	p, _ := find[TellPeer](b.beat("hb0"))
	if len(p.Peer.Links) != 2 {
		t.Errorf("links %v", p.Peer.Links)
	}
}

func TestReplays(t *testing.T) {
	b := newBench(t)
	b.beat("hb0")
	old := b.peer
	for range 40 {
		b.beat("hb0")
	}
	refused := func(what, device string, h Heartbeat) {
		t.Helper()
		if err := b.g.HandleHeartbeat(b.now, Link{Device: device}, &h); err == nil {
			t.Errorf("%s taken", what)
		}
		if got := b.take(); len(got) != 0 {
			t.Errorf("%s: %v", what, got)
		}
	}
	refused("the same again", "hb0", b.peer)
	refused("an old one on another device", "hb1", old)
	was := b.peer
	was.Incarnation--
	was.Seq += 100
	refused("one of an earlier start", "hb0", was)
	own := b.peer
	own.Node, own.Seq = 2, 1
	refused("another node with our number", "hb0", own)
	// Replays of the past cannot keep a silent peer alive.
	for range 14 {
		b.ticks(1)
		h := old
		_ = b.g.HandleHeartbeat(b.now, Link{Device: "hb1"}, &h)
	}
	if _, ok := find[TellLoss](b.ticks(1)); !ok && b.g.peers[0].heard {
		t.Error("kept alive by replays")
	}
}

// A second node with a peer's number, a clone of its disk, is refused as long as the
// first is heard; when that has fallen silent the number is free.
func TestASecondNodeWithANumberIsRefused(t *testing.T) {
	b := newBench(t)
	b.beat("hb0")
	clone := b.peer
	clone.Incarnation, clone.Seq, clone.Process = b.peer.Incarnation+1, 1, b.peer.Process+1
	send := func(from string) error {
		clone.Seq++
		h := clone
		return b.g.HandleHeartbeat(b.now, Link{Device: "hb0", Addr: from}, &h)
	}
	for range 5 {
		if err := send("fe80::bad"); err == nil || errors.Is(err, ErrSeenBefore) || !strings.Contains(err.Error(), "another node has number") {
			t.Fatalf("a second node: %v", err)
		}
		if got := b.take(); len(got) != 0 {
			t.Fatalf("it has an effect: %v", got)
		}
		b.beat("hb0")
	}
	// The peer's own new start, where it was, is heard at once.
	clone.Incarnation++
	if err := send("fe80::1"); err != nil {
		t.Fatal(err)
	}
	if p, ok := find[TellPeer](b.take()); !ok || p.Peer.Process != clone.Process {
		t.Fatal("a peer that begins anew is not told of")
	}
	// One that was recorded before this start, from wherever, keeps nobody out.
	clone.Heard = []Heard{{2, 49}}
	b.peer = clone
	b.beat("hb0")
	clone = b.peer
	clone.Incarnation++
	if err := send("fe80::7"); err != nil {
		t.Errorf("behind a recorded one: %v", err)
	}
	clone.Heard = []Heard{{2, 50}}
	if err := send("fe80::7"); err != nil {
		t.Fatal(err)
	}
	clone.Incarnation++
	if err := send("fe80::bad"); err == nil {
		t.Error("a second node is taken")
	}
	b.take()
	b.ticks(b.g.silence() + 2)
	clone.Incarnation++
	if err := send("fe80::bad"); err != nil {
		t.Errorf("after a silence: %v", err)
	}
}

func TestAPeerThatDoesNotHearThisStartIsDeaf(t *testing.T) {
	b := newBench(t)
	b.peer.Heard = []Heard{{2, 49}}
	if p, _ := find[TellPeer](b.beat("hb0")); !p.Peer.Deaf {
		t.Error("heartbeats made before this start count as hearing us")
	}
	b.peer.Heard = []Heard{{2, 50}}
	if p, _ := find[TellPeer](b.beat("hb0")); p.Peer.Deaf {
		t.Error("deaf")
	}
}

func TestEndOfADaemon(t *testing.T) {
	for _, c := range []struct {
		name string
		does func(*Heartbeat)
		want Loss
	}{
		{"announced", func(h *Heartbeat) { h.Running = false }, LossDeath},
		{"a new process", func(h *Heartbeat) { h.Process = 101 }, LossDeath},
		{"a new guardian", func(h *Heartbeat) { h.Incarnation, h.Seq, h.Running = 8, 0, false }, LossDeath},
		{"unresponsive", func(h *Heartbeat) { h.Running, h.Unresponsive = false, true }, LossUnresponsive},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.beat("hb0")
			if !b.entitle(Epoch{Counter: 5, Node: 1}) {
				t.Fatal("not entitled")
			}
			c.does(&b.peer)
			got := b.beat("hb0")
			if l, ok := find[TellLoss](got); !ok || l.Kind != c.want || !l.Entitled {
				t.Fatalf("%+v", got)
			}
			if _, held := b.g.Entitled(); held {
				t.Error("the entitlement can still be granted away")
			}
			if _, again := find[TellLoss](b.beat("hb0")); again {
				t.Error("told twice")
			}
		})
	}
}

func TestEntitlement(t *testing.T) {
	e := Epoch{Counter: 5, Node: 1}
	t.Run("not before the owner is heard", func(t *testing.T) {
		if newBench(t).entitle(e) {
			t.Error("granted")
		}
	})
	t.Run("not for an epoch that has passed", func(t *testing.T) {
		b := newBench(t)
		b.peer.Announce.Epoch = Epoch{Counter: 6, Node: 1}
		b.beat("hb0")
		if b.entitle(e) {
			t.Error("granted")
		}
	})
	t.Run("for an epoch ahead of the heartbeat", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		if !b.entitle(Epoch{Counter: 6, Node: 1}) {
			t.Error("refused")
		}
		if _, ok := find[TellRemoved](b.beat("hb0")); ok {
			t.Error("dropped by a heartbeat that lags behind the stream")
		}
	})
	t.Run("void when the owner goes on under a later epoch", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		b.entitle(e)
		b.peer.Announce.Epoch = Epoch{Counter: 6, Node: 1}
		if r, ok := find[TellRemoved](b.beat("hb0")); !ok || r.Node != 2 {
			t.Error("held on")
		}
		b.peer.Running = false
		if l, _ := find[TellLoss](b.beat("hb0")); l.Entitled {
			t.Error("entitled")
		}
	})
	t.Run("void also by the owner's last words", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		b.entitle(e)
		b.peer.Announce.Epoch, b.peer.Running = Epoch{Counter: 6, Node: 1}, false
		if l, ok := find[TellLoss](b.beat("hb0")); !ok || l.Entitled {
			t.Errorf("%+v", l)
		}
	})
	t.Run("ends with the daemon", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		b.entitle(e)
		b.g.DaemonEnded(b.now)
		b.drain()
		if b.sent.Running || b.sent.Entitled != (Epoch{}) {
			t.Errorf("%+v", b.sent)
		}
		b.g.DaemonStarted(b.now, 201)
		b.peer.Running = false
		if l, _ := find[TellLoss](b.beat("hb0")); l.Entitled {
			t.Error("entitled")
		}
	})
}

func TestRemovalRequest(t *testing.T) {
	e := Epoch{Counter: 5, Node: 1}
	ask := []Removal{{Node: 2, Nonce: 77, Epoch: e}}
	t.Run("granted", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		b.entitle(e)
		b.peer.Requests = ask
		if r, ok := find[TellRemoved](b.beat("hb0")); !ok || r.Node != 2 {
			t.Error("our daemon is not told")
		}
		if len(b.sent.Answers) != 1 || b.sent.Answers[0] != (Removal{Node: 1, Nonce: 77}) || b.sent.Entitled != (Epoch{}) {
			t.Errorf("%+v", b.sent)
		}
		if b.entitle(e) {
			t.Error("granted again for the epoch that goes on without us")
		}
		b.peer.Requests, b.peer.Announce.Epoch = nil, Epoch{Counter: 6, Node: 1}
		b.beat("hb0")
		if !b.entitle(Epoch{Counter: 6, Node: 1}) {
			t.Error("refused for the next epoch")
		}
		b.ticks(4)
		if len(b.sent.Answers) != 0 {
			t.Error("the answer goes on after the question")
		}
	})
	t.Run("granted again after the asker's restart, even with the same number", func(t *testing.T) {
		b := newBench(t)
		b.peer.Requests = ask
		b.beat("hb0")
		b.peer.Incarnation, b.peer.Seq, b.peer.Announce.Epoch, b.peer.Requests = 8, 0, Epoch{Counter: 6, Node: 1}, nil
		b.beat("hb0")
		b.entitle(Epoch{Counter: 6, Node: 1})
		b.peer.Requests = []Removal{{Node: 2, Nonce: 77, Epoch: Epoch{Counter: 6, Node: 1}}}
		if _, ok := find[TellRemoved](b.beat("hb0")); !ok {
			t.Error("answered without giving it up")
		}
	})
	t.Run("too late for a claim", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		b.entitle(e)
		b.g.HandleClaim(b.now, Claim{Epoch: Epoch{Counter: 6, Node: 2}})
		if c, _ := find[TellClaimed](b.take()); !c.OK {
			t.Error("claim refused")
		}
		b.peer.Requests = ask
		b.beat("hb0")
		b.g.HandleAnnounce(b.now, Announce{Role: RoleOwner, Epoch: Epoch{Counter: 6, Node: 2}})
		b.ticks(8)
		if len(b.sent.Answers) != 0 {
			t.Error("granted, although our daemon owns")
		}
	})
	t.Run("claim too late", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		b.entitle(e)
		b.peer.Requests = ask
		b.beat("hb0")
		b.g.HandleClaim(b.now, Claim{Epoch: Epoch{Counter: 6, Node: 2}})
		if c, ok := find[TellClaimed](b.take()); !ok || c.OK {
			t.Error("claim granted")
		}
	})
	t.Run("a takeover overtaken", func(t *testing.T) {
		b := newBench(t)
		b.beat("hb0")
		b.entitle(e)
		b.peer.Running = false
		b.beat("hb0")
		b.peer.Process, b.peer.Running, b.peer.Announce.Epoch = 101, true, Epoch{Counter: 9, Node: 1}
		b.beat("hb0")
		b.g.HandleClaim(b.now, Claim{Epoch: Epoch{Counter: 6, Node: 2}})
		if c, ok := find[TellClaimed](b.take()); !ok || c.OK {
			t.Error("claim granted, although the other node owns again")
		}
	})
}

func TestAskingForRemoval(t *testing.T) {
	b := newBench(t)
	b.g.HandleAnnounce(b.now, Announce{Role: RoleOwner, Epoch: Epoch{Counter: 6, Node: 2}})
	b.peer.Announce.Role = RoleStandby
	b.beat("hb0")
	b.g.HandleAskRemoval(b.now, AskRemoval{Node: 1})
	b.drain()
	if len(b.sent.Requests) != 1 || b.sent.Requests[0].Epoch != (Epoch{Counter: 6, Node: 2}) {
		t.Fatalf("%+v", b.sent)
	}
	nonce := b.sent.Requests[0].Nonce
	b.peer.Answers = []Removal{{Node: 2, Nonce: nonce - 1}, {Node: 3, Nonce: nonce}}
	if _, ok := find[TellRemoved](b.beat("hb0")); ok {
		t.Fatal("an answer to somebody else, or to an earlier question, was taken")
	}
	b.ticks(4)
	if len(b.sent.Requests) != 1 {
		t.Fatal("not repeated")
	}
	b.peer.Answers = []Removal{{Node: 2, Nonce: nonce}}
	if r, ok := find[TellRemoved](b.beat("hb0")); !ok || r.Node != 1 {
		t.Fatal("the answer was not taken")
	}
	b.ticks(4)
	if len(b.sent.Requests) != 0 {
		t.Error("asks on")
	}
}

func TestANewDaemonIsToldOfThePeers(t *testing.T) {
	b := newBench(t)
	b.beat("hb0")
	b.g.DaemonEnded(b.now)
	b.take()
	b.g.DaemonStarted(b.now, 201)
	if p, ok := find[TellPeer](b.take()); !ok || p.Peer.Node != 1 {
		t.Error("not told")
	}
	if b.sent.Running {
		t.Error("said to run before it has announced itself")
	}
}

func TestAgeGoesOnBetweenAnnouncements(t *testing.T) {
	b := newBench(t)
	b.g.HandleAnnounce(b.now, Announce{Election: Election{Age: time.Minute}})
	b.ticks(200)
	if got := b.sent.Announce.Election.Age; got < 61*time.Second-20*time.Millisecond || got > 61*time.Second {
		t.Errorf("age %v after one more second", got)
	}
}

func TestALongNameIsCutToWhatHeartbeatsCarry(t *testing.T) {
	g := NewGuard(GuardOptions{Self: 1, Name: "x" + strings.Repeat("ü", 100), Incarnation: 1, Interval: 10 * time.Millisecond, Threshold: 3})
	g.Tick(time.Unix(1e9, 0))
	for {
		e, ok := g.Poll()
		if !ok {
			t.Fatal("no heartbeat")
		}
		if s, ok := e.(SendHeartbeat); ok {
			b, err := s.Heartbeat.Marshal(testKey)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeHeartbeat(testKey, b); err != nil {
				t.Error(err)
			}
			return
		}
	}
}
