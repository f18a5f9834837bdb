package node

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// VClusters is a node of a pair with virtual clusters, or of a group of three or four: a
// Node for each virtual cluster, which owns and moves by itself. It is not safe for
// concurrent use.
type VClusters struct {
	scopeSet
	decisions // of a group; see vclusters_group.go
	opt       Options
	cfg       *config.Config
	said      map[cluster.ScopeID]cluster.Announce
	noted     map[cluster.ScopeID]bool // what each scope wants the note on disk to say
	tunnels   map[string]cluster.ScopeID
	addrs     map[netip.Addr]cluster.ScopeID
	missing   map[cluster.ScopeID][]cluster.NodeID // who is heard not to have it

	ledAt   time.Time // since when we lead the log, or do not
	planAt  time.Time // when to look at the plan again
	planNot time.Time // nothing is proposed before

	quiet, stopping bool
	strays          uint64
}

// vshares is into how many parts SPIs are split: any of them tells its virtual cluster.
const vshares = fsm.MaxVClusters

// NewVClusters makes a node that does nothing before Start. Of o.Pair, or of o.Slot in a
// group, HA and Scope are set for each virtual cluster that the configuration has.
func NewVClusters(o Options) *VClusters {
	v := &VClusters{
		scopeSet: newScopeSet(), opt: o, said: map[cluster.ScopeID]cluster.Announce{}, noted: map[cluster.ScopeID]bool{},
		missing: map[cluster.ScopeID][]cluster.NodeID{}, decisions: newDecisions(),
	}
	v.collect = v.carry
	v.opt.turns = &copyTurns{}
	v.learn(o.Config)
	for _, c := range v.cfg.VirtualClusters() {
		x, id, ha := v.opt, cluster.ScopeID(c.ID), v.cfg.HAOf(c)
		if v.group() {
			slot := *o.Slot
			slot.Scope, slot.HA = id, &ha
			x.Slot = &slot
			v.noted[id] = slot.Coverage != cluster.CoverageProven
		} else {
			pair := *o.Pair
			pair.Scope, pair.HA = id, ha
			x.Pair = &pair
		}
		x.Config = v.configOf(c)
		x.Share = ike.Share{Part: c.ID, Of: vshares}
		v.put(id, New(x))
	}
	return v
}

// learn takes a configuration.
func (v *VClusters) learn(c *config.Config) {
	v.cfg, v.tunnels, v.addrs = c, map[string]cluster.ScopeID{}, map[netip.Addr]cluster.ScopeID{}
	for i := range c.Interfaces {
		for _, p := range c.Interfaces[i].IP {
			v.addrs[p.Addr()] = cluster.ScopeID(c.VClusterOfInterface(c.Interfaces[i].Name))
		}
	}
	for i := range c.Phase1 {
		p := &c.Phase1[i]
		id := cluster.ScopeID(c.VClusterOf(p))
		v.tunnels[p.Name] = id
		if p.LocalGW.IsValid() {
			v.addrs[p.LocalGW] = id
		}
	}
}

// configOf is what a virtual cluster has of the configuration: its tunnels, and how it ranks.
func (v *VClusters) configOf(x config.VCluster) *config.Config {
	c := *v.cfg
	c.HA = v.cfg.HAOf(x)
	c.Phase1 = slices.DeleteFunc(slices.Clone(c.Phase1), func(p config.Phase1) bool { return v.tunnels[p.Name] != cluster.ScopeID(x.ID) })
	return &c
}

// Start begins to listen for the other node.
func (v *VClusters) Start(now time.Time) {
	v.quiet = true // the first word is about all of them
	v.each(func(n *Node) {
		n.Start(now)
		if v.group() {
			n.slot.HandleQuorum(now, true, v.quorum.Stop)
			n.pump(now)
		}
	})
	v.quiet = false
	v.announce()
}

// HandleIKE takes an IKE message. Our SPI tells its virtual cluster; one that begins
// something new falls to the one whose address it came to.
func (v *VClusters) HandleIKE(now time.Time, d ike.Datagram) {
	spi, ok := ownSPI(d.Data)
	if !ok {
		return
	}
	id := cluster.ScopeID(spi % vshares)
	if spi == 0 {
		id = v.scopeAt(d.Local.Addr())
	}
	if v.scopes[id] == nil {
		v.strays++
		return
	}
	v.with(id, func(n *Node) { n.HandleIKE(now, d) })
}

