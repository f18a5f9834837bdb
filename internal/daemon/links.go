package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"tandem/internal/config"
	"tandem/internal/linkhealth"
	"tandem/internal/node"
)

// links remembers what the kernel says about interfaces. Owned by the event loop.
type links struct {
	index map[string]int
	link  map[string]netlink.Link
	up    map[string]bool
	addrs map[string][]netip.Addr
	damp  linkhealth.Damper // of monitored interfaces
}

func newLinks() *links {
	l := &links{}
	l.refresh()
	return l
}

// linkState is what the kernel says. To ask it may take long: others may hold its
// configuration lock.
type linkState struct {
	links []netlink.Link
	addrs []netlink.Addr
}

// readLinks asks the kernel; any goroutine may.
func readLinks() (s linkState, err error) {
	if s.links, err = netlink.LinkList(); err != nil {
		return s, err
	}
	s.addrs, err = netlink.AddrList(nil, netlink.FAMILY_ALL)
	return s, err
}

// refresh asks the kernel and takes what it says.
func (l *links) refresh() (cameUp []string) {
	s, err := readLinks()
	if err != nil {
		return nil
	}
	return l.take(s)
}

// take takes what the kernel has said, and returns the interfaces that came up since.
func (l *links) take(s linkState) (cameUp []string) {
	was := l.up
	l.index, l.up, l.addrs = map[string]int{}, map[string]bool{}, map[string][]netip.Addr{}
	l.link = map[string]netlink.Link{}
	names := map[int]string{}
	for _, link := range s.links {
		a := link.Attrs()
		names[a.Index] = a.Name
		l.index[a.Name] = a.Index
		l.link[a.Name] = link
		l.up[a.Name] = a.Flags&net.FlagUp != 0 && (a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown) && a.RawFlags&0x40 != 0 // IFF_RUNNING
		if l.up[a.Name] && was != nil && !was[a.Name] {
			cameUp = append(cameUp, a.Name)
		}
	}
	for i := range s.addrs {
		if ip, ok := netip.AddrFromSlice(s.addrs[i].IP); ok {
			name := names[s.addrs[i].LinkIndex]
			l.addrs[name] = append(l.addrs[name], ip.Unmap())
		}
	}
	return cameUp
}

// named is an interface as it was last seen: a takeover does not wait for the
// kernel's configuration lock to be told what it knows.
func (l *links) named(dev string) (netlink.Link, error) {
	if link, ok := l.link[dev]; ok {
		return link, nil
	}
	return netlink.LinkByName(dev)
}

// addr is an interface's own address of a family, a global one rather than a
// link-local one.
func (l *links) addr(dev string, v6 bool) (netip.Addr, bool) {
	var local netip.Addr
	for _, a := range l.addrs[dev] {
		if a.Is6() != v6 {
			continue
		}
		if !a.IsLinkLocalUnicast() {
			return a, true
		}
		local = a
	}
	return local, local.IsValid()
}

// has says whether an interface has an address.
func (l *links) has(dev string, a netip.Addr) bool { return slices.Contains(l.addrs[dev], a) }

func (l *links) indexes() map[string]int {
	out := make(map[string]int, len(l.index))
	for k, v := range l.index {
		out[k] = v
	}
	return out
}

// configure puts the addresses that stay on this node on their interfaces.
func (l *links) configure(c *config.Config, log *slog.Logger) {
	for i := range c.Interfaces {
		in := &c.Interfaces[i]
		for _, p := range in.ManagementIP {
			link, err := netlink.LinkByName(in.Name)
			if err == nil {
				err = netlink.AddrReplace(link, nlAddr(p))
			}
			if err != nil {
				log.Error("management address not added", "interface", in.Name, "address", p.String(), "error", err)
			}
		}
	}
	l.refresh()
}

// monitorsUp counts the monitored interfaces that work and count, see linkhealth.Damper.
func (l *links) monitorsUp(now time.Time, monitor []string) (n int) {
	for _, m := range monitor {
		l.damp.Set(now, m, l.up[m])
		if l.damp.Works(now, m) {
			n++
		}
	}
	return n
}

// monitoredBy lists the interfaces that the cluster, or any virtual cluster, monitors.
func monitoredBy(c *config.Config) []string {
	if !c.Virtual() {
		return c.HA.Monitor
	}
	var all []string
	for _, v := range c.VirtualClusters() {
		for _, m := range v.Monitor {
			if !slices.Contains(all, m) {
				all = append(all, m)
			}
		}
	}
	return all
}

// monitors tells the node how many monitored interfaces work, and again when the next of
// them begins to count.
func (d *Daemon) monitors(now time.Time) {
	if d.cluster == nil {
		return
	}
	d.links.damp.Damp(d.cfg.HA.FlapDamping)
	up := func(monitor []string) int { return d.links.monitorsUp(now, monitor) }
	if v, ok := d.loop.node.(*node.VClusters); ok {
		v.HandleMonitored(now, up)
	} else {
		d.loop.node.HandleMonitors(now, up(d.cfg.HA.Monitor))
	}
	if d.damped != nil {
		d.damped.Stop()
	}
	if at, ok := d.links.damp.Next(now, monitoredBy(d.cfg)); ok {
		d.damped = time.AfterFunc(time.Until(at), func() { _ = d.loop.post(d.monitors) })
	}
}

// watchLinks follows links and addresses. A burst of changes is looked at once.
func (d *Daemon) watchLinks() (stop func(), err error) {
	done := make(chan struct{})
	linkCh, addrCh := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	broken := func(err error) {
		select {
		case <-done:
		default:
			d.log.Warn("interface monitor", "error", err)
		}
	}
	if err := errors.Join(
		netlink.LinkSubscribeWithOptions(linkCh, done, netlink.LinkSubscribeOptions{ErrorCallback: broken}),
		netlink.AddrSubscribeWithOptions(addrCh, done, netlink.AddrSubscribeOptions{ErrorCallback: broken}),
	); err != nil {
		close(done)
		return nil, fmt.Errorf("interface monitor: %w", err)
	}
	go func() {
		for linkCh != nil && addrCh != nil {
			select {
			case _, ok := <-linkCh:
				if !ok {
					linkCh = nil
				}
			case _, ok := <-addrCh:
				if !ok {
					addrCh = nil
				}
			}
			for len(linkCh) > 0 {
				<-linkCh
			}
			for len(addrCh) > 0 {
				<-addrCh
			}
			s, err := readLinks()
			if err != nil {
				broken(err)
				continue
			}
			if d.loop.call(d.loopContext(), func(now time.Time) { d.linksChanged(now, s) }) != nil {
				return
			}
		}
	}()
	return func() { close(done) }, nil
}

// linksChanged runs on the loop. An interface that comes back has lost its IPv6
// addresses and the routes over it; an owner puts them back and announces again.
func (d *Daemon) linksChanged(now time.Time, s linkState) {
	cameUp := d.links.take(s)
	d.monitors(now)
	d.lookAtServers(now)
	d.loop.node.HandleAddresses(now, d.links.has)
	if len(cameUp) == 0 {
		return
	}
	d.addresses.repair(cameUp)
	d.routes.apply(nil)
}
