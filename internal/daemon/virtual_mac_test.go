package daemon

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tandem/internal/config"
)

func TestVirtualMACLayout(t *testing.T) {
	for _, c := range []struct {
		group, vcluster, index int
		want                   string
	}{
		{0, 0, 0, "02:54:44:00:00:00"},
		{1, 0, 1, "02:54:44:01:00:01"},
		{255, 1, 255, "02:54:44:ff:01:ff"},
		{256, 2, 3, "02:54:44:00:22:03"},
		{1023, 30, 9, "02:54:44:ff:7e:09"},
	} {
		mac := virtualMAC(c.group, c.vcluster, c.index)
		if got := net.HardwareAddr(mac[:]).String(); got != c.want || !isVirtual(mac[:]) {
			t.Errorf("%+v: %s", c, got)
		}
	}
	seen := map[[6]byte]bool{}
	for g := range 1024 {
		for v := range 31 {
			seen[virtualMAC(g, v, 7)] = true
		}
	}
	if len(seen) != 1024*31 {
		t.Errorf("%d addresses for %d virtual clusters", len(seen), 1024*31)
	}
	// The place among the sorted names, whatever their order in the file.
	of := func(names ...string) map[string][6]byte {
		return virtualOf(&config.Config{HA: config.HA{Mode: "a-p", VirtualMAC: names}})
	}
	a, b := of("wan0", "lan0"), of("lan0", "wan0")
	if len(a) != 2 || a["wan0"] != b["wan0"] || a["lan0"] != virtualMAC(0, 0, 0) || a["wan0"] != virtualMAC(0, 0, 1) {
		t.Errorf("%v %v", a, b)
	}
	// The virtual cluster whose addresses the interface has.
	c := mustConfig(t, strings.Replace(vclusterConfig, "set mode a-p", `set mode a-p
    set group-id 7
    set auto-virtual-mac-interface "wan0" "wan1"`, 1))
	if v := virtualOf(c); v["wan0"] != virtualMAC(7, 1, 0) || v["wan1"] != virtualMAC(7, 2, 1) {
		t.Errorf("%v", v)
	}
}

// The virtual MAC address comes with the shared addresses, is what the announcements come
// from and tell, and goes with them; a daemon that finds it left behind gives the device's
// own one back.
func TestVirtualMACComesAndGoes(t *testing.T) {
	inNewNetns(t)
	addVeth(t, "wan0", "far0")
	mac := func() string {
		l, err := netlink.LinkByName("wan0")
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().HardwareAddr.String()
	}
	own, virtual := mac(), "02:54:44:00:00:00"
	c := mustConfig(t, strings.Replace(sharedConfig, "set arps 1", `set auto-virtual-mac-interface "wan0"`, 1))
	file := filepath.Join(t.TempDir(), "state", "mac-addresses")
	start := func(c *config.Config) *scopedAddresses {
		a, err := newScopedAddresses(slog.New(slog.DiscardHandler), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.close)
		a.macs.file = file
		a.configure(c)
		return a
	}
	a := start(c)
	if mac() != own {
		t.Fatal("the virtual MAC address is there before it is owned")
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "wan0 "+own+"\n" {
		t.Fatalf("remembered: %q, %v", text, err)
	}
	arp := listen(t, "far0", unix.ETH_P_ARP)
	a.claim(0, nil)
	if mac() != virtual {
		t.Fatalf("owned, and the MAC address is %s", mac())
	}
	frame := make([]byte, 2048)
	n, _, err := unix.Recvfrom(arp, frame, 0)
	if err != nil || n < 28 {
		t.Fatalf("nothing announced: %v", err)
	}
	if from, says := net.HardwareAddr(frame[6:12]).String(), net.HardwareAddr(frame[22:28]).String(); from != virtual || says != virtual {
		t.Errorf("announced from %s, told %s", from, says)
	}
	a.claim(0, nil) // repaired, as after a link came back
	if mac() != virtual || !strings.Contains(string(mustRead(t, file)), own) {
		t.Error("claimed again, it is forgotten what the device's own one is")
	}
	a.release(0)
	if mac() != own {
		t.Fatalf("released, and the MAC address is %s", mac())
	}
	// Gateway and guardian die together.
	a.claim(0, nil)
	a.sets[0].quiet()
	a = start(c)
	if mac() != own {
		t.Fatalf("what was left behind stays: %s", mac())
	}
	// A reload that takes the interface from the list, and one that puts it back.
	a.claim(0, nil)
	a.configure(mustConfig(t, sharedConfig))
	if mac() != own {
		t.Errorf("no longer configured, and the MAC address is %s", mac())
	}
	a.configure(c)
	if mac() != virtual {
		t.Errorf("configured while it is owned, and the MAC address is %s", mac())
	}
	a.release(0)
	// Nobody remembers: any other one than the virtual one.
	a.claim(0, nil)
	a.sets[0].quiet()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	start(c)
	if m := mac(); m == virtual || !strings.HasPrefix(m, "06:") {
		t.Errorf("nobody knows, and the MAC address is %s", m)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
