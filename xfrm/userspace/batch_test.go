package userspace

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/ipsec"
	"tandem/internal/mmsg"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// world is a plane with several SAs over UDP whose interface is a socket that keeps
// messages apart.
type world struct {
	*Plane
	tn   *tunnel
	far  int // the other end of the interface
	ike  []string
	spis []ipsec.ESPSPI
}

const (
	worldSAs = 3
	worldNet = 10 // SA i carries 10.i.0.0/16 and fd0i::/32
)

func newWorld(t testing.TB, remote netip.AddrPort) *world {
	w := &world{Plane: &Plane{
		clock: time.Now, ivs: esp.NewIVSource(rand.Reader), socks: &sockets{log: slog.Default()},
		tunnels: map[string]*tunnel{}, scopes: map[xfrm.Scope]*scope{}, late: map[*sa]struct{}{}, out: newBatch(),
	}}
	w.o.Handler.IKE = func(d xfrm.IKEDatagram) { w.ike = append(w.ike, string(d.Data)) }
	w.evs.deliver = func([]xfrm.Event) {}
	w.ticks.wake = make(chan struct{}, 1)
	s, err := openSock(sockNATT, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.socks.s[sockNATT][0] = s
	if w.socks.probe[0], err = mmsg.OpenProber(false); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
	t.Cleanup(func() { s.file.Close(); unix.Close(fds[0]); unix.Close(fds[1]) })
	w.tn, w.far = &tunnel{Tunnel: xfrm.Tunnel{Name: "vpn1", MTU: 1500}, scope: w.scope(1), fd: fds[0], uso: true}, fds[1]
	w.tunnels["vpn1"] = w.tn
	w.Activate(1)
	for i := range worldSAs {
		x := xfrm.SA{Scope: 1, IV: ipsec.NewIVCounter(1), Ceiling: xfrm.Unbounded, Fence: xfrm.Unbounded}
		x.Phase1, x.SPIIn, x.SPIOut = "vpn1", ipsec.ESPSPI(0x1001+i), ipsec.ESPSPI(0x1001+i)
		x.Suite = []ipsec.Suite{
			{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, ESN: true}, {Encr: ipsec.ENCRChaCha20Poly1305},
			{Encr: ipsec.ENCRAESCBC, KeyBits: 128, Integ: ipsec.INTEGHMACSHA256_128},
		}[i]
		k := func(n int) ipsec.Key { return ipsec.NewKey(bytes.Repeat([]byte{byte(i + 1)}, n)) }
		x.EncrIn, x.SaltIn, x.IntegIn = k(x.Suite.EncrKeyLen()), k(x.Suite.SaltLen()), k(x.Suite.IntegKeyLen())
		x.EncrOut, x.SaltOut, x.IntegOut = x.EncrIn, x.SaltIn, x.IntegIn
		x.Local, x.Remote, x.UDPEncap, x.ReplayWindow = netip.MustParseAddrPort("127.0.0.1:4500"), remote, true, 1024
		for _, n := range []string{fmt.Sprintf("10.%d.0.0/16", worldNet+i), fmt.Sprintf("fd%02d::/32", worldNet+i)} {
			x.TSLocal = append(x.TSLocal, ipsec.SelectorFromPrefix(netip.MustParsePrefix(n)))
		}
		x.TSRemote = x.TSLocal
		if err := w.Install(x); err != nil {
			t.Fatal(err)
		}
		w.SetOutbound(x.SPIIn, true)
		w.spis = append(w.spis, x.SPIIn)
	}
	return w
}

// read is a packet as an interface hands it over, or is handed it.
type read struct {
	h   vnetHdr
	pkt []byte
}

// received returns what the interface was handed.
func (w *world) received(t testing.TB) (l []read) {
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(w.far, b)
		if err == unix.EAGAIN {
			return l
		}
		if err != nil || n < vnetLen {
			t.Fatalf("%d bytes, %v", n, err)
		}
		r := read{pkt: bytes.Clone(b[vnetLen:n])}
		r.h.decode(b)
		l = append(l, r)
	}
}

// plainSum is the Internet checksum as RFC 1071 tells it.
func plainSum(b []byte, sum uint32) uint16 {
	for i := range b {
		if i%2 == 0 {
			sum += uint32(b[i]) << 8
		} else {
			sum += uint32(b[i])
		}
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum>>16 + sum&0xffff)
}

