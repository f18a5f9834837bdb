package node

import (
	"net/netip"
	"time"
)

// HandleAddresses says that addresses of interfaces have changed; see ike.Engine.HandleAddresses.
func (n *Node) HandleAddresses(now time.Time, has func(iface string, a netip.Addr) bool) {
	if !n.owner || n.handing != nil {
		return
	}
	n.resume(now)
	n.ike.HandleAddresses(now, has)
	n.pump(now)
}

// HandleAddresses tells the scopes that this member owns.
func (f *scopeSet) HandleAddresses(now time.Time, has func(iface string, a netip.Addr) bool) {
	f.each(func(n *Node) { n.HandleAddresses(now, has) })
}
