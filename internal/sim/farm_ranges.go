package sim

import (
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// rangeLedger knows which number is in use, and by whom.
type rangeLedger map[rangeNumber]rangeUse

type rangeNumber struct {
	space fsm.Space
	n     fsm.Number
}

type rangeUse struct {
	by cluster.NodeID
	of fsm.RangeID
}

// poolOf is what the ranges of a space are taken from: so little that it runs out.
func poolOf(s fsm.Space) (first, last fsm.Number) {
	if s == fsm.SpaceSPI {
		return fsm.SPINumber(1000), fsm.SPINumber(1120)
	}
	return fsm.Number{Lo: 0x0a640001}, fsm.Number{Lo: 0x0a640060}
}

// useRanges gives out a number now and then: of the ranges that this member has. It
// asks for more when it has none, and returns what is used up; then nothing in it is in
// use any more.
func (d *farmDaemon) useRanges() {
	m, w := d.m, d.m.w
	if d.dead {
		return
	}
	w.after(between(w.chance, 600*time.Millisecond, 3*time.Second), d.useRanges)
	if m.frozen || d.stopped {
		return
	}
	for _, space := range []fsm.Space{fsm.SpaceSPI, fsm.SpaceIPv4} {
		usable := d.held.Usable(d.state, space, uint64(d.process), d.synced)
		left := true
		for range 1 + w.chance.IntN(4) {
			left = left && slices.ContainsFunc(usable, d.giveOut)
		}
		if !left && d.synced {
			first, last := poolOf(space)
			d.propose(&clusterpb.Command{What: &clusterpb.Command_DelegateRange{DelegateRange: &clusterpb.DelegateRange{
				Node: uint32(m.id), Store: m.disk.store, Space: uint32(space), First: space.Bytes(first), Last: space.Bytes(last),
				Count: uint64(2 + w.chance.IntN(8))}}})
		}
		if len(usable) > 1 {
			d.giveBack(usable[w.chance.IntN(len(usable))])
		}
	}
}

// giveOut takes the next number of a range into use, if one is left. What an earlier
// process of this member gave out of it, a synchronised one knows from the records.
func (d *farmDaemon) giveOut(r fsm.Range) bool {
	m, w := d.m, d.m.w
	_, opened := slices.BinarySearch(d.held.Opened, r.ID)
	for n := range r.Count {
		x := rangeNumber{r.Space, r.First.Add(n)}
		use, taken := w.ranges[x]
		if taken && use.by == m.id && use.of == r.ID && (opened || d.synced) {
			continue
		}
		if taken {
			w.violate(RuleRanges, "%s gives out number %d of space %d from range %d, which vm%d uses from range %d", m.name, x.n.Lo, r.Space, r.ID, use.by, use.of)
		}
		d.held.Open(r.ID)
		m.disk.opened = slices.Clone(d.held.Opened)
		w.ranges[x] = rangeUse{m.id, r.ID}
		w.Result.States["number given out of a range"]++
		return true
	}
	return false
}

// giveBack returns a range of which nothing is in use any more.
func (d *farmDaemon) giveBack(r fsm.Range) {
	for n := range r.Count {
		x := rangeNumber{r.Space, r.First.Add(n)}
		if use := d.m.w.ranges[x]; use.by == d.m.id && use.of == r.ID {
			delete(d.m.w.ranges, x)
		}
	}
	d.held.Close(r.ID)
	d.m.disk.opened = slices.Clone(d.held.Opened)
	d.propose(&clusterpb.Command{What: &clusterpb.Command_ReturnRange{ReturnRange: &clusterpb.ReturnRange{Range: uint64(r.ID), Node: uint32(d.m.id)}}})
}
