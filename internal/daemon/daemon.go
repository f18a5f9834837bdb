package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tandem/cluster"
	"tandem/cluster/guardian"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/internal/timerslack"
	"tandem/xfrm"
)

// Options say how a daemon runs.
type Options struct {
	ConfigFile string
	LogFormat  string // text or json
	LogOutput  io.Writer
}

// Daemon is one running daemon. Fields without a lock are owned by the event loop.
type Daemon struct {
	o       Options
	hub     *logHub
	log     *slog.Logger
	started time.Time

	cfg       *config.Config
	process   cluster.ProcessID
	loop      *loop
	plane     xfrm.DataPlane
	tunnels   *tunnels
	addresses *scopedAddresses
	routes    *routes
	keys      *keyLog
	noise     noise
	guardian  *guardian.Client // nil: this process was started alone
	cluster   *clusterEnds     // nil: standalone
	links     *links
	takeovers []node.Log // to be written once the addresses are claimed
	alarms    map[string]string
	breaks    breakpoint
	announcer *announcer
	pinger    *pinger // nil: no pair
	ocsp      *ocspAsker
	radius    *radiusAsker
	damped    *time.Timer // for a monitored interface that does not count yet
	ends      chan error  // what ends the daemon beside a signal
	ended     error       // the first of them

	progress atomic.Uint64
	strays   atomic.Pointer[farmEnds] // where packets of other members' scopes go
}

// shutdownLimit bounds a graceful end: handing over, deleting, closing.
const shutdownLimit = 5 * time.Second

// LoadConfig reads a configuration file. The error joins every fault, one line each.
func LoadConfig(path string) (*config.Config, []config.Fault, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	c, faults := config.Load(path, text)
	c, faults = readCertificates(path, c, faults, false)
	if c == nil {
		var lines []string
		for _, f := range faults {
			if !f.Warning {
				lines = append(lines, f.Error())
			}
		}
		return nil, faults, fmt.Errorf("%s", strings.Join(lines, "\n"))
	}
	return c, faults, nil
}

// ConfigError says that the configuration cannot be run: trying again does not help.
type ConfigError struct{ Err error }

func (e ConfigError) Error() string { return e.Err.Error() }
func (e ConfigError) Unwrap() error { return e.Err }

// UnfitError says that this build cannot work with the other members': trying again
// does not help.
type UnfitError struct{ Err error }

func (e UnfitError) Error() string { return e.Err.Error() }
func (e UnfitError) Unwrap() error { return e.Err }

// end makes the daemon stop as if it was told to, and Run return the error. Called on
// the loop, or before it runs.
func (d *Daemon) end(err error) {
	if d.ended == nil {
		d.ended = err
		d.ends <- err
	}
}

// Run is a daemon's whole life. It returns when the daemon was told to stop
// (SIGTERM, SIGINT, or ctx) and has done so, or could not start.
func Run(ctx context.Context, o Options) error {
	if o.LogOutput == nil {
		o.LogOutput = os.Stderr
	}
	cfg, faults, err := LoadConfig(o.ConfigFile)
	if err != nil {
		return ConfigError{err}
	}
	hub, err := newLogHub(o.LogOutput, o.LogFormat, cfg.Tandem.LogLevel)
	if err != nil {
		return err
	}
	defer hub.close()
	d := &Daemon{o: o, hub: hub, log: slog.New(hub), started: time.Now(), cfg: cfg, alarms: map[string]string{}, ends: make(chan error, 1)}
	d.process = newProcessID()
	switch d.guardian, err = guardian.Attach(nil); {
	case err == nil:
		d.process = d.guardian.Process()
	case !errors.Is(err, guardian.ErrNoGuardian):
		return err
	}
	d.sayWarnings(faults)
	if err := timerslack.Widen(timerslack.Daemon); err != nil {
		d.log.Debug("the runtime's timers cost more than they need", "error", err.Error())
	}
	if err := d.breaks.arm(os.Getenv("TANDEM_BREAK")); err != nil {
		return err
	}
	paceCollector()
	return d.run(ctx)
}

func newProcessID() cluster.ProcessID {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return cluster.ProcessID(binary.BigEndian.Uint64(b[:]))
}

func (d *Daemon) sayWarnings(faults []config.Fault) {
	for _, f := range faults {
		if f.Warning {
			d.log.Warn("configuration", "warning", f.Error())
		}
	}
}

