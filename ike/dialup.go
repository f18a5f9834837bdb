package ike

import "strconv"

// dialupTunnel names the instance of a dialup phase 1 for a peer: the one that
// the same identity held, if it says that it knows no other IKE SA, or has an IKE SA from the
// same address and port, so that it authenticates anew; else the lowest free index of our
// share. The name is in the record, so it is the same on every member.
func (e *Engine) dialupTunnel(of *ikeSA, peer identity, initialContact bool) *tunnel {
	p1 := of.p1
	var held *tunnel
	for _, sa := range e.ofPeer(peer) {
		t := sa.tunnel
		if sa == of || !initialContact && (sa.remote != of.remote || !sa.lives()) {
			continue
		}
		if t != nil && len(t.sas) > 0 && t.dialup && t.phase1 == p1.Name && t.sas[len(t.sas)-1].peerID == peer && (held == nil || t.seq < held.seq) {
			held = t
		}
	}
	if held != nil {
		return held
	}
	i, ok := e.lowest[p1.Name]
	if !ok {
		i = e.o.Share.Part
	}
	moved := map[int]*tunnel{}
	e.movedIndexes(p1.Name, moved)
	name := func() string { return p1.Name + "_" + strconv.Itoa(i) }
	for e.tunnels[name()] != nil || moved[i] != nil {
		i += e.o.Share.of()
	}
	e.lowest[p1.Name] = i // what is freed below it lowers it: forgetTunnel
	return e.tunnelOf(name(), p1.Name, true, i)
}
