package sim

import (
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// lastMessages is how many messages a lifetime remembers.
const lastMessages = 32

// sentMessage is an IKE message that a process sent first.
type sentMessage struct {
	hash uint64
	spis ipsec.IKESPIs
	text string
	at   time.Duration

	id   uint32 // of a request
	side *side  // that began it; nil: it is a response
}

func (l *lifetime) sent(x sentMessage) {
	if len(l.messages) == lastMessages {
		l.messages = append(l.messages[:0], l.messages[lastMessages/2:]...)
	}
	l.messages = append(l.messages, x)
}

// wentAlone: o begins to own beside l, or after its death if something had come between the
// two. What l has begun since it went on under an epoch of its own, a moment ago, o does not
// know, and if l is dead nobody does: as in a split. What o has acknowledged it knows.
func (l *lifetime) wentAlone(now time.Duration, o *lifetime) {
	if l.epochAt <= now-time.Second {
		return
	}
	for _, m := range l.messages {
		if m.side != nil && m.at >= l.epochAt && !o.acked.messages[m.hash] {
			m.side.apart[m.id] = true
		}
	}
}

// numbers notes the highest number that a process used of a Child SA.
func (l *lifetime) numbers(s *sa, dir xfrm.Direction, seq uint64) {
	if dir == xfrm.Inbound && s.ReplayWindow == 0 {
		return
	}
	if l.highest == nil {
		l.highest = map[boundOf]uint64{}
	}
	k := boundOf{s.SPIIn, dir}
	l.highest[k] = max(l.highest[k], seq)
}

// hears: h's guardian takes a heartbeat of the other node.
func (r *rules) hears(h *host, x *cluster.Heartbeat) {
	a := announcedOf(x.Announce, r.realm.scope)
	if l := r.life(h); l != nil && x.Running && a.Role == cluster.RoleOwner && l.heard.Less(a.Epoch) {
		l.heard = a.Epoch
	}
}

// loses: h's guardian tells of the loss of the other node, at the end of what it has
// heard from there. An owner that went on under a later epoch than that of the latest
// entry has excluded h.
func (r *rules) loses(h *host) {
	l := r.life(h)
	entry := l.acked.entry
	for _, f := range l.acked.handed {
		for _, v := range f.f.Events {
			if v.GetEntry() != nil && entry.Less(f.epoch()) {
				entry = f.epoch()
			}
		}
	}
	l.excluded = cluster.Epoch{}
	if entry.Less(l.heard) {
		l.excluded = l.heard
	}
}

// succeeds: d says that it succeeds another node and that the takeover is covered.
// Unless something had come between the two, d has acknowledged all that the other
// one did last.
func (r *rules) succeeds(d *daemon, o *lifetime) {
	w, a := r.w, &r.life(d.h).acked
	if o == nil || o.host == d.h {
		return // it takes back what it handed over in vain
	}
	if e := r.life(d.h).excluded; e != (cluster.Epoch{}) {
		w.violate(RuleCoverage, "%s succeeds and calls that covered, but it had heard the other one own in epoch %s, without an entry in that", d.h.name, e)
		return
	}
	if r.between() || r.split {
		return
	}
	if a.of != o.process {
		w.violate(RuleCoverage, "%s succeeds %s, of whose process it has acknowledged nothing, and calls that covered", d.h.name, o.host.name)
		return
	}
	for _, s := range d.p.list {
		if s.scope.id != r.realm.scope {
			continue
		}
		for _, dir := range []xfrm.Direction{xfrm.Outbound, xfrm.Inbound} {
			k := boundOf{s.SPIIn, dir}
			n := a.bounds[k]
			if dir == xfrm.Outbound {
				n = max(n, initialCeiling)
			}
			if o.highest[k] > n {
				w.violate(RuleCoverage, "%s succeeds %s and calls that covered, but has acknowledged %d as the bound of SPI %s (direction %d), of which #%d was used", d.h.name, o.host.name, n, s.SPIIn, dir, o.highest[k])
				return
			}
		}
	}
	for _, m := range o.messages {
		if m.at > a.since && !a.messages[m.hash] && !a.gone[m.spis] {
			w.violate(RuleCoverage, "%s succeeds %s and calls that covered, but has acknowledged no record of %s, sent at %v", d.h.name, o.host.name, m.text, m.at)
			return
		}
	}
}
