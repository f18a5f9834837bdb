package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// ports lists the far ends (switch and panel ports) of a gateway's cables.
func (t *Topology) ports(node string, only func(dev string) bool) [][2]string {
	var far [][2]string
	for _, c := range t.cables {
		if c.a == node && (only == nil || only(c.aIf)) {
			far = append(far, [2]string{c.b, c.bIf})
		}
	}
	return far
}

func isHeartbeat(dev string) bool { return strings.HasPrefix(dev, "hb") }

// CutNode takes away every link of a node at its far end: the node keeps its
// addresses and sees its carrier go. Heartbeat links go first.
func (t *Topology) CutNode(node string) error {
	hb := t.ports(node, isHeartbeat)
	rest := t.ports(node, func(dev string) bool { return !isHeartbeat(dev) })
	return t.each(append(hb, rest...), t.linkDown)
}

// RestoreNode gives a node its links back.
func (t *Topology) RestoreNode(node string) error { return t.each(t.ports(node, nil), t.linkUp) }

// Mute drops at the far ends of a node's cables whatever the node sends, until
// Unmute. A host that stands still says nothing, but the kernel of a simulated one
// goes on when its processes are stopped: it answers for the shared addresses, and
// draws the neighbours' traffic when it asks for them. What others send to the node
// still comes, and waits there.
func (t *Topology) Mute(node string) error {
	return t.each(t.ports(node, nil), func(far, dev string) error {
		return t.nft(far, func(c *nftables.Conn) {
			drop := nftables.ChainPolicyDrop
			table := c.AddTable(muteTable(dev))
			c.AddChain(&nftables.Chain{
				Name: "in", Table: table, Type: nftables.ChainTypeFilter, Device: dev,
				Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Policy: &drop,
			})
		})
	})
}

// Unmute undoes Mute.
func (t *Topology) Unmute(node string) error {
	return t.each(t.ports(node, nil), func(far, dev string) error {
		return t.nft(far, func(c *nftables.Conn) { c.DelTable(muteTable(dev)) })
	})
}

func muteTable(dev string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: "mute-" + dev}
}

// nft carries out what do asks for in a node's namespace.
func (t *Topology) nft(node string, do func(*nftables.Conn)) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(t.ns[node])))
	if err == nil {
		do(c)
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("%s: nftables: %w", node, err)
	}
	return nil
}

// CutHeartbeats cuts the named heartbeat links (all when none is named) for
// both gateways; RestoreHeartbeats joins them again and waits until they carry,
// which the kernel may put off for a second.
func (t *Topology) CutHeartbeats(names ...string) error { return t.heartbeats(names, t.linkDown) }

// RestoreHeartbeats undoes CutHeartbeats.
func (t *Topology) RestoreHeartbeats(names ...string) error {
	return errors.Join(t.heartbeats(names, t.linkUp), t.heartbeats(names, t.carries))
}

// carries waits until a port forwards.
func (t *Topology) carries(node, dev string) error {
	return poll(context.Background(), 5*time.Second, 2*time.Millisecond, func() error {
		l, err := t.link(node, dev)
		if err != nil {
			return err
		}
		if a := l.Attrs(); a.OperState != netlink.OperUp {
			return fmt.Errorf("%s/%s is %s", node, dev, a.OperState)
		}
		return nil
	})
}

func (t *Topology) heartbeats(names []string, do func(node, dev string) error) error {
	if len(names) == 0 {
		names = HBLinks
	}
	var far [][2]string
	for _, n := range names {
		var found [][2]string
		for _, gw := range Gateways {
			found = append(found, t.ports(gw, func(dev string) bool { return isHeartbeat(dev) && dev == n })...)
		}
		if len(found) == 0 {
			return fmt.Errorf("lab has no heartbeat link %q", n)
		}
		far = append(far, found...)
	}
	return t.each(far, do)
}

func (t *Topology) each(far [][2]string, do func(node, dev string) error) error {
	var errs []error
	for _, p := range far {
		errs = append(errs, do(p[0], p[1]))
	}
	return errors.Join(errs...)
}
