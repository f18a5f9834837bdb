package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/userspace"
	"tandem/xfrm/xfrmtest"
)

// One client, two members that share a loopback address, a link between them:
//
//	            ┌ 10.1.0.0/24 ┤ A, member 1 ├ 10.9.0.0/24
//	client C ───┤                                  │
//	198.51.100.7└ 10.2.0.0/24 ┤ B, member 2 ├──────┘
//	inner 10.200.0.1            192.0.2.1, inner 10.100.0.1
const (
	outerClient, outerGateway = "198.51.100.7", "192.0.2.1"
	innerClient, innerGateway = "10.200.0.1", "10.100.0.1"

	farmScope  = xfrm.Scope(11)
	sharedTUN  = xfrm.Scope(1)
	spiGateway = ipsec.ESPSPI(0xb0000001)
	spiClient  = ipsec.ESPSPI(0xc0000001)
)

type farmNode struct {
	t     *testing.T
	name  string
	in    func(func() error)
	fd    int
	plane *userspace.Plane
	link  *Link
	lan   *net.UDPConn

	mu     sync.Mutex
	events []xfrm.Event
	ike    []xfrm.IKEDatagram
}

func newFarmNode(t *testing.T, name string) *farmNode {
	n := &farmNode{t: t, name: name, in: xfrmtest.Namespace(t)}
	n.in(func() (err error) {
		for _, which := range []string{"all", "default"} { // answers take another way than questions
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+which+"/rp_filter", []byte("0"), 0); err != nil {
				return err
			}
		}
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(n.fd) })
	return n
}

// wire connects two nodes; n is the third byte but two of its network.
func wire(a, b *farmNode, name string, n int) {
	a.in(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = name
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: name, PeerNamespace: netlink.NsFd(b.fd)})
	})
	a.in(func() error { return address(name, fmt.Sprintf("10.%d.0.1/24", n)) })
	b.in(func() error { return address(name, fmt.Sprintf("10.%d.0.2/24", n)) })
}

func address(link, prefix string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrReplace(l, a), netlink.LinkSetUp(l))
}

func route(to, via, link, src string) error {
	_, dst, err := net.ParseCIDR(to + "/32")
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: dst, Gw: net.ParseIP(via), Src: net.ParseIP(src)}
	if link != "" {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		r.LinkIndex = l.Attrs().Index
	}
	return netlink.RouteReplace(r)
}

// open makes the data plane, the tunnel and the SA as one end sees it.
func (n *farmNode) open(local, remote, inner, farInner string, in, out ipsec.ESPSPI, udp bool, stray func(xfrm.Stray)) {
	n.in(func() (err error) {
		n.plane, err = userspace.New(userspace.Options{Handler: xfrm.Handler{
			IKE: func(d xfrm.IKEDatagram) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.ike = append(n.ike, d)
			},
			Events: func(l []xfrm.Event) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.events = append(n.events, l...)
			},
			Stray: stray,
		}})
		return err
	})
	n.t.Cleanup(func() { n.plane.Close() })
	n.in(func() error {
		return errors.Join(
			n.plane.AddTunnel(xfrm.Tunnel{Name: "dialup", MTU: 1500, Scope: sharedTUN}),
			address("dialup", inner+"/32"), route(farInner, "", "dialup", inner))
	})
	key := func(label byte, spi ipsec.ESPSPI, size int) ipsec.Key {
		return ipsec.NewKey(bytes.Repeat([]byte{label ^ byte(spi>>24)}, size))
	}
	x := xfrm.SA{Scope: farmScope, Ceiling: xfrm.Unbounded, Fence: xfrm.Unbounded, IV: ipsec.NewIVCounter(uint32(n.name[0]))}
	x.Tunnel, x.Phase1, x.Phase2, x.SPIIn, x.SPIOut = "dialup_0", "dialup", "dialup", in, out
	x.Suite = ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, ESN: true}
	x.EncrIn, x.SaltIn, x.EncrOut, x.SaltOut = key(1, in, 16), key(2, in, 4), key(1, out, 16), key(2, out, 4)
	x.Local, x.Remote = netip.AddrPortFrom(netip.MustParseAddr(local), 4500), netip.AddrPortFrom(netip.MustParseAddr(remote), 4500)
	x.UDPEncap, x.ReplayWindow = udp, 2048
	x.TSLocal = []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.PrefixFrom(netip.MustParseAddr(inner), 32))}
	x.TSRemote = []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.PrefixFrom(netip.MustParseAddr(farInner), 32))}
	n.plane.Activate(sharedTUN)
	if err := n.plane.Install(x); err != nil {
		n.t.Fatal(err)
	}
	n.plane.SetOutbound(in, true)
	n.in(func() error {
		pc, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", inner+":7000")
		if err == nil {
			n.lan = pc.(*net.UDPConn)
		}
		return err
	})
	n.t.Cleanup(func() { n.lan.Close() })
}

