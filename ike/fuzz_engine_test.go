package ike

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// storm is two gateways, one of them with a standby, and a network in the hands of somebody
// who knows all keys: a program of bytes says what the sides begin, which message arrives,
// when and how often, and what it says then.
type storm struct {
	*world
	t        *testing.T
	a, b     *side
	spare    *side // takes over from b
	plain    *Engine
	rings    map[ipsec.IKESPIs]KeyLog
	sealers  map[ipsec.IKESPIs][2]message.Sealer // of the initiator, of the responder
	order    []ipsec.IKESPIs
	secrets  map[string]bool
	history  [][]message.Payload
	messages int
}

// program reads bytes; at its end it says 0.
type program []byte

func (p *program) next() int {
	if len(*p) == 0 {
		return 0
	}
	x := (*p)[0]
	*p = (*p)[1:]
	return int(x)
}

func allKinds(n byte) (out []byte) {
	for k := range n {
		out = append(out, k)
	}
	return out
}

// below is in [0, n).
func (p *program) below(n int) int {
	if n <= 0 {
		return 0
	}
	return p.next() % n
}

// Of a program's operations.
const (
	opDeliver = iota
	opDeliverAny
	opLose
	opRepeat
	opMutate
	opForge
	opCommandA
	opCommandB
	opWait
	opTakeover
	opCommit
	opHold
	opHandover
	opPackets
	opHeal
)

// usual says how often which operation comes.
var usual = []int{opDeliver, opDeliver, opDeliver, opDeliver, opDeliver, opDeliver, opDeliver, opDeliverAny, opDeliverAny, opLose, opRepeat, opMutate, opMutate,
	opForge, opForge, opCommandA, opCommandA, opCommandB, opCommandB, opWait, opWait, opTakeover, opCommit, opCommit, opHold, opHandover, opPackets, opHeal}

const maxProgram = 120 // operations

func newStorm(t *testing.T, kind int) *storm {
	s := &storm{t: t, rings: map[ipsec.IKESPIs]KeyLog{}, sealers: map[ipsec.IKESPIs][2]message.Sealer{}, secrets: map[string]bool{}}
	suite := gcm128
	if kind&2 != 0 {
		suite = cbc128sha256
	}
	w, a, b := pair(t, func(ca, cb *config.Config) {
		twoPhase2(ca, cb)
		for _, c := range []*config.Config{ca, cb} {
			c.Phase1[0].AutoNegotiate = false
			c.Phase1[0].Proposals = []ipsec.Suite{suite}
			c.Phase1[0].KeyLife = 4 * time.Hour
			c.Phase1[0].Reauth = kind&64 != 0
			c.QuickCrashDetect = kind&128 != 0
			c.Phase1[0].Redirect = kind&128 != 0
			for i := range c.Phase2 {
				p := &c.Phase2[i]
				p.PFS, p.KeyLife, p.Proposals = kind&4 != 0, time.Hour, []ipsec.Suite{esp(suite)}
			}
		}
		if kind&8 != 0 { // b has clients
			cb.Phase1[0].Type, cb.Phase1[0].RemoteGW = "dynamic", netip.Addr{}
		}
		if kind&32 != 0 {
			for _, c := range []*config.Config{ca, cb} {
				c.Phase1[0].AddKE = addKEs{{mlkem768, none}, {mlkem1024, none}}
				c.Phase2[0].AddKE = addKEs{{mlkem768, none}, {mlkem1024, none}}
				c.Phase2[1].AddKE = addKEs{{mlkem1024}}
			}
		}
		if kind&16 != 0 { // addresses change
			ca.Phase1[0].Mobike, cb.Phase1[0].Mobike = true, true
		}
	})
	a.e.o.TokenSecret, b.e.o.TokenSecret = ipsec.NewKey([]byte(secretA)), ipsec.NewKey([]byte(secretB))
	s.world, s.a, s.b = w, a, b
	s.secret([]byte("secret"), []byte("the cluster's own cookie secret."))
	s.watch(a)
	s.watch(b)
	s.plain = New(Options{Config: b.e.cfg})
	s.replicate()
	a.numbers, b.numbers = map[ipsec.ESPSPI][2]uint64{}, map[ipsec.ESPSPI][2]uint64{}
	b.resume()
	a.resume()
	if kind&1 == 0 {
		a.up("net")
		w.settle()
	}
	return s
}

