package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/cluster/raftauth"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/forward"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/proto/clusterpb"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const (
	raftPort       = raftauth.DefaultPort // TCP; heartbeats have UDP 708, forwarded packets UDP 710
	proposePatient = 2 * time.Second
	leaderLook     = 20 * time.Millisecond
	unheardAfter   = 5 * time.Second // then members that were never heard are an alarm
	membersFile    = "farm-members.json"
	// sharedScope is that of the tunnel interfaces of a farm: always active. Each SA's
	// own scope decides about its packets.
	sharedScope xfrm.Scope = 0
)

// farmEnds are what a member of a farm, or of an FGCP group of three or four, has beside a
// pair's ends: the log that the members share, and in a farm the link on which packets go
// to the member that owns their SA. Its methods belong to the loop, but for stray and what
// says otherwise.
type farmEnds struct {
	c    *clusterEnds
	by   decider
	node *node.Farm     // by; nil: of a group
	link *forward.Link  // nil: of a group
	log  *raftauth.Node // nil until all members have been heard once
	// The same, for those who change the configuration.
	decider atomic.Pointer[raftauth.Node]
	disk    *raftauth.Disk
	tcp     *raftauth.StreamLayer

	unfit       bool                                          // this build does not understand the log: the daemon ends
	addrs       sync.Map                                      // cluster.NodeID → netip.Addr
	remembering sync.Mutex                                    // held by who writes addrs down
	links       sync.Map                                      // of a group: cluster.NodeID → []netip.Addr, where it is heard
	owners      atomic.Pointer[map[xfrm.Scope]cluster.NodeID] // of every scope
	begins      atomic.Pointer[map[string]xfrm.Scope]         // of static tunnels, where another member begins them
	leads       leads                                         // of dialup clients, where another member has them
	limbo       limbo
	pointers    sync.Map  // ipsec.ESPSPI → xfrm.Scope, of tunnels that have moved
	changed     bool      // what this member owns has, since moved
	since       time.Time // since when members are waited for; zero: they are not
	queue       chan *clusterpb.Command
	urgent      chan *clusterpb.Command // before those in queue: takeovers wait for them
	waiting     sync.Map                // of commands in the queue, by what they ask for
	kick        chan struct{}
	wg          sync.WaitGroup
	ctx         context.Context
	cancel      context.CancelFunc
}

// decider is a node that acts on what the members' log decides.
type decider interface {
	HandleDecided(time.Time, *fsm.Machine)
	HandleQuorum(time.Time, node.Quorum)
	HandleLeader(time.Time, bool)
	Lost(cluster.NodeID) bool
}

