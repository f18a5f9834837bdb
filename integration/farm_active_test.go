package integration

import (
	"slices"
	"testing"
	"time"
)

// TestFarmAllActive: three members that each own a tunnel at the same time. Every probe
// reaches the LAN once and is answered once; each IKE SA has one owner. Draining a member
// under traffic gives its tunnel another owner, at the price of a probe at most, and the
// others' tunnels stay where they are.
func TestFarmAllActive(t *testing.T) {
	t.Parallel()
	needRoot(t)
	f := newTrio(t, program(t), len(trioMembers))
	for k, m := range trioMembers {
		f.toGateway(k, m)
		f.toClient(k, m)
	}
	f.up()
	var sa []string
	for k := range trioMembers {
		sa = append(sa, f.ikeSA(k))
	}
	// owned waits until the clients' IKE SAs have these owners, one each, and the other
	// members copies.
	owned := func(what string, ok func(k int, owner string) bool) {
		t.Helper()
		var owner map[string][]string
		var listed map[string]int
		if !holds(10*time.Second, func() bool {
			owner, listed = f.owners()
			for k, id := range sa {
				if listed[id] != len(trioMembers) || len(owner[id]) != 1 || !ok(k, owner[id][0]) {
					return false
				}
			}
			return len(listed) == len(sa)
		}) {
			t.Fatalf("not so: %s: owners %v, listed %v", what, owner, listed)
		}
	}
	home := func(k int, owner string) bool { return owner == trioMembers[k] }
	owned("each member owns the tunnel that came to it", home)

	lan := f.tap(trioServer, "lan0")
	probes := make([]*prober, len(sa))
	for k := range probes {
		probes[k] = f.probe(trioClient(k), trioInner(k), trioServing)
	}
	// more waits until another hundred of each client's probes have reached the LAN.
	count := func() []int {
		n := make([]int, len(sa))
		for e := range lan.echoes() {
			if k := slices.IndexFunc(trioMembers, func(m string) bool { return e.from == trioInner(slices.Index(trioMembers, m)) }); k >= 0 && e.request {
				n[k]++
			}
		}
		return n
	}
	more := func() {
		t.Helper()
		before := count()
		eventually(t, 20*time.Second, "another hundred probes of each client", func() bool {
			for k, n := range count() {
				if n < before[k]+100 {
					return false
				}
			}
			return true
		})
	}
	more()
	owned("each member owns its tunnel still", home)
	f.toClient(0, "gw2")
	more()
	owned("answers at another member move no tunnel", home)
	// The routers on both sides go on to send to the member that is drained.
	f.toClient(0, "gw1")
	f.members["gw1"].must("execute ha drain")
	owned("the drained member's tunnel has another owner, the others theirs", func(k int, owner string) bool {
		return (k == 0) != home(k, owner)
	})
	more()
	owned("so it stays", func(k int, owner string) bool { return (k == 0) != home(k, owner) })

	for k, p := range probes {
		sent, lost, doubled := p.end()
		t.Logf("%s: %d probes sent, %d lost, %d answered twice", p.name, sent, lost, doubled)
		if sent < 200 || lost > 1 || doubled > 0 {
			for e, n := range lan.echoes() {
				if slices.Contains(p.lost, e.seq) && e.request && e.from == trioInner(k) {
					t.Logf("probe %d was on the LAN %d times", e.seq, n)
				}
			}
			t.Errorf("%s: of %d probes %d are lost and %d answered twice", p.name, sent, lost, doubled)
		}
		if now := f.ikeSA(k); now != sa[k] {
			t.Errorf("%s: the IKE SA was %s and is %s", trioClient(k), sa[k], now)
		}
	}
	for e, n := range lan.echoes() {
		if n != 1 {
			t.Errorf("on the LAN %d times: %+v", n, e)
		}
	}
	f.members["gw1"].must("execute ha drain off")
	f.together()
	owned("the drained member has its tunnel again", home)
}