// plainPackets is what a host would have sent without any offload.
func (r read) plainPackets() (l [][]byte) {
	if r.h.flags == 0 && r.h.gsoType == 0 {
		return [][]byte{r.pkt}
	}
	l4, v6 := int(r.h.csumStart), r.pkt[0]>>4 == 6
	udp := r.h.csumOffset == 6
	hl := l4 + 8
	if !udp {
		hl = l4 + int(r.pkt[l4+12]>>4)*4
	}
	size := int(r.h.gsoSize)
	if r.h.gsoType == 0 {
		size = len(r.pkt) - hl
	}
	for at, i := hl, 0; at < len(r.pkt); at, i = at+size, i+1 {
		end := min(at+size, len(r.pkt))
		p := append(bytes.Clone(r.pkt[:hl]), r.pkt[at:end]...)
		var pseudo uint32
		if v6 {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
			pseudo = uint32(^plainSum(p[8:40], 0))
		} else {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+uint16(i))
			p[10], p[11] = 0, 0
			binary.BigEndian.PutUint16(p[10:], plainSum(p[:20], 0))
			pseudo = uint32(^plainSum(p[12:20], 0))
		}
		t := p[l4:]
		off, proto := 16, uint32(protoTCP)
		if udp {
			off, proto = 6, protoUDP
			binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
		} else {
			binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(at-hl))
			if end != len(r.pkt) {
				t[13] &^= tcpFIN | tcpPSH
			}
			if i > 0 {
				t[13] &^= tcpCWR
			}
		}
		t[off], t[off+1] = 0, 0
		binary.BigEndian.PutUint16(t[off:], plainSum(t, pseudo+proto+uint32(len(t))))
		if udp && t[6] == 0 && t[7] == 0 {
			t[6], t[7] = 0xff, 0xff
		}
		l = append(l, p)
	}
	return l
}

// flowOf names what keeps its order. The identification of a packet with DF is cleared:
// it means nothing.
func flowOf(t testing.TB, pkt []byte) string {
	in, p, ok := parseInner(pkt)
	if !ok || len(p) != len(pkt) {
		t.Fatalf("not an IP packet: %x", pkt)
	}
	if !in.v6 && in.df {
		pkt[4], pkt[5], pkt[10], pkt[11] = 0, 0, 0, 0
	}
	return fmt.Sprint(in.src, in.dst, in.proto, in.sport, in.dport)
}

// traffic makes up what hosts send.
type traffic struct {
	*mrand.Rand
	seq map[string]uint32
	id  uint16
}

