// Package routehealth tells routers by BGP (RFC 4271) that this gateway may have
// traffic: it announces prefixes while the gateway is healthy, withdraws them before
// the gateway ends, and ends a neighbour's session when BFD has lost it (RFC 5882
// §4.3). It learns no routes. The speaker is GoBGP; the sessions of BFD are our own.
package routehealth

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"tandem/internal/bfd"
	"tandem/internal/bfd/bfdnet"
)

// Neighbor is one router.
type Neighbor struct {
	Addr        netip.Addr
	RemoteAS    uint32
	MultihopTTL uint8           // 0: the neighbour is on the link
	BFD         *bfdnet.Session // nil: none; Peer is set here
}

// Options say what to announce and to whom.
type Options struct {
	AS        uint32
	RouterID  netip.Addr // IPv4
	Keepalive time.Duration
	HoldTime  time.Duration // 0, or 3 s and more
	Port      int           // TCP; 0: 179, -1: neighbours cannot connect to us
	Neighbors []Neighbor
	Prefixes  []netip.Prefix
	Log       *slog.Logger
}

const (
	connectRetry = 2 // seconds; the least that GoBGP takes
	idleHold     = 1 // seconds that a session rests after it was reset
)

// Speaker announces the prefixes while it is told that the gateway is healthy. Its
// methods may be called from any goroutine.
type Speaker struct {
	o    Options
	bgp  *server.BgpServer
	bfd  *bfdnet.Server // nil: no neighbour has it
	wake chan struct{}
	done chan struct{}
	wg   sync.WaitGroup

	mu        sync.Mutex
	healthy   bool                     // as told
	lost      []netip.Addr             // whose BFD session went down, to be acted upon
	bfdState  map[netip.Addr]bfd.State // as heard
	bgpState  map[netip.Addr]bgp.FSMState
	announced bool          // as told to the neighbours
	heard     chan struct{} // closed and renewed when announced or a state changes
	ended     bool
}

// New starts the speaker: sessions come up, nothing is announced before SetHealthy(true).
func New(o Options) (*Speaker, error) {
	lvl := &slog.LevelVar{}
	lvl.Set(slog.LevelDebug) // o.Log has its own
	s := &Speaker{
		o: o, wake: make(chan struct{}, 1), done: make(chan struct{}), heard: make(chan struct{}),
		bfdState: map[netip.Addr]bfd.State{}, bgpState: map[netip.Addr]bgp.FSMState{},
		bgp: server.NewBgpServer(server.LoggerOption(slog.New(quieter{o.Log.Handler()}), lvl)),
	}
	go s.bgp.Serve()
	if err := s.start(); err != nil {
		s.bgp.Stop()
		return nil, fmt.Errorf("router bgp: %w", err)
	}
	s.wg.Go(s.run)
	return s, nil
}

func (s *Speaker) start() error {
	ctx := context.Background()
	err := s.bgp.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: s.o.AS, RouterId: s.o.RouterID.String(), ListenPort: int32(s.o.Port),
	}})
	if err != nil {
		return err
	}
	// What neighbours announce is nothing to us.
	err = s.bgp.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}})
	if err != nil {
		return err
	}
	err = s.bgp.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnPeerUpdate: s.peerChanged}, server.WatchPeer())
	if err != nil {
		return err
	}
	var sessions []bfdnet.Session
	for i := range s.o.Neighbors {
		n := &s.o.Neighbors[i]
		if err := s.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(n)}); err != nil {
			return fmt.Errorf("neighbor %s: %w", n.Addr, err)
		}
		if n.BFD != nil {
			x := *n.BFD
			x.Peer = n.Addr
			sessions = append(sessions, x)
		}
	}
	if len(sessions) > 0 {
		s.bfd, err = bfdnet.New(sessions, s.bfdChanged)
	}
	return err
}

func (s *Speaker) peer(n *Neighbor) *api.Peer {
	p := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: n.Addr.String(), PeerAsn: n.RemoteAS},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: connectRetry, IdleHoldTimeAfterReset: idleHold,
			HoldTime: uint64(s.o.HoldTime / time.Second), KeepaliveInterval: uint64(s.o.Keepalive / time.Second),
		}},
	}
	if n.MultihopTTL != 0 {
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(n.MultihopTTL)}
	}
	for _, f := range []*api.Family{
		{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}, {Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST},
	} {
		if s.announces(f.Afi == api.Family_AFI_IP6) {
			p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: f, Enabled: true}})
		}
	}
	return p
}

func (s *Speaker) announces(v6 bool) bool {
	for _, p := range s.o.Prefixes {
		if p.Addr().Is6() == v6 {
			return true
		}
	}
	return false
}

// SetHealthy says whether routers may send traffic here. It returns at once.
func (s *Speaker) SetHealthy(on bool) {
	s.mu.Lock()
	changed := s.healthy != on
	s.healthy = on
	s.mu.Unlock()
	if changed {
		s.poke()
	}
}

func (s *Speaker) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Status is what the speaker knows of its neighbours.
type Status struct {
	Announced bool
	Neighbors []NeighborStatus // in the order of the options
}

// NeighborStatus is one router's.
type NeighborStatus struct {
	Addr        netip.Addr
	RemoteAS    uint32
	Established bool
	BFD         string // its state, or "" without BFD
}