func (n *farmNode) send(to string, number uint32, size int) {
	n.t.Helper()
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, number)
	if _, err := n.lan.WriteToUDPAddrPort(b, netip.AddrPortFrom(netip.MustParseAddr(to), 7000)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *farmNode) want(number uint32, size int) {
	n.t.Helper()
	b := make([]byte, 4096)
	_ = n.lan.SetReadDeadline(time.Now().Add(patience))
	got, _, err := n.lan.ReadFromUDPAddrPort(b)
	if err != nil || got != size || binary.BigEndian.Uint32(b) != number {
		n.t.Fatalf("%s: %d bytes, %v; want packet %d of %d bytes", n.name, got, err, number, size)
	}
}

func (n *farmNode) has(ok func(xfrm.Event) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if ok(e) {
			return true
		}
	}
	return false
}

// fragments made by the kernel in the node's namespace.
func (n *farmNode) fragmentsMade() (count string) {
	n.in(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		for i, name := range strings.Fields(lines[0]) {
			if name == "FragCreates" {
				count = strings.Fields(lines[1])[i]
			}
		}
		return nil
	})
	return count
}

func TestPlanes(t *testing.T) {
	xfrmtest.RequireRoot(t)
	for _, udp := range []bool{false, true} {
		t.Run(fmt.Sprintf("UDP %v", udp), func(t *testing.T) { testPlanes(t, udp) })
	}
}