func (d *Daemon) run(ctx context.Context) (err error) {
	var closers []func()
	defer func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}()
	d.loop = newLoop(d.carry, d.afterEffects, func() { d.turn() })
	if d.addresses, err = newScopedAddresses(d.log, d.cfg); err != nil {
		return err
	}
	d.addresses.macs.file = filepath.Join(d.cfg.Tandem.StateDir, "mac-addresses")
	closers = append(closers, d.addresses.close)
	handler := xfrm.Handler{IKE: d.loop.offerIKE, Events: d.loop.offerEvents}
	if d.cfg.Standalone.Farm() {
		handler.Stray = d.stray
		handler.ScopeOf = d.scopeOf
		handler.Begins = d.begins
		handler.Leads = d.leads
	}
	if d.plane, err = newPlane(d.cfg, handler, d.log); err != nil {
		return err
	}
	closers = append(closers, func() { _ = d.plane.Close() })
	if d.cfg.Tandem.KeyLog != "" {
		if d.keys, err = openKeyLog(d.cfg.Tandem.KeyLog); err != nil {
			return err
		}
		closers = append(closers, func() { _ = d.keys.close() })
		d.log.Warn("keys are written to a file because the configuration says so", "file", d.cfg.Tandem.KeyLog)
	}
	d.sayForwarding()
	d.links = newLinks()
	d.addresses.link = d.links.named
	if d.routes, err = newRoutes(d.log); err != nil {
		return err
	}
	d.routes.clean()
	closers = append(closers, d.routes.end)
	d.tunnels = newTunnels(d.log, d.plane)
	if err := d.configure(d.cfg); err != nil {
		return err
	}
	closers = append(closers, func() {
		if err := removeFirewall(); err != nil && d.cfg.HasPolicy {
			d.log.Error("firewall not removed", "error", err)
		}
	})
	closers = append(closers, d.addresses.releaseAll)
	if d.guardian != nil && (!d.cfg.Standalone.Farm() || d.cfg.Site() != 0) { // a farm without sites shares no address that moves
		d.addresses.tell = d.tellAddresses
	}

	d.ocsp = newOCSP(d.log, d.loop.offerAgain)
	closers = append(closers, d.ocsp.close)
	d.radius = newRADIUS(d.log, d.cfg.Hostname, d.loop.offerAgain)
	closers = append(closers, d.radius.close)
	options := node.Options{
		Config: d.cfg, Process: d.process, Rand: rand.Reader, Traffic: d.traffic, LocalAddr: d.localAddr, Revocation: d.ocsp.status, RADIUS: d.radius.answer,
		CookieSecret: randomKey(32), Logs: func(l slog.Level) bool { return d.log.Enabled(ctx, l) },
	}
	if d.cfg.HA.Mode != "a-p" && !d.cfg.Standalone.Farm() {
		options.TokenSecret = tokenSecret(d.log, d.cfg.Tandem.StateDir)
	}
	if d.cfg.HA.Mode == "a-p" || d.cfg.Standalone.Farm() {
		if d.cluster, d.loop.node, err = d.openCluster(options); err != nil {
			return err
		}
		closers = append(closers, d.cluster.close)
		if !d.cfg.Standalone.Farm() {
			d.pinger = newPinger(d.log, func() { _ = d.loop.post(d.pingservers) })
			closers = append(closers, d.pinger.close)
		}
	} else {
		d.loop.node = newGateway(options)
	}
	stopLinks, err := d.watchLinks()
	if err != nil {
		return err
	}
	closers = append(closers, stopLinks)
	d.announcer = newAnnouncer(d.log)
	if err := d.announcer.configure(d.cfg); err != nil {
		return err
	}
	closers = append(closers, d.announcer.close)
	stopAdmin, err := serveAdmin(d.cfg.Tandem.AdminSocket, d)
	if err != nil {
		return err
	}
	stopMetrics, err := serveMetrics(d.cfg.Tandem.MetricsAddr, d)
	if err != nil {
		stopAdmin()
		return err
	}
	if err := d.loop.post(func(now time.Time) { d.loop.node.Start(now); d.monitors(now); d.lookAtServers(now) }); err != nil {
		return err
	}
	if d.cluster != nil {
		if err := d.cluster.start(); err != nil {
			stopAdmin()
			stopMetrics()
			return err
		}
	}
	d.log.Info("tandem started", "hostname", d.hostname(), "mode", d.cfg.HA.Mode, "data_plane", dataPlaneName, "pid", os.Getpid())
	stopSignals := d.signals(ctx)
	d.loop.run()
	stopSignals()
	stopMetrics()
	stopAdmin()
	d.log.Info("tandem stopped", "pid", os.Getpid())
	return d.ended
}

