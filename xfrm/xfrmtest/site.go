package xfrmtest

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/internal/needs"
	"tandem/xfrm"
)

// Factory makes a data plane in the network namespace of the calling thread.
type Factory func(h xfrm.Handler) (xfrm.DataPlane, error)

const (
	patience = 10 * time.Second // for things that must happen
	mtu      = 1500
)

// site is one end: a namespace with a thread of its own, which also is the one
// goroutine that calls the data plane.
type site struct {
	t     testing.TB
	name  string
	work  chan func()
	ended chan struct{}
	fd    int // of the namespace

	pair       *pair
	plane      xfrm.DataPlane
	wan4, wan6 netip.Addr
	lan4, lan6 netip.Addr

	mu      sync.Mutex
	changed *sync.Cond
	events  []xfrm.Event
	ike     []xfrm.IKEDatagram
	strays  []xfrm.Stray
	answer  func(xfrm.Bound) (xfrm.Bound, bool) // nil: nobody answers
	answers chan []xfrm.Bound
	senders uint32 // IDs given to IV counters
}

// RequireRoot asks for what data planes are tested with.
func RequireRoot(t testing.TB) {
	t.Helper()
	needs.Root(t)
	needs.File(t, "/dev/net/tun")
}

func newSite(t testing.TB, name string, n byte) *site {
	s := &site{
		t: t, name: name, work: make(chan func()), ended: make(chan struct{}),
		wan4: netip.AddrFrom4([4]byte{10, 99, 0, n}), lan4: netip.AddrFrom4([4]byte{10, n, 0, 1}),
		wan6: netip.MustParseAddr(fmt.Sprintf("fd99::%d", n)), lan6: netip.MustParseAddr(fmt.Sprintf("fd0%d::1", n)),
	}
	s.changed = sync.NewCond(&s.mu)
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread dies with its namespace
		defer close(s.ended)
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ready <- err
		for f := range s.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() {
		close(s.work)
		<-s.ended
		unix.Close(s.fd)
	})
	return s
}

// do runs f on the site's thread.
func (s *site) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

func (s *site) must(what string, f func() error) {
	s.t.Helper()
	var err error
	s.do(func() { err = f() })
	if err != nil {
		s.t.Fatalf("site %s: %s: %v", s.name, what, err)
	}
}

// pair is two sites and the wire between them.
type pair struct {
	t    testing.TB
	a, b *site
}

func newPair(t testing.TB, make Factory) *pair { return newPairOf(t, make, single, false) }

// newPairOf says what the wire is like, and whether the data planes hand up strays.
func newPairOf(t testing.TB, make Factory, w Wire, strays bool) *pair {
	p := &pair{t: t, a: newSite(t, "A", 1), b: newSite(t, "B", 2)}
	p.a.must("wire", func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "wan"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "wan", PeerNamespace: netlink.NsFd(p.b.fd)}); err != nil {
			return err
		}
		return nil
	})
	p.a.pair, p.b.pair = p, p
	for _, s := range []*site{p.a, p.b} {
		s.must("addresses", func() error {
			if err := up("lo"); err != nil {
				return err
			}
			return up("wan", netip.PrefixFrom(s.wan4, 24), netip.PrefixFrom(s.wan6, 64))
		})
		s.settled(s.wan4, s.wan6)
		s.must("wire", w.setUp)
		h := xfrm.Handler{IKE: s.onIKE, Events: s.onEvents}
		if strays {
			h.Stray = s.onStray
		}
		s.must("data plane", func() (err error) {
			s.plane, err = make(h)
			return err
		})
		t.Cleanup(func() {
			s.mu.Lock()
			s.answer = nil
			s.mu.Unlock()
			s.do(func() {
				if err := s.plane.Close(); err != nil {
					t.Errorf("site %s: Close: %v", s.name, err)
				}
			})
		})
	}
	return p
}

func up(name string, addrs ...netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, a := range addrs {
		ad := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			ad.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, ad); err != nil {
			return fmt.Errorf("%s: %v: %w", name, a, err)
		}
	}
	return nil
}

// tunnel adds vpn1 with inner addresses and a route to the other site.
func (p *pair) tunnel(tn xfrm.Tunnel) {
	p.t.Helper()
	if tn.Name == "" {
		tn.Name = "vpn1"
	}
	if tn.MTU == 0 {
		tn.MTU = mtu
	}
	for _, s := range []*site{p.a, p.b} {
		far := p.other(s)
		s.must("tunnel", func() error {
			if err := s.plane.AddTunnel(tn); err != nil {
				return err
			}
			if err := up(tn.Name, netip.PrefixFrom(s.lan4, 32), netip.PrefixFrom(s.lan6, 128)); err != nil {
				return err
			}
			l, err := netlink.LinkByName(tn.Name)
			if err != nil {
				return err
			}
			if l.Attrs().MTU != tn.MTU {
				return fmt.Errorf("MTU is %d", l.Attrs().MTU)
			}
			for _, n := range []netip.Prefix{netip.PrefixFrom(far.lan4, 24).Masked(), netip.PrefixFrom(far.lan6, 64).Masked()} {
				src := s.lan4
				if n.Addr().Is6() {
					src = s.lan6
				}
				r := &netlink.Route{LinkIndex: l.Attrs().Index, Src: src.AsSlice(),
					Dst: &net.IPNet{IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen())}}
				if err := netlink.RouteAdd(r); err != nil {
					return fmt.Errorf("route %v: %w", n, err)
				}
			}
			return nil
		})
		s.settled(s.lan4, s.lan6)
	}
}

