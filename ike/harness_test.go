package ike

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// testRand is a seeded stream.
func testRand(seed uint64) io.Reader {
	var k [32]byte
	k[0], k[1], k[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	return rand.NewChaCha8(k)
}

// testLedger hands out IV counters under one sender ID for each process.
type testLedger struct {
	r       io.Reader
	sender  uint32
	ivs     map[ipsec.KeyID]*ipsec.IVCounter
	small   map[ipsec.KeyID]bool
	forgot  map[ipsec.KeyID]bool
	adopted bool
}

func newLedger(r io.Reader, sender uint32) *testLedger {
	return &testLedger{r: r, sender: sender, ivs: map[ipsec.KeyID]*ipsec.IVCounter{}, small: map[ipsec.KeyID]bool{},
		forgot: map[ipsec.KeyID]bool{}}
}

func (l *testLedger) New() ipsec.KeyID {
	var b [8]byte
	if _, err := io.ReadFull(l.r, b[:]); err != nil {
		panic(err)
	}
	id := ipsec.KeyID(0)
	for _, x := range b {
		id = id<<8 | ipsec.KeyID(x)
	}
	l.ivs[id] = ipsec.NewIVCounter(l.sender)
	return id
}

func (l *testLedger) IV(id ipsec.KeyID) *ipsec.IVCounter {
	if l.ivs[id] == nil && l.adopted {
		l.ivs[id] = ipsec.NewIVCounter(l.sender) // a range came with the record
	}
	return l.ivs[id]
}
func (l *testLedger) Small(id ipsec.KeyID) bool { return l.small[id] }
func (l *testLedger) Forget(id ipsec.KeyID)     { l.forgot[id] = true }

// side is one gateway: an engine, what its data plane holds, and what it sent.
type side struct {
	t      *testing.T
	name   string
	w      *world
	e      *Engine
	ledger *testLedger
	addr   netip.Addr
	manual bool // commits by hand

	tickets   []Ticket
	records   []Record
	installed map[ipsec.ESPSPI]*espSA
	order     []ipsec.ESPSPI
	logs      []string
	keepalive int
	routes    map[PeerAddress]int // to peers' interface addresses
	ours      map[netip.Addr]int  // assigned to us, by the IKE SAs that say so
	lastIn    map[ipsec.ESPSPI]time.Time
	lastOut   map[ipsec.ESPSPI]time.Time
	effects   int // counted for the crash tests
	cutAt     int // the process dies after so many effects; 0: never
	dead      bool
	onRecord  func(Record)
	onLog     func(Log)
	onEffect  func(Effect)
	sent      []Datagram
	quietSend bool // sent datagrams stay in sent
	numbers   map[ipsec.ESPSPI][2]uint64
	skips     []Skip
	checks    []CheckRevocation
}

type espSA struct {
	Install
	outbound bool
}

// world joins two sides by a network without loss unless told.
type world struct {
	t     *testing.T
	now   time.Time
	sides []*side
	wire  []Datagram // under way
	seen  []Datagram // everything that ever left
	drop  func(Datagram) bool
	nat   func(*Datagram) bool

	streamPort uint16 // of the one TCP connection that stands, at the side that opened it
}

func newWorld(t *testing.T) *world {
	return &world{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func (w *world) side(name string, addr string, seed uint64, cfg *config.Config, opt func(*Options)) *side {
	s := &side{t: w.t, name: name, w: w, addr: netip.MustParseAddr(addr), installed: map[ipsec.ESPSPI]*espSA{}, numbers: map[ipsec.ESPSPI][2]uint64{},
		lastIn: map[ipsec.ESPSPI]time.Time{}, lastOut: map[ipsec.ESPSPI]time.Time{}}
	r := testRand(seed)
	s.ledger = newLedger(r, uint32(seed))
	o := Options{Config: cfg, Rand: r, Nonces: s.ledger, CookieSecret: ipsec.NewKey([]byte("the cluster's own cookie secret.")),
		Traffic:   func(spi ipsec.ESPSPI) (time.Time, time.Time) { return s.lastIn[spi], s.lastOut[spi] },
		Numbers:   func(spi ipsec.ESPSPI) (out, in uint64) { return s.numbers[spi][0], s.numbers[spi][1] },
		LocalAddr: func(string, bool) (netip.Addr, bool) { return s.addr, true }}
	if opt != nil {
		opt(&o)
	}
	s.e = New(o)
	w.sides = append(w.sides, s)
	return s
}

// drain takes the effects of one input.
func (s *side) drain() {
	for !s.dead {
		x, ok := s.e.Poll()
		if !ok {
			if len(s.tickets) > 0 && !s.manual {
				t := s.tickets[0]
				s.tickets = s.tickets[1:]
				s.e.Committed(s.w.now, t)
				continue
			}
			return
		}
		if s.onEffect != nil {
			s.onEffect(x)
		}
		if _, isLog := x.(Log); !isLog {
			s.effects++
			if s.cutAt > 0 && s.effects > s.cutAt {
				s.dead = true
				return
			}
		}
		switch x := x.(type) {
		case Persist:
			s.tickets = append(s.tickets, x.Ticket)
			s.records = append(s.records, x.Record)
			if s.onRecord != nil {
				s.onRecord(x.Record)
			}
		case Send:
			s.w.seen = append(s.w.seen, x.Datagram)
			if s.quietSend {
				s.sent = append(s.sent, x.Datagram)
			} else {
				s.w.wire = append(s.w.wire, x.Datagram)
			}
		case Install:
			if s.installed[x.SA.SPIIn] != nil {
				s.t.Errorf("%s: SPI %s installed twice", s.name, x.SA.SPIIn)
			}
			s.installed[x.SA.SPIIn] = &espSA{Install: x}
			s.order = append(s.order, x.SA.SPIIn)
		case SetOutbound:
			if sa := s.installed[x.SPIIn]; sa != nil {
				sa.outbound = x.Use
			} else {
				s.t.Errorf("%s: SetOutbound of unknown SPI %s", s.name, x.SPIIn)
			}
		case SetPeer:
			if sa := s.installed[x.SPIIn]; sa != nil {
				sa.SA.Local, sa.SA.Remote, sa.SA.UDPEncap = x.Local, x.Remote, x.UDPEncap
			}
		case Remove:
			delete(s.installed, x.SPIIn)
			s.order = slices.DeleteFunc(s.order, func(o ipsec.ESPSPI) bool { return o == x.SPIIn })
		case Skip:
			s.skips = append(s.skips, x)
			n := s.numbers[x.SPIIn]
			s.numbers[x.SPIIn] = [2]uint64{max(n[0], x.Out), max(n[1], x.In)}
		case CheckRevocation:
			s.checks = append(s.checks, x)
		case SendKeepalive:
			s.keepalive++
		case PeerAddress:
			s.routed(x)
		case OwnAddress:
			s.placed(x)
		case Log:
			s.logs = append(s.logs, x.Message)
			if s.onLog != nil {
				s.onLog(x)
			}
			if testing.Verbose() {
				s.t.Logf("%s %s %s %v", s.w.now.Format("04:05.000"), s.name, x.Message, x.Attrs)
			}
		}
	}
}

// flip swaps the directions of a datagram, as the receiver sees it.
func flip(d Datagram) Datagram {
	return Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, TCP: d.TCP, Data: d.Data}
}

func (s *side) receive(d Datagram) {
	if s.dead {
		return
	}
	s.e.HandleDatagram(s.w.now, d)
	s.drain()
}

func (s *side) resume() { s.e.Resume(s.w.now); s.drain() }

// settle delivers until nothing is under way.
func (w *world) settle() {
	for i := 0; len(w.wire) > 0; i++ {
		if i > 10000 {
			w.t.Fatal("messages without end")
		}
		d := w.wire[0]
		w.wire = w.wire[1:]
		w.deliver(d)
	}
}

func (w *world) deliver(d Datagram) {
	if w.drop != nil && w.drop(d) {
		return
	}
	if d.TCP && !w.stream(&d) {
		return
	}
	if w.nat != nil && !w.nat(&d) {
		return
	}
	for _, s := range w.sides {
		if s.addr == d.Remote.Addr() && !s.dead && s.e.active {
			s.receive(flip(d))
			return
		}
	}
}

// run lets time pass in which all timers fire and all messages arrive.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	w.settle()
	for {
		next := end
		for _, s := range w.sides {
			if t, ok := s.e.NextTimeout(); ok && !s.dead && t.Before(next) {
				next = t
			}
		}
		if next.After(w.now) {
			w.now = next
		}
		if !w.now.Before(end) {
			w.now = end
		}
		for _, s := range w.sides {
			if !s.dead {
				s.e.HandleTimeout(w.now)
				s.drain()
			}
		}
		w.settle()
		if !w.now.Before(end) {
			due := false
			for _, s := range w.sides {
				if t, ok := s.e.NextTimeout(); ok && !s.dead && !t.After(end) {
					due = true
				}
			}
			if !due {
				return
			}
		}
	}
}

func (s *side) logged(msg string) bool {
	return slices.ContainsFunc(s.logs, func(l string) bool { return strings.Contains(l, msg) })
}

func (s *side) wantLog(msg string) {
	s.t.Helper()
	if !s.logged(msg) {
		s.t.Errorf("%s: no log line %q", s.name, msg)
	}
}

// ike lists the IKE SAs that are not gone.
func (s *side) ike() []*ikeSA { return s.e.sorted() }

func (s *side) established() []*ikeSA {
	return slices.DeleteFunc(s.ike(), func(sa *ikeSA) bool { return sa.state != stateEstablished })
}

// seenOf counts messages of an exchange type that left anybody.
func (w *world) seenOf(x message.ExchangeType) int {
	n := 0
	for _, d := range w.seen {
		if h, err := message.ParseHeader(d.Data); err == nil && h.Exchange == x && !h.Response {
			n++
		}
	}
	return n
}

// agree checks that both sides have the same SAs: IKE SAs, Child SAs in pairs with
// crosswise keys, and on each side outbound traffic on the given number.
func agree(t *testing.T, a, b *side, ikes, children int) {
	t.Helper()
	la, lb := a.ike(), b.ike()
	if len(la) != ikes || len(lb) != ikes {
		t.Fatalf("IKE SAs: %s has %v, %s has %v, want %d", a.name, describe(la), b.name, describe(lb), ikes)
	}
	for _, sa := range la {
		ok := slices.ContainsFunc(lb, func(x *ikeSA) bool {
			return x.spis == sa.spis && x.initiator != sa.initiator && string(x.keys.D.Bytes()) == string(sa.keys.D.Bytes()) &&
				x.nextSend == sa.nextRecv && x.nextRecv == sa.nextSend
		})
		if !ok {
			t.Errorf("%s: IKE SA %s has no counterpart (%v)", a.name, sa.spis, describe(lb))
		}
	}
	if len(a.installed) != children || len(b.installed) != children {
		t.Fatalf("Child SAs installed: %s %d, %s %d, want %d", a.name, len(a.installed), b.name, len(b.installed), children)
	}
	for _, p := range [][2]*side{{a, b}, {b, a}} {
		if len(p[0].e.children) != children {
			t.Errorf("%s: engine knows %d Child SAs, want %d", p[0].name, len(p[0].e.children), children)
		}
		for _, x := range p[0].installed {
			y := p[1].installed[x.SA.SPIOut]
			if y == nil || y.SA.SPIOut != x.SA.SPIIn {
				t.Errorf("%s: Child SA %s/%s has no counterpart", p[0].name, x.SA.SPIIn, x.SA.SPIOut)
				continue
			}
			if string(x.SA.EncrOut.Bytes()) != string(y.SA.EncrIn.Bytes()) || string(x.SA.IntegOut.Bytes()) != string(y.SA.IntegIn.Bytes()) ||
				string(x.SA.SaltOut.Bytes()) != string(y.SA.SaltIn.Bytes()) || x.SA.EncrOut.Len() == 0 {
				t.Errorf("%s: keys of %s differ", p[0].name, x.SA.SPIIn)
			}
			if !slices.Equal(x.SA.TSLocal, y.SA.TSRemote) || !slices.Equal(x.SA.TSRemote, y.SA.TSLocal) {
				t.Errorf("%s: selectors of %s differ", p[0].name, x.SA.SPIIn)
			}
		}
	}
}

func describe(sas []*ikeSA) []string {
	var out []string
	for _, sa := range sas {
		req := ""
		if sa.req != nil {
			req = " " + sa.req.kind.String()
		}
		out = append(out, fmt.Sprintf("%s %s%s closing=%v owed=%d s=%d r=%d children=%d", sa.spis, sa.state, req, sa.closing,
			len(sa.owed), sa.nextSend, sa.nextRecv, len(sa.children)))
	}
	return out
}

// outbound are the SPIs that carry our traffic.
func (s *side) outbound() []ipsec.ESPSPI {
	var out []ipsec.ESPSPI
	for _, spi := range s.order {
		if s.installed[spi].outbound {
			out = append(out, spi)
		}
	}
	return out
}

// esp sends one packet from s to p through the outbound SA, and says whether it arrived.
func (s *side) esp(p *side) bool {
	out := s.outbound()
	if len(out) == 0 {
		return false
	}
	spi := s.installed[out[len(out)-1]].SA.SPIOut
	s.lastOut[out[len(out)-1]] = s.w.now
	if p.installed[spi] == nil {
		return false
	}
	first := p.lastIn[spi].IsZero()
	p.lastIn[spi] = s.w.now
	if first {
		p.e.HandleFirstInbound(s.w.now, spi)
		p.drain()
	}
	return true
}

var gcm128 = ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, PRF: ipsec.PRFHMACSHA256}
var cbc128sha256 = ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 128, PRF: ipsec.PRFHMACSHA256, Integ: ipsec.INTEGHMACSHA256_128}

