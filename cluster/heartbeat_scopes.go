package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// Lists of scopes in heartbeats: a survivor may own 128. What follows from the rest of
// the heartbeat, or from the entry before, is not sent.

// packer writes numbers, most of them as the difference to the one in the entry before.
type packer struct {
	out                []uint64
	place, term, nonce uint64
}

func (p *packer) put(n uint64) { p.out = append(p.out, n) }

// rising puts a number that is higher than in the entry before; low goes below it.
func (p *packer) rising(place uint64, bits int, low uint64) {
	p.put((place-p.place)<<bits | low)
	p.place = place
}

// counter puts an epoch's counter.
func (p *packer) counter(c uint64) {
	term := c >> fsm.LocalBits
	p.put(zigzag(term - p.term))
	p.put(c & (1<<fsm.LocalBits - 1))
	p.term = term
}

func (p *packer) number(nonce uint64) {
	p.put(zigzag(nonce - p.nonce))
	p.nonce = nonce
}

func zigzag(d uint64) uint64   { return d<<1 ^ uint64(int64(d)>>63) }
func unzigzag(z uint64) uint64 { return z>>1 ^ -(z & 1) }

func packOwned(ts []Tenure) []uint64 {
	var p packer
	for _, t := range ts {
		p.rising(uint64(t.Scope), 0, 0)
		p.counter(t.Epoch.Counter)
	}
	return p.out
}

func packEntitled(ts []Tenure) []uint64 {
	var p packer
	for _, t := range ts {
		p.rising(uint64(t.Scope), nodeBits, uint64(t.Epoch.Node-1))
		p.counter(t.Epoch.Counter)
	}
	return p.out
}

const (
	nodeBits  = 4
	scopeBits = 9
)

// listed are the removals of scopes other than 0, in the order of the wire.
func listed(rs []Removal) []Removal {
	out := slices.DeleteFunc(slices.Clone(rs), func(r Removal) bool { return r.Scope == 0 })
	slices.SortFunc(out, func(a, b Removal) int { return cmp.Compare(a.place(), b.place()) })
	return out
}

func (r Removal) place() uint64 { return uint64(r.Node-1)<<scopeBits | uint64(r.Scope) }

func packRequests(rs []Removal) []uint64 {
	var p packer
	for _, r := range listed(rs) {
		p.rising(r.place(), 0, 0)
		p.number(r.Nonce)
		p.counter(r.Epoch.Counter)
	}
	return p.out
}

func packAnswers(rs []Removal) []uint64 {
	var p packer
	for _, r := range listed(rs) {
		p.rising(r.place(), 0, 0)
		p.number(r.Nonce)
	}
	return p.out
}

// unpacker reads what a packer wrote. The first fault stays.
type unpacker struct {
	in                 []uint64
	place, term, nonce uint64
	err                error
}

func (u *unpacker) fail(format string, args ...any) {
	if u.err == nil {
		u.err = fmt.Errorf(format, args...)
	}
}

// next is whether there is another entry.
func (u *unpacker) next() bool { return u.err == nil && len(u.in) > 0 }

func (u *unpacker) take() uint64 {
	n := u.in[0] // the length of a list was checked
	u.in = u.in[1:]
	return n
}

func (u *unpacker) rising(bits int) (place, low uint64) {
	n := u.take()
	d := n >> bits
	if d == 0 || d > 1<<(nodeBits+scopeBits) {
		u.fail("scopes out of order")
	}
	u.place += d
	return u.place, n & (1<<bits - 1)
}

func (u *unpacker) scope(n uint64) ScopeID {
	if n >= 1<<scopeBits || !listable(ScopeID(n)) {
		u.fail("there is no scope %d", n)
		return 0
	}
	return ScopeID(n)
}

func (u *unpacker) epoch(n NodeID) Epoch {
	u.term += unzigzag(u.take())
	local := u.take()
	e := Epoch{Counter: u.term<<fsm.LocalBits | local, Node: n}
	if u.term >= 1<<(62-fsm.LocalBits) || local >= 1<<fsm.LocalBits || checkEpoch(e) != nil {
		u.fail("impossible epoch")
	}
	return e
}

func (u *unpacker) removal() (r Removal) {
	place, _ := u.rising(0)
	r.Node, r.Scope = NodeID(place>>scopeBits)+1, u.scope(place&(1<<scopeBits-1))
	if r.Node > maxNode {
		u.fail("node %d is not 1 to %d", r.Node, maxNode)
	}
	u.nonce += unzigzag(u.take())
	r.Nonce = u.nonce
	return r
}

// unpackScopes reads the lists of scopes; h.Node is read already.
func (h *Heartbeat) unpackScopes(m *clusterpb.Heartbeat) error {
	check := func(name string, list []uint64, numbers, entries int) (*unpacker, error) {
		if len(list)%numbers != 0 || len(list)/numbers > entries {
			return nil, fmt.Errorf("%s: list of %d numbers", name, len(list))
		}
		return &unpacker{in: list}, nil
	}
	owned, err1 := check("owned", m.GetOwned(), 3, maxTenures)
	entitled, err2 := check("entitled to", m.GetEntitledTo(), 3, maxTenures)
	requests, err3 := check("requests", m.GetScopeRequests(), 4, maxRemovals)
	answers, err4 := check("answers", m.GetScopeAnswers(), 2, maxRemovals)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	for owned.next() {
		s, _ := owned.rising(0)
		h.Announce.Owned = append(h.Announce.Owned, Tenure{owned.scope(s), owned.epoch(h.Node)})
	}
	for entitled.next() {
		s, node := entitled.rising(nodeBits)
		h.EntitledTo = append(h.EntitledTo, Tenure{entitled.scope(s), entitled.epoch(NodeID(node + 1))})
	}
	for requests.next() {
		r := requests.removal()
		r.Epoch = requests.epoch(h.Node)
		h.Requests = append(h.Requests, r)
	}
	for answers.next() {
		h.Answers = append(h.Answers, answers.removal())
	}
	vclusters, err := unpackVClusters(m.GetVclusters())
	h.Announce.VClusters = vclusters
	return errors.Join(owned.err, entitled.err, requests.err, answers.err, err, checkVClusters(h.Announce.Owned, vclusters))
}