// settled waits until the kernel answers for an address: for IPv6 it sets up the
// local route at its leisure.
func (s *site) settled(as ...netip.Addr) {
	s.t.Helper()
	for _, a := range as {
		eventually(s.t, fmt.Sprintf("%v is local", a), func() (ok bool) {
			s.do(func() {
				rs, err := netlink.RouteGet(a.AsSlice())
				ok = err == nil && len(rs) == 1 && rs[0].Type == unix.RTN_LOCAL
			})
			return ok
		})
	}
}

func (p *pair) other(s *site) *site {
	if s == p.a {
		return p.b
	}
	return p.a
}

func (s *site) onIKE(d xfrm.IKEDatagram) {
	s.mu.Lock()
	s.ike = append(s.ike, d)
	s.mu.Unlock()
	s.changed.Broadcast()
}

func (s *site) onStray(x xfrm.Stray) {
	x.Packet = bytes.Clone(x.Packet)
	s.mu.Lock()
	s.strays = append(s.strays, x)
	s.mu.Unlock()
	s.changed.Broadcast()
}

func (s *site) onEvents(l []xfrm.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, l...)
	s.changed.Broadcast()
	if s.answer == nil {
		return
	}
	var bs []xfrm.Bound
	for _, e := range l {
		if w, ok := e.(xfrm.BoundWanted); ok {
			if b, ok := s.answer(w.Bound); ok {
				bs = append(bs, b)
			}
		}
	}
	if len(bs) > 0 {
		// The handler must not call back; the site's thread does, in order.
		s.queueBounds(bs)
	}
}

// queueBounds answers in the order of questions; s.mu is held.
func (s *site) queueBounds(bs []xfrm.Bound) {
	if s.answers == nil {
		s.answers = make(chan []xfrm.Bound, 4096)
		go func(c chan []xfrm.Bound) {
			for b := range c {
				select {
				case s.work <- func() { s.plane.SetBounds(b) }:
				case <-s.ended:
					return
				}
			}
		}(s.answers)
	}
	s.answers <- bs
}

// agree answers every question with what was asked, as a node does whose standby
// acknowledges at once.
func (s *site) agree() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = func(b xfrm.Bound) (xfrm.Bound, bool) { return b, true }
}

func (s *site) stopAnswering() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = nil
}

// wait returns when ok holds for what was reported so far.
func (s *site) wait(what string, ok func() bool) {
	s.t.Helper()
	expired := time.AfterFunc(patience, s.changed.Broadcast)
	defer expired.Stop()
	end := time.Now().Add(patience)
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok() {
		if time.Now().After(end) {
			s.t.Fatalf("site %s: no %s; events %+v", s.name, what, s.events)
		}
		s.changed.Wait()
	}
}

// find returns the first event of one type since from for which ok holds.
func find[E xfrm.Event](l []xfrm.Event, ok func(E) bool) (E, bool) {
	for _, e := range l {
		if e, is := e.(E); is && (ok == nil || ok(e)) {
			return e, true
		}
	}
	var none E
	return none, false
}

func waitEvent[E xfrm.Event](s *site, what string, ok func(E) bool) (e E) {
	s.t.Helper()
	s.wait(what, func() (found bool) {
		e, found = find(s.events, ok)
		return found
	})
	return e
}

// dump says where the packets went, for a failed test.
func (p *pair) dump() string {
	var b strings.Builder
	for _, s := range []*site{p.a, p.b} {
		for g := range ipsec.ESPSPI(8) {
			for _, spi := range []ipsec.ESPSPI{spiA + g, spiB + g} {
				s.do(func() {
					if c, ok := s.plane.Counters(spi); ok {
						fmt.Fprintf(&b, "site %s, SA %v: %+v\n", s.name, spi, c)
					}
				})
			}
		}
		s.do(func() {
			fmt.Fprintf(&b, "site %s: %+v %+v\n", s.name, s.plane.TunnelCounters("vpn1"), s.plane.PlaneCounters())
		})
		s.mu.Lock()
		fmt.Fprintf(&b, "site %s, last events: %+v\n", s.name, s.events[max(0, len(s.events)-10):])
		s.mu.Unlock()
	}
	return b.String()
}

// forget drops the events so far.
func (s *site) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = nil
}

// eventually polls a condition that nothing reports, such as a counter.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

// Namespace makes an empty network namespace with loopback up, and returns what
// runs a function in it. It needs root, see RequireRoot.
func Namespace(t testing.TB) (in func(func() error)) {
	s := newSite(t, "N", 9)
	s.must("loopback", func() error { return up("lo") })
	return func(f func() error) {
		t.Helper()
		s.must("in namespace", f)
	}
}
