package integration

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"tandem/internal/lab"
)

// TestBGP: a farm's members tell FRR by BGP, watched over by BFD, when it may send to
// them.
func TestBGP(t *testing.T) {
	needRoot(t)
	r := newRouted(t)
	one, two, three := routedMembers[0], routedMembers[1], routedMembers[2]
	all := func() bool { return slices.Equal(r.routes.now(), routedMembers) }
	others := func(m string) {
		t.Helper()
		for _, x := range routedMembers {
			if x != m && !r.routes.has(x) {
				t.Errorf("the router does not send to %s either: %v", x, r.routes.now())
			}
		}
	}
	step := func(name string, f func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, f) {
			t.FailNow() // each step begins where the one before it ended
		}
	}

	step("a farm begins", func(t *testing.T) {
		for _, m := range routedMembers {
			r.start(m)
		}
		for _, m := range routedMembers {
			r.joins(m, 60*time.Second)
		}
		for _, m := range routedMembers {
			eventually(t, 10*time.Second, m+" says so", func() bool {
				b, ok := r.bgp(m)
				return ok && b.Announced && slices.Equal(b.Prefixes, []string{lab.FarmLoopback.String() + "/32"}) &&
					b.Neighbors[0].Established && b.Neighbors[0].BFD == "Up"
			})
		}
	})

	step("a link that carries nothing", func(t *testing.T) {
		r.must(two, "nft", "add table inet hole; add chain inet hole in { type filter hook input priority -300; }; add chain inet hole out { type filter hook output priority -300; }")
		since := time.Now()
		r.must(two, "nft", "add rule inet hole in iifname port2 drop; add rule inet hole out oifname port2 drop")
		lost := r.leaves(two, since, bfdLoss)
		t.Logf("gone from the router's table %v after the link", lost.Sub(since).Round(time.Millisecond))
		others(two)
		eventually(t, 10*time.Second, "the member says who is lost and why", func() bool {
			_, bfd := r.logged(two, since, `"msg":"BFD neighbor down"`, "detection time expired")
			_, bgp := r.logged(two, since, `"msg":"BGP neighbor down"`)
			return bfd && bgp
		})
		since = time.Now()
		r.must(two, "nft", "delete table inet hole")
		r.joins(two, 30*time.Second)
		t.Logf("back after %v", time.Since(since).Round(time.Millisecond))
	})

	step("a daemon dies", func(t *testing.T) {
		pid, err := r.members[three].proc.Daemon(false)
		if err != nil {
			t.Fatal(err)
		}
		since := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		lost := r.leaves(three, since, bfdLoss)
		t.Logf("gone from the router's table %v after SIGKILL", lost.Sub(since).Round(time.Millisecond))
		others(three)
		r.joins(three, 60*time.Second)
		t.Logf("back, synchronised, after %v", time.Since(since).Round(time.Millisecond))
	})

	step("a member that hears nobody", func(t *testing.T) {
		if err := r.members[three].proc.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "it is gone", func() bool { return !r.routes.has(three) })
		r.must("sync", "ip", "link", "set", three, "down")
		r.start(three)
		eventually(t, 30*time.Second, "its session with the router stands", func() bool {
			b, ok := r.bgp(three)
			return ok && b.Neighbors[0].Established && b.Neighbors[0].BFD == "Up"
		})
		never(t, 2*time.Second, "the router sends to a member that has not joined", func() bool { return r.routes.has(three) })
		if h, ok := r.status(three); !ok || h.Synchronised {
			t.Fatalf("it says that it is synchronised: %+v", h)
		}
		r.must("sync", "ip", "link", "set", three, "up")
		r.joins(three, 60*time.Second)
	})

	step("drain", func(t *testing.T) {
		since := time.Now()
		r.members[one].must("execute ha drain")
		r.goesFirst(t, one, since)
		if b, ok := r.bgp(one); !ok || b.Announced || !b.Neighbors[0].Established {
			t.Errorf("a drained member announces, or has no session: %+v", b)
		}
		others(one)
		r.members[one].must("execute ha drain off")
		r.joins(one, 60*time.Second)
	})

	step("SIGTERM", func(t *testing.T) {
		eventually(t, 30*time.Second, "the router sends to all", all)
		since := time.Now()
		if err := stopProcess(r.members[one].proc, 15*time.Second); err != nil {
			t.Errorf("%s: %v", one, err)
		}
		r.goesFirst(t, one, since)
		others(one)
		r.start(one)
		r.joins(one, 60*time.Second)
	})

	step("a survivor without quorum", func(t *testing.T) {
		eventually(t, 30*time.Second, "the router sends to all", all)
		for _, m := range []string{one, two} {
			if err := r.members[m].proc.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, 15*time.Second, "it has no quorum", func() bool { h, ok := r.status(three); return ok && !h.Quorum && h.alarm("quorum") != "" })
		eventually(t, bfdLoss, "the router sends to it alone", func() bool { return slices.Equal(r.routes.now(), []string{three}) })
		never(t, time.Second, "its route goes", func() bool { return !r.routes.has(three) })
	})
}

// goesFirst wants the router to stop sending to a member before the member logs that it
// gives up a slot.
func (r *routed) goesFirst(t *testing.T, m string, since time.Time) {
	t.Helper()
	lost := r.leaves(m, since, bfdLoss)
	gave, ok := r.logged(m, since, "HA state change detected", "secondary")
	if !ok {
		t.Fatalf("%s does not say that it gave up a slot", m)
	}
	t.Logf("gone from the router's table after %v, the first slot moved after %v", lost.Sub(since).Round(time.Millisecond), gave.Sub(since).Round(time.Millisecond))
	if !lost.Before(gave) {
		t.Errorf("%s gave up a slot while the router still sent to it", m)
	}
}
