package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tandem/internal/lab"
)

// loneMember is a copy of the farm's example in which the first member is a gateway of
// its own, with one scenario.
func loneMember(t *testing.T, scenario string) string {
	t.Helper()
	dir := edited(t, exampleFarm, "demo", nil)
	path := filepath.Join(dir, "DC1_VM1.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(text), "config system standalone-cluster\n")
	_, tail, ok := strings.Cut(rest, "\nend\n")
	conf := head + strings.Replace(tail, "        set fgsp-sync enable\n", "", 1)
	if !ok || strings.Contains(conf, "cluster-peer") || strings.Contains(conf, "fgsp-sync enable") {
		t.Fatalf("the member's configuration is not as expected:\n%s", conf)
	}
	for p, s := range map[string]string{path: conf, filepath.Join(dir, "scenarios", "lone.lab"): scenario} {
		if err := os.WriteFile(p, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFarmClients: all clients of a farm, strongSwan's and Tandem's, come up against
// one gateway that has the shared address alone, and each carries traffic both ways.
func TestFarmClients(t *testing.T) {
	needCharon(t)
	res, out, keep := runLabOnce(t, loneMember(t, `
about One gateway, no fault
farm sync=1 charon=2 charon-tunnels=2 tandem=16 processes=2
traffic probe=20ms tcp=50000
steps
    wait synchronised
    carries 1s
end
bound clients = 20
bound members = 1
bound kills = 0
bound pings_sent >= 1500
bound sa_init_after_up = 0
bound ike_auth_after_up = 0
bound iv_repeats = 0
bound seq_regressions = 0
bound seq_regressions_owner = 0
bound replays_accepted = 0
bound doubled_at_client = 0
bound owner_moves = 0
bound double_owner_ms = 0
bound uninvolved_packets = 0
bound spi_changed = false
bound tcp_ok = true
bound failed_expectations = 0
`), "--scenario", "lone")
	if res.Verdict != lab.VerdictPass || res.Client != "charon+tandem" || res.LostPings*100 > res.PingsSent {
		t.Fatalf("%s, client %s, %d of %d probes lost: %v\n%s\n%s", res.Verdict, res.Client, res.LostPings, res.PingsSent, res.Violations, out, keep)
	}
	// Every client authenticated itself once: four messages each.
	if res.IKEMessages["IKE_SA_INIT"] != 40 || res.IKEMessages["IKE_AUTH"] != 40 {
		t.Errorf("messages: %v", res.IKEMessages)
	}
	_ = os.RemoveAll(keep)
}

// TestFarmJudgesALostGateway: nobody takes over from the only member. Its death and the
// loss of its host end every tunnel, and the result says so.
func TestFarmJudgesALostGateway(t *testing.T) {
	needRoot(t)
	res, out, keep := runLabOnce(t, loneMember(t, `
about The only gateway dies, then its host
farm sync=1 charon=0 tandem=6 processes=1
traffic probe=20ms tcp=0
steps
    wait synchronised
    run 300ms
    kill DC1_VM1
    wait synchronised 3s
    replay 500ms
    lose DC1_VM1
    restore
    wait synchronised 3s
    carries 500ms
end
bound kills = 2
bound tunnels_hit = 12
bound outage_ms.median <= 50
bound outage_from_kill_ms.p99 <= 500
bound replayed >= 50
bound replays_accepted = 0
`), "--scenario", "lone", "--client", lab.ClientTandem)
	var fields []string
	for _, v := range res.Violations {
		f, _, _ := strings.Cut(v, " is ")
		fields = append(fields, f)
	}
	want := []string{"members own 0 tunnels, 6 stood", "members own 0 tunnels, 6 stood", "0 of 6 tunnels carried traffic, expected 6",
		"outage_ms.median", "outage_from_kill_ms.p99"}
	if res.Verdict != lab.VerdictFail || !slices.Equal(fields, want) {
		t.Fatalf("%s: %v\n%s\n%s", res.Verdict, res.Violations, out, keep)
	}
	if f := res.Faults; len(f) != 2 || f[0].Victim != "DC1_VM1" || f[0].Tunnels != 6 || f[0].MovedAfterMS < 60 || f[0].MovedAfterMS > 200 ||
		f[0].OutageFromKillMS.Median < 1000 || f[0].OutageMS.Median > f[0].OutageFromKillMS.Median {
		t.Errorf("%+v", f)
	}
	if c := res.Changes; len(c) != 2 || c[0].Why != "rejoin" {
		t.Errorf("%+v", c)
	}
	_ = os.RemoveAll(keep)
}
