package integration

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem/internal/lab"
)

// sumsAnswer is what `diagnose sys ha checksum cluster --json` says.
type sumsAnswer struct {
	InSync   bool   `json:"in_sync"`
	Revision uint64 `json:"revision"`
	Members  []struct {
		Hostname    string   `json:"hostname"`
		State       string   `json:"state"`
		Revision    uint64   `json:"revision"`
		Fault       string   `json:"fault"`
		Differences []string `json:"differences"`
		Running     struct {
			All string `json:"all"`
		} `json:"debugzone"`
		File struct {
			All string `json:"all"`
		} `json:"checksum"`
	} `json:"members"`
}

// refusal runs a command that must fail, and returns what it says.
func refusal(g *gateway, words string) string {
	g.t.Helper()
	_, err := g.cli(words)
	var e *exec.ExitError
	if !errors.As(err, &e) {
		g.t.Fatalf("%s on %s: %v, want a refusal", words, g.node, err)
	}
	return strings.TrimSpace(string(e.Stderr))
}

func (g *gateway) text() string {
	g.t.Helper()
	b, err := os.ReadFile(g.conf)
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

// edit changes the file, and nothing else.
func (g *gateway) edit(change func(string) string) {
	g.t.Helper()
	if err := os.WriteFile(g.conf, []byte(change(g.text())), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// lastTaken is when the last of the members took a revision, as their logs say.
func lastTaken(revision uint64, members ...*gateway) (last time.Time) {
	for _, g := range members {
		g.t.Helper()
		text, err := os.ReadFile(g.proc.LogPath)
		if err != nil {
			g.t.Fatal(err)
		}
		found := false
		for line := range strings.Lines(string(text)) {
			var m struct {
				Time     time.Time
				Msg      string
				Revision uint64
			}
			if json.Unmarshal([]byte(line), &m) == nil && m.Msg == "configuration taken" && m.Revision == revision {
				found = true
				if m.Time.After(last) {
					last = m.Time
				}
			}
		}
		if !found {
			g.t.Fatalf("%s has not taken revision %d", g.node, revision)
		}
	}
	return last
}

func with(more string) func(string) string { return func(s string) string { return s + more } }

// agreed waits until both members run the same revision, from the one given on, and
// their files say so.
func (p *pair) agreed(from uint64, within time.Duration) sumsAnswer {
	p.t.Helper()
	return agreed([]*gateway{p.gws[lab.NodeGW1], p.gws[lab.NodeGW2]}, from, within)
}

func agreed(members []*gateway, from uint64, within time.Duration) sumsAnswer {
	t := members[0].t
	t.Helper()
	var a sumsAnswer
	eventually(t, within, "all members run the same configuration", func() bool {
		revision, all := uint64(0), ""
		for _, g := range members {
			s, ok := answer[sumsAnswer](g, "diagnose sys ha checksum cluster")
			if !ok || !s.InSync || s.Revision < from || len(s.Members) != len(members) || revision != 0 && s.Revision != revision {
				return false
			}
			revision, a = s.Revision, s
			for _, m := range s.Members {
				if m.State != "in-sync" || m.Revision != revision || m.File.All != m.Running.All || all != "" && m.Running.All != all {
					return false
				}
				all = m.Running.All
			}
		}
		return true
	})
	return a
}

// another is a phase 2 more for the example's tunnel, with its route.
const anotherPhase2 = `config vpn ipsec phase2-interface
    edit "vpn1-b"
        set phase1name "vpn1"
        set proposal aes128gcm
        set dhgrp 31
        set src-subnet 10.2.0.0 255.255.255.0
        set dst-subnet 10.1.7.0 255.255.255.0
    next
end
config router static
    edit 7
        set dst 10.1.7.0 255.255.255.0
        set device "vpn1"
    next
end
`

// TestPairSharesItsConfiguration: a change on one member, whichever it is, is on both
// within a second of the command's beginning; what is a node's own stays; the tunnel goes
// on with its SAs and its counters. What is faulty, or needs a restart, is refused on
// both with the same error, and nothing changes anywhere.
func TestPairSharesItsConfiguration(t *testing.T) {
	t.Parallel()
	needCharon(t)
	p := newPair(t, program(t), nil)
	ch := p.charon(lab.NodeClient, pairConn())
	ch.up()
	p.traffic()
	active, standby := p.synchronised()
	first := p.agreed(1, 10*time.Second).Revision
	sas, before := p.wantSame(), active.children("vpn1")
	if len(before) != 1 || before[0].InPackets == 0 {
		t.Fatalf("no counters: %+v", before)
	}

	for i, side := range []struct{ from, to *gateway }{{active, standby}, {standby, active}} {
		want := anotherPhase2
		if i == 1 {
			want = strings.NewReplacer("vpn1-b", "vpn1-c", "10.1.7.0", "10.1.8.0", "edit 7", "edit 8").Replace(want)
		}
		comment := "# a comment of " + side.from.node + "\n"
		side.from.edit(with(comment + want))
		begun := time.Now()
		out := side.from.must("execute reload")
		p.agreed(first+uint64(i)+1, 5*time.Second)
		if took := lastTaken(first+uint64(i)+1, active, standby).Sub(begun); took > time.Second {
			t.Errorf("a change on %s was on both after %v", side.from.node, took)
		} else {
			t.Logf("a change on %s was on both after %v", side.from.node, took.Round(time.Millisecond))
		}
		if !strings.Contains(out, "runs on "+side.from.node+", "+side.to.node) {
			t.Errorf("reload says %q", out)
		}
		if !strings.Contains(side.from.text(), comment) {
			t.Error("the file in which the change was made was rewritten")
		}
		text := side.to.text()
		if strings.Contains(text, comment) || !strings.Contains(text, "set hostname \""+side.to.node+"\"") || !strings.Contains(text, "psksecret \"a secret") {
			t.Errorf("the other member's file:\n%s", text)
		}
		if i, err := os.Stat(side.to.conf); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("its mode: %v %v", i.Mode(), err)
		}
		if _, err := os.Stat(side.to.conf + ".previous"); err != nil {
			t.Error(err)
		}
		if !contains(side.to.proc.LogPath, "configuration taken", "made_on\":\""+side.from.node, "set phase1name") {
			t.Error("the log does not say which lines changed")
		}
	}
	for _, n := range lab.Gateways {
		if list := p.gws[n].must("show vpn ipsec phase2-interface"); !strings.Contains(list, `edit "vpn1-b"`) || !strings.Contains(list, `edit "vpn1-c"`) {
			t.Errorf("%s has:\n%s", n, list)
		}
	}
	p.traffic()
	if now := p.wantSame(); now != sas {
		t.Errorf("the SAs changed\nbefore:\n%safter:\n%s", sas, now)
	}
	if now := active.children("vpn1"); len(now) != 1 || now[0].InPackets <= before[0].InPackets || now[0].OutPackets <= before[0].OutPackets {
		t.Errorf("the counters did not go on: %+v, before %+v", now, before)
	}

	// What cannot be, or cannot be without a restart.
	revision := p.agreed(first+2, time.Second).Revision
	for _, bad := range []struct{ what, text, want string }{
		{"a fault", "config vpn ipsec phase1-interface\n    edit \"vpn1\"\n        set keylife 100\n    next\nend\n", "keylife (100) must be between"},
		{"a restart", "config system ha\n    set hb-lost-threshold 4\nend\n", "restart tandem; nothing was changed"},
	} {
		var said []string
		for _, g := range []*gateway{active, standby} {
			was := g.text()
			g.edit(with(bad.text))
			text := refusal(g, "execute reload")
			said = append(said, strings.ReplaceAll(text, g.conf, "FILE"))
			g.edit(func(string) string { return was })
		}
		// The two files have another number of lines, since one was rewritten.
		for i := range said {
			if at := strings.Index(said[i], "vpn1: "); at >= 0 {
				said[i] = said[i][at:]
			}
		}
		if said[0] != said[1] || !strings.Contains(said[0], bad.want) {
			t.Errorf("%s: %q", bad.what, said)
		}
		p.agreed(revision, 2*time.Second)
	}
	if now := p.agreed(1, time.Second).Revision; now != revision {
		t.Errorf("revision %d became %d, though everything was refused", revision, now)
	}

	// What is a node's own changes there, and makes no revision.
	standby.edit(with("config system ha\n    set priority 42\nend\n"))
	standby.must("execute reload")
	if a, s := active.must("show full-configuration system ha"), standby.must("show full-configuration system ha"); strings.Contains(a, "priority 42") || !strings.Contains(s, "priority 42") {
		t.Errorf("priority: %s\n%s", a, s)
	}
	if now := p.agreed(1, 2*time.Second).Revision; now != revision {
		t.Errorf("revision %d became %d by what is a node's own", revision, now)
	}
	p.traffic()
}

// route is a line of the shared part that tells who wrote it.
func route(id, octet string) string {
	return "config router static\n    edit " + id + "\n        set dst 10.9." + octet + ".0 255.255.255.0\n        set device \"vpn1\"\n    next\nend\n"
}

// TestPairTwoChangesAtOnce: two members change the configuration at the same moment, again
// and again; both end with the same, which is one of the two. In a split both change
// theirs; healed, both have the one of the later epoch. The loser finds its own beside
// its file.
func TestPairTwoChangesAtOnce(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPair(t, program(t), nil)
	a, b := p.gws[lab.NodeGW1], p.gws[lab.NodeGW2]
	revision := p.agreed(1, 10*time.Second).Revision
	refused := 0
	for round := 0; round < 8 || refused == 0 && round < 24; round++ {
		id := strconv.Itoa(10 + round)
		a.edit(with(route(id+"1", id)))
		b.edit(with(route(id+"2", id)))
		var wg sync.WaitGroup
		outs, errs := make([]string, 2), make([]error, 2)
		for i, g := range []*gateway{a, b} {
			wg.Go(func() { outs[i], errs[i] = g.cli("execute reload") })
		}
		wg.Wait()
		s := p.agreed(revision+1, 5*time.Second)
		lost := 0
		for i, g := range []*gateway{a, b} {
			var e *exec.ExitError
			if errs[i] == nil {
				continue
			}
			lost++
			if !errors.As(errs[i], &e) || !strings.Contains(string(e.Stderr), "another change came first") {
				t.Fatalf("round %d: %s: %v: %s", round, g.node, errs[i], e.Stderr)
			}
			if before, err := os.ReadFile(g.conf + ".previous"); err != nil || !strings.Contains(string(before), "edit "+id+string(rune('1'+i))) {
				t.Errorf("round %d: the change of %s that was not taken is lost: %v", round, g.node, err)
			}
		}
		shown := a.must("show router static")
		first, second := strings.Contains(shown, "edit "+id+"1"), strings.Contains(shown, "edit "+id+"2")
		// One after the other is possible, too: then the second file was made on the first.
		if lost == 2 || !first && !second || first && second && lost > 0 || shown != b.must("show router static") {
			t.Fatalf("round %d: %d lost; %s has\n%s\n%s has\n%s", round, lost, a.node, shown, b.node, b.must("show router static"))
		}
		refused += lost
		revision = s.Revision
	}
	t.Logf("%d changes lost; revision %d", refused, revision)
	if refused == 0 {
		t.Error("no two changes met")
	}

	if err := p.topo.CutHeartbeats(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*gateway{a, b} {
		waitStatus(g, g.node, 10*time.Second, "owns alone", func(h lab.HAStatus) bool { return h.Role == lab.RolePrimary })
	}
	a.edit(with(route("901", "201")))
	b.edit(with(route("902", "202")))
	a.must("execute reload")
	b.must("execute reload")
	if s, ok := answer[sumsAnswer](a, "diagnose sys ha checksum cluster"); !ok || len(s.Members) != 1 || s.Revision <= revision {
		t.Errorf("cut off, %s says %+v", a.node, s)
	}
	if err := p.topo.RestoreHeartbeats(); err != nil {
		t.Fatal(err)
	}
	p.synchronised()
	p.agreed(revision+1, 10*time.Second)
	shown := a.must("show router static")
	if x, y := strings.Contains(shown, "edit 901"), strings.Contains(shown, "edit 902"); x == y || shown != b.must("show router static") {
		t.Errorf("after the split %s has\n%s\n%s has\n%s", a.node, shown, b.node, b.must("show router static"))
	}
}

// TestPairMemberReturnsToAnotherConfiguration: a member that was away takes what changed
// meanwhile before it takes part. A file that was edited while it was away does not
// count, is named line by line in the log without its secrets, and is kept. One that
// cannot write its file says so, and the checksums show it, until it can.
func TestPairMemberReturnsToAnotherConfiguration(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPair(t, program(t), nil)
	p.agreed(1, 10*time.Second)
	_, away := p.synchronised()
	stay := p.gws[lab.Gateways[1-slices.Index(lab.Gateways, away.node)]]

	if err := stopProcess(away.proc, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	p.takenOver(stay)
	stay.edit(with(route("11", "11")))
	stay.must("execute reload")
	away.edit(with(route("12", "12") + "config vpn ipsec phase1-interface\n    edit \"vpn1\"\n        set psksecret \"edited while away\"\n    next\nend\n"))
	again := func() {
		t.Helper()
		var err error
		if away.proc, err = p.topo.Start(away.node, away.node+"-again", []string{p.bin, "run", "--config", away.conf, "--log-format", "json"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	again()
	p.synchronised()
	p.agreed(2, 5*time.Second)
	if shown := away.must("show router static"); !strings.Contains(shown, "edit 11") || strings.Contains(shown, "edit 12") {
		t.Errorf("%s has\n%s", away.node, shown)
	}
	if before, err := os.ReadFile(away.conf + ".previous"); err != nil || !strings.Contains(string(before), "edited while away") {
		t.Errorf("the edited file is lost: %v", err)
	}
	log := away.proc.LogPath
	if !contains(log, "is not the revision that this node had") || !contains(log, "configuration taken", "- router static: edit 12", "+ router static: edit 11", "set psksecret ENC redacted") {
		t.Error("the log does not name the lines that changed")
	}
	if text, err := os.ReadFile(log); err != nil || strings.Contains(string(text), "edited while away") || strings.Contains(string(text), "a secret of") {
		t.Errorf("a secret is in the log, or there is none: %v", err)
	}

	// A folder where the new file is to be written: no space for it.
	if err := os.Mkdir(away.conf+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	was := away.text()
	stay.edit(with(route("13", "13")))
	if out := stay.must("execute reload"); !strings.Contains(out, away.node+" has not taken it") {
		t.Errorf("reload says %q", out)
	}
	s, ok := answer[sumsAnswer](stay, "diagnose sys ha checksum cluster")
	if !ok || s.InSync || len(s.Members) != 2 {
		t.Fatalf("%+v", s)
	}
	m := s.Members[1]
	if m.State != "out-of-sync" || !strings.Contains(m.Fault, ".new") || !slices.Contains(m.Differences, "- router static: edit 13") {
		t.Errorf("%+v", m)
	}
	if text := stay.must("diagnose sys ha checksum cluster"); !strings.Contains(text, "differs from "+stay.node+": router static") || !strings.Contains(text, "out-of-sync") {
		t.Errorf("it says\n%s", text)
	}
	if away.text() != was || strings.Contains(away.must("show router static"), "edit 13") {
		t.Error("something changed although it was refused")
	}
	alarmed := func(h haAlarms) bool {
		return slices.ContainsFunc(h.Alarms, func(a haAlarm) bool { return a.Name == "configuration" })
	}
	waitStatus(away, away.node, 5*time.Second, "has an alarm", alarmed)
	if err := os.Remove(away.conf + ".new"); err != nil {
		t.Fatal(err)
	}
	p.agreed(3, 15*time.Second)
	waitStatus(away, away.node, 5*time.Second, "has no alarm", func(h haAlarms) bool { return !alarmed(h) })
}

type haAlarm struct{ Name, Text string }

type haAlarms struct{ Alarms []haAlarm }

// TestPairStartsWithOtherFiles: both members were down. Where only one file was edited,
// the revision that the other one still has counts; what needs a restart is written to
// the file, named in an alarm, and runs after it. Where both were edited, the owner's
// counts.
func TestPairStartsWithOtherFiles(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPair(t, program(t), nil)
	first := p.agreed(1, 10*time.Second).Revision
	a, b := p.gws[lab.NodeGW1], p.gws[lab.NodeGW2]
	stop := func(all ...*gateway) {
		t.Helper()
		for _, g := range all {
			if err := stopProcess(g.proc, 10*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	start := func(all ...*gateway) {
		t.Helper()
		for _, g := range all {
			var err error
			if g.proc, err = p.topo.Start(g.node, g.node+"-again", []string{p.bin, "run", "--config", g.conf, "--log-format", "json"}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop(a, b)
	a.edit(func(s string) string {
		return strings.Replace(s, "set hb-lost-threshold 3", "set hb-lost-threshold 4", 1)
	})
	start(a, b)
	p.synchronised()
	waitStatus(a, a.node, 10*time.Second, "wants a restart", func(h haAlarms) bool {
		return slices.ContainsFunc(h.Alarms, func(a haAlarm) bool { return strings.Contains(a.Text, "restart tandem") })
	})
	if s, ok := answer[sumsAnswer](b, "diagnose sys ha checksum cluster"); !ok || s.InSync || s.Members[1].State != "out-of-sync" ||
		!slices.Equal(s.Members[1].Differences, []string{"- system ha: set hb-lost-threshold 3", "+ system ha: set hb-lost-threshold 4"}) {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(a.text(), "set hb-lost-threshold 3") {
		t.Errorf("the file says\n%s", a.text())
	}
	stop(a)
	start(a)
	p.synchronised()
	if now := p.agreed(first, 10*time.Second).Revision; now != first {
		t.Errorf("revision %d became %d by restarts", first, now)
	}

	stop(a, b)
	a.edit(with(route("31", "31")))
	b.edit(with(route("32", "32")))
	start(a, b)
	p.synchronised()
	p.agreed(first+1, 10*time.Second)
	shown := a.must("show router static")
	if x, y := strings.Contains(shown, "edit 31"), strings.Contains(shown, "edit 32"); x == y || shown != b.must("show router static") {
		t.Errorf("%s has\n%s\n%s has\n%s", a.node, shown, b.node, b.must("show router static"))
	}
}
