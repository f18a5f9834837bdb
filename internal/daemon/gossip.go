package daemon

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"io"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/cluster/gossip"
	"tandem/internal/config"
	"tandem/internal/node"
)

// gossipEvery is how often a member says how it does.
const gossipEvery = 5 * time.Second

// gossipEnds are what this member tells the others and hears from them beside the
// log, the streams and the heartbeats. Nothing waits for it, and nothing follows from it.
type gossipEnds struct {
	c      *clusterEnds
	peers  sync.Map // cluster.NodeID → netip.AddrPort
	first  chan struct{}
	once   sync.Once
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Of the goroutine that tells: what the configuration's digest was made of.
	digested *config.Config
	digest   []byte

	mu sync.Mutex
	g  *gossip.Gossip // nil: not yet
}

// openGossip begins when a peer is known: from its address follows our own. In a farm
// that is the first cluster-peer, in a pair the first link on which a heartbeat comes.
func openGossip(c *clusterEnds) *gossipEnds {
	e := &gossipEnds{c: c, first: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	for i, a := range c.d.cfg.LogPeers() {
		e.meet(cluster.NodeID(100+i), a) // its number does not matter
	}
	e.wg.Go(e.run)
	return e
}

// heard takes the addresses of a pair's heartbeats. Called on the loop.
func (e *gossipEnds) heard(p cluster.Peer) {
	if e == nil || e.c.farm != nil {
		return
	}
	for _, l := range p.Links {
		// One link carries gossip, the first that is configured: it may be late or fail.
		if a, err := netip.ParseAddr(l.Addr); err == nil && l.Device == e.c.d.cfg.HA.HBDev[0].Name {
			e.meet(p.Node, a.WithZone(l.Device))
		}
	}
}

func (e *gossipEnds) meet(n cluster.NodeID, a netip.Addr) {
	e.peers.Store(n, netip.AddrPortFrom(a, gossip.DefaultPort))
	e.once.Do(func() { close(e.first) })
}

func (e *gossipEnds) addrs() (all []netip.AddrPort) {
	e.peers.Range(func(_, a any) bool {
		all = append(all, a.(netip.AddrPort))
		return true
	})
	return all
}

func (e *gossipEnds) run() {
	select {
	case <-e.ctx.Done():
		return
	case <-e.first:
	}
	d := e.c.d
	tick := time.NewTicker(gossipEvery)
	defer tick.Stop()
	said := "" // what keeps gossip from beginning
	var packets uint64
	last := time.Now()
	for {
		if e.list() == nil {
			if err := e.start(); err != nil && err.Error() != said {
				said = err.Error()
				d.log.Warn("no gossip: load and digests of other members stay unknown", "error", err)
			}
		}
		if g := e.list(); g != nil {
			m := e.meta(time.Since(last), &packets)
			last = time.Now()
			if m.Name != "" {
				if err := g.SetMeta(m); err != nil {
					d.log.Warn("gossip", "error", err)
				}
			}
		}
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (e *gossipEnds) start() error {
	here, err := addrTowards(e.addrs()[0].Addr())
	if err != nil {
		return err
	}
	if z := e.addrs()[0].Addr().Zone(); z != "" {
		here = here.WithZone(z)
	}
	d, states := e.c.d, map[cluster.NodeID]gossip.State{} // of Notify's goroutine
	g, err := gossip.Start(gossip.Options{
		Identity: e.c.identity, Name: d.hostname(), Bind: netip.AddrPortFrom(here, gossip.DefaultPort), Peers: e.addrs, Log: d.log,
		Notify: func(m gossip.Member) {
			if m.Version > 0 && states[m.Node] != m.State {
				states[m.Node] = m.State
				d.log.Info("gossip", "node", m.Node, "name", m.Meta.Name, "state", m.State, "build", m.Meta.Build)
			}
		},
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.g = g
	e.mu.Unlock()
	d.log.Info("gossip started", "address", g.Addr().String())
	return nil
}

func (e *gossipEnds) list() *gossip.Gossip {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.g
}

// meta is what this member says; without a name: the loop has ended.
func (e *gossipEnds) meta(since time.Duration, before *uint64) gossip.Meta {
	d := e.c.d
	m := gossip.Meta{Build: build(), LogMin: fsm.MinVersion, LogMax: fsm.MaxVersion}
	var cfg *config.Config
	if d.loop.call(e.ctx, func(time.Time) {
		if n, ok := d.loop.node.(interface{ Load() node.Load }); ok {
			l := n.Load()
			m.Owned, m.Tunnels, m.Scopes = l.Owned, l.Tunnels, l.Digests
		}
		m.Name, cfg = d.hostname(), d.cfg
	}) != nil {
		return gossip.Meta{}
	}
	if cfg != e.digested { // it takes long where there are many tunnels
		h := hmac.New(sha256.New, e.c.identity.GossipKey().Bytes())
		for _, s := range cfg.Checksum(e.c.identity.GossipKey().Bytes()) {
			_, _ = io.WriteString(h, s.Path+" "+s.Sum+"\n")
		}
		e.digested, e.digest = cfg, h.Sum(nil)[:gossip.DigestLen]
	}
	m.Config = e.digest
	sum := tunnelPackets(cfg)
	if s := since.Seconds(); s > 0 && sum >= *before {
		m.Packets = uint64(float64(sum-*before) / s)
	}
	*before = sum
	return m
}

// tunnelPackets counts what went through the tunnel interfaces, in both directions. One
// file tells of all of them; asking for each costs more than everything else here.
func tunnelPackets(c *config.Config) (sum uint64) {
	names := make(map[string]bool, len(c.Phase1))
	for i := range c.Phase1 {
		names[c.Phase1[i].Name] = true
	}
	b, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || !names[strings.TrimSpace(name)] || len(f) < 10 {
			continue
		}
		for _, k := range []int{1, 9} { // packets received, packets sent
			n, _ := strconv.ParseUint(f[k], 10, 64)
			sum += n
		}
	}
	return sum
}

// build is the version of this binary, with the commit where there is no other.
func build() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return "(devel)"
	}
	v := b.Main.Version
	if v == "" || v == "(devel)" {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				v = s.Value
			}
		}
	}
	return v[:min(len(v), 40)]
}

func (e *gossipEnds) close() {
	if e == nil {
		return
	}
	e.cancel()
	e.wg.Wait()
	if g := e.list(); g != nil {
		if err := g.Close(); err != nil {
			e.c.d.log.Debug("gossip did not end well", "error", err)
		}
	}
}
