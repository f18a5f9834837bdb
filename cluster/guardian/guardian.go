package guardian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/quiet"
)

// Options are what a guardian needs.
type Options struct {
	Node cluster.NodeID
	Name string
	Key  ipsec.Key // of heartbeats: cluster.Identity.HeartbeatKey
	Settings
	Port     int      // UDP port of heartbeats; 0: DefaultPort
	Command  []string // the daemon
	Env      []string // added to the daemon's environment
	StateDir string
	Logger   *slog.Logger
	// Reload reads the settings anew at SIGHUP, which the daemon gets as well; nil:
	// they stay. It runs beside the heartbeats.
	Reload func() (Settings, error)
	// Normal leaves scheduling and memory as they are, as if the system refused them.
	Normal bool
}

// Settings are what a reload can change.
type Settings struct {
	HBDevs    []string
	Peers     []netip.Addr  // of a farm's other members; not link-local
	Interval  time.Duration // hb-interval
	Threshold int           // hb-lost-threshold
}

const (
	stopWait      = 5 * time.Second // for the daemon to hand over and end
	backoffMin    = 200 * time.Millisecond
	backoffMax    = 5 * time.Second
	livedLong     = 10 * time.Second // a daemon that lived that long begins the back-off anew
	checkInterval = 250 * time.Millisecond
	lateBy        = time.Millisecond // such a late tick looks again for messages of the daemon
)

type guardian struct {
	opt     Options
	log     *slog.Logger
	guard   *cluster.Guard
	forker  *forker
	devices []*device
	peers   peers
	ctl     int // a socket for asking about interfaces
	netlink *netlink.Handle
	buf     []byte
	inbox   inbox
	wakes   *device            // heard last
	heard   *cluster.Heartbeat // the last, and its bytes
	heardAs []byte

	daemon    *process
	started   time.Time
	addresses addresses
	backoff   time.Duration
	restartAt time.Time

	stopping bool
	killAt   time.Time
	code     int
	over     bool

	fifo      bool
	threads   int
	nextCheck time.Time
	collector *collector
	refused   *quiet.Refusals
	reloaded  chan Settings
}

// Run starts the daemon and guards it until SIGTERM, SIGINT or ctx ends it, and
// returns the exit status: 0, ExitConfig when the daemon said that its
// configuration is wrong, 1 for other failures. It takes over the process: signals,
// scheduling, memory, garbage collector.
func Run(ctx context.Context, o Options) int {
	log := o.Logger
	g := &guardian{opt: o, log: log, refused: quiet.NewRefusals(log, "heartbeat refused"), buf: make([]byte, maxMessage), ctl: -1, peers: peers{beats: -1, news: -1}, reloaded: make(chan Settings, 1)}
	if err := g.open(); err != nil {
		log.Error("guardian cannot start", "error", err)
		return 1
	}
	defer g.close()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	g.spawn(time.Now())
	g.loop(ctx, signals)
	return g.code
}

func (g *guardian) open() (err error) {
	o := &g.opt
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	if len(o.Command) == 0 || o.Interval <= 0 || o.Threshold <= 0 {
		return errors.New("no command, interval or threshold")
	}
	incarnation, err := cluster.NextIncarnation(o.StateDir, o.Node, time.Now())
	if err != nil {
		return err
	}
	if g.ctl, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if g.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if err := g.netlink.SetSocketTimeout(time.Second); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if g.forker, err = newForker(); err != nil {
		return fmt.Errorf("normal scheduling: %w", err)
	}
	g.collector = newCollector()
	if err := g.harden(); err != nil {
		g.log.Warn("guardian without real-time scheduling or locked memory: it judges silence and hangs more slowly", "error", err)
	}
	g.guard = cluster.NewGuard(cluster.GuardOptions{
		Self: o.Node, Name: o.Name, Incarnation: incarnation, Interval: o.Interval, Threshold: o.Threshold, Slow: !g.fifo,
	})
	g.setDevices(o.HBDevs)
	g.peers.set(o.Peers, o.Port, g.log)
	return nil
}

func (g *guardian) harden() error {
	if g.opt.Normal {
		return errors.New("not wanted")
	}
	err := setFIFO(g.forker.tid)
	g.fifo = err == nil
	favourSession()
	g.threads = threads()
	return errors.Join(err, lockMemory())
}

