package userspace

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/esp"
	"tandem/xfrm/xfrmtest"
)

// bench is a plane whose tunnel ends in /dev/null and whose only socket sends to a
// port of the loopback interface where nobody listens.
func bench(t testing.TB) (*Plane, *tunnel, *sa) {
	p := &Plane{
		clock: time.Now, ivs: esp.NewIVSource(rand.Reader), socks: &sockets{log: slog.Default()},
		tunnels: map[string]*tunnel{}, scopes: map[xfrm.Scope]*scope{}, out: newBatch(),
	}
	p.evs.deliver = func([]xfrm.Event) {}
	p.ticks.wake = make(chan struct{}, 1)
	s, err := openSock(sockNATT, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.socks.s[sockNATT][0] = s
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close(); s.file.Close() })
	tn := &tunnel{Tunnel: xfrm.Tunnel{Name: "vpn1", MTU: 1500, MaxMSS: [2]int{1300, 1300}}, scope: p.scope(1), fd: int(null.Fd())}
	p.tunnels["vpn1"] = tn
	p.Activate(1)
	k := func(n int) ipsec.Key { return ipsec.NewKey(bytes.Repeat([]byte{7}, n)) }
	x := xfrm.SA{Scope: 1, IV: ipsec.NewIVCounter(1), Ceiling: xfrm.Unbounded, Fence: xfrm.Unbounded}
	x.Phase1, x.SPIIn, x.SPIOut, x.Suite = "vpn1", 0x1001, 0x1001, ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, ESN: true}
	x.EncrIn, x.EncrOut, x.SaltIn, x.SaltOut = k(16), k(16), k(4), k(4)
	x.Local, x.Remote, x.UDPEncap, x.ReplayWindow = netip.MustParseAddrPort("127.0.0.1:4500"), netip.MustParseAddrPort("127.0.0.1:9"), true, 4096
	x.TSLocal = []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.MustParsePrefix("10.0.0.0/8"))}
	x.TSRemote = x.TSLocal
	if err := p.Install(x); err != nil {
		t.Fatal(err)
	}
	p.SetOutbound(x.SPIIn, true)
	return p, tn, p.sas.get(x.SPIIn)
}

func template(size int) []byte {
	return ipPacket("10.0.0.1", "10.0.0.2", protoUDP, udpHeader, size-28)
}

// transmitted sends n copies of a packet, as drain does that reads them.
func transmitted(p *Plane, t *tunnel, b *batch, n int, pkt []byte, now time.Time) {
	t.sealing.Lock()
	defer t.sealing.Unlock()
	for range n {
		p.outboundPacket(t, b, copy(b.in[slotRoom:], pkt), now)
	}
	p.socks.flush(&b.outbox)
}

func TestNoAllocationOut(t *testing.T) {
	p, tn, s := bench(t)
	b := newBatch()
	now := time.Now()
	pkt := template(1400)
	if n := testing.AllocsPerRun(100, func() {
		transmitted(p, tn, b, batchLen, pkt, now)
	}); n != 0 {
		t.Errorf("%v allocations for %d packets", n, batchLen)
	}
	if c := s.counters(); c.OutPackets != 101*batchLen {
		t.Errorf("%+v", c)
	}
}

func TestNoAllocationIn(t *testing.T) {
	p, _, s := bench(t)
	pkts := sealed(t, s, 2000, 1400)
	now, i := time.Now(), 0
	from := &arrival{remote: netip.MustParseAddrPort("127.0.0.1:9"), udp: true}
	m := new(merger)
	p.espIn(pkts[0], from, m, now) // the first one builds the AEAD and the window
	if n := testing.AllocsPerRun(1000, func() {
		i++
		p.espIn(pkts[i], from, m, now)
		m.flush()
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
	if c := s.counters(); c.InPackets != 1002 || c.InErrors != 0 {
		t.Errorf("%+v", c)
	}
}

// The same for what the interface hands over as one, and is handed as one.
func TestNoAllocationInBatches(t *testing.T) {
	remote := netip.MustParseAddrPort("127.0.0.1:9")
	w, now := newWorld(t, remote), time.Now()
	tcp := make([]byte, 20)
	tcp[12], tcp[13] = 5<<4, tcpACK
	pkt := ipPacket("10.10.0.1", "10.10.0.2", protoTCP, tcp, 40000)
	h := vnetHdr{flags: vnetNeedsCsum, gsoType: gsoTCPv4, gsoSize: 1360, hdrLen: 40, csumStart: 20, csumOffset: 16}
	b := newBatch()
	if n := testing.AllocsPerRun(100, func() {
		h.encode(b.in[slotRoom-vnetLen:])
		w.outboundRead(w.tn, b, copy(b.in[slotRoom:], pkt), now)
		w.socks.flush(&b.outbox)
	}); n != 0 {
		t.Errorf("%v allocations for a superpacket out", n)
	}
	s := w.sas.get(w.spis[0])
	if c := s.counters(); c.OutPackets != 101*30 || c.OutErrors != 0 {
		t.Errorf("%+v", c)
	}

	var batches [][]byte
	size := 0
	for range 102 {
		h.encode(b.in[slotRoom-vnetLen:])
		w.outboundRead(w.tn, b, copy(b.in[slotRoom:], pkt), now)
		r := b.runs[0]
		size = r.size
		batches = append(batches, bytes.Clone(b.arena[r.start:r.end]))
		w.socks.flush(&b.outbox)
	}
	from, m, i := &arrival{remote: remote, udp: true}, new(merger), 0
	s.in.recv.Skip(101 * 30)
	if n := testing.AllocsPerRun(100, func() {
		w.natt(batches[i], size, from, m, now)
		m.flush()
		i++
	}); n > 0 {
		t.Errorf("%v allocations for a batch in", n)
	}
	if l := w.received(t); len(l) != 101 || len(l[50].pkt) != len(pkt) {
		t.Errorf("%d writes", len(l))
	}
}

// sealed makes packets for the inbound direction; both have the same key.
func sealed(t testing.TB, s *sa, n, size int) (l [][]byte) {
	o, err := esp.NewOutbound(&s.ChildSA, ipsec.NewIVCounter(2), nil)
	if err != nil {
		t.Fatal(err)
	}
	pkt := template(size)
	for i := range n {
		buf := make([]byte, esp.HeaderRoom+size+esp.TrailerRoom)
		copy(buf[esp.HeaderRoom:], pkt)
		p, err := o.Seal(buf, esp.HeaderRoom, size, uint64(i+1), protoIPv4)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, p)
	}
	return l
}

func BenchmarkOutbound(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p, tn, _ := bench(b)
			bt := newBatch()
			now, pkt := time.Now(), template(size)
			b.SetBytes(int64(size) * batchLen)
			b.ReportAllocs()
			for b.Loop() {
				transmitted(p, tn, bt, batchLen, pkt, now)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchLen, "ns/packet")
		})
	}
}

