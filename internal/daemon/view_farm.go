package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/raftauth"
	"tandem/internal/config"
	"tandem/internal/forward"
	"tandem/internal/node"
	"tandem/proto/clusterpb"
)

// farmView is what a member of a farm has beside its node's status.
type farmView struct {
	Leader     cluster.NodeID                // of the log; 0: none is known
	Nodes      map[netip.Addr]cluster.NodeID // where members were heard
	Link       forward.Stats
	Streams    map[cluster.NodeID]uint32 // version spoken with each; 0: none
	Alarms     []alarmJSON
	Interfaces []physicalView
}

// physicalView is one of our own network interfaces.
type physicalView struct {
	Name, MAC string
	Up        bool
}

// lookAtFarm fills in what belongs to the daemon. Called on the loop.
func (d *Daemon) lookAtFarm(v *view) {
	if d.cluster == nil || d.cluster.farm == nil {
		return
	}
	f := d.cluster.farm
	v.Farm.Nodes, v.Farm.Streams = map[netip.Addr]cluster.NodeID{}, map[cluster.NodeID]uint32{}
	f.addrs.Range(func(n, a any) bool {
		v.Farm.Nodes[a.(netip.Addr)] = n.(cluster.NodeID)
		v.Farm.Streams[n.(cluster.NodeID)] = d.cluster.streams.e.Version(n.(cluster.NodeID))
		return true
	})
	if f.log != nil {
		v.Farm.Leader = f.log.Leader()
	}
	if f.link != nil {
		v.Farm.Link = f.link.Stats()
	}
	for _, name := range slices.Sorted(maps.Keys(d.alarms)) {
		v.Farm.Alarms = append(v.Farm.Alarms, alarmJSON{name, d.alarms[name]})
	}
	names := slices.Collect(maps.Keys(d.links.link))
	slices.SortFunc(names, func(a, b string) int { return d.links.index[a] - d.links.index[b] })
	for _, name := range names {
		l := d.links.link[name]
		if a := l.Attrs(); len(a.HardwareAddr) > 0 && a.Flags&net.FlagLoopback == 0 && l.Type() != "tuntap" {
			v.Farm.Interfaces = append(v.Farm.Interfaces, physicalView{name, a.HardwareAddr.String(), d.links.up[name]})
		}
	}
}

// decidePatient is how long a command waits for a decision of the members.
const decidePatient = 10 * time.Second

var errNoFarm = errors.New("this gateway is no member of a farm (config system standalone-cluster); a pair has `execute ha failover set`")

// redirect has peers sent to their phase 1's other gateways, or no longer; known: a phase 1
// names some.
func (d *Daemon) redirect(ctx context.Context, on bool) (told int, known bool, err error) {
	err = d.loop.call(ctx, func(now time.Time) {
		known = slices.ContainsFunc(d.cfg.Phase1, func(p config.Phase1) bool { return len(p.RedirectGateways) > 0 })
		if known {
			told = d.loop.node.Redirect(now, on)
		}
	})
	return told, known, err
}

// redirectable is how many of them are still here.
func (d *Daemon) redirectable(ctx context.Context) (left int, err error) {
	err = d.loop.call(ctx, func(time.Time) { left = d.loop.node.Redirectable() })
	return left, err
}

// drain has it decided that this member is drained, or no longer.
func (d *Daemon) drain(ctx context.Context, on bool) error {
	var log *raftauth.Node
	var c *clusterpb.Command
	err := d.loop.call(ctx, func(time.Time) {
		if d.cluster != nil && d.cluster.farm != nil {
			log = d.cluster.farm.log
		}
	})
	switch {
	case err != nil:
		return err
	case d.cluster == nil || d.cluster.farm == nil || d.cluster.farm.node == nil:
		return errNoFarm
	case log == nil:
		return errors.New("the members' log has not begun: not every member has been heard yet")
	}
	if cerr := d.loop.call(ctx, func(time.Time) { c, err = d.cluster.farm.node.Drain(on) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if on {
		d.announcer.leave(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, decidePatient)
	defer cancel()
	r, err := log.Propose(ctx, c)
	if !on || err != nil || !r.OK() {
		d.announcer.stay()
	}
	switch {
	case err != nil:
		return fmt.Errorf("not decided, but it may be yet: %w", err)
	case !r.OK():
		return fmt.Errorf("the members refuse: %s", r.Why)
	}
	d.log.Info("HA drain", "on", on)
	return nil
}

// synchronised: see haJSON and farmJSON.
func (v *view) synchronised() bool {
	if v.Node.Farm != nil {
		return v.farmSynchronised()
	}
	return v.Node.HA != nil && v.Node.HA.Synchronised
}

// farmSynchronised: this member has joined and owns something, or its site has another
// active node; what it owns is stood by for, and its copy of all that it shall stand by
// for is complete and entitled.
func (v *view) farmSynchronised() bool {
	f := v.Node.Farm
	if !f.Joined {
		return false
	}
	owned := 0
	for i := range f.Scopes {
		s := &f.Scopes[i]
		mine := s.Heard == f.Self
		if !mine && s.Owner != f.Self && !slices.Contains(s.Standbys, f.Self) {
			continue
		}
		if s.Here == nil || !s.Here.Synchronised || mine != (s.Here.Role == cluster.RoleOwner) || !mine && s.Owner == f.Self {
			return false
		}
		if mine {
			owned++
		}
	}
	s := v.siteOf(f.Self)
	return owned > 0 || s != nil && s.Active != 0 && s.Active != f.Self
}

// uncovered: something that this node owns would be lost with it.
func (v *view) uncovered() bool {
	if f := v.Node.Farm; f != nil {
		return slices.ContainsFunc(f.Scopes, func(s node.ScopeStatus) bool { return s.Here != nil && s.Here.Alone })
	}
	return v.Node.HA != nil && v.Node.HA.Alone
}

func (v *view) epoch() (n uint64) {
	if f := v.Node.Farm; f != nil {
		for i := range f.Scopes {
			if h := f.Scopes[i].Here; h != nil {
				n = max(n, h.Epoch.Counter)
			}
		}
		return n
	}
	if v.Node.HA != nil {
		return v.Node.HA.Epoch.Counter
	}
	return 0
}

func (v *view) takeovers() (n int) {
	if f := v.Node.Farm; f != nil {
		for i := range f.Scopes {
			if h := f.Scopes[i].Here; h != nil {
				n += h.Takeovers
			}
		}
		return n
	}
	if v.Node.HA != nil {
		return v.Node.HA.Takeovers
	}
	return 0
}

func (v *view) alarms() []alarmJSON {
	if v.Node.Farm != nil {
		return append([]alarmJSON{}, v.Farm.Alarms...)
	}
	return v.haJSON().Alarms
}
