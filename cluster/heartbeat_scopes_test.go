package cluster

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"tandem/cluster/fsm"
)

// survivorHeartbeat is that of the last member of a farm of sixteen that is alive,
// with as many entitlements besides: more than can be.
func survivorHeartbeat() Heartbeat {
	h := fullHeartbeat()
	h.Name, h.Announce.Election.Serial = strings.Repeat("n", 20), "FGVM01TM19005555"
	h.Incarnation, h.Seq, h.Requests, h.Answers, h.Heard = 1_790_000_000_000, 1<<30, nil, nil, nil
	for n := range NodeID(15) {
		h.Heard = append(h.Heard, Heard{n + 2, 1_790_000_000_000 + uint64(n)*12345})
	}
	h.Announce.Owned = allSlots(1)
	for i, t := range allSlots(1) {
		t.Epoch.Node = NodeID(1 + i*7%16)
		h.EntitledTo = append(h.EntitledTo, t)
	}
	return h
}

func removals(n int, with func(i int) Removal) (out []Removal) {
	for i := range n {
		out = append(out, with(i))
	}
	return out
}

func scopedHeartbeat() Heartbeat {
	h := fullHeartbeat()
	h.Announce.Owned = []Tenure{{1, e(0, 5, 1)}, {30, e(1<<46-1, 1<<16-1, 1)}, {256, e(9, 0, 1)}, {383, e(8, 3, 1)}}
	h.EntitledTo = []Tenure{{2, e(7, 0, 16)}, {300, e(1, 0, 1)}, {301, e(1<<40, 0, 2)}}
	h.Requests = append(h.Requests, Removal{256, 2, 1<<64 - 1, e(9, 0, 1)}, Removal{383, 2, 1, e(8, 3, 1)}, Removal{1, 16, 1 << 50, e(0, 5, 1)})
	h.Answers = append(h.Answers, Removal{Scope: 383, Node: 1, Nonce: 5}, Removal{Scope: 256, Node: 16, Nonce: 1 << 63})
	return h
}

func TestScopesRoundTrip(t *testing.T) {
	for _, h := range []Heartbeat{scopedHeartbeat(), survivorHeartbeat()} {
		b, err := h.Marshal(testKey)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeHeartbeat(testKey, b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*got, h) {
			t.Errorf("\n got %+v\nwant %+v", *got, h)
		}
		t.Logf("%d bytes", len(b))
		// The hint on the way changes nothing else.
		b[0] |= HeartbeatNews
		if again, err := DecodeHeartbeat(testKey, b); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("with the hint: %v", err)
		}
	}
}

func TestWhatIsTooMuchIsLeftOut(t *testing.T) {
	h := survivorHeartbeat()
	h.Requests = removals(maxRemovals, func(i int) Removal {
		return Removal{h.Announce.Owned[i*2].Scope, 5, uint64(9000 - i), h.Announce.Owned[i*2].Epoch}
	})
	h.Answers = removals(maxRemovals, func(i int) Removal {
		return Removal{Scope: fsm.Slot(3, 0) + ScopeID(i), Node: 2, Nonce: uint64(1000 + i)}
	})
	b, err := h.Marshal(testKey)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeHeartbeat(testKey, b)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Announce.Owned, h.Announce.Owned) || !slices.Equal(got.Heard, h.Heard) {
		t.Error("what it owns or hears is left out")
	}
	if len(got.Requests) < sureRemovals || !slices.Equal(got.Requests, h.Requests[:len(got.Requests)]) || len(got.Answers) < sureRemovals {
		t.Errorf("%d requests, %d answers", len(got.Requests), len(got.Answers))
	}
	if n := len(got.EntitledTo); n < 64 || !slices.Equal(got.EntitledTo, h.EntitledTo[:n]) {
		t.Errorf("%d entitlements", n)
	}
	if len(h.Requests) != maxRemovals || len(h.EntitledTo) != 128 {
		t.Error("the heartbeat itself was changed")
	}
	// Whatever counters the log came to, and names as long as can be.
	h.Name, h.Announce.Election.Serial = strings.Repeat("n", maxString), strings.Repeat("s", maxString)
	h.EntitledTo, h.Announce.Owned = h.EntitledTo[:30], nil
	for i, x := range allSlots(1) {
		x.Epoch = e(1<<45-uint64(i%2)*4000, 1<<16-1-uint64(i), 1)
		h.Announce.Owned = append(h.Announce.Owned, x)
	}
	if _, err := h.Marshal(testKey); err != nil {
		t.Error(err)
	}
}

