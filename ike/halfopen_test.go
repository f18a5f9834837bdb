package ike

import (
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// halfOpenRecord is the most that a half-open IKE SA of an ordinary request has in its
// record, bytes; halfOpenHeap what it has in memory, its record not counted.
const (
	halfOpenRecord = 1024
	halfOpenHeap   = 3 << 10
)

// strangers make a responder and the request of one client, from which others are forged.
func strangers(t *testing.T) (w *world, hub *side, request func(i int) Datagram) {
	w = newWorld(t)
	hub = w.side("hub", addrB, 2, &config.Config{Phase1: []config.Phase1{phase1To("vpn", "")},
		Phase2: []config.Phase2{phase2For("vpn", "vpn", "0.0.0.0/0", "0.0.0.0/0")}}, func(o *Options) {
		o.Logs = func(l slog.Level) bool { return l >= slog.LevelInfo }
	})
	hub.quietSend = true
	hub.resume()
	c := w.side("client", addrA, 10, &config.Config{Phase1: []config.Phase1{phase1To("hub", addrB)},
		Phase2: []config.Phase2{phase2For("hub", "net", netA, netB)}}, nil)
	c.quietSend = true
	c.resume()
	c.up("net")
	first := flip(c.sent[0])
	return w, hub, func(i int) Datagram {
		d := first
		d.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 500)
		d.Data = append([]byte(nil), first.Data...)
		d.Data[0], d.Data[1], d.Data[2] = byte(i), byte(i>>8), byte(i>>16)
		return d
	}
}

// TestHalfOpenState measures what a stranger costs before it has brought a cookie.
func TestHalfOpenState(t *testing.T) {
	w, hub, request := strangers(t)
	live := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const n = 900
	largest := 0
	before := live()
	for i := range n {
		hub.receive(request(i))
		for _, r := range hub.records {
			for _, x := range r.Entries {
				largest = max(largest, len(x.Value))
			}
		}
		hub.records, hub.sent, hub.logs, w.seen = nil, nil, nil, nil
	}
	each := int(live()-before) / n
	if hub.e.halfOpen != n {
		t.Fatalf("%d half-open IKE SAs", hub.e.halfOpen)
	}
	if largest > halfOpenRecord {
		t.Errorf("a half-open IKE SA is replicated in %d bytes", largest)
	}
	if each > halfOpenHeap {
		t.Errorf("a half-open IKE SA takes %d bytes of heap", each)
	}
	t.Logf("record %d bytes, heap %d bytes", largest, each)
}

// TestManyStrangers: beyond the threshold neither state nor log lines nor key exchanges
// grow with the requests.
func TestManyStrangers(t *testing.T) {
	w, hub, request := strangers(t)
	lines := 0
	hub.onLog = func(Log) { lines++ }
	for i := range 20_000 {
		hub.receive(request(i))
		hub.records, hub.sent, hub.logs, w.seen = nil, nil, nil, nil
	}
	if n := len(hub.e.sas); n != hub.e.o.HalfOpenLimit || len(hub.e.inits) != n || len(hub.e.perSource) != n {
		t.Errorf("%d IKE SAs, %d requests, %d sources are kept", n, len(hub.e.inits), len(hub.e.perSource))
	}
	if got := hub.e.counters.CookiesSent; got != 19_000 {
		t.Errorf("%d cookies", got)
	}
	w.now = w.now.Add(31 * time.Second)
	for range 10 {
		hub.e.HandleTimeout(w.now)
		hub.drain()
	}
	if len(hub.e.sas) != 0 || len(hub.e.inits) != 0 || len(hub.e.perSource) != 0 {
		t.Error("half-open IKE SAs are left")
	}
	if lines > 10 {
		t.Errorf("%d lines", lines)
	}
	// Nobody to serve them, and nothing to agree on: as quiet.
	lines = 0
	hub.e.cfg.Phase1[0].Proposals = []ipsec.Suite{cbc128sha256}
	for i := range 5000 {
		hub.receive(request(i))
		w.now = w.now.Add(100 * time.Microsecond)
	}
	if lines == 0 || lines > 10 || len(hub.e.sas) != 0 {
		t.Errorf("%d lines, %d IKE SAs", lines, len(hub.e.sas))
	}
	w.now = w.now.Add(10 * time.Second)
	said := false
	hub.onLog = func(l Log) {
		for _, a := range l.Attrs {
			said = said || a.Key == "like_it_before" && a.Value.Int64() > 4000
		}
	}
	hub.receive(request(1))
	if !said {
		t.Error("how many lines were not written is not told")
	}
}

// TestOneSource: many from one address, or from one host's IPv6 network, need cookies
// while others do not.
func TestOneSource(t *testing.T) {
	for _, from := range []func(i int) netip.Addr{
		func(int) netip.Addr { return netip.MustParseAddr("198.51.100.7") },
		func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 9, byte(i), 1, 2, 3, 4, 5, 6, 7})
		},
	} {
		_, hub, request := strangers(t)
		for i := range 200 {
			d := request(i)
			d.Remote = netip.AddrPortFrom(from(i), uint16(1000+i))
			hub.receive(d)
		}
		if hub.e.halfOpen != halfOpenPerSource || hub.e.counters.CookiesSent != 200-halfOpenPerSource {
			t.Errorf("%d half-open, %d cookies", hub.e.halfOpen, hub.e.counters.CookiesSent)
		}
		hub.receive(request(1000))
		if hub.e.halfOpen != halfOpenPerSource+1 {
			t.Error("somebody else needs a cookie, too")
		}
	}
}

// TestLongInit: what would be kept for long requests has to be paid for, or is not kept.
func TestLongInit(t *testing.T) {
	_, hub, request := strangers(t)
	long := func(n int) Datagram {
		d := request(1)
		m, err := message.Parse(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		m.Payloads = append(m.Payloads, &message.VendorID{Data: []byte(strings.Repeat("x", n))})
		d.Data = m.Encode()
		return d
	}
	d := long(plainInitLen)
	hub.receive(d)
	c, ok := parse(t, hub.sent[0]).Notify(message.Cookie)
	if !ok || hub.e.halfOpen != 0 {
		t.Fatal("no cookie is demanded for a long request")
	}
	m := parse(t, d)
	m.Payloads = append([]message.Payload{notify(message.Cookie, c.Data)}, m.Payloads...)
	d.Data = m.Encode()
	hub.receive(d)
	if hub.e.halfOpen != 1 {
		t.Error("with the cookie it is refused")
	}
	hub.receive(long(longestInitLen))
	if hub.e.halfOpen != 1 || hub.e.counters.HalfOpenDenied != 1 {
		t.Error("a request without end is kept")
	}
}
