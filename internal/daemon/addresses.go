package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tandem/internal/config"
)

// sharedAddr is an address that moves with the ownership.
type sharedAddr struct {
	dev    string
	prefix netip.Prefix
}

// reassertAfter is longer than it takes the other node to take over and announce itself.
const reassertAfter = 100 * time.Millisecond

// addresses puts the shared addresses on this node, announces them, and takes
// them away. Its methods are called by the event loop; the repetitions of the
// announcement run beside it.
type addresses struct {
	log      *slog.Logger
	vcluster int // whose they are; 0: all
	shared   []sharedAddr
	stay     []sharedAddr // addresses that do not move
	arps     int
	interval time.Duration
	link     func(dev string) (netlink.Link, error)
	foreign  map[sharedAddr]bool // were there before us: a standalone gateway leaves them
	held     bool
	macs     *virtualMACs
	tell     func([]sharedAddr) // who takes them away should this process die; nil: nobody
	stop     chan struct{}
	wg       sync.WaitGroup

	closing sync.WaitGroup // of packet sockets
}

func newAddresses(log *slog.Logger) (*addresses, error) {
	s, err := packetSocket()
	if err != nil {
		return nil, fmt.Errorf("packet socket for address announcements: %w", err)
	}
	_ = unix.Close(s) // it can be had
	return &addresses{log: log, link: netlink.LinkByName, foreign: map[sharedAddr]bool{}, macs: &virtualMACs{log: log}}, nil
}

// packetSocket sends only: of protocol 0 it receives nothing. It is open for no
// longer than an announcement, because the kernel takes up to 20 ms to close one,
// and would while this process is dying.
func packetSocket() (int, error) {
	return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
}

// sharedOf lists the addresses of the configuration that move: those of every
// interface that is not a tunnel, or those of a virtual cluster.
func sharedOf(c *config.Config, vcluster int) []sharedAddr {
	tunnels := map[string]bool{}
	for i := range c.Phase1 {
		tunnels[c.Phase1[i].Name] = true
	}
	var out []sharedAddr
	for i := range c.Interfaces {
		if in := &c.Interfaces[i]; !tunnels[in.Name] && (vcluster == 0 || c.VClusterOfInterface(in.Name) == vcluster) {
			for _, p := range in.IP {
				out = append(out, sharedAddr{in.Name, p})
			}
		}
	}
	return out
}

// configure takes the addresses of a configuration. A member of a pair removes
// what an earlier life left behind; a standalone gateway leaves alone what it finds.
func (a *addresses) configure(c *config.Config) {
	next := sharedOf(c, a.vcluster)
	for _, old := range a.shared {
		if !containsAddr(next, old) {
			a.remove(old)
		}
	}
	for _, s := range next {
		if containsAddr(a.shared, s) {
			continue
		}
		present := hasAddr(s)
		if c.HA.Mode == "a-p" {
			if present && !a.held {
				a.remove(s)
			}
		} else if present {
			a.foreign[s] = true
		}
	}
	a.shared, a.arps, a.interval = next, c.HA.ARPs, c.HA.ARPsInterval
	a.stay = stayingOf(c)
	if a.held {
		a.claim(nil)
	}
}

func containsAddr(all []sharedAddr, s sharedAddr) bool {
	for _, x := range all {
		if x == s {
			return true
		}
	}
	return false
}

func hasAddr(s sharedAddr) bool {
	link, err := netlink.LinkByName(s.dev)
	if err != nil {
		return false
	}
	all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	for _, x := range all {
		if ip, ok := netip.AddrFromSlice(x.IP); ok && ip.Unmap() == s.prefix.Addr() {
			return true
		}
	}
	return false
}

func nlAddr(p netip.Prefix) *netlink.Addr {
	addr, _ := netlink.ParseAddr(p.String()) // a valid prefix always parses
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // usable at once: the old owner is silent or gone
	}
	return addr
}