// newFarmEnds are those of a member whose node is by.
func (c *clusterEnds) newFarmEnds(by decider) *farmEnds {
	const most = 4 * fsm.MaxNodes * fsm.SlotsPerMember
	f := &farmEnds{c: c, by: by, queue: make(chan *clusterpb.Command, most), urgent: make(chan *clusterpb.Command, most), kick: make(chan struct{}, 1)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.owners.Store(&map[xfrm.Scope]cluster.NodeID{})
	f.begins.Store(&map[string]xfrm.Scope{})
	return f
}

// openFarm prepares the ends of a member of a farm and makes its node.
func (c *clusterEnds) openFarm(o node.Options) (*node.Farm, error) {
	cfg := &c.d.cfg.Standalone
	if c.d.cfg.Site() == 0 && int(c.identity.Node) != cfg.Member() {
		return nil, configErrorf("system standalone-cluster: group-member-id %d is node %d, but the certificate in cluster-dir is that of node %d",
			cfg.MemberID, cfg.Member(), c.identity.Node)
	}
	w := c.d.cfg.Tandem.Witness
	if len(cfg.Peers) < 2 && w.Node == 0 {
		return nil, configErrorf("%s", "system standalone-cluster: a farm has three members or more, or two and a witness (config system tandem, set witness): two cannot decide without a third (a pair is `config system ha`)")
	}
	if w.Node == int(c.identity.Node) {
		return nil, configErrorf("system tandem: witness: node %d is this member itself", w.Node)
	}
	interval, threshold := cfg.Heartbeats()
	n := node.NewFarm(node.FarmOptions{
		Options: o, Self: c.identity.Node, Name: c.d.hostname(), Coverage: c.state.Coverage(), Interval: interval, Threshold: threshold,
	})
	c.farm = c.newFarmEnds(n)
	c.farm.node = n
	return n, nil
}

// start opens the sockets. The log begins when it is known who the members are.
func (f *farmEnds) start() error {
	if f.node == nil {
		return f.startGroup()
	}
	d, id := f.c.d, f.c.identity
	here, err := addrTowards(d.cfg.Standalone.Peers[0].PeerIP)
	if err != nil {
		return fmt.Errorf("system standalone-cluster: cluster-peer %s: %w", d.cfg.Standalone.Peers[0].PeerIP, err)
	}
	f.link, err = forward.New(forward.Options{
		Self: id.Node, Key: id.ForwardKey(), Listen: netip.AddrPortFrom(here, forward.DefaultPort), Log: d.log,
		Deliver: d.plane.Inject,
		IKE: func(_ forward.NodeID, x xfrm.IKEDatagram, last bool) {
			d.loop.offerRemote(func(now time.Time) {
				f.node.HandleForwarded(now, ike.Datagram{Local: x.Local, Remote: x.Remote, NonESP: x.NonESP, TCP: x.TCP, Data: x.Data}, last)
			})
		},
		LAN: func(from forward.NodeID, b []byte) {
			d.loop.offerRemote(func(now time.Time) { f.node.HandleLAN(now, from, b) })
		},
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(here.String(), strconv.Itoa(raftPort)))
	if err != nil {
		return fmt.Errorf("the members' log: %w", err)
	}
	f.tcp = raftauth.NewStreamLayer(id, l, f.resolve, d.log)
	f.recall()
	d.plane.Activate(sharedScope)
	if d.cfg.Site() == 0 {
		// What a farm's members have of addresses and routes is their own, and stays.
		d.addresses.claim(sharedScope, func() {
			d.routes.apply(func(r config.Route) bool { return d.cfg.Phase1ByName(r.Device) == nil })
		})
	}
	d.strays.Store(f)
	f.begin()
	return nil
}

// addrTowards is our address on the way to another.
func addrTowards(to netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, raftPort)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	a, _ := netip.AddrFromSlice(c.LocalAddr().(*net.UDPAddr).IP)
	return a.Unmap(), nil
}

// resolve says where a member listens for the log; any goroutine may ask.
func (f *farmEnds) resolve(n fsm.NodeID) (string, bool) {
	if w := f.c.d.cfg.Tandem.Witness; w.Node != 0 && n == fsm.NodeID(w.Node) {
		return net.JoinHostPort(w.Addr.String(), strconv.Itoa(raftPort)), true
	}
	a, ok := f.at(n)
	return net.JoinHostPort(a.String(), strconv.Itoa(raftPort)), ok
}

// heard takes what heartbeats say of a member: where it is, and what it owns.
func (f *farmEnds) heard(_ time.Time, p cluster.Peer) {
	if f == nil {
		return
	}
	for _, l := range p.Links { // heartbeat devices, which a site may have, have other addresses
		a, err := netip.ParseAddr(l.Addr)
		peer := slices.Contains(f.c.d.cfg.LogPeers(), a)
		if old, ok := f.addrs.Load(p.Node); err == nil && peer && (!ok || old != a) {
			f.addrs.Store(p.Node, a)
			go f.remember()
		}
	}
	f.reachable(p)
	f.begin()
	f.moved()
}

// lost is called when a member was lost.
func (f *farmEnds) lost() {
	if f == nil {
		return
	}
	if f.log != nil {
		gone := map[cluster.NodeID]bool{}
		for _, n := range f.members() {
			gone[n] = f.by.Lost(n)
		}
		f.log.Lost(func(n cluster.NodeID) bool { return gone[n] })
	}
	f.moved()
}

// members are all that are known, by number, this one and the witness among them.
func (f *farmEnds) members() []cluster.NodeID {
	list := []cluster.NodeID{f.c.identity.Node}
	if w := f.c.d.cfg.Tandem.Witness; w.Node != 0 {
		list = append(list, cluster.NodeID(w.Node))
	}
	f.addrs.Range(func(n, _ any) bool {
		list = append(list, n.(cluster.NodeID))
		return true
	})
	slices.Sort(list)
	return slices.Compact(list)
}

// begin starts the log once every configured member's number is known.
func (f *farmEnds) begin() {
	all, d := f.members(), f.c.d
	w := cluster.NodeID(d.cfg.Tandem.Witness.Node)
	want := len(d.cfg.LogPeers()) + 1
	if w != 0 {
		want++
	}
	if f.log != nil || f.tcp == nil || f.unfit {
		return
	}
	if len(all) < want {
		f.sayUnheard()
		return
	}
	d.alarm(cluster.Alarm{Name: "log"})
	switch err := f.open(all, raftauth.Voters(all, w)); {
	case errors.Is(err, fsm.ErrUnfit):
		f.sayUnfit(err)
	case err != nil:
		d.log.Error("the members' log cannot start; nothing is owned", "error", err)
		d.alarm(cluster.Alarm{Name: "log", Text: err.Error(), On: true})
	}
}

// sayUnheard names, after a while, the members that must be heard once before the first
// group can be formed.
func (f *farmEnds) sayUnheard() {
	if f.since.IsZero() {
		f.since = time.Now()
		time.AfterFunc(unheardAfter, func() { _ = f.c.d.loop.post(func(time.Time) { f.begin() }) })
		return
	}
	if time.Since(f.since) < unheardAfter {
		return
	}
	heard := map[netip.Addr]bool{}
	f.addrs.Range(func(_, a any) bool {
		heard[a.(netip.Addr)] = true
		return true
	})
	var missing []string
	for _, a := range f.c.d.cfg.LogPeers() {
		if !heard[a] {
			missing = append(missing, a.String())
		}
	}
	text := "the members' log has not begun, so nothing is owned: never heard of " + strings.Join(missing, ", ")
	if f.c.d.alarms["log"] != text {
		f.c.d.alarm(cluster.Alarm{Name: "log", Text: text, On: true})
	}
}

func configErrorf(format string, args ...any) error { return ConfigError{fmt.Errorf(format, args...)} }

func (f *farmEnds) open(all, voters []cluster.NodeID) (err error) {
	d, id := f.c.d, f.c.identity
	if f.disk, err = raftauth.OpenDisk(d.cfg.Tandem.StateDir, raftauth.Logger(d.log)); err != nil {
		return err
	}
	synced := f.node == nil || slices.ContainsFunc(d.cfg.Phase1, func(p config.Phase1) bool { return p.FGSPSync })
	standbys := raftauth.DefaultStandbys
	if f.node == nil {
		standbys = 0 // the node plans
	}
	f.log, err = raftauth.New(raftauth.Options{
		Self: id.Node, Name: d.hostname(), Process: uint64(d.process), Floor: f.c.state.Epoch().Counter, Aside: !synced,
		Site:   fsm.Site{Number: d.cfg.Site(), Priority: d.cfg.HA.Priority, Override: d.cfg.HA.Override},
		Voters: voters, Members: all, Standbys: standbys,
		Disk: f.disk, Transport: f.tcp.Transport(d.log), Peers: f.tcp, Log: d.log, Notify: f.notify,
	})
	if err != nil {
		return errors.Join(err, f.disk.Close())
	}
	f.decider.Store(f.log)
	f.tcp.Serve(f.log.Answer)
	d.log.Info("members' log started", "members", all, "voters", voters)
	f.wg.Go(f.proposals)
	f.wg.Go(f.follow)
	return nil
}

// notify is called by the log, from several goroutines.
func (f *farmEnds) notify(e raftauth.Event) {
	l := f.c.d.loop
	switch {
	case e.Changed != nil:
		select {
		case f.kick <- struct{}{}:
		default:
		}
	case e.Quorum != nil:
		q := node.Quorum{Lost: !e.Quorum.Has, Stop: e.Quorum.Stop || f.c.d.cfg.Tandem.QuorumLoss == "stop"}
		l.offerRemote(func(now time.Time) { f.by.HandleQuorum(now, q) })
	case e.Disk != nil:
		stalled := e.Disk.Stalled
		l.offerRemote(func(time.Time) {
			f.c.d.alarm(cluster.Alarm{Name: "disk of the log", Text: "the disk does not answer; another member leads", On: stalled})
		})
	case e.Unfit != nil:
		err := e.Unfit
		l.offerRemote(func(time.Time) { f.sayUnfit(err) })
	}
}

// sayUnfit ends the daemon, gracefully, and for good: another start of the same build
// would end alike.
func (f *farmEnds) sayUnfit(err error) {
	if f.unfit {
		return
	}
	f.unfit = true
	f.c.d.log.Error("this build cannot stay in the farm: start one that is no older than the other members'", "error", err)
	f.c.d.end(UnfitError{err})
}

// follow hands what was decided to the loop, and who leads.
func (f *farmEnds) follow() {
	l := f.c.d.loop
	tick := time.NewTicker(leaderLook)
	defer tick.Stop()
	leads, quorum, led := false, false, false
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-f.kick:
			view := f.log.View()
			f.next(view)
			f.c.revisions.decided(view.Config())
			l.offerRemote(func(now time.Time) {
				f.by.HandleDecided(now, view)
				f.moved()
			})
		case <-tick.C:
		}
		leader := f.log.Leader()
		if leader != 0 && !quorum { // the log speaks of losses only
			quorum = true
			l.offerRemote(func(now time.Time) { f.by.HandleQuorum(now, node.Quorum{}) })
		}
		if now := leader != 0 && f.log.Joined(); now != led {
			led = now
			f.c.revisions.role(led, cluster.Epoch{})
		}
		if now := leader == f.c.identity.Node; now != leads {
			leads = now
			l.offerRemote(func(now time.Time) { f.by.HandleLeader(now, leader == f.c.identity.Node) })
		}
	}
}