// signals hands SIGTERM, SIGINT and SIGHUP to the loop; the end of ctx counts as SIGTERM.
func (d *Daemon) signals(ctx context.Context) (stop func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	ended := make(chan struct{})
	hup, cancel := context.WithCancel(ctx)
	var reloads sync.WaitGroup
	reloads.Go(func() {
		stopping := false
		shutdown := func(why string) {
			if stopping {
				return
			}
			stopping = true
			d.log.Info("stopping", "reason", why)
			d.announcer.leave(ctx)
			_ = d.loop.post(func(now time.Time) { d.loop.node.Shutdown(now) })
			time.AfterFunc(shutdownLimit, func() {
				_ = d.loop.post(func(time.Time) {
					d.log.Warn("graceful end took too long")
					d.loop.over = true
				})
			})
		}
		done := ctx.Done()
		for {
			select {
			case <-ended:
				return
			case <-done:
				done = nil
				shutdown("asked to")
			case err := <-d.ends:
				shutdown(err.Error())
			case s := <-ch:
				if s == syscall.SIGHUP {
					reloads.Go(func() { // other members may have to be waited for
						if _, err := d.reload(hup); err != nil {
							d.log.Error("configuration not loaded, the old one stays", "error", err)
						}
					})
					continue
				}
				shutdown(s.String())
			}
		}
	})
	return func() {
		signal.Stop(ch)
		cancel()
		close(ended)
		reloads.Wait()
	}
}

// configure renders a configuration onto the machine; the node is told apart.
func (d *Daemon) configure(c *config.Config) error {
	rules, err := firewallRules(c)
	if err != nil {
		return err
	}
	if err := d.tunnels.configure(c); err != nil {
		return err
	}
	port := uint16(0)
	if c.ListensTCP() {
		port = c.TCPPort
	}
	if err := d.plane.ListenTCP(port); err != nil {
		return err
	}
	if err := applyFirewall(rules); err != nil {
		if c.HasPolicy {
			return err
		}
		d.log.Debug("no firewall", "reason", err)
	}
	d.addresses.configure(c)
	d.links.configure(c, d.log)
	d.routes.setStatic(c.Routes)
	return d.hub.setLevel(c.Tandem.LogLevel)
}

// reload reads the configuration file again. A faulty one changes nothing. In a cluster
// what its members share changes on all of them, or on none.
func (d *Daemon) reload(ctx context.Context) (reloaded, error) {
	if d.cluster != nil {
		return d.cluster.revisions.reload(ctx)
	}
	next, faults, err := LoadConfig(d.o.ConfigFile)
	if err != nil {
		return reloaded{}, err
	}
	return reloaded{Reloaded: true}, d.load(ctx, next, faults)
}

// load takes a configuration into use. Where it fails, the old one is.
func (d *Daemon) load(ctx context.Context, next *config.Config, faults []config.Fault) error {
	result := error(nil)
	err := d.loop.call(ctx, func(now time.Time) {
		if result = d.fits(next); result != nil {
			return
		}
		d.sayWarnings(faults)
		if result = d.configure(next); result != nil {
			if err := d.configure(d.cfg); err != nil {
				d.log.Error("the old configuration could not be restored", "error", err)
			}
			return
		}
		d.cfg = next
		d.loop.node.Reload(now, next)
		if d.cluster != nil {
			d.cluster.farm.moved()
		}
		d.monitors(now)
		d.lookAtServers(now)
		if d.pinger != nil {
			d.pingservers(now) // other interfaces may count
		}
		d.log.Info("configuration loaded", "file", d.o.ConfigFile)
	})
	if err != nil || result != nil {
		return errors.Join(err, result)
	}
	if err := d.announcer.configure(next); err != nil {
		d.log.Error("the configuration is loaded, but routers are not told", "error", err)
	}
	return nil
}

// restartError names what a running daemon cannot change.
type restartError struct{ what string }

func (e restartError) Error() string {
	return e.what + " cannot change while running: restart tandem; nothing was changed"
}

// fits says what keeps a configuration from being taken into use here. Called on the loop.
func (d *Daemon) fits(next *config.Config) error {
	if why := needsRestart(d.cfg, next); why != "" {
		return restartError{why}
	}
	if _, err := firewallRules(next); err != nil {
		return err
	}
	return d.tunnels.foreign(next)
}