// claim puts every shared address on its interface, calls ready (unless nil) for what
// else has to be there, and then announces them all; the repetitions follow. What one
// announcement draws here needs the others' networks: before those are there the
// kernel would drop it for want of a route. Called again it repairs what the kernel
// dropped.
func (a *addresses) claim(ready func()) {
	a.held = true
	if a.tell != nil {
		a.tell(a.shared)
	}
	links := make([]netlink.Link, len(a.shared))
	for i, s := range a.shared {
		link, err := a.link(s.dev)
		if err != nil {
			a.log.Error("shared address: no such interface", "interface", s.dev, "address", s.prefix.String(), "error", err)
			continue
		}
		links[i] = link
		a.macs.take(link)
		if err := netlink.AddrReplace(link, nlAddr(s.prefix)); err != nil {
			a.log.Error("shared address not added", "interface", s.dev, "address", s.prefix.String(), "error", err)
		}
	}
	if ready != nil {
		ready()
	}
	for i, s := range a.shared {
		if links[i] != nil {
			a.announce(links[i], s.prefix.Addr())
		}
	}
	a.announceStaying()
	a.repeat()
}

// announceStaying tells neighbours of the addresses that stay on this node that they have
// another MAC address now: where a virtual one comes or goes.
func (a *addresses) announceStaying() {
	for _, s := range a.stay {
		if _, ok := a.macs.virtual[s.dev]; !ok || !slices.ContainsFunc(a.shared, func(x sharedAddr) bool { return x.dev == s.dev }) {
			continue
		}
		if link, err := a.link(s.dev); err == nil {
			a.announce(link, s.prefix.Addr())
		}
	}
}

// stayingOf lists the addresses of the configuration that stay on this node.
func stayingOf(c *config.Config) (out []sharedAddr) {
	for i := range c.Interfaces {
		for _, p := range c.Interfaces[i].ManagementIP {
			out = append(out, sharedAddr{c.Interfaces[i].Name, p})
		}
	}
	return out
}

// reassert announces the addresses again, and goes on with the repetitions, a
// moment after whoever may have taken over at the same time as this node was left
// alone: the last announcement counts.
func (a *addresses) reassert() {
	if a.held {
		a.announceLater(reassertAfter, a.arps)
	}
}

// release takes the shared addresses away.
func (a *addresses) release() {
	a.quiet()
	a.held = false
	for _, s := range a.shared {
		if !a.foreign[s] {
			a.remove(s)
		}
	}
	a.macs.giveBack(a.shared, a.link)
	a.announceStaying()
	if a.tell != nil {
		a.tell(nil)
	}
}

func (a *addresses) remove(s sharedAddr) {
	link, err := a.link(s.dev)
	if err != nil {
		return // the interface is gone, and the address with it
	}
	if err := netlink.AddrDel(link, nlAddr(s.prefix)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		a.log.Error("shared address not removed", "interface", s.dev, "address", s.prefix.String(), "error", err)
	}
}

// repeat announces again, arps-1 times every arps-interval, until quiet.
func (a *addresses) repeat() { a.announceLater(a.interval, a.arps-1) }

// repetition says when to announce again.
type repetition struct {
	due   time.Time // the next
	left  int
	every time.Duration
}

// fired says whether to announce at this moment, at which the timer fired, and how
// long to wait after it. An announcement that comes late waits once more: this
// process stood still, another may own meanwhile, and before the event loop has
// heard of that nothing shall draw the traffic here.
func (r *repetition) fired(now time.Time) (announce bool, wait time.Duration) {
	announce, wait = true, r.every
	if now.Sub(r.due) >= reassertAfter {
		announce, wait = false, reassertAfter
	} else {
		r.left--
	}
	r.due = now.Add(wait)
	return announce, wait
}

