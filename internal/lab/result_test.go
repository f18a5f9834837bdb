package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files")

func goldenResult() Result {
	return Result{
		Scenario: "demo", Client: ClientCharon, Kills: 2,
		OutageMS: Spread{41.5, 60.25, 60.25}, DetectMS: Middle{1.5, 31}, LostPings: 21,
		ChildRekeys: 3, IKERekeys: 1, SeqJump: Middle{700, 810}, TCPOK: true,
		Takeovers: []Takeover{
			{Fault: "SIGKILL", Victim: NodeGW1, Survivor: NodeGW2, Reason: "gw1's daemon died", Covered: true, Epoch: "2.2",
				Ceiling: 4000, First: 4001, Jump: 700, DetectMS: 1.5, FirstMS: 20, OutageMS: 41.5, Explained: true},
			{Fault: "loss of the host", Victim: NodeGW2, OutageMS: 60.25},
		},
		PingsSent: 4000, IKEMessages: map[string]int{"IKE_SA_INIT": 2, "CREATE_CHILD_SA": 8},
		TransferBytes: 3_000_000, Violations: []string{}, Seconds: 12,
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
}

func TestResultGolden(t *testing.T) {
	r := goldenResult()
	r.judge([]Bound{{"outage_ms.max", "<=", "300"}, {"kills", "=", "2"}, {"tcp_ok", "=", "true"}})
	b, err := r.JSON()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "result.json", b)
	var report bytes.Buffer
	r.Report(&report)
	golden(t, "report.txt", report.Bytes())

	// The stable fields come first and in their order.
	stable := []string{"scenario", "client", "kills", "outage_ms", "detect_ms", "lost_pings", "sa_init_after_up", "ike_auth_after_up",
		"child_rekeys", "ike_rekeys", "rekeys_unanswered", "iv_repeats", "seq_regressions", "replays_accepted", "seq_jump",
		"spi_changed", "tcp_ok", "verdict"}
	var order []string
	for _, line := range strings.Split(string(b), "\n") {
		if k, _, ok := strings.Cut(strings.TrimPrefix(line, `  "`), `":`); ok && strings.HasPrefix(line, `  "`) {
			order = append(order, k)
		}
	}
	if !slices.Equal(order[:len(stable)], stable) {
		t.Errorf("fields: %v", order)
	}
	if !json.Valid(b) {
		t.Error("not JSON")
	}
}

func TestBounds(t *testing.T) {
	for _, test := range []struct {
		bound string
		holds bool
	}{
		{"outage_ms.max <= 60.25", true}, {"outage_ms.max <= 60", false}, {"outage_ms.p99 >= 60", true},
		{"child_rekeys >= 3", true}, {"child_rekeys >= 4", false}, {"iv_repeats = 0", true}, {"kills = 10", false},
		{"tcp_ok = true", true}, {"spi_changed = true", false}, {"spi_changed = 0", false},
	} {
		b, err := parseBound(strings.Fields(test.bound), &Result{})
		if err != nil {
			t.Fatal(err)
		}
		r := goldenResult()
		r.judge([]Bound{b})
		if (r.Verdict == VerdictPass) != test.holds || (len(r.Violations) == 0) != test.holds {
			t.Errorf("%s: %s %v", test.bound, r.Verdict, r.Violations)
		}
		if (ExitStatus(r, nil) == 0) != test.holds {
			t.Errorf("%s: exit status %d", test.bound, ExitStatus(r, nil))
		}
	}
	r := goldenResult()
	r.CaptureDrops = 1
	r.judge(nil)
	if r.Verdict != VerdictFail {
		t.Error("a capture with drops passes")
	}
	if ExitStatus(Result{}, ErrNoCharon) != 2 || ExitStatus(Result{Verdict: VerdictPass}, errors.New("x")) != 1 {
		t.Error("exit status of errors")
	}
}

func TestParseTakeover(t *testing.T) {
	want := TakeoverEvent{Reason: "gw1 was silent on every link", Covered: true, Epoch: "3.2", DetectMS: 31.25, Ceiling: 4000, SAs: 2}
	for _, line := range []string{
		`{"time":"2026-01-01T12:00:00Z","level":"INFO","msg":"takeover","epoch":"3.2","covered":true,"reason":"gw1 was silent on every link","detect_ms":31.25,"ceiling":4000,"sas":2}`,
		`time=2026-01-01T12:00:00.000Z level=INFO msg=takeover epoch=3.2 covered=true trusted=true reason="gw1 was silent on every link" detect_ms=31.25 ceiling=4000 sas=2`,
	} {
		got, ok := parseTakeover(line)
		if d := cmp.Diff(want, got); !ok || d != "" {
			t.Errorf("%s: %s", line, d)
		}
	}
	if e, ok := parseTakeover(`{"msg":"takeover","epoch":1795298894,"epoch_node":2}`); !ok || e.Epoch != "1795298894" {
		t.Errorf("an epoch of ten digits is read as %q", e.Epoch)
	}
	for _, line := range []string{"", "takeover", `{"msg":"takeover`, `level=INFO msg="no takeover"`, `msg="takeover`} {
		if _, ok := parseTakeover(line); ok {
			t.Errorf("%q is a takeover", line)
		}
	}
}

func TestParseStatus(t *testing.T) {
	s, err := parseStatus([]byte(`{"hostname":"gw1","role":"primary","synchronised":true,"epoch":7,"daemon_pid":12,"more":{}}`))
	if err != nil || s.Role != RolePrimary || !s.Synchronised || s.Epoch != 7 || s.DaemonPID != 12 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "{}", `{"role":"king"}`} {
		if _, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func FuzzLogAndStatus(f *testing.F) {
	f.Add(`msg=takeover reason="a \"b\"" epoch=1.1`)
	f.Add(`{"msg":"takeover","epoch":"1.1"}`)
	f.Fuzz(func(t *testing.T, line string) {
		if e, ok := parseTakeover(line); !ok && e != (TakeoverEvent{}) {
			t.Error("half a takeover")
		}
		_, _ = parseStatus([]byte(line))
	})
}
