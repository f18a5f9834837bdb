package fsm

import (
	"slices"

	"tandem/proto/clusterpb"
)

// Ranges for scopes in the random world: asked for, given to the scope's owner, taken from
// processes that have ended, returned, in every order and with whatever view of the log.

var scopedPool = struct{ first, last Number }{Number{Lo: 20 << 24}, Number{Lo: 20<<24 + 255}}

// has are the ranges that a host gives out of, by its own knowledge.
func (h *host) has() []Range {
	return slices.DeleteFunc(slices.Clone(h.state.ranges), func(r Range) bool {
		return r.Node != h.id || r.Process != h.process || slices.Contains(h.closed, r.ID)
	})
}

func (w *world) useScoped(h *host) {
	scopes := h.state.Scopes()
	if h.witness || !h.joined() || len(scopes) == 0 {
		return
	}
	s := scopes[w.r.IntN(len(scopes))]
	if w.r.IntN(3) == 0 {
		p, _ := h.state.Member(h.id)
		w.propose(h, &clusterpb.Command{What: &clusterpb.Command_DelegateRange{DelegateRange: &clusterpb.DelegateRange{
			Node: uint32(h.id), Store: p.Store, Space: uint32(SpaceIPv4), First: SpaceIPv4.Bytes(scopedPool.first), Last: SpaceIPv4.Bytes(scopedPool.last),
			Count: 8, Process: h.process, Scope: uint32(s.ID)}}})
		return
	}
	move := func(r Range, ended bool) *clusterpb.Command {
		return &clusterpb.Command{What: &clusterpb.Command_MoveRange{MoveRange: &clusterpb.MoveRange{
			Range: uint64(r.ID), Node: uint32(h.id), Process: h.process, Ended: ended}}}
	}
	for _, r := range h.state.ranges {
		if x, _ := h.state.Scope(r.Scope); r.Process == 0 || x.Owner != h.id || r.Node == h.id && r.Process == h.process {
			continue
		}
		if holder := w.nodes[r.Node-1]; h.state.Orphan(r) || !holder.up || holder.process != r.Process {
			w.propose(h, move(r, !h.state.Orphan(r)))
			w.counted["taken"]++
			return
		}
	}
	mine := h.has()
	if len(mine) == 0 {
		return
	}
	r := mine[w.r.IntN(len(mine))]
	h.closed = append(h.closed, r.ID)
	if x, _ := h.state.Scope(r.Scope); x.Owner == h.id {
		w.propose(h, &clusterpb.Command{What: &clusterpb.Command_ReturnRange{ReturnRange: &clusterpb.ReturnRange{
			Range: uint64(r.ID), Node: uint32(h.id), Process: h.process}}})
		w.counted["scope's range returned"]++
		return
	}
	w.propose(h, move(r, false))
	w.counted["given to the owner"]++
}

// exclusive: no two processes give out of one range, each by its own knowledge.
func (w *world) exclusive() {
	by := map[Number]*host{}
	for _, h := range w.nodes {
		if !h.up {
			continue
		}
		for _, r := range h.has() {
			for n := range r.Count {
				at := r.First.Add(n)
				if o := by[at]; o != nil {
					w.t.Fatalf("nodes %d and %d both give out %v of range %d", o.id, h.id, at, r.ID)
				}
				by[at] = h
			}
		}
	}
	w.counted["ranges of scopes in use"] += len(by)
}
