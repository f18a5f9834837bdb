package sim

import (
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/internal/node"
)

// rules knows the truth about who owns, and judges.
type rules struct {
	w *world

	active  []*lifetime // processes whose data plane is active
	epochs  map[cluster.Epoch]cluster.ProcessID
	highest cluster.Epoch
	last    *lifetime // the latest owner
	before  *lifetime // and the one before

	split    bool // two were active, and it has not healed yet
	splitAt  time.Duration
	tolerate time.Duration          // until when rules 2 to 4 rest
	splitIKE map[ipsec.IKESPIs]bool // messages differ since a split
	parted   time.Duration          // until when something kept the gateways, or one of them, from acting
	forgot   time.Duration          // when an owner began without the SAs, or died in a split
	left     map[uint64]bool        // IKE messages that gateways have sent, by hash
	double   time.Duration          // since when two are active although nothing is broken

	excuses     []time.Duration // until when each client may have to begin anew
	noPath      []time.Duration // since when each client has no owner that it reaches; 0: it has
	disturbedAt time.Duration   // when anything but a crash disturbed the pair last
	fell        *fallen         // the latest owner that died
	keysHex     []string
	strays      map[ipsec.ESPSPI]bool // installed by clients in a split
	wiped       time.Duration         // when nobody had the memory of the SAs any more
	heals       time.Duration
	carriedAt   []time.Duration
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
	heardFrom map[int]bool       // clients, since the last takeover; nil: there was none
	heard     cluster.Epoch      // highest that the other node said to own
	excluded  cluster.Epoch      // without this node, when the other one was lost
}

// fallen is an owner that died while its standby was entitled and nothing else was wrong.
type fallen struct {
	life *lifetime
	at   time.Duration
}

func (r *rules) init(w *world) {
	r.w = w
	r.epochs = map[cluster.Epoch]cluster.ProcessID{}
	r.splitIKE = map[ipsec.IKESPIs]bool{}
	r.strays = map[ipsec.ESPSPI]bool{}
	r.left = map[uint64]bool{}
	r.excuses = make([]time.Duration, len(w.s.Setup.Clients))
	r.noPath = make([]time.Duration, len(w.s.Setup.Clients))
	r.carriedAt = make([]time.Duration, len(w.s.Setup.Clients))
	for i := range r.excuses {
		r.excuses[i] = 20 * time.Second // it has to come up first
	}
	w.after(time.Second, r.poll)
}

// excused: rules 2 and 3 rest for this SA.
func (r *rules) excused(x *record) bool {
	return r.split || r.w.now < r.tolerate || x.tainted > 0
}

// excuse lets every client begin anew for a while.
func (r *rules) excuse(d time.Duration) {
	for i := range r.excuses {
		r.excuseClient(i, d)
	}
}

func (r *rules) excuseClient(i int, d time.Duration) {
	r.excuses[i] = max(r.excuses[i], r.w.now+d)
}