func esp(s ipsec.Suite) ipsec.Suite { s.PRF = 0; return s }

func subnet(s string) ipsec.TrafficSelector {
	return ipsec.SelectorFromPrefix(netip.MustParsePrefix(s))
}

// phase1To and phase2For are a configuration with short ways to change it.
func phase1To(name, remote string, change ...func(*config.Phase1)) config.Phase1 {
	p := config.Phase1{Name: name, Type: "static", Interface: "wan", KeyLife: 24 * time.Hour, AuthMethod: "psk",
		PeerType: "any", PSK: ipsec.NewKey([]byte("secret")), Proposals: []ipsec.Suite{gcm128},
		DHGroups: []ipsec.TransformID{ipsec.KEX25519}, NegotiateTimeout: 30 * time.Second, DPD: "on-demand",
		DPDRetryCount: 3, DPDRetryInterval: 20 * time.Second, NATTraversal: "enable", Keepalive: 10 * time.Second, Rekey: true}
	if remote != "" {
		p.RemoteGW = netip.MustParseAddr(remote)
	} else {
		p.Type = "dynamic"
	}
	for _, f := range change {
		f(&p)
	}
	return p
}

func phase2For(phase1, name, src, dst string, change ...func(*config.Phase2)) config.Phase2 {
	p := config.Phase2{Name: name, Phase1: phase1, Proposals: []ipsec.Suite{esp(gcm128)}, PFS: true,
		DHGroups: []ipsec.TransformID{ipsec.KEX25519}, KeyLifeType: "seconds", KeyLife: 12 * time.Hour, Replay: true,
		Src: []ipsec.TrafficSelector{subnet(src)}, Dst: []ipsec.TrafficSelector{subnet(dst)}}
	for _, f := range change {
		f(&p)
	}
	return p
}

