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
	"strings"
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
	MultihopTTL uint8 // 0: the neighbour is on the link
	BFD         bool
}

// Options say what to announce and to whom.
type Options struct {
	AS        uint32
	RouterID  netip.Addr // IPv4
	Keepalive time.Duration
	HoldTime  time.Duration // 0, or 3 s and more
	Neighbors []Neighbor
	BFD       bfdnet.Session // the times of every session
	Prefixes  []netip.Prefix // a neighbour is told those of its own address family
	Log       *slog.Logger
}

const (
	noListener   = -1 // neighbours are connected to: no port is open for strangers
	connectRetry = 2  // seconds; the least that GoBGP takes
	idleHold     = 1  // seconds that a session rests after it was reset
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
	healthy   bool                // as told
	pending   bool                // told and not carried out
	lost      []netip.Addr        // whose BFD session went down, to be acted upon
	up        map[netip.Addr]bool // whose BGP session is established
	announced bool                // as told to the neighbours
	heard     chan struct{}       // closed and renewed when it was carried out
}

// New starts the speaker: sessions come up, nothing is announced before SetHealthy(true).
func New(o Options) (*Speaker, error) {
	lvl := &slog.LevelVar{}
	lvl.Set(slog.LevelDebug) // o.Log has its own
	s := &Speaker{
		o: o, wake: make(chan struct{}, 1), done: make(chan struct{}), heard: make(chan struct{}),
		up:  map[netip.Addr]bool{},
		bgp: server.NewBgpServer(server.LoggerOption(slog.New(quieter{o.Log.Handler()}), lvl)),
	}
	var sessions []bfdnet.Session
	for i := range o.Neighbors {
		if o.Neighbors[i].BFD {
			x := o.BFD
			x.Peer = o.Neighbors[i].Addr
			sessions = append(sessions, x)
		}
	}
	if len(sessions) > 0 {
		var err error
		if s.bfd, err = bfdnet.New(sessions, s.bfdChanged); err != nil {
			return nil, fmt.Errorf("router bgp: %w", err)
		}
	}
	go s.bgp.Serve()
	if err := s.start(); err != nil {
		s.stop()
		return nil, fmt.Errorf("router bgp: %w", err)
	}
	s.wg.Go(s.run)
	return s, nil
}

func (s *Speaker) start() error {
	ctx := context.Background()
	err := s.bgp.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: s.o.AS, RouterId: s.o.RouterID.String(), ListenPort: noListener,
	}})
	if err != nil {
		return err
	}
	// What neighbours announce is nothing to us, and goes to no other neighbour.
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := s.bgp.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return err
	}
	err = s.bgp.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: []*api.Policy{own},
		DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}})
	if err != nil {
		return err
	}
	err = s.bgp.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnPeerUpdate: s.peerChanged}, server.WatchPeer())
	if err != nil {
		return err
	}
	for i := range s.o.Neighbors {
		n := &s.o.Neighbors[i]
		if err := s.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(n)}); err != nil {
			return fmt.Errorf("neighbor %s: %w", n.Addr, err)
		}
	}
	return nil
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
	family := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	if n.Addr.Is6() {
		family.Afi = api.Family_AFI_IP6
	}
	p.AfiSafis = []*api.AfiSafi{{Config: &api.AfiSafiConfig{Family: family, Enabled: true}}}
	return p
}

// SetHealthy says whether routers may send traffic here. It returns at once.
func (s *Speaker) SetHealthy(on bool) {
	s.mu.Lock()
	changed := s.healthy != on
	s.healthy, s.pending = on, s.pending || changed
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
	Dropped   bfdnet.Counters  // BFD packets
}

// NeighborStatus is one router's.
type NeighborStatus struct {
	Addr           netip.Addr
	RemoteAS       uint32
	Established    bool
	State          string // of RFC 4271 §8.2.2, e.g. Active
	Since          time.Time
	Received, Sent uint64         // messages
	BFD            *bfdnet.Status // nil: it has none
}

// Status is the present one.
func (s *Speaker) Status() (st Status, err error) {
	peers := map[netip.Addr]*api.Peer{}
	err = s.bgp.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		if a, err := netip.ParseAddr(p.GetConf().GetNeighborAddress()); err == nil {
			peers[a] = p
		}
	})
	if err != nil {
		return st, err
	}
	sessions := map[netip.Addr]*bfdnet.Status{}
	if s.bfd != nil {
		for _, x := range s.bfd.Sessions() {
			sessions[x.Peer] = &x
		}
		st.Dropped = s.bfd.Counters()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Announced = s.announced
	for i := range s.o.Neighbors {
		n := &s.o.Neighbors[i]
		p := peers[n.Addr]
		x := NeighborStatus{Addr: n.Addr, RemoteAS: n.RemoteAS, Established: s.up[n.Addr], BFD: sessions[n.Addr],
			State:    stateName(p.GetState().GetSessionState()),
			Received: p.GetState().GetMessages().GetReceived().GetTotal(), Sent: p.GetState().GetMessages().GetSent().GetTotal()}
		at := p.GetTimers().GetState().GetDowntime()
		if x.Established {
			at = p.GetTimers().GetState().GetUptime()
		}
		if at.GetSeconds() > 0 {
			x.Since = at.AsTime()
		}
		st.Neighbors = append(st.Neighbors, x)
	}
	return st, nil
}

