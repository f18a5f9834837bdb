package node

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

func reachOf(tunnel, prefix string) reach {
	return reach{AddRoute: AddRoute{tunnel, netip.MustParsePrefix(prefix)}}
}

// write makes a message of parts that fit.
func (m *lanMessage) write(t testing.TB) []byte {
	t.Helper()
	w := newLANWriter(m.answer, m.from, m.to, m.number)
	for i := range m.parts {
		if n, ok := w.put(&m.parts[i]); !ok || n != len(m.parts[i].entries) {
			t.Fatalf("part %d does not fit", i)
		}
	}
	return w.b
}

var (
	lanScope = fsm.Slot(3, 2)
	lanEpoch = cluster.Epoch{Counter: 7<<16 + 1, Node: 3}
	lanTold  = lanMessage{from: 1, to: 2, number: 9, parts: []lanPartOf{
		{scope: lanScope, epoch: lanEpoch, kind: lanChange, is: setSum{5, 1 << 60}, entries: []lanEntry{
			{reach: reachOf("vpn1", "10.1.2.0/24")}, {reach: reachOf("vpn1", "10.1.2.3/32"), gone: true},
			{reach: reach{AddRoute: AddRoute{"other", netip.MustParsePrefix("2001:db8::/33")}, bare: true}},
			{reach: reachOf("vpn1", "128.0.0.0/1")}, {reach: reachOf("other", "2001:db8::1/128")},
		}},
		{scope: fsm.Slot(16, 7), epoch: lanEpoch, kind: lanState, is: setSum{}},
		{scope: lanScope, epoch: lanEpoch, kind: lanFirst, entries: []lanEntry{{reach: reachOf("vpn1", "10.9.0.0/16")}}},
		{scope: lanScope, epoch: lanEpoch, kind: lanMore},
		{scope: lanScope, epoch: lanEpoch, kind: lanLast, is: setSum{1, 2}},
		{scope: lanScope, epoch: lanEpoch, kind: lanWhole},
	}}
	lanAnswer = lanMessage{answer: true, from: 2, to: 1, number: 9, parts: []lanPartOf{
		{scope: lanScope, epoch: lanEpoch, kind: lanHave}, {scope: lanScope, epoch: lanEpoch, kind: lanWant}, {scope: lanScope, epoch: lanEpoch, kind: lanOld},
	}}
)

func TestLANMessageRoundTrip(t *testing.T) {
	for _, m := range []*lanMessage{&lanTold, &lanAnswer} {
		b := m.write(t)
		got, err := readLAN(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v, %v; want %+v", got, err, m)
		}
		whole := map[int]bool{} // where a part ends, and so could the message
		for i := range m.parts {
			whole[len((&lanMessage{answer: m.answer, parts: m.parts[:i]}).write(t))] = true
		}
		for n := range b {
			if _, err := readLAN(b[:n]); err == nil && !whole[n] {
				t.Errorf("%d of %d bytes are a message", n, len(b))
			}
		}
	}
}

func TestLANMessageRefused(t *testing.T) {
	for what, p := range map[string]lanPartOf{
		"a virtual cluster":       {scope: 3, kind: lanState},
		"no slot":                 {scope: fsm.Slot(17, 0), kind: lanState},
		"no kind":                 {scope: lanScope},
		"an answer among tidings": {scope: lanScope, kind: lanHave},
		"gone from a whole set":   {scope: lanScope, kind: lanWhole, entries: []lanEntry{{reach: reachOf("a", "10.0.0.0/8"), gone: true}}},
		"a long name":             {scope: lanScope, kind: lanWhole, entries: []lanEntry{{reach: reachOf(strings.Repeat("n", 64), "10.0.0.0/8")}}},
		"no name":                 {scope: lanScope, kind: lanWhole, entries: []lanEntry{{reach: reachOf("", "10.0.0.0/8")}}},
		"bits beyond the prefix":  {scope: lanScope, kind: lanWhole, entries: []lanEntry{{reach: reachOf("a", "10.1.0.0/15")}}},
		"everything":              {scope: lanScope, kind: lanWhole, entries: []lanEntry{{reach: reachOf("a", "0.0.0.0/0")}}},
		"IPv4 in IPv6":            {scope: lanScope, kind: lanWhole, entries: []lanEntry{{reach: reachOf("a", "::ffff:10.0.0.0/120")}}},
	} {
		m := lanMessage{parts: []lanPartOf{p}}
		if got, err := readLAN(m.write(t)); err == nil {
			t.Errorf("%s: read as %+v", what, got)
		}
		if x := p.entries; len(x) > 0 && !x[0].gone && x[0].tellable() {
			t.Errorf("%s: tellable", what)
		}
	}
}

// What does not fit stays for the next message, and a message is never too long.
func TestLANMessageIsBounded(t *testing.T) {
	p := lanPartOf{scope: lanScope, epoch: lanEpoch, kind: lanFirst}
	for i := range 4000 {
		p.entries = append(p.entries, lanEntry{reach: reach{AddRoute: AddRoute{"vpn1", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32)}}})
	}
	w := newLANWriter(false, 1, 2, 3)
	n, ok := w.put(&p)
	if !ok || n < 1000 || n >= len(p.entries) || len(w.b) > maxLAN || len(w.b) < maxLAN-8 {
		t.Fatalf("%d entries in %d bytes, %v", n, len(w.b), ok)
	}
	if got, err := readLAN(w.b); err != nil || len(got.parts[0].entries) != n {
		t.Fatal(err)
	}
	if _, ok := w.put(&lanPartOf{scope: lanScope, kind: lanState}); ok {
		t.Error("a part beyond the end")
	}
	w = newLANWriter(false, 1, 2, 3)
	for i := range p.entries {
		p.entries[i].Tunnel = strings.Repeat("x", 1+i/100) + string(rune('a'+i%26))
	}
	if n, ok := w.put(&p); !ok || len(w.names) > maxLANNames || n == 0 {
		t.Errorf("%d names, %d entries", len(w.names), n)
	}
}

func FuzzLANMessage(f *testing.F) {
	f.Add(lanTold.write(f))
	f.Add(lanAnswer.write(f))
	f.Add([]byte{1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readLAN(b)
		if err != nil {
			return
		}
		if again := m.write(t); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
