package ike

import (
	"net/netip"
	"slices"
)

// Homes says which addresses of its pools an owner may lease. Every address has a home: one
// of two nodes, by the last bit of the address. An owner may lease from its own homes, and
// from the other's only while the other acknowledges its records: so that two owners in a
// split never lease the same address. The zero value allows none: this process does not
// know yet what others have leased.
//
// Where more than two nodes share pools, an owner leases from what it was given (SetRanges),
// which nobody else leases from meanwhile. All then says only that nobody may go on with IKE
// SAs that have ended here.
type Homes struct {
	All   bool // all of them
	Own   bool // those with this node as home
	Part  byte // which those are: 0 or 1
	Given bool // those of SetRanges
}

func homeOf(a netip.Addr) byte {
	b := a.As16()
	return b[15] & 1
}

func (h Homes) allows(a netip.Addr) bool { return h.All || h.Own && homeOf(a) == h.Part }

// allows says that this owner may lease an address, if it is free.
func (l *leases) allows(a netip.Addr) bool {
	if l.homes.Given {
		_, ok := l.givenAt(a)
		return ok
	}
	return l.homes.allows(a)
}

// addressRange is one family of a pool, both ends included.
type addressRange struct{ start, end netip.Addr }

func (r addressRange) valid() bool { return r.start.IsValid() && r.end.IsValid() }

func (r addressRange) contains(a netip.Addr) bool {
	return r.valid() && a.BitLen() == r.start.BitLen() && r.start.Compare(a) <= 0 && a.Compare(r.end) <= 0
}

const (
	// maxPool bounds how many addresses of a range are leased: looking for a free one must end.
	maxPool = 1 << 20
	// maxRemembered bounds whose addresses are remembered.
	maxRemembered = 1 << 16
)

// lease is an address that is taken: by n IKE SAs (a rekeyed one and its successor), or by
// none any more while somebody else may still go on with one that had it.
type lease struct {
	n      int
	ticket Ticket // of the record that ended the last one; 0: whatever is committed does not free it
}

// leases are the addresses that an engine's IKE SAs have, on an owner as on a standby.
type leases struct {
	homes     Homes
	given     []givenRange
	changes   uint64
	held      map[netip.Addr]*lease
	limbo     []netip.Addr // of held, those with n = 0
	cursor    map[addressRange]netip.Addr
	exhausted map[addressRange]bool // nothing was freed since it was found to be
	last      map[identity][]netip.Addr
	lastOrder []identity
	keep      bool // what ends now may go on elsewhere
}

func newLeases() leases {
	return leases{homes: Homes{All: true}, held: map[netip.Addr]*lease{}, cursor: map[addressRange]netip.Addr{},
		exhausted: map[addressRange]bool{}, last: map[identity][]netip.Addr{}}
}

// add counts an IKE SA of a peer that has an address.
func (l *leases) add(peer identity, a netip.Addr) {
	x := l.held[a]
	if x == nil {
		x = &lease{}
		l.held[a] = x
		l.count(a, 1)
	} else if x.n == 0 {
		l.limbo = slices.DeleteFunc(l.limbo, func(b netip.Addr) bool { return a == b })
	}
	x.n++
	l.remember(peer, a)
}

// drop ends one IKE SA's hold on an address. ended: nobody goes on with it, because the peer
// has ended it, or because the owner said so to this standby. Otherwise the address becomes
// free when the other node has the record of ticket, which ends it there as well.
func (l *leases) drop(a netip.Addr, ended bool, ticket Ticket) {
	x := l.held[a]
	if x == nil {
		return
	}
	if x.n--; x.n > 0 {
		return
	}
	if ended && !l.keep {
		l.free(a)
		return
	}
	x.n, x.ticket = 0, 0
	if l.homes.All && !l.keep {
		x.ticket = ticket
	}
	l.limbo = append(l.limbo, a)
}

func (l *leases) free(a netip.Addr) {
	if l.held[a] != nil {
		delete(l.held, a)
		l.count(a, -1)
	}
	clear(l.exhausted)
}

