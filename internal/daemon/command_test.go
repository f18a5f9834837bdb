package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func run(d backend, line string) (string, error) {
	var out bytes.Buffer
	s := &session{ctx: context.Background(), d: d, out: &out}
	var words []string
	for _, w := range strings.Fields(line) {
		switch w {
		case "--json":
			s.json = true
		case "--show-keys":
			s.showKeys = true
		default:
			words = append(words, w)
		}
	}
	err := s.execute(words)
	return out.String(), err
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from its golden file:\n%s", name, got)
	}
}

// Each layout once as a person sees it, once as JSON where scripts read it.
func TestLayouts(t *testing.T) {
	for _, c := range []struct {
		name, line string
		standby    bool
	}{
		{"gateway_list", "diagnose vpn ike gateway list", false},
		{"gateway_list_keys", "diagnose vpn ike gateway list name VPNtest --show-keys", false},
		{"gateway_get", "get vpn ike gateway vpn1_1", false},
		{"gateway_json", "diagnose vpn ike gateway list --json", false},
		{"tunnel_list", "diagnose vpn tunnel list", false},
		{"tunnel_list_name_keys", "diagnose vpn tunnel list name vpn1_1 --show-keys", false},
		{"tunnel_list_standby", "diagnose vpn tunnel list name vpn1_1", true},
		{"tunnel_list_unknown", "diagnose vpn tunnel list name nobody", false},
		{"tunnel_json", "diagnose vpn tunnel list name VPNtest --json", true},
		{"summary", "get vpn ipsec tunnel summary", false},
		{"summary_json", "get vpn ipsec tunnel summary --json", false},
		{"tunnel_name", "get vpn ipsec tunnel name VPNtest", false},
		{"config_summary", "diagnose vpn ike config list summary", false},
		{"config_list", "diagnose vpn ike config list", false},
		{"config_json", "diagnose vpn ike config list --json", false},
		{"ha_status", "get system ha status", false},
		{"ha_status_standby", "diagnose sys ha status", true},
		{"ha_status_json", "get system ha status --json", false},
		{"stats", "diagnose vpn ike stats", false},
		{"stats_json", "diagnose vpn ike stats --json", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := run(&fakeBackend{v: testView(t, c.standby)}, c.line)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(c.line, "--json") && !json.Valid([]byte(out)) {
				t.Errorf("not JSON:\n%s", out)
			}
			golden(t, c.name, out)
		})
	}
}

// No command gives a key away unless asked to.
func TestKeysDoNotPrint(t *testing.T) {
	v := testView(t, false)
	secrets := []string{}
	for _, g := range v.Node.Gateways {
		for _, s := range g.IKE {
			secrets = append(secrets, keyText(s.Keys.Ei, true), groupedKey(s.Keys.Ai, true))
		}
		for _, c := range g.Children {
			secrets = append(secrets, keyText(c.SA.EncrIn, true), keyText(c.SA.IntegOut, true))
		}
	}
	for _, row := range allCommands() {
		if row.args != "" && row.args[0] != '[' || strings.HasPrefix(row.path, "diagnose debug") || row.path == "execute ha drain" {
			continue
		}
		for _, flags := range []string{"", " --json"} {
			hub, _ := newLogHub(&bytes.Buffer{}, "text", "info")
			out, err := run(&fakeBackend{v: v, hub: hub}, row.path+flags)
			if err != nil {
				t.Errorf("%s: %v", row.path, err)
			}
			for _, s := range secrets {
				if s != "" && strings.Contains(out, s) {
					t.Errorf("%s%s printed a key", row.path, flags)
				}
			}
		}
	}
}

func TestAbbreviations(t *testing.T) {
	d := &fakeBackend{v: testView(t, false)}
	want, err := run(d, "diagnose vpn ike gateway list")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"di vpn ike gateway list", "diag vpn ike gat li", "d v i g l"} {
		if got, err := run(d, line); err != nil || got != want {
			t.Errorf("%q: %v", line, err)
		}
	}
	for _, c := range []struct{ line, want string }{
		{"get vpn ip tunnel s", "'VPNtest'"},
		{"sh system ha", "set group-id 7"},
		{"show full vpn ipsec phase2-interface", "set pfs enable"},
		{"g sy ha st", "HA Health Status"},
		{"di vpn tun list na vpn1_1", "name=vpn1_1"},
	} {
		if got, err := run(d, c.line); err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%q: %v, no %q in\n%s", c.line, err, c.want, got)
		}
	}
}

func TestWordsThatDoNotFit(t *testing.T) {
	d := &fakeBackend{v: testView(t, false)}
	for _, c := range []struct{ line, want string }{
		{"get vpn i", `ambiguous word "i" after get vpn: it could be ike, ipsec`},
		{"get vpn ipsex", `did you mean "ipsec"?`},
		{"frobnicate", "possible: diagnose, execute, get, show"},
		{"get vpn ipsec tunnel", "incomplete command: get vpn ipsec tunnel is followed by one of: name, summary"},
		{"get vpn ipsec tunnel summary now", `nothing may follow, but "now" does`},
		{"diagnose vpn tunnel list name", "expected: [name NAME]"},
		{"execute ha failover set 2", "the one cluster here is number 1"},
		{"diagnose vpn tunnel up", "expected: PHASE2 [PHASE1]"},
		{"show nonsense", "nonsense"},
		{strings.Repeat("x ", 65), "at most 64 words"},
		{strings.Repeat("x", 257), "at most 256 bytes"},
	} {
		_, err := run(d, c.line)
		if err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != exitUsage {
			t.Errorf("%.40q: %v", c.line, err)
		}
	}
	for _, line := range []string{"", "?", "get ?", "di vpn ike gateway list --help", "--help"} {
		out, err := run(d, line)
		if err != nil || !strings.Contains(out, "Any unambiguous prefix") {
			t.Errorf("help %q: %v\n%s", line, err, out)
		}
	}
	if out, _ := run(d, "diagnose vpn tunnel ?"); !strings.Contains(out, "diagnose vpn tunnel flush") || strings.Contains(out, "get system") {
		t.Errorf("help lists what is below, and nothing else:\n%s", out)
	}
}

func TestActions(t *testing.T) {
	d := &fakeBackend{v: testView(t, false)}
	for _, line := range []string{
		"execute vpn ipsec tunnel up VPNtest VPNtest", "exec vpn ipsec tunnel down vpn1", "diagnose vpn tunnel up VPNtest",
		"di vpn ike gateway clear name vpn1_1", "di vpn ike gateway flush", "di vpn tunnel flush VPNtest",
		"exec ha failover set 1", "exec ha failover unset", "execute reload",
	} {
		if _, err := run(d, line); err != nil {
			t.Errorf("%q: %v", line, err)
		}
	}
	want := "up VPNtest VPNtest|down vpn1 vpn1|up VPNtest VPNtest|clear vpn1_1|clear |clear VPNtest|failover set|failover unset|reload"
	if got := strings.Join(d.asked, "|"); got != want {
		t.Errorf("asked\n%s\nwant\n%s", got, want)
	}
	if _, err := run(d, "diagnose vpn tunnel up nobody"); err == nil || exitCode(err) != exitFailed {
		t.Errorf("an unknown phase 2: %v", err)
	}
}