// scopeAt is the virtual cluster that an address belongs to.
func (v *VClusters) scopeAt(a netip.Addr) cluster.ScopeID {
	a = a.Unmap()
	if id, ok := v.addrs[a]; ok {
		return id
	}
	for i := range v.cfg.Phase1 {
		p := &v.cfg.Phase1[i]
		if v.opt.LocalAddr == nil || p.LocalGW.IsValid() {
			continue
		}
		if x, ok := v.opt.LocalAddr(p.Interface, a.Is6()); ok && x == a {
			return v.tunnels[p.Name]
		}
	}
	return v.order[0]
}

// HandlePlane takes what the data plane reports.
func (v *VClusters) HandlePlane(now time.Time, events []xfrm.Event) {
	v.planeEvents(now, events, func(e xfrm.Event) (cluster.ScopeID, bool) {
		switch e := e.(type) {
		case xfrm.Acquire:
			id, ok := v.tunnels[e.Tunnel]
			return id, ok
		case xfrm.BoundWanted:
			return vclusterOf(e.SPIIn), true
		case xfrm.FirstInbound:
			return vclusterOf(e.SPIIn), true
		case xfrm.PeerMoved:
			return vclusterOf(e.SPIIn), true
		case xfrm.StreamLost:
			return vclusterOf(e.SPIIn), true
		case xfrm.Expiring:
			return vclusterOf(e.SPIIn), true
		}
		return 0, false
	})
}

// vclusterOf is the virtual cluster whose engine chose the SPI.
func vclusterOf(spi ipsec.ESPSPI) cluster.ScopeID { return cluster.ScopeID(spi % vshares) }

// HandlePeer takes what another node's heartbeats say of all virtual clusters.
func (v *VClusters) HandlePeer(now time.Time, p cluster.Peer) {
	v.peers[p.Node] = p
	if p.Running {
		delete(v.losses, p.Node)
	}
	for _, id := range v.order {
		x, ok := p.Of(id)
		if v.group() {
			x = groupPeer(p, x, id)
		}
		v.with(id, func(n *Node) { n.HandlePeer(now, x) })
		v.miss(id, &p, p.Running && !ok)
	}
	v.plan(now)
	v.forgetStopped()
}

// HandleLoss says that another node was lost, and for which virtual clusters our
// guardian held our entitlement then.
func (v *VClusters) HandleLoss(now time.Time, l cluster.TellLoss) {
	if p, ok := v.peers[l.Node]; ok {
		p.Running = false
		v.peers[l.Node] = p
		if v.group() {
			v.lose(now, l.Node, p.Process, l.Kind)
		}
	}
	v.each(func(n *Node) {
		ours := slices.ContainsFunc(l.Claimed, func(t cluster.Tenure) bool { return xfrm.Scope(t.Scope) == n.scope })
		n.HandleLoss(now, l.Node, l.Kind, ours, l.Detected)
	})
	v.reports(now, v.emit)
	v.plan(now)
}

// HandleFrame takes a frame of the other node's journal for a virtual cluster.
func (v *VClusters) HandleFrame(now time.Time, from cluster.NodeID, process cluster.ProcessID, s cluster.ScopeID, frame []byte) error {
	if v.scopes[s] == nil {
		return fmt.Errorf("there is no virtual cluster %d here", s)
	}
	return v.frame(now, from, process, s, frame)
}

// HandleMonitors does nothing: see HandleMonitored.
func (v *VClusters) HandleMonitors(time.Time, int) {}

// HandleMonitored has each virtual cluster know how many of its monitored interfaces work.
func (v *VClusters) HandleMonitored(now time.Time, up func(monitor []string) int) {
	for _, c := range v.cfg.VirtualClusters() {
		v.with(cluster.ScopeID(c.ID), func(n *Node) { n.HandleMonitors(now, up(c.Monitor)) })
	}
}

// HandlePingservers does nothing: see HandlePinged.
func (v *VClusters) HandlePingservers(time.Time, int, int) {}

// HandlePinged has each virtual cluster know what the servers weigh that do not answer.
func (v *VClusters) HandlePinged(now time.Time, weigh func(interfaces []string) (penalty, stale int)) {
	for _, c := range v.cfg.VirtualClusters() {
		penalty, stale := weigh(c.Pingserver.Monitor)
		v.with(cluster.ScopeID(c.ID), func(n *Node) { n.HandlePingservers(now, penalty, stale) })
	}
}

// HandleTimeout runs what is due.
func (v *VClusters) HandleTimeout(now time.Time) {
	v.dueScopes(now)
	v.reports(now, v.emit)
	if v.leads && !now.Before(v.planAt) {
		v.plan(now)
	}
}