func (g *guardian) close() {
	for _, d := range g.devices {
		d.close()
	}
	g.peers.close()
	if g.netlink != nil {
		g.netlink.Close()
	}
	unix.Close(g.ctl)
	close(g.forker.work)
}

func (g *guardian) setDevices(names []string) {
	g.devices = slices.DeleteFunc(g.devices, func(d *device) bool {
		if slices.Contains(names, d.name) {
			return false
		}
		d.close()
		return true
	})
	for _, n := range names {
		if !slices.ContainsFunc(g.devices, func(d *device) bool { return d.name == n }) {
			g.devices = append(g.devices, &device{name: n, fd: -1})
		}
	}
	for _, d := range g.devices {
		d.check(g.ctl, g.opt.Port, g.netlink, g.log)
	}
}

// loop waits, reads everything that is pending, and then ticks if it is time.
func (g *guardian) loop(ctx context.Context, signals <-chan os.Signal) {
	began := time.Now()
	next, awake := began.Add(g.guard.TickInterval()), wakefulness{slept: began}
	for !g.over {
		pending := g.wait(time.Until(next))
		now := time.Now()
		if awake.tooLong(now, pending) {
			sleep(nil, rest)
		}
		// What came meanwhile is read before silence is counted.
		if pending || !now.Before(next) {
			g.readDevices(now)
		}
		if pending || now.Sub(next) > lateBy { // or stopped after having looked
			g.readDaemon(now)
		}
		g.readSignals(ctx, now, signals)
		g.carry(now)
		if now.Before(next) {
			continue
		}
		if g.daemon != nil {
			g.guard.HandleProgress(g.daemon.counter.Load())
		}
		g.guard.Tick(now)
		g.carry(now)
		g.chores(now)
		// A late tick is one tick: those that we slept through are not made up for.
		if next = next.Add(g.guard.TickInterval()); next.Before(now) {
			next = now.Add(g.guard.TickInterval())
		}
	}
}

// wait returns whether there may be something to read. While all is calm one device
// is enough to be woken by: what matters comes on each. Of what peers send by
// unicast, only what is new is worth it.
func (g *guardian) wait(d time.Duration) (pending bool) {
	var fds [20]unix.PollFd
	n := 0
	add := func(fd int, events int16) {
		switch {
		case fd >= 0 && n < len(fds):
			fds[n] = unix.PollFd{Fd: int32(fd), Events: events}
			n++
		case fd >= 0:
			pending = true // it is not waited for: always try
		}
	}
	if p := g.daemon; p != nil {
		add(p.pidfd, unix.POLLIN)
		events := int16(unix.POLLIN)
		if len(p.backlog) > 0 {
			events |= unix.POLLOUT
		}
		if !p.gone {
			add(p.sock, events)
		}
	}
	for _, d := range g.devices {
		if d == g.wakes || !g.guard.Calm() {
			add(d.fd, unix.POLLIN)
		}
	}
	add(g.peers.news, unix.POLLIN)
	return sleep(fds[:n], max(d, 0)) || pending
}

func (g *guardian) readDevices(now time.Time) {
	for _, d := range g.devices {
		g.readSocket(now, d.fd, d)
	}
	g.readSocket(now, g.peers.beats, nil)
	g.readSocket(now, g.peers.news, nil)
}

// readSocket takes what came on a device's socket, or on one for peers (nil).
func (g *guardian) readSocket(now time.Time, fd int, d *device) {
	more := fd >= 0
	for range 32 { // of each in turn; what is left comes next time
		if !more {
			break
		}
		var n int
		n, more = g.inbox.receive(fd)
		for i := range n {
			g.readDatagram(now, d, i)
		}
	}
}

func (g *guardian) readDatagram(now time.Time, d *device, i int) {
	b, from, local := g.inbox.datagram(i)
	var link cluster.Link
	switch {
	case d != nil && local:
		link.Device = d.name
	case !g.peers.has(from): // a peer may be reached through a heartbeat device as well
		g.refused.Add(from.String(), errNoPeer)
		return
	}
	h, err := g.decode(b)
	if err != nil {
		g.refused.Add(from.String(), err)
		return
	}
	if link.Device != "" {
		g.wakes = d
	}
	link.Addr = from.String()
	if err := g.guard.HandleHeartbeat(now, link, h); err != nil && !errors.Is(err, cluster.ErrSeenBefore) {
		g.refused.Add(from.String(), err)
	}
}