// stateName is RFC 4271's word.
func stateName(s api.PeerState_SessionState) string {
	switch s {
	case api.PeerState_SESSION_STATE_CONNECT:
		return "Connect"
	case api.PeerState_SESSION_STATE_ACTIVE:
		return "Active"
	case api.PeerState_SESSION_STATE_OPENSENT:
		return "OpenSent"
	case api.PeerState_SESSION_STATE_OPENCONFIRM:
		return "OpenConfirm"
	case api.PeerState_SESSION_STATE_ESTABLISHED:
		return "Established"
	}
	return "Idle"
}

// Withdraw takes the routes back and returns when every established neighbour was sent
// that, or with ctx's error. It says whether any of them had the routes.
func (s *Speaker) Withdraw(ctx context.Context) (had bool, err error) {
	s.mu.Lock()
	for _, up := range s.up {
		had = had || up && s.announced
	}
	s.mu.Unlock()
	s.SetHealthy(false)
	for {
		s.mu.Lock()
		done, heard := !s.pending, s.heard
		s.mu.Unlock()
		if done {
			return had, nil
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return had, ctx.Err()
		}
	}
}

// Close withdraws, tells the neighbours that the sessions end, and ends. It is called once.
func (s *Speaker) Close() {
	close(s.done)
	s.wg.Wait()
	s.announce(false)
	s.stop()
}

func (s *Speaker) stop() {
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
			err := s.bgp.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: a.String(), Communication: "BFD down"})
			if err != nil {
				s.o.Log.Error("BGP session not ended", "neighbor", a.String(), "error", err)
			}
		}
		s.announce(healthy)
		s.mu.Lock()
		s.pending = s.healthy != healthy // then it was told again
		close(s.heard)
		s.heard = make(chan struct{})
		s.mu.Unlock()
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
	s.mu.Lock()
	s.announced = on
	s.mu.Unlock()
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
	st := &e.Peer.State
	now := st.SessionState == bgp.BGP_FSM_ESTABLISHED
	s.mu.Lock()
	was := s.up[st.NeighborAddress]
	s.up[st.NeighborAddress] = now
	s.mu.Unlock()
	switch {
	case now && !was:
		s.begun(st.NeighborAddress, true)
		s.o.Log.Info("BGP neighbor up", "neighbor", st.NeighborAddress.String(), "as", st.PeerASN)
	case was && !now:
		s.begun(st.NeighborAddress, false)
		s.o.Log.Warn("BGP neighbor down", "neighbor", st.NeighborAddress.String(), "reason", reasonOf(st))
	}
}

// begun has BFD watch over a session of BGP as long as that stands. Not sooner: routers
// (FRR is one) begin their end of BFD anew when BGP has told them our address, and take
// that for a loss if BFD was up already.
func (s *Speaker) begun(neighbor netip.Addr, on bool) {
	if s.bfd != nil {
		s.bfd.Want(neighbor, on)
	}
}

// reasonOf says why a session ended, e.g. "hold timer expired".
func reasonOf(st *apiutil.PeerState) string {
	why := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(st.DisconnectReason.String(), "DISCONNECT_REASON_"), "_", " "))
	if st.DisconnectMessage != "" {
		why += ": " + st.DisconnectMessage
	}
	return why
}

// bfdChanged is called by the sessions of BFD.
func (s *Speaker) bfdChanged(peer netip.Addr, c bfd.Changed) {
	switch {
	case c.To == bfd.Up:
		s.o.Log.Info("BFD neighbor up", "neighbor", peer.String())
	case c.From == bfd.Up && c.To == bfd.Down:
		s.o.Log.Warn("BFD neighbor down", "neighbor", peer.String(), "reason", c.Diag.String(), "neighbor_says", c.Remote.String())
	}
	// One that says itself that its session is down ends the BGP session itself if it
	// has lost us; it may also have begun anew, or its operator took BFD away (RFC 5882 §4.2).
	if c.From == bfd.Up && c.Diag == bfd.DiagExpired {
		s.mu.Lock()
		s.lost = append(s.lost, peer)
		s.mu.Unlock()
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
