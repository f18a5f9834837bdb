package node

import (
	"log/slog"
	"net/netip"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// Effect is one of: ike.Send, ike.SendKeepalive, ike.KeyLog, ike.CheckRevocation, statesync.SendFrame,
// statesync.SendAck, cluster.Announce, cluster.Entitle, cluster.Claim, cluster.AskRemoval,
// cluster.WriteNote, cluster.Alarm, cluster.Stopped, and the types below.
type Effect any

// Install adds a Child SA to the data plane.
type Install struct {
	SA    xfrm.SA
	moves uint32 // of its tunnel, from scope to scope
}

// SetOutbound, SetPeer, SetBounds, Skip, Activate, Deactivate, Retire and SetWindows
// are the data plane's methods of the same names.
type SetOutbound struct {
	SPIIn ipsec.ESPSPI
	Use   bool
}
type SetPeer struct {
	SPIIn         ipsec.ESPSPI
	Local, Remote netip.AddrPort
	UDPEncap, TCP bool
}
type SetBounds struct{ Bounds []xfrm.Bound }
type Skip struct{ Bounds []xfrm.Bound }
type Activate struct{ Scope xfrm.Scope }
type Deactivate struct{ Scope xfrm.Scope }
type Retire struct{ Scope xfrm.Scope }
type SetWindows struct{ Windows []xfrm.Window }

// Remove is the data plane's method of the same name, or with Linger the one of that name.
type Remove struct {
	SPIIn  ipsec.ESPSPI
	Linger time.Duration
}

// TakeWindows asks the data plane for the exact windows of a scope that was just
// deactivated; HandleWindows answers.
type TakeWindows struct{ Scope xfrm.Scope }

// Claim puts the shared addresses on this node and announces them (gratuitous
// ARP, unsolicited NA); Release takes them away. Those that go with the scope: a virtual
// cluster's, or, for 0, all.
type Claim struct{ Scope xfrm.Scope }
type Release struct{ Scope xfrm.Scope }

// Reassert announces the addresses again a moment later: a standby that fell
// silent may have taken over behind a cut, or an owner that stood still has woken
// beside this one, its successor. This node's sequence numbers and windows are the
// current ones, so the traffic shall stay with it.
type Reassert struct{ Scope xfrm.Scope }

// AddRoute and RemoveRoute keep the routes that add-route promises: Prefix
// through the tunnel interface. Standbys have them too.
type AddRoute struct {
	Tunnel string
	Prefix netip.Prefix
}
type RemoveRoute struct {
	Tunnel string
	Prefix netip.Prefix
}

// AddAddress and RemoveAddress keep the addresses that the peer of a tunnel assigned to us
// on its interface. Standbys have them too.
type AddAddress struct {
	Tunnel string
	Addr   netip.Addr
}
type RemoveAddress struct {
	Tunnel string
	Addr   netip.Addr
}

// Log is one structured line.
type Log struct {
	Level   slog.Level
	Message string
	Attrs   []slog.Attr
}