// replicate gives b a standby.
func (s *storm) replicate() {
	s.spare = s.world.standby(s.b, uint64(77+len(s.world.sides)))
	s.watch(s.spare)
	apply := s.b.onRecord
	s.b.onRecord = func(r Record) { s.record(r); apply(r) }
	s.spare.e.BeginCopy()
	s.spare.e.Apply(s.now, Record{Entries: s.b.e.Snapshot(s.now)})
	s.spare.e.EndCopy()
	s.spare.drain()
}

func (s *storm) secret(all ...[]byte) {
	for _, b := range all {
		if len(b) >= 4 {
			s.secrets[string(b)] = true
			s.secrets[hex.EncodeToString(b)] = true
		}
	}
}

func (s *storm) watch(x *side) {
	x.onEffect = func(e Effect) {
		switch e := e.(type) {
		case KeyLog:
			was, known := s.rings[e.SPIs]
			if !known {
				s.order = append(s.order, e.SPIs)
			}
			if !bytes.Equal(was.Ei.Bytes(), e.Ei.Bytes()) { // new, or after an additional key exchange
				delete(s.sealers, e.SPIs)
				s.rings[e.SPIs] = KeyLog{SPIs: e.SPIs, Suite: e.Suite, Ei: ipsec.NewKey(e.Ei.Bytes()), Er: ipsec.NewKey(e.Er.Bytes()),
					Ai: ipsec.NewKey(e.Ai.Bytes()), Ar: ipsec.NewKey(e.Ar.Bytes())}
			}
			s.secret(e.Ei.Bytes(), e.Er.Bytes(), e.Ai.Bytes(), e.Ar.Bytes())
		case Install:
			s.secret(e.SA.EncrIn.Bytes(), e.SA.EncrOut.Bytes(), e.SA.SaltIn.Bytes(), e.SA.IntegIn.Bytes(), e.SA.IntegOut.Bytes())
		case Send:
			if s.messages++; s.messages > 20000 {
				s.t.Fatal("messages without end")
			}
		}
	}
	x.onLog = func(l Log) {
		text := l.Message + " " + fmt.Sprint(l.Attrs)
		for k := range s.secrets {
			if strings.Contains(text, k) {
				s.t.Fatalf("%s: a secret in the log: %q", x.name, text)
			}
		}
	}
}