func BenchmarkInbound(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p, _, s := bench(b)
			pkts := sealed(b, s, 1000, size)
			work, m := make([]byte, 2048), new(merger)
			now, i := time.Now(), 0
			from := &arrival{remote: netip.MustParseAddrPort("127.0.0.1:9"), udp: true}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if i == len(pkts) {
					*s.in.recv.Window(), i = esp.NewWindow(4096), 0
				}
				n := copy(work, pkts[i])
				p.espIn(work[:n], from, m, now)
				m.flush()
				i++
			}
		})
	}
}

// A thousand dialup instances share an interface; finding one takes no longer.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var r routes
			local := []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.MustParsePrefix("10.0.0.0/8"))}
			for i := range n {
				a := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
				s := &sa{order: uint64(i + 1)}
				s.TSLocal, s.TSRemote = local, []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.PrefixFrom(a, 32))}
				r.add(s)
			}
			in := inner{src: netip.MustParseAddr("10.0.0.1"), dst: netip.MustParseAddr("172.16.0.0"), proto: protoUDP, ports: true}
			b.ReportAllocs()
			for b.Loop() {
				if r.lookup(&in) == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}

// A thousand idle tunnels, each with an interface and two SAs (one being rekeyed),
// must cost less than 5 % of a core, and stay well under 64 MiB.
func TestThousandTunnelsIdle(t *testing.T) {
	xfrmtest.RequireRoot(t)
	const tunnels = 1000
	in := xfrmtest.Namespace(t)
	before := resident(t)
	var p *Plane
	in(func() (err error) {
		p, err = New(Options{Handler: xfrm.Handler{IKE: func(xfrm.IKEDatagram) {}, Events: func([]xfrm.Event) {}}})
		return err
	})
	defer p.Close()
	k := func(n int) ipsec.Key { return ipsec.NewKey(bytes.Repeat([]byte{7}, n)) }
	for i := range tunnels {
		name := fmt.Sprintf("vpn%d", i)
		in(func() error { return p.AddTunnel(xfrm.Tunnel{Name: name, MTU: 1400, Scope: 1}) })
		for g := range 2 {
			x := xfrm.SA{Scope: 1, IV: ipsec.NewIVCounter(1), Ceiling: 32}
			x.Phase1, x.Tunnel, x.Phase2 = name, name, name
			x.SPIIn, x.Suite = ipsec.ESPSPI(0x1000+2*i+g), ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 256}
			x.EncrIn, x.EncrOut, x.SaltIn, x.SaltOut = k(32), k(32), k(4), k(4)
			x.Local, x.Remote, x.ReplayWindow = netip.MustParseAddrPort("127.0.0.1:4500"), netip.MustParseAddrPort("127.0.0.2:4500"), 2048
			x.TSLocal = []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.MustParsePrefix("10.0.0.0/8"))}
			x.TSRemote = []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32))}
			if err := p.Install(x); err != nil {
				t.Fatal(err)
			}
			p.SetOutbound(x.SPIIn, true)
		}
	}
	p.Activate(1)
	used := resident(t) - before
	cpu, start := cpuTime(t), time.Now()
	<-time.After(2 * time.Second) // the measurement itself
	share := float64(cpuTime(t)-cpu) / float64(time.Since(start))
	t.Logf("%d tunnels: %.1f MiB resident, %.2f %% of a core", tunnels, float64(used)/(1<<20), 100*share)
	if used > 48<<20 {
		t.Errorf("%d MiB", used>>20)
	}
	if share > 0.05 {
		t.Errorf("%.1f %% of a core when idle", 100*share)
	}
	began := time.Now()
	p.Deactivate(1)
	if d := time.Since(began); d > 10*time.Millisecond {
		t.Errorf("Deactivate took %v", d)
	}
}

func resident(t *testing.T) int {
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, rss int
	if _, err := fmt.Sscan(string(b), &size, &rss); err != nil {
		t.Fatal(err)
	}
	return rss * os.Getpagesize()
}

func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
