package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/needs"
)

// fakePair is a folder like examples/pair whose gateways are shell scripts: gw1
// holds the shared addresses and a charon, gw2 does nothing and never takes over.
// The shells stand for guardians, their children for daemons.
func fakePair(t *testing.T, scenario string) Options {
	t.Helper()
	needs.Root(t)
	charon, swanctl, err := FindCharon()
	if err != nil {
		needs.Missing(t, err.Error())
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("scenarios/try.lab", scenario)
	write("client.swanctl", charonPeer("192.0.2.10", "192.0.2.1", "client", "gw", "10.1.0.0/24", "10.2.0.0/24"))
	write("swanctl.conf", charonPeer("192.0.2.1", "%any", "gw", "client", "10.2.0.0/24", "10.1.0.0/24"))
	write("gw1.conf", fmt.Sprintf(`
set -e
ip addr add 192.0.2.1/24 dev wan0
ip addr add 10.2.0.1/24 dev lan0
cat > @DIR@/gw1/strongswan.conf <<END
charon-systemd {
  load = %s
  plugins { vici { socket = unix://@DIR@/gw1/vici } }
}
END
STRONGSWAN_CONF=@DIR@/gw1/strongswan.conf %s &
until [ -S @DIR@/gw1/vici ]; do sleep 0.05; done
%s --load-all --uri unix://@DIR@/gw1/vici --file %s/swanctl.conf
touch @DIR@/gw1/ready
wait
`, CharonPlugins, charon, swanctl, dir))
	write("gw2.conf", "sleep 600 &\nwait\n")
	id := NewID()
	ready := filepath.Join(stateDir(id), "work", "gw1", "ready")
	return Options{
		Example: dir, Scenario: "try", ID: id, single: false, patience: 3 * time.Second,
		argv: func(_, config string) []string { return []string{"/bin/sh", config} },
		status: func(_ context.Context, node string) (HAStatus, error) {
			_, err := os.Stat(ready)
			role := map[string]string{NodeGW1: RolePrimary, NodeGW2: RoleSecondary}[node]
			return HAStatus{Hostname: node, Role: role, Synchronised: true, Epoch: 1}, err
		},
	}
}

func wantClean(t *testing.T, id string) {
	t.Helper()
	if _, err := os.Stat(stateDir(id)); err == nil {
		t.Error("the lab's folder is left")
	}
	for _, n := range pairNodes {
		if _, err := os.Stat(filepath.Join(netnsDir, "tl-"+id+"-"+n)); err == nil {
			t.Errorf("namespace of %s is left", n)
		}
	}
}

func TestRunPasses(t *testing.T) {
	o := fakePair(t, `
about A tunnel that is rekeyed while heartbeats flap and the standby dies
traffic probe=5ms tcp=250000
steps
    wait synchronised
    run 300ms
    rekey client child
    wait child-rekeys 1 5s
    rekey client ike
    wait ike-rekeys 1 5s
    cut-heartbeats hb0
    run 100ms
    join-heartbeats hb0
    pause-both 200ms
    expect unchanged
    expect one-owner
    freeze-host gw2 100ms
    kill gw2
    replay 1s
    run 200ms
end
bound child_rekeys = 1
bound ike_rekeys = 1
bound rekeys_unanswered = 0
bound iv_repeats = 0
bound seq_regressions = 0
bound replays_accepted = 0
bound replayed >= 100
bound kills = 1
bound sa_init_after_up = 0
bound ike_auth_after_up = 0
bound spi_changed = false
bound tcp_ok = true
bound failed_expectations = 0
bound disturbance_ms >= 150
`)
	var out bytes.Buffer
	o.Progress, o.Keep = &out, t.TempDir()
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if res.Verdict != VerdictPass || ExitStatus(res, err) != 0 {
		t.Errorf("verdict %s: %v", res.Verdict, res.Violations)
	}
	t.Log(out.String())
	for _, f := range []string{"wan-client.pcapng", "lan-gw1.pcapng", "charon-client/log", "gw1.log"} {
		if st, err := os.Stat(filepath.Join(o.Keep, f)); err != nil || f != "gw1.log" && st.Size() == 0 {
			t.Errorf("%s was not kept: %v", f, err)
		}
	}
	wantClean(t, o.ID)
}

func TestRunFails(t *testing.T) {
	o := fakePair(t, `
steps
    wait synchronised
    run 200ms
    kill active
    run 1s
end
bound outage_ms.max <= 300
bound kills = 1
`)
	var out bytes.Buffer
	o.Progress, o.patience = &out, 300*time.Millisecond
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if res.Verdict != VerdictFail || res.TCPOK || ExitStatus(res, err) != 1 || res.OutageMS.Max < 900 || res.LostPings < 200 {
		t.Errorf("a pair whose survivor never takes over: %+v", res)
	}
	if !strings.Contains(out.String(), "VIOLATED: outage_ms.max") || !strings.Contains(out.String(), "nobody took over") {
		t.Errorf("the report hides it:\n%s", &out)
	}
	wantClean(t, o.ID)
}

func TestRunInterrupted(t *testing.T) {
	o := fakePair(t, "steps\n wait synchronised\n run 10m\nend\n")
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = writerFunc(func(b []byte) (int, error) {
		if bytes.Contains(b, []byte("tunnel is up")) {
			cancel()
		}
		return len(b), nil
	})
	res, err := Run(ctx, o)
	if err == nil || ExitStatus(res, err) != 1 {
		t.Errorf("an interrupted run: %v", err)
	}
	wantClean(t, o.ID)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestUpAndDown(t *testing.T) {
	o := fakePair(t, "steps\n run 1s\nend\n")
	s, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(stateDir(o.ID)); err == nil {
			_ = s.remove()
		}
	})
	if err := removeAbandoned(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Status(t.Context(), &out); err != nil || !strings.Contains(out.String(), o.ID+": standing") {
		t.Errorf("status: %v\n%s", err, &out)
	}
	seen := filepath.Join(t.TempDir(), "addresses")
	if err := Shell(t.Context(), o.ID, NodeGW1, []string{"/bin/sh", "-c", "ip -4 addr show dev wan0 > " + seen}); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(seen); !strings.Contains(string(text), "192.0.2.1/24") {
		t.Errorf("the shell is not on gw1: %s", text)
	}
	if err := Shell(t.Context(), o.ID, "gw9", nil); err == nil {
		t.Error("a shell on a node that does not exist")
	}
	if err := Down("nosuchlab"); err == nil {
		t.Error("a lab that does not exist was removed")
	}
	if err := Down(o.ID); err != nil {
		t.Fatal(err)
	}
	wantClean(t, o.ID)
}
