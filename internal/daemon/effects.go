package daemon

import (
	"fmt"
	"log/slog"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/node"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// carry carries out one effect of the node. Everything here returns at once; the
// one exception is Claim and Release, which wait for netlink's answers about the
// shared addresses, because what follows them relies on them.
func (d *Daemon) carry(now time.Time, e node.Effect) {
	d.breaks.before(e)
	switch e := e.(type) {
	case ike.Send:
		if err := d.plane.SendIKE(xfrm.IKEDatagram{Local: e.Local, Remote: e.Remote, NonESP: e.NonESP, TCP: e.TCP, Data: e.Data}); err != nil {
			d.quietly(now, slog.LevelWarn, "IKE message not sent", slog.String("remote", e.Remote.String()), slog.Any("error", err))
		}
	case ike.SendKeepalive:
		if err := d.plane.Keepalive(e.Local, e.Remote); err != nil {
			d.quietly(now, slog.LevelDebug, "NAT keepalive not sent", slog.String("remote", e.Remote.String()), slog.Any("error", err))
		}
	case ike.CheckRevocation:
		d.ocsp.check(e)
	case ike.KeyLog:
		if d.keys != nil {
			if err := d.keys.writeIKE(e); err != nil {
				d.log.Error("key log not written", "error", err)
			}
		}
	case node.Install:
		d.install(e)
	case node.SetOutbound:
		d.plane.SetOutbound(e.SPIIn, e.Use)
	case node.SetPeer:
		d.plane.SetPeer(e.SPIIn, e.Local, e.Remote, e.UDPEncap, e.TCP)
	case node.Remove:
		if e.Linger > 0 {
			d.plane.Linger(e.SPIIn, e.Linger)
		} else {
			d.plane.Remove(e.SPIIn)
		}
	case node.Detach:
		ws, ok := d.plane.Detach(e.SPIs)
		d.cluster.farm.node.HandleDetached(now, e.Scope, ws, ok)
	case node.Pointer:
		d.cluster.farm.point(e)
	case node.SetBounds:
		d.plane.SetBounds(e.Bounds)
	case node.Skip:
		d.plane.Skip(e.Bounds)
	case node.Activate:
		d.plane.Activate(e.Scope)
	case node.Retire:
		d.plane.Retire(e.Scope)
		d.loop.planeEvents(now) // what it has asked for since
	case node.Deactivate:
		d.plane.Deactivate(e.Scope)
	case node.SetWindows:
		d.plane.SetWindows(e.Windows)
	case node.TakeWindows:
		d.loop.node.HandleWindows(now, e.Scope, d.plane.Windows(e.Scope))
	case node.Claim:
		d.addresses.claim(e.Scope, func() {
			// Routes into tunnels have been there all the time.
			d.routes.apply(func(r config.Route) bool { return d.cfg.Phase1ByName(r.Device) == nil })
		})
	case node.Reassert:
		d.addresses.reassert(e.Scope)
	case node.Release:
		d.addresses.release(e.Scope)
	case node.AddRoute:
		d.routes.add(e.Tunnel, e.Prefix)
	case node.RemoveRoute:
		d.routes.remove(e.Tunnel, e.Prefix)
	case node.AddAddress:
		d.tunnels.assign(e.Tunnel, e.Addr)
	case node.RemoveAddress:
		d.tunnels.unassign(e.Tunnel, e.Addr)
	case node.Log:
		d.nodeLog(now, e)
	case statesync.SendFrame:
		if !d.breaks.withholds(d.loop, e) {
			d.cluster.sendFrame(e)
		}
	case statesync.SendAck:
		d.cluster.sendAck(e)
	case cluster.Announce:
		d.cluster.announce(e)
		if d.cluster.farm != nil {
			d.cluster.farm.changed = true
		}
	case cluster.Entitle:
		d.cluster.entitle(e)
	case cluster.Claim:
		d.cluster.claim(e)
	case cluster.AskRemoval:
		d.cluster.askRemoval(e)
	case cluster.Propose:
		d.cluster.farm.propose(e)
	case node.Forward:
		d.cluster.farm.forward(e)
	case node.SendLAN:
		d.cluster.farm.link.SendLAN(e.To, e.Message)
	case node.Lead:
		d.cluster.farm.leads.set(e)
	case cluster.WriteNote:
		d.cluster.writeNote(e)
	case cluster.Alarm:
		d.alarm(e)
	case cluster.Stopped:
		d.loop.over = true
	default:
		d.log.Error("effect without a hand to carry it out", "effect", fmt.Sprintf("%T", e))
	}
	d.breaks.after(e)
}

func (d *Daemon) install(e node.Install) {
	if err := d.plane.Install(e.SA); err != nil {
		d.log.Error("Child SA not installed", "tunnel", e.SA.Tunnel, "spi", e.SA.SPIIn.String(), "error", err)
	}
	if d.keys != nil {
		if err := d.keys.writeESP(&e.SA.ChildSA); err != nil {
			d.log.Error("key log not written", "error", err)
		}
	}
}

func (d *Daemon) alarm(e cluster.Alarm) {
	if !e.On {
		if _, ok := d.alarms[e.Name]; ok {
			d.log.Info("alarm cleared", "alarm", e.Name)
		}
		delete(d.alarms, e.Name)
		return
	}
	d.alarms[e.Name] = e.Text
	d.log.Warn("alarm", "alarm", e.Name, "text", e.Text)
}

// nodeLog writes a line of the node's. What names no tunnel may have been caused
// by anybody on the network and is limited.
func (d *Daemon) nodeLog(now time.Time, e node.Log) {
	if e.Message == takeoverMessage {
		if d.cluster != nil {
			d.takeovers = append(d.takeovers, e)
		}
		return
	}
	for _, a := range e.Attrs {
		if a.Key == "tunnel" {
			d.log.LogAttrs(d.loopContext(), e.Level, e.Message, e.Attrs...)
			return
		}
	}
	d.quietly(now, e.Level, e.Message, e.Attrs...)
}

// quietly logs with the limit for noise.
func (d *Daemon) quietly(now time.Time, l slog.Level, msg string, attrs ...slog.Attr) {
	ok, withheld := d.noise.allow(now, msg)
	if withheld > 0 {
		d.log.Warn("log lines withheld in the last second", "lines", withheld)
	}
	if ok {
		d.log.LogAttrs(d.loopContext(), l, msg, attrs...)
	}
}

// takeoverMessage marks the line that explains a takeover.
const takeoverMessage = "takeover"

// afterEffects runs when an input's effects are carried out: what may wait until
// the first packet could leave.
func (d *Daemon) afterEffects(now time.Time) {
	if d.cluster != nil && d.cluster.farm != nil && d.cluster.farm.changed {
		d.cluster.farm.changed = false
		d.cluster.farm.moved()
	}
	if len(d.takeovers) == 0 {
		return
	}
	told := d.takeovers
	d.takeovers = nil
	if d.cluster.farm != nil || d.cfg.Virtual() {
		for i := range told {
			attrs := append([]slog.Attr{slog.String("node", d.hostname())}, told[i].Attrs...)
			d.log.LogAttrs(d.loopContext(), told[i].Level, takeoverMessage, attrs...)
		}
		return
	}
	e := told[len(told)-1]
	s := d.loop.node.Status(now)
	attrs := []slog.Attr{slog.String("node", d.hostname())}
	if s.HA != nil {
		attrs = append(attrs, slog.Int("scope", 0),
			slog.Uint64("epoch", s.HA.Epoch.Counter), slog.Uint64("epoch_node", uint64(s.HA.Epoch.Node)))
	}
	var ceiling uint64
	for i := range s.Gateways {
		for k := range s.Gateways[i].Children {
			c, _ := d.plane.Counters(s.Gateways[i].Children[k].SA.SPIIn)
			ceiling = max(ceiling, c.Ceiling)
		}
	}
	attrs = append(attrs, slog.Uint64("ceiling", ceiling))
	for _, a := range e.Attrs {
		if a.Key != "epoch" { // a number here, so that readers can compare it
			attrs = append(attrs, a)
		}
	}
	d.log.LogAttrs(d.loopContext(), e.Level, takeoverMessage, attrs...)
}
