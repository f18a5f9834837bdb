package daemon

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"tandem/cluster/guardian"
	"tandem/internal/config"
)

// Virtual MAC addresses. An interface of auto-virtual-mac-interface has, while this node
// owns, a MAC address that is the same on every member, so that neighbours keep what they
// know; the gratuitous ARP, which comes from that address, tells the switch where it is
// now. It is set on the device itself: a macvlan device beside it would carry the
// addresses under another name, and routes, policies and sockets belong to this one. When
// the ownership ends the device's own MAC address comes back, for with the same one on
// two ports a switch would send the traffic to either. The guardian does that when the
// daemon dies, and a starting daemon when both died.
//
// The layout: 02:54:44:GG:VV:II, locally administered. GG is the lower byte of group-id;
// VV its upper two bits and the number of the virtual cluster (0: there are none) in five;
// II the interface's place among the names of auto-virtual-mac-interface, sorted.
var virtualPrefix = [3]byte{0x02, 0x54, 0x44}

func virtualMAC(group, vcluster, index int) [6]byte {
	return [6]byte{virtualPrefix[0], virtualPrefix[1], virtualPrefix[2], byte(group), byte(group>>8&3<<5 | vcluster&31), byte(index)}
}

func isVirtual(mac net.HardwareAddr) bool { return bytes.HasPrefix(mac, virtualPrefix[:]) }

// virtualOf lists the interfaces of a configuration that have a virtual MAC address.
func virtualOf(c *config.Config) map[string][6]byte {
	if c.HA.Mode != "a-p" {
		return nil
	}
	names := slices.Sorted(slices.Values(c.HA.VirtualMAC))
	out := map[string][6]byte{}
	for i, n := range names {
		vcluster := 0
		if c.HA.VClusterStatus {
			vcluster = c.VClusterOfInterface(n)
		}
		out[n] = virtualMAC(c.HA.GroupID, vcluster, i)
	}
	return out
}

// virtualMACs knows the devices' own MAC addresses. Owned by the event loop.
type virtualMACs struct {
	log     *slog.Logger
	file    string // own, across restarts: a device without a permanent address forgets it
	own     map[string][6]byte
	virtual map[string][6]byte
	lost    map[string]bool // devices that did not take one, until the configuration changes
}

// configure takes a configuration. What an earlier life, or an earlier configuration,
// left behind is undone, unless it is held.
func (v *virtualMACs) configure(c *config.Config, held func(dev string) bool, find func(string) (netlink.Link, error)) {
	old := v.virtual
	v.virtual, v.lost = virtualOf(c), map[string]bool{}
	known := v.load()
	v.own = map[string][6]byte{}
	devices := map[string]bool{}
	for _, m := range []map[string][6]byte{old, v.virtual, known} {
		for dev := range m {
			devices[dev] = true
		}
	}
	for dev := range devices {
		link, err := find(dev)
		if err != nil {
			if mac, ok := known[dev]; ok {
				v.own[dev] = mac
			}
			continue
		}
		now := link.Attrs().HardwareAddr
		switch {
		case len(now) != 6:
			continue
		case !isVirtual(now):
			v.own[dev] = [6]byte(now)
		case known[dev] != [6]byte{}:
			v.own[dev] = known[dev]
		case len(link.Attrs().PermHWAddr) == 6:
			v.own[dev] = [6]byte(link.Attrs().PermHWAddr)
		default:
			mac := [6]byte{0x06}
			_, _ = rand.Read(mac[1:]) // never fails since Go 1.24
			v.own[dev] = mac
			v.log.Warn("nobody knows the device's own MAC address: it gets a new one", "interface", dev, "mac", net.HardwareAddr(mac[:]).String())
		}
		if _, wanted := v.virtual[dev]; isVirtual(now) && (!held(dev) || !wanted) {
			v.set(link, v.own[dev])
		}
	}
	for dev := range v.own {
		if _, ok := v.virtual[dev]; !ok {
			delete(v.own, dev)
		}
	}
	v.save(known)
}

// take gives a device its virtual MAC address, if it is to have one.
func (v *virtualMACs) take(link netlink.Link) {
	dev := link.Attrs().Name
	mac, ok := v.virtual[dev]
	if ok && v.own[dev] != [6]byte{} && !v.lost[dev] {
		v.lost[dev] = !v.set(link, mac)
	}
}

// giveBack gives the devices of some addresses their own ones.
func (v *virtualMACs) giveBack(of []sharedAddr, find func(string) (netlink.Link, error)) {
	for _, s := range of {
		if _, ok := v.virtual[s.dev]; !ok || v.own[s.dev] == [6]byte{} {
			continue
		}
		if link, err := find(s.dev); err == nil {
			v.set(link, v.own[s.dev])
		}
	}
}

// set changes a device's MAC address, and what is remembered of the device.
func (v *virtualMACs) set(link netlink.Link, mac [6]byte) bool {
	a := link.Attrs()
	if bytes.Equal(a.HardwareAddr, mac[:]) {
		return true
	}
	if err := netlink.LinkSetHardwareAddr(link, mac[:]); err != nil {
		v.log.Error("MAC address not set: neighbours follow the gratuitous ARP alone", "interface", a.Name, "mac", net.HardwareAddr(mac[:]).String(), "error", err)
		return false
	}
	a.HardwareAddr = slices.Clone(mac[:])
	return true
}

// told is what the guardian needs to know while some addresses are here.
func (v *virtualMACs) told(of []sharedAddr) (out []guardian.MAC) {
	for _, s := range of {
		x := guardian.MAC{Device: s.dev, Address: v.own[s.dev]}
		if _, ok := v.virtual[s.dev]; ok && x.Address != [6]byte{} && !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// load reads what the devices' own MAC addresses were.
func (v *virtualMACs) load() map[string][6]byte {
	out := map[string][6]byte{}
	text, err := os.ReadFile(v.file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		v.log.Error("MAC addresses not read", "error", err)
	}
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) == 2 {
			if mac, err := net.ParseMAC(w[1]); err == nil && len(mac) == 6 && !isVirtual(mac) {
				out[w[0]] = [6]byte(mac)
			}
		}
	}
	return out
}

// save writes them, before any of them is changed.
func (v *virtualMACs) save(known map[string][6]byte) {
	var lines []string
	same := len(known) == len(v.own)
	for dev, mac := range v.own {
		lines = append(lines, fmt.Sprintf("%s %s\n", dev, net.HardwareAddr(mac[:])))
		same = same && known[dev] == mac
	}
	if same {
		return
	}
	slices.Sort(lines)
	err := os.MkdirAll(filepath.Dir(v.file), 0o700)
	if err == nil {
		err = os.WriteFile(v.file+".new", []byte(strings.Join(lines, "")), 0o600)
	}
	if err == nil {
		err = os.Rename(v.file+".new", v.file)
	}
	if err != nil {
		v.log.Error("MAC addresses not written: should gateway and guardian die together, nobody knows them", "error", err)
	}
}
