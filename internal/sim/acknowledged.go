package sim

import (
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/ike"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// acknowledged is what a process has acknowledged of the frames that it was sent,
// read on the wire between the gateways: what it must be able to go on with.
type acknowledged struct {
	of     cluster.ProcessID // who sent them
	seq    uint64            // up to which
	epoch  cluster.Epoch     // of the latest one
	handed []handedFrame     // delivered since, in order; may come twice, or be refused
	entry  cluster.Epoch     // of the latest entry among them
	since  time.Duration     // when that was acknowledged

	spis     map[ipsec.ESPSPI]ipsec.IKESPIs // Child SAs, and whose they are
	ever     map[ipsec.ESPSPI]bool          // and those that have ended since
	bounds   map[boundOf]uint64
	messages map[uint64]bool          // by hash: last responses, last requests
	synced   map[ipsec.IKESPIs]uint32 // the highest message ID that either side proposed (RFC 6311)
	gone     map[ipsec.IKESPIs]bool
}

type boundOf struct {
	spi ipsec.ESPSPI
	dir xfrm.Direction
}

type handedFrame struct {
	f     *syncpb.Frame
	owned cluster.Epoch // highest that the receiver had owned by then
}

// initialCeiling is where every outbound SA begins, bound or not.
const initialCeiling = 32

func (f handedFrame) epoch() cluster.Epoch {
	return cluster.Epoch{Counter: f.f.EpochCounter, Node: cluster.NodeID(f.f.EpochNode)}
}

// begins: what the receiver refused before is void from here on.
func (f handedFrame) begins() bool {
	e := f.f.Events[0]
	return e.GetCopyBegin() != nil || e.GetUnite().GetFirst()
}

func (f handedFrame) unites() bool { return f.f.Events[0].GetUnite() != nil }

// frame: what is about to be handed to o's replica.
func (r *rules) frame(o, from *daemon, e statesync.SendFrame) {
	f := &syncpb.Frame{}
	if err := proto.Unmarshal(e.Frame, f); err != nil || len(f.Events) == 0 {
		r.w.violate(RuleEffects, "%s sends a frame that does not parse: %v", from.h.name, err)
		return
	}
	a := &r.life(o.h).acked
	if a.of != from.process {
		*a = acknowledged{of: from.process, entry: a.entry, since: a.since, spis: map[ipsec.ESPSPI]ipsec.IKESPIs{}, ever: map[ipsec.ESPSPI]bool{}, bounds: map[boundOf]uint64{}, messages: map[uint64]bool{}, synced: map[ipsec.IKESPIs]uint32{}, gone: map[ipsec.IKESPIs]bool{}}
	}
	if f.Seq > a.seq {
		a.handed = append(a.handed, handedFrame{f, r.life(o.h).owned})
	}
}

// acks: d acknowledges every frame up to a number.
func (r *rules) acks(d *daemon, e statesync.SendAck) {
	if e.Process == d.process {
		r.w.violate(RuleEcho, "%s acknowledges frame %d of its own", d.h.name, e.Seq)
		return
	}
	a := &r.life(d.h).acked
	if a.of != e.Process || e.Seq <= a.seq {
		return
	}
	var taken, later []handedFrame
	for _, f := range a.handed {
		switch {
		case f.f.Seq > e.Seq:
			later = append(later, f)
		case f.begins():
			taken = append(taken[:0], f)
		case len(taken) == 0 || f.f.Seq > taken[len(taken)-1].f.Seq:
			taken = append(taken, f)
		}
	}
	a.handed = later
	for _, f := range taken {
		if f.f.Seq <= a.seq {
			continue
		}
		a.seq = f.f.Seq
		if f.unites() {
			continue // it is older by nature
		}
		if x := f.epoch(); x.Less(f.owned) || x.Less(a.epoch) {
			r.w.violate(RuleEpoch, "%s acknowledges frame %d of epoch %s, although it owned in epoch %s and took frames of epoch %s", d.h.name, f.f.Seq, x, f.owned, a.epoch)
		} else {
			a.epoch = x
		}
		for _, v := range f.f.Events {
			r.learn(a, f, v)
		}
	}
}

// learn takes an event of an acknowledged frame into account.
func (r *rules) learn(a *acknowledged, f handedFrame, v *syncpb.Frame_Event) {
	switch {
	case v.GetEntry() != nil:
		a.entry, a.since = f.epoch(), r.w.now
	case v.GetBounds() != nil:
		b := v.GetBounds()
		for i, s := range b.Sa {
			a.bounds[boundOf{ipsec.ESPSPI(s >> 1), xfrm.Direction(s & 1)}] = b.N[i]
		}
	case v.GetRecord() != nil:
		named := func(e *syncpb.Frame_Entry) ipsec.IKESPIs {
			return ipsec.IKESPIs{I: ipsec.IKESPI(e.SpiI), R: ipsec.IKESPI(e.SpiR)}
		}
		for _, e := range v.GetRecord().Entries { // before any of them has its new ones
			for s, of := range a.spis {
				if of == named(e) {
					delete(a.spis, s)
				}
			}
		}
		for _, e := range v.GetRecord().Entries {
			if len(e.Value) == 0 {
				a.gone[named(e)] = true
				continue
			}
			for _, s := range e.ChildSpis {
				a.spis[ipsec.ESPSPI(s)], a.ever[ipsec.ESPSPI(s)] = named(e), true
			}
			var sa syncpb.IKESA
			if err := proto.Unmarshal(e.Value, &sa); err != nil {
				r.w.violate(RuleEffects, "a record does not parse: %v", err)
				return
			}
			a.synced[named(e)] = max(sa.SyncProposed, sa.SyncSeen)
			for _, m := range [][]byte{sa.LastResponse, sa.LastRequest, sa.GetOutstanding().GetData()} {
				for _, d := range message.Split(m) {
					a.messages[r.w.wire.hash(d)] = true
				}
			}
		}
	}
}

// syncSet is what the member holds that d has to wait for; nil when there is none.
// A member counts while its guardian holds its entitlement for the epoch that d
// announced last.
func (r *rules) syncSet(d *daemon) *acknowledged {
	if d.h.id == 0 {
		return nil
	}
	o := d.h.other()
	if o.guard == nil || o.d == nil {
		return nil
	}
	l := r.life(o)
	if e, ok := o.guard.EntitledTo(cluster.ScopeID(r.realm.scope)); !ok || e != d.h.of(r.realm).said.Epoch || l.acked.of != d.process {
		return nil
	}
	return &l.acked
}

// sentIKE: an IKE message leaves; it is judged by its realm.
func (w *world) sentIKE(d *daemon, x ike.Datagram) {
	if d.h.id == 0 {
		return
	}
	r := w.realmAt(x.Local.Addr())
	if r == nil || r.pair != d.h.pair {
		w.violate(RuleEffects, "%s sends from %s, which is no address of its own", d.h.name, x.Local)
		return
	}
	r.rule.sentIKE(d, x)
}

// sentIKE: an IKE message leaves. The member has to hold the record that it rests
// on: one with the message as sent, or with the end of its IKE SA.
func (r *rules) sentIKE(d *daemon, x ike.Datagram) {
	h := r.w.wire.hash(x.Data)
	if r.left[h] {
		return
	}
	r.left[h] = true
	m, t := r.w.wire.read(x.Data)
	if m == nil || m.Exchange == message.IKESAInit || !protected(m) {
		return
	}
	if a := r.syncSet(d); t.syncs {
		// It is not in a record, but what it proposes is: no successor proposes less.
		if a != nil && a.synced[m.SPIs] < max(t.proposes, 1) && !a.gone[m.SPIs] {
			r.w.violate(RuleGate, "%s synchronises message IDs (%d), of which its entitled standby has acknowledged no record", d.h.name, t.proposes)
		}
		return
	}
	said := sentMessage{hash: h, spis: m.SPIs, text: t.text, at: r.w.now}
	if !m.Response {
		said.id, said.side = m.MessageID, r.w.wire.side(m.SPIs, m.Initiator)
	}
	r.life(d.h).sent(said)
	r.begins(d, m, t.text, h, x)
	a := r.syncSet(d)
	if a == nil || a.messages[h] || a.gone[m.SPIs] {
		return
	}
	r.w.violate(RuleGate, "%s sends %s, of which its entitled standby has acknowledged no record", d.h.name, t.text)
}

// uses: number seq of an SA is sent (out) or delivered. The member has to hold the
// SA and a bound that is not below.
func (r *rules) uses(d *daemon, s *sa, dir xfrm.Direction, seq uint64) {
	if d.p.sas[s.SPIIn] == s {
		r.life(d.h).numbers(s, dir, seq)
	}
	a := r.syncSet(d)
	if a == nil {
		return
	}
	what := "sends"
	if dir == xfrm.Inbound {
		what = "delivers"
	}
	if d.p.sas[s.SPIIn] != s {
		if _, held := a.spis[s.SPIIn]; held {
			r.w.violate(RuleGate, "%s %s #%d of Child SA %s, which has ended here; its entitled standby has not acknowledged that", d.h.name, what, seq, s.SPIIn)
		}
		return
	}
	if !a.ever[s.SPIIn] {
		r.w.violate(RuleGate, "%s %s #%d of Child SA %s, of which its entitled standby has acknowledged no record", d.h.name, what, seq, s.SPIIn)
		return
	}
	if dir == xfrm.Inbound && s.ReplayWindow == 0 {
		return
	}
	n, ok := a.bounds[boundOf{s.SPIIn, dir}]
	if !ok && dir == xfrm.Outbound {
		n = initialCeiling
	}
	if seq > n {
		r.w.violate(RuleGate, "%s %s #%d of Child SA %s; its entitled standby has acknowledged %d as the bound", d.h.name, what, seq, s.SPIIn, n)
	}
}
