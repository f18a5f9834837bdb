package ike

import (
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

func TestTunnelComesUp(t *testing.T) {
	w, a, b := up(t, nil)
	if w.seenOf(message.IKESAInit) != 1 || w.seenOf(message.IKEAuth) != 1 {
		t.Errorf("%d SA_INIT, %d AUTH, want 1 each", w.seenOf(message.IKESAInit), w.seenOf(message.IKEAuth))
	}
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
	for _, s := range []*side{a, b} {
		s.wantLog("established IKE SA")
		s.wantLog("set oper up")
		s.wantLog("added IPsec SA")
	}
	b.wantLog("responder received SA_INIT msg")
	if x := a.ike()[0]; x.children[0].Suite.KE != 0 {
		t.Error("the first Child SA has a key exchange of its own")
	}
}

// TestSuites runs every family of suites through SA_INIT, AUTH and both rekeys.
func TestSuites(t *testing.T) {
	cbc := func(bits uint16, prf, integ ipsec.TransformID) ipsec.Suite {
		return ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: bits, PRF: prf, Integ: integ}
	}
	gcm := func(bits uint16, prf ipsec.TransformID) ipsec.Suite {
		return ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: bits, PRF: prf}
	}
	for _, x := range []struct {
		name  string
		suite ipsec.Suite
		group ipsec.TransformID
	}{
		{"aes128-sha1 group 2", cbc(128, ipsec.PRFHMACSHA1, ipsec.INTEGHMACSHA1_96), ipsec.KEMODP1024},
		{"aes128-sha256 group 5", cbc(128, ipsec.PRFHMACSHA256, ipsec.INTEGHMACSHA256_128), ipsec.KEMODP1536},
		{"aes256-sha512 group 21", cbc(256, ipsec.PRFHMACSHA512, ipsec.INTEGHMACSHA512_256), ipsec.KEECP521},
		{"aes256-sha256 group 14", cbc(256, ipsec.PRFHMACSHA256, ipsec.INTEGHMACSHA256_128), ipsec.KEMODP2048},
		{"aes256gcm-prfsha512 group 21", gcm(256, ipsec.PRFHMACSHA512), ipsec.KEECP521},
		{"aes128gcm-prfsha256 group 19", gcm(128, ipsec.PRFHMACSHA256), ipsec.KEECP256},
		{"aes256gcm-prfsha384 group 20", gcm(256, ipsec.PRFHMACSHA384), ipsec.KEECP384},
		{"chacha20poly1305-prfsha256 group 31", ipsec.Suite{Encr: ipsec.ENCRChaCha20Poly1305, PRF: ipsec.PRFHMACSHA256}, ipsec.KEX25519},
		{"chacha20poly1305 with a key length", ipsec.Suite{Encr: ipsec.ENCRChaCha20Poly1305, KeyBits: 256, PRF: ipsec.PRFHMACSHA256}, ipsec.KEX25519},
	} {
		t.Run(x.name, func(t *testing.T) {
			w, a, b := up(t, func(a, b *config.Config) {
				for _, c := range []*config.Config{a, b} {
					c.Phase1[0].Proposals, c.Phase1[0].DHGroups = []ipsec.Suite{x.suite}, groups(x.group)
					c.Phase2[0].Proposals, c.Phase2[0].DHGroups = []ipsec.Suite{esp(x.suite)}, groups(x.group)
				}
			})
			for _, f := range []func(){a.rekeyChild, b.rekeyIKE, b.rekeyChild, a.rekeyIKE} {
				f()
				w.settle()
				agree(t, a, b, 1, 1)
			}
			if c := a.ike()[0].children[0]; c.Suite.KE != x.group {
				t.Error("rekeyed Child SA without DH in spite of PFS")
			}
		})
	}
}

func TestESN(t *testing.T) {
	_, a, b := up(t, func(a, b *config.Config) {
		s := esp(gcm128)
		s.ESN = true
		a.Phase2[0].Proposals = []ipsec.Suite{s, esp(gcm128)}
		b.Phase2[0].Proposals = []ipsec.Suite{s}
	})
	if !a.ike()[0].children[0].Suite.ESN || !b.ike()[0].children[0].Suite.ESN {
		t.Error("ESN not agreed on")
	}
}

