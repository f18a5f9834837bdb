package lab

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestViciMessage(t *testing.T) {
	m := viciMessage{
		"success": "yes",
		"gw": viciMessage{
			"state":     "ESTABLISHED",
			"local-ts":  []string{"10.1.0.0/24", "2001:db8:a::/64"},
			"child-sas": viciMessage{"net-1": viciMessage{"spi-in": "c0ffee00"}},
		},
	}
	got, err := decodeVici(m.encode(nil))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got); d != "" {
		t.Error(d)
	}
	if s := got.text("gw", "child-sas", "net-1", "spi-in"); s != "c0ffee00" {
		t.Errorf("spi-in = %q", s)
	}
	// The bytes of the protocol's own example of a key and its value.
	if b := (viciMessage{"key1": "value1"}).encode(nil); string(b) != "\x03\x04key1\x00\x06value1" {
		t.Errorf("encoded %q", b)
	}
	for name, bad := range map[string]string{
		"cut name":          "\x03\x09key1",
		"cut value":         "\x03\x04key1\x00\x09value1",
		"open section":      "\x01\x02ab",
		"end without one":   "\x02",
		"item outside":      "\x05\x00\x00",
		"key in list":       "\x04\x01l\x03\x01a\x00\x00",
		"unknown element":   "\x09\x01a",
		"nested too deeply": strings.Repeat("\x01\x01a", 40) + strings.Repeat("\x02", 40),
	} {
		if _, err := decodeVici([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCharonEvents(t *testing.T) {
	e := CharonEvents{RekeyedSPIs: map[string]bool{}}
	child := func(spi string) viciMessage { return viciMessage{"spi-in": spi, "spi-out": spi + "9"} }
	e.add("child-rekey", viciMessage{"gw": viciMessage{"child-sas": viciMessage{"net-1": viciMessage{"old": child("a"), "new": child("b")}}}})
	e.add("ike-rekey", viciMessage{})
	e.add("ike-updown", viciMessage{"up": "yes"})
	e.add("ike-updown", viciMessage{})
	want := CharonEvents{ChildRekeys: 1, IKERekeys: 1, IKEUps: 1, IKEDowns: 1, RekeyedSPIs: map[string]bool{"b": true, "b9": true}}
	if d := cmp.Diff(want, e); d != "" {
		t.Error(d)
	}
}

func FuzzDecodeVici(f *testing.F) {
	f.Add(viciMessage{"a": "b", "c": []string{"d"}, "e": viciMessage{"f": "g"}}.encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeVici(b)
		if err != nil {
			return
		}
		again, err := decodeVici(m.encode(nil))
		if err != nil || !cmp.Equal(m, again) {
			t.Errorf("%v became %v (%v)", m, again, err)
		}
	})
}
