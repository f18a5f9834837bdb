package userspace

import (
	"math/bits"
	"net/netip"
	"slices"
	"sync"

	"tandem/internal/ipsec"
)

// routes finds the SA for an outbound packet: the longest prefix of the remote
// selectors, then the whole selectors, then the SA that was put to use last.
// There are few prefix lengths, so a lookup is a few probes of a map, however many
// dialup instances share the interface.
type routes struct {
	mu      sync.RWMutex
	lengths [2][]int // in use, descending; by family
	count   [2][129]int
	table   map[netip.Prefix][]*sa // newest first
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (r *routes) lookup(in *inner) *sa {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, n := range r.lengths[family(in.dst)] {
		p, err := in.dst.Prefix(n)
		if err != nil {
			continue
		}
		for _, s := range r.table[p] {
			if in.matchAny(s.TSRemote, in.dst, in.dport) && in.matchAny(s.TSLocal, in.src, in.sport) {
				return s
			}
		}
	}
	return nil
}

func (r *routes) add(s *sa) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table == nil {
		r.table = map[netip.Prefix][]*sa{}
	}
	for _, p := range prefixesOf(s.TSRemote) {
		l := append([]*sa{s}, r.table[p]...)
		slices.SortStableFunc(l, func(a, b *sa) int { return int(int64(b.order - a.order)) })
		r.table[p] = l
		f := family(p.Addr())
		if r.count[f][p.Bits()]++; r.count[f][p.Bits()] == 1 {
			r.lengths[f] = append(slices.Clone(r.lengths[f]), p.Bits())
			slices.SortFunc(r.lengths[f], func(a, b int) int { return b - a })
		}
	}
}

func (r *routes) remove(s *sa) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixesOf(s.TSRemote) {
		l := r.table[p]
		i := slices.Index(l, s)
		if i < 0 {
			continue
		}
		if l = slices.Delete(slices.Clone(l), i, i+1); len(l) == 0 {
			delete(r.table, p)
		} else {
			r.table[p] = l
		}
		f := family(p.Addr())
		if r.count[f][p.Bits()]--; r.count[f][p.Bits()] == 0 {
			r.lengths[f] = slices.DeleteFunc(slices.Clone(r.lengths[f]), func(n int) bool { return n == p.Bits() })
		}
	}
}

// prefixesOf covers the address ranges of selectors with prefixes, each once.
func prefixesOf(tss []ipsec.TrafficSelector) (l []netip.Prefix) {
	for i := range tss {
		for _, p := range rangePrefixes(tss[i].Start, tss[i].End) {
			if !slices.Contains(l, p) {
				l = append(l, p)
			}
		}
	}
	return l
}

// rangePrefixes covers start to end exactly; at most 2·128 prefixes.
func rangePrefixes(start, end netip.Addr) (l []netip.Prefix) {
	if start.Is4() != end.Is4() || start.Compare(end) > 0 {
		return nil
	}
	for a := start; ; {
		n := a.BitLen() - trailingZeros(a)
		p := netip.PrefixFrom(a, n)
		for lastOf(p).Compare(end) > 0 {
			n++
			p = netip.PrefixFrom(a, n)
		}
		l = append(l, p)
		last := lastOf(p)
		if last == end {
			return l
		}
		a = last.Next()
	}
}

func trailingZeros(a netip.Addr) int {
	b := a.AsSlice()
	n := 0
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return n + bits.TrailingZeros8(b[i])
		}
		n += 8
	}
	return n
}

func lastOf(p netip.Prefix) netip.Addr {
	return ipsec.SelectorFromPrefix(p).End
}