// record checks that a record says the same when it was read.
func (s *storm) record(r Record) {
	for _, x := range r.Entries {
		if x.Value == nil {
			continue
		}
		s.plain.now = s.now
		sa, err := s.plain.decode(x.Value)
		if err != nil {
			s.t.Fatalf("record of %s: %v", x.SPIs, err)
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(s.plain.encode(sa))
		if err != nil || !bytes.Equal(again, x.Value) {
			s.t.Fatalf("record of %s says something else when it was read (%v)", x.SPIs, err)
		}
	}
}

func (s *storm) sides() []*side {
	return []*side{s.a, s.b, s.spare}
}

// check looks at what must hold at every moment.
func (s *storm) check() {
	for _, x := range s.sides() {
		if x.dead {
			continue
		}
		e := x.e
		if len(e.held) == 0 && len(x.tickets) == 0 {
			if len(e.children) != len(x.installed) {
				s.t.Fatalf("%s: the engine has %d Child SAs, the data plane %d", x.name, len(e.children), len(x.installed))
			}
			for spi := range x.installed {
				if e.children[spi] == nil {
					s.t.Fatalf("%s: the data plane has Child SA %s, the engine not", x.name, spi)
				}
			}
		}
		n := 0
		for own, sa := range e.sas {
			if sa.state == stateGone || sa.ownSPI() != own {
				s.t.Fatalf("%s: IKE SA %s in state %s under SPI %s", x.name, sa.spis, sa.state, own)
			}
			for _, c := range sa.children {
				if n++; e.children[c.SPIIn] != c || c.ike != sa {
					s.t.Fatalf("%s: Child SA %s of %s is not known", x.name, c.SPIIn, sa.spis)
				}
			}
			if len(sa.children) > maxChildren || len(sa.deletedChildren) > maxDeletedChildren || len(sa.owed) > 2*maxChildren || len(sa.vendorIDs) > maxVendorIDs ||
				len(sa.half) > maxHalfMade || sa.req != nil && len(sa.req.deletedOutward) > maxDeletedChildren || len(sa.wants) > len(e.cfg.Phase2) {
				s.t.Fatalf("%s: IKE SA %s grows: %d Child SAs, %d deleted, %d owed, %d wanted", x.name, sa.spis, len(sa.children), len(sa.deletedChildren), len(sa.owed), len(sa.wants))
			}
		}
		if n != len(e.children) {
			s.t.Fatalf("%s: %d Child SAs on IKE SAs, %d known", x.name, n, len(e.children))
		}
		for _, t := range e.tunnels {
			rekeyed := 0
			for _, sa := range t.sas {
				if e.sas[sa.ownSPI()] != sa {
					s.t.Fatalf("%s: tunnel %s has an IKE SA that is gone", x.name, t.name)
				}
				if sa.state == stateRekeyed {
					rekeyed++
				}
			}
			if rekeyed > 4*maxHeirs {
				s.t.Fatalf("%s: %d IKE SAs wait for their end", x.name, rekeyed)
			}
		}
	}
}

// copied: the standby knows what the owner knows.
func (s *storm) copied() {
	if len(s.b.tickets) > 0 || len(s.b.e.held) > 0 {
		return
	}
	ours, theirs := s.b.e.Snapshot(s.now), s.spare.e.Snapshot(s.now)
	if len(ours) != len(theirs) {
		s.t.Fatalf("%d IKE SAs, the standby has %d: %v, %v", len(ours), len(theirs), describe(s.b.ike()), describe(s.spare.ike()))
	}
	for _, x := range ours {
		i := slices.IndexFunc(theirs, func(y Entry) bool { return y.SPIs == x.SPIs })
		if i < 0 {
			s.t.Fatalf("the standby does not have IKE SA %s", x.SPIs)
		}
		if sa := s.b.e.bySPIs(x.SPIs); !bytes.Equal(theirs[i].Value, x.Value) && (sa == nil || sa.recordAt.IsZero()) {
			var a, b syncpb.IKESA
			if proto.Unmarshal(x.Value, &a) != nil || proto.Unmarshal(theirs[i].Value, &b) != nil {
				s.t.Fatal("a record does not decode")
			}
			for _, y := range []*syncpb.IKESA{&a, &b} {
				if o := y.Outstanding; o != nil {
					o.Attempts, o.Age = 0, 0 // a successor begins to count anew
				}
			}
			if fields := differing(&a, &b); len(fields) > 0 {
				s.t.Fatalf("the standby's copy of IKE SA %s differs in %s", x.SPIs, fields)
			}
		}
	}
}

// differing names the fields in which two records differ.
func differing(a, b proto.Message) (out []string) {
	x, y := a.ProtoReflect(), b.ProtoReflect()
	fields := x.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Name() == "rekey" {
			continue // a wish that is recorded with the exchange that follows from it
		}
		v, w := x.Get(f), y.Get(f)
		if strings.HasSuffix(string(f.Name()), "_age") && v.Int()-w.Int() < 10 && w.Int()-v.Int() < 10 {
			continue // rounded to microseconds
		}
		if !v.Equal(w) {
			text := string(f.Name())
			if f.Kind() != protoreflect.BytesKind && f.Kind() != protoreflect.MessageKind {
				text += fmt.Sprintf(" (%v, %v)", v, w)
			}
			if f.Kind() == protoreflect.MessageKind && f.IsList() && v.List().Len() == w.List().Len() {
				for i := range v.List().Len() {
					text += strings.TrimSuffix(fmt.Sprint(differing(v.List().Get(i).Message().Interface(), w.List().Get(i).Message().Interface())), "[]")
				}
				if text == string(f.Name()) {
					text += "[]"
				}
			} else if f.Kind() == protoreflect.MessageKind && !f.IsList() {
				text += fmt.Sprint(differing(v.Message().Interface(), w.Message().Interface()))
			}
			if !strings.HasSuffix(text, "[]") {
				out = append(out, text)
			}
		}
	}
	return out
}

