package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// entry is one `edit NAME … next` with its lines; later lines win.
type entry struct {
	name string
	sets []string
}

// gwConf is the configuration of one gateway.
type gwConf struct {
	tandem []string // of system tandem, beside the admin socket
	phase1 []entry
	phase2 []entry
	routes []entry
	more   string // further blocks, as they stand
}

const psk = "a pre-shared key for tests"

// toPeer is a static phase 1 towards the peer of a wire that only answers; lines
// that follow may change any of it.
func toPeer(more ...string) entry {
	return entry{"vpn1", append([]string{"interface wan0", "remote-gw " + peerWAN, "psksecret \"" + psk + "\"",
		"proposal aes128gcm-prfsha256", "dhgrp 31", "nattraversal forced", "auto-negotiate disable", "dpd disable"}, more...)}
}

// netPhase2 joins the two networks of a wire.
func netPhase2(more ...string) entry {
	return entry{"net", append([]string{"phase1name vpn1", "proposal aes128gcm", "dhgrp 31",
		"src-subnet " + gwNet, "dst-subnet " + peerNet}, more...)}
}

func routeTo(net, dev string) entry { return entry{"1", []string{"dst " + net, "device " + dev}} }

func (c gwConf) render(socket string) string {
	var b strings.Builder
	b.WriteString("config system global\n    set hostname gw\nend\nconfig system tandem\n    set data-plane userspace\n    set log-level debug\n")
	fmt.Fprintf(&b, "    set admin-socket %s\n    set state-dir %s\n    set metrics-address %s\n", socket, filepath.Dir(socket), metricsAddr)
	for _, l := range c.tandem {
		fmt.Fprintf(&b, "    set %s\n", l)
	}
	b.WriteString("end\n")
	for _, block := range []struct {
		path    string
		entries []entry
	}{{"vpn ipsec phase1-interface", c.phase1}, {"vpn ipsec phase2-interface", c.phase2}, {"router static", c.routes}} {
		if len(block.entries) == 0 {
			continue
		}
		fmt.Fprintf(&b, "config %s\n", block.path)
		for _, e := range block.entries {
			fmt.Fprintf(&b, "    edit %s\n", e.name)
			for _, l := range e.sets {
				fmt.Fprintf(&b, "        set %s\n", l)
			}
			b.WriteString("    next\n")
		}
		b.WriteString("end\n")
	}
	b.WriteString(c.more)
	return b.String()
}

// metricsAddr is on the loopback of each namespace.
const metricsAddr = "127.0.0.1:9464"

// gateway is a running Tandem.
type gateway struct {
	t            *testing.T
	s            *site
	node         string
	conf, socket string
	proc         *lab.Process
	goroutines   int // once it was up
	stopped      bool
}

