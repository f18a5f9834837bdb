package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// another is a member's own settings around the same shared part.
const another = `config system global
    set hostname "other"
end
config system ha
    set priority 7
    set override enable
end
config system tandem
    set state-dir "/var/lib/other"
    set log-level debug
end
config router bgp
    set router-id 203.0.113.7
end
`

func loadAll(t *testing.T, text string) *Config {
	t.Helper()
	c, faults := load(t, "f", text)
	if c == nil {
		t.Fatal(faults)
	}
	return c
}

// The shared part of one member, joined with what is another's own, is shared by both,
// and nothing of either one's own has changed sides.
func TestJoin(t *testing.T) {
	for _, file := range []string{"testdata/pair.conf", "testdata/everything.conf"} {
		a := loadAll(t, readFile(t, file))
		b := loadAll(t, another+"config system interface\nedit wan\nset management-ip 203.0.113.9/24\nnext\nedit gone\nset management-ip 203.0.113.10/24\nnext\nend\n")
		c, faults := b.Join("revision", a.Shared())
		if c == nil {
			t.Fatalf("%s: %v", file, faults)
		}
		if d := cmp.Diff(string(a.Shared()), string(c.Shared())); d != "" {
			t.Errorf("%s: the shared part (-theirs +ours):\n%s", file, d)
		}
		if c.Hostname != "other" || c.HA.Priority != 7 || !c.HA.Override || c.Tandem.StateDir != "/var/lib/other" || c.Tandem.LogLevel != "debug" {
			t.Errorf("%s: this node's own: %q %+v %+v", file, c.Hostname, c.HA, c.Tandem)
		}
		for _, i := range c.Interfaces {
			if i.Name == "gone" {
				t.Errorf("%s: an entry that the cluster does not have came back with what was its own", file)
			}
			if i.Name == "wan" && (len(i.ManagementIP) != 1 || i.ManagementIP[0].String() != "203.0.113.9/24") {
				t.Errorf("%s: management-ip is %v", file, i.ManagementIP)
			}
		}
		d := loadAll(t, string(c.Text()))
		if diff := Diff(c, d); !diff.Empty() {
			t.Errorf("%s: its text loads to another configuration: %+v", file, diff)
		}
		if Digest([]byte("k"), d.Shared()) != Digest([]byte("k"), a.Shared()) || Digest([]byte("k"), d.Shared()) == Digest([]byte("l"), d.Shared()) {
			t.Errorf("%s: digests", file)
		}
	}
}

// What a farm's member has of its own is needed for its file to load, and is kept.
func TestJoinOfAFarm(t *testing.T) {
	member := func(id, peer string) string { // entries are numbered as the one who wrote them liked
		return "config system standalone-cluster\nset standalone-group-id 3\nset group-member-id " + id +
			"\nconfig cluster-peer\nedit " + peer + "\nset peerip 10.0.0." + peer + "\nset hb-interval 1\nnext\nend\nend\n"
	}
	a, b := loadAll(t, member("1", "2")+"config router static\nedit 1\nset dst 10.9.0.0/16\nset blackhole enable\nnext\nend\n"), loadAll(t, member("2", "1"))
	c, faults := b.Join("revision", a.Shared())
	if c == nil {
		t.Fatal(faults)
	}
	if len(Differences(a, c)) > 0 || len(c.Standalone.Peers) != 1 || c.Standalone.MemberID != 2 || c.Standalone.Peers[0].PeerIP.String() != "10.0.0.1" || len(c.Routes) != 1 {
		t.Errorf("%+v %+v", c.Standalone, c.Routes)
	}
}

func TestJoinFaults(t *testing.T) {
	c := loadAll(t, readFile(t, "testdata/pair.conf"))
	for _, bad := range []string{"config vpn ipsec phase9\nend\n", "config system ha\nset mode a-p\nend\n", strings.Repeat("#\n", MaxSize/2+1)} {
		if x, faults := c.Join("revision", []byte(bad)); x != nil || len(faults) == 0 || faults[0].File != "revision" {
			t.Errorf("%.40q is taken: %v", bad, faults)
		}
	}
}

