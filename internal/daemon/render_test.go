package daemon

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/ike"
	"tandem/internal/ipsec"
)

func TestInnerMTU(t *testing.T) {
	gcm := ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128}
	for _, c := range []struct {
		suite   ipsec.Suite
		udp, v6 bool
		want    int
	}{
		{cbc128, false, false, 1438}, // FortiOS prints the same
		{cbc256, false, false, 1422}, // likewise
		{gcm, false, false, 1446}, {gcm, true, false, 1438}, {gcm, false, true, 1426}, {gcm, true, true, 1418},
		{ipsec.Suite{Encr: ipsec.ENCRChaCha20Poly1305}, true, false, 1438},
	} {
		got := innerMTU(1500, c.suite, c.udp, c.v6)
		if got != c.want {
			t.Errorf("%v udp=%v v6=%v: %d, want %d", c.suite, c.udp, c.v6, got, c.want)
		}
	}
}

func TestTunnelInterfaces(t *testing.T) {
	c := mustConfig(t, viewConfig)
	p := &c.Phase1[0]
	if got := tunnelOf(c, p, 1500); got.MTU != 1500 || got.DontFragment || got.MaxMSS != [2]int{1422 - 40, 1422 - 60} {
		t.Errorf("fragmented after encapsulation: %+v", got)
	}
	p.IPFragmentation = "pre-encapsulation"
	if got := tunnelOf(c, p, 1500); got.MTU != 1422 || !got.DontFragment {
		t.Errorf("fragmented before encapsulation: %+v", got)
	}
}

// The frames are those that a capture of another stack shows for these addresses.
func TestAnnouncementFrames(t *testing.T) {
	mac := [6]byte{0x02, 0, 0, 0, 0, 1}
	arp := hex.EncodeToString(gratuitousARP(mac, netip.MustParseAddr("192.0.2.1"), 1))
	want := "ffffffffffff" + "020000000001" + "0806" + "0001080006040001" + "020000000001" + "c0000201" + "000000000000" + "c0000201"
	if !strings.HasPrefix(arp, want) || len(arp) != 120 {
		t.Errorf("gratuitous ARP %s", arp)
	}
	na := neighbourAdvertisement(mac, netip.MustParseAddr("2001:db8::1"))
	if len(na) != 14+40+32 || hex.EncodeToString(na[:14]) != "333300000001"+"020000000001"+"86dd" || na[54] != 136 || na[58] != 0xa0 {
		t.Errorf("neighbour advertisement %x", na)
	}
	// RFC 4443 §2.3: the sum over pseudo-header and message comes to zero.
	sum := uint32(32 + 58)
	for _, part := range [][]byte{na[22:54], na[54:]} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff {
		t.Errorf("checksum comes to %#x", sum)
	}
}

// TestLateAnnouncement: after this process stood still nothing is announced before
// the event loop had the time to learn whether another node owns.
func TestLateAnnouncement(t *testing.T) {
	start := time.Unix(1e9, 0)
	r := repetition{start.Add(8 * time.Second), 2, 8 * time.Second}
	for i, step := range []struct {
		after    time.Duration // of the step before
		announce bool
		left     int
		wait     time.Duration
	}{
		{8*time.Second + 20*time.Millisecond, true, 1, 8 * time.Second},
		{13 * time.Second, false, 1, reassertAfter},
		{reassertAfter + 10*time.Millisecond, true, 0, 8 * time.Second},
	} {
		start = start.Add(step.after)
		if announce, wait := r.fired(start); announce != step.announce || wait != step.wait || r.left != step.left {
			t.Errorf("step %d: announces %v, then waits %v, %d left", i, announce, wait, r.left)
		}
	}
}

