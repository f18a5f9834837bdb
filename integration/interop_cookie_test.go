package integration

import (
	"fmt"
	"testing"
	"time"

	"tandem/ike/message"
)

// TestCookies: a flood of IKE_SA_INIT from many addresses of the lab, 64 from each, reaches the
// half-open threshold (1,000). From then on a request costs a cookie and no state,
// and a real client still gets in.
func TestCookies(t *testing.T) {
	t.Parallel()
	plan := wirePlan()
	const crowd = 18 // addresses of those who never come back
	plan.Cables[0].AAddrs = append(plan.Cables[0].AAddrs, "192.0.2.67/24")
	for i := range crowd {
		plan.Cables[0].AAddrs = append(plan.Cables[0].AAddrs, fmt.Sprintf("192.0.2.%d/24", 100+i))
	}
	s := build(t, plan)
	g := s.gateway("gw", gwConf{phase1: []entry{dialup("road", "client.test", psk, "negotiate-timeout 300")},
		phase2: []entry{dialupPhase2("net", "road")}})
	// half opens IKE SAs from one address until a cookie is demanded.
	half := func(bot *scripted) (n int) {
		for ; n < 1300; n++ {
			b := bot.initMessage(nil, nil).Encode()
			answer := bot.parse(bot.ask(b))
			if _, ok := answer.Notify(message.Cookie); !ok {
				continue
			}
			if len(answer.Payloads) != 1 || answer.SPIs.R != 0 {
				t.Errorf("the cookie comes with more: %+v", answer)
			}
			if reply := len(answer.Encode()); reply >= len(b) {
				t.Errorf("the cookie reply (%d bytes) is not smaller than the request (%d)", reply, len(b))
			}
			return n
		}
		t.Fatal("no cookie was ever demanded")
		return 0
	}
	// Each address may have 64 without one; so many of them, a thousand together.
	bot, sent := s.dial("peer", "192.0.2.100", "bot.test", psk), 0
	for i := 0; ; i++ {
		n := half(bot)
		if sent += n; n == 0 {
			break
		}
		if full := sent > 990; n != 64 && !full || i == crowd-1 {
			t.Fatalf("address %d was asked for a cookie after %d requests, %d of all", i, n, sent)
		}
		bot = s.dial("peer", fmt.Sprintf("192.0.2.%d", 101+i), "bot.test", psk)
	}
	if sent < 990 || sent > 1010 {
		t.Fatalf("everybody was asked for a cookie after %d requests", sent)
	}

	// The same address comes back without the cookie: again only a cookie.
	for range 50 {
		if _, ok := bot.parse(bot.ask(bot.initMessage(nil, nil).Encode())).Notify(message.Cookie); !ok {
			t.Fatal("above the threshold a request without cookie was answered otherwise")
		}
	}
	if n := g.stat("ike_cookies_sent"); n < 51 {
		t.Errorf("%d cookies counted", n)
	}
	// A wrong cookie does not help; the right one in front of the same request does.
	honest := s.dial("peer", "192.0.2.67", "client.test", psk)
	request := honest.initMessage(nil, nil)
	answer := honest.parse(honest.ask(request.Encode()))
	cookie, ok := answer.Notify(message.Cookie)
	if !ok {
		t.Fatalf("no cookie: %v", answer.Payloads)
	}
	wrong := *request
	wrong.Payloads = append([]message.Payload{&message.Notify{NotifyType: message.Cookie, Data: random(len(cookie.Data))}}, request.Payloads...)
	if _, ok := honest.parse(honest.ask(wrong.Encode())).Notify(message.Cookie); !ok {
		t.Error("a wrong cookie was accepted")
	}
	right := *request
	right.Payloads = append([]message.Payload{&message.Notify{NotifyType: message.Cookie, Data: cookie.Data}}, request.Payloads...)
	honest.initReq = right.Encode()
	honest.accept(honest.ask(honest.initReq))
	honest.auth("10.1.9.0/24", gwNet)
	honest.bye()
	g.wantNone("")

	ch := s.charon("peer", conn{id: "client.test"})
	ch.up()
	ch.says(`parsed IKE_SA_INIT response 0 \[ N\(COOKIE\) \]`)
	ch.says(`generating IKE_SA_INIT request 0 \[ N\(COOKIE\) `)
	g.wantUp("road_0", "responder")
	s.wantPing("peer", peerIn, gwIn)
	ch.down(g)
	eventually(t, 5*time.Second, "still answering commands", func() bool { _, err := g.cli("diagnose vpn ike stats"); return err == nil })
}