func testPlanes(t *testing.T, udp bool) {
	c, a, b := newFarmNode(t, "C"), newFarmNode(t, "A"), newFarmNode(t, "B")
	wire(c, a, "toa", 1)
	wire(c, b, "tob", 2)
	wire(a, b, "sync", 9)
	c.in(func() error { return address("lo", outerClient+"/32") })
	for i, m := range []*farmNode{a, b} {
		m.in(func() error {
			return errors.Join(address("lo", outerGateway+"/32"), route(outerClient, fmt.Sprintf("10.%d.0.1", i+1), "", outerGateway))
		})
	}
	through := func(member int) {
		c.in(func() error { return route(outerGateway, fmt.Sprintf("10.%d.0.2", member), "", outerClient) })
	}

	for i, m := range []*farmNode{a, b} {
		self, other := NodeID(i+1), NodeID(2-i)
		m.in(func() (err error) {
			m.link, err = New(Options{
				Self: self, Key: clusterKey, Listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(self)}), DefaultPort),
				Deliver: func(xs []xfrm.Stray) { m.plane.Inject(xs) },
				IKE: func(from NodeID, d xfrm.IKEDatagram, _ bool) {
					m.mu.Lock()
					defer m.mu.Unlock()
					m.ike = append(m.ike, d)
				},
			})
			return err
		})
		m.open(outerGateway, outerClient, innerGateway, innerClient, spiGateway, spiClient, udp,
			func(x xfrm.Stray) { m.link.Send(other, x) }) // each takes the other one for the owner
		t.Cleanup(func() { m.link.Close() })
	}
	addr := func(id byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, id}), DefaultPort)
	}
	a.link.SetPeers(map[NodeID]netip.AddrPort{1: addr(1), 2: addr(2)})
	b.link.SetPeers(map[NodeID]netip.AddrPort{1: addr(1), 2: addr(2)})
	eventually(t, "link up", func() bool { return len(a.link.Members()) == 1 && len(b.link.Members()) == 1 })

	c.open(outerClient, outerGateway, innerClient, innerGateway, spiClient, spiGateway, udp, nil)
	c.plane.Activate(farmScope)
	b.plane.Activate(farmScope)

	// ESP that arrives at A is delivered by B, and answered by B.
	through(1)
	number := uint32(0)
	for _, size := range []int{100, 1400, 1472} {
		number++
		c.send(innerGateway, number, size)
		b.want(number, size)
		b.send(innerClient, number, size)
		c.want(number, size)
	}
	if !b.has(func(e xfrm.Event) bool {
		f, ok := e.(xfrm.ForwardedTraffic)
		return ok && f.From == 1 && f.SPIIn == spiGateway
	}) {
		t.Error("the owner does not learn through whom the traffic comes")
	}
	// What leaves A's interface towards the client is sealed by B.
	for _, size := range []int{100, 1472} {
		number++
		a.send(innerClient, number, size)
		c.want(number, size)
	}
	for _, n := range []*farmNode{b, c} {
		if n.has(func(e xfrm.Event) bool { _, moved := e.(xfrm.PeerMoved); return moved }) {
			t.Errorf("%s sees other outer addresses than the peer's", n.name)
		}
	}
	ca, _ := a.plane.Counters(spiGateway)
	cb, _ := b.plane.Counters(spiGateway)
	if ca.InPackets+ca.OutPackets != 0 || cb.InPackets != 3 || cb.OutPackets != 5 || cb.OutSeq != 5 {
		t.Errorf("A %+v, B %+v", ca, cb)
	}
	if s := a.link.Stats().Members[2]; s.Sent != 5 || s.DatagramsSent <= s.Sent || s.SendFailed != 0 {
		t.Errorf("%+v", s)
	}
	if made, client := a.fragmentsMade(), c.fragmentsMade(); made != "0" || client == "0" {
		t.Errorf("the sync link carries IP fragments: %s; the client made %s", made, client)
	}

	// The sync link's MTU shrinks: the link finds out, and cuts smaller.
	for _, m := range []*farmNode{a, b} {
		m.in(func() error {
			l, err := netlink.LinkByName("sync")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, 1000)
		})
	}
	number++
	c.send(innerGateway, number, 1300)
	eventually(t, "too long for the path", func() bool { return a.link.Stats().Members[2].SendFailed > 0 })
	number++
	c.send(innerGateway, number, 1300)
	b.want(number, 1300)
	forwarded := a.link.Stats().Members[2].Sent

	// The router sends the client's traffic to the owner: nothing is forwarded any more.
	through(2)
	number++
	c.send(innerGateway, number, 1000)
	b.want(number, 1000)
	if s := a.link.Stats().Members[2]; s.Sent != forwarded {
		t.Errorf("%+v", s)
	}

	// IKE takes the same way, by the daemon's hand.
	through(1)
	msg := bytes.Repeat([]byte{7}, 2000)
	local, remote := netip.MustParseAddrPort(outerClient+":500"), netip.MustParseAddrPort(outerGateway+":500")
	if err := c.plane.SendIKE(xfrm.IKEDatagram{Local: local, Remote: remote, Data: msg}); err != nil {
		t.Fatal(err)
	}
	one := func(n *farmNode) (d xfrm.IKEDatagram) {
		eventually(t, n.name+" has the IKE message", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			if len(n.ike) == 1 {
				d = n.ike[0]
			}
			return len(n.ike) == 1
		})
		return d
	}
	a.link.SendIKE(2, one(a), false)
	if d := one(b); d.Local != remote || d.Remote != local || d.NonESP || !bytes.Equal(d.Data, msg) {
		t.Errorf("IKE message from %v to %v, %d bytes", d.Remote, d.Local, len(d.Data))
	}

	// Nobody owns it, and each takes the other for the owner: two hops, and the packets
	// are dropped and counted.
	b.plane.Deactivate(farmScope)
	was := a.plane.TunnelCounters("dialup").Inactive
	number++
	c.send(innerGateway, number, 1000)
	a.send(innerClient, number, 1000)
	eventually(t, "both dropped at A", func() bool { return a.plane.TunnelCounters("dialup").Inactive == was+2 })
	if s := b.link.Stats().Members[1]; s.Sent != 2 || s.TooFar != 0 {
		t.Errorf("B hands on once what was forwarded to it: %+v", s)
	}
	if k := a.plane.TunnelCounters("dialup"); k.Injected != 2 {
		t.Errorf("A %+v", k)
	}
}
