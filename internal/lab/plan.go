package lab

import "fmt"

// Plan is a network of any shape for Build. Gateways and faults of the pair
// (CutNode, the checker's roles) belong to BuildPair alone.
type Plan struct {
	Nodes  []PlanNode
	Cables []PlanCable
	Routes []PlanRoute
}

// PlanNode is one namespace.
type PlanNode struct {
	Name    string
	Forward bool     // forwards packets, as routers do
	Addrs   []string // on its loopback, with prefix length: networks behind it
}

// PlanCable is a veth pair between two nodes, with the addresses of both ends.
type PlanCable struct {
	A, AIf, B, BIf string
	AAddrs, BAddrs []string // with prefix length
	MTU            int      // 0: 1500
}

// PlanRoute is a route by way of a neighbour's address.
type PlanRoute struct{ Node, Dst, Via string }

// Build makes the network of a plan. On failure nothing is left. It needs root.
// An empty id asks for a new one.
func Build(id string, p Plan) (*Topology, error) {
	var nodes []string
	for _, n := range p.Nodes {
		nodes = append(nodes, n.Name)
	}
	return newTopology(id, nodes, func(t *Topology) error { return t.buildPlan(p) })
}

func (t *Topology) buildPlan(p Plan) error {
	for _, n := range p.Nodes {
		if err := t.addNode(n.Name, n.Forward, false); err != nil {
			return err
		}
		if err := t.address(n.Name, "lo", n.Addrs...); err != nil {
			return err
		}
	}
	for _, c := range p.Cables {
		if err := t.lay(cable{a: c.A, aIf: c.AIf, b: c.B, bIf: c.BIf, addrs: c.AAddrs, mtu: c.MTU}); err != nil {
			return err
		}
		if err := t.address(c.B, c.BIf, c.BAddrs...); err != nil {
			return err
		}
	}
	for _, r := range p.Routes {
		if err := t.route(r.Node, r.Dst, r.Via); err != nil {
			return fmt.Errorf("plan: %w", err)
		}
	}
	return nil
}