// committed frees what the records up to t have ended, where every other node has them.
func (l *leases) committed(t Ticket) {
	if len(l.limbo) == 0 || !l.homes.All {
		return
	}
	l.limbo = slices.DeleteFunc(l.limbo, func(a netip.Addr) bool {
		x := l.held[a]
		if x.ticket == 0 || x.ticket > t {
			return false
		}
		l.free(a)
		return true
	})
}

// settle frees all that nobody here has: the other node has the same state as this one.
func (l *leases) settle() {
	for _, a := range l.limbo {
		l.free(a)
	}
	l.limbo = nil
}

// rehome takes other homes. What the other node has not acknowledged by then stays taken.
func (l *leases) rehome(h Homes) {
	if h == l.homes {
		return
	}
	if h.All {
		l.settle()
	} else {
		for _, a := range l.limbo {
			l.held[a].ticket = 0
		}
	}
	l.homes = h
	clear(l.exhausted)
}

// pick finds a free address of a range: the one that the peer wishes, else the one that it
// had last, else the next that comes round, so that an address rests before it is given to
// somebody else. own says that an address is the gateway's.
func (l *leases) pick(r addressRange, peer identity, wish netip.Addr, own func(netip.Addr) bool) (a netip.Addr, ok bool) {
	if !r.valid() {
		return a, false
	}
	free := func(a netip.Addr) bool {
		return r.contains(a) && l.held[a] == nil && l.allows(a) && !own(a)
	}
	if wish.IsValid() && free(wish) {
		return wish, true
	}
	for _, a := range l.last[peer] {
		if free(a) {
			return a, true
		}
	}
	if l.exhausted[r] {
		return a, false
	}
	if l.homes.Given {
		return l.pickGiven(r, free)
	}
	a = l.cursor[r]
	if !r.contains(a) {
		a = r.start
	}
	size := min(distance(r.start, r.end)+1, maxPool)
	for range size {
		was := a
		if a = a.Next(); !r.contains(a) || distance(r.start, a) >= size {
			a = r.start
		}
		if free(was) {
			l.cursor[r] = a
			return was, true
		}
	}
	l.exhausted[r] = true
	return netip.Addr{}, false
}

// distance is b-a, at most maxPool.
func distance(a, b netip.Addr) int {
	x, y := a.As16(), b.As16()
	n, borrow := 0, 0
	for i := 15; i >= 0; i-- {
		d := int(y[i]) - int(x[i]) - borrow
		borrow = 0
		if d < 0 {
			d, borrow = d+256, 1
		}
		switch {
		case d == 0:
		case i < 13:
			return maxPool
		default:
			n += d << (8 * (15 - i))
		}
	}
	return min(n, maxPool)
}

// remember keeps which addresses an identity had, the newest first.
func (l *leases) remember(peer identity, a netip.Addr) {
	if peer.kind == 0 {
		return
	}
	had, known := l.last[peer]
	if len(had) > 0 && had[0] == a {
		return
	}
	if !known {
		if len(l.lastOrder) >= maxRemembered {
			delete(l.last, l.lastOrder[0])
			l.lastOrder = l.lastOrder[1:]
		}
		l.lastOrder = append(l.lastOrder, peer)
	}
	had = slices.DeleteFunc(slices.Clone(had), func(b netip.Addr) bool { return a == b })
	had = slices.Insert(had, 0, a)
	l.last[peer] = had[:min(len(had), 2*maxAddresses)]
}

// SetHomes says what this engine may lease from now on. What it has leased from others'
// homes and they have not acknowledged does not become effective: the peer has no answer
// yet, and begins anew.
func (e *Engine) SetHomes(h Homes) {
	was := e.leases.homes
	if h == was {
		return
	}
	defer e.begin(e.now)()
	e.leases.rehome(h)
	if !e.active || h.All {
		return
	}
	for _, sa := range e.sorted() {
		if sa.leaseAt > e.done && slices.ContainsFunc(sa.leased(), func(a netip.Addr) bool { return !e.leases.allows(a) }) {
			e.remove(sa, false, "the other node does not know of its address yet")
		}
	}
}

// Distrust says that what follows forgets IKE SAs that others may go on with: their
// addresses stay taken. It holds until EndCopy.
func (e *Engine) Distrust() { e.leases.keep = true }
