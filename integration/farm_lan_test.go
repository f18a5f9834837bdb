package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFarmLANAnywhere: five members, of which three have a tunnel each. What the LAN sends
// to a client goes through a member that knows nothing of its tunnel: everything arrives,
// once, in either direction and at any size; through all members in turn; when the owner
// is gone by SIGKILL; and when the member sees its daemon start anew. When the client
// deletes its tunnel, no member has a route to it any more.
func TestFarmLANAnywhere(t *testing.T) {
	t.Parallel()
	needRoot(t)
	names := []string{"gw1", "gw2", "gw3", "gw4", "gw5"}
	f := newFarmOf(t, program(t), names, 2, "", func(*trio) {})
	for k := range f.clients {
		f.toGateway(k, names[k])
		f.toClient(k, names[k])
	}
	f.up()
	sa := f.ikeSA(0)
	routed := func(m string) bool {
		return strings.Contains(f.must(m, "ip", "route", "show", "10.1.0.0/24"), "dev vpn1")
	}
	// without are the members, but for those that are gone, that have no copy, in a farm at
	// rest; owner is who has the tunnel.
	without := func(gone ...string) (out []string, owner string) {
		t.Helper()
		want := len(names) - len(gone) - 3
		if !holds(20*time.Second, func() bool {
			out, owner = nil, ""
			for _, m := range names {
				if slices.Contains(gone, m) {
					continue
				}
				all, ok := answer[[]tunnelOwner](f.members[m], "diagnose vpn ike gateway list")
				has := false
				for _, g := range all {
					for _, x := range g.SAs {
						if x.SPIi+"/"+x.SPIr == sa {
							has = true
							if g.Role == "sync-primary" {
								owner = m
							}
						}
					}
				}
				if !ok || !has {
					out = append(out, m)
				}
			}
			return len(out) == want && owner != ""
		}) {
			t.Fatalf("%v have no copy of the tunnel, owned by %q; want %d", out, owner, want)
		}
		return out, owner
	}
	strangers, owner := without()
	if owner != "gw1" {
		t.Fatalf("%s owns the tunnel that gw1 answered for", owner)
	}
	for _, m := range names {
		eventually(t, 10*time.Second, m+" has a route to the client", func() bool { return routed(m) })
	}
	sent := func(m, to string) (n uint64) {
		t.Helper()
		h, ok := status[trioHA](f.members[m])
		for _, p := range h.Peers {
			if p.Hostname == to {
				return p.Sent
			}
		}
		t.Fatalf("%s does not know %s: %v %+v", m, to, ok, h.Peers)
		return 0
	}

	f.toClient(0, strangers[0])
	lan := f.tap(trioServer, "lan0")
	before := sent(strangers[0], owner)
	up, down := f.probe(trioClient(0), trioInner(0), trioServing), f.probe(trioServer, trioServing, trioInner(0))
	seen := func() (requests, answers int) {
		for e := range lan.echoes() {
			switch {
			case e.from == trioInner(0) && e.request:
				requests++
			case e.from == trioInner(0):
				answers++
			}
		}
		return requests, answers
	}
	// more waits until another hundred probes of either side have come out of the tunnel.
	more := func(what string) {
		t.Helper()
		r, a := seen()
		eventually(t, 20*time.Second, "another hundred probes of either side, "+what, func() bool {
			nr, na := seen()
			return nr >= r+100 && na >= a+100
		})
	}
	more("through a member without a copy")
	if n := sent(strangers[0], owner) - before; n < 150 {
		t.Errorf("%s has forwarded %d packets to %s", strangers[0], n, owner)
	}
	for _, m := range names {
		f.toClient(0, m)
		more("through " + m)
	}
	f.wantPing(trioServer, trioServing, trioInner(0), "-s", "1472", "-M", "dont")
	f.wantPing(trioServer, trioServing, trioInner(0), "-s", "4000", "-M", "dont")
	end := func(what string, budget int) {
		t.Helper()
		for _, p := range []*prober{up, down} {
			sent, lost, doubled := p.end()
			t.Logf("%s, %s: %d probes sent, %d lost, %d answered twice", what, p.name, sent, lost, doubled)
			if lost > budget || doubled > 0 {
				t.Errorf("%s, %s: of %d probes %d are lost and %d answered twice", what, p.name, sent, lost, doubled)
			}
		}
	}
	end("all members alive", 0)
	if now, o := without(); o != owner {
		t.Errorf("what the LAN sends through others has moved the tunnel: %s, %v", o, now)
	}

	// The owner ends: the router moves the client to its heir, the LAN's packets go on
	// through the stranger.
	f.toClient(0, strangers[0])
	up, down = f.probe(trioClient(0), trioInner(0), trioServing), f.probe(trioServer, trioServing, trioInner(0))
	more("before the owner ends")
	if err := syscall.Kill(f.members[owner].proc.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	heir := ""
	eventually(t, 10*time.Second, "another member owns the tunnel", func() bool {
		for _, m := range names {
			if m == owner {
				continue
			}
			all, _ := answer[[]tunnelOwner](f.members[m], "diagnose vpn ike gateway list")
			for _, g := range all {
				if g.Role == "sync-primary" && slices.ContainsFunc(g.SAs, func(x struct {
					SPIi   string `json:"spi_i"`
					SPIr   string `json:"spi_r"`
					Status string `json:"status"`
				}) bool {
					return x.SPIi+"/"+x.SPIr == sa
				}) {
					heir = m
				}
			}
		}
		return heir != ""
	})
	f.toGateway(0, heir)
	moved := time.Since(killed)
	more("after the owner's end")
	// Both directions are lost until the router knows; and those under way.
	end(fmt.Sprintf("%s killed, the router moved after %v", owner, moved.Round(time.Millisecond)), int(moved/probeEvery)+25)
	rest, now := without(owner)
	if now != heir {
		t.Errorf("%s owned the tunnel, and now %s does", heir, now)
	}
	f.toClient(0, rest[0])
	f.wantPing(trioServer, trioServing, trioInner(0))
	if !routed(strangers[0]) || !routed(rest[0]) {
		t.Error("a route to the client has gone with the owner")
	}

	// A member without a copy starts anew: it is told again.
	g := f.members[rest[0]]
	f.stop(rest[0])
	f.start(g, program(t))
	eventually(t, 20*time.Second, rest[0]+" has been told of the client again", func() bool { return routed(rest[0]) })
	f.wantPing(trioServer, trioServing, trioInner(0))

	for e, n := range lan.echoes() {
		if n != 1 && netip.MustParseAddr(e.from) == netip.MustParseAddr(trioInner(0)) {
			t.Errorf("on the LAN %d times: %+v", n, e)
		}
	}
	if now := f.ikeSA(0); now != sa {
		t.Errorf("the IKE SA was %s and is %s", sa, now)
	}

	// The client goes: so do the routes, and the other client's stay.
	if err := stopProcess(f.clients[0].proc, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	for _, m := range names {
		if m == owner {
			continue
		}
		eventually(t, 10*time.Second, m+" has no route to the client any more", func() bool { return !routed(m) })
		if !strings.Contains(f.must(m, "ip", "route", "show", "10.1.1.0/24"), "dev vpn1") {
			t.Errorf("%s has no route to the client that stays", m)
		}
	}
}
