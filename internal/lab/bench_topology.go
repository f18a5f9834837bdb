package lab

import "os"

// BenchCable joins two nodes of a benchmark's network, or a node with itself: a port
// with a carrier that leads nowhere. Unlike other labs' cables it carries batches of
// segments as the devices are set to, so captures on it do not show single packets.
type BenchCable struct {
	A, AIf, B, BIf string
	AAddrs, BAddrs []string // with their prefix lengths
}

// BuildBench makes a network of forwarding nodes, each with its addresses on the
// loopback device, and removes what killed labs have left. On failure nothing is
// left. It needs root.
func BuildBench(nodes []string, loopback map[string][]string, cables []BenchCable) (*Topology, error) {
	if err := removeAbandoned(); err != nil {
		return nil, err
	}
	return newTopology("", nodes, func(t *Topology) error {
		for _, n := range nodes {
			if err := t.addNode(n, true, false); err != nil {
				return err
			}
			if err := t.address(n, "lo", loopback[n]...); err != nil {
				return err
			}
		}
		for _, c := range cables {
			if err := t.lay(cable{a: c.A, aIf: c.AIf, b: c.B, bIf: c.BIf, addrs: c.AAddrs, batches: true}); err != nil {
				return err
			}
			if err := t.address(c.B, c.BIf, c.BAddrs...); err != nil {
				return err
			}
		}
		return nil
	})
}

// Standing says whether a lab of that name is there.
func Standing(id string) bool {
	_, err := os.Stat(stateDir(id))
	return err == nil
}