// windows: one message under one ID, and no request before the answer to the one before.
func (s *storm) windows() {
	type key struct {
		spis    ipsec.IKESPIs
		i, resp bool
		id      uint32
	}
	said := map[key][]byte{}
	for _, d := range s.seen {
		h, err := message.ParseHeader(d.Data)
		if err != nil {
			s.t.Fatal(err)
		}
		if h.Exchange == message.IKESAInit || h.NextPayload != message.TypeSK || h.Exchange == message.Informational && h.MessageID == 0 {
			continue // of the last kind are synchronisations of message IDs, too
		}
		k := key{h.SPIs, h.Initiator, h.Response, h.MessageID}
		if was := said[k]; was != nil && !bytes.Equal(was, d.Data) {
			s.t.Fatalf("two messages %s %d (response %v) of IKE SA %s", h.Exchange, h.MessageID, h.Response, h.SPIs)
		}
		said[k] = d.Data
	}
}

func (s *storm) run(p program) {
	for range maxProgram {
		if len(p) == 0 {
			break
		}
		s.step(&p)
		s.check()
		s.copied()
	}
	s.b.manual = false
	s.b.drain()
	s.settle()
	s.check()
	s.windows()
	s.silence()
}

func (s *storm) step(p *program) {
	if len(s.a.ike())+len(s.b.ike()) == 0 {
		s.a.up("")
	}
	op := usual[p.below(len(usual))]
	pick := func() (Datagram, bool) {
		if len(s.wire) == 0 {
			return Datagram{}, false
		}
		i := 0
		if op != opDeliver {
			i = p.below(len(s.wire))
		}
		d := s.wire[i]
		if op != opRepeat {
			s.wire = slices.Delete(slices.Clone(s.wire), i, i+1)
		}
		return d, true
	}
	switch op {
	case opDeliver, opDeliverAny, opRepeat:
		if d, ok := pick(); ok {
			s.deliver(d)
		}
	case opLose:
		pick()
	case opMutate:
		if d, ok := pick(); ok {
			if d, ok = s.mutate(d, p); ok {
				s.deliver(d)
			}
		}
	case opForge:
		if d, ok := s.forge(p); ok {
			s.deliver(d)
		}
	case opCommandA:
		s.command(s.a, p)
	case opCommandB:
		s.command(s.b, p)
	case opWait:
		s.pass([]time.Duration{time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 45 * time.Second, 5 * time.Minute, time.Hour}[p.below(7)])
	case opTakeover:
		if len(s.world.sides) > 8 {
			break
		}
		s.b.dead, s.b.manual = true, false
		s.b = s.spare
		s.b.e.OwnerDied()
		if p.next()%4 == 0 {
			s.b.e.Behind()
		}
		s.b.resume()
		s.replicate()
	case opCommit:
		if len(s.b.tickets) > 0 {
			t := s.b.tickets[0]
			s.b.tickets = s.b.tickets[1:]
			s.b.e.Committed(s.now, t)
			s.b.drain()
		}
	case opHold:
		s.b.manual = !s.b.manual
		s.b.drain()
	case opHandover:
		s.b.manual = false
		s.b.drain()
		s.b.e.Suspend(s.now)
		s.b.drain()
		s.b.resume()
	case opPackets:
		for _, x := range []*side{s.a, s.b} {
			if n := len(x.order); n > 0 {
				spi := x.order[p.below(n)]
				x.lastIn[spi], x.lastOut[spi] = s.now, s.now
				x.numbers[spi] = [2]uint64{1000, 1000}
				x.e.HandleFirstInbound(s.now, spi)
				x.drain()
			}
		}
	case opHeal:
		entries := s.b.e.Snapshot(s.now)
		if n := len(entries); n > 0 && len(s.b.tickets) == 0 && !s.b.manual {
			s.b.e.Unite(s.now, entries[:1+p.below(n)])
			s.b.drain()
		}
	}
}