func TestWrongKey(t *testing.T) {
	w, a, b := pair(t, func(a, b *config.Config) { b.Phase1[0].PSK = ipsec.NewKey([]byte("another")) })
	b.resume()
	a.resume()
	w.settle()
	if len(a.ike()) != 0 || len(b.ike()) != 0 || len(a.installed)+len(b.installed) != 0 {
		t.Fatal("SAs in spite of the wrong key")
	}
	if b.e.counters.AuthRefused != 1 || a.e.counters.AuthRefused != 1 {
		t.Error("the failures are not counted")
	}
	h, _ := message.ParseHeader(w.seen[len(w.seen)-1].Data)
	if h.Exchange != message.IKEAuth || h.NextPayload != message.TypeSK {
		t.Errorf("the refusal is not protected: %+v", h)
	}
	if g := a.e.Status(w.now)[0]; g.Failure != "AUTHENTICATION_FAILED in AUTH response" {
		t.Errorf("failure %q", g.Failure)
	}
	b.wantLog("authentication failed")
	for _, l := range append(a.logs, b.logs...) {
		if l == "secret" || l == "another" {
			t.Error("a key in the log")
		}
	}
}

// dialup is a hub with two profiles, told apart by the identity only.
func dialup(t *testing.T) (*world, *side, func(id, psk, addr string, seed uint64) *side) {
	w := newWorld(t)
	profile := func(name, peerid, psk string) config.Phase1 {
		return phase1To(name, "", func(p *config.Phase1) {
			p.PeerType, p.PeerID, p.PSK = "one", peerid, ipsec.NewKey([]byte(psk))
		})
	}
	hub := &config.Config{
		Phase1: []config.Phase1{profile("vpn1", "one.example", "key one"), profile("vpn2", "two.example", "key two")},
		Phase2: []config.Phase2{phase2For("vpn1", "vpn1", "0.0.0.0/0", "0.0.0.0/0"), phase2For("vpn2", "vpn2", "0.0.0.0/0", "0.0.0.0/0")},
	}
	b := w.side("hub", addrB, 2, hub, nil)
	b.resume()
	return w, b, func(id, psk, addr string, seed uint64) *side {
		c := &config.Config{
			Phase1: []config.Phase1{phase1To("hub", addrB, func(p *config.Phase1) {
				p.AutoNegotiate = true
				p.LocalID, p.LocalIDType, p.PSK = id, "fqdn", ipsec.NewKey([]byte(psk))
			})},
			Phase2: []config.Phase2{phase2For("hub", "net", "10."+addr[len(addr)-1:]+".0.0/16", "0.0.0.0/0")},
		}
		return w.side(id, addr, seed, c, nil)
	}
}

func TestDialupProfilesByIdentity(t *testing.T) {
	w, hub, client := dialup(t)
	one := client("one.example", "key one", "198.51.100.1", 3)
	two := client("two.example", "key two", "198.51.100.2", 4)
	stranger := client("three.example", "key one", "198.51.100.3", 5)
	liar := client("one.example", "key two", "198.51.100.4", 6)
	for _, c := range []*side{one, two, stranger, liar} {
		c.resume()
		w.settle()
	}
	if len(one.established()) != 1 || len(two.established()) != 1 {
		t.Fatal("a client is not up")
	}
	if len(stranger.established())+len(liar.established()) != 0 {
		t.Fatal("a stranger is up")
	}
	var names []string
	for _, g := range hub.e.Status(w.now) {
		names = append(names, g.Name+" of "+g.Parent+" for "+g.PeerID)
	}
	if len(names) != 2 || names[0] != "vpn1_0 of vpn1 for one.example" || names[1] != "vpn2_0 of vpn2 for two.example" {
		t.Errorf("instances %q", names)
	}
	if hub.e.counters.AuthRefused < 2 {
		t.Error("refusals are not counted")
	}
	for _, x := range hub.installed {
		if x.SA.Phase1 == "vpn1" && (x.SA.Tunnel != "vpn1_0" || x.SA.TSRemote[0] != subnet("10.1.0.0/16")) {
			t.Errorf("Child SA %+v", x.SA)
		}
	}
}

func TestInitialContact(t *testing.T) {
	w, hub, client := dialup(t)
	one := client("one.example", "key one", "198.51.100.1", 3)
	two := client("two.example", "key two", "198.51.100.2", 4)
	one.resume()
	two.resume()
	w.settle()
	if len(hub.established()) != 2 {
		t.Fatal("setup")
	}
	// The client loses its memory and comes back.
	one.dead = true
	again := client("one.example", "key one", "198.51.100.1", 33)
	var tombs []ipsec.IKESPIs
	hub.onRecord = func(r Record) {
		for _, x := range r.Entries {
			if x.PeerDeleted {
				tombs = append(tombs, x.SPIs)
			}
		}
	}
	again.resume()
	w.settle()
	if len(hub.established()) != 2 || len(hub.installed) != 2 || len(tombs) != 1 || tombs[0] != one.ike()[0].spis {
		t.Fatalf("after INITIAL_CONTACT: %v, %d Child SAs, tombstones %v", describe(hub.ike()), len(hub.installed), tombs)
	}
	if sa := again.established()[0]; hub.e.sas[sa.spis.R].tunnel.name != "vpn1_0" {
		t.Error("the client did not get its instance back")
	}
	again.wantLog("sending INITIAL-CONTACT")
	hub.wantLog("processed INITIAL-CONTACT")
}

