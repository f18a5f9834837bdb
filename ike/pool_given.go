package ike

import (
	"log/slog"
	"net/netip"
	"slices"
)

// AddressRange is a range of a pool, both ends included, of one family.
type AddressRange struct{ Start, End netip.Addr }

// Contains says that an address lies in the range.
func (r AddressRange) Contains(a netip.Addr) bool {
	return addressRange{r.Start, r.End}.contains(a)
}

// givenRange is one from which this owner alone leases, and how many addresses in it are taken.
type givenRange struct {
	AddressRange
	used int
}

// givenAt finds the range in which an address lies.
func (l *leases) givenAt(a netip.Addr) (i int, ok bool) {
	i, ok = slices.BinarySearchFunc(l.given, a, func(g givenRange, a netip.Addr) int { return g.Start.Compare(a) })
	if !ok {
		i--
	}
	return i, i >= 0 && l.given[i].Contains(a)
}

// count notes that an address is taken, or free again.
func (l *leases) count(a netip.Addr, by int) {
	l.changes++
	if i, ok := l.givenAt(a); ok {
		l.given[i].used += by
	}
}

// give takes the ranges, which do not overlap.
func (l *leases) give(rs []AddressRange) {
	l.given = l.given[:0]
	for _, r := range rs {
		l.given = append(l.given, givenRange{AddressRange: r})
	}
	slices.SortFunc(l.given, func(a, b givenRange) int { return a.Start.Compare(b.Start) })
	for a := range l.held {
		if i, ok := l.givenAt(a); ok {
			l.given[i].used++
		}
	}
	l.changes++
	clear(l.exhausted)
}

// pickGiven finds the next free address of a pool that comes round, in what was given.
func (l *leases) pickGiven(r addressRange, free func(netip.Addr) bool) (netip.Addr, bool) {
	var parts []addressRange
	at := -1 // the part in which the turn is
	for _, g := range l.given {
		if g.Start.BitLen() != r.start.BitLen() || g.End.Compare(r.start) < 0 || r.end.Compare(g.Start) < 0 {
			continue
		}
		p := addressRange{g.Start, g.End}
		if p.start.Compare(r.start) < 0 {
			p.start = r.start
		}
		if r.end.Compare(p.end) < 0 {
			p.end = r.end
		}
		if at < 0 && l.cursor[r].IsValid() && l.cursor[r].Compare(p.end) <= 0 {
			at = len(parts)
		}
		parts = append(parts, p)
	}
	if at < 0 {
		at = 0
	}
	left := maxPool
	look := func(from, to netip.Addr) (netip.Addr, bool) {
		for a := from; left > 0; left-- {
			if free(a) {
				return a, true
			}
			if a == to {
				break
			}
			a = a.Next()
		}
		return netip.Addr{}, false
	}
	for i := range len(parts) + 1 { // that of the turn first and last
		if len(parts) == 0 {
			break
		}
		p := parts[(at+i)%len(parts)]
		if turn := l.cursor[r]; i == 0 && p.contains(turn) {
			p.start = turn
		}
		if a, ok := look(p.start, p.end); ok {
			if l.cursor[r] = a.Next(); a == r.end {
				l.cursor[r] = r.start
			}
			return a, true
		}
	}
	l.exhausted[r] = true
	return netip.Addr{}, false
}

// SetRanges says from which ranges this engine leases, under Homes with Given. Nobody else
// leases from them meanwhile; they do not overlap.
func (e *Engine) SetRanges(rs []AddressRange) {
	e.leases.give(rs)
}

// LeasesIn is how many addresses of a range of SetRanges are taken.
func (e *Engine) LeasesIn(r AddressRange) int {
	if i, ok := e.leases.givenAt(r.Start); ok && e.leases.given[i].AddressRange == r {
		return e.leases.given[i].used
	}
	return 0
}

// LeasesWithin counts the addresses of a range that are taken, given or not.
func (e *Engine) LeasesWithin(r AddressRange) (n int) {
	for a := range e.leases.held {
		if r.Contains(a) {
			n++
		}
	}
	return n
}

// LeaseChanges grows whenever an address is taken or becomes free.
func (e *Engine) LeaseChanges() uint64 { return e.leases.changes }

// rivalLeases ends the later one of two IKE SAs to which both sides of a split have leased
// one address: an owner that a split has left with the records of another one can do so.
func (e *Engine) rivalLeases() {
	has := map[netip.Addr]*ikeSA{}
	for _, sa := range e.sorted() {
		if !sa.lives() {
			continue
		}
		for _, a := range sa.leased() {
			first := has[a]
			if first == nil || first.peerID == sa.peerID {
				has[a] = sa
				continue
			}
			later := sa
			if sa.established.Before(first.established) {
				first, later = sa, first
			}
			has[a] = first
			e.log(slog.LevelError, "one address was leased to two clients: the later one begins anew", slog.String("address", a.String()))
			e.close(later, "its address was leased to another client first")
			break
		}
	}
}