// NextTimeout is when HandleTimeout is due.
func (v *VClusters) NextTimeout() (t time.Time, ok bool) {
	for _, id := range v.order {
		t, ok = earlier(t, ok, v.scopes[id].NextTimeout)
	}
	if v.leads && !v.quorum.Lost {
		t, ok = earlier(t, ok, func() (time.Time, bool) { return v.planAt, true })
	}
	return earlier(t, ok, v.nextReport)
}

// Reload takes a new configuration with the same virtual clusters; what did not change is
// not touched.
func (v *VClusters) Reload(now time.Time, c *config.Config) {
	v.learn(c)
	for _, x := range c.VirtualClusters() {
		v.with(cluster.ScopeID(x.ID), func(n *Node) { n.Reload(now, v.configOf(x)) })
	}
}

// Failover asks for (or takes back) a planned handover of a virtual cluster.
func (v *VClusters) Failover(now time.Time, s cluster.ScopeID, set bool) (err error) {
	if s == 0 && !v.cfg.HA.VClusterStatus {
		s = v.order[0]
	}
	if v.scopes[s] == nil {
		return fmt.Errorf("there is no virtual cluster %d", s)
	}
	v.with(s, func(n *Node) { err = n.Failover(now, set) })
	return err
}

// Shutdown hands over what is owned here, gives up at once what this node stands by for,
// so that nobody waits for it, and ends with cluster.Stopped.
func (v *VClusters) Shutdown(now time.Time) {
	v.stopping = true
	v.each(func(n *Node) { n.Shutdown(now) })
}

func (v *VClusters) considerStopped() {
	if v.stopping && !slices.ContainsFunc(v.order, func(id cluster.ScopeID) bool { return !v.scopes[id].stopped }) {
		v.stopping = false
		v.emit(cluster.Stopped{})
	}
}

// forgetStopped: of what the other node has taken over from this one, which ends, nothing
// more is said. What it has not, it takes when the guardian says that this daemon ended.
func (v *VClusters) forgetStopped() {
	changed := false
	for _, id := range v.order {
		if a := v.said[id]; v.scopes[id].stopped && len(a.Owned) > 0 && v.ownedElsewhere(id, a.Owned[0].Epoch) {
			a.Owned, a.VClusters = nil, slices.Clone(a.VClusters)
			a.VClusters[0].Role = cluster.RoleNone
			v.said[id], changed = a, true
		}
	}
	if changed {
		v.announce()
	}
}

func (v *VClusters) ownedElsewhere(id cluster.ScopeID, after cluster.Epoch) bool {
	for _, p := range v.peers {
		if x, _ := p.Of(id); x.Role == cluster.RoleOwner && after.Less(x.Epoch) {
			return true
		}
	}
	return false
}

// announce tells the guardian what to say of all virtual clusters.
func (v *VClusters) announce() {
	if v.quiet {
		return
	}
	var all []cluster.Announce
	for _, id := range v.order {
		if a, ok := v.said[id]; ok {
			all = append(all, a)
		}
	}
	v.emit(cluster.AnnounceTogether(all))
}

// alarmName is the name of an alarm about a virtual cluster, where there are some.
func (v *VClusters) alarmName(id cluster.ScopeID, name string) string {
	if !v.cfg.HA.VClusterStatus {
		return name
	}
	return id.String() + ": " + name
}

// anyNoted says what the one file for all says: that this node went on alone with any.
func (v *VClusters) anyNoted() bool {
	return slices.Contains(slices.Collect(maps.Values(v.noted)), true)
}

// carry takes over what a scope wants done.
func (v *VClusters) carry(id cluster.ScopeID) {
	n := v.scopes[id]
	for {
		e, ok := n.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case cluster.Announce:
			v.said[id] = e
			v.announce()
		case cluster.WriteNote:
			v.noted[id] = e.On
			v.notes = append(v.notes, id)
			e.On = v.anyNoted()
			v.emit(e)
		case cluster.Alarm:
			e.Name = v.alarmName(id, e.Name)
			v.emit(e)
		case cluster.Stopped:
			n.stopped = true
			v.forgetStopped()
			v.considerStopped()
		case initialContact: // a phase 1 entry belongs to one virtual cluster
		case Log:
			e.Attrs = append(slices.Clip(e.Attrs), slog.Int("vcluster", int(id)))
			v.emit(e)
		default:
			v.emit(e)
		}
	}
}
