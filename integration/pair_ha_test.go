package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/lab"
)

// TestPairActivePassive: the passive node lists the same SAs with the same keys as
// a standby, and they are the sync-primary's after the active daemon was killed; two
// clients go on, nothing begins anew.
func TestPairActivePassive(t *testing.T) {
	t.Parallel()
	needCharon(t)
	p := newPair(t, program(t), withDialups("two.test"))
	ch := p.charon(lab.NodeClient, pairConn())
	ch.up()
	second := p.dial(lab.NodeClient, peerWAN, "two.test", psk)
	second.init()
	child := second.auth("10.1.2.0/24", gwNet)
	p.traffic()
	active, standby := p.synchronised()
	before := p.wantSame()
	if strings.Count(before, "established") != 2 || strings.Count(before, "ESP ") != 2 || regexp.MustCompile(`keys  |keys $`).MatchString(before) {
		t.Fatalf("not two tunnels with keys:\n%s", before)
	}
	p.wantRoles(active, "sync-primary")
	p.wantRoles(standby, "standby")
	// What a standby prints as its sequence number is the ceiling that it holds.
	for _, tn := range p.tunnels(standby) {
		for _, sel := range tn.Selectors {
			for _, c := range sel.SAs {
				if c.Seqno != c.Ceiling {
					t.Errorf("%s on the standby: seqno %d, ceiling %d", tn.Name, c.Seqno, c.Ceiling)
				}
			}
		}
	}
	inits, auths := p.begun(exchInit), p.begun(exchAuth)

	p.kill(active)
	p.takenOver(standby)
	p.wantRoles(standby, "sync-primary")
	p.traffic()
	// The second client: an exchange, and a packet to the server and its answer back.
	second.request(message.Informational)
	child.sendPacket(icmpEcho("10.1.2.9", serverIn))
	if second.receiveESP(5*time.Second) == nil {
		t.Error("the second client gets no answer through the survivor")
	}
	if after := p.sas(standby); after != before {
		t.Errorf("the SAs changed\nbefore:\n%safter:\n%s", before, after)
	}
	if n, m := p.begun(exchInit), p.begun(exchAuth); n != inits || m != auths {
		t.Errorf("%d new IKE_SA_INIT, %d new IKE_AUTH", n-inits, m-auths)
	}
	// The one that was killed comes back as a standby with all of it.
	back, was := p.synchronised()
	if back != standby || was != active {
		t.Errorf("%s is active after the other one returned", back.node)
	}
	p.wantSame()
	p.wantRoles(active, "standby")
}

// wantRoles waits until a member says of every tunnel what it is to it.
func (p *pair) wantRoles(g *gateway, role string) {
	p.t.Helper()
	eventually(p.t, 5*time.Second, g.node+" is "+role+" of every tunnel", func() bool {
		all := p.tunnels(g)
		for _, tn := range all {
			if tn.Role != role {
				return false
			}
		}
		return len(all) > 0
	})
	if text := g.must("diagnose vpn tunnel list"); !strings.Contains(text, "role="+role+" ") {
		p.t.Errorf("%s does not print role=%s:\n%s", g.node, role, text)
	}
}

// withDialups adds one dialup profile for each identity.
func withDialups(ids ...string) func(string) string {
	return func(conf string) string {
		for _, id := range ids {
			name := strings.TrimSuffix(id, ".test")
			conf += fmt.Sprintf(`config vpn ipsec phase1-interface
    edit %s
        set type dynamic
        set interface wan0
        set peertype one
        set peerid %s
        set psksecret "%s"
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set nattraversal forced
        set dpd disable
        set negotiate-timeout 300
    next
end
config vpn ipsec phase2-interface
    edit %s-net
        set phase1name %s
        set proposal aes128gcm
        set dhgrp 31
        set src-subnet 10.2.0.0 255.255.255.0
    next
end
`, name, id, psk, name, name)
		}
		return conf
	}
}