func TestKeyLogLines(t *testing.T) {
	dir := t.TempDir()
	k, err := openKeyLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	gcm := ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, PRF: ipsec.PRFHMACSHA256}
	if err := k.writeIKE(ike.KeyLog{SPIs: ipsec.IKESPIs{I: 1, R: 2}, Suite: gcm, Ei: key(20, 1), Er: key(20, 2)}); err != nil {
		t.Fatal(err)
	}
	if err := k.writeIKE(ike.KeyLog{SPIs: ipsec.IKESPIs{I: 3, R: 4}, Suite: cbc128, Ei: key(16, 1), Er: key(16, 2), Ai: key(20, 3), Ar: key(20, 4)}); err != nil {
		t.Fatal(err)
	}
	sa := testView(t, false).Node.Gateways[2].Children[0].SA
	for range 2 { // a copy installs it again: one pair of lines is enough
		if err := k.writeESP(&sa); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.close(); err != nil {
		t.Fatal(err)
	}
	var all string
	for _, f := range []string{"ikev2_decryption_table", "esp_sa"} {
		path := filepath.Join(dir, f)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, st.Mode())
		}
		all += string(text)
	}
	golden(t, "keylog", all)
}

func TestFirewallRules(t *testing.T) {
	const addresses = `
config firewall address
    edit "site"
        set subnet 10.1.0.0 255.255.255.0
    next
    edit "dc"
        set type iprange
        set start-ip 10.2.0.5
        set end-ip 10.2.0.9
    next
end
`
	if rules, err := firewallRules(mustConfig(t, viewConfig+addresses)); err != nil || rules != nil {
		t.Errorf("no policy block, but rules %v, %v", rules, err)
	}
	c := mustConfig(t, viewConfig+addresses+`
config firewall policy
    edit 1
        set srcintf "VPNtest"
        set dstintf "lan0"
        set srcaddr "site"
        set dstaddr "dc"
        set action accept
        set schedule "always"
        set service "ALL"
    next
    edit 2
        set srcintf "lan0"
        set dstintf "any"
        set srcaddr "all"
        set dstaddr "site"
        set action deny
        set schedule "always"
        set service "ALL"
    next
    edit 3
        set srcintf "lan0"
        set dstintf "wan0"
        set srcaddr "all"
        set dstaddr "all"
        set action accept
        set schedule "always"
        set service "ALL"
    next
end
`)
	rules, err := firewallRules(c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rules {
		verdict := "drop"
		if r.accept {
			verdict = "accept"
		}
		got = append(got, strings.Join([]string{r.in, r.out, rangeText(r.src), rangeText(r.dst), verdict}, "|"))
	}
	golden(t, "firewall", strings.Join(got, "\n")+"\n")
}

func rangeText(t ipsec.TrafficSelector) string {
	if !t.Start.IsValid() {
		return "*"
	}
	return t.Start.String() + "-" + t.End.String()
}

func TestHealth(t *testing.T) {
	d := &fakeBackend{v: testView(t, true)}
	get := func(path string) (int, string) {
		r := httptest.NewRecorder()
		metricsHandler(d).ServeHTTP(r, httptest.NewRequest("GET", path, nil))
		return r.Code, r.Body.String()
	}
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("an entitled standby is ready, got %d", code)
	}
	d.v.Node.HA.Synchronised = false
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "without a complete copy") {
		t.Errorf("a standby without a copy is not ready, got %d %s", code, body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("it is healthy all the same, got %d", code)
	}
	code, body := get("/metrics")
	for _, want := range []string{"tandem_owner 0", "tandem_epoch 3", "tandem_takeovers_total 2", "tandem_child_sas 2", `tandem_tunnel_child_sas{tunnel="VPNtest"} 1`} {
		if code != 200 || !strings.Contains(body, want+"\n") {
			t.Errorf("metrics lack %q (%d)", want, code)
		}
	}
	owner := httptest.NewRecorder()
	metricsHandler(&fakeBackend{v: testView(t, false)}).ServeHTTP(owner, httptest.NewRequest("GET", "/metrics", nil))
	if want := `tandem_tunnel_fence_widened{tunnel="VPNtest"} 4` + "\n"; !strings.Contains(owner.Body.String(), want) {
		t.Errorf("metrics lack %q", want)
	}
	d.err = context.DeadlineExceeded
	if code, body := get("/healthz"); code != 503 || !strings.Contains(body, "does not answer") {
		t.Errorf("a loop that hangs is not healthy, got %d %s", code, body)
	}
}