// next is a packet or superpacket of one of few flows, most of them in sequence.
func (g *traffic) next() read {
	sa, port, v6 := g.IntN(worldSAs), uint16(1000+g.IntN(2)), g.IntN(2) == 0
	proto := uint8([]int{protoTCP, protoTCP, protoTCP, protoUDP, protoUDP, protoICMP}[g.IntN(6)])
	src, dst := fmt.Sprintf("10.%d.0.1", worldNet+sa), fmt.Sprintf("10.%d.0.2", worldNet+sa)
	l4 := 20
	if v6 {
		src, dst, l4 = fmt.Sprintf("fd%02d::1", worldNet+sa), fmt.Sprintf("fd%02d::2", worldNet+sa), 40
	}
	size, n := 1+g.IntN(1400), 1
	if g.IntN(2) == 0 {
		size = []int{36, 536, 1348}[g.IntN(3)]
	}
	if g.IntN(3) == 0 {
		n = 1 + g.IntN(63000/(size+100))
	}
	var transport []byte
	hl := 8
	k := fmt.Sprint(sa, port, v6)
	switch proto {
	case protoTCP:
		hl = 32
		transport = make([]byte, hl)
		transport[12], transport[13] = 8<<4, tcpACK
		transport[20], transport[21], transport[22], transport[23] = 1, 1, 8, 10 // timestamps
		binary.BigEndian.PutUint32(transport[4:], g.seq[k])
		binary.BigEndian.PutUint16(transport[14:], 500)
		transport[31] = byte(g.IntN(40) / 39)
		switch g.IntN(20) {
		case 0:
			transport[13] |= []byte{tcpPSH, tcpFIN, tcpPSH | tcpFIN, tcpECE, tcpCWR, tcpURG, tcpRST}[g.IntN(7)]
		case 1, 2:
			transport[13] |= tcpPSH
		case 3:
			n, size = 1, 0 // an acknowledgement
		}
	default:
		transport = make([]byte, hl)
	}
	payload := size
	if n > 1 {
		payload = n*size - g.IntN(size)
	}
	g.seq[k] += uint32(payload)
	if g.IntN(30) == 0 {
		g.seq[k] += 5
	}
	binary.BigEndian.PutUint16(transport, port)
	binary.BigEndian.PutUint16(transport[2:], 80)
	p := ipPacket(src, dst, proto, transport, payload)
	for i := l4 + hl; i < len(p); i++ {
		p[i] = byte(g.Uint32())
	}
	tos := byte(0)
	if g.IntN(10) == 0 {
		tos = byte(g.Uint32())
	}
	if v6 {
		p[0], p[1] = p[0]|tos>>4, tos<<4
	} else {
		p[1] = tos
		binary.BigEndian.PutUint16(p[4:], g.id)
		g.id += uint16(n)
		p[6] = []byte{0x40, 0x40, 0}[g.IntN(3)] // DF
		if proto != protoTCP && g.IntN(20) == 0 {
			p[6], n = 0x20, 1 // the first fragment of a datagram
		}
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], plainSum(p[:20], 0))
	}
	r := read{pkt: p}
	if proto == protoICMP || payload == 0 {
		return r
	}
	off := 16
	if proto == protoUDP {
		off = 6
		binary.BigEndian.PutUint16(p[l4+4:], uint16(len(p)-l4))
	}
	var pseudo uint32
	if v6 {
		pseudo = uint32(^plainSum(p[8:40], 0))
	} else {
		pseudo = uint32(^plainSum(p[12:20], 0))
	}
	binary.BigEndian.PutUint16(p[l4+off:], ^plainSum(nil, pseudo+uint32(proto)+uint32(len(p)-l4)))
	r.h = vnetHdr{flags: vnetNeedsCsum, csumStart: uint16(l4), csumOffset: uint16(off)}
	switch {
	case n > 1 && payload > size:
		r.h.gsoSize, r.h.hdrLen = uint16(size), uint16(l4+hl)
		r.h.gsoType = gsoUDP
		if proto == protoTCP {
			r.h.gsoType = gsoTCPv4
			if v6 {
				r.h.gsoType = gsoTCPv6
			}
		}
	case g.IntN(8) == 0: // the checksum stays wrong
		r.h = vnetHdr{}
	case proto == protoUDP && !v6 && g.IntN(4) == 0: // there is none
		p[l4+off], p[l4+off+1] = 0, 0
		r.h = vnetHdr{}
	}
	return r
}

// TestBatchesAreEqualToPackets: superpackets, runs, joined datagrams and merging change
// nothing but the number of calls. What a plane sends for superpackets is, packet by packet,
// what the hosts meant; what a plane delivers from batches is what another one delivers that gets
// one datagram at a time, and writes each by itself.
func TestBatchesAreEqualToPackets(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { batchesEqualPackets(t, seed) })
	}
}

