package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"tandem/cluster"
	"tandem/cluster/raftauth"
	"tandem/internal/node"
)

// Where the members of a log are.

// openGroup prepares the ends of a member of an FGCP group of three or four, and makes its node.
func (c *clusterEnds) openGroup(o node.Options) *node.VClusters {
	d, id := c.d, c.identity
	o.Slot = &cluster.SlotOptions{Self: id.Node, Name: d.hostname(), Serial: id.Serial, Coverage: c.state.Coverage(),
		Interval: d.cfg.HA.HBInterval, Threshold: d.cfg.HA.HBLostThreshold}
	n := node.NewVClusters(o)
	c.farm = c.newFarmEnds(n)
	return n
}

// startGroup opens the socket of the log. Members reach each other there on whatever
// network they hear each other on: the log must not end with the one of peer-ip.
func (f *farmEnds) startGroup() error {
	l, err := net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(raftPort)))
	if err != nil {
		return fmt.Errorf("the members' log: %w", err)
	}
	f.tcp = raftauth.NewStreamLayer(f.c.identity, l, f.resolve, f.c.d.log)
	f.recall()
	f.begin()
	return nil
}

// reachable keeps where a member of a group is heard. Only the log asks for it.
func (f *farmEnds) reachable(p cluster.Peer) {
	if f.node != nil {
		return
	}
	var at []netip.Addr
	for _, l := range p.Links {
		if a, err := netip.ParseAddr(l.Addr); err == nil {
			if l.Device != "" {
				a = a.WithZone(l.Device)
			}
			at = append(at, a)
		}
	}
	f.links.Store(p.Node, at)
}

// at is a member's address for the log: its own, unless it is heard elsewhere only. Any
// goroutine may ask.
func (f *farmEnds) at(n cluster.NodeID) (netip.Addr, bool) {
	a, ok := f.addrs.Load(n)
	if !ok {
		return netip.Addr{}, false
	}
	if heard, ok := f.links.Load(n); ok {
		if all := heard.([]netip.Addr); len(all) > 0 && !slices.Contains(all, a.(netip.Addr)) {
			return all[0], true
		}
	}
	return a.(netip.Addr), true
}

// recall takes the members' addresses as an earlier life heard them.
func (f *farmEnds) recall() {
	for n, a := range f.remembered() {
		f.addrs.Store(n, a)
	}
}

// remembered are the members' addresses as an earlier life heard them.
func (f *farmEnds) remembered() map[cluster.NodeID]netip.Addr {
	var m map[cluster.NodeID]netip.Addr
	b, err := os.ReadFile(filepath.Join(f.c.d.cfg.Tandem.StateDir, membersFile))
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.c.d.log.Warn("the members' numbers are learnt anew", "file", membersFile, "error", err)
	}
	peers := map[netip.Addr]bool{}
	for _, a := range f.c.d.cfg.LogPeers() {
		peers[a] = true
	}
	maps.DeleteFunc(m, func(n cluster.NodeID, a netip.Addr) bool { return !peers[a] || n == f.c.identity.Node })
	return m
}

// remember writes down what recall reads. A disk may take its time: not for the loop.
func (f *farmEnds) remember() {
	f.remembering.Lock()
	defer f.remembering.Unlock()
	m := map[cluster.NodeID]netip.Addr{}
	f.addrs.Range(func(n, a any) bool {
		m[n.(cluster.NodeID)] = a.(netip.Addr)
		return true
	})
	b, err := json.Marshal(m)
	if err == nil {
		path := filepath.Join(f.c.d.cfg.Tandem.StateDir, membersFile)
		if err = os.WriteFile(path+".new", b, 0o600); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		f.c.d.log.Warn("the members' numbers could not be kept", "error", err)
	}
}