func TestDifferences(t *testing.T) {
	base := readFile(t, "testdata/pair.conf")
	a := loadAll(t, base)
	const open = "config vpn ipsec phase1-interface\nedit vpn1\n"
	for _, tc := range []struct {
		name, more string
		want       []string
	}{
		{"nothing", "", nil},
		{"what is a node's own", another, nil},
		{"a value", open + "set keylife 3600\nnext\nend\n", []string{`+ vpn ipsec phase1-interface "vpn1": set keylife 3600`}},
		{"a secret", open + "set psksecret hidden1\nnext\nend\n", []string{`- vpn ipsec phase1-interface "vpn1": set psksecret ENC redacted`, `+ vpn ipsec phase1-interface "vpn1": set psksecret ENC redacted`}},
		{"an entry", "config router static\nedit 9\nset dst 10.9.0.0/16\nset device vpn1\nnext\nend\n",
			[]string{"+ router static: edit 9", "+ router static 9: set dst 10.9.0.0 255.255.0.0", `+ router static 9: set device "vpn1"`}},
		{"a block within", "config system interface\nedit lan\nconfig secondaryip\nedit 1\nset ip 10.5.0.1/24\nnext\nend\nnext\nend\n",
			[]string{`+ system interface "lan" secondaryip: edit 1`, `+ system interface "lan" secondaryip 1: set ip 10.5.0.1 255.255.255.0`}},
	} {
		b := loadAll(t, base+tc.more)
		got := Differences(a, b)
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
		if back := Differences(b, a); len(back) != len(got) {
			t.Errorf("%s: the other way round: %q", tc.name, back)
		}
	}
	const two = "config firewall policy\nedit 1\nset srcintf any\nset dstintf any\nset srcaddr all\nset dstaddr all\nnext\nedit 2\nset srcintf any\nset dstintf any\nset srcaddr all\nset dstaddr all\nnext\nend\n"
	p := loadAll(t, two)
	swapped := *p
	swapped.Policies = []Policy{p.Policies[1], p.Policies[0]}
	if got := Differences(p, &swapped); len(got) != 1 || !strings.Contains(got[0], "another place") {
		t.Errorf("another order: %q", got)
	}
	if got := Differences(loadAll(t, ""), loadAll(t, "config firewall policy\nend\n")); !slices.Equal(got, []string{"+ config firewall policy (empty)"}) {
		t.Errorf("an empty block: %q", got)
	}
}

// FuzzJoin: whatever another member calls its shared part, what is taken of it can be
// written to a file, read back, and is the same there.
func FuzzJoin(f *testing.F) {
	f.Add([]byte("config router static\nedit 1\nset blackhole enable\nset dst 10.0.0.0/8\nnext\nend\n"))
	f.Add([]byte("config system global\nset hostname x\nend\nconfig system interface\nedit \"a b\"\nset ip 1.2.3.4/24\nnext\nend\n"))
	f.Add([]byte("config vpn ipsec phase1-interface\nedit v\nset interface wan\nset remote-gw 1.2.3.4\nset psksecret \"a\\\"b\\\\\nc\"\nnext\nend\n"))
	c, _ := Load("f", []byte(another))
	f.Fuzz(func(t *testing.T, shared []byte) {
		x, faults := c.Join("revision", shared)
		if x == nil {
			if len(faults) == 0 {
				t.Error("refused without a fault")
			}
			return
		}
		y, faults := Load("file", x.Text())
		if y == nil {
			if len(x.Text()) <= MaxSize {
				t.Fatalf("what was written does not load: %v", faults)
			}
			return
		}
		if string(x.Shared()) != string(y.Shared()) || len(Differences(x, y)) > 0 {
			t.Errorf("another shared part: %q", Differences(x, y))
		}
	})
}
