package userspace

import (
	"math/bits"
	"net/netip"
	"slices"
	"sync"

	"github.com/gaissmai/bart"

	"tandem/internal/ipsec"
)

// routes finds the SA for an outbound packet: the longest prefix of the remote
// selectors, then the whole selectors, then the SA that was put to use last. However
// many dialup instances share the interface, a lookup takes a few dozen nanoseconds.
type routes struct {
	mu    sync.RWMutex
	table bart.Table[*claim]
}

// claim is a list of the SAs with one prefix among their selectors, newest first. What a
// list consists of never changes.
type claim struct {
	sa   *sa
	next *claim
}

func (r *routes) lookup(in *inner) *sa {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c, ok := r.table.Lookup(in.dst)
	if s := c.take(in); s != nil || !ok {
		return s
	}
	// The longest prefix has no SA that takes the packet's protocol and ports.
	for n := in.dst.BitLen(); ; {
		p, c, ok := r.table.LookupPrefixLPM(netip.PrefixFrom(in.dst, n))
		if !ok {
			return nil
		}
		if s := c.take(in); s != nil {
			return s
		}
		if n = p.Bits() - 1; n < 0 {
			return nil
		}
	}
}

func (c *claim) take(in *inner) *sa {
	for ; c != nil; c = c.next {
		if s := c.sa; in.matchAny(s.TSRemote, in.dst, in.dport) && in.matchAny(s.TSLocal, in.src, in.sport) {
			return s
		}
	}
	return nil
}

func (c *claim) with(s *sa) *claim {
	if c == nil || c.sa.order <= s.order {
		return &claim{s, c}
	}
	return &claim{c.sa, c.next.with(s)}
}

func (c *claim) without(s *sa) *claim {
	switch {
	case c == nil:
		return nil
	case c.sa == s:
		return c.next
	}
	return &claim{c.sa, c.next.without(s)}
}

func (r *routes) add(s *sa) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixesOf(s.TSRemote) {
		r.table.Modify(p, func(c *claim, _ bool) (*claim, bool) { return c.with(s), false })
	}
}

func (r *routes) remove(s *sa) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixesOf(s.TSRemote) {
		r.table.Modify(p, func(c *claim, _ bool) (*claim, bool) {
			c = c.without(s)
			return c, c == nil
		})
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
