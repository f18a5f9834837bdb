package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"tandem/internal/config"
	"tandem/internal/linkhealth"
	"tandem/internal/node"
)

// pinger probes the servers of `config system link-monitor` and judges by
// linkhealth.Monitor. It has a goroutine of its own, and one for each socket.
type pinger struct {
	log     *slog.Logger
	changed func() // what penalty says has changed

	mu     sync.Mutex
	probes []*prober
	wake   chan struct{}
	done   chan struct{}
	wg     sync.WaitGroup
}

const readAgain = 10 * time.Millisecond // after an error

// prober is one link monitor.
type prober struct {
	cfg    config.LinkMonitor
	m      *linkhealth.Monitor
	nonce  uint64
	conn   *net.IPConn // nil: it does not run
	failed bool        // as it was told
	dead   []bool      // as it was logged
}

func newPinger(log *slog.Logger, changed func()) *pinger {
	p := &pinger{log: log, changed: changed, wake: make(chan struct{}, 1), done: make(chan struct{})}
	p.wg.Go(p.run)
	return p
}

func (p *pinger) close() {
	close(p.done)
	p.mu.Lock()
	for _, x := range p.probes {
		x.stop()
	}
	p.probes = nil
	p.mu.Unlock()
	p.wg.Wait()
}

// update takes the configuration, and which link monitors can run here (see
// Daemon.canProbe). It says whether penalty may say something else now.
func (p *pinger) update(now time.Time, all []config.LinkMonitor, can func(*config.LinkMonitor) bool) (told bool) {
	p.mu.Lock()
	var next []*prober
	for i := range all {
		c := &all[i]
		if c.Disabled {
			continue
		}
		at := slices.IndexFunc(p.probes, func(x *prober) bool { return reflect.DeepEqual(x.cfg, *c) })
		if at < 0 {
			x := &prober{cfg: *c, dead: make([]bool, len(c.Servers)), m: linkhealth.NewMonitor(linkhealth.Options{
				Interval: c.Interval, Timeout: c.ProbeTimeout, Fail: c.FailTime, Recover: c.RecoveryTime}, len(c.Servers))}
			var b [8]byte
			_, _ = rand.Read(b[:]) // never fails since Go 1.24
			x.nonce = binary.BigEndian.Uint64(b[:])
			next = append(next, x)
		} else {
			next = append(next, p.probes[at])
		}
		x := next[len(next)-1]
		if able := can(c); able && x.conn == nil {
			told = p.start(x, now) || told
		} else if !able && x.conn != nil {
			x.stop()
			told = true
			p.log.Info("link-monitor stops: its interface has no address here", "link_monitor", c.Name, "interface", c.SrcIntf)
		}
	}
	for _, x := range p.probes {
		if !slices.Contains(next, x) {
			x.stop()
			told = true
		}
	}
	p.probes = next
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return told
}

func (x *prober) v6() bool { return x.cfg.Servers[0].Is6() }

// start opens the socket and begins to probe; mu is held.
func (p *pinger) start(x *prober, now time.Time) bool {
	conn, err := echoSocket(x.cfg.SrcIntf, x.cfg.SourceIP, x.v6())
	if err != nil {
		p.log.Warn("link-monitor does not run", "link_monitor", x.cfg.Name, "error", err)
		return false
	}
	x.conn, x.failed = conn, false
	clear(x.dead)
	x.m.Start(now)
	p.wg.Go(func() { p.listen(x, conn) })
	return true
}

// stop closes the socket; mu is held.
func (x *prober) stop() {
	if x.conn != nil {
		_ = x.conn.Close()
		x.conn = nil
	}
	x.m.Stop()
}

// listen takes the answers on a socket until it is closed.
func (p *pinger) listen(x *prober, conn *net.IPConn) {
	b := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromIP(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // the interface is down, or gone: probes stay unanswered
			case <-p.done:
				return
			case <-time.After(readAgain):
			}
			continue
		}
		id, ok := echoReply(b[:n], x.nonce, x.v6())
		if !ok || int64(id.server) >= int64(len(x.cfg.Servers)) {
			continue
		}
		if ip, ok := netip.AddrFromSlice(from.IP); !ok || ip.Unmap() != x.cfg.Servers[id.server] {
			continue
		}
		now := time.Now()
		p.mu.Lock()
		if x.conn == conn {
			x.m.HandleAnswer(now, int(id.server), id.seq)
		}
		told := p.judge(x)
		p.mu.Unlock()
		if told {
			p.changed()
		}
	}
}

