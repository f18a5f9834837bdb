package integration

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// TestInvalidKE: the first guess of a group is wrong, in IKE_SA_INIT and in
// CREATE_CHILD_SA, whoever begins; the second is right.
func TestInvalidKE(t *testing.T) {
	t.Run("tandem guesses wrong", func(t *testing.T) {
		t.Parallel()
		s := wire(t)
		ch := s.charon("peer", conn{})
		g := s.gateway("gw", gwConf{phase1: []entry{toPeer("auto-negotiate enable", "dhgrp 14 31")},
			phase2: []entry{netPhase2("dhgrp 14 31")}, routes: []entry{routeTo(peerNet, "vpn1")}})
		g.wantUp("vpn1", "initiator")
		ch.says(`generating IKE_SA_INIT response 0 \[ N\(INVAL_KE\) \]`)
		g.must("diagnose vpn ike rekey child name vpn1")
		eventually(t, 10*time.Second, "Child SA rekeyed", func() bool { return ch.Events().ChildRekeys == 1 })
		g.wantOneChild("vpn1")
		ch.says(`generating CREATE_CHILD_SA response \d+ \[ N\(INVAL_KE\) \]`)
		if _, child := ch.one(); child.DH != "CURVE_25519" {
			t.Errorf("group of the rekeyed Child SA: %s", child.DH)
		}
		s.pingBoth()
		if n := ch.said(`N\(INVAL_KE\)`); n != 2 {
			t.Errorf("%d refusals, 2 expected", n)
		}
		g.stop()
		ch.wantNone()
	})
	t.Run("charon guesses wrong", func(t *testing.T) {
		t.Parallel()
		s := wire(t)
		wan := s.tap("gw", "wan0")
		ch := s.charon("peer", conn{ike: "aes128gcm16-prfsha256-modp2048-x25519", esp: "aes128gcm16-modp2048-x25519"})
		g := s.gateway("gw", gwConf{phase1: []entry{toPeer()}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
		ch.up()
		g.wantUp("vpn1", "responder")
		ch.says(`parsed IKE_SA_INIT response 0 \[ N\(INVAL_KE\) \]`)
		for _, p := range wan.packets() {
			if p.exchange() != byte(message.IKESAInit) || !p.response() {
				continue
			}
			m, err := message.Parse(p.ike)
			if err != nil {
				t.Fatal(err)
			}
			n, ok := m.Notify(message.InvalidKEPayload)
			if !ok || len(n.Data) != 2 || binary.BigEndian.Uint16(n.Data) != uint16(ipsec.KEX25519) || len(m.Payloads) != 1 {
				t.Errorf("first IKE_SA_INIT response: %+v", m.Payloads)
			}
			break
		}
		if err := ch.Rekey(ch.ctx, "net", ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "Child SA rekeyed", func() bool { return ch.Events().ChildRekeys == 1 })
		g.wantOneChild("vpn1")
		ch.says(`parsed CREATE_CHILD_SA response \d+ \[ N\(INVAL_KE\) \]`)
		if _, child := ch.one(); child.DH != "CURVE_25519" {
			t.Errorf("group of the rekeyed Child SA: %s", child.DH)
		}
		s.pingBoth()
		ch.down(g)
	})
}

// TestInvalidKEStops: a peer that refuses each group in favour of the other does
// not keep us going round.
func TestInvalidKEStops(t *testing.T) {
	t.Parallel()
	s := wire(t)
	wan := s.tap("gw", "wan0")
	p := &scripted{t: t, conn: s.socket("peer", peerWAN, 500), isResp: true, suite: scriptedSuite}
	g := s.gateway("gw", gwConf{phase1: []entry{toPeer("auto-negotiate enable", "dhgrp 14 31", "negotiate-timeout 300")}, phase2: []entry{netPhase2()}})
	seen := map[string]bool{}
	// fresh is the next request that is no retransmission (on a slow machine the
	// answer may come too late to prevent one).
	fresh := func(within time.Duration) []byte {
		t.Helper()
		for end := time.Now().Add(within); ; {
			b := p.receive(time.Until(end))
			if b == nil || !seen[string(b)] {
				seen[string(b)] = true
				return b
			}
		}
	}
	refuse := func(used, demanded ipsec.TransformID) ipsec.IKESPI {
		t.Helper()
		b := fresh(10 * time.Second)
		if b == nil {
			t.Fatal("no IKE_SA_INIT")
		}
		m := p.parse(b)
		ke, ok := message.Get[*message.KE](m)
		if !ok || ke.Group != used {
			t.Fatalf("IKE_SA_INIT with %+v, group %d expected", ke, used)
		}
		r := &message.Message{Header: message.Header{SPIs: m.SPIs, MajorVersion: 2, Exchange: message.IKESAInit, Response: true},
			Payloads: []message.Payload{&message.Notify{NotifyType: message.InvalidKEPayload, Data: binary.BigEndian.AppendUint16(nil, uint16(demanded))}}}
		p.send(r.Encode())
		return m.SPIs.I
	}
	first := refuse(ipsec.KEMODP2048, ipsec.KEX25519)
	if again := refuse(ipsec.KEX25519, ipsec.KEMODP2048); again != first {
		t.Errorf("the retry has another SPI: %s after %s", again, first)
	}
	if b := fresh(3 * time.Second); b != nil {
		t.Errorf("a third IKE_SA_INIT at once: %v", p.parse(b).SPIs)
	}
	messages := map[string]bool{}
	for _, p := range wan.packets() {
		if from(gwWAN)(p) && bytes.HasPrefix(p.ike, binary.BigEndian.AppendUint64(nil, uint64(first))) {
			messages[string(p.ike)] = true
		}
	}
	if len(messages) != 2 {
		t.Errorf("%d different messages of that IKE SA, 2 expected", len(messages))
	}
	st := g.status("vpn1")
	again := false
	for _, sa := range st.SAs { // the next attempt may have begun
		again = again || sa.SPIi == first.String()
	}
	if again || st.Failure == "" {
		t.Errorf("after the second refusal: %+v", st)
	}
	// Auto-negotiate begins anew in its own rhythm.
	if next := refuse(ipsec.KEMODP2048, ipsec.KEX25519); next == first {
		t.Error("the next attempt has the old SPI")
	}
}
