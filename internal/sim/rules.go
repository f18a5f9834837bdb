package sim

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

// rules knows the truth about who owns a realm, and judges.
type rules struct {
	w     *world
	realm *realm
	pair  *pair

	active  []*lifetime // processes whose data plane is active
	epochs  map[cluster.Epoch]cluster.ProcessID
	highest cluster.Epoch
	last    *lifetime // the latest owner
	before  *lifetime // and the one before

	split    bool // two were active, and it has not healed yet
	splitAt  time.Duration
	alone    time.Duration   // when one stopped last, beside another or not
	tolerate time.Duration   // until when rules 2 to 4 rest
	parted   time.Duration   // until when something kept the gateways, or one of them, from acting
	forgot   time.Duration   // when an owner began without the SAs, or died in a split
	left     map[uint64]bool // IKE messages that gateways have sent, by hash
	double   time.Duration   // since when two are active although nothing is broken

	disturbedAt time.Duration                   // when anything but a crash disturbed the pair last
	fell        *fallen                         // the latest owner that died
	strays      map[ipsec.ESPSPI]bool           // installed by peers in a split
	unanswered  map[ipsec.IKESPIs]time.Duration // when the only owner gave an IKE SA up, for the network's losses
	wiped       time.Duration                   // when nobody had the memory of the SAs any more
	movable     time.Duration                   // until when something moves this scope
}

// lifetime is one run of a daemon, as far as checkers remember it.
type lifetime struct {
	epoch   cluster.Epoch // that it announced last as owner
	epochAt time.Duration
	host    *host
	process cluster.ProcessID
	began   time.Duration
	active  bool
	dead    bool
	used    map[*record]bool // in a split
	owned   cluster.Epoch    // the latest that it announced as its own
	acked   acknowledged

	highest   map[boundOf]uint64 // numbers used
	messages  []sentMessage      // the latest
	heardFrom map[*tunnel]bool   // of which peers were heard since the last takeover; nil: there was none
	heard     cluster.Epoch      // highest that the other node said to own
	excluded  cluster.Epoch      // without this node, when the other one was lost
}

// fallen is an owner that died while its standby was entitled and nothing else was wrong.
type fallen struct {
	life *lifetime
	at   time.Duration
}

func (r *rules) init(x *realm) {
	w := x.w
	r.w, r.realm, r.pair = w, x, x.pair
	r.epochs = map[cluster.Epoch]cluster.ProcessID{}
	r.strays = map[ipsec.ESPSPI]bool{}
	r.unanswered = map[ipsec.IKESPIs]time.Duration{}
	r.left = map[uint64]bool{}
	w.after(time.Second, r.poll)
}

// excused: rules 2 and 3 rest for this SA.
func (r *rules) excused(x *record) bool {
	return r.split || r.w.now < r.tolerate || x.tainted > 0
}

// excuse lets every tunnel begin anew for a while.
func (r *rules) excuse(d time.Duration) {
	for _, t := range r.realm.tunnels() {
		t.excuse(d)
	}
}

// life is what is known of a host's last daemon.
func (r *rules) life(h *host) *lifetime { return h.of(r.realm).life }

// disturbed notes that something other than the crash of one process happens, for d.
func (r *rules) disturbed(v Verb, d time.Duration) {
	switch v {
	case CutHB, LossHB, StopDaemon, FreezeHost, PauseHost, PauseBoth, Stubborn:
		r.parted = max(r.parted, r.w.now+d)
	}
	switch v {
	case Kill, CrashAt, LoseHost, Handover:
	default:
		r.disturbedAt = r.w.now
	}
}

// announced: an epoch belongs to one process.
func (r *rules) announced(d *daemon, a cluster.VCluster) {
	if a.Role != cluster.RoleOwner {
		return
	}
	if _, ok := r.epochs[a.Epoch]; !ok {
		r.moves(d, a.Epoch)
	}
	if a.Epoch.Node != d.h.id {
		r.w.violate(RuleEpoch, "%s owns in epoch %s, which is another node's", d.h.name, a.Epoch)
	}
	if p, ok := r.epochs[a.Epoch]; ok && p != d.process {
		r.w.violate(RuleEpoch, "%s owns in epoch %s, as another process did", d.h.name, a.Epoch)
	}
	r.epochs[a.Epoch] = d.process
	if l := r.life(d.h); l.owned.Less(a.Epoch) {
		l.owned = a.Epoch
	}
	if l := r.life(d.h); l.epoch != a.Epoch {
		l.epoch, l.epochAt = a.Epoch, r.w.now
	}
	if r.highest.Less(a.Epoch) {
		r.highest = a.Epoch
	}
}