// icmpEcho is an inner IPv4 packet with an echo request.
func icmpEcho(src, dst string) []byte {
	b := udpPacket(src, dst, 0x0800, 0, []byte{0, 1, 0, 1}) // UDP's ports and length are overwritten
	b[9] = 1
	copy(b[20:28], []byte{8, 0, 0, 0, 0, 7, 0, 1})
	sum := func(b []byte) (byte, byte) {
		s := uint32(0)
		for i := 0; i+1 < len(b); i += 2 {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
		return byte(^s >> 8), byte(^s)
	}
	b[10], b[11] = 0, 0
	b[10], b[11] = sum(b[:20])
	b[22], b[23] = sum(b[20:])
	return b
}

// TestPairInitialContact: a client that comes back with INITIAL_CONTACT has its
// older SAs removed on every member; another identity's stay, also at the survivor.
func TestPairInitialContact(t *testing.T) {
	t.Parallel()
	p := newPair(t, program(t), withDialups("one.test", "two.test"))
	old := p.dial(lab.NodeClient, peerWAN, "one.test", psk)
	old.init()
	old.auth("10.1.1.0/24", gwNet)
	other := p.dial(lab.NodeClient, peerWAN, "two.test", psk)
	other.init()
	other.auth("10.1.2.0/24", gwNet)
	active, standby := p.synchronised()
	spi := func(s *scripted) string { return fmt.Sprintf("%016x/%016x", uint64(s.spis.I), uint64(s.spis.R)) }
	both := p.wantSame()
	if !strings.Contains(both, spi(old)) || !strings.Contains(both, spi(other)) {
		t.Fatalf("%s and %s are not both there:\n%s", spi(old), spi(other), both)
	}
	again := p.dial(lab.NodeClient, peerWAN, "one.test", psk)
	again.init()
	again.auth("10.1.1.0/24", gwNet, &message.Notify{NotifyType: message.InitialContact})
	for _, g := range []*gateway{active, standby} {
		var sas string
		if !holds(10*time.Second, func() bool {
			sas = p.sas(g)
			return !strings.Contains(sas, spi(old)) && strings.Contains(sas, spi(again)) && strings.Contains(sas, spi(other)) &&
				strings.Count(sas, "ESP ") == 2
		}) {
			t.Errorf("%s after INITIAL_CONTACT in %s (old: %s, other: %s):\n%s", g.node, spi(again), spi(old), spi(other), sas)
		}
	}
	p.kill(active)
	p.takenOver(standby)
	again.request(message.Informational)
	other.request(message.Informational)
	if sas := p.sas(standby); strings.Contains(sas, spi(old)) {
		t.Errorf("the survivor brings the old SA back:\n%s", sas)
	}
	// The old SA is unknown here: what is said to it has no protection.
	answer := old.parse(old.ask(old.seal(message.Informational)))
	if _, ok := answer.Notify(message.InvalidIKESPI); !ok || len(answer.Payloads) != 1 {
		t.Errorf("a request in the SA that INITIAL_CONTACT removed: %v", notifyNames(answer))
	}
}

// TestPairCookie: the cookie that one member demanded is accepted by the other one
// after a takeover: they share the secret.
func TestPairCookie(t *testing.T) {
	t.Parallel()
	p := newPair(t, program(t), withDialups("one.test"))
	active, standby := p.synchronised()
	// Each address may have 64 without a cookie, all together a thousand.
	for i, n := 0, 0; i == 0 || n > 0; i++ {
		if i == 20 {
			t.Fatal("20 addresses flood, and no cookie is demanded of each of them")
		}
		a := fmt.Sprintf("192.0.2.%d", 100+i)
		p.must(lab.NodeClient, "ip", "address", "add", a+"/24", "dev", "wan0")
		flood := p.dial(lab.NodeClient, a, "bot.test", psk)
		for n = 0; ; n++ {
			if _, demanded := flood.parse(flood.ask(flood.initMessage(nil, nil).Encode())).Notify(message.Cookie); demanded {
				break
			}
			if n == 1300 {
				t.Fatal("1300 half-open SAs of one address, and no cookie was demanded")
			}
		}
	}
	honest := p.dial(lab.NodeClient, peerWAN, "one.test", psk)
	request := honest.initMessage(nil, nil)
	cookie, ok := honest.parse(honest.ask(request.Encode())).Notify(message.Cookie)
	if !ok {
		t.Fatal("no cookie is demanded of the honest client")
	}
	p.kill(active)
	p.takenOver(standby)

	// The survivor demands cookies too, and takes no invented one.
	with := func(data []byte) []byte {
		m := *request
		m.Payloads = append([]message.Payload{&message.Notify{NotifyType: message.Cookie, Data: data}}, request.Payloads...)
		return m.Encode()
	}
	if _, again := honest.parse(honest.ask(with(random(len(cookie.Data))))).Notify(message.Cookie); !again {
		t.Error("the survivor accepted an invented cookie")
	}
	honest.initReq = with(cookie.Data)
	honest.accept(honest.ask(honest.initReq))
	honest.auth("10.1.1.0/24", gwNet)
	honest.request(message.Informational)
}
