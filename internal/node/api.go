package node

import (
	"io"
	"log/slog"
	"net/netip"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
)

// Options are what a Node needs from outside. Without Pair it is a standalone
// gateway: it owns its scope from Start on, and every record commits at once.
type Options struct {
	Config        *config.Config
	Process       cluster.ProcessID
	Pair          *cluster.PairOptions
	Slot          *cluster.SlotOptions // instead of Pair: one of many scopes, see Farm
	Share         ike.Share
	Rand          io.Reader
	Traffic       ike.Traffic
	LocalAddr     func(iface string, v6 bool) (netip.Addr, bool)
	Revocation    ike.Revocation                              // see ike.CheckRevocation
	RADIUS        func(key [32]byte) (ike.RADIUSAnswer, bool) // see ike.AskRADIUS
	CookieSecret  ipsec.Key
	TokenSecret   ipsec.Key // of quick crash detection; empty: no tokens
	HalfOpenLimit int       // 0: 1000
	// Logs says whether the engine's log lines of a level are wanted; nil: all are.
	Logs func(slog.Level) bool

	// What the scopes of a Farm share, and that they are such.
	ofFarm bool
	ranged bool // mode-cfg leases from ranges of the log; see pool_ranges.go
	ledger *statesync.Ledger
	nonces ike.Nonces
	turns  *copyTurns
}

// Status is what diagnose shows.
type Status struct {
	HA   *cluster.HAStatus // nil when standalone
	Farm *FarmStatus       // nil but for a member of a farm
	// With virtual clusters, each by number; HA is then of all together.
	VClusters []VClusterStatus
	Quorum    bool         // of a group of three or four: its log has a leader
	Pools     []PoolStatus // of such a group
	Owner     bool
	Gateways  []ike.GatewayStatus
	IKE       ike.Counters // since this process began
}

// The Node's methods; inputs take now first and are followed by draining Poll:
//
//	New(Options) *Node
//	Start(now)
//	HandleIKE(now, ike.Datagram)
//	HandlePlane(now, []xfrm.Event)
//	HandleWindows(now, []xfrm.Window)
//	HandleFrame(now, cluster.NodeID, cluster.ProcessID, frame []byte) error
//	HandleAck(now, cluster.NodeID, cluster.ProcessID, seq uint64)
//	HandleStream(now, cluster.NodeID, cluster.ProcessID, up bool)
//	HandlePeer(now, cluster.Peer); HandleLoss(…); HandleRemoved(…); HandleEntitled(…)
//	HandleNote(now, err error); HandleMonitors(now, up int);
//	HandlePingservers(now, penalty, stale int)
//	HandleAddresses(now, has func(iface string, netip.Addr) bool)
//	HandleTimeout(now); NextTimeout() (time.Time, bool)
//	Reload(now, *config.Config)
//	Up(now, phase1, phase2 string) error; Down(…) error; Clear(now, name string) int
//	Failover(now, set bool) error
//	Shutdown(now)                       // ends with cluster.Stopped
//	Status(now) Status
//	Poll() (Effect, bool)
