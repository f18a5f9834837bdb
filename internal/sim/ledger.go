package sim

import (
	"encoding/binary"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

// ledger remembers every packet of a realm's tunnels that was sealed and every inner
// packet that was delivered, by whom.
type ledger struct {
	flows map[saID]*record
	list  []*record
}

// ivLedger has every explicit IV that was used, for ESP as for IKE.
type ivLedger map[ivKey]ivUse

// ivKey is an explicit IV under a key.
type ivKey struct {
	key uint64
	iv  uint64
}

type ivUse struct {
	what uint64 // hash of the plaintext and what is authenticated with it
	by   cluster.ProcessID
	who  string
	at   time.Duration
}

// saID names one direction of a Child SA: its SPI and its key.
type saID struct {
	spi ipsec.ESPSPI
	key uint64
}

// record is one direction of a Child SA, whoever holds it.
type record struct {
	id        saID
	ofCluster bool // the cluster is its sender
	maxSent   uint64
	sentBy    map[cluster.ProcessID]uint64
	got       map[uint64]cluster.ProcessID // delivered, by sequence number
	maxGot    uint64
	tainted   time.Duration // since when both sides of a split used it and one lost its memory; 0: no
	last      time.Duration // of use
	price     price
	to, was   netip.AddrPort // where the cluster last sent, and where before
}

func (l *ledger) init() {
	l.flows = map[saID]*record{}
}

func (l *ledger) record(spi ipsec.ESPSPI, key uint64) *record {
	id := saID{spi, key}
	r := l.flows[id]
	if r == nil {
		r = &record{id: id, sentBy: map[cluster.ProcessID]uint64{}, got: map[uint64]cluster.ProcessID{}}
		l.flows[id] = r
		l.list = append(l.list, r)
	}
	return r
}

// used notes an IV under a key.
func (l ivLedger) used(w *scene, key, iv, what uint64, by cluster.ProcessID, who string) {
	k := ivKey{key, iv}
	if u, ok := l[k]; ok {
		if u.what != what {
			w.violate(RuleNonce, "%s uses IV %016x for another plaintext than %s did at %v (sender ID %06x)", who, iv, u.who, u.at, iv>>40)
		}
		return
	}
	l[k] = ivUse{what, by, who, w.now}
}

// sealed notes a packet that d is about to send.
func (l *ledger) sealed(w *world, d *daemon, s *sa, x *sealed, iv [8]byte) {
	r := l.record(s.SPIOut, s.keyOut)
	r.last = w.now
	if s.Suite.Encr.AEAD() {
		w.ivs.used(&w.scene, r.id.key, binary.BigEndian.Uint64(iv[:]), x.inner.serial<<20^x.seq, d.process, d.h.name)
	}
	if own := r.sentBy[d.process]; x.seq <= own {
		w.violate(RuleSequence, "%s sends #%d after #%d on SPI %s", d.h.name, x.seq, own, x.spi)
	}
	if d.h.id != 0 {
		r.ofCluster = true
		rule := &d.h.realmOf(s.scope.id).rule
		if x.seq <= r.maxSent && !rule.excused(r) {
			w.violate(RuleSequence, "%s sends #%d on SPI %s, on which the cluster had sent #%d", d.h.name, x.seq, x.spi, r.maxSent)
		}
		x.apart = rule.excused(r)
		rule.sends(d, r)
		rule.uses(d, s, xfrm.Outbound, x.seq)
		rule.sendsTo(d, r, x.to, x.inner.flow.tunnel)
	}
	r.maxSent = max(r.maxSent, x.seq)
	r.sentBy[d.process] = x.seq
	w.mix("esp", uint64(x.spi), x.seq)
	if x.data != nil && containsMarker(x.data) {
		w.violate(RulePlaintext, "an inner packet is readable in SPI %s #%d", x.spi, x.seq)
	}
}

func containsMarker(b []byte) bool {
	for i := 0; i+16 <= len(b); i++ {
		if string(b[i:i+16]) == string(marker[:16]) {
			return true
		}
	}
	return false
}

// delivered notes an inner packet that d hands on.
func (l *ledger) delivered(w *world, d *daemon, s *sa, seq uint64, pkt *packet) {
	r := l.record(s.SPIIn, s.keyIn)
	r.last = w.now
	rule := &d.h.realmOf(s.scope.id).rule
	if by, ok := r.got[seq]; ok && s.ReplayWindow > 0 {
		if by == d.process || d.h.id == 0 || !rule.excused(r) {
			w.violate(RuleReplay, "%s delivers #%d of SPI %s, which was delivered before", d.h.name, seq, s.SPIIn)
		}
	}
	r.got[seq] = d.process
	r.maxGot = max(r.maxGot, seq)
	if d.h.id != 0 {
		r.price.count(w.now)
		rule.sends(d, r)
		rule.uses(d, s, xfrm.Inbound, seq)
	}
	dir := 0
	if pkt.toSite {
		dir = 1
	}
	pkt.flow.arrived[dir] = w.now
	pkt.flow.count[dir]++
	w.Result.Delivered++
	w.mix("deliver", pkt.serial, seq)
	pkt.flow.tunnel.carriedAt = w.now
}

// refused notes a packet that d did not open: hostile, a replay, or the price of a
// takeover.
func (l *ledger) refused(w *world, d *daemon, s *sa, x *sealed) {
	if d.h.id == 0 || x.forged {
		return
	}
	r := l.record(s.SPIIn, s.keyIn)
	if _, ok := r.got[x.seq]; !ok && x.key == s.keyIn {
		w.Result.Rejected++
		at, raised := x.inner.flow.tunnel.countersAnswered(d.h, s.skippedAt)
		if !d.p.left(s, x.seq, raised && x.at >= at && !x.apart) {
			d.h.realmOf(s.scope.id).rule.pays(d, s, r, x)
		}
	}
}