var errNoPeer = errors.New("from the address of no peer")

// decode remembers the last heartbeat: each comes once on every device.
func (g *guardian) decode(b []byte) (*cluster.Heartbeat, error) {
	if g.heard != nil && bytes.Equal(b, g.heardAs) {
		return g.heard, nil
	}
	h, err := cluster.DecodeHeartbeat(g.opt.Key, b)
	if err == nil {
		g.heard, g.heardAs = h, append(g.heardAs[:0], b...)
	}
	return h, err
}

// readDaemon takes the daemon's messages, and then its end.
func (g *guardian) readDaemon(now time.Time) {
	p := g.daemon
	if p == nil {
		return
	}
	// Whether it has ended is asked first: what it said before is then surely there.
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, 0)
	for range 1024 {
		n, _, err := unix.Recvfrom(p.sock, g.buf, unix.MSG_DONTWAIT)
		if err == nil && n == 0 {
			g.daemonGone(now)
			break
		}
		if err != nil || n < 0 {
			break
		}
		m, err := decodeRequest(g.buf[:n])
		if err != nil {
			g.log.Error("message of the daemon not understood", "error", err)
			continue
		}
		g.request(now, m)
	}
	g.carry(now) // one heartbeat for all of it
	p.flush()
	if fds[0].Revents != 0 {
		g.daemonEnded(now)
	}
}

func (g *guardian) request(now time.Time, m any) {
	switch m := m.(type) {
	case cluster.Announce:
		g.guard.HandleAnnounce(now, m)
	case cluster.Entitle:
		g.guard.HandleEntitle(now, m)
	case cluster.Claim:
		g.guard.HandleClaim(now, m)
	case cluster.AskRemoval:
		g.guard.HandleAskRemoval(now, m)
	case addresses:
		g.addresses = m
	case streamPort:
		g.guard.HandleStreamPort(now, uint16(m))
	}
}

// carry does what the Guard wants done.
func (g *guardian) carry(now time.Time) {
	for {
		e, ok := g.guard.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case cluster.SendHeartbeat:
			b, err := e.Heartbeat.Marshal(g.opt.Key)
			if err != nil {
				g.log.Error("heartbeat", "error", err)
				continue
			}
			for range e.Copies {
				for _, d := range g.devices {
					d.send(b, g.netlink, g.log)
				}
			}
			if e.News {
				b[0] |= cluster.HeartbeatNews
			}
			for range e.Copies {
				g.peers.send(b, g.log)
			}
		case cluster.KillDaemon:
			g.log.Error("killing the daemon", "reason", e.Reason)
			g.removeAddresses()
			if g.daemon != nil {
				g.daemon.signal(unix.SIGKILL)
			}
		case cluster.GuardLog:
			g.log.Warn(e.Text)
		default:
			g.tell(e)
		}
	}
}

func (g *guardian) tell(e cluster.GuardEffect) {
	b, err := encodeEvent(e)
	if err != nil || b == nil || g.daemon == nil {
		return
	}
	if g.daemon.send(b); g.daemon.overflow {
		g.log.Error("killing the daemon", "reason", "it does not read")
		g.daemon.signal(unix.SIGKILL)
	}
}

// removeAddresses takes the shared addresses off this node, and virtual MAC addresses.
func (g *guardian) removeAddresses() {
	for _, a := range g.addresses.shared {
		i := ifindex(g.ctl, a.Device)
		if i == 0 {
			continue
		}
		addr, err := netlink.ParseAddr(a.Prefix.String())
		if err == nil {
			err = g.netlink.AddrDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: a.Device, Index: i}}, addr)
		}
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			g.log.Error("shared address not removed", "device", a.Device, "address", a.Prefix.String(), "error", err)
		}
	}
	// A virtual MAC address that stays here draws the successor's traffic.
	for _, m := range g.addresses.macs {
		i := ifindex(g.ctl, m.Device)
		if i == 0 {
			continue
		}
		link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: m.Device, Index: i}}
		if err := g.netlink.LinkSetHardwareAddr(link, m.Address[:]); err != nil {
			g.log.Error("the device's own MAC address is not back", "device", m.Device, "error", err)
		}
	}
}

