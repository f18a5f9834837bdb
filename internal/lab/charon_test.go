package lab

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/internal/needs"
	"tandem/internal/testkit"
)

// charonPeer is a swanctl.conf for one end of a tunnel between two charons.
func charonPeer(local, remote, lid, rid, lts, rts string) string {
	return strings.NewReplacer("LOCAL", local, "REMOTE", remote, "LID", lid, "RID", rid, "LTS", lts, "RTS", rts).Replace(`
connections { gw {
    version = 2
    local_addrs = LOCAL
    remote_addrs = REMOTE
    encap = yes
    proposals = aes128gcm16-prfsha256-x25519
    local { auth = psk
        id = LID }
    remote { auth = psk
        id = RID }
    children { net {
        local_ts = LTS
        remote_ts = RTS
        esp_proposals = aes128gcm16-x25519
    } }
} }
secrets { ike { secret = "pair of charons" } }
`)
}

// TestCharonPair is the lab's test of itself: two strongSwans, probes and a
// transfer through their tunnel, a rekey of each kind, and a checker that finds
// nothing wrong with what it saw on the wire.
func TestCharonPair(t *testing.T) {
	if _, _, err := FindCharon(); err != nil {
		needs.Missing(t, err.Error())
	}
	topo := buildTest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(topo.address(NodeGW1, "wan0", SharedWAN))
	must(topo.address(NodeGW1, "lan0", SharedLAN))
	var caps []*Capture
	for _, p := range []string{NodeClient, NodeGW1, NodeGW2} {
		c, err := topo.StartCapture(NodeWAN, p)
		must(err)
		caps = append(caps, c)
	}
	gw, err := topo.StartCharon(ctx, CharonConfig{Node: NodeGW1, Swanctl: charonPeer("192.0.2.1", "%any", "gw", "client", "10.2.0.0/24", "10.1.0.0/24")})
	must(err)
	client, err := topo.StartCharon(ctx, CharonConfig{Node: NodeClient, Swanctl: charonPeer("192.0.2.10", "192.0.2.1", "client", "gw", "10.1.0.0/24", "10.2.0.0/24")})
	must(err)
	must(client.Initiate(ctx, "net", 5*time.Second))
	up := time.Now()

	probes, err := topo.StartProbes(NodeHost, netip.MustParseAddr("10.1.0.10"), NodeServer, netip.MustParseAddr("10.2.0.10"), 5*time.Millisecond)
	must(err)
	tcp, err := topo.StartTransfer(ctx, NodeHost, NodeServer, netip.MustParseAddr("10.2.0.10"), 250_000)
	must(err)
	flowing := func(more int) {
		t.Helper()
		a0, b0 := probes.Received()
		testkit.Within(t, 5*time.Second, "probes both ways", func() bool { a, b := probes.Received(); return a > a0+more && b > b0+more })
	}
	flowing(100)
	must(client.Rekey(ctx, "net", ""))
	testkit.Within(t, 5*time.Second, "Child SA rekeyed", func() bool { return client.Events().ChildRekeys == 1 })
	flowing(20)
	must(gw.Rekey(ctx, "", "gw"))
	testkit.Within(t, 5*time.Second, "IKE SA rekeyed", func() bool { return client.Events().IKERekeys == 1 })
	flowing(20)

	sent, err := tcp.Finish(5 * time.Second)
	must(err)
	streams := probes.Stop(100 * time.Millisecond)
	for _, s := range streams {
		lost, doubled := lostAndDoubled(s.Sent, s.Arrivals)
		if lost > 2 || doubled != 0 {
			t.Errorf("%s → %s: %d of %d probes lost, %d doubled", s.From, s.To, lost, s.Sent, doubled)
		}
	}
	sas, err := client.SAs(ctx)
	must(err)
	installed := 0 // the rekeyed one lingers as DELETED
	for _, sa := range sas {
		for _, ch := range sa.Children {
			if ch.State == "INSTALLED" {
				installed++
			}
		}
	}
	if len(sas) != 1 || sas[0].State != "ESTABLISHED" || installed != 1 {
		t.Errorf("client's SAs: %+v", sas)
	}
	check := NewChecker(CheckOptions{Client: NodeClient, Up: up})
	for _, c := range caps {
		drops, err := c.Stop()
		must(err)
		if drops > 0 {
			t.Errorf("capture on %s dropped %d frames", c.Port, drops)
		}
		must(ReadCapture(c.Path, func(f Frame) error { check.Add(f); return nil }))
	}
	r := check.Report()
	if r.IVRepeats+r.SeqRegressions+r.SAInitAfterUp+r.AuthAfterUp+r.CreateChildUnanswered+r.Oversize != 0 {
		t.Errorf("violations between two charons: %+v", r)
	}
	if r.ESP < 4*100 || r.CreateChildAnswered != 2 || r.IKE["IKE_AUTH"] != 2 || len(r.SPIs) != 4 {
		t.Errorf("the checker missed what happened: %+v", r)
	}
	for _, f := range r.SPIs {
		t.Logf("SPI %08x to %v: %d", f.SPI, f.Dst, f.Packets)
	}
	t.Logf("TCP %d bytes; %d frames, IKE %v, events %+v", sent, r.Frames, r.IKE, client.Events())
	must(topo.Close())
	all, err := States()
	must(err)
	for _, s := range all {
		if s.ID == topo.ID {
			t.Error("the lab's state is left")
		}
	}
}
