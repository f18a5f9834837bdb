package forward

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"tandem/xfrm"
)

var examples = []message{
	{kindInner, xfrm.Stray{Scope: 9, Tunnel: "dialup", Packet: []byte{0x45, 0}}},
	{kindInner, xfrm.Stray{Scope: 65535, Last: true, Packet: []byte{0x60}}},
	{kindESP, xfrm.Stray{
		Scope: 3, Tunnel: "vpn1", Outer: true, UDPEncap: true, TOS: 0xbb, Packet: bytes.Repeat([]byte{7}, 1400),
		Local: netip.MustParseAddrPort("192.0.2.1:4500"), Remote: netip.MustParseAddrPort("198.51.100.7:61000"),
	}},
	{kindESP, xfrm.Stray{
		Scope: 3, Tunnel: strings.Repeat("n", maxName), Outer: true, Last: true, Packet: []byte{0, 0, 1, 0, 0, 0, 0, 1},
		Local: netip.MustParseAddrPort("[2001:db8::1]:0"), Remote: netip.MustParseAddrPort("[2001:db8::2]:0"),
	}},
	{kindIKE, xfrm.Stray{
		UDPEncap: true, Packet: bytes.Repeat([]byte{1}, 28),
		Local: netip.MustParseAddrPort("192.0.2.1:4500"), Remote: netip.MustParseAddrPort("198.51.100.7:4500"),
	}},
	{kindLAN, xfrm.Stray{Packet: bytes.Repeat([]byte{3}, 500)}},
}

func encode(t testing.TB, m *message) []byte {
	t.Helper()
	head := m.head(nil)
	if head == nil {
		t.Fatalf("not encoded: %+v", m)
	}
	return append(head, m.x.Packet...)
}

func TestMessageRoundTrip(t *testing.T) {
	for _, m := range examples {
		b := encode(t, &m)
		var got message
		if err := got.decode(b, names{}); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v, %v; want %+v", got, err, m)
		}
		for n := range len(b) - len(m.x.Packet) + 1 {
			if err := got.decode(b[:n], names{}); err == nil {
				t.Errorf("%d of %d bytes are a message of kind %d", n, len(b), m.kind)
			}
		}
	}
}

func TestMessageRefused(t *testing.T) {
	four, six := netip.MustParseAddrPort("192.0.2.1:4500"), netip.MustParseAddrPort("[2001:db8::1]:4500")
	for what, m := range map[string]message{
		"no packet":       {kindInner, xfrm.Stray{Tunnel: "vpn1"}},
		"long name":       {kindInner, xfrm.Stray{Tunnel: strings.Repeat("n", maxName+1), Packet: []byte{1}}},
		"mixed addresses": {kindESP, xfrm.Stray{Local: four, Remote: six, Packet: []byte{1}}},
		"no address":      {kindESP, xfrm.Stray{Remote: four, Packet: []byte{1}}},
		"no remote":       {kindESP, xfrm.Stray{Local: six, Packet: []byte{1}}},
	} {
		if m.head(nil) != nil {
			t.Errorf("%s: encoded", what)
		}
	}
	good := encode(t, &examples[2])
	for what, change := range map[string]func(b []byte){
		"kind 0":       func(b []byte) { b[0] = 0 },
		"kind 5":       func(b []byte) { b[0] = 5 },
		"unknown flag": func(b []byte) { b[1] |= 0x80 },
		"long name":    func(b []byte) { b[3] = maxName + 1 },
		"inner in UDP": func(b []byte) { b[0] = byte(kindInner) },
	} {
		b := bytes.Clone(good)
		change(b)
		if new(message).decode(b, names{}) == nil {
			t.Errorf("%s: decoded", what)
		}
	}
	for i := 1; i < prefixLen; i++ {
		b := encode(t, &examples[len(examples)-1])
		if b[i] = 1; new(message).decode(b, names{}) == nil {
			t.Errorf("byte %d of what is told about prefixes says something: decoded", i)
		}
	}
}

func TestNamesBounded(t *testing.T) {
	n := names{}
	for i := range 3 * namesMax {
		if s := n.get([]byte{byte(i), byte(i >> 8)}); s != string([]byte{byte(i), byte(i >> 8)}) {
			t.Fatalf("%q", s)
		}
	}
	if len(n) > namesMax {
		t.Errorf("%d names are kept", len(n))
	}
}

// cut makes the parts of a message, as sealMessage does.
func cut(id uint32, msg []byte, room int) (fs []fragment, parts [][]byte) {
	count := (len(msg) + room - 1) / room
	for i := range count {
		f := fragment{id, uint8(i), uint8(count), uint16(len(msg))}
		from, to, ok := f.span()
		if !ok || to-from > room {
			panic("no such part")
		}
		fs, parts = append(fs, f), append(parts, msg[from:to])
	}
	return fs, parts
}

func TestReassemblyAnyOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var r reassembly
	for id := range uint32(300) {
		msg := make([]byte, 2+rnd.IntN(maxMessage-1))
		for i := range msg {
			msg[i] = byte(rnd.Uint32())
		}
		room := max(504, (len(msg)+254)/255, 1)
		if len(msg) <= room {
			room = (len(msg) + 1) / 2
		}
		fs, parts := cut(id, msg, room)
		order := rnd.Perm(len(fs))
		for i, k := range order {
			got, ok := r.add(fs[k], parts[k])
			if !ok || (got != nil) != (i == len(order)-1) {
				t.Fatalf("message %d, part %d of %d: %v", id, i, len(order), ok)
			}
			if got != nil && !bytes.Equal(got, msg) {
				t.Fatalf("message %d is damaged", id)
			}
		}
		r.returned()
	}
	if r.abandoned != 0 {
		t.Errorf("%d given up", r.abandoned)
	}
}

func TestReassemblyBounded(t *testing.T) {
	var r reassembly
	msg := bytes.Repeat([]byte{1}, 3000)
	const n = 10_000
	for id := range uint32(n) { // one part of each is lost
		fs, parts := cut(id, msg, 1400)
		for i := range fs[:len(fs)-1] {
			if got, ok := r.add(fs[i], parts[i]); got != nil || !ok {
				t.Fatalf("message %d: %v", id, ok)
			}
		}
	}
	if r.abandoned != n-reassemblySlots {
		t.Errorf("%d given up", r.abandoned)
	}
	size := 0
	for _, s := range r.slots {
		size += cap(s.buf)
	}
	if size > reassemblySlots*(len(msg)+2048) {
		t.Errorf("%d bytes are held", size)
	}
	// The newest are still completed; what they have displaced is not begun again.
	fs, parts := cut(n-1, msg, 1400)
	if got, ok := r.add(fs[2], parts[2]); !ok || !bytes.Equal(got, msg) {
		t.Error("the last message is lost")
	}
	fs, parts = cut(n-1-reassemblySlots, msg, 1400)
	if got, ok := r.add(fs[2], parts[2]); got != nil || !ok || r.abandoned != n-reassemblySlots {
		t.Error("a part that comes too late displaces a newer message")
	}
	if !r.lent(n - 1) {
		t.Error("the message that is being looked at may be overwritten")
	}
}

func TestReassemblyRefuses(t *testing.T) {
	for what, f := range map[string]fragment{
		"one part":          {1, 0, 1, 100},
		"index":             {1, 3, 3, 99},
		"no part so long":   {1, 0, 3, 100},
		"part beyond total": {1, 3, 4, 5},
		"more parts":        {1, 0, 5, 4},
	} {
		if got, ok := new(reassembly).add(f, make([]byte, 33)); ok || got != nil {
			t.Errorf("%s: taken", what)
		}
	}
	var r reassembly
	if _, ok := r.add(fragment{1, 0, 3, 99}, make([]byte, 33)); !ok {
		t.Fatal("refused")
	}
	for what, f := range map[string]fragment{"twice": {1, 0, 3, 99}, "other count": {1, 1, 4, 132}, "other total": {1, 1, 3, 98}} {
		if _, ok := r.add(f, make([]byte, 33)); ok {
			t.Errorf("%s: taken", what)
		}
	}
}

func FuzzMessage(f *testing.F) {
	for _, m := range examples {
		f.Add(encode(f, &m))
	}
	f.Add([]byte{2, 3, 0, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if m.decode(b, names{}) != nil {
			return
		}
		if again := encode(t, &m); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

// FuzzReassembly feeds authentic nonsense: a bug at another member must not do harm.
func FuzzReassembly(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 2, 0, 8, 0, 0, 0, 1, 1, 2, 0, 8}, uint8(4))
	f.Add([]byte{0, 0, 0, 1, 0, 3, 0, 11, 0, 0, 0, 17, 1, 3, 0, 11}, uint8(4))
	f.Add([]byte{0, 0, 0, 1, 255, 255, 255, 255}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		var r reassembly
		for ; len(b) >= fragmentLen; b = b[fragmentLen:] {
			fr := parseFragment(b)
			if r.lent(fr.id) {
				r.returned()
			}
			n := int(size)
			if from, to, ok := fr.span(); ok && size&1 == 0 {
				n = to - from
			}
			msg, _ := r.add(fr, make([]byte, n))
			if msg != nil && len(msg) != int(fr.total) {
				t.Fatalf("message of %d bytes, not %d", len(msg), fr.total)
			}
		}
	})
}