func TestInstancesGetTheLowestFreeIndex(t *testing.T) {
	w := newWorld(t)
	hub := w.side("hub", addrB, 2, &config.Config{Phase1: []config.Phase1{phase1To("vpn", "")},
		Phase2: []config.Phase2{phase2For("vpn", "vpn", "0.0.0.0/0", "0.0.0.0/0")}}, nil)
	hub.resume()
	var clients []*side
	for i := range 4 {
		addr := netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}).String()
		c := w.side("c", addr, uint64(10+i), &config.Config{
			Phase1: []config.Phase1{phase1To("hub", addrB)}, Phase2: []config.Phase2{phase2For("hub", "net", netA, netB)}}, nil)
		clients = append(clients, c)
		c.resume()
	}
	name := func(c *side) string {
		c.up("net")
		w.settle()
		return hub.e.sas[c.established()[0].spis.R].tunnel.name
	}
	for i, want := range []string{"vpn_0", "vpn_1", "vpn_2"} {
		if got := name(clients[i]); got != want {
			t.Errorf("client %d is %s", i, got)
		}
	}
	clearAll(clients[1])
	w.settle()
	if got := name(clients[3]); got != "vpn_1" {
		t.Errorf("the fourth client is %s", got)
	}
}

func TestInitiatorChecksTheResponder(t *testing.T) {
	w, a, b := pair(t, func(a, b *config.Config) {
		a.Phase1[0].PeerType, a.Phase1[0].PeerID = "one", "hub.example"
		b.Phase1[0].LocalID = "other.example"
	})
	b.resume()
	a.resume()
	w.settle()
	if len(a.ike()) != 0 || len(b.ike()) != 0 {
		t.Errorf("another identity is accepted: %v %v", describe(a.ike()), describe(b.ike()))
	}
	if b.e.Status(w.now)[0].Failure == "" {
		t.Error("the responder does not know why")
	}
	w, a, b = pair(t, func(a, b *config.Config) {
		a.Phase1[0].PeerType, a.Phase1[0].PeerID = "one", "hub.example"
		b.Phase1[0].LocalID = "HUB.example"
	})
	b.resume()
	a.resume()
	w.settle()
	agree(t, a, b, 1, 1)
}

func TestOwnIdentity(t *testing.T) {
	local := netip.MustParseAddr(addrA)
	for _, x := range []struct {
		id, kind string
		want     identity
	}{
		{"", "", identity{message.IDIPv4, "\xc0\x00\x02\x01"}},
		{"gw.example", "auto", identity{message.IDFQDN, "gw.example"}},
		{"me@example", "", identity{message.IDRFC822, "me@example"}},
		{"2001:db8::1", "auto", identity{message.IDIPv6, string(netip.MustParseAddr("2001:db8::1").AsSlice())}},
		{"anything", "keyid", identity{message.IDKeyID, "anything"}},
		{"anything", "address", identity{message.IDIPv4, "\xc0\x00\x02\x01"}},
	} {
		if got := ownIdentity(&config.Phase1{LocalID: x.id, LocalIDType: x.kind}, local); got != x.want {
			t.Errorf("localid %q of type %q: %+v", x.id, x.kind, got)
		}
	}
}

func TestChildRefusedInAuth(t *testing.T) {
	for name, change := range map[string]func(a, b *config.Config){
		"TS_UNACCEPTABLE": func(a, b *config.Config) {
			b.Phase2[0].Dst = []ipsec.TrafficSelector{subnet("172.16.0.0/12")}
		},
		"NO_PROPOSAL_CHOSEN": func(a, b *config.Config) { b.Phase2[0].Proposals = []ipsec.Suite{esp(cbc128sha256)} },
	} {
		w, a, b := pair(t, change)
		b.resume()
		a.resume()
		w.settle()
		agree(t, a, b, 1, 0)
		if f := a.e.Status(w.now)[0].Failure; f != "peer sent "+name {
			t.Errorf("failure %q, want %s", f, name)
		}
	}
}

