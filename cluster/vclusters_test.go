package cluster

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// fullVClusters is a heartbeat of a node with all thirty virtual clusters, each with
// values as far as they go.
func fullVClusters() Heartbeat {
	h := fullHeartbeat()
	h.Name, h.Announce.Election.Serial = strings.Repeat("n", 32), "FGVM01TM19005555"
	h.Incarnation, h.Seq, h.Requests, h.Answers = 1_790_000_000_000, 1<<40, nil, nil
	h.Heard = []Heard{{2, 1_790_000_012_345}}
	h.Announce.Owned, h.Announce.VClusters, h.EntitledTo = nil, nil, nil
	for s := ScopeID(1); s <= maxVClusters; s++ {
		v := VCluster{
			Scope: s, Role: Role(s % 3), Coverage: Coverage(s / 2 % 3), Chosen: NodeID(s % 3),
			Election: Election{MonitorsUp: int(s) % 16, Age: time.Duration(s*s) * time.Hour, Priority: 255 - int(s), Override: s%2 == 0, Failover: s%5 == 0,
				Penalty: int(s) * 10, Handed: Handed(s) % (handedMax + 1), OverrideWait: time.Duration(s) * 2 * time.Minute},
		}
		if s%4 != 3 || v.Role == RoleOwner {
			v.Epoch = e(27_000_000+uint64(s*s*997), uint64(s)*2000, 1)
		}
		if v.Role == RoleOwner {
			h.Announce.Owned = append(h.Announce.Owned, Tenure{s, v.Epoch})
		} else {
			h.EntitledTo = append(h.EntitledTo, Tenure{s, e(27_000_000+uint64(s*s*997), uint64(s)*2000, 2)})
		}
		h.Announce.VClusters = append(h.Announce.VClusters, v)
	}
	return h
}

func TestThirtyVirtualClustersFitAHeartbeat(t *testing.T) {
	h := fullVClusters()
	h.Requests = removals(sureRemovals, func(i int) Removal {
		x := h.Announce.Owned[i%len(h.Announce.Owned)]
		return Removal{x.Scope, 2, 1_790_000_000_000 + uint64(i), x.Epoch}
	})[:len(h.Announce.Owned)]
	b, err := h.Marshal(testKey)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeHeartbeat(testKey, b)
	if err != nil {
		t.Fatal(err)
	}
	if got.Announce.Election != h.Announce.Election || !reflect.DeepEqual(*got, h) {
		t.Errorf("\n got %+v\nwant %+v", *got, h)
	}
	if len(b) > 1100 {
		t.Errorf("%d bytes", len(b))
	}
	t.Logf("%d bytes", len(b))
}

