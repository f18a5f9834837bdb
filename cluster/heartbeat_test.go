package cluster

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"tandem/internal/ipsec"
)

func fullHeartbeat() Heartbeat {
	return Heartbeat{
		Node: 1, Name: "gw1", Incarnation: 1 << 60, Seq: 99, Process: 1<<64 - 1, Running: true, Stalled: true, Entitled: Epoch{Counter: 7, Node: 2},
		Announce: Announce{
			Role: RoleOwner, Epoch: Epoch{Counter: 8, Node: 1}, Coverage: CoverageNote, Chosen: 2,
			Election: Election{MonitorsUp: 3, Age: 12345 * time.Millisecond, Priority: 255, Override: true, Serial: "TDM0001", Failover: true,
				Penalty: 70, Handed: HandedSerial, OverrideWait: time.Hour},
		},
		StreamPort: 65535, Heard: []Heard{{2, 5}, {16, 1}},
		Requests: []Removal{{Node: 2, Nonce: 6, Epoch: Epoch{Counter: 8, Node: 1}}}, Answers: []Removal{{Node: 3, Nonce: 7}},
	}
}

func TestHeartbeatRoundTrip(t *testing.T) {
	for _, h := range []Heartbeat{fullHeartbeat(), {Node: 16, Incarnation: 1, Seq: 1, Unresponsive: true}} {
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
	}
}

func TestHeartbeatAuthentication(t *testing.T) {
	h := fullHeartbeat()
	b, err := h.Marshal(testKey)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		x := bytes.Clone(b)
		x[i] ^= 1
		if _, err := DecodeHeartbeat(testKey, x); err == nil {
			t.Fatalf("taken with byte %d changed", i)
		}
	}
	if _, err := DecodeHeartbeat(ipsec.NewKey([]byte("another cluster")), b); !errors.Is(err, ErrHeartbeatAuth) {
		t.Errorf("another key: %v", err)
	}
	for n := range len(b) {
		if _, err := DecodeHeartbeat(testKey, b[:n]); err == nil {
			t.Fatalf("taken when cut to %d bytes", n)
		}
	}
	if _, err := DecodeHeartbeat(testKey, append(b, make([]byte, MaxHeartbeat)...)); !errors.Is(err, ErrNotHeartbeat) {
		t.Errorf("too long: %v", err)
	}
}

func TestHeartbeatRanges(t *testing.T) {
	for name, change := range map[string]func(*Heartbeat){
		"node 0":           func(h *Heartbeat) { h.Node = 0 },
		"node 17":          func(h *Heartbeat) { h.Node = 17 },
		"incarnation":      func(h *Heartbeat) { h.Incarnation = 0 },
		"number":           func(h *Heartbeat) { h.Seq = 0 },
		"name":             func(h *Heartbeat) { h.Name = strings.Repeat("x", 65) },
		"serial":           func(h *Heartbeat) { h.Announce.Election.Serial = strings.Repeat("x", 65) },
		"role":             func(h *Heartbeat) { h.Announce.Role = 3 },
		"coverage":         func(h *Heartbeat) { h.Announce.Coverage = 3 },
		"chosen":           func(h *Heartbeat) { h.Announce.Chosen = 17 },
		"epoch":            func(h *Heartbeat) { h.Announce.Epoch = Epoch{Counter: 1 << 63, Node: 1} },
		"epoch's node":     func(h *Heartbeat) { h.Announce.Epoch = Epoch{Counter: 1, Node: 0} },
		"entitled":         func(h *Heartbeat) { h.Entitled = Epoch{Counter: 1, Node: 99} },
		"priority":         func(h *Heartbeat) { h.Announce.Election.Priority = 256 },
		"monitors":         func(h *Heartbeat) { h.Announce.Election.MonitorsUp = -1 },
		"override's wait":  func(h *Heartbeat) { h.Announce.Election.OverrideWait = 3601 * time.Second },
		"heard, a node":    func(h *Heartbeat) { h.Heard = []Heard{{99, 1}} },
		"heard, too many":  func(h *Heartbeat) { h.Heard = make([]Heard, 17) },
		"request's node":   func(h *Heartbeat) { h.Requests = []Removal{{Node: 0, Nonce: 1}} },
		"answer's epoch":   func(h *Heartbeat) { h.Answers = []Removal{{Node: 1, Nonce: 1, Epoch: Epoch{Counter: 1, Node: 77}}} },
		"answers too many": func(h *Heartbeat) { h.Answers = make([]Removal, 17) },
	} {
		h := fullHeartbeat()
		change(&h)
		b, err := h.Marshal(testKey)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := DecodeHeartbeat(testKey, b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	h := fullHeartbeat()
	h.Announce.Election.Handed = handedMax + 1
	if b, err := h.Marshal(testKey); err != nil {
		t.Error(err)
	} else if got, err := DecodeHeartbeat(testKey, b); err != nil || got.Announce.Election.Handed != HandedNot {
		t.Errorf("a newer build's reason: %+v, %v", got, err)
	}
	h.Name = strings.Repeat("x", MaxHeartbeat)
	if _, err := h.Marshal(testKey); err == nil {
		t.Error("too long to send, yet encoded")
	}
}

// FuzzHeartbeat gives the parser what has passed authentication.
func FuzzHeartbeat(f *testing.F) {
	h := fullHeartbeat()
	b, err := h.Marshal(testKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[heartbeatHeader:])
	f.Add([]byte{})
	f.Add([]byte{0x08, 0x01, 0x18, 0x01, 0x20, 0x01})
	for _, b := range scopeSeeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeartbeat(b)
		if err != nil {
			return
		}
		again, err := h.marshal(testKey)
		if err != nil {
			return // longer than a datagram
		}
		got, err := DecodeHeartbeat(testKey, again)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded and decoded: %v", err)
		}
		if !reflect.DeepEqual(got, h) {
			t.Fatalf("\n got %+v\nwant %+v", got, h)
		}
	})
}

// FuzzDatagram gives the decoder what anybody can send.
func FuzzDatagram(f *testing.F) {
	h := fullHeartbeat()
	b, err := h.Marshal(testKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:heartbeatHeader])
	f.Add(b[:heartbeatHeader+1])
	key := ipsec.NewKey([]byte("a key that the corpus does not know"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := DecodeHeartbeat(key, b); err == nil {
			t.Fatal("taken without the key")
		}
	})
}