// Status is the present one.
func (s *Speaker) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Announced: s.announced}
	for i := range s.o.Neighbors {
		n := &s.o.Neighbors[i]
		x := NeighborStatus{Addr: n.Addr, RemoteAS: n.RemoteAS, Established: s.bgpState[n.Addr] == bgp.BGP_FSM_ESTABLISHED}
		if n.BFD != nil {
			state, ok := s.bfdState[n.Addr]
			if !ok {
				state = bfd.Down
			}
			x.BFD = state.String()
		}
		st.Neighbors = append(st.Neighbors, x)
	}
	return st
}

// Withdraw takes the routes back and returns when the neighbours were told, or with
// ctx's error.
func (s *Speaker) Withdraw(ctx context.Context) error {
	s.SetHealthy(false)
	for {
		s.mu.Lock()
		done, heard := !s.announced, s.heard
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return nil
		}
	}
}

// Close withdraws, tells the neighbours that the sessions end, and ends.
func (s *Speaker) Close() {
	s.mu.Lock()
	again := s.ended
	s.ended = true
	s.mu.Unlock()
	if again {
		return
	}
	close(s.done)
	s.wg.Wait()
	s.announce(false)
	s.bgp.Stop() // sends Cease on every session
	if s.bfd != nil {
		s.bfd.Close()
	}
}

// run carries out what was told and heard.
func (s *Speaker) run() {
	for {
		select {
		case <-s.done:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		healthy, lost := s.healthy, s.lost
		s.lost = nil
		s.mu.Unlock()
		for _, a := range lost {
			s.o.Log.Warn("BGP session ends: BFD has lost the neighbor", "neighbor", a.String())
			err := s.bgp.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: a.String(), Communication: "BFD down"})
			if err != nil {
				s.o.Log.Error("BGP session not ended", "neighbor", a.String(), "error", err)
			}
		}
		s.announce(healthy)
	}
}

// announce brings what the neighbours know in line.
func (s *Speaker) announce(on bool) {
	s.mu.Lock()
	was := s.announced
	s.mu.Unlock()
	if on == was || len(s.o.Prefixes) == 0 {
		return
	}
	var paths []*apiutil.Path
	for _, p := range s.o.Prefixes {
		path, err := pathTo(p)
		if err != nil {
			s.o.Log.Error("route not announced", "prefix", p.String(), "error", err)
			continue
		}
		paths = append(paths, path)
	}
	var err error
	if on {
		_, err = s.bgp.AddPath(apiutil.AddPathRequest{Paths: paths})
	} else {
		err = s.bgp.DeletePath(apiutil.DeletePathRequest{Paths: paths})
	}
	if err != nil {
		s.o.Log.Error("routes not changed", "announce", on, "error", err)
		return
	}
	if on {
		s.o.Log.Info("routes announced", "prefixes", len(paths))
	} else {
		s.o.Log.Info("routes withdrawn", "prefixes", len(paths))
	}
	s.mu.Lock()
	s.announced = on
	s.tell()
	s.mu.Unlock()
}

// tell wakes who waits for a change; mu is held.
func (s *Speaker) tell() {
	close(s.heard)
	s.heard = make(chan struct{})
}

// pathTo is a route whose next hop each neighbour sees as our address on its link.
func pathTo(p netip.Prefix) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(p.Masked())
	if err != nil {
		return nil, err
	}
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0)} // IGP
	family := bgp.RF_IPv4_UC
	if p.Addr().Is4() {
		hop, err := bgp.NewPathAttributeNextHop(netip.IPv4Unspecified())
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, hop)
	} else {
		family = bgp.RF_IPv6_UC
		reach, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, netip.IPv6Unspecified())
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, reach)
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs}, nil
}

// peerChanged is called by the speaker.
func (s *Speaker) peerChanged(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	a, st := e.Peer.State.NeighborAddress, e.Peer.State.SessionState
	s.mu.Lock()
	was := s.bgpState[a]
	s.bgpState[a] = st
	s.tell()
	s.mu.Unlock()
	if (was == bgp.BGP_FSM_ESTABLISHED) != (st == bgp.BGP_FSM_ESTABLISHED) {
		s.o.Log.Info("BGP session", "neighbor", a.String(), "established", st == bgp.BGP_FSM_ESTABLISHED)
	}
}

// bfdChanged is called by the sessions of BFD.
func (s *Speaker) bfdChanged(peer netip.Addr, c bfd.Changed) {
	s.mu.Lock()
	s.bfdState[peer] = c.To
	s.tell()
	// A neighbour whose operator took BFD away is not lost (RFC 5882 §4.2).
	lost := c.From == bfd.Up && c.Remote != bfd.AdminDown && c.To == bfd.Down
	if lost {
		s.lost = append(s.lost, peer)
	}
	s.mu.Unlock()
	s.o.Log.Info("BFD session", "neighbor", peer.String(), "from", c.From.String(), "to", c.To.String(), "reason", c.Diag.String())
	if lost {
		s.poke()
	}
}

// quieter makes the library's news details of ours.
type quieter struct{ slog.Handler }

func (q quieter) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, lower(l))
}

func (q quieter) Handle(ctx context.Context, r slog.Record) error {
	if !q.Enabled(ctx, r.Level) {
		return nil
	}
	r.Level = lower(r.Level)
	r.Message = "BGP: " + r.Message
	return q.Handler.Handle(ctx, r)
}

func (q quieter) WithAttrs(a []slog.Attr) slog.Handler { return quieter{q.Handler.WithAttrs(a)} }
func (q quieter) WithGroup(n string) slog.Handler      { return quieter{q.Handler.WithGroup(n)} }

func lower(l slog.Level) slog.Level {
	if l < slog.LevelWarn {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
