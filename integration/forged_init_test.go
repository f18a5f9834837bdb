package integration

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/internal/lab"
)

// What a flood of forged IKE_SA_INIT requests may cost.
const (
	forgedMemory = 8 << 20 // bytes of live heap, at most 1,000 half-open IKE SAs among them
	forgedLines  = 12      // in the log, at its ordinary level
)

// TestForgedInit: IKE_SA_INIT requests from tens of thousands of sources, none of which
// exists, while one tunnel carries pings and is rekeyed and another client comes.
func TestForgedInit(t *testing.T) {
	needCharon(t)
	n := 50_000
	if testing.Short() {
		n = 20_000
	}
	newForged(t).run(n, 10_000)
}

// BenchmarkForgedInit reports the same with 50,000.
func BenchmarkForgedInit(b *testing.B) {
	needRoot(b)
	for range b.N {
		f := newForged(b)
		r := f.run(50_000, 10_000)
		b.ReportMetric(float64(r.full-r.before)/1024, "KiB-heap-at-the-end")
		b.ReportMetric(float64(r.after-r.before)/1024, "KiB-heap-afterwards")
		b.ReportMetric(r.perSecond, "forged/s")
		b.ReportMetric(float64(r.cookies), "cookies")
		b.ReportMetric(float64(r.lost), "pings-lost")
		b.ReportMetric(float64(r.pings), "pings")
		b.ReportMetric(float64(r.connected.Milliseconds()), "ms-to-connect")
		b.ReportMetric(float64(r.lines), "log-lines")
		b.ReportMetric(float64(r.cpu.Milliseconds()), "ms-cpu")
	}
	b.ReportMetric(0, "ns/op")
}

// forged is the scene:
//
//	10.1.0.1 ─ peer ── wan0 ┐
//	10.3.0.1 ─ late ── wan1 ┼ gw ─ 10.2.0.1
//	198.18.0.0/15 ─ bots wan2┘
type forged struct {
	tb         testing.TB
	topo       *lab.Topology
	bin        string
	gw         *lab.Process
	peer, late *lab.Charon
	ctx        context.Context
}