// announceLater announces n times, first after a while, then every arps-interval.
func (a *addresses) announceLater(first time.Duration, n int) {
	a.quiet()
	stop := make(chan struct{})
	a.stop = stop
	shared, every := append([]sharedAddr(nil), a.shared...), a.interval
	if n <= 0 || first <= 0 || every <= 0 {
		return
	}
	a.wg.Go(func() {
		r := repetition{time.Now().Add(first), n, every}
		t := time.NewTimer(first)
		defer t.Stop()
		for r.left > 0 {
			select {
			case <-stop:
				return
			case <-t.C:
			}
			announce, wait := r.fired(time.Now()) // the timer tells when it was due
			t.Reset(wait)
			if !announce {
				continue
			}
			for _, s := range shared {
				if link, err := netlink.LinkByName(s.dev); err == nil {
					a.announce(link, s.prefix.Addr())
				}
			}
		}
	})
}

// quiet ends the repetitions; none leaves after it returns.
func (a *addresses) quiet() {
	if a.stop != nil {
		close(a.stop)
		a.stop = nil
		a.wg.Wait()
	}
}

func (a *addresses) close() {
	a.quiet()
	a.closing.Wait()
}

// announce sends what makes neighbours update their caches: for IPv4 a
// gratuitous ARP request and reply (RFC 5227 §3; some stacks heed only one of
// them), for IPv6 an unsolicited neighbour advertisement (RFC 4861 §7.2.6).
func (a *addresses) announce(link netlink.Link, ip netip.Addr) {
	mac := link.Attrs().HardwareAddr
	if len(mac) != 6 {
		return // nobody to announce to
	}
	frames := [][]byte{neighbourAdvertisement([6]byte(mac), ip)}
	if ip.Is4() {
		frames = [][]byte{gratuitousARP([6]byte(mac), ip, 1), gratuitousARP([6]byte(mac), ip, 2)}
	}
	sock, err := packetSocket()
	if err != nil {
		a.log.Warn("announcement not sent", "interface", link.Attrs().Name, "address", ip.String(), "error", err)
		return
	}
	defer a.closing.Go(func() { _ = unix.Close(sock) })
	for _, f := range frames {
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6}
		copy(to.Addr[:], f[:6])
		to.Protocol = uint16(f[12]) | uint16(f[13])<<8 // network byte order
		if err := unix.Sendto(sock, f, 0, to); err != nil {
			a.log.Warn("announcement not sent", "interface", link.Attrs().Name, "address", ip.String(), "error", err)
		}
	}
}

// gratuitousARP is an Ethernet frame; op is 1 (request) or 2 (reply).
func gratuitousARP(mac [6]byte, ip netip.Addr, op byte) []byte {
	f := make([]byte, 0, 60)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac[:]...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, op)
	f = append(f, mac[:]...)
	f = append(f, ip.AsSlice()...)
	if op == 1 {
		f = append(f, 0, 0, 0, 0, 0, 0)
	} else {
		f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	}
	f = append(f, ip.AsSlice()...)
	return append(f, make([]byte, 60-len(f))...) // shortest Ethernet frame
}

// neighbourAdvertisement is an Ethernet frame to all nodes: override set,
// solicited not, router set, with the target link-layer address option.
func neighbourAdvertisement(mac [6]byte, ip netip.Addr) []byte {
	if !ip.Is6() {
		return nil
	}
	icmp := []byte{136, 0, 0, 0, 0xa0, 0, 0, 0}
	icmp = append(icmp, ip.AsSlice()...)
	icmp = append(icmp, 2, 1)
	icmp = append(icmp, mac[:]...)
	all := netip.MustParseAddr("ff02::1").AsSlice()
	sum := uint32(len(icmp)) + 58
	for _, b := range [][]byte{ip.AsSlice(), all, icmp} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	icmp[2], icmp[3] = byte(^sum>>8), byte(^sum)
	f := []byte{0x33, 0x33, 0, 0, 0, 1}
	f = append(f, mac[:]...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	f = append(f, ip.AsSlice()...)
	f = append(f, all...)
	return append(f, icmp...)
}