// spawn starts the daemon; if it cannot, it tries again later.
func (g *guardian) spawn(now time.Time) {
	g.started, g.restartAt = now, time.Time{}
	p, err := g.forker.start(g.opt.Command, g.opt.Env)
	if err != nil {
		g.log.Error("daemon not started", "error", err)
		g.retryLater(now)
		return
	}
	g.daemon = p
	g.guard.DaemonStarted(now, p.id)
	g.carry(now)
	g.log.Info("daemon started", "pid", p.cmd.Process.Pid)
}

func (g *guardian) retryLater(now time.Time) {
	if g.backoff == 0 || now.Sub(g.started) >= livedLong {
		g.backoff = backoffMin
	} else {
		g.backoff = min(2*g.backoff, backoffMax)
	}
	g.restartAt = now.Add(g.backoff)
}

// daemonGone: the last of the daemon's threads has left user space for good, which
// is when the kernel closes its end of the socket. What remains, the closing of
// its other files, takes the kernel up to a second where there are tunnel
// interfaces: nobody should wait for that. The addresses go, then everybody is told.
func (g *guardian) daemonGone(now time.Time) {
	if g.daemon.gone {
		return
	}
	g.daemon.gone = true
	g.removeAddresses()
	g.addresses = addresses{}
	g.guard.DaemonEnded(now)
	g.carry(now)
}

// daemonEnded: nothing of it is left, so that it can be started again.
func (g *guardian) daemonEnded(now time.Time) {
	g.daemonGone(now)
	status, code := g.daemon.reap()
	g.daemon = nil
	switch {
	case g.stopping:
		g.log.Info("daemon ended", "status", status)
		g.over = true
	case code == ExitConfig:
		g.log.Error("the daemon cannot run as it is; not started again")
		g.code, g.over = ExitConfig, true
	default:
		g.retryLater(now)
		g.log.Error("daemon ended", "status", status, "restart_in", g.backoff)
	}
}

func (g *guardian) readSignals(ctx context.Context, now time.Time, signals <-chan os.Signal) {
	if ctx.Err() != nil {
		g.stop(now)
	}
	select {
	case s := <-signals:
		if s != unix.SIGHUP {
			g.stop(now)
			return
		}
		if g.daemon != nil {
			g.daemon.signal(unix.SIGHUP)
		}
		if g.opt.Reload != nil {
			go g.reload()
		}
	case s := <-g.reloaded:
		if s.Interval > 0 && s.Threshold > 0 {
			g.guard.SetInterval(s.Interval, s.Threshold)
			g.setDevices(s.HBDevs)
			g.peers.set(s.Peers, g.opt.Port, g.log)
		}
	default:
	}
}

func (g *guardian) reload() {
	s, err := g.opt.Reload()
	if err != nil {
		g.log.Error("configuration not reloaded", "error", err)
		return
	}
	select {
	case g.reloaded <- s:
	default:
	}
}

// stop lets the daemon hand over and end.
func (g *guardian) stop(now time.Time) {
	if g.stopping {
		return
	}
	g.stopping, g.killAt = true, now.Add(stopWait)
	if g.daemon == nil {
		g.guard.DaemonEnded(now)
		g.carry(now)
		g.over = true
		return
	}
	g.daemon.signal(unix.SIGTERM)
}

// chores are what a tick does besides: restarts, deadlines, interfaces, threads.
func (g *guardian) chores(now time.Time) {
	switch {
	case g.daemon == nil && !g.stopping && !g.restartAt.IsZero() && !now.Before(g.restartAt):
		g.spawn(now)
	case g.daemon != nil && g.stopping && !now.Before(g.killAt):
		g.log.Error("killing the daemon", "reason", "it did not end in time")
		g.killAt = now.Add(stopWait)
		g.daemon.signal(unix.SIGKILL)
	}
	if now.Before(g.nextCheck) {
		return
	}
	g.nextCheck = now.Add(checkInterval)
	for _, d := range g.devices {
		d.check(g.ctl, g.opt.Port, g.netlink, g.log)
	}
	g.peers.check(g.opt.Port, g.log)
	if g.collector.due() {
		g.collector.run()
	}
	if n := threads(); g.fifo && n != g.threads {
		if err := setFIFO(g.forker.tid); err != nil {
			g.log.Error("scheduling", "error", err)
		}
		g.threads = n
	}
}
