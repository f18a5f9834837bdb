package guardian

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"tandem/cluster"
)

func events() []Event {
	return []Event{
		cluster.TellPeer{Peer: cluster.Peer{
			Node: 2, Name: "gw2", Process: 1<<64 - 1, Running: true, Role: cluster.RoleStandby, Epoch: cluster.Epoch{Counter: 9, Node: 1},
			Entitled: true, Coverage: cluster.CoverageNote, StreamPort: 6000, Chosen: 1, Deaf: true,
			Election: cluster.Election{MonitorsUp: 2, Age: time.Minute, Priority: 200, Override: true, Serial: "TDM1", Failover: true},
			Links:    []cluster.Link{{Device: "hb0", Addr: "fe80::1"}, {Device: "hb1", Addr: "fe80::2"}},
		}},
		cluster.TellLoss{Node: 2, Kind: cluster.LossUnresponsive, Entitled: true, Detected: 31 * time.Millisecond},
		cluster.TellRemoved{Node: 1},
		cluster.TellEntitled{Epoch: cluster.Epoch{Counter: 9, Node: 1}},
		cluster.TellClaimed{Epoch: cluster.Epoch{Counter: 10, Node: 2}, OK: true},
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
		addresses{{"lan", netip.MustParsePrefix("192.0.2.1/24")}, {"wan", netip.MustParsePrefix("2001:db8::1/64")}},
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