// run sends what is due.
func (p *pinger) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		wait, told := time.Hour, false
		p.mu.Lock()
		for _, x := range p.probes {
			for _, probe := range x.m.HandleTimeout(now) {
				p.send(x, probe)
			}
			told = p.judge(x) || told
			if at, ok := x.m.NextTimeout(); ok {
				wait = min(wait, time.Until(at))
			}
		}
		p.mu.Unlock()
		if told {
			p.changed()
		}
		timer.Reset(max(wait, 0))
		select {
		case <-p.done:
			return
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// send does not say whether it worked: what was not sent is not answered. mu is held.
func (p *pinger) send(x *prober, probe linkhealth.Probe) {
	to := x.cfg.Servers[probe.Server]
	addr := &net.IPAddr{IP: to.AsSlice()}
	if to.IsLinkLocalUnicast() && to.Is6() {
		addr.Zone = x.cfg.SrcIntf
	}
	_, _ = x.conn.WriteToIP(echoRequest(probeID{x.nonce, uint32(probe.Server), probe.Seq}, x.v6()), addr)
}

// judge logs what changed, and says whether the monitor as a whole did. mu is held.
func (p *pinger) judge(x *prober) bool {
	if x.conn == nil {
		return false
	}
	for i := range x.dead {
		if dead, _ := x.m.Server(i); dead != x.dead[i] {
			x.dead[i] = dead
			text, level := "server answers again", slog.LevelInfo
			if dead {
				text, level = "server does not answer", slog.LevelWarn
			}
			p.log.Log(context.Background(), level, text, "link_monitor", x.cfg.Name, "interface", x.cfg.SrcIntf, "server", x.cfg.Servers[i].String())
		}
	}
	if failed := x.m.Failed(); failed != x.failed {
		x.failed = failed
		return true
	}
	return false
}

// penalty adds up what the failed link monitors of some interfaces weigh. stale is the
// part of those that do not run at present.
func (p *pinger) penalty(interfaces []string) (sum, stale int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.probes {
		if !slices.Contains(interfaces, x.cfg.SrcIntf) || !x.m.Failed() {
			continue
		}
		sum += x.cfg.HAPriority
		if x.conn == nil {
			stale += x.cfg.HAPriority
		}
	}
	return sum, stale
}

// serverView is a server of a link monitor, for commands.
type serverView struct {
	Monitor, Interface string
	Server             netip.Addr
	Priority           int
	Running, Dead      bool
	Since              time.Time // zero: it was never probed
}

func (p *pinger) servers() (out []serverView) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.probes {
		for i, s := range x.cfg.Servers {
			dead, since := x.m.Server(i)
			out = append(out, serverView{x.cfg.Name, x.cfg.SrcIntf, s, x.cfg.HAPriority, x.conn != nil, dead, since})
		}
	}
	return out
}

// canProbe says whether this node has an address on a link monitor's interface: while it
// owns, the shared one, whether or not the kernel has it at this moment.
func (d *Daemon) canProbe(m *config.LinkMonitor) bool {
	if _, ok := d.links.index[m.SrcIntf]; !ok {
		return false
	}
	server := m.Servers[0]
	fits := func(a netip.Addr) bool {
		if m.SourceIP.IsValid() {
			return a == m.SourceIP
		}
		return a.Is6() == server.Is6() && (a.Is4() || a.IsLinkLocalUnicast() == server.IsLinkLocalUnicast())
	}
	if slices.ContainsFunc(d.links.addrs[m.SrcIntf], fits) {
		return true
	}
	return slices.ContainsFunc(d.addresses.here(), func(s sharedAddr) bool { return s.dev == m.SrcIntf && fits(s.prefix.Addr()) })
}

// lookAtServers lets the pinger run where it can. On the loop.
func (d *Daemon) lookAtServers(now time.Time) {
	if d.pinger != nil && d.pinger.update(now, d.cfg.LinkMonitors, d.canProbe) {
		d.pingservers(now)
	}
}

// pingservers tells the node what they weigh. On the loop.
func (d *Daemon) pingservers(now time.Time) {
	if v, ok := d.loop.node.(*node.VClusters); ok {
		v.HandlePinged(now, d.pinger.penalty)
		return
	}
	penalty, stale := d.pinger.penalty(d.cfg.HA.Pingserver.Monitor)
	d.loop.node.HandlePingservers(now, penalty, stale)
}