// needsRestart names what a running daemon cannot change.
func needsRestart(old, next *config.Config) string {
	switch {
	case old.HA.Mode != next.HA.Mode:
		return "system ha: mode"
	case fmt.Sprint(old.Standalone) != fmt.Sprint(next.Standalone):
		return "system standalone-cluster"
	case old.HA.UnicastStatus != next.HA.UnicastStatus || fmt.Sprint(old.HA.UnicastPeers) != fmt.Sprint(next.HA.UnicastPeers):
		return "system ha: unicast-peers"
	case old.Tandem.Witness != next.Tandem.Witness:
		return "system tandem: witness"
	case old.Site() != 0 && (old.HA.Priority != next.HA.Priority || old.HA.Override != next.HA.Override):
		return "system ha: priority and override of a site's node"
	case reassigned(old, next) != "":
		return reassigned(old, next)
	case old.HA.GroupID != next.HA.GroupID:
		return "system ha: group-id"
	case fmt.Sprint(old.HA.HBDev, old.HA.HBInterval, old.HA.HBLostThreshold) != fmt.Sprint(next.HA.HBDev, next.HA.HBInterval, next.HA.HBLostThreshold):
		return "system ha: heartbeats"
	case old.Tandem.AdminSocket != next.Tandem.AdminSocket:
		return "system tandem: admin-socket"
	case old.Tandem.MetricsAddr != next.Tandem.MetricsAddr:
		return "system tandem: metrics-address"
	case old.Tandem.KeyLog != next.Tandem.KeyLog:
		return "system tandem: key-log"
	case old.Tandem.ClusterDir != next.Tandem.ClusterDir, old.Tandem.StateDir != next.Tandem.StateDir:
		return "system tandem: folders"
	}
	return ""
}

func randomKey(n int) ipsec.Key {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return ipsec.NewKey(b)
}

func (d *Daemon) hostname() string {
	if d.cfg.Hostname != "" {
		return d.cfg.Hostname
	}
	name, _ := os.Hostname()
	return name
}

// traffic is ike.Traffic; the engine calls it on the loop.
func (d *Daemon) traffic(spi ipsec.ESPSPI) (lastIn, lastOut time.Time) {
	c, _ := d.plane.Counters(spi)
	return c.LastIn, c.LastOut
}

// localAddr is the address of a phase 1's interface: the shared one where there
// is one (also while another node holds it), else the device's own.
func (d *Daemon) localAddr(dev string, v6 bool) (netip.Addr, bool) {
	if in := interfaceOf(d.cfg, dev); in != nil {
		for _, p := range in.IP {
			if p.Addr().Is6() == v6 {
				return p.Addr(), true
			}
		}
	}
	return d.links.addr(dev, v6)
}

// turn is called once for each turn of the loop: nothing else may move the
// counter that the guardian watches.
func (d *Daemon) turn() {
	d.progress.Add(1)
	if d.guardian != nil {
		d.guardian.Progress()
	}
	d.announcer.look(d.loop.node)
}

// sayForwarding warns where the kernel would not pass on what the tunnels deliver.
func (d *Daemon) sayForwarding() {
	paths := []string{"ipv4/ip_forward"}
	for i := range d.cfg.Phase2 {
		for _, t := range d.cfg.Phase2[i].Dst {
			if t.Start.Is6() && len(paths) == 1 {
				paths = append(paths, "ipv6/conf/all/forwarding")
			}
		}
	}
	for _, path := range paths {
		if text, err := os.ReadFile("/proc/sys/net/" + path); err == nil && strings.TrimSpace(string(text)) == "0" {
			d.log.Warn("the kernel forwards nothing: a gateway wants it to", "sysctl", "net."+strings.ReplaceAll(path, "/", "."), "value", 0)
		}
	}
}

// tellAddresses lets the guardian know what it must take away if this process dies.
func (d *Daemon) tellAddresses(shared []sharedAddr) {
	list := make([]guardian.Address, 0, len(shared))
	for _, s := range shared {
		list = append(list, guardian.Address{Device: s.dev, Prefix: s.prefix})
	}
	if err := d.guardian.Addresses(list, d.addresses.macs.told(shared)); err != nil {
		d.log.Error("guardian does not listen", "error", err)
	}
}

func (d *Daemon) guardianPID() int {
	if d.guardian == nil {
		return 0
	}
	return d.guardian.GuardianPID()
}
