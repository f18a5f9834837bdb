package daemon

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"tandem/internal/config"
)

func TestEchoMessages(t *testing.T) {
	id := probeID{nonce: 0x1122334455667788, server: 3, seq: 0xfffe}
	for _, v6 := range []bool{false, true} {
		b := echoRequest(id, v6)
		if _, ok := echoReply(b, id.nonce, v6); ok {
			t.Error("a request taken for an answer")
		}
		answer := bytes.Clone(b)
		answer[0] = ack4
		if v6 {
			answer[0] = ack6
		} else {
			answer[2], answer[3] = 0, 0
			sum := ^onesSum(answer)
			answer[2], answer[3] = byte(sum>>8), byte(sum)
		}
		if got, ok := echoReply(answer, id.nonce, v6); !ok || got != id {
			t.Errorf("%+v, %v", got, ok)
		}
		if _, ok := echoReply(answer, id.nonce+1, v6); ok {
			t.Error("another process's answer is taken")
		}
		if _, ok := echoReply(answer, id.nonce, !v6); ok {
			t.Error("the other family's answer is taken")
		}
		if _, ok := echoReply(append(answer, 0), id.nonce, v6); ok {
			t.Error("a longer answer is taken")
		}
		if !v6 {
			answer[20] ^= 1
			if _, ok := echoReply(answer, id.nonce, v6); ok {
				t.Error("an answer with a wrong checksum is taken")
			}
		}
	}
}

func FuzzEchoReply(f *testing.F) {
	f.Add(echoRequest(probeID{1, 2, 3}, false), false)
	f.Add(echoRequest(probeID{1, 2, 3}, true), true)
	f.Add([]byte{0, 0, 0xff, 0xff}, false)
	f.Add(append([]byte{129, 0, 0, 0, 0, 1}, make([]byte, 18)...), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		id, ok := echoReply(b, 1, v6)
		if ok && (id.nonce != 1 || len(b) != echoLength) {
			t.Errorf("%+v from %d bytes", id, len(b))
		}
	})
}

// A server in another namespace behind a veth answers, IPv4 and IPv6; when its address is
// gone the link monitor fails, comes back with it, and stops with this node's address,
// with what it knew.
func TestPinger(t *testing.T) {
	inNewNetns(t)
	addVeth(t, "wan0", "far0")
	here, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	far := farNetns(t, "far0")
	addr := func(h *netlink.Handle, dev, p string, on bool) {
		t.Helper()
		l, err := h.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		if on {
			err = h.AddrReplace(l, nlAddr(netip.MustParsePrefix(p)))
		} else {
			err = h.AddrDel(l, nlAddr(netip.MustParsePrefix(p)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	addr(far, "far0", "192.0.2.254/24", true)
	addr(far, "far0", "2001:db8::fe/64", true)
	changes := make(chan struct{}, 100)
	p := newPinger(slog.New(slog.DiscardHandler), func() { changes <- struct{}{} })
	t.Cleanup(p.close)
	four := config.LinkMonitor{Name: "four", SrcIntf: "wan0", Servers: []netip.Addr{netip.MustParseAddr("192.0.2.254")},
		Interval: 20 * time.Millisecond, ProbeTimeout: 20 * time.Millisecond, FailTime: 3, RecoveryTime: 3, HAPriority: 5}
	six := four
	six.Name, six.Servers, six.HAPriority = "six", []netip.Addr{netip.MustParseAddr("2001:db8::fe")}, 7
	off := four
	off.Name, off.Disabled, off.Servers = "off", true, []netip.Addr{netip.MustParseAddr("192.0.2.99")}
	d := &Daemon{links: newLinks(), addresses: &scopedAddresses{}}
	update := func() bool {
		d.links.refresh()
		return p.update(time.Now(), []config.LinkMonitor{four, six, off}, d.canProbe)
	}
	penalty := func(want, stale int) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			sum, old := p.penalty([]string{"wan0"})
			if sum == want && old == stale {
				return
			}
			select {
			case <-changes:
			case <-deadline:
				t.Fatalf("penalty %d, stale %d; want %d, %d", sum, old, want, stale)
			}
		}
	}
	update()
	for _, s := range p.servers() {
		if s.Running {
			t.Errorf("%s is probed without an address", s.Monitor)
		}
	}
	addr(here, "wan0", "192.0.2.1/24", true)
	addr(here, "wan0", "2001:db8::1/64", true)
	if !update() || update() {
		t.Error("it began, and nothing changed after")
	}
	if got := p.servers(); len(got) != 2 || !got[0].Running || !got[1].Running || got[0].Since.IsZero() {
		t.Fatalf("%+v", got)
	}
	penalty(0, 0)
	addr(far, "far0", "192.0.2.254/24", false)
	penalty(5, 0)
	if sum, _ := p.penalty([]string{"lan0"}); sum != 0 {
		t.Error("another interface's")
	}
	addr(far, "far0", "2001:db8::fe/64", false)
	penalty(12, 0)
	addr(far, "far0", "192.0.2.254/24", true)
	penalty(7, 0)
	addr(here, "wan0", "2001:db8::1/64", false)
	update()
	penalty(7, 7)
	addr(here, "wan0", "2001:db8::1/64", true)
	update()
	penalty(7, 0) // trusted at first, and found dead again
}

// farNetns moves a device into a namespace of its own, where it is up.
func farNetns(t *testing.T, dev string) *netlink.Handle {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := netns.New()
	if err == nil {
		err = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644)
	}
	if err == nil {
		err = netns.Set(here)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	l, err := netlink.LinkByName(dev)
	if err == nil {
		err = netlink.LinkSetNsFd(l, int(there))
	}
	if err != nil {
		t.Fatal(err)
	}
	h, err := netlink.NewHandleAt(there)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	if l, err = h.LinkByName(dev); err == nil {
		err = h.LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}