// activates: d's data plane begins to carry packets.
func (r *rules) activates(d *daemon) {
	w, l := r.w, r.life(d.h)
	if l.active {
		return
	}
	split := r.split
	if o := r.last; o != nil && o != l && (o.active || o.dead && r.between()) {
		o.wentAlone(w.now, l)
	}
	for _, o := range r.active {
		if o != l {
			if !r.split {
				r.splitAt = w.now
				if w.now > r.parted+10*time.Second && r.pair.linksWhole() && o.host.of(r.realm).monitors > 0 {
					w.violate(RuleOwners, "%s begins to own while %s owns, although nothing has come between them", d.h.name, o.host.name)
				}
			}
			r.split = true
			for _, t := range r.realm.tunnels() {
				t.twice = t.twice || t.far != nil && t.near.rule.split && t.far.rule.split
			}
			w.Result.States["split"]++
			w.note(d.h.name, "truth", "two owners now%s: %s and %s", r.realm.suffix(), o.host.name, d.h.name)
		}
	}
	l.active = true
	r.active = append(r.active, l)
	r.prices()
	if r.last != nil && r.last != l {
		w.Result.Takeovers++
		if r.last.dead {
			w.Result.States["takeover from the dead"]++
		} else {
			w.Result.States["takeover from the living"]++
		}
	}
	if r.last != l && !split {
		l.takesOver()
	}
	r.before, r.last = r.last, l
}

// between says that something keeps the gateways apart, or did lately.
func (r *rules) between() bool { return r.w.now <= r.parted+10*time.Second || !r.pair.linksWhole() }

func (r *rules) inactive(l *lifetime) {
	if l == nil || !l.active {
		return
	}
	l.active = false
	r.active = slices.DeleteFunc(r.active, func(x *lifetime) bool { return x == l })
	r.alone = r.w.now
}

// died: a process is gone, and its memory with it.
func (r *rules) died(h *host, d *daemon) {
	l := r.life(h)
	wasActive := l.active
	r.inactive(l)
	r.fell = nil
	l.dead = true
	o := h.other()
	entitled := false
	if o.guard != nil {
		_, entitled = o.guard.EntitledTo(cluster.ScopeID(r.realm.scope))
	}
	if r.split && l.epochAt > r.splitAt-time.Second {
		// What it did in the split under an epoch of its own, nobody else knows. An owner
		// that only stood still has stayed beneath bounds that its successor knows.
		for x := range l.used {
			if x.tainted == 0 {
				x.tainted = r.w.now
			}
		}
		r.w.Result.States["memory of a split lost"]++
		r.forgot = r.w.now
	}
	if wasActive && !r.split && entitled && o.d != nil && !o.d.still() && r.w.now-r.disturbedAt > 10*time.Second && r.pair.linksWhole() {
		r.fell = &fallen{l, r.w.now}
	}
	if wasActive && !entitled {
		// The last resort: nobody was entitled.
		r.excuse(90 * time.Second)
		r.wiped = r.w.now
		r.w.Result.States["owner died alone"]++
	}
	if o.d == nil {
		r.excuse(90 * time.Second)
		r.wiped = r.w.now
		r.w.Result.States["both dead"]++
	}
}

// sends: d used an SA in a split.
func (r *rules) sends(d *daemon, x *record) {
	if l := r.life(d.h); r.split && l != nil {
		if l.used == nil {
			l.used = map[*record]bool{}
		}
		l.used[x] = true
	}
}

func (r *rules) installed(d *daemon, s *sa) {
	for _, x := range r.w.realms() { // of which this is a peer
		if x.pair != d.h.pair && (x.rule.split || r.w.now < x.rule.tolerate) && (d.h.pair != nil || x == d.h.near) {
			x.rule.strays[s.SPIIn] = true
		}
	}
	r.w.wire.learnKey(s.EncrIn, s.EncrOut)
	if len(d.p.list) > 64*(1+len(r.w.s.Setup.Clients)) {
		r.w.violate(RuleBounded, "%s has %d Child SAs installed", d.h.name, len(d.p.list))
	}
}

// logged reads a log line: no key, and how a takeover is told.
func (w *world) logged(d *daemon, e node.Log) {
	if w.s.Real {
		for _, a := range e.Attrs {
			text := a.Value.String()
			for _, k := range w.wire.keysHex {
				if len(text) >= len(k) && strings.Contains(text, k) {
					w.violate(RuleKeys, "a key is in the log of %s: %s", d.h.name, e.Message)
				}
			}
		}
	}
	if e.Message == "takeover" && d.h.id != 0 {
		scope := onlyScope
		for _, a := range e.Attrs {
			if a.Key == "vcluster" {
				scope = xfrm.Scope(a.Value.Int64())
			}
		}
		d.h.pair.realm(scope).rule.takeover(d, e)
	}
	if e.Message == "negotiation of IKE SA failed due to retry timeout" && d.h.id != 0 {
		w.gaveUp(d, e)
	}
}

