package statesync

import (
	"testing"

	"tandem/cluster"
	"tandem/internal/ipsec"
)

// Two scopes between the same two processes: each has its numbers, its epoch and its
// acknowledgements, and a frame of one is nothing to the other. Keys are the process's.
func TestScopesAreApart(t *testing.T) {
	const a, b = cluster.ScopeID(256), cluster.ScopeID(300)
	led := NewLedger(chance(1))
	key := led.New()
	epochs := map[cluster.ScopeID]cluster.Epoch{a: {Counter: 9, Node: 1}, b: epoch1}
	owners, standbys := map[cluster.ScopeID]*owner{}, map[cluster.ScopeID]*standby{}
	standbyLed := NewLedger(chance(2))
	for _, s := range []cluster.ScopeID{a, b} {
		o := &owner{Journal: NewScopeJournal(s, ownerProcess, led, 1<<20), t: t, led: led, now: t0}
		o.Start(o.now, epochs[s])
		o.join(2, memberProcess, []Entry{{SPIs: ipsec.IKESPIs{I: ipsec.IKESPI(s)}, Value: []byte("x"), KeyIDs: []ipsec.KeyID{key}}})
		owners[s], standbys[s] = o, &standby{Replica: NewScopeReplica(s, memberProcess, standbyLed), t: t, led: standbyLed}
	}
	for _, s := range []cluster.ScopeID{a, b} {
		f := owners[s].frames[0]
		if f.Scope != s || f.Seq != 1 {
			t.Fatalf("frame %d of %v, want 1 of %v", f.Seq, f.Scope, s)
		}
		for _, o := range []cluster.ScopeID{a, b, 0} {
			if o == 0 {
				newStandby(t).refuses("another scope's frame", f.Frame, ErrAddress)
			} else if o != s {
				standbys[o].refuses("another scope's frame", f.Frame, ErrAddress)
			}
		}
	}
	for _, s := range []cluster.ScopeID{a, b} {
		f := owners[s].frames[0]
		standbys[s].takes("its own", f.Frame)
		standbys[s].want("its own", CopyBegins{epochs[s]}, ApplyRecord{[]Entry{{SPIs: ipsec.IKESPIs{I: ipsec.IKESPI(s)}, Value: []byte("x"), KeyIDs: []ipsec.KeyID{key}}}},
			SendAck{Scope: s, Node: 1, Process: ownerProcess, Seq: 1})
	}
	if own, theirs := led.IV(key).SenderID(), standbyLed.IV(key).SenderID(); own == theirs {
		t.Errorf("both use sender ID %x", own)
	}
	if g := led.keys[key].granted; len(g) != 1 {
		t.Errorf("one process was given %d ranges of a key", len(g))
	}
}