func (s *storm) command(x *side, p *program) {
	commands := 10
	if x.e.cfg.Phase1[0].Mobike {
		commands += 4
	}
	switch what := p.below(commands); what {
	case 0, 1:
		x.e.Rekey(s.now, "", what == 0)
	case 2:
		clearAll(x)
	case 3, 4:
		_ = x.e.Up(s.now, x.e.cfg.Phase1[0].Name, "")
	case 5:
		_ = x.e.Down(s.now, x.e.cfg.Phase1[0].Name, x.e.cfg.Phase2[p.below(2)].Name)
	case 6, 7:
		if n := len(x.order); n > 0 {
			x.e.HandleExpiring(s.now, x.order[p.below(n)], what == 7)
		}
	case 8:
		if l := x.established(); len(l) > 0 && l[0].req == nil {
			x.event(func(e *Engine) { e.sendDPD(l[0]) })
		}
	case 9:
		x.e.RekeyAll(s.now, "the program says so")
	case 10, 11, 12:
		s.a.goes([]string{addrA, addrC, addrD}[what-10])
	case 13:
		if n := len(s.b.order); n > 0 {
			s.b.e.HandlePeerMoved(s.now, s.b.order[p.below(n)], netip.AddrPortFrom(s.a.addr, uint16(4500+p.below(2))))
			s.b.drain()
		}
	}
	x.drain()
}

// pass lets time pass without messages.
func (s *storm) pass(d time.Duration) {
	end := s.now.Add(d)
	for range 5000 {
		next := end
		for _, x := range []*side{s.a, s.b} {
			if t, ok := x.e.NextTimeout(); ok && t.Before(next) {
				next = t
			}
		}
		if next.After(s.now) {
			s.now = next
		}
		if !s.now.Before(end) {
			return
		}
		for _, x := range []*side{s.a, s.b} {
			x.e.HandleTimeout(s.now)
			x.drain()
		}
	}
	s.t.Fatal("timers without end")
}

// silence: when nobody says anything any more, nothing is left after the longest lifetime.
func (s *storm) silence() {
	s.pass(5 * time.Hour)
	s.wire = nil
	s.check()
	for _, x := range []*side{s.a, s.b} {
		e := x.e
		if len(e.sas)+len(e.children)+len(e.inits)+len(e.perSource)+e.halfOpen+len(e.keyRefs)+len(e.held)+len(x.installed)+len(e.peers) != 0 {
			s.t.Fatalf("%s: left over: %v, %d Child SAs, %d half open (%d, %d), %d keys, %d held, %d installed, %d peers", x.name, describe(x.ike()), len(e.children),
				len(e.inits), e.halfOpen, len(e.perSource), len(e.keyRefs), len(e.held), len(x.installed), len(e.peers))
		}
	}
	if e := s.spare.e; len(e.sas) != 0 || len(e.keyRefs) != 0 || len(s.spare.installed) != 0 {
		s.t.Fatalf("the standby keeps %v, %d keys", describe(s.spare.ike()), len(e.keyRefs))
	}
}

// FuzzEngine drives whole engines, as initiator and responder, through exchanges that
// somebody with all keys changes, holds back, repeats and invents, over takeovers, handovers
// and healing. Nothing panics, nothing grows, what a record says is what was meant, engine
// and data plane have the same SAs, no message ID stands for two messages, no secret is
// logged, and nothing is left when all is silent.
func FuzzEngine(f *testing.F) {
	rnd := testRand(4711)
	for _, kind := range append(allKinds(40), 64, 128, 192) { // from 32 on with additional key exchanges
		f.Add(kind, []byte{opCommandA, 1, opCommandB, 1, opDeliver, opDeliver, opDeliver, opDeliver, opTakeover, 1, opWait, 2})
		f.Add(kind, []byte{opCommandA, 0, opCommandB, 0, opMutate, 0, 0, 6, 1, opDeliver, opForge, 0, 0, 0, 0, opWait, 4})
		f.Add(kind, []byte{opHold, opCommandB, 0, opCommit, opDeliver, opDeliver, opTakeover, 0, opDeliver, opWait, 5, opHeal, 1})
		b := make([]byte, 200)
		if _, err := rnd.Read(b); err != nil {
			f.Fatal(err)
		}
		f.Add(kind, b)
	}
	f.Fuzz(func(t *testing.T, kind byte, p []byte) {
		newStorm(t, int(kind)).run(p)
	})
}

var storms = flag.Int("storms", 40, "random programs of TestStorms")

// TestStorms runs FuzzEngine's programs by seed, which goes further than a fuzzer's short ones.
func TestStorms(t *testing.T) {
	for seed := range *storms {
		t.Run(itoa(seed), func(t *testing.T) {
			r := testRand(uint64(seed))
			p := make([]byte, 500)
			if _, err := io.ReadFull(r, p); err != nil {
				t.Fatal(err)
			}
			newStorm(t, seed).run(p)
		})
	}
}
