package cluster

import (
	"testing"
	"time"
)

func TestWatchdog(t *testing.T) {
	progress := func(b *bench, n int, step uint64) (got []GuardEffect) {
		c := b.g.progress
		for i := range n {
			c += step
			b.g.HandleProgress(c)
			if i%2 == 0 {
				b.beat("hb0")
			}
			got = append(got, b.ticks(1)...)
		}
		return got
	}
	owner := func(t *testing.T) *bench {
		b := newBench(t)
		b.peer.Announce.Role, b.peer.Entitled = RoleStandby, Epoch{Counter: 6, Node: 2}
		b.g.HandleAnnounce(b.now, Announce{Role: RoleOwner, Epoch: Epoch{Counter: 6, Node: 2}})
		progress(b, 50, 1)
		return b
	}
	t.Run("hangs", func(t *testing.T) {
		b := owner(t)
		if _, ok := find[KillDaemon](progress(b, 98, 0)); ok { // the tick after the last progress was the first
			t.Fatal("killed before 500 ms of own ticks")
		}
		if _, ok := find[KillDaemon](progress(b, 2, 0)); !ok {
			t.Fatal("not killed")
		}
		progress(b, 19, 0)
		if b.sent.Unresponsive || !b.sent.Running {
			t.Fatal("given up before 100 ms")
		}
		progress(b, 2, 0)
		if !b.sent.Unresponsive || b.sent.Running {
			t.Fatal("not announced as unresponsive")
		}
		b.g.DaemonEnded(b.now)
		b.drain()
		if b.sent.Unresponsive || b.sent.Running {
			t.Error("its end is not announced")
		}
	})
	t.Run("hangs together with its successor", func(t *testing.T) {
		b := owner(t)
		b.peer.Stalled = true
		if _, ok := find[KillDaemon](progress(b, 900, 0)); ok {
			t.Fatal("killed, and nobody could go on")
		}
		if !b.sent.Stalled {
			t.Fatal("not announced as stalled")
		}
		b.peer.Stalled = false
		if _, ok := find[KillDaemon](progress(b, 4, 0)); !ok {
			t.Fatal("not killed when its successor goes on")
		}
	})
	t.Run("hangs together with its successor for too long", func(t *testing.T) {
		b := owner(t)
		b.peer.Stalled = true
		if _, ok := find[KillDaemon](progress(b, 1010, 0)); !ok {
			t.Fatal("not killed")
		}
	})
	t.Run("goes on", func(t *testing.T) {
		b := owner(t)
		progress(b, 70, 0)
		if !b.sent.Stalled {
			t.Fatal("not announced as stalled")
		}
		progress(b, 4, 1)
		if b.sent.Stalled {
			t.Fatal("still announced as stalled")
		}
	})
	t.Run("hangs, entitled to something else", func(t *testing.T) {
		b := newBench(t)
		mine, other := Epoch{Counter: 6, Node: 2}, Epoch{Counter: 6, Node: 1}
		b.peer.Announce.Owned, b.peer.EntitledTo = []Tenure{{1, other}}, []Tenure{{2, mine}}
		b.g.HandleAnnounce(b.now, Announce{Owned: []Tenure{{2, mine}}})
		progress(b, 50, 1)
		b.g.HandleEntitle(b.now, Entitle{Scope: 1, Epoch: other, On: true})
		if _, ok := b.g.EntitledTo(1); !ok {
			t.Fatal("not entitled")
		}
		progress(b, 150, 0)
		if !b.sent.Unresponsive {
			t.Fatal("not announced as unresponsive")
		}
		// The owner no longer waits for it: should the daemon go on, it has nothing to claim.
		if e, ok := b.g.EntitledTo(1); ok {
			t.Errorf("its daemon does not end, and is entitled at epoch %s", e)
		}
	})
	t.Run("pause of the host", func(t *testing.T) {
		b := owner(t)
		b.now = b.now.Add(10 * time.Second)
		if _, ok := find[KillDaemon](progress(b, 50, 0)); ok {
			t.Error("time that we slept through counts against the daemon")
		}
	})
	for name, change := range map[string]func(*bench){
		"no progress yet":           func(b *bench) { b.g.watched = false },
		"nobody entitled":           func(b *bench) { b.peer.Entitled = Epoch{} },
		"entitled for another time": func(b *bench) { b.peer.Entitled = Epoch{Counter: 5, Node: 2} },
		"the standby is dead":       func(b *bench) { b.peer.Running = false },
		"not the owner":             func(b *bench) { b.g.HandleAnnounce(b.now, Announce{Role: RoleStandby}) },
	} {
		t.Run(name, func(t *testing.T) {
			b := owner(t)
			change(b)
			if _, ok := find[KillDaemon](progress(b, 1000, 0)); ok {
				t.Error("killed")
			}
		})
	}
	t.Run("the standby is silent", func(t *testing.T) {
		b := owner(t)
		if _, ok := find[KillDaemon](b.ticks(1000)); ok {
			t.Error("killed, with nobody to take its place")
		}
	})
}