func TestNarrowing(t *testing.T) {
	w, a, b := up(t, func(a, b *config.Config) {
		a.Phase2[0].Src = []ipsec.TrafficSelector{subnet("10.0.0.0/8")}
		a.Phase2[0].Dst = []ipsec.TrafficSelector{subnet("0.0.0.0/0")}
		b.Phase2[0].Src = []ipsec.TrafficSelector{subnet(netB), subnet("10.3.0.0/16")}
		web := subnet(netA)
		web.Protocol, web.StartPort, web.EndPort = 6, 443, 443
		b.Phase2[0].Dst = []ipsec.TrafficSelector{web}
	})
	c := a.ike()[0].children[0]
	if len(c.TSRemote) != 2 || len(c.TSLocal) != 1 || c.TSLocal[0].Protocol != 6 || c.TSLocal[0].StartPort != 443 {
		t.Errorf("narrowed to %v === %v", c.TSLocal, c.TSRemote)
	}
	a.rekeyChild()
	w.settle()
	agree(t, a, b, 1, 1)
	if n := a.ike()[0].children[0]; len(n.TSRemote) != 2 || n.TSLocal[0] != c.TSLocal[0] {
		t.Error("the rekeyed Child SA has other selectors")
	}
}

// TestGating: nothing leaves and nothing is installed before the record is with the standby.
func TestGating(t *testing.T) {
	w, a, b := pair(t, nil)
	a.manual, b.manual = true, true
	commit := func(s *side) {
		t.Helper()
		if len(s.tickets) != 1 {
			t.Fatalf("%s: %d records wait", s.name, len(s.tickets))
		}
		tk := s.tickets[0]
		s.tickets = nil
		s.e.Committed(w.now, tk)
		s.drain()
	}
	silence := func(why string) {
		t.Helper()
		if len(w.wire) != 0 {
			t.Fatal(why)
		}
	}
	next := func() {
		t.Helper()
		if len(w.wire) != 1 {
			t.Fatalf("%d messages under way", len(w.wire))
		}
		d := w.wire[0]
		w.wire = nil
		w.deliver(d)
	}
	b.resume()
	a.resume()
	silence("SA_INIT request before its record")
	commit(a)
	next()
	silence("SA_INIT response before its record")
	b.receive(flip(w.seen[0])) // the same request again
	silence("SA_INIT response before its record, on a repetition")
	commit(b)
	next()
	silence("AUTH request before its record")
	commit(a)
	auth := w.wire[0]
	next()
	silence("AUTH response before its record")
	if len(b.installed) != 0 {
		t.Fatal("responder's Child SA before its record")
	}
	b.receive(flip(auth))
	silence("AUTH response before its record, on a repetition")
	w.now = w.now.Add(5 * time.Second)
	a.e.HandleTimeout(w.now)
	a.drain()
	w.wire = nil
	commit(b)
	if len(b.installed) != 1 || len(w.wire) != 1 {
		t.Fatal("the commit released nothing")
	}
	next()
	if len(a.installed) != 0 {
		t.Fatal("initiator's Child SA before its record")
	}
	commit(a)
	agree(t, a, b, 1, 1)
	// A retransmission timer does not run for what has not left.
	a.rekeyChild()
	n := len(w.seen)
	w.now = w.now.Add(40 * time.Second)
	a.e.HandleTimeout(w.now)
	a.drain()
	if len(w.seen) != n {
		t.Error("retransmitted before it was sent")
	}
	// Suspension drops what is held.
	a.e.Suspend(w.now)
	a.drain()
	a.e.Committed(w.now, a.tickets[0])
	a.drain()
	if len(w.seen) != n {
		t.Error("sent after ownership ended")
	}
}

func TestRequestBeforeTheAuthResponseWaits(t *testing.T) {
	// The responder begins an exchange at once, and its request overtakes the
	// IKE_AUTH response.
	w, a, b := pair(t, twoPhase2)
	var late []Datagram
	w.drop = func(d Datagram) bool {
		h, err := message.ParseHeader(d.Data)
		if err == nil && h.Exchange == message.IKEAuth && h.Response && late == nil {
			late = append(late, d)
			return true
		}
		return false
	}
	b.resume()
	a.resume()
	w.settle()
	if len(late) != 1 {
		t.Fatal("setup: no IKE_AUTH response")
	}
	b.up("net2")
	w.settle()
	w.drop = nil
	w.deliver(late[0])
	w.run(5 * time.Second)
	agree(t, a, b, 1, 2)
	if n := w.seenOf(message.IKESAInit); n != 1 {
		t.Errorf("%d requests of IKE_SA_INIT: the IKE SA did not survive", n)
	}
}
