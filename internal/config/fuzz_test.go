package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzLoad: whatever is read, faults carry a sentence and no more than maxFaults
// of them appear; what loads shows itself and loads again to the same.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) == 0 {
		f.Fatal("no testdata", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{"", "config", "end", "next", "edit", "config system ha\nset hbdev \"a\" 1 'b' 2\nend", "config firewall addrgrp\nedit a\nset member a\n",
		"config system ha\nset password \"\\\"\\\\\"", "config system interface\nedit a\nconfig ipv6\nset ip6-address ::1/128\nconfig ip6-extra-addr\nedit ::2/64\n",
		"config vpn ipsec phase2-interface\nedit a\nset src-addr-type range6\nset src-start-ip6 ::\n", "\"\n\"x", "'", "\\", "config firewall address\nedit x\nset subnet 1.2.3.4 0.0.0.255\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, faults := Load("f", text)
		if len(faults) > maxFaults+1 {
			t.Fatalf("%d faults", len(faults))
		}
		broken := false
		for _, x := range faults {
			if x.Message == "" || x.Line < 0 || x.Line > bytes.Count(text, []byte("\n"))+1 {
				t.Fatalf("%+v", x)
			}
			broken = broken || !x.Warning
		}
		if broken != (c == nil) {
			t.Fatalf("broken %v, configuration %v: %v", broken, c != nil, faults)
		}
		if c == nil {
			return
		}
		for _, full := range []bool{false, true} {
			var b strings.Builder
			if err := c.ShowSecrets(&b, "", full); err != nil {
				t.Fatal(err)
			}
			again, faults := Load("shown", []byte(b.String()))
			if again == nil {
				t.Fatalf("what is shown does not load: %v\n%s", faults, b.String())
			}
			if d := cmp.Diff(c, again, equalConfig); d != "" {
				t.Fatalf("full=%v: %s\n%s", full, d, b.String())
			}
		}
		if d := Diff(c, c); !d.Empty() {
			t.Fatalf("differs from itself: %+v", d)
		}
		c.Checksum(nil)
	})
}
