package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tandem runs the binary's command line in this process.
func tandem(args ...string) (stdout string, code int, text string) {
	root := newRoot()
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	args, err := spellOut(root, args)
	if err == nil {
		root.SetArgs(args)
		err = root.ExecuteContext(context.Background())
	}
	if err == nil {
		return out.String(), 0, ""
	}
	code = exitUsage
	var e exitError
	if errors.As(err, &e) {
		code = e.code
	}
	return out.String(), code, err.Error()
}

func TestWordsAndFlags(t *testing.T) {
	t.Setenv("TANDEM_SOCKET", "/from/env")
	words, f, err := parseWords([]string{"debug", "--json", "application", "ike", "-1", "--socket", "/s", "--show-keys"})
	if err != nil || !slices.Equal(words, []string{"debug", "application", "ike", "-1"}) || !f.json || !f.showKeys || f.socket != "/s" {
		t.Errorf("%v %+v %v", words, f, err)
	}
	if _, f, _ := parseWords(nil); f.socket != "/from/env" {
		t.Errorf("socket %s", f.socket)
	}
	t.Setenv("TANDEM_SOCKET", "")
	if _, f, _ := parseWords([]string{"?"}); f.socket != defaultSocket || !f.help {
		t.Errorf("%+v", f)
	}
	for _, bad := range [][]string{{"--socket"}, {"--sjon"}} {
		if _, _, err := parseWords(bad); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.conf"), filepath.Join(dir, "bad.conf")
	for path, text := range map[string]string{
		good: "config system ha\n    set mode standalone\nend\n",
		bad:  "config system ha\n    set mode sideways\n    set priority 999\nend\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		line string
		code int
		want string // in the output or in the error
	}{
		{"version", 0, "tandem "},
		{"ver", 0, "tandem "},
		{"check " + good, 0, "ok, 0 phase 1"},
		{"check " + bad, 1, "bad.conf:3"},
		{"check " + dir + "/none.conf", 2, "no such file"},
		{"c x", 2, `ambiguous word "c": it could be check, cluster`},
		{"frobnicate", 2, "unknown command"},
		{"check", 2, "tandem check needs one configuration file, not 0"},
		{"check " + good + " " + bad, 2, "tandem check needs one configuration file, not 2"},
		{"run --nonsense", 2, "unknown flag"},
		{"run --config " + bad, 1, "bad.conf:2"},
		{"di vpn tunnel list --socket " + dir + "/none.sock", 1, "is tandem running?"},
		{"di vpn tunnel ?", 0, "diagnose vpn tunnel flush"},
		{"sh --help", 0, "full-configuration"},
		{"get vpm --help", 2, `did you mean "vpn"`},
		{"cluster init --dir " + dir + "/c gw1 gw2", 0, "node 2: "},
		{"cluster init --dir " + dir + "/c gw1 gw2", 1, "never overwritten"},
		{"cluster add --dir " + dir + "/c gw3", 2, "between 1 and 16"},
		{"lab run " + dir + "/nowhere", 2, "no folder of an example"},
		{"lab run --client tandem " + dir, 2, "no scenarios (scenarios/NAME.lab)"},
		{"lab run --client tandem --scenario nope ../../examples/pair", 2, "has no scenario \"nope\"; it has: "},
		{"lab run --client somebody ../../examples/pair", 2, "charon and tandem are known"},
		{"lab run --client tandem ../../examples/vcluster", 2, "there is no --client tandem"},
	} {
		out, code, text := tandem(strings.Fields(c.line)...)
		if code != c.code || !strings.Contains(out+text, c.want) {
			t.Errorf("tandem %s: exit %d, want %d with %q:\n%s%s", c.line, code, c.code, c.want, out, text)
		}
	}
}

// All faults come at once, and as JSON for scripts.
func TestCheckJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.conf")
	if err := os.WriteFile(path, []byte("config system ha\n    set priority 999\n    set group-id 5000\nend\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, code, _ := tandem("check", path, "--json")
	var j checkJSON
	if err := json.Unmarshal([]byte(out), &j); err != nil || code != 1 {
		t.Fatalf("exit %d, %v:\n%s", code, err, out)
	}
	var lines []int
	for _, f := range j.Faults {
		if !f.Warning {
			lines = append(lines, f.Line)
		}
	}
	if j.OK || !slices.Contains(lines, 2) || !slices.Contains(lines, 3) {
		t.Errorf("faults at lines %v, want 2 and 3", lines)
	}
}
