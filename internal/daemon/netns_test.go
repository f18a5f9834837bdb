package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNewNetns moves the test's goroutine into a network namespace of its own. Its
// thread is never given back, and the namespace ends with it.
func inNewNetns(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("a network namespace is needed (run as root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	for _, path := range []string{"ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte("0"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func addVeth(t *testing.T, a, b string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a
	v := netlink.NewVeth(attrs)
	v.PeerName = b
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{a, b} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := netlink.LinkByName(a)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// listen opens a packet socket that sees what arrives at a device.
func listen(t *testing.T, dev string, proto uint16) int {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	order := proto<<8 | proto>>8
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(order))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s) })
	if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: order, Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	return s
}

// wantFrame reads until a frame passes, or fails after the socket's time limit.
func wantFrame(t *testing.T, s int, what string, is func([]byte) bool) {
	t.Helper()
	buf := make([]byte, 2048)
	for range 1000 {
		n, _, err := unix.Recvfrom(s, buf, 0)
		if err != nil {
			break
		}
		if is(buf[:n]) {
			return
		}
	}
	t.Errorf("%s: no such frame arrived", what)
}

const sharedConfig = `
config system ha
    set mode a-p
    set group-name "x"
    set password "y"
    set hbdev "hb0" 1
    set arps 1
end
config system interface
    edit "wan0"
        set ip 192.0.2.1/24
        config ipv6
            set ip6-address 2001:db8:1::1/64
        end
    next
end
config router static
    edit 1
        set dst 198.51.100.0/24
        set gateway 192.0.2.254
        set device "wan0"
    next
end
`

func TestSharedAddressesMove(t *testing.T) {
	inNewNetns(t)
	addVeth(t, "wan0", "far0")
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	a, err := newAddresses(log)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	c := mustConfig(t, sharedConfig)
	v4, v6 := sharedAddr{"wan0", netip.MustParsePrefix("192.0.2.1/24")}, sharedAddr{"wan0", netip.MustParsePrefix("2001:db8:1::1/64")}

	link, _ := netlink.LinkByName("wan0")
	if err := netlink.AddrAdd(link, nlAddr(v4.prefix)); err != nil {
		t.Fatal(err)
	}
	a.configure(c)
	if hasAddr(v4) {
		t.Error("a shared address of an earlier life is still there: the other node may hold it")
	}

	arp, nd := listen(t, "far0", unix.ETH_P_ARP), listen(t, "far0", unix.ETH_P_IPV6)
	silent := false
	a.claim(func() {
		if !hasAddr(v4) || !hasAddr(v6) {
			t.Fatalf("claimed, but not there: %s", out.String())
		}
		// Nothing has been announced before all of them were there.
		_, _, err := unix.Recvfrom(arp, make([]byte, 2048), unix.MSG_DONTWAIT)
		silent = err == unix.EAGAIN
	})
	if !silent {
		t.Error("announced before every address was there")
	}
	addrs, _ := netlink.AddrList(link, netlink.FAMILY_V6)
	for _, x := range addrs {
		if x.IP.String() == "2001:db8:1::1" && x.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Error("the IPv6 address waits for duplicate address detection")
		}
	}
	request := gratuitousARP([6]byte(link.Attrs().HardwareAddr), v4.prefix.Addr(), 1)
	reply := gratuitousARP([6]byte(link.Attrs().HardwareAddr), v4.prefix.Addr(), 2)
	wantFrame(t, arp, "gratuitous ARP request", func(f []byte) bool { return bytes.Equal(f, request) })
	wantFrame(t, arp, "gratuitous ARP reply", func(f []byte) bool { return bytes.Equal(f, reply) })
	na := neighbourAdvertisement([6]byte(link.Attrs().HardwareAddr), v6.prefix.Addr())
	wantFrame(t, nd, "unsolicited neighbour advertisement", func(f []byte) bool { return bytes.Equal(f, na) })

	a.claim(nil) // again, as after a link came back
	a.release()
	if hasAddr(v4) || hasAddr(v6) {
		t.Error("released, but still there")
	}
	if strings.Contains(out.String(), "ERROR") {
		t.Error(out.String())
	}
}