// propose queues a command; one that asks for the same is proposed once at a time.
func (f *farmEnds) propose(e cluster.Propose) {
	key := fsm.Subject(e.Command)
	if _, dup := f.waiting.LoadOrStore(key, true); dup {
		return
	}
	queue := f.queue
	if cluster.Urgent(e.Command) {
		queue = f.urgent
	}
	select {
	case queue <- e.Command:
	default:
		f.waiting.Delete(key)
	}
}

// proposals has what waits decided, the urgent first, and together what may go together.
func (f *farmEnds) proposals() {
	var urgent, others []*clusterpb.Command
	for {
		if len(urgent)+len(others) == 0 {
			select {
			case <-f.ctx.Done():
				return
			case c := <-f.urgent:
				urgent = append(urgent, c)
			case c := <-f.queue:
				others = append(others, c)
			}
		}
		urgent, others = all(f.urgent, urgent), all(f.queue, others)
		wait := slices.Concat(urgent, others)
		c, n := cluster.Together(wait)
		urgent, others = urgent[min(n, len(urgent)):], others[max(0, n-len(urgent)):]
		ctx, cancel := context.WithTimeout(f.ctx, proposePatient)
		r, err := f.log.Propose(ctx, c)
		cancel()
		for _, c := range cluster.Parts(c) {
			f.waiting.Delete(fsm.Subject(c))
		}
		if err == nil && !r.OK() {
			f.c.d.log.LogAttrs(f.ctx, slog.LevelDebug, "HA not decided", slog.String("command", c.String()), slog.String("why", r.Why))
		}
	}
}

