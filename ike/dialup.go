package ike

import (
	"strconv"

	"tandem/internal/config"
)

// dialupTunnel names the instance of a dialup phase 1 for a peer: the one that
// the same identity held, if it says that it knows no other IKE SA; else the
// lowest free index of our share. The name is in the record, so it is the same on every member.
func (e *Engine) dialupTunnel(p1 *config.Phase1, peer identity, initialContact bool) *tunnel {
	used := map[int]*tunnel{}
	for _, t := range e.sortedTunnels() {
		if !t.dialup || t.phase1 != p1.Name {
			continue
		}
		used[t.index] = t
		if initialContact && len(t.sas) > 0 && t.sas[len(t.sas)-1].peerID == peer {
			return t
		}
	}
	e.movedIndexes(p1.Name, used)
	i := e.o.Share.Part
	for used[i] != nil {
		i += e.o.Share.of()
	}
	return e.tunnelOf(p1.Name+"_"+strconv.Itoa(i), p1.Name, true, i)
}