func TestStandaloneLeavesForeignAddresses(t *testing.T) {
	inNewNetns(t)
	link := addVeth(t, "wan0", "far0")
	s := sharedAddr{"wan0", netip.MustParsePrefix("192.0.2.1/24")}
	if err := netlink.AddrAdd(link, nlAddr(s.prefix)); err != nil {
		t.Fatal(err)
	}
	a, err := newAddresses(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	a.configure(mustConfig(t, strings.Replace(sharedConfig, "set mode a-p", "set mode standalone", 1)))
	a.claim(nil)
	a.release()
	if !hasAddr(s) {
		t.Error("an address that was there before was taken away")
	}
}

func ourRoutes(t *testing.T) []netlink.Route {
	t.Helper()
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func mustRoutes(t *testing.T) *routes {
	t.Helper()
	r, err := newRoutes(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func TestRoutes(t *testing.T) {
	inNewNetns(t)
	link := addVeth(t, "wan0", "far0")
	c := mustConfig(t, sharedConfig)
	r := mustRoutes(t)
	r.setStatic(c.Routes)
	if got := ourRoutes(t); len(got) != 0 || !r.pending[c.Routes[0]] {
		t.Errorf("the gateway cannot be reached yet, but routes are %v", got)
	}
	if err := netlink.AddrAdd(link, nlAddr(netip.MustParsePrefix("192.0.2.1/24"))); err != nil {
		t.Fatal(err)
	}
	r.apply(nil)
	if got := ourRoutes(t); len(got) != 1 || got[0].Gw.String() != "192.0.2.254" {
		t.Fatalf("routes are %v", got)
	}
	six := netip.MustParsePrefix("2001:db8:5::/48")
	r.add("wan0", netip.MustParsePrefix("10.9.0.0/16"))
	r.add("wan0", six)
	r.add("wan0", six) // twice is no fault
	r.settle()
	if got := ourRoutes(t); len(got) != 3 {
		t.Errorf("routes are %v", got)
	}
	r.remove("wan0", six)
	r.settle()
	r.remove("wan0", six)
	r.settle()
	if got := ourRoutes(t); len(got) != 2 {
		t.Errorf("routes are %v", got)
	}
	r.add("gone0", six) // of a tunnel that ends before its turn
	r.add("wan0", six)
	r.remove("wan0", six)
	r.settle()
	if got := ourRoutes(t); len(got) != 2 {
		t.Errorf("routes are %v", got)
	}
	mustRoutes(t).clean() // as a restarted daemon does
	if got := ourRoutes(t); len(got) != 0 {
		t.Errorf("left over: %v", got)
	}
}

func TestFirewallIsInstalledAndReplaced(t *testing.T) {
	inNewNetns(t)
	rules := []fwRule{{in: "vpn1", out: "lan0", accept: true}, {in: "vpn1"}}
	for range 2 {
		if err := applyFirewall(rules); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: firewallTable, Family: nftables.TableFamilyINet}
	got, err := conn.GetRules(table, &nftables.Chain{Name: "forward", Table: table})
	if err != nil || len(got) != 3 {
		t.Fatalf("%d rules stand (%v): the connections' own, and two", len(got), err)
	}
	if err := applyFirewall(nil); err != nil {
		t.Fatal(err)
	}
	if err := removeFirewall(); err != nil {
		t.Errorf("removing it twice: %v", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil || len(tables) != 0 {
		t.Errorf("tables left: %v, %v", tables, err)
	}
}

func TestLinksAreCounted(t *testing.T) {
	inNewNetns(t)
	addVeth(t, "wan0", "far0")
	c := mustConfig(t, strings.Replace(sharedConfig, `set arps 1`, `set monitor "wan0" "lan0"`, 1))
	l := newLinks()
	want := func(what string, f func() bool) { // the kernel tells of a carrier with a delay
		t.Helper()
		tick, deadline := time.NewTicker(5*time.Millisecond), time.After(10*time.Second)
		defer tick.Stop()
		for !f() {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatal(what)
			}
		}
	}
	count := func(n int) func() bool {
		return func() bool { l.refresh(); return l.monitorsUp(time.Now(), c.HA.Monitor) == n }
	}
	want("wan0 works, lan0 does not exist", count(1))
	far, _ := netlink.LinkByName("far0")
	if err := netlink.LinkSetDown(far); err != nil {
		t.Fatal(err)
	}
	want("wan0 without a carrier does not work", count(0))
	if err := netlink.LinkSetUp(far); err != nil {
		t.Fatal(err)
	}
	want("an interface that came back is noticed", func() bool { return slices.Contains(l.refresh(), "wan0") })
}

func TestAdminSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "admin.sock")
	hub, _ := newLogHub(&bytes.Buffer{}, "text", "info")
	d := &fakeBackend{v: testView(t, false), hub: hub}
	stop, err := serveAdmin(path, d)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket mode %v, %v: root alone may ask", st.Mode(), err)
	}
	if _, err := serveAdmin(path, d); err == nil || !strings.Contains(err.Error(), "another tandem answers") {
		t.Errorf("a second daemon at the same socket: %v", err)
	}
	ask := func(ctx context.Context, out *syncBuffer, words ...string) (int, string) {
		var stderr bytes.Buffer
		code, err := Execute(ctx, dial(t, path), request(words), out, &stderr)
		if err != nil {
			t.Errorf("%v: %v", words, err)
		}
		return code, stderr.String()
	}
	var out syncBuffer
	if code, _ := ask(t.Context(), &out, "get", "vpn", "ipsec", "tunnel", "summary"); code != 0 || !strings.Contains(out.String(), "'VPNtest'") {
		t.Errorf("summary: %d %s", code, out.String())
	}
	if code, text := ask(t.Context(), &out, "get", "vpm"); code != exitUsage || !strings.Contains(text, `did you mean "vpn"`) {
		t.Errorf("a slip: %d %s", code, text)
	}

	ctx, cancel := context.WithCancel(t.Context())
	live := &syncBuffer{notify: make(chan struct{}, 1)}
	ended := make(chan int)
	go func() {
		code, _ := ask(ctx, live, "diagnose", "debug", "application", "ike", "-1")
		ended <- code
	}()
	for {
		slog.New(hub).Debug("live line", "tunnel", "vpn1")
		runtime.Gosched()
		select {
		case <-live.notify:
		default:
			continue
		}
		break
	}
	cancel()
	if code := <-ended; code != 0 || !strings.Contains(live.String(), "ike 0:vpn1: live line") {
		t.Errorf("live log: %d %s", code, live.String())
	}
	stop()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}