// all adds what waits in a queue.
func all(queue <-chan *clusterpb.Command, to []*clusterpb.Command) []*clusterpb.Command {
	for {
		select {
		case c := <-queue:
			to = append(to, c)
		default:
			return to
		}
	}
}

// moved publishes who owns what to the data plane's goroutines, and where members are.
func (f *farmEnds) moved() {
	if f == nil || f.link == nil {
		return
	}
	owners := f.node.Owners()
	f.owners.Store(&owners)
	f.leads.publish(f.node.Followed())
	begins := f.node.BegunElsewhere(owners)
	f.begins.Store(&begins)
	f.release(time.Now(), owners)
	peers := map[cluster.NodeID]netip.AddrPort{}
	f.addrs.Range(func(n, a any) bool {
		peers[n.(cluster.NodeID)] = netip.AddrPortFrom(a.(netip.Addr), forward.DefaultPort)
		return true
	})
	f.link.SetPeers(peers)
}

// scopeOf tells the scope of an SPI that no SA here has. The data plane's goroutines call it.
func (d *Daemon) scopeOf(spi ipsec.ESPSPI) (xfrm.Scope, bool) {
	if f := d.strays.Load(); f != nil {
		if to, ok := f.pointers.Load(spi); ok {
			return to.(xfrm.Scope), true
		}
	}
	return node.ScopeOf(spi), true
}

