package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func shown(t *testing.T, c *Config, path string, full bool) string {
	t.Helper()
	var b strings.Builder
	if err := c.Show(&b, path, full); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestShow(t *testing.T) {
	c, _ := load(t, "f", phase2("set dst-subnet 10.2.0.0/16"))
	const want = `config vpn ipsec phase1-interface
    edit "vpn1"
        set interface "wan"
        set remote-gw 203.0.113.1
        set psksecret ENC redacted
    next
end
config vpn ipsec phase2-interface
    edit "p2"
        set phase1name "vpn1"
        set dst-subnet 10.2.0.0 255.255.0.0
    next
end
`
	if d := cmp.Diff(want, shown(t, c, "", false)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, shown(t, c, "vpn ipsec", false)); d != "" {
		t.Error(d)
	}
	first, second, _ := strings.Cut(want, "config vpn ipsec phase2")
	if d := cmp.Diff(first, shown(t, c, "vpn ipsec phase1-interface vpn1", false)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff("config vpn ipsec phase2"+second, shown(t, c, "vpn ipsec phase2-interface", false)); d != "" {
		t.Error(d)
	}
	full := shown(t, c, "vpn ipsec phase1-interface vpn1", true)
	for _, line := range []string{"set type static", "set local-gw 0.0.0.0", "set keylife 86400", "set dhgrp 14 5", "set localid ''",
		"set auto-negotiate enable", "set passive-mode disable", "set dpd-retryinterval 20", "set psksecret ENC redacted"} {
		if !strings.Contains(full, "        "+line+"\n") {
			t.Errorf("full form lacks %q:\n%s", line, full)
		}
	}
	for _, key := range []string{"local-gw6", "peerid", "exchange-ip-addr4", "ipv4-start-ip", "authmethod-remote"} {
		if strings.Contains(full, "set "+key+" ") {
			t.Errorf("full form shows %s, which has no meaning there", key)
		}
	}
	var b strings.Builder
	if err := c.Show(&b, "vpn ipsec phase3", false); err == nil || b.Len() > 0 {
		t.Errorf("an unknown path shows %q", b.String())
	}
	if err := c.Show(&b, "vpn ipsec phase1-interface vpn9", false); err == nil {
		t.Error("an unknown entry shows something")
	}
	if s := shown(t, c, "firewall policy", false); s != "config firewall policy\nend\n" {
		t.Errorf("an empty block shows %q", s)
	}
}

// No secret appears in what Show, faults and checksums say.
func TestSecretsStayInside(t *testing.T) {
	text := strings.ReplaceAll(readFile(t, "testdata/everything.conf"), "pool secret", "s3cretvalue") + ha("set password s3cretvalue") +
		"config system standalone-cluster\nset psksecret s3cretvalue\nend\n"
	c, faults := load(t, "f", text)
	for _, full := range []bool{false, true} {
		if s := shown(t, c, "", full); strings.Contains(s, "s3cret") || !strings.Contains(s, "ENC redacted") {
			t.Errorf("show: %s", s)
		}
	}
	for _, f := range faults {
		if strings.Contains(f.Error(), "s3cret") {
			t.Error(f.Error())
		}
	}
	for _, bad := range []string{"set psksecret s3cret value", "set psksecret \"s3cret\nvalue", "set psksecrt s3cret", "append psksecret s3cret", "set psksecret 0xs3cret", "unset psksecret s3cret", "\"s3cret\"", "set psksecret \"s3cret\"x"} {
		c, faults := Load("f", []byte(phase1(bad)))
		if c != nil {
			t.Errorf("%q loads", bad)
		}
		for _, f := range faults {
			if strings.Contains(f.Error(), "s3cret") {
				t.Errorf("%q: %s", bad, f.Error())
			}
		}
	}
}

func sums(c *Config, key string) map[string]string {
	m := map[string]string{}
	for _, s := range c.Checksum([]byte(key)) {
		m[s.Path] = s.Sum
	}
	return m
}

func TestChecksum(t *testing.T) {
	base := readFile(t, "testdata/pair.conf")
	a, _ := load(t, "f", base)
	if d := cmp.Diff(sums(a, "k"), sums(a, "k")); d != "" {
		t.Error("the same configuration has two checksums", d)
	}
	for _, tc := range []struct {
		name, more string
		keyed      []string // blocks that differ under a key
		open       []string // blocks that differ without one
	}{
		{"what belongs to one node", ha("set priority 7\nset override enable") + "config system global\nset hostname b\nend\nconfig system tandem\nset log-level debug\nend\nconfig system interface\nedit wan\nset management-ip 203.0.113.9/24\nnext\nend\n", nil, nil},
		{"a setting", ha("set group-id 3"), []string{"system ha"}, []string{"system ha"}},
		{"a default written out", ha("set arps 5"), nil, nil},
		{"a secret", "config vpn ipsec phase1-interface\nedit vpn1\nset psksecret other\nnext\nend\n", []string{"vpn ipsec phase1-interface"}, nil},
		{"an entry", "config router static\nedit 9\nset device vpn1\nnext\nend\n", []string{"router static"}, []string{"router static"}},
	} {
		b, _ := load(t, "f", base+tc.more)
		for key, want := range map[string][]string{"k": tc.keyed, "": tc.open} {
			x, y := sums(a, key), sums(b, key)
			var differ []string
			for _, p := range Paths() {
				if x[p] != y[p] {
					differ = append(differ, p)
				}
			}
			if d := cmp.Diff(want, differ); d != "" {
				t.Errorf("%s: key %q (-want +got):\n%s", tc.name, key, d)
			}
		}
	}
}

func TestDiff(t *testing.T) {
	base := readFile(t, "testdata/pair.conf")
	a, _ := load(t, "f", base)
	if d := Diff(a, a); !d.Empty() {
		t.Errorf("no difference: %+v", d)
	}
	for _, tc := range []struct {
		name string
		text string
		want Delta
	}{
		{"passive-mode", strings.Replace(base, "set dst-subnet 10.2.0.0 255.255.255.0\n        set auto-negotiate enable", "set dst-subnet 10.2.0.0 255.255.255.0", 1) + "config vpn ipsec phase1-interface\nedit vpn1\nset passive-mode enable\nnext\nend\n",
			Delta{Phase1: []Change{{"vpn1", Changed, []string{"passive-mode", "auto-negotiate"}}}, Phase2: []Change{{"vpn1", Changed, []string{"auto-negotiate", "keepalive"}}}}},
		{"a secret", base + "config vpn ipsec phase1-interface\nedit vpn1\nset psksecret other\nnext\nend\n",
			Delta{Phase1: []Change{{"vpn1", Changed, []string{"psksecret"}}}}},
		{"an address behind a name", base + "config firewall address\nedit a\nset subnet 10.7.0.0/16\nnext\nend\n",
			Delta{Addresses: []Change{{"a", Changed, []string{"subnet"}}}, Phase2: []Change{{"vpn1", Changed, []string{"src-name"}}}}},
		{"esn of phase 1", base + "config vpn ipsec phase1-interface\nedit dial\nset esn require\nnext\nend\n",
			Delta{Phase1: []Change{{"dial", Changed, []string{"esn"}}}, Phase2: []Change{{"dial", Changed, []string{"esn"}}}}},
		{"new entries", base + "config router static6\nedit 1\nset device vpn1\nnext\nend\nconfig firewall policy\nedit 2\nset srcintf any\nset dstintf any\nset srcaddr g\nset dstaddr all\nnext\nend\nconfig system interface\nedit x\nnext\nend\n",
			Delta{Routes: []Change{{"1", Added, nil}}, Policies: []Change{{"2", Added, nil}}, Interfaces: []Change{{"x", Added, nil}}}},
		{"system and interface", base + ha("set priority 9\nset monitor lan") + "config system interface\nedit lan\nset ip 10.1.0.9/24\nconfig secondaryip\nedit 1\nset ip 10.5.0.1/24\nnext\nend\nnext\nend\n",
			Delta{System: []Change{{"system ha", Changed, []string{"priority", "monitor"}}}, Interfaces: []Change{{"lan", Changed, []string{"ip", "secondaryip"}}}}},
	} {
		b, _ := load(t, "f", tc.text)
		if d := cmp.Diff(&tc.want, Diff(a, b)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
	removed := Diff(a, nil)
	if len(removed.Phase1) != 2 || removed.Phase1[0].Name != "vpn1" || removed.Phase1[0].Op != Removed || !removed.PolicyOrder {
		t.Errorf("everything removed: %+v", removed)
	}
	const two = "config firewall policy\nedit 1\nset srcintf any\nset dstintf any\nset srcaddr net\nset dstaddr all\nset action accept\nnext\nedit 2\nset srcintf any\nset dstintf any\nset srcaddr all\nset dstaddr all\nnext\nend\n"
	net := func(p string) string { return "config firewall address\nedit net\nset subnet " + p + "\nnext\nend\n" }
	p, _ := load(t, "f", net("10.0.0.0/8")+two)
	q, _ := load(t, "f", net("10.0.0.0/9")+two)
	if d := Diff(p, q); len(d.Policies) != 1 || d.Policies[0].Name != "1" || d.Policies[0].Keys[0] != "srcaddr" || d.PolicyOrder {
		t.Errorf("the addresses behind a policy: %+v", d)
	}
	swapped := *p
	swapped.Policies = []Policy{p.Policies[1], p.Policies[0]}
	if d := Diff(p, &swapped); !d.PolicyOrder || len(d.Policies) != 0 {
		t.Errorf("policies in another order: %+v", d)
	}
}
