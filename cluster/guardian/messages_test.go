package guardian

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"tandem/cluster"
)

func tenures(n cluster.NodeID, scopes ...cluster.ScopeID) (out []cluster.Tenure) {
	for _, s := range scopes {
		out = append(out, cluster.Tenure{Scope: s, Epoch: cluster.Epoch{Counter: 1<<16 + uint64(s), Node: n}})
	}
	return out
}

func events() []Event {
	return []Event{
		cluster.TellPeer{Peer: cluster.Peer{
			Node: 2, Name: "gw2", Process: 1<<64 - 1, Running: true, Role: cluster.RoleStandby, Epoch: cluster.Epoch{Counter: 9, Node: 1},
			Entitled: true, Coverage: cluster.CoverageNote, StreamPort: 6000, Chosen: 1, Deaf: true,
			Election: cluster.Election{MonitorsUp: 2, Age: time.Minute, Priority: 200, Override: true, Serial: "TDM1", Failover: true, Penalty: 5, Handed: cluster.HandedPingservers, OverrideWait: time.Second},
			Links:    []cluster.Link{{Device: "hb0", Addr: "fe80::1"}, {Device: "hb1", Addr: "fe80::2"}, {Addr: "192.0.2.1"}},
			Owned:    tenures(1, 256, 383), EntitledTo: tenures(2, 30, 300), VClusters: vclusters(),
		}},
		cluster.TellLoss{Node: 2, Kind: cluster.LossUnresponsive, Entitled: true, Detected: 31 * time.Millisecond},
		cluster.TellLoss{Node: 3, Claimed: tenures(3, 1, 257, 258)},
		cluster.TellRemoved{Node: 1},
		cluster.TellRemoved{Scope: 383, Node: 16},
		cluster.TellEntitled{Scope: 300, Epoch: cluster.Epoch{Counter: 9, Node: 1}},
		cluster.TellClaimed{Scope: 1, Epoch: cluster.Epoch{Counter: 10, Node: 2}},
		cluster.TellEntitled{Epoch: cluster.Epoch{Counter: 9, Node: 1}},
		cluster.TellClaimed{Epoch: cluster.Epoch{Counter: 10, Node: 2}, OK: true},
	}
}

func vclusters() []cluster.VCluster {
	return []cluster.VCluster{
		{Scope: 1, Role: cluster.RoleOwner, Epoch: cluster.Epoch{Counter: 12, Node: 2}, Election: cluster.Election{MonitorsUp: 3, Age: time.Hour, Priority: 9}},
		{Scope: 30, Role: cluster.RoleStandby, Coverage: cluster.CoverageLost, Chosen: 2, Election: cluster.Election{Override: true, Failover: true}},
	}
}

func requests() []any {
	return []any{
		cluster.Announce{Role: cluster.RoleOwner, Epoch: cluster.Epoch{Counter: 9, Node: 1}, Coverage: cluster.CoverageLost, Chosen: 2,
			Election: cluster.Election{MonitorsUp: 1, Age: time.Hour, Priority: 1, Serial: "TDM2"}},
		cluster.Entitle{Epoch: cluster.Epoch{Counter: 9, Node: 1}, On: true},
		cluster.Entitle{},
		cluster.Claim{Epoch: cluster.Epoch{Counter: 10, Node: 2}},
		cluster.AskRemoval{Node: 2},
		cluster.Announce{Owned: tenures(3, 1, 256, 300), VClusters: vclusters()},
		cluster.Entitle{Scope: 256, Epoch: cluster.Epoch{Counter: 9, Node: 1}, On: true},
		cluster.Entitle{Scope: 256},
		cluster.Claim{Scope: 383, Epoch: cluster.Epoch{Counter: 10, Node: 2}},
		cluster.AskRemoval{Scope: 1, Node: 2},
		addresses{[]Address{{"lan", netip.MustParsePrefix("192.0.2.1/24")}, {"wan", netip.MustParsePrefix("2001:db8::1/64")}}, []MAC{{"lan", [6]byte{2, 1, 2, 3, 4, 5}}}},
		streamPort(6000),
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, e := range events() {
		b, err := encodeEvent(e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeEvent(b); err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v, %v; want %+v", got, err, e)
		}
	}
	for _, r := range requests() {
		b, err := encodeRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeRequest(b); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v, %v; want %+v", got, err, r)
		}
	}
	if b, err := encodeEvent(cluster.GuardLog{}); b != nil || err != nil {
		t.Error("a log line is no message for the daemon")
	}
	if _, err := encodeRequest(42); err == nil {
		t.Error("an unknown message was encoded")
	}
}

func TestScopesOutOfBoundsAreRefused(t *testing.T) {
	many := make([]cluster.ScopeID, 0, 160)
	for s := range cluster.ScopeID(160) {
		many = append(many, 1+s)
	}
	for _, ts := range [][]cluster.Tenure{tenures(1, 0), tenures(1, 31), tenures(1, 384), tenures(1, 2, 2), tenures(1, 3, 2), tenures(17, 1), tenures(1, many...), {{Scope: 1}}} {
		for _, e := range []Event{cluster.TellPeer{Peer: cluster.Peer{Owned: ts}}, cluster.TellPeer{Peer: cluster.Peer{EntitledTo: ts}}, cluster.TellLoss{Claimed: ts}} {
			b, err := encodeEvent(e)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decodeEvent(b); err == nil {
				t.Errorf("taken: %+v", e)
			}
		}
		b, err := encodeRequest(cluster.Announce{Owned: ts})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRequest(b); err == nil {
			t.Errorf("taken: %+v", ts)
		}
	}
	epoch := cluster.Epoch{Counter: 1, Node: 1}
	for _, r := range []any{cluster.Entitle{Scope: 200}, cluster.Claim{Scope: 384, Epoch: epoch}, cluster.Claim{Scope: 1}, cluster.AskRemoval{Scope: 31}} {
		b, err := encodeRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRequest(b); err == nil {
			t.Errorf("taken: %+v", r)
		}
	}
}

func FuzzEvent(f *testing.F) {
	for _, e := range events() {
		b, err := encodeEvent(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEvent(b)
		if err != nil {
			return
		}
		if _, err := encodeEvent(e); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	for _, r := range requests() {
		b, err := encodeRequest(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRequest(b)
		if err != nil {
			return
		}
		if _, err := encodeRequest(r); err != nil {
			t.Fatal(err)
		}
	})
}