const (
	addrA = "192.0.2.1"
	addrB = "192.0.2.2"
	netA  = "10.1.0.0/16"
	netB  = "10.2.0.0/16"
)

// pair are two static gateways; a begins by itself, b only answers until told.
func pair(t *testing.T, change func(a, b *config.Config)) (*world, *side, *side) {
	w := newWorld(t)
	ca := &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, func(p *config.Phase1) { p.AutoNegotiate = true })},
		Phase2: []config.Phase2{phase2For("toB", "net", netA, netB)}}
	cb := &config.Config{Phase1: []config.Phase1{phase1To("toA", addrA)},
		Phase2: []config.Phase2{phase2For("toA", "net", netB, netA)}}
	if change != nil {
		change(ca, cb)
	}
	a := w.side("A", addrA, 1, ca, nil)
	b := w.side("B", addrB, 2, cb, nil)
	return w, a, b
}

// up is pair with the tunnel standing.
func up(t *testing.T, change func(a, b *config.Config)) (*world, *side, *side) {
	t.Helper()
	w, a, b := pair(t, change)
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, len(a.e.cfg.Phase2))
	return w, a, b
}

// standby makes a second process of a gateway that takes over its records.
func (w *world) standby(of *side, seed uint64) *side {
	s := w.side(of.name+"'", of.addr.String(), seed, of.e.cfg, func(o *Options) {
		o.RetransmitFirst, o.RetransmitTries = of.e.o.RetransmitFirst, of.e.o.RetransmitTries
	})
	s.ledger.adopted = true
	of.onRecord = func(r Record) {
		s.e.Apply(w.now, r)
		s.drain()
	}
	return s
}

// begin runs f as one event of the engine.
func (s *side) event(f func(e *Engine)) {
	end := s.e.begin(s.w.now)
	f(s.e)
	end()
	s.drain()
}

func (s *side) rekeyIKE() {
	sa := s.established()[0]
	s.event(func(e *Engine) {
		sa.rekeyNow, sa.rekeyAt = true, time.Time{}
		e.proceed(sa)
		e.arm(sa)
	})
}

func (s *side) rekeyChild() {
	s.e.HandleExpiring(s.w.now, s.order[len(s.order)-1], false)
	s.drain()
}

func (s *side) up(phase2 string) {
	if err := s.e.Up(s.w.now, s.e.cfg.Phase1[0].Name, phase2); err != nil {
		s.t.Error(err)
	}
	s.drain()
}

func (s *side) down(phase2 string) {
	if err := s.e.Down(s.w.now, s.e.cfg.Phase1[0].Name, phase2); err != nil {
		s.t.Error(err)
	}
	s.drain()
}

func suites() []ipsec.Suite              { return []ipsec.Suite{gcm128} }
func selectors() []ipsec.TrafficSelector { return []ipsec.TrafficSelector{subnet("0.0.0.0/0")} }
