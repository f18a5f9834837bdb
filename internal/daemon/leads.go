package daemon

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"tandem/internal/node"
	"tandem/xfrm"
)

// leads are the inner prefixes of clients that other members have, with their scopes: the
// longest prefix counts. The loop writes, the data plane's goroutines look up.
type leads struct {
	followed atomic.Pointer[map[xfrm.Scope]bool] // scopes whose SAs are here: nothing is led to them

	mu      sync.RWMutex
	to      map[node.AddRoute]xfrm.Scope
	count   [2][129]int // by family and length
	lengths [2][]int    // that there are, descending
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// publish says which scopes' SAs are here.
func (l *leads) publish(followed map[xfrm.Scope]bool) { l.followed.Store(&followed) }

// set enters a prefix or, with scope 0, removes it.
func (l *leads) set(e node.Lead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := node.AddRoute{Tunnel: e.Tunnel, Prefix: e.Prefix}
	_, known := l.to[key]
	fam, n := familyOf(e.Prefix.Addr()), e.Prefix.Bits()
	switch {
	case e.To == 0 && known:
		delete(l.to, key)
		if l.count[fam][n]--; l.count[fam][n] == 0 {
			l.lengths[fam] = slices.DeleteFunc(l.lengths[fam], func(x int) bool { return x == n })
		}
	case e.To != 0:
		if l.to == nil {
			l.to = map[node.AddRoute]xfrm.Scope{}
		}
		l.to[key] = e.To
		if known {
			return
		}
		if l.count[fam][n]++; l.count[fam][n] == 1 {
			l.lengths[fam] = append(l.lengths[fam], n)
			slices.SortFunc(l.lengths[fam], func(a, b int) int { return b - a })
		}
	}
}

// lookup tells the scope of an address in a tunnel interface, if this member has no SAs of it.
func (l *leads) lookup(tunnel string, dst netip.Addr) (xfrm.Scope, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, n := range l.lengths[familyOf(dst)] {
		p, err := dst.Prefix(n)
		if err != nil {
			continue
		}
		if to, ok := l.to[node.AddRoute{Tunnel: tunnel, Prefix: p}]; ok {
			followed := l.followed.Load()
			return to, followed == nil || !(*followed)[to]
		}
	}
	return 0, false
}

// leads tells the scope of a dialup client's address that another member has. The data
// plane's goroutines call it.
func (d *Daemon) leads(tunnel string, dst netip.Addr) (xfrm.Scope, bool) {
	f := d.strays.Load()
	if f == nil {
		return 0, false
	}
	return f.leads.lookup(tunnel, dst)
}
