package forward

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

var (
	clusterKey = ipsec.NewKey(bytes.Repeat([]byte{0x5c}, 32))
	loopback   = netip.MustParseAddrPort("127.0.0.1:0")
)

// manual is a link whose loops do not run: the test carries datagrams and time.
type manual struct {
	*Link
	t    testing.TB
	now  time.Time
	got  []xfrm.Stray
	ike  []xfrm.IKEDatagram
	last bool // of the latest IKE message
	log  bytes.Buffer
}

func newManual(t testing.TB, self NodeID, at netip.AddrPort, key ipsec.Key) *manual {
	t.Helper()
	m := &manual{t: t, now: time.Unix(1_800_000_000, 0)}
	var err error
	m.Link, err = newLink(Options{
		Self: self, Key: key, Listen: at, MaxDatagram: 1472, Clock: func() time.Time { return m.now },
		Log: slog.New(slog.NewTextHandler(&m.log, nil)),
		Deliver: func(xs []xfrm.Stray) {
			for _, x := range xs {
				x.Packet = bytes.Clone(x.Packet)
				m.got = append(m.got, x)
			}
		},
		IKE: func(_ NodeID, d xfrm.IKEDatagram, last bool) { m.ike, m.last = append(m.ike, d), last },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// pair is two members that know each other's address.
func pair(t testing.TB) (a, b *manual) {
	a, b = newManual(t, 1, loopback, clusterKey), newManual(t, 2, loopback, clusterKey)
	a.SetPeers(map[NodeID]netip.AddrPort{2: b.LocalAddr()})
	b.SetPeers(map[NodeID]netip.AddrPort{1: a.LocalAddr()})
	return a, b
}

// heard are the datagrams that have arrived; on loopback they do so at once.
func (m *manual) heard() (l [][]byte) {
	for {
		b := make([]byte, maxDatagram)
		n, _, err := unix.Recvfrom(m.fd, b, unix.MSG_DONTWAIT)
		if err != nil {
			return l
		}
		l = append(l, b[:n])
	}
}

// take lets the link work on copies of datagrams.
func (m *manual) take(from netip.AddrPort, ds ...[]byte) {
	for _, d := range ds {
		m.datagram(bytes.Clone(d), from, m.now)
	}
	m.deliver()
}

// hello says one hello if it is due, and returns it as the other end has it.
func (m *manual) hello(to *manual) [][]byte {
	m.t.Helper()
	m.now = m.now.Add(helloLast)
	p := m.peer(to.o.Self)
	if echo, _ := p.greet.due(m.now); echo != 0 {
		m.greetPeer(p, typeHello, p.session, echo, 0)
	}
	return to.heard()
}

// meet brings a to know b's token, and returns what was said.
func meet(a, b *manual) (hello, token [][]byte) {
	a.t.Helper()
	hello = a.hello(b)
	b.take(a.local, hello...)
	token = a.heard()
	a.take(b.local, token...)
	if a.peer(b.o.Self).tx.Load() == nil {
		a.t.Fatal("no token")
	}
	return hello, token
}

// sends returns the datagrams of one packet.
func (m *manual) sends(to *manual, x xfrm.Stray) [][]byte {
	m.t.Helper()
	m.Send(to.o.Self, x)
	m.sendQueued()
	return to.heard()
}

func stray(n int) xfrm.Stray {
	x := examples[2].x
	x.Packet = make([]byte, n)
	for i := range x.Packet {
		x.Packet[i] = byte(i*7 + n)
	}
	return x
}

func (m *manual) stats(of NodeID) MemberStats { return m.Stats().Members[of] }

func TestCarried(t *testing.T) {
	a, b := pair(t)
	meet(a, b)
	want := []xfrm.Stray{}
	for _, n := range []int{1, 64, 1300, 1472, 1500, 2900, 9000, 60000} {
		for _, x := range []xfrm.Stray{stray(n), {Scope: 4, Tunnel: "dialup", Packet: stray(n).Packet}} {
			b.take(a.local, a.sends(b, x)...)
			x.From = 1
			want = append(want, x)
		}
	}
	if len(b.got) != len(want) {
		t.Fatalf("%d of %d packets", len(b.got), len(want))
	}
	for i := range want {
		got, want := b.got[i], want[i]
		if !bytes.Equal(got.Packet, want.Packet) {
			t.Fatalf("packet %d is damaged", i)
		}
		got.Packet, want.Packet = nil, nil
		if got.Scope != want.Scope || got.Tunnel != want.Tunnel || got.From != want.From || got.Outer != want.Outer ||
			got.UDPEncap != want.UDPEncap || got.TOS != want.TOS || got.Local != want.Local || got.Remote != want.Remote {
			t.Fatalf("%+v, want %+v", got, want)
		}
	}
	s, r := a.stats(2), b.stats(1)
	if s.Sent != uint64(len(want)) || r.Received != s.Sent || r.ReceivedBytes != s.SentBytes || s.DatagramsSent <= s.Sent || !s.Up {
		t.Errorf("%+v, %+v", s, r)
	}

	d := xfrm.IKEDatagram{Local: want[0].Local, Remote: want[0].Remote, NonESP: true, Data: bytes.Repeat([]byte{9}, 3000)}
	a.SendIKE(2, d, true)
	a.sendQueued()
	b.take(a.local, b.heard()...)
	if len(b.ike) != 1 || !b.last || b.ike[0].Local != d.Local || b.ike[0].Remote != d.Remote || !b.ike[0].NonESP || !bytes.Equal(b.ike[0].Data, d.Data) {
		t.Errorf("%+v", b.ike)
	}
}

// A datagram is delivered once, whoever sends it how often.
func TestReplay(t *testing.T) {
	a, b := pair(t)
	meet(a, b)
	whole, parts := a.sends(b, stray(100)), a.sends(b, stray(3000))
	if len(whole) != 1 || len(parts) != 3 {
		t.Fatalf("%d and %d datagrams", len(whole), len(parts))
	}
	for range 5 {
		b.take(a.local, whole...)
		b.take(a.local, parts...)
	}
	if s := b.stats(1); len(b.got) != 2 || s.Replayed != 16 || s.Received != 2 {
		t.Fatalf("%d delivered, %+v", len(b.got), s)
	}
	// What is older than the window is a replay, too, even if it was never seen.
	late := a.sends(b, stray(50))
	for range windowSize {
		b.take(a.local, a.sends(b, stray(50))...)
	}
	b.take(a.local, late...)
	if s := b.stats(1); s.Replayed != 17 || s.Received != 2+windowSize {
		t.Fatalf("%+v", s)
	}
}

// Whatever is changed on the way is not delivered, and does not fill the log.
func TestForgery(t *testing.T) {
	a, b := pair(t)
	meet(a, b)
	b.take(a.local, a.sends(b, stray(100))...)
	ds := append(a.sends(b, stray(60)), a.sends(b, stray(1500))...)
	before := b.stats(1)
	n := uint64(0)
	for _, d := range ds {
		for i := range d {
			c := bytes.Clone(d)
			c[i] ^= 0x41
			b.take(a.local, c)
			n++
		}
		for _, short := range []int{0, 1, headerLen - 1, headerLen, len(d) / 2, len(d) - 1} {
			b.take(a.local, d[:short])
			n++
		}
	}
	s := b.stats(1)
	if len(b.got) != 1 || s.Received != before.Received {
		t.Fatalf("%d delivered", len(b.got))
	}
	if sum := b.Stats().Malformed + b.Stats().Strangers + s.Forged + s.UnknownSession + s.Replayed; sum != n {
		t.Errorf("%d of %d counted: %+v, %+v", sum, n, s, b.Stats())
	}
	// Strangers with the right bytes are strangers.
	b.take(netip.MustParseAddrPort("127.0.0.1:9"), ds...)
	if len(b.got) != 1 {
		t.Error("delivered from another address")
	}
	// So is what comes back to its sender, and what another cluster's member seals.
	a.take(b.local, ds...)
	if len(a.got) != 0 {
		t.Error("reflected datagrams delivered")
	}
	other := newManual(t, 1, loopback, ipsec.NewKey(bytes.Repeat([]byte{7}, 32)))
	other.SetPeers(map[NodeID]netip.AddrPort{2: b.local})
	p := other.peer(2)
	hello := other.keys.greet(header{kind: typeHello, from: 1, to: 2, session: p.session, counter: 5}, 0)
	was := b.stats(1).Forged
	b.take(a.local, hello)
	if b.stats(1).Forged != was+1 || b.peer(1).candidate != nil {
		t.Error("another cluster's hello is heard")
	}
	if lines := strings.Count(b.log.String(), "\n"); lines > 5 { // one a reason
		t.Errorf("%d log lines", lines)
	}
	b.take(a.local, ds...) // the true ones are none the worse for it
	if len(b.got) != 3 {
		t.Errorf("%d delivered", len(b.got))
	}
}

// Whoever is refused is told in one line for each reason, with the address, however much
// comes, and hears nothing.
func TestRefusedIsSaidOnce(t *testing.T) {
	a, b := pair(t)
	meet(a, b)
	once := a.sends(b, stray(100))
	b.take(a.local, once...)
	other, unknown := newManual(t, 1, loopback, ipsec.NewKey(bytes.Repeat([]byte{7}, 32))), newManual(t, 1, loopback, clusterKey)
	forged := bytes.Clone(once[0])
	forged[len(forged)-1] ^= 1
	later := bytes.Clone(a.sends(b, stray(100))[0])
	later[len(later)-1] ^= 1
	earlier := bytes.Clone(once[0])
	earlier[4] ^= 1 // the session
	foreign := other.keys.greet(header{kind: typeHello, from: 1, to: 2, session: 9, counter: 5}, 0)
	twin := unknown.keys.greet(header{kind: typeHello, from: 1, to: 2, session: 9, counter: 5}, 0) // our key, a member's number, another address
	a.heard()
	for _, c := range []struct {
		what, reason string
		from         netip.AddrPort
		datagram     []byte
	}{
		{"garbage from nowhere", "datagram of no member", netip.MustParseAddrPort("192.0.2.9:710"), []byte{1, 2, 3}},
		{"garbage from a member's address", "malformed datagram", a.local, []byte{1, 2, 3}},
		{"another cluster's key", "forged greeting", a.local, foreign},
		{"sealed under another key", "forged datagram", a.local, later},
		{"a replay", "datagram seen before", a.local, once[0]},
		{"a replay from an earlier life", "no session in use", a.local, earlier},
		{"a second node with a member's number", "datagram of no member", netip.MustParseAddrPort("127.0.0.7:710"), twin},
	} {
		b.log.Reset()
		for range 200 {
			b.take(c.from, c.datagram)
		}
		log := b.log.String()
		if strings.Count(log, "\n") != 1 || !strings.Contains(log, c.reason) || !strings.Contains(log, c.from.String()) {
			t.Errorf("%s: %q", c.what, log)
		}
	}
	if len(b.got) != 1 {
		t.Errorf("%d delivered", len(b.got))
	}
	// One reset in 100 ms to the member whose session is asked for; the stranger's sockets
	// have nothing.
	if n := len(a.heard()); n != 1 {
		t.Errorf("the member hears %d datagrams", n)
	}
	if n := len(other.heard()) + len(unknown.heard()); n != 0 {
		t.Errorf("strangers hear %d datagrams", n)
	}
	// Forged addresses fill neither the log nor the memory.
	b.log.Reset()
	for i := range 5000 {
		b.take(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 1), []byte{1})
	}
	if n := strings.Count(b.log.String(), "\n"); n > warnings+1 || len(b.recv.warned) > warnings+1 {
		t.Errorf("%d lines, %d remembered", n, len(b.recv.warned))
	}
}

// What was recorded in an earlier life of either end is worth nothing, together with
// the greetings of that time.
func TestEarlierLives(t *testing.T) {
	a, b := pair(t)
	hello, token := meet(a, b)
	old := a.sends(b, stray(100))
	b.take(a.local, old...)
	if len(b.got) != 1 {
		t.Fatal("not delivered")
	}
	recorded := append(append([][]byte{}, hello...), old...)

	// The receiver restarts.
	at := b.local
	b.Close()
	b = newManual(t, 2, at, clusterKey)
	b.SetPeers(map[NodeID]netip.AddrPort{1: a.local})
	for range 3 {
		b.take(a.local, recorded...)
		b.now = b.now.Add(time.Second)
	}
	if len(b.got) != 0 {
		t.Fatal("a packet of the receiver's earlier life is delivered")
	}
	// It has asked for a hello; old tokens are no answer to that.
	resets := a.heard()
	a.take(b.local, resets...)
	a.take(b.local, token...)
	if s := a.stats(2); s.StaleGreeting == 0 {
		t.Errorf("%+v", s)
	}
	meet(a, b)
	now := a.sends(b, stray(200))
	b.take(a.local, now...)
	if len(b.got) != 1 || len(b.got[0].Packet) != 200 {
		t.Fatalf("%d delivered after the receiver's restart", len(b.got))
	}
	b.take(a.local, recorded...)
	b.take(a.local, now...)
	if len(b.got) != 1 {
		t.Fatal("a replay is delivered")
	}

	// The sender restarts.
	recorded = append(recorded, now...)
	at = a.local
	a.Close()
	a = newManual(t, 1, at, clusterKey)
	a.SetPeers(map[NodeID]netip.AddrPort{2: b.local})
	meet(a, b)
	b.take(a.local, a.sends(b, stray(300))...)
	for range 3 {
		b.take(a.local, recorded...)
	}
	if len(b.got) != 2 || len(b.got[1].Packet) != 300 {
		t.Fatalf("%d delivered after the sender's restart", len(b.got))
	}
	// A replayed hello has not displaced the session in use.
	b.take(a.local, a.sends(b, stray(400))...)
	if len(b.got) != 3 {
		t.Fatal("a replayed hello ends a session")
	}
}

// Under no key is a nonce used twice: not with a new token, not when a member is
// removed and named again.
func TestNonces(t *testing.T) {
	a, b := pair(t)
	type use struct{ session, counter uint64 }
	seen := map[use]bool{}
	note := func(ds [][]byte) {
		t.Helper()
		if len(ds) == 0 {
			t.Fatal("nothing was sent")
		}
		for _, d := range ds {
			h, ok := parseHeader(d)
			if u := (use{h.session, h.counter}); !ok || seen[u] {
				t.Fatalf("%+v again", u)
			} else {
				seen[u] = true
			}
		}
	}
	for range 3 {
		meet(a, b)
		note(a.sends(b, stray(3000)))
		b.peer(1).current, b.peer(1).candidate = nil, nil // as after a restart
		a.peer(2).greet.want()
	}
	for range 3 {
		a.SetPeers(nil)
		a.SetPeers(map[NodeID]netip.AddrPort{2: b.local})
		meet(a, b)
		note(a.sends(b, stray(100)))
	}
	// A token that is as bad as can be changes nothing.
	k := a.keys.greet(header{kind: typeToken, from: 2, to: 1, session: a.peer(2).session, counter: 0}, a.peer(2).tx.Load().token)
	a.take(b.local, k)
	note(a.sends(b, stray(100)))
}

func TestDropped(t *testing.T) {
	a, b := pair(t)
	a.Send(2, stray(100))
	if s := a.stats(2); s.NoSession != 1 || s.Up {
		t.Errorf("before the first token: %+v", s)
	}
	meet(a, b)
	second := stray(100)
	second.From, second.Last = 3, true
	a.Send(2, second)
	a.Send(2, stray(maxMessage))
	a.Send(9, stray(100))
	a.Send(0, stray(100))
	for range queueLen + 5 {
		a.Send(2, stray(100))
	}
	s := a.stats(2)
	if s.TooFar != 1 || s.TooLong != 1 || a.Stats().NoMember != 2 || s.QueueFull != 5 {
		t.Errorf("%+v, %+v", s, a.Stats())
	}
	a.sendQueued()
	b.take(a.local, b.heard()...)
	if n := len(b.got); n != queueLen {
		t.Errorf("%d arrived", n)
	}
	// One of our own, marked so, is no second hop.
	own := stray(10)
	own.From = 1
	b.take(a.local, a.sends(b, own)...)
	if n := len(b.got); n != queueLen+1 {
		t.Errorf("%d arrived", n)
	}
}

// A message that lacks a part is counted when newer ones displace it.
func TestLostFragment(t *testing.T) {
	a, b := pair(t)
	meet(a, b)
	for range 2 * reassemblySlots {
		b.take(a.local, a.sends(b, stray(3000))[1:]...)
	}
	b.take(a.local, a.sends(b, stray(3000))...)
	if s := b.stats(1); len(b.got) != 1 || s.Incomplete != reassemblySlots+1 {
		t.Errorf("%d delivered, %+v", len(b.got), s)
	}
}

// Complete messages stay whole until they are delivered, also when one batch brings
// more than there is room for.
func TestFragmentsInOneBatch(t *testing.T) {
	a, b := pair(t)
	meet(a, b)
	var ds [][]byte
	for i := range 3 * reassemblySlots {
		ds = append(ds, a.sends(b, stray(2000+i))...)
	}
	b.take(a.local, ds...)
	if len(b.got) != 3*reassemblySlots {
		t.Fatalf("%d delivered", len(b.got))
	}
	for i, x := range b.got {
		if !bytes.Equal(x.Packet, stray(2000+i).Packet) {
			t.Fatalf("packet %d is another one", i)
		}
	}
}

func TestOptions(t *testing.T) {
	good := Options{Self: 1, Key: clusterKey, Listen: loopback, Deliver: func([]xfrm.Stray) {}}
	for what, change := range map[string]func(o *Options){
		"self":    func(o *Options) { o.Self = 17 },
		"key":     func(o *Options) { o.Key = ipsec.NewKey([]byte("short")) },
		"address": func(o *Options) { o.Listen = netip.AddrPort{} },
		"deliver": func(o *Options) { o.Deliver = nil },
		"size":    func(o *Options) { o.MaxDatagram = 100 },
		"in use":  func(o *Options) { o.Listen = netip.MustParseAddrPort("192.0.2.1:1") },
	} {
		o := good
		change(&o)
		if l, err := New(o); err == nil {
			l.Close()
			t.Errorf("%s: no error", what)
		}
	}
	l, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
}

// FuzzDatagram feeds what a socket may deliver, from a member's address.
func FuzzDatagram(f *testing.F) {
	a, b := pair(f)
	hello, token := meet(a, b)
	genuine := map[string]bool{}
	for _, l := range [][][]byte{hello, token, a.sends(b, stray(40)), a.sends(b, stray(1500))} {
		for _, d := range l {
			f.Add(d)
			genuine[string(d)] = true
		}
	}
	f.Add(b.keys.greet(header{kind: typeReset, from: 1, to: 2, session: b.peer(1).session}, 0))
	f.Add([]byte{1, version, 1, 2})
	f.Fuzz(func(t *testing.T, d []byte) {
		// Only what was sealed above opens; FuzzMessage and FuzzReassembly feed what lies
		// behind that.
		was := len(b.got)
		b.take(a.local, d)
		b.take(netip.AddrPort{}, d)
		if len(b.got) != was && !genuine[string(d)] {
			t.Fatalf("delivered: %x", d)
		}
	})
}
