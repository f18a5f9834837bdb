package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"tandem/cluster/fsm"
	"tandem/internal/bfd/bfdnet"
	"tandem/internal/config"
	"tandem/internal/node"
	"tandem/internal/routehealth"
)

const (
	notLooked    = "starting"
	announceLook = 50 * time.Millisecond // how often it is asked whether traffic may come
	withdrawWait = time.Second           // for the speaker to send a withdrawal
	// withdrawSettle is what routers get to act on a withdrawal before tunnels move: BGP
	// has no acknowledgement of it.
	withdrawSettle = 200 * time.Millisecond
)

// announcer tells routers by BGP whether they may send traffic here.
type announcer struct {
	log *slog.Logger

	mu      sync.Mutex
	options routehealth.Options
	speaker *routehealth.Speaker // nil: no BGP is configured
	pair    bool                 // FGCP: the routes go where the ownership goes
	leaving bool                 // the tunnels are about to move away
	looked  time.Time
	why     string // nothing is announced; "": the routes are
}

func newAnnouncer(log *slog.Logger) *announcer { return &announcer{log: log, why: notLooked} }

// speakerOptions are what the configuration says of BGP.
func speakerOptions(c *config.Config) routehealth.Options {
	if !c.BGP.Enabled() {
		return routehealth.Options{}
	}
	o := routehealth.Options{
		AS: uint32(c.BGP.AS), RouterID: c.BGP.RouterID, Keepalive: c.BGP.Keepalive, HoldTime: c.BGP.HoldTime, Prefixes: c.Announced(),
		BFD: bfdnet.Session{DesiredMinTx: c.BFD.MinTx, RequiredMinRx: c.BFD.MinRx, DetectMult: uint8(c.BFD.DetectMult)},
	}
	for _, n := range c.BGP.Neighbors {
		x := routehealth.Neighbor{Addr: n.Addr, RemoteAS: uint32(n.RemoteAS), BFD: n.BFD}
		if n.EBGPMultihop {
			x.MultihopTTL = uint8(n.EBGPMultihopTTL)
		}
		o.Neighbors = append(o.Neighbors, x)
	}
	return o
}

// configure begins, renews or ends the sessions as configured; those that are
// configured as before stay only if everything else is, too. It waits for farewells and
// is not called on the loop.
func (a *announcer) configure(c *config.Config) error {
	o := speakerOptions(c)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pair = c.HA.Mode == "a-p"
	if reflect.DeepEqual(o, a.options) {
		return nil
	}
	a.end()
	if o.AS == 0 {
		return nil
	}
	withLog := o
	withLog.Log = a.log
	s, err := routehealth.New(withLog)
	if err != nil {
		return err
	}
	a.options, a.speaker = o, s
	return nil
}

// end says farewell; mu is held.
func (a *announcer) end() {
	if a.speaker != nil {
		a.speaker.Close()
	}
	a.speaker, a.options, a.why = nil, routehealth.Options{}, notLooked
}

func (a *announcer) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end()
}

// leave withdraws the routes and gives routers time to act on it, so that nothing is on
// its way here when the tunnels move. A pair's routes move with its tunnels: the other
// member announces when it has them.
func (a *announcer) leave(ctx context.Context) {
	a.mu.Lock()
	s := a.speaker
	a.leaving = !a.pair
	a.mu.Unlock()
	if s == nil || a.pair {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawWait)
	defer cancel()
	had, err := s.Withdraw(ctx)
	if err != nil {
		a.log.Warn("routes not withdrawn in time", "error", err)
	}
	if had {
		time.Sleep(withdrawSettle)
	}
}

// stay undoes leave.
func (a *announcer) stay() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leaving = false
}

// look asks the node now and then whether traffic may come. Called on the loop.
func (a *announcer) look(n gateway) {
	if !a.mu.TryLock() {
		return // sessions are being renewed
	}
	defer a.mu.Unlock()
	now := time.Now()
	if a.speaker == nil || now.Sub(a.looked) < announceLook {
		return
	}
	a.looked = now
	why := "leaving"
	if !a.leaving {
		why = unworthy(a.why == "", n.Summary(now))
	}
	switch {
	case why == "" && a.why != "":
		a.log.Info("routes announced", "prefixes", fmt.Sprint(a.options.Prefixes))
	case why != "" && a.why == "":
		a.log.Info("routes withdrawn", "reason", why)
	}
	a.why = why
	a.speaker.SetHealthy(why == "")
}

// unworthy says why routers should not send traffic here, or nothing. Traffic may begin
// to come when everything that this gateway shall own and stand by for is here; it may
// go on coming as long as anything is owned here, whoever has been lost since.
func unworthy(announced bool, s node.Status) string {
	v := view{Node: s}
	f := s.Farm
	switch {
	case f == nil && s.HA != nil && !s.Owner:
		return "standby"
	case f == nil:
		return ""
	case f.Draining():
		return "drained"
	case f.Quorum.Lost && f.Quorum.Stop:
		return "no quorum"
	case !f.Joined && !announced:
		return "not joined"
	case v.siteOf(f.Self) != nil && !v.siteOf(f.Self).Here:
		return "standby in its site"
	case !s.Owner:
		return "owns nothing"
	case announced, v.farmSynchronised():
		return ""
	case slices.ContainsFunc(f.Members, func(m fsm.Member) bool { return m.Node != f.Self && m.Able() }):
		return "not synchronised"
	}
	return "" // there is nobody to be synchronised with
}

// routesView is what routers are told, for commands.
type routesView struct {
	Now      time.Time
	BGP      routehealth.Status
	RouterID netip.Addr // invalid: no BGP is configured
	AS       uint32
	Prefixes []netip.Prefix
	Why      string // nothing is announced
}

// announced is what routers are told; it asks the speaker, not the loop.
func (d *Daemon) announced() (v routesView, err error) {
	a := d.announcer
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.speaker == nil {
		return v, nil
	}
	v = routesView{Now: time.Now(), RouterID: a.options.RouterID, AS: a.options.AS, Prefixes: a.options.Prefixes, Why: a.why}
	v.BGP, err = a.speaker.Status()
	return v, err
}