func TestLogReachesWatchersAtDebugLevel(t *testing.T) {
	var file bytes.Buffer
	hub, err := newLogHub(&file, "json", "info")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(hub)
	log.Debug("nobody listens")
	w := hub.watch()
	hub.timestamp = false
	log.Debug("HA send IKE SA add 1/2", "tunnel", "vpn1", "key", key(4, 1))
	hub.name = "vpn2"
	log.Info("other tunnel", "tunnel", "vpn1")
	log.Info("mine", "tunnel", "vpn2", "remote", "192.0.2.10:500")
	hub.name, hub.dst = "", netip.MustParseAddr("192.0.2.10")
	log.Info("by peer", "remote", "192.0.2.10:500")
	log.Info("other peer", "remote", "192.0.2.11:500")
	var got []string
	for len(w.lines) > 0 {
		got = append(got, <-w.lines)
	}
	want := "ike 0:vpn1: HA send IKE SA add 1/2 key=redacted\nike 0:vpn2: mine remote=192.0.2.10:500\nike 0: by peer remote=192.0.2.10:500\n"
	if strings.Join(got, "") != want {
		t.Errorf("watched\n%s", strings.Join(got, ""))
	}
	for range watcherLines + 10 {
		log.Debug("flood", "remote", "192.0.2.10:500")
	}
	if lost := hub.unwatch(w); lost != 10 {
		t.Errorf("%d lines lost", lost)
	}
	hub.close()
	if strings.Contains(file.String(), "HA send") || strings.Count(file.String(), "\n") != 4 {
		t.Errorf("the file has other lines than those of its level:\n%s", file.String())
	}
	for _, line := range strings.Split(strings.TrimSpace(file.String()), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if _, err := newLogHub(io.Discard, "xml", "info"); err == nil {
		t.Error("an unknown format is accepted")
	}
}

func TestNoiseIsLimited(t *testing.T) {
	var n noise
	at := time.Unix(1000, 0)
	let := 0
	for range 1000 {
		if ok, _ := n.allow(at, "same words"); ok {
			let++
		}
	}
	if ok, _ := n.allow(at, "other words"); !ok || let != noiseLimit {
		t.Errorf("%d of 1000 lines", let)
	}
	if ok, withheld := n.allow(at.Add(time.Second), "same words"); !ok || withheld != 1000-noiseLimit {
		t.Errorf("a second later %d are reported withheld", withheld)
	}
}

// What the peer told of its tunnel interface stands beside our own address, and names a
// dialup client's tunnel; without it, what is configured, or nothing.
func TestVirtualInterfaceAddr(t *testing.T) {
	for _, c := range []struct {
		name, own, configured, told, local, remote string
	}{
		{"not told, configured", "1.1.1.1/32", "1.1.1.2", "", "1.1.1.1", "1.1.1.2"},
		{"not told", "1.1.1.2/32", "", "", "1.1.1.2", "0.0.0.0"},
		{"told", "1.1.1.2/32", "", "1.1.1.1", "1.1.1.2", "1.1.1.1"},
		{"told another than configured", "1.1.1.1/32", "1.1.1.2", "172.16.0.1", "1.1.1.1", "172.16.0.1"},
		{"without one of our own", "", "", "1.1.1.1", "0.0.0.0", "1.1.1.1"},
		{"neither", "", "", "", "", ""},
	} {
		v := testView(t, false)
		tun := v.Tunnels["vpn1"]
		if c.own != "" {
			tun.IP = netip.MustParsePrefix(c.own)
		}
		if c.configured != "" {
			tun.RemoteIP = netip.MustParseAddr(c.configured)
		}
		v.Tunnels["vpn1"] = tun
		g := &v.Node.Gateways[2]
		tunID := "198.51.100.2"
		if c.told != "" {
			g.PeerAddr = netip.MustParseAddr(c.told)
			tunID = c.told
		}
		j := v.gatewayJSON(g, false)
		if j.VirtualLocal != c.local || j.VirtualRemote != c.remote || j.TunID != tunID || j.TunID6 != "::198.51.100.2" {
			t.Errorf("%s: %s -> %s, tun_id %s/%s", c.name, j.VirtualLocal, j.VirtualRemote, j.TunID, j.TunID6)
		}
	}
}
