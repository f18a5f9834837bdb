package integration

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestFarmSharesItsConfiguration: members of a farm that are told to share one: a change
// on any of them is on all within a second, decided by their log; of three changes at
// once one or more lose, and all three end alike; a faulty one changes nothing; who was
// away has what changed when it is back. The tunnel notices nothing.
func TestFarmSharesItsConfiguration(t *testing.T) {
	t.Parallel()
	needRoot(t)
	f := newTrioOf(t, program(t), 1, "config system ha\n    set standalone-config-sync enable\nend\n", func(*trio) {})
	f.toGateway(0, "gw1")
	f.toClient(0, "gw1")
	f.up()
	sa := f.ikeSA(0)
	members := func(without string) (list []*gateway) {
		for _, m := range trioMembers {
			if m != without {
				list = append(list, f.members[m])
			}
		}
		return list
	}
	revision := agreed(members(""), 1, 15*time.Second).Revision
	for i, m := range trioMembers {
		g := f.members[m]
		octet := string(rune('1' + i))
		g.edit(with(route("5"+octet, octet)))
		begun := time.Now()
		g.must("execute reload")
		revision = agreed(members(""), revision+1, 5*time.Second).Revision
		if took := lastTaken(revision, members("")...).Sub(begun); took > time.Second {
			t.Errorf("a change on %s was on all after %v", m, took)
		} else {
			t.Logf("a change on %s was on all after %v", m, took.Round(time.Millisecond))
		}
		if text := g.text(); !strings.Contains(text, `set hostname "`+m+`"`) || strings.Count(text, "set peerip") != 2 {
			t.Errorf("%s's file lost what is its own:\n%s", m, text)
		}
	}
	f.members["gw2"].edit(with("config vpn ipsec phase1-interface\n    edit \"vpn1\"\n        set keylife 100\n    next\nend\n"))
	if text := refusal(f.members["gw2"], "execute reload"); !strings.Contains(text, "keylife (100) must be between") {
		t.Errorf("a faulty change: %s", text)
	}
	f.members["gw2"].edit(func(s string) string { return strings.Replace(s, "        set keylife 100\n", "", 1) })

	// Three at once: who is refused finds its own beside its file.
	lost := 0
	for round := 0; round < 4 || lost == 0 && round < 16; round++ {
		errs := make([]error, 3)
		var wg sync.WaitGroup
		for i, m := range trioMembers {
			g := f.members[m]
			g.edit(with(route(strconv.Itoa(100+10*round+i), strconv.Itoa(100+3*round+i))))
			wg.Go(func() { _, errs[i] = g.cli("execute reload") })
		}
		wg.Wait()
		revision = agreed(members(""), revision+1, 10*time.Second).Revision
		shown := f.members["gw1"].must("show router static")
		for i, m := range trioMembers {
			if errs[i] != nil {
				lost++
				if _, err := os.Stat(f.members[m].conf + ".previous"); err != nil {
					t.Error(err)
				}
			}
			if now := f.members[m].must("show router static"); now != shown {
				t.Errorf("round %d: gw1 has\n%s\n%s has\n%s", round, shown, m, now)
			}
		}
	}
	t.Logf("of changes, three at a time, %d lost", lost)
	if lost == 0 {
		t.Error("no two changes met")
	}

	f.stop("gw3")
	f.together("gw3")
	f.members["gw2"].edit(with(route("71", "71")))
	f.members["gw2"].must("execute reload")
	revision = agreed(members("gw3"), revision+1, 5*time.Second).Revision
	f.start(f.members["gw3"], program(t))
	f.together()
	if now := agreed(members(""), revision, 10*time.Second).Revision; now != revision {
		t.Errorf("revision %d became %d by a return", revision, now)
	}
	if shown := f.members["gw3"].must("show router static"); !strings.Contains(shown, "edit 71") {
		t.Errorf("gw3 has\n%s", shown)
	}
	f.wantPing(trioClient(0), trioInner(0), trioServing)
	if now := f.ikeSA(0); now != sa {
		t.Errorf("the client's IKE SA was %s and is %s", sa, now)
	}
}