// begins tells the scope of a static tunnel that another member begins. The data plane's
// goroutines call it.
func (d *Daemon) begins(tunnel string) (xfrm.Scope, bool) {
	f := d.strays.Load()
	if f == nil {
		return 0, false
	}
	scope, ok := (*f.begins.Load())[tunnel]
	return scope, ok
}

// stray sends a packet to the member that owns its SA. The data plane's goroutines call it.
func (d *Daemon) stray(x xfrm.Stray) {
	f := d.strays.Load()
	if f == nil {
		return
	}
	if to := (*f.owners.Load())[x.Scope]; to != 0 {
		f.link.Send(to, x)
		return
	}
	f.limbo.add(time.Now(), x)
}

// scopeOf is where a packet belongs that waits for its tunnel to come to rest.
func (f *farmEnds) scopeOf(x *xfrm.Stray) xfrm.Scope {
	if spi, ok := esp.SPI(x.Packet); ok {
		if to, ok := f.pointers.Load(spi); ok {
			return to.(xfrm.Scope)
		}
	}
	return sharedScope // it is in the data plane by now
}

// point keeps where the packets of a tunnel go that has moved.
func (f *farmEnds) point(e node.Pointer) {
	f.changed = true
	if e.To == 0 {
		f.pointers.Delete(e.SPIIn)
	} else {
		f.pointers.Store(e.SPIIn, e.To)
	}
}

// release sends on what waited for an owner, or takes it in if that is this member.
func (f *farmEnds) release(now time.Time, owners map[xfrm.Scope]cluster.NodeID) {
	var ours []xfrm.Stray
	can := func(x *xfrm.Stray) bool {
		if x.Scope == node.OnItsWay {
			return f.scopeOf(x) != node.OnItsWay
		}
		return owners[x.Scope] != 0 || f.node.Owns(x.Scope)
	}
	for _, x := range f.limbo.take(now, can) {
		if to := owners[x.Scope]; to != 0 {
			f.link.Send(to, x)
		} else {
			ours = append(ours, x)
		}
	}
	if len(ours) > 0 {
		f.c.d.plane.Inject(ours)
	}
}

func (f *farmEnds) forward(e node.Forward) {
	d := e.Datagram
	f.link.SendIKE(e.To, xfrm.IKEDatagram{Local: d.Local, Remote: d.Remote, NonESP: d.NonESP, TCP: d.TCP, Data: d.Data}, e.Last)
}

// close ends the log and the link.
func (f *farmEnds) close() {
	if f == nil {
		return
	}
	f.c.d.strays.Store(nil)
	f.cancel()
	f.wg.Wait()
	if f.log != nil {
		if err := f.log.Close(); err != nil {
			f.c.d.log.Warn("the members' log did not end well", "error", err)
		}
	}
	if f.tcp != nil {
		_ = f.tcp.Close()
	}
	if f.link != nil {
		_ = f.link.Close()
	}
}
