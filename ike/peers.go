package ike

import (
	"cmp"
	"slices"
)

// The IKE SAs of one peer are chained by its identity, so that what is to be done about
// a peer costs nothing where there are many others.

// hash is FNV-1a; whoever is found by it is compared.
func (id identity) hash() uint64 {
	h := (uint64(14695981039346656037) ^ uint64(id.kind)) * 1099511628211
	for i := range len(id.data) {
		h = (h ^ uint64(id.data[i])) * 1099511628211
	}
	return h
}

// identify notes whose IKE SA it is; it must be known under its SPI.
func (e *Engine) identify(sa *ikeSA, peer identity) {
	e.unlinkPeer(sa)
	sa.peerID = peer
	e.linkPeer(sa)
}

func (e *Engine) linkPeer(sa *ikeSA) {
	if sa.peerID.kind == 0 || sa.ofPeer {
		return
	}
	h := sa.peerID.hash()
	sa.ofPeer, sa.nextOfPeer = true, e.peers[h]
	e.peers[h] = sa
}

func (e *Engine) unlinkPeer(sa *ikeSA) {
	if !sa.ofPeer {
		return
	}
	h := sa.peerID.hash()
	if x := e.peers[h]; x == sa {
		if sa.nextOfPeer == nil {
			delete(e.peers, h)
		} else {
			e.peers[h] = sa.nextOfPeer
		}
	} else {
		for x.nextOfPeer != sa {
			x = x.nextOfPeer
		}
		x.nextOfPeer = sa.nextOfPeer
	}
	sa.ofPeer, sa.nextOfPeer = false, nil
}

// ofPeer lists the IKE SAs with a peer, in the order of their making.
func (e *Engine) ofPeer(id identity) (all []*ikeSA) {
	for sa := e.peers[id.hash()]; sa != nil; sa = sa.nextOfPeer {
		if sa.peerID == id {
			all = append(all, sa)
		}
	}
	slices.SortFunc(all, func(a, b *ikeSA) int { return cmp.Compare(a.seq, b.seq) })
	return all
}