func TestVirtualClustersThatMakeNoSense(t *testing.T) {
	for name, f := range map[string]func(l []uint64) []uint64{
		"cut":             func(l []uint64) []uint64 { return l[:len(l)-1] },
		"too many":        func(l []uint64) []uint64 { return append(l, 1<<flagBits, 1, 2, 3, 4, 5, 6, 7) },
		"scope 0":         func(l []uint64) []uint64 { l[0] &= 1<<flagBits - 1; return l },
		"scope 31":        func(l []uint64) []uint64 { l[0] += 1 << flagBits; return l },
		"role":            func(l []uint64) []uint64 { l[0] |= 3; return l },
		"coverage":        func(l []uint64) []uint64 { l[0] |= 3 << 2; return l },
		"node":            func(l []uint64) []uint64 { l[1] = 17; return l },
		"chosen":          func(l []uint64) []uint64 { l[1] = 1 | 17<<epochNodeBits; return l },
		"beyond":          func(l []uint64) []uint64 { l[1] |= 1 << 20; return l },
		"epoch of nobody": func(l []uint64) []uint64 { l[1] = 0; return l },
		"owned without epoch": func(l []uint64) []uint64 {
			l[1], l[2], l[3] = 0, 0, 0
			l[0] = 1<<flagBits | uint64(RoleOwner)
			return l[:8]
		},
		"monitors": func(l []uint64) []uint64 { l[4] = 1<<16 + 1; return l },
		"priority": func(l []uint64) []uint64 { l[5] = 256; return l },
		"age":      func(l []uint64) []uint64 { l[6] = 1 << 63; return l },
		"wait":     func(l []uint64) []uint64 { l[7] = 3601 << handedBits; return l },
		"penalty":  func(l []uint64) []uint64 { l[7] = (maxPenalty + 1) << (handedBits + waitBits); return l },
	} {
		if vs, err := unpackVClusters(f(packVClusters(fullVClusters().Announce.VClusters))); err == nil {
			t.Errorf("%s: read as %+v", name, vs[0])
		}
	}
	// What is said of ownership twice has to agree.
	for name, f := range map[string]func(a *Announce){
		"owned and not listed":  func(a *Announce) { a.Owned = a.Owned[1:] },
		"listed and not owned":  func(a *Announce) { a.VClusters[1].Role = RoleStandby },
		"listed at other epoch": func(a *Announce) { a.Owned[0].Epoch.Counter++ },
	} {
		h := fullVClusters()
		f(&h.Announce)
		b, err := h.Marshal(testKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeHeartbeat(testKey, b); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// TestAPeerIsSplitByVirtualCluster: what a virtual cluster's Pair hears is what the other
// node's Pair of the same one said.
func TestAPeerIsSplitByVirtualCluster(t *testing.T) {
	said := Announce{Role: RoleOwner, Epoch: e(3, 4, 2), Coverage: CoverageNote, Chosen: 2,
		Election: Election{MonitorsUp: 2, Age: time.Hour, Priority: 7, Override: true, Serial: "TDM2", Failover: true}}
	other := Announce{Role: RoleStandby, Epoch: e(9, 0, 1), Election: Election{Serial: "TDM2", Priority: 200}}
	a := AnnounceTogether([]Announce{other.ofScope(2), said.ofScope(7)})
	x := Peer{Node: 2, Process: 5, Running: true, Role: a.Role, Epoch: a.Epoch, Election: a.Election, Coverage: a.Coverage,
		Owned: a.Owned, EntitledTo: []Tenure{{2, e(9, 0, 1)}}, VClusters: a.VClusters}
	p, ok := x.Of(7)
	if want := (Peer{Node: 2, Process: 5, Running: true, Role: RoleOwner, Epoch: said.Epoch, Coverage: CoverageNote, Election: said.Election, Chosen: 2}); !ok || !reflect.DeepEqual(p, want) {
		t.Errorf("\n got %+v\nwant %+v", p, want)
	}
	if p, ok = x.Of(2); !ok || p.Role != RoleStandby || !p.Entitled || p.Election != other.Election || p.Coverage != CoverageProven {
		t.Errorf("%+v", p)
	}
	if p, ok = x.Of(3); ok || p.Role != RoleNone || p.Entitled || p.Epoch != (Epoch{}) {
		t.Errorf("of one that it does not have: %+v", p)
	}
	if x.Role != RoleNone || x.Coverage != CoverageNote {
		t.Errorf("of scope 0: %+v", x)
	}
}

// FuzzVClusters gives the decoder what the other node's guardian or ours could send.
func FuzzVClusters(f *testing.F) {
	for _, n := range []int{0, 1, 2, 30} {
		var b []byte
		for _, x := range packVClusters(fullVClusters().Announce.VClusters[:n]) {
			b = appendNumber(b, x)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		list := make([]uint64, 0, len(b)/8)
		for ; len(b) >= 8; b = b[8:] {
			var n uint64
			for _, c := range b[:8] {
				n = n<<8 | uint64(c)
			}
			list = append(list, n)
		}
		vs, err := unpackVClusters(list)
		if err != nil {
			return
		}
		again, err := unpackVClusters(packVClusters(vs))
		if err != nil || !reflect.DeepEqual(again, vs) {
			t.Fatalf("%v:\n got %+v\nwant %+v", err, again, vs)
		}
	})
}

func appendNumber(b []byte, n uint64) []byte {
	for i := 56; i >= 0; i -= 8 {
		b = append(b, byte(n>>i))
	}
	return b
}