// disturbed notes that something other than the crash of one process happens, for d.
func (r *rules) disturbed(h *host, v Verb, d time.Duration) {
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
func (r *rules) announced(d *daemon, a cluster.Announce) {
	if a.Role != cluster.RoleOwner {
		return
	}
	if a.Epoch.Node != d.h.id {
		r.w.violate(RuleEpoch, "%s owns in epoch %s, which is another node's", d.h.name, a.Epoch)
	}
	if p, ok := r.epochs[a.Epoch]; ok && p != d.process {
		r.w.violate(RuleEpoch, "%s owns in epoch %s, as another process did", d.h.name, a.Epoch)
	}
	r.epochs[a.Epoch] = d.process
	if l := d.h.life; l.owned.Less(a.Epoch) {
		l.owned = a.Epoch
	}
	if l := d.h.life; l.epoch != a.Epoch {
		l.epoch, l.epochAt = a.Epoch, r.w.now
	}
	if r.highest.Less(a.Epoch) {
		r.highest = a.Epoch
	}
}

// activates: d's data plane begins to carry packets.
func (r *rules) activates(d *daemon) {
	w, l := r.w, d.h.life
	if d.h.id == 0 || l.active {
		return
	}
	split := r.split
	for _, o := range r.active {
		if o != l {
			if !r.split {
				r.splitAt = w.now
				if w.now > r.parted+10*time.Second && w.linksWhole() && o.host.monitors > 0 {
					w.violate(RuleOwners, "%s begins to own while %s owns, although nothing has come between them", d.h.name, o.host.name)
				}
			}
			r.split = true
			w.Result.States["split"]++
			w.note(d.h.name, "truth", "two owners now: %s and %s", o.host.name, d.h.name)
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

func (r *rules) deactivates(d *daemon) { r.inactive(d.h.life) }

func (r *rules) inactive(l *lifetime) {
	if l == nil || !l.active {
		return
	}
	l.active = false
	r.active = slices.DeleteFunc(r.active, func(x *lifetime) bool { return x == l })
}

// died: a process is gone, and its memory with it.
func (r *rules) died(h *host, d *daemon) {
	l := h.life
	if h.id == 0 {
		r.excuseClient(h.index, 60*time.Second)
		return
	}
	wasActive := l.active
	r.inactive(l)
	r.fell = nil
	l.dead = true
	o := h.other()
	entitled := false
	if o.guard != nil {
		_, entitled = o.guard.Entitled()
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
	if wasActive && !r.split && entitled && r.w.now-r.disturbedAt > 10*time.Second && r.w.linksWhole() {
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
	if r.split && d.h.life != nil {
		if d.h.life.used == nil {
			d.h.life.used = map[*record]bool{}
		}
		d.h.life.used[x] = true
	}
}

func (r *rules) installed(d *daemon, s *sa) {
	if d.h.id == 0 && (r.split || r.w.now < r.tolerate) {
		r.strays[s.SPIIn] = true
	}
	r.learnKey(s.EncrIn, s.EncrOut)
	if len(d.p.list) > 64*(1+len(r.w.s.Setup.Clients)) {
		r.w.violate(RuleBounded, "%s has %d Child SAs installed", d.h.name, len(d.p.list))
	}
}

// learnKey remembers what must never be read in a log. Half of a key is enough.
func (r *rules) learnKey(keys ...ipsec.Key) {
	if !r.w.s.Real {
		return
	}
	for _, k := range keys {
		if k.Len() >= 16 && len(r.keysHex) < 4096 {
			r.keysHex = append(r.keysHex, hex.EncodeToString(k.Bytes()[:8]))
		}
	}
}

// logged reads a log line: how a takeover is told, and no key.
func (r *rules) logged(d *daemon, e node.Log) {
	w := r.w
	if r.w.s.Real {
		for _, a := range e.Attrs {
			text := a.Value.String()
			for _, k := range r.keysHex {
				if len(text) >= len(k) && strings.Contains(text, k) {
					w.violate(RuleKeys, "a key is in the log of %s: %s", d.h.name, e.Message)
				}
			}
		}
	}
	if e.Message != "takeover" || d.h.id == 0 {
		return
	}
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
		for _, x := range w.ledger.list {
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
func (r *rules) saInit(d *daemon) {
	w := r.w
	if w.now < 20*time.Second {
		return
	}
	i := d.h.index
	if d.h.id != 0 {
		return
	}
	if w.now < r.excuses[i] || r.split || w.now < r.tolerate+60*time.Second && r.tolerate > 0 {
		return
	}
	since := r.carriedAt[i]
	if since == 0 {
		return
	}
	w.violate(RuleLost, "%s begins with IKE_SA_INIT although its tunnel stood (it last carried a packet at %v) and nothing excuses that", d.h.name, since)
}

// carried: a packet came through.
func (r *rules) carried(pkt *packet) { r.carriedAt[pkt.flow.client] = r.w.now }

// poll looks at the whole once a second.
func (r *rules) poll() {
	w := r.w
	if w.done {
		return
	}
	w.after(time.Second, r.poll)
	r.pollSplit()
	for i := range w.clients {
		r.pollPath(i)
	}
	for _, h := range w.hosts() {
		if h.d == nil {
			continue
		}
		if n := len(h.d.inbox); n >= inboxLimit && h.id != 0 && !h.d.stopped && !h.frozen {
			w.violate(RuleBounded, "%s has %d messages waiting", h.name, n)
		}
	}
	r.pollGateways()
}

// pollSplit ends a split when one owns and the other follows it.
func (r *rules) pollSplit() {
	w := r.w
	if len(r.active) > 1 {
		ok := w.linksWhole() && w.now >= w.quietFaults()
		for _, h := range w.gw {
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
	o := w.owner()
	if o == nil {
		return
	}
	other := o.other()
	entitled := false
	if other.guard != nil && other.d != nil {
		_, entitled = other.guard.Entitled()
	}
	dead := other.d == nil || other.life.began > r.splitAt
	if !entitled && !dead {
		return
	}
	if !dead && r.forgot < r.splitAt {
		r.united()
	}
	r.split = false
	r.tolerate = max(r.tolerate, w.now+time.Second)
	r.excuse(90 * time.Second)
	w.note("", "truth", "the split has healed")
}

// quietFaults is when the last fault that keeps nodes apart ended.
func (w *world) quietFaults() time.Duration {
	t := time.Duration(0)
	w.streams.each(func(p *pipe[*host, *daemon]) { t = max(t, p.stalled) })
	for _, h := range w.gw {
		t = max(t, h.disk.until, h.disk.full)
	}
	return t
}

// pollPath excuses a client that could not reach an owner for long.
func (r *rules) pollPath(i int) {
	w := r.w
	g := w.net.gateway()
	ok := g != nil && g.d != nil && g.d.p.active(onlyScope) && !g.frozen && !g.d.stopped && !g.d.hung && g.wanCut == [2]int{} && !w.net.clientCut(i) && w.net.lossy < 0.25
	c := w.clients[i]
	ok = ok && c.d != nil && !c.frozen && !c.d.stopped && !c.d.hung
	if ok {
		r.noPath[i] = 0
		return
	}
	if r.noPath[i] == 0 {
		r.noPath[i] = w.now
	}
	if w.now-r.noPath[i] >= 3*time.Second {
		r.excuseClient(i, 90*time.Second)
	}
}

// pollGateways looks at what the owner holds.
func (r *rules) pollGateways() {
	w := r.w
	for _, h := range w.gw {
		if h.d == nil || h.frozen {
			continue
		}
		n := 0
		for _, g := range h.d.n.Status(h.local()).Gateways {
			n += len(g.IKE)
		}
		if limit := 2*halfOpenLimit + 16*len(w.clients); n > limit {
			w.violate(RuleBounded, "%s holds %d IKE SAs for %d clients", h.name, n, len(w.clients))
		}
	}
}
