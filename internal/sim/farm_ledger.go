package sim

import (
	"encoding/binary"
	"fmt"

	"tandem/cluster"
	"tandem/ike"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// farmLedger remembers every packet that was sealed, every one that was delivered, and
// every IV, by whom.
type farmLedger struct {
	ivs     ivLedger
	records map[saID]*farmRecord
	list    []*farmRecord
	names   map[ipsec.IKESPIs][2]uint64 // keys of AEAD, of the initiator's messages and of the responder's
}

// farmRecord is one direction of a Child SA, whoever holds it.
type farmRecord struct {
	id      saID
	scope   cluster.ScopeID
	maxSent uint64
	gotBy   map[cluster.ProcessID]uint64 // the highest that each delivered
	sentBy  map[cluster.ProcessID]uint64
	got     map[uint64]cluster.ProcessID
	tainted bool // both sides of a split used it, and one lost its memory
}

func (l *farmLedger) init() {
	l.ivs, l.records, l.names = ivLedger{}, map[saID]*farmRecord{}, map[ipsec.IKESPIs][2]uint64{}
}

func (l *farmLedger) record(spi ipsec.ESPSPI, key uint64) *farmRecord {
	id := saID{spi, key}
	r := l.records[id]
	if r == nil {
		r = &farmRecord{id: id, sentBy: map[cluster.ProcessID]uint64{}, gotBy: map[cluster.ProcessID]uint64{}, got: map[uint64]cluster.ProcessID{}}
		l.records[id] = r
		l.list = append(l.list, r)
	}
	return r
}

// keys takes what a daemon writes to its key log.
func (l *farmLedger) keys(k ike.KeyLog) {
	if _, ok := l.names[k.SPIs]; !ok && k.Suite.Encr.AEAD() {
		l.names[k.SPIs] = [2]uint64{keyName(k.Ei), keyName(k.Er)}
	}
}

// ike notes an IKE message that leaves.
func (l *farmLedger) ike(w *farm, by cluster.ProcessID, who string, raw []byte) {
	m, err := message.Parse(raw)
	if err != nil {
		w.violate(RuleEffects, "%s sends a message that does not parse: %v", who, err)
		return
	}
	names, ok := l.names[m.SPIs]
	if !ok {
		return
	}
	for _, p := range m.Payloads {
		if sk, is := p.(*message.Encrypted); is && sk.Offset+8 <= len(raw) {
			key := names[1]
			if m.Initiator {
				key = names[0]
			}
			l.ivs.used(&w.scene, key, binary.BigEndian.Uint64(raw[sk.Offset:]), hash(string(raw)), by, who)
		}
	}
}

// describeIKE says what a message is, from outside.
func describeIKE(raw []byte) string {
	m, err := message.Parse(raw)
	if err != nil {
		return "unreadable"
	}
	kind := "request"
	if m.Response {
		kind = "response"
	}
	return fmt.Sprintf("%s %s %d of %s", m.Exchange, kind, m.MessageID, m.SPIs)
}

// sealed notes a packet that is about to leave.
func (l *farmLedger) sealed(w *farm, p *farmPlane, s *farmSA, x *farmESP, iv uint64) {
	r := l.record(s.SPIOut, s.keyOut)
	l.ivs.used(&w.scene, r.id.key, iv, x.inner.serial<<20^x.seq, p.process, p.who)
	if own := r.sentBy[p.process]; x.seq <= own {
		w.violate(RuleSequence, "%s sends #%d after #%d on SPI %s", p.who, x.seq, own, x.spi)
	}
	if p.ofCluster {
		r.scope = cluster.ScopeID(s.scope.id)
		if x.seq <= r.maxSent && !w.rule.excused(r) {
			w.violate(RuleSequence, "%s sends #%d on SPI %s of %v, on which the cluster had sent #%d", p.who, x.seq, x.spi, r.scope, r.maxSent)
		}
		w.rule.uses(p, s, r, xfrm.Outbound, x.seq)
	}
	r.maxSent = max(r.maxSent, x.seq)
	r.sentBy[p.process] = x.seq
	w.mix("esp", uint64(x.spi), x.seq)
}

// delivered notes an inner packet that is handed on.
func (l *farmLedger) delivered(w *farm, p *farmPlane, s *farmSA, seq uint64, pkt *farmPacket) {
	r := l.record(s.SPIIn, s.keyIn)
	if p.ofCluster {
		r.scope = cluster.ScopeID(s.scope.id)
	}
	if by, ok := r.got[seq]; ok && s.ReplayWindow > 0 && (by == p.process || !w.rule.excused(r)) {
		w.violate(RuleReplay, "%s delivers #%d of SPI %s, which process %x had delivered", p.who, seq, s.SPIIn, uint64(by)&0xffff)
	}
	r.got[seq], r.gotBy[p.process] = p.process, max(r.gotBy[p.process], seq)
	if p.ofCluster {
		w.rule.uses(p, s, r, xfrm.Inbound, seq)
	}
	dir := 0
	if pkt.toSite {
		dir = 1
	}
	pkt.client.arrived[dir] = w.now
	w.Result.Delivered++
	w.mix("deliver", pkt.serial, seq)
}

// refused notes a packet that was not opened: hostile, a replay, or the price of a takeover.
func (l *farmLedger) refused(w *farm, p *farmPlane, s *farmSA, x *farmESP) {
	if !p.ofCluster || x.key != s.keyIn {
		return
	}
	r := l.record(s.SPIIn, s.keyIn)
	if _, ok := r.got[x.seq]; ok {
		return
	}
	if s.waits(x.seq) {
		return
	}
	w.Result.Rejected++
	if !p.left(s, x.seq, x.seq > p.scene.skips[saID{s.SPIIn, s.keyIn}]) {
		w.rule.pays(p, s, x)
	}
}
