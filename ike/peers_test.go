package ike

import (
	"math/rand/v2"
	"slices"
	"testing"

	"tandem/ike/message"
	"tandem/internal/config"
)

// TestPeersAreFound compares the chains of peers with a plain list, through collisions
// of hashes, too, which peers of the same identity always make.
func TestPeersAreFound(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	e := New(Options{})
	ids := []identity{{message.IDFQDN, "a"}, {message.IDFQDN, "b"}, {message.IDRFC822, "a"}, {message.IDFQDN, ""}}
	var all []*ikeSA
	for n := range 5000 {
		switch k := r.IntN(3); {
		case k == 0 || len(all) == 0:
			sa := &ikeSA{seq: uint64(n)}
			e.identify(sa, ids[r.IntN(len(ids))])
			all = append(all, sa)
		case k == 1:
			e.identify(all[r.IntN(len(all))], ids[r.IntN(len(ids))])
		default:
			i := r.IntN(len(all))
			e.unlinkPeer(all[i])
			e.unlinkPeer(all[i]) // twice is no fault
			all = slices.Delete(all, i, i+1)
		}
		for _, id := range ids {
			want := slices.DeleteFunc(slices.Clone(all), func(sa *ikeSA) bool { return sa.peerID != id })
			if got := e.ofPeer(id); !slices.Equal(got, want) {
				t.Fatalf("step %d: %d IKE SAs of %v, expected %d", n, len(got), id, len(want))
			}
		}
	}
	for _, sa := range all {
		e.unlinkPeer(sa)
	}
	if len(e.peers) != 0 {
		t.Errorf("%d chains are left", len(e.peers))
	}
}

// TestInstancesTakeTheLowestFreeIndex, also of indexes that came free out of order.
func TestInstancesTakeTheLowestFreeIndex(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	e := New(Options{Share: Share{Part: 3, Of: 8}})
	p1 := &config.Phase1{Name: "vpn1"}
	used := map[int]*tunnel{}
	for n := range 5000 {
		if len(used) > 0 && r.IntN(5) < 2 {
			i := 3 + 8*r.IntN(200)
			if x := used[i]; x != nil {
				e.forgetTunnel(x)
				delete(used, i)
			}
			continue
		}
		want := 3
		for used[want] != nil {
			want += 8
		}
		x := e.dialupTunnel(&ikeSA{p1: p1}, identity{message.IDFQDN, "x"}, true)
		if x.index != want {
			t.Fatalf("step %d: index %d, expected %d", n, x.index, want)
		}
		used[want] = x
	}
}