func newForged(tb testing.TB) *forged {
	tb.Helper()
	cable := func(node, dev string, net int) lab.PlanCable {
		return lab.PlanCable{A: node, AIf: "wan0", B: "gw", BIf: dev,
			AAddrs: []string{fmt.Sprintf("192.0.%d.10/24", net)}, BAddrs: []string{fmt.Sprintf("192.0.%d.1/24", net)}}
	}
	topo, err := lab.Build("", lab.Plan{
		Nodes: []lab.PlanNode{{Name: "peer", Addrs: []string{peerIn + "/32"}}, {Name: "late", Addrs: []string{"10.3.0.1/32"}},
			{Name: "bots"}, {Name: "gw", Forward: true, Addrs: []string{gwIn + "/32"}}},
		Cables: []lab.PlanCable{cable("peer", "wan0", 2), cable("late", "wan1", 3), cable("bots", "wan2", 4)},
		Routes: []lab.PlanRoute{{Node: "gw", Dst: "198.18.0.0/15", Via: "192.0.4.10/24"}, {Node: "bots", Dst: "192.0.2.1/32", Via: "192.0.4.1/24"}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	f := &forged{tb: tb, topo: topo, bin: breakpointProgram(tb), ctx: ctx}
	tb.Cleanup(func() {
		if tb.Failed() && f.gw != nil {
			tb.Log(f.log())
		}
		for _, c := range []*lab.Charon{f.peer, f.late} {
			if c != nil {
				_ = c.Stop()
			}
		}
		if f.gw != nil {
			if err := stopProcess(f.gw, 10*time.Second); err != nil {
				tb.Error(err)
			}
		}
		cancel()
		if err := topo.Close(); err != nil {
			tb.Error(err)
		}
	})
	ipIn(tb, topo, "bots", "route add blackhole 198.18.0.0/15")
	conf := gwConf{
		phase1: []entry{toPeer(), dialup("road", "client.test", psk, "negotiate-timeout 6"), dialup("late", "late.test", psk, "interface wan1")},
		phase2: []entry{netPhase2(), dialupPhase2("road", "road"), dialupPhase2("late", "late")},
		routes: []entry{routeTo(peerNet, "vpn1")},
		tandem: []string{"log-level info"},
	}.render("@DIR@/gw/admin.sock")
	f.gw = startIn(tb, topo, f.bin, "gw", conf)
	eventually(tb, 10*time.Second, "the gateway answers", func() bool { var m memory; return f.ask("diagnose debug memory", &m) })
	start := func(node string, c conn) *lab.Charon {
		ch, err := topo.StartCharon(ctx, lab.CharonConfig{Node: node, Swanctl: c.render()})
		if err != nil {
			tb.Fatal(err)
		}
		return ch
	}
	f.peer = start("peer", conn{})
	f.late = start("late", conn{local: "192.0.3.10", remote: "192.0.3.1", id: "late.test", localTS: "10.3.0.0/24"})
	if err := f.peer.Initiate(ctx, "net", 10*time.Second); err != nil {
		tb.Fatal(err)
	}
	eventually(tb, 10*time.Second, "ping", f.ping)
	return f
}

func (f *forged) ask(words string, into any) bool {
	out, err := exec.Command(f.bin, append(strings.Fields(words), "--json", "--socket", filepath.Join(f.topo.Dir, "gw", "admin.sock"))...).Output()
	return err == nil && json.Unmarshal(out, into) == nil
}

func (f *forged) ping() bool {
	cmd := exec.Command("ping", "-n", "-q", "-c", "1", "-W", "1", "-I", peerIn, gwIn)
	return f.topo.In("peer", cmd.Start) == nil && cmd.Wait() == nil
}

func (f *forged) log() string {
	f.tb.Helper()
	text, err := os.ReadFile(f.gw.LogPath)
	if err != nil {
		f.tb.Fatal(err)
	}
	return string(text)
}

func (f *forged) heap() uint64 {
	f.tb.Helper()
	var m memory
	if !f.ask("diagnose debug memory", &m) {
		f.tb.Fatal("the gateway does not answer")
	}
	return m.Heap
}

func (f *forged) cpu() time.Duration {
	pid, err := f.gw.Daemon(false)
	if err != nil {
		pid = f.gw.PID
	}
	c, err := used(pid)
	if err != nil {
		f.tb.Fatal(err)
	}
	return c.cpu
}

// ikeStats is of `diagnose vpn ike stats`.
type ikeStats struct {
	Cookies uint64 `json:"ike_cookies_sent"`
	Dropped uint64 `json:"ike_dropped"`
}

// forgedResult are the figures of a flood.
type forgedResult struct {
	before, full, after uint64 // live heap: without, at the end of the flood, when all has timed out
	perSecond           float64
	cookies             uint64
	pings, lost         int
	connected           time.Duration
	lines               int
	cpu                 time.Duration
}

// run sends n requests at a rate, and says what became of everything else.
func (f *forged) run(n int, rate float64) (r forgedResult) {
	f.tb.Helper()
	before := len(f.log())
	r.before = f.heap()
	cpu := f.cpu()
	flooding := make(chan float64, 1)
	var begun, over atomic.Bool
	go func() {
		defer over.Store(true)
		flooding <- f.flood(n, rate, &begun)
	}()
	pinged := make(chan struct{})
	go func() {
		defer close(pinged)
		for !over.Load() {
			r.pings++
			if !f.ping() {
				r.lost++
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	var s ikeStats
	eventually(f.tb, 10*time.Second, "cookies are demanded", func() bool { return begun.Load() && f.ask("diagnose vpn ike stats", &s) && s.Cookies > 0 })
	at := time.Now()
	if err := f.late.Initiate(f.ctx, "net", 10*time.Second); err != nil {
		f.tb.Errorf("no client connects during the flood: %v", err)
	}
	r.connected = time.Since(at)
	if err := f.peer.Rekey(f.ctx, "net", ""); err != nil {
		f.tb.Error(err)
	}
	eventually(f.tb, 10*time.Second, "the tunnel is rekeyed", func() bool { return f.peer.Events().ChildRekeys > 0 })
	if over.Load() {
		f.tb.Log("the flood was over before client and rekey were done")
	}
	r.perSecond = <-flooding
	<-pinged
	r.cpu = f.cpu() - cpu
	r.full = f.heap()
	if !f.ask("diagnose vpn ike stats", &s) {
		f.tb.Fatal("the gateway does not answer")
	}
	r.cookies = s.Cookies
	if r.lost > 0 {
		f.tb.Errorf("%d of %d pings were lost", r.lost, r.pings)
	}
	if got := int(s.Cookies); got < n/4 {
		f.tb.Errorf("%d cookies for %d requests", got, n)
	}
	if ups := f.peer.Events(); ups.IKEUps != 1 || ups.IKEDowns != 0 {
		f.tb.Errorf("the tunnel that stood: %+v", ups)
	}
	eventually(f.tb, 15*time.Second, "every half-open IKE SA is gone", func() bool {
		r.after = f.heap()
		return r.after < r.before+1<<20
	})
	if r.full > r.before+forgedMemory {
		f.tb.Errorf("the flood took %d bytes of heap", r.full-r.before)
	}
	for line := range strings.Lines(f.log()[before:]) {
		if !strings.Contains(line, "vpn1") && !strings.Contains(line, "late") {
			r.lines++
		}
	}
	if r.lines > forgedLines {
		f.tb.Errorf("%d lines were logged", r.lines)
	}
	f.tb.Logf("%d forged requests, %.0f a second (%.0f ms of processor time): heap %d KiB before, %d at the end, %d afterwards; %d cookies; %d pings, %d lost; a client connected in %v; %d lines",
		n, r.perSecond, r.cpu.Seconds()*1000, r.before>>10, r.full>>10, r.after>>10, r.cookies, r.pings, r.lost, r.connected.Round(time.Millisecond), r.lines)
	return r
}

// flood sends IKE_SA_INIT requests with forged sources from the bots' node, each with an
// SPI, a nonce and a public value of its own, and returns how many it sent in a second.
func (f *forged) flood(n int, rate float64, begun *atomic.Bool) float64 {
	fd := -1
	err := f.topo.In("bots", func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		f.tb.Error(err)
		return 0
	}
	defer unix.Close(fd)
	kx, err := keymat.NewKeyExchange(ipsec.KEX25519, rand.Reader)
	if err != nil {
		f.tb.Error(err)
		return 0
	}
	suite := ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, PRF: ipsec.PRFHMACSHA256, KE: ipsec.KEX25519}
	nonce := random(32)
	m := &message.Message{Header: message.Header{SPIs: ipsec.IKESPIs{I: 1}, MajorVersion: 2, Exchange: message.IKESAInit, Initiator: true},
		Payloads: []message.Payload{&message.SA{Proposals: []ipsec.Proposal{ikeProposal(suite)}},
			&message.KE{Group: ipsec.KEX25519, Data: kx.Public()}, &message.Nonce{Data: nonce},
			&message.Notify{NotifyType: message.NATDetectionSourceIP, Data: random(20)},
			&message.Notify{NotifyType: message.NATDetectionDestinationIP, Data: random(20)}}}
	ike := m.Encode()
	keAt, nonceAt := strings.Index(string(ike), string(kx.Public())), strings.Index(string(ike), string(nonce))
	to := netip.MustParseAddr(gwWAN).As4()
	pkt := make([]byte, 28, 28+len(ike))
	pkt[0], pkt[8], pkt[9] = 0x45, 64, 17
	copy(pkt[16:], to[:])
	binary.BigEndian.PutUint16(pkt[22:], 500)
	binary.BigEndian.PutUint16(pkt[24:], uint16(8+len(ike))) // checksum 0: none
	pkt = append(pkt, ike...)
	begin := time.Now()
	for i := range n {
		if ahead := time.Duration(float64(i)/rate*float64(time.Second)) - time.Since(begin); ahead > time.Millisecond {
			time.Sleep(ahead)
		}
		binary.BigEndian.PutUint32(pkt[12:], 198<<24|18<<16+uint32(i*2654435761%(1<<17))) // somewhere in 198.18.0.0/15
		binary.BigEndian.PutUint16(pkt[20:], uint16(1024+i%60000))
		body := pkt[28:]
		for _, at := range []int{0, keAt, nonceAt} {
			binary.BigEndian.PutUint64(body[at:], uint64(i+1)*0x9e3779b97f4a7c15)
		}
		if err := unix.Sendto(fd, pkt, 0, &unix.SockaddrInet4{Addr: to}); err != nil && !slices.Contains([]error{unix.ENOBUFS, unix.EAGAIN}, err) {
			f.tb.Error(err)
			return 0
		}
		begun.Store(true)
	}
	return float64(n) / time.Since(begin).Seconds()
}