// exampleGateway prepares a node with a file of an example, in which @DIR@ is the topology's folder.
func (s *site) exampleGateway(node, conf string) *gateway {
	s.t.Helper()
	dir := filepath.Join(s.topo.Dir, node)
	g := &gateway{t: s.t, s: s, node: node, conf: dir + ".conf", socket: filepath.Join(dir, "admin.sock")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(g.conf, []byte(strings.ReplaceAll(conf, "@DIR@", s.topo.Dir)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return g
}

// startExample starts it, with the program that the test runs.
func (s *site) startExample(g *gateway, bin string) {
	s.t.Helper()
	var err error
	if g.proc, err = s.topo.Start(g.node, g.node, []string{bin, "run", "--config", g.conf, "--log-format", "json"}, nil); err != nil {
		s.t.Fatal(err)
	}
}

// gateway starts Tandem on a node and waits until it answers commands.
func (s *site) gateway(node string, c gwConf) *gateway {
	s.t.Helper()
	dir := filepath.Join(s.topo.Dir, "tandem-"+node)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	g := &gateway{t: s.t, s: s, node: node, conf: filepath.Join(dir, "conf"), socket: filepath.Join(dir, "sock")}
	g.write(c)
	var err error
	g.proc, err = s.topo.Start(node, "tandem-"+node, []string{program(s.t), "run", "--config", g.conf}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, 10*time.Second, "tandem on "+node+" answers", func() bool {
		if !g.proc.Running() {
			text, _ := os.ReadFile(g.proc.LogPath)
			s.t.Fatalf("tandem on %s ended:\n%s", node, text)
		}
		_, err := g.cli("diagnose vpn ike stats")
		return err == nil
	})
	s.t.Cleanup(g.stop)
	if g.goroutines, err = g.countGoroutines(); err != nil {
		s.t.Fatal(err)
	}
	return g
}

// countGoroutines asks the metrics of the running process.
func (g *gateway) countGoroutines() (int, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
			err = g.s.topo.In(g.node, func() (err error) { conn, err = net.Dial("tcp", metricsAddr); return err })
			return conn, err
		}}}
	r, err := c.Get("http://" + metricsAddr + "/metrics")
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^go_goroutines (\d+)$`).FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no go_goroutines among the metrics (%s)", r.Status)
	}
	return strconv.Atoi(string(m[1]))
}

func (g *gateway) write(c gwConf) {
	g.t.Helper()
	if err := os.WriteFile(g.conf, []byte(c.render(g.socket)), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// reload changes the configuration of a running gateway.
func (g *gateway) reload(c gwConf) {
	g.t.Helper()
	g.write(c)
	g.must("execute reload")
}

// cli runs one command of FortiOS's. The unix socket is reachable from any
// network namespace.
func (g *gateway) cli(words string, more ...string) (string, error) {
	args := append(strings.Fields(words), more...)
	out, err := exec.Command(program(g.t), append(args, "--socket", g.socket)...).Output()
	return string(out), err
}

// answer is what a gateway says to a command, from its JSON; false while it says nothing.
func answer[T any](g *gateway, words string) (v T, ok bool) {
	out, err := g.cli(words, "--json")
	ok = err == nil && json.Unmarshal([]byte(out), &v) == nil
	return v, ok
}

// status is what a member says of its cluster; false while it says nothing.
func status[T any](g *gateway) (T, bool) { return answer[T](g, "get system ha status") }

// waitStatus waits until a member's status is as wanted.
func waitStatus[T any](g *gateway, name string, within time.Duration, what string, ok func(T) bool) {
	g.t.Helper()
	var last T
	if !holds(within, func() bool {
		h, said := status[T](g)
		last = h
		return said && ok(h)
	}) {
		g.t.Fatalf("not within %v: %s: %s\n%+v", within, name, what, last)
	}
}

func (g *gateway) must(words string, more ...string) string {
	g.t.Helper()
	out, err := g.cli(words, more...)
	if err != nil {
		g.t.Fatalf("%s on %s: %v", words, g.node, err)
	}
	return out
}

// gwStatus is what `diagnose vpn ike gateway list --json` says of one tunnel.
type gwStatus struct {
	Name        string `json:"name"`
	Parent      string `json:"parent"`
	Local       string `json:"local"`
	Remote      string `json:"remote"`
	PeerID      string `json:"peer_id"`
	NAT         bool   `json:"nat"`
	Certificate *struct {
		Subject   string `json:"subject"`
		SHA256    string `json:"sha256"`
		Signature string `json:"signature"`
		Method    string `json:"auth_method"`
	} `json:"peer_certificate"`
	Created     int    `json:"ike_created"`
	Established int    `json:"ike_established"`
	ChildMade   int    `json:"ipsec_established"`
	Failure     string `json:"last_failure"`
	SAs         []struct {
		SPIi      string `json:"spi_i"`
		SPIr      string `json:"spi_r"`
		Direction string `json:"direction"`
		Status    string `json:"status"`
		Proposal  string `json:"proposal"`
		SendID    uint32 `json:"message_id_sent"`
		RecvID    uint32 `json:"message_id_recv"`
		DPDSent   uint32 `json:"dpd_sent"`
	} `json:"ike_sas"`
}

// tunnelStatus is what `diagnose vpn tunnel list --json` says of one tunnel.
type tunnelStatus struct {
	Name      string `json:"name"`
	NoSA      uint64 `json:"no_sa_packets"`
	Selectors []struct {
		Name string        `json:"name"`
		SAs  []childStatus `json:"sas"`
	} `json:"proxyids"`
}

type childStatus struct {
	SPIIn       string   `json:"spi_in"`
	SPIOut      string   `json:"spi_out"`
	Outbound    bool     `json:"outbound"`
	Suite       string   `json:"suite"`
	InPackets   uint64   `json:"in_packets"`
	OutPackets  uint64   `json:"out_packets"`
	InSelector  uint64   `json:"in_selector"`
	OutSelector uint64   `json:"out_selector"`
	Src         []string `json:"src"`
	Dst         []string `json:"dst"`
}

func (g *gateway) gateways() []gwStatus {
	g.t.Helper()
	var all []gwStatus
	g.decode("diagnose vpn ike gateway list", &all)
	return all
}

func (g *gateway) decode(words string, into any) {
	g.t.Helper()
	if err := json.Unmarshal([]byte(g.must(words, "--json")), into); err != nil {
		g.t.Fatalf("%s: %v", words, err)
	}
}

// status is one tunnel by name; a zero one if it does not exist.
func (g *gateway) status(name string) gwStatus {
	g.t.Helper()
	for _, s := range g.gateways() {
		if s.Name == name {
			return s
		}
	}
	return gwStatus{}
}

func (g *gateway) children(name string) []childStatus {
	g.t.Helper()
	var all []tunnelStatus
	g.decode("diagnose vpn tunnel list", &all)
	var out []childStatus
	for _, s := range all {
		for _, p := range s.Selectors {
			if s.Name == name {
				out = append(out, p.SAs...)
			}
		}
	}
	return out
}

// stats is `diagnose vpn ike stats --json`.
func (g *gateway) stats() map[string]any {
	g.t.Helper()
	var m map[string]any
	g.decode("diagnose vpn ike stats", &m)
	return m
}

// stat is one number of stats; it must exist.
func (g *gateway) stat(name string) int {
	g.t.Helper()
	v, ok := g.stats()[name].(float64)
	if !ok {
		g.t.Fatalf("diagnose vpn ike stats has no %s", name)
	}
	return int(v)
}

// wantUp waits for an established IKE SA with one Child SA, and that diagnose
// says so in words, too.
func (g *gateway) wantUp(name, direction string) gwStatus {
	g.t.Helper()
	var s gwStatus
	eventually(g.t, 15*time.Second, name+" up as "+direction, func() bool {
		s = g.status(name)
		return len(s.SAs) == 1 && s.SAs[0].Status == "established" && s.SAs[0].Direction == direction && len(g.children(name)) == 1
	})
	text := g.must("diagnose vpn ike gateway list name " + name)
	if !regexp.MustCompile(`(?m)^name: `+name+`$`).MatchString(text) ||
		!regexp.MustCompile(`(?m)^direction: `+direction+`$`).MatchString(text) ||
		!regexp.MustCompile(`(?m)^status: established `).MatchString(text) {
		g.t.Errorf("diagnose vpn ike gateway list does not name the state:\n%s", text)
	}
	return s
}

// wantOneChild waits until a rekey is over here: the old SA is deleted, so the
// peer has answered the DELETE and sends through the new one.
func (g *gateway) wantOneChild(name string) {
	g.t.Helper()
	eventually(g.t, 10*time.Second, "one Child SA of "+name, func() bool {
		all := g.children(name)
		return len(all) == 1 && all[0].Outbound
	})
}

// wantNone waits until no SA of a tunnel stands, or of any for an empty name.
func (g *gateway) wantNone(name string) {
	g.t.Helper()
	left := ""
	ok := holds(10*time.Second, func() bool {
		left = ""
		for _, s := range g.gateways() {
			if (name == "" || s.Name == name) && len(s.SAs)+len(g.children(s.Name)) > 0 {
				left += fmt.Sprintf(" %+v", s)
			}
		}
		return left == ""
	})
	if !ok {
		g.t.Errorf("SAs are left on %s:%s", g.node, left)
	}
}

// stop ends the gateway with SIGTERM: exit status 0, nothing like a panic in the
// log, and its interfaces gone.
func (g *gateway) stop() {
	if g.stopped {
		return
	}
	g.stopped = true
	// What a test did must leave no goroutine behind; a few come and go.
	if left := 0; g.proc.Running() && !holds(5*time.Second, func() bool {
		n, err := g.countGoroutines()
		left = n
		return err == nil && n <= g.goroutines+4
	}) {
		g.t.Errorf("tandem on %s: %d goroutines at the end, %d at the beginning", g.node, left, g.goroutines)
	}
	if !g.proc.Running() {
		g.t.Errorf("tandem on %s ended by itself", g.node)
	} else if err := stopProcess(g.proc, 10*time.Second); err != nil {
		g.t.Errorf("tandem on %s does not end cleanly: %v", g.node, err)
	}
	text, err := os.ReadFile(g.proc.LogPath)
	if err != nil {
		g.t.Error(err)
	}
	if at := regexp.MustCompile(`(?m)^(panic:|fatal error:|goroutine \d+|WARNING: DATA RACE)`).FindIndex(text); at != nil {
		g.t.Errorf("tandem on %s broke down:\n%s", g.node, text[at[0]:min(len(text), at[0]+4000)])
	}
}

func (g *gateway) log() string {
	g.t.Helper()
	text, err := os.ReadFile(g.proc.LogPath)
	if err != nil {
		g.t.Fatal(err)
	}
	return string(text)
}

// unsent counts the packets that came out of a phase 1's interface and fitted no
// selectors.
func (g *gateway) unsent(phase1 string) uint64 {
	g.t.Helper()
	var all []tunnelStatus
	g.decode("diagnose vpn tunnel list", &all)
	n := uint64(0)
	for _, s := range all {
		if s.Name != phase1 && !strings.HasPrefix(s.Name, phase1+"_") {
			continue
		}
		n += s.NoSA
		for _, p := range s.Selectors {
			for _, c := range p.SAs {
				n += c.OutSelector
			}
		}
	}
	return n
}

// loggedAt is when the last line with a text was written, by the daemon's clock.
func (g *gateway) loggedAt(text string) time.Time {
	g.t.Helper()
	var at time.Time
	for _, line := range strings.Split(g.log(), "\n") {
		if stamp, ok := strings.CutPrefix(line, "time="); ok && strings.Contains(line, text) {
			stamp, _, _ = strings.Cut(stamp, " ")
			if x, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
				at = x
			}
		}
	}
	if at.IsZero() {
		g.t.Fatalf("no log line says %q", text)
	}
	return at
}
