package node

import "tandem/cluster"

// Load is what a member tells the others of what it holds, late and without consequence.
type Load struct {
	Owned   int // scopes
	Tunnels int // Child SAs in them
	// Digests of the Child SAs, of each scope that this member owns or stands by for.
	Digests map[cluster.ScopeID]uint64
}

// Load sums up all scopes.
func (f *Farm) Load() Load {
	l := Load{Digests: map[cluster.ScopeID]uint64{}}
	for _, id := range f.order {
		if n := f.scopes[id]; !n.spare {
			n.load(id, &l)
		}
	}
	return l
}

// Load is that of the only scope.
func (n *Node) Load() Load {
	l := Load{Digests: map[cluster.ScopeID]uint64{}}
	n.load(cluster.ScopeID(n.scope), &l)
	return l
}

func (n *Node) load(id cluster.ScopeID, l *Load) {
	sum, children := n.ike.Digest()
	l.Digests[id] = sum
	if n.owner {
		l.Owned++
		l.Tunnels += children
	}
}