func batchesEqualPackets(t *testing.T, seed uint64) {
	g := &traffic{Rand: mrand.New(mrand.NewPCG(seed, 1)), seq: map[string]uint32{}}
	wire, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer wire.Close()
	raw, _ := wire.SyscallConn()
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) })
	remote := wire.LocalAddr().(*net.UDPAddr).AddrPort()

	// Out.
	a := newWorld(t, remote)
	if seed%4 == 3 { // a device that cuts nothing
		for _, s := range a.sas.list() {
			s.peer.Load().gso.Store(gsoMissing)
		}
	}
	b := newBatch()
	var meant [][]byte
	for range 400 {
		r := g.next()
		for _, p := range r.plainPackets() {
			meant = append(meant, bytes.Clone(p))
		}
		r.h.encode(b.in[slotRoom-vnetLen:])
		a.outboundRead(a.tn, b, copy(b.in[slotRoom:], r.pkt), time.Now())
		if g.IntN(5) == 0 {
			a.socks.flush(&b.outbox)
		}
	}
	a.socks.flush(&b.outbox)
	var sealed [][]byte
	buf := make([]byte, 1<<16)
	openers, windows := map[ipsec.ESPSPI]*esp.Inbound{}, map[ipsec.ESPSPI]*esp.Window{}
	for i := range meant {
		_ = wire.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := wire.Read(buf)
		if err != nil {
			t.Fatalf("after %d packets of %d: %v; %+v", i, len(meant), err, a.PlaneCounters())
		}
		sealed = append(sealed, bytes.Clone(buf[:n]))
		spi, _ := esp.SPI(buf)
		if openers[spi] == nil {
			w := esp.NewWindow(64)
			windows[spi] = &w
			if openers[spi], err = esp.NewInbound(&a.sas.get(spi).ChildSA); err != nil {
				t.Fatal(err)
			}
		}
		p, _, seq, err := openers[spi].Open(windows[spi], buf[:n])
		if err != nil || seq != windows[spi].Top() || !bytes.Equal(p, meant[i]) {
			t.Fatalf("packet %d: number %d, %v\n%x\nwant\n%x", i, seq, err, p, meant[i])
		}
	}

	// In: lost, twice, displaced, forged, and other things between.
	var arrived [][]byte
	for _, p := range sealed {
		p = bytes.Clone(p)
		switch g.IntN(60) {
		case 0:
			continue
		case 1:
			arrived = append(arrived, p)
		case 2:
			p[len(p)-1-g.IntN(len(p)-8)] ^= 1
		case 3:
			if n := len(arrived); n > 5 {
				arrived = slices.Insert(arrived, n-1-g.IntN(5), p)
				continue
			}
		case 4:
			arrived = append(arrived, append(make([]byte, 4), bytes.Repeat([]byte{byte(g.Uint32())}, 28+g.IntN(1400))...))
		case 5:
			arrived = append(arrived, []byte{0xff})
		case 6:
			arrived = append(arrived, p[:g.IntN(20)])
		}
		arrived = append(arrived, bytes.Clone(p))
	}
	batched, single := newWorld(t, remote), newWorld(t, remote)
	from := &arrival{local: netip.MustParseAddrPort("127.0.0.1:4500"), remote: remote, udp: true}
	from.tos = uint8(seed % 3) // ECN, but for a mark that would drop most
	var got, want []read
	now, m := time.Now(), new(merger)
	for _, d := range arrived {
		single.natt(bytes.Clone(d), 0, from, m, now)
		m.flush()
		want = append(want, single.received(t)...)
	}
	joins := 0
	for i := 0; i < len(arrived); {
		joined, size := bytes.Clone(arrived[i]), len(arrived[i])
		i++
		for ; size > 0 && i < len(arrived) && len(arrived[i]) <= size && len(arrived[i]) > 0 && len(joined)+size <= maxRun && g.IntN(40) != 0; i++ {
			joined = append(joined, arrived[i]...)
			if joins++; len(arrived[i]) < size {
				i++
				break
			}
		}
		batched.natt(joined, size, from, m, now)
		if g.IntN(10) == 0 {
			m.flush()
		}
		if g.IntN(10) == 0 {
			got = append(got, batched.received(t)...)
		}
	}
	m.flush()
	got = append(got, batched.received(t)...)

	flows := func(l []read) (names []string, f map[string][][]byte) {
		f = map[string][][]byte{}
		for _, r := range l {
			for _, p := range r.plainPackets() {
				k := flowOf(t, p)
				f[k] = append(f[k], p)
			}
		}
		for k := range f {
			names = append(names, k)
		}
		return names, f
	}
	names, w := flows(want)
	more, h := flows(got)
	if len(names) != len(more) {
		t.Errorf("%d flows, want %d", len(more), len(names))
	}
	for _, k := range names {
		for i := range max(len(h[k]), len(w[k])) {
			if i >= len(h[k]) || i >= len(w[k]) || !bytes.Equal(h[k][i], w[k][i]) {
				t.Fatalf("flow %s: packet %d of %d and %d differs", k, i, len(h[k]), len(w[k]))
			}
		}
	}
	for _, spi := range batched.spis {
		h, _ := batched.Counters(spi)
		w, _ := single.Counters(spi)
		if h != w {
			t.Errorf("SA %v: %+v, want %+v", spi, h, w)
		}
	}
	if h, w := batched.PlaneCounters(), single.PlaneCounters(); h != w || !slices.Equal(batched.ike, single.ike) {
		t.Errorf("%+v and %d IKE messages, want %+v and %d", h, len(batched.ike), w, len(single.ike))
	}
	if len(want) < 1000 || len(got) > len(want)/2 || joins < 500 || len(single.ike) < 5 {
		t.Errorf("%d packets in %d writes, %d datagrams joined, %d IKE messages: this shows little", len(want), len(got), joins, len(single.ike))
	}
}