// takeover judges how one is told.
func (r *rules) takeover(d *daemon, e node.Log) {
	w := r.w
	covered, trusted, handover := false, false, false
	for _, a := range e.Attrs {
		if a.Value.Kind() == slog.KindBool {
			switch a.Key {
			case "covered":
				covered = a.Value.Bool()
			case "trusted":
				trusted = a.Value.Bool()
			case "handover":
				handover = a.Value.Bool()
			}
		}
	}
	if handover {
		r.handedOver()
		w.Result.Handovers++
	}
	if !trusted {
		r.excuse(90 * time.Second)
		r.wiped = r.w.now
		w.Result.States["untrusted takeover"]++
		r.forgot = w.now
	}
	if !covered {
		w.Result.Uncovered++
		w.Result.States["uncovered takeover"]++
		r.tolerate = max(r.tolerate, w.now+time.Second)
		for _, x := range r.realm.ledger.list {
			if trusted && x.tainted == 0 && w.now-x.last < 10*time.Minute {
				x.tainted = w.now
			}
		}
		r.excuse(90 * time.Second)
	} else {
		w.Result.States["covered takeover"]++
		if trusted && !handover {
			r.succeeds(d, r.before)
		}
	}
	if f := r.fell; f != nil {
		r.fell = nil
		if w.now-f.at < 2*time.Second && (!covered || !trusted) && f.life.host == d.h.other() {
			w.violate(RuleCoverage, "%s died with an entitled standby and nothing else was wrong; %s says covered=%v trusted=%v", f.life.host.name, d.h.name, covered, trusted)
		}
	}
}

// saInit: somebody begins an IKE SA.
func (w *world) saInit(d *daemon, t *tunnel) {
	if w.now < 20*time.Second || t == nil || d.h.id != 0 && t.far == nil {
		return
	}
	if w.now < t.excused || t.split() || t.carriedAt == 0 {
		return
	}
	for _, r := range t.realms() {
		if at := r.rule.tolerate; at > 0 && w.now < at+60*time.Second {
			return
		}
	}
	w.violate(RuleLost, "%s begins with IKE_SA_INIT although its tunnel stood (it last carried a packet at %v) and nothing excuses that", d.h.name, t.carriedAt)
}

// poll looks at the whole once a second.
func (r *rules) poll() {
	w := r.w
	if w.done {
		return
	}
	w.after(time.Second, r.poll)
	r.pollSplit()
	if r.realm.index > 0 {
		return // the rest is looked at once
	}
	if r.pair.index == 0 {
		for _, t := range w.tunnels {
			w.pollPath(t)
		}
		for _, h := range w.hosts() {
			if h.d == nil {
				continue
			}
			if n := len(h.d.inbox); n >= inboxLimit && h.id != 0 && !h.d.stopped && !h.frozen {
				w.violate(RuleBounded, "%s has %d messages waiting", h.name, n)
			}
		}
	}
	r.pollGateways()
}

// pollSplit ends a split when one owns and the other follows it.
func (r *rules) pollSplit() {
	w := r.w
	if len(r.active) > 1 {
		ok := r.pair.linksWhole() && w.now >= r.pair.quietFaults()
		for _, h := range r.pair.gw {
			ok = ok && h.powered && !h.frozen && h.guard != nil && h.d != nil && !h.d.stopped && !h.d.hung && h.wanCut == [2]int{}
		}
		switch {
		case !ok:
			r.double = 0
		case r.double == 0:
			r.double = w.now
		case w.now-r.double > 10*time.Second:
			w.violate(RuleOwners, "both gateways have owned for 10s although nothing keeps them apart")
		}
		return
	}
	r.double = 0
	if !r.split {
		return
	}
	o := r.realm.owner()
	if o == nil {
		return
	}
	other := o.other()
	entitled := false
	if other.guard != nil && other.d != nil {
		_, entitled = other.guard.EntitledTo(cluster.ScopeID(r.realm.scope))
	}
	dead := other.d == nil || r.life(other).began > r.splitAt
	if !entitled && !dead {
		return
	}
	if !dead && r.forgot < r.splitAt {
		r.united()
	}
	r.split = false
	r.tolerate = max(r.tolerate, w.now+time.Second)
	r.excuse(90 * time.Second)
	w.note("", "truth", "the split has healed%s", r.realm.suffix())
}

// pollPath excuses a tunnel whose ends did not reach each other for long.
func (w *world) pollPath(t *tunnel) {
	ok := !w.net.clientCut(t.index) && w.net.lossy < 0.25
	for _, r := range t.realms() {
		g := r.gateway()
		ok = ok && g != nil && g.d != nil && g.d.p.active(r.scope) && !g.frozen && !g.d.stopped && !g.d.hung && g.wanCut == [2]int{}
	}
	if c := t.client; c != nil {
		ok = ok && c.d != nil && !c.frozen && !c.d.stopped && !c.d.hung
	}
	if ok {
		t.noPath = 0
		return
	}
	if t.noPath == 0 {
		t.noPath = w.now
	}
	if w.now-t.noPath >= 3*time.Second {
		t.excuse(90 * time.Second)
	}
}

// pollGateways looks at what the owner holds.
func (r *rules) pollGateways() {
	w := r.w
	for _, h := range r.pair.gw {
		if h.d == nil || h.frozen {
			continue
		}
		n := 0
		for _, g := range h.d.n.Status(h.local()).Gateways {
			n += len(g.IKE)
		}
		if limit := 2*halfOpenLimit*len(r.pair.realms) + 16*len(w.tunnels); n > limit {
			w.violate(RuleBounded, "%s holds %d IKE SAs for %d tunnels", h.name, n, len(w.tunnels))
		}
	}
}
