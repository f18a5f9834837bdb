package daemon

import (
	"context"
	"os"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

func (d *Daemon) loopContext() context.Context { return context.Background() }

func (d *Daemon) logs() *logHub { return d.hub }

// view takes a moment of the daemon, on the loop. Of very many tunnels it takes a part
// at a time, and others have their turn in between: they may be a little younger.
func (d *Daemon) view(ctx context.Context, counters bool) (*view, error) {
	var v *view
	if err := d.loop.call(ctx, func(now time.Time) { v = d.look(now) }); err != nil {
		return nil, err
	}
	var at node.Place
	for more := true; more; {
		if err := d.loop.call(ctx, func(now time.Time) { more = d.lookOn(now, v, &at, counters) }); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// look is a view without gateways.
func (d *Daemon) look(now time.Time) *view {
	v := &view{
		Now: now, Started: d.started, Hostname: d.hostname(), DaemonPID: os.Getpid(), GuardianPID: d.guardianPID(),
		Config: d.cfg, Node: d.loop.node.Summary(now), Counters: map[ipsec.ESPSPI]xfrm.Counters{},
		Tunnels: d.tunnels.views(), Plane: d.plane.PlaneCounters(), IfIndex: d.links.indexes(),
		Loop: d.loop.snapshot(), DataPlane: dataPlaneName, Progress: d.progress.Load(), ConfigAlarm: d.alarms["configuration"],
	}
	d.lookAtElection(now, v)
	d.lookAtFarm(v)
	return v
}

// lookOn adds some gateways, and says whether there are others.
func (d *Daemon) lookOn(now time.Time, v *view, at *node.Place, counters bool) (more bool) {
	from := len(v.Node.Gateways)
	more = d.loop.node.More(now, &v.Node, at)
	for i := from; i < len(v.Node.Gateways) && counters; i++ {
		for k := range v.Node.Gateways[i].Children {
			spi := v.Node.Gateways[i].Children[k].SA.SPIIn
			v.Counters[spi], _ = d.plane.Counters(spi)
		}
	}
	return more
}

func (d *Daemon) up(ctx context.Context, phase1, phase2 string) (err error) {
	if cerr := d.loop.call(ctx, func(now time.Time) { err = d.loop.node.Up(now, phase1, phase2) }); cerr != nil {
		return cerr
	}
	return err
}

func (d *Daemon) down(ctx context.Context, phase1, phase2 string) (err error) {
	if cerr := d.loop.call(ctx, func(now time.Time) { err = d.loop.node.Down(now, phase1, phase2) }); cerr != nil {
		return cerr
	}
	return err
}

func (d *Daemon) clear(ctx context.Context, name string) (n int, err error) {
	err = d.loop.call(ctx, func(now time.Time) { n = d.loop.node.Clear(now, name) })
	return n, err
}

func (d *Daemon) rekey(ctx context.Context, name string, ike bool) (n int, err error) {
	err = d.loop.call(ctx, func(now time.Time) { n = d.loop.node.Rekey(now, name, ike) })
	return n, err
}

func (d *Daemon) failover(ctx context.Context, s cluster.ScopeID, set bool) (err error) {
	if cerr := d.loop.call(ctx, func(now time.Time) { err = d.loop.node.Failover(now, s, set) }); cerr != nil {
		return cerr
	}
	return err
}
