package userspace

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// TestMemoryOfManyPairs: a pair's share of the data plane, at 100,000, beside the Child SA
// itself and its keys, which IKE keeps anyway.
func TestMemoryOfManyPairs(t *testing.T) {
	pairs := 100_000
	if testing.Short() {
		pairs = 10_000
	}
	p, tn, _ := bench(t)
	p.late = map[*sa]struct{}{}
	now := time.Now()
	p.clock = func() time.Time { return now }
	key := func(n, i int) ipsec.Key {
		b := make([]byte, n)
		binary.BigEndian.PutUint32(b, uint32(i))
		return ipsec.NewKey(b)
	}
	lan := []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.MustParsePrefix("10.0.0.0/8"))}
	all := make([]xfrm.SA, pairs)
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)}) }
	for i := range all {
		x := &all[i]
		*x = xfrm.SA{Scope: 1, IV: ipsec.NewIVCounter(1), Ceiling: xfrm.Unbounded, Fence: xfrm.Unbounded}
		x.Phase1, x.SPIIn, x.SPIOut = "vpn1", ipsec.ESPSPI(0x10000+i), ipsec.ESPSPI(0x10000+i)
		x.Suite = ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128}
		x.EncrIn, x.EncrOut, x.SaltIn, x.SaltOut = key(16, i), key(16, i), key(4, i), key(4, i)
		x.Local, x.Remote, x.UDPEncap, x.ReplayWindow = netip.MustParseAddrPort("127.0.0.1:4500"), netip.MustParseAddrPort("127.0.0.1:9"), true, 2048
		x.TSLocal, x.TSRemote = lan, []ipsec.TrafficSelector{ipsec.SelectorFromPrefix(netip.PrefixFrom(client(i), 32))}
	}
	heap := func() int {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	for i := range all {
		if err := p.Install(all[i]); err != nil {
			t.Fatal(err)
		}
		p.SetOutbound(all[i].SPIIn, true)
	}
	idle := (heap() - before) / pairs

	// A packet each way.
	b, m, from := newBatch(), new(merger), &arrival{remote: netip.MustParseAddrPort("127.0.0.1:9"), udp: true}
	pkt := template(100)
	buf := make([]byte, 256)
	for i := range all {
		a := client(i).As4()
		copy(pkt[12:], []byte{10, 0, 0, 1})
		copy(pkt[16:], a[:])
		transmitted(p, tn, b, 1, pkt, now)
		o, err := esp.NewOutbound(&all[i].ChildSA, all[i].IV, nil)
		if err != nil {
			t.Fatal(err)
		}
		copy(pkt[12:], a[:])
		copy(pkt[16:], []byte{10, 0, 0, 1})
		copy(buf[esp.HeaderRoom:], pkt)
		sealed, err := o.Seal(buf, esp.HeaderRoom, len(pkt), 1, protoIPv4)
		if err != nil {
			t.Fatal(err)
		}
		p.natt(sealed, 0, from, m, now)
	}
	m.flush()
	if c, _ := p.Counters(all[pairs-1].SPIIn); c.InPackets != 1 || c.OutPackets != 1 {
		t.Fatalf("%+v", c)
	}
	warm := (heap() - before) / pairs
	now = now.Add(warmFor)
	p.warm.sweep(p)
	if len(p.warm.list) != 0 {
		t.Errorf("%d idle pairs keep their ciphers", len(p.warm.list))
	}
	cold := (heap() - before) / pairs
	t.Logf("bytes for a pair: %d without traffic, %d with ciphers and a window, %d when it has been idle", idle, warm, cold)
	if idle > 4096 || warm > 4096 || cold > 2048 {
		t.Error("too much")
	}

	// It goes on where it stood.
	s := p.sas.get(all[7].SPIIn)
	client7 := client(7).As4()
	copy(pkt[12:], []byte{10, 0, 0, 1})
	copy(pkt[16:], client7[:])
	used := s.iv.Used()
	transmitted(p, tn, b, 1, pkt, now)
	if c := s.counters(); c.OutSeq != 2 || c.IVUsed != used+1 || len(p.warm.list) != 1 {
		t.Errorf("%+v after %d IVs, %d pairs have ciphers", c, used, len(p.warm.list))
	}
	runtime.KeepAlive(all)
	runtime.KeepAlive(p)
}