func TestBoundsOfScopes(t *testing.T) {
	for name, change := range map[string]func(*Heartbeat){
		"owned, scope 0":         func(h *Heartbeat) { h.Announce.Owned = []Tenure{{0, e(1, 0, 1)}} },
		"owned, no scope":        func(h *Heartbeat) { h.Announce.Owned = []Tenure{{31, e(1, 0, 1)}} },
		"owned, beyond":          func(h *Heartbeat) { h.Announce.Owned = []Tenure{{384, e(1, 0, 1)}} },
		"owned, far beyond":      func(h *Heartbeat) { h.Announce.Owned = []Tenure{{65535, e(1, 0, 1)}} },
		"owned, twice":           func(h *Heartbeat) { h.Announce.Owned = []Tenure{{3, e(1, 0, 1)}, {3, e(1, 0, 1)}} },
		"owned, unsorted":        func(h *Heartbeat) { h.Announce.Owned = []Tenure{{3, e(1, 0, 1)}, {2, e(1, 0, 1)}} },
		"owned, without epoch":   func(h *Heartbeat) { h.Announce.Owned = []Tenure{{3, Epoch{}}} },
		"owned, counter":         func(h *Heartbeat) { h.Announce.Owned = []Tenure{{3, Epoch{Counter: 1 << 62, Node: 1}}} },
		"owned, too many":        func(h *Heartbeat) { h.Announce.Owned = make([]Tenure, maxTenures+1) },
		"entitled, twice":        func(h *Heartbeat) { h.EntitledTo = []Tenure{{300, e(1, 0, 1)}, {300, e(1, 0, 2)}} },
		"entitled, no scope":     func(h *Heartbeat) { h.EntitledTo = []Tenure{{200, e(1, 0, 1)}} },
		"request, node":          func(h *Heartbeat) { h.Requests = []Removal{{300, 17, 1, e(1, 0, 1)}} },
		"request, no scope":      func(h *Heartbeat) { h.Requests = []Removal{{400, 1, 1, e(1, 0, 1)}} },
		"request, without epoch": func(h *Heartbeat) { h.Requests = []Removal{{300, 1, 1, Epoch{}}} },
		"request, twice":         func(h *Heartbeat) { h.Requests = []Removal{{300, 2, 1, e(1, 0, 1)}, {300, 2, 1, e(1, 0, 1)}} },
		"requests, too many": func(h *Heartbeat) {
			h.Requests = removals(maxRemovals+1, func(i int) Removal { return Removal{256 + ScopeID(i), 2, 1, e(1, 0, 1)} })
		},
		"answer, node": func(h *Heartbeat) { h.Answers = []Removal{{Scope: 300, Node: 17}} },
		"answers, too many": func(h *Heartbeat) {
			h.Answers = removals(maxRemovals+1, func(i int) Removal { return Removal{Scope: 256 + ScopeID(i), Node: 2} })
		},
	} {
		h := fullHeartbeat()
		h.Requests, h.Answers = nil, nil
		change(&h)
		b, err := h.marshal(testKey)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := DecodeHeartbeat(testKey, b); err == nil {
			t.Errorf("%s: taken: %+v", name, got)
		}
	}
	for name, list := range map[string][]uint64{
		"a part of an entry": {1, 2},
		"an overflow":        {1<<64 - 1, 2, 0},
		"a local count":      {1, 2, 1 << 16},
		"a negative term":    {1, 1, 0},
	} {
		var packed []byte
		for _, n := range list {
			packed = protowire.AppendVarint(packed, n)
		}
		for field := protowire.Number(18); field <= 20; field++ {
			b := []byte{0x08, 0x01, 0x18, 0x01, 0x20, 0x01}
			b = protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), packed)
			if h, err := parseHeartbeat(b); err == nil {
				t.Errorf("%s in field %d: taken: %+v", name, field, h)
			}
		}
	}
}

func scopeSeeds(t testing.TB) (out [][]byte) {
	for _, h := range []Heartbeat{scopedHeartbeat(), survivorHeartbeat(), fullVClusters()} {
		b, err := h.Marshal(testKey)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, bytes.Clone(b[heartbeatHeader:]))
	}
	return out
}
