package sim

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// observer reads IKE messages on the wire with the keys from the key log, and checks
// the rules that RFC 7296 has for those who send them.
type observer struct {
	w       *world
	seed    maphash.Seed
	openers map[ipsec.IKESPIs]*ikeKeys
	known   map[uint64]*told // by hash of the message
	sides   map[sideID]*side
	fake    map[uint64]bool // messages that an attacker made
	keysHex []string        // what must never be read in a log
}

type ikeKeys struct {
	aead   bool
	name   [2]uint64         // the keys of the initiator's messages, of the responder's
	sealer [2]message.Opener // likewise
}

// told is what is known of a message.
type told struct {
	label    label // exchange; initiator says that it is a request
	text     string
	counters bool   // it asks for higher sequence numbers (RFC 6311)
	syncs    bool   // message IDs (RFC 6311)
	nonce    uint32 // of a message that does
	proposes uint32 // the next message ID of its sender, of a request that does

	part, parts uint16 // which fragment it is and of how many, from 1 on; 0: it is whole
}

// sideID is one end of an IKE SA as a requester.
type sideID struct {
	spis      ipsec.IKESPIs
	initiator bool // the original initiator requests
}

// side counts the exchanges that one end began.
type side struct {
	last     uint32
	any      bool
	synced   bool
	first    uint32            // its first request since message IDs were synchronised
	request  map[uint32]uint64 // hash by message ID
	response map[uint32]uint64
	exchange map[uint32]Exchange
	answered map[uint32]bool // the response reached somebody on the requester's side
	attempts map[uint32]int  // transmissions of the request
	lost     map[uint32]int  // of the request or of its response, by the network
	apart    map[uint32]bool // the request was first sent while there were two owners
	counters map[uint32]bool // the request asks for higher sequence numbers
	cut      fragments

	// Messages with which this end synchronises message IDs: its answers by nonce, and how
	// often a process asked.
	syncs map[uint32]uint64
	asks  struct {
		of    cluster.ProcessID
		times int
	}
}

func (o *observer) init(w *world) {
	o.w, o.seed = w, maphash.MakeSeed()
	o.openers, o.known, o.sides, o.fake = map[ipsec.IKESPIs]*ikeKeys{}, map[uint64]*told{}, map[sideID]*side{}, map[uint64]bool{}
}

// keys takes what a daemon writes to its key log.
func (o *observer) keys(k ike.KeyLog) {
	if o.openers[k.SPIs] == nil {
		// The engine wipes its keys when the IKE SA ends.
		x := &ikeKeys{aead: k.Suite.Encr.AEAD(), name: [2]uint64{keyName(k.Ei), keyName(k.Er)}}
		own := func(k ipsec.Key) ipsec.Key { return ipsec.NewKey(slices.Clone(k.Bytes())) }
		x.sealer[0], _ = keymat.NewOpener(k.Suite, own(k.Ei), own(k.Ai))
		x.sealer[1], _ = keymat.NewOpener(k.Suite, own(k.Er), own(k.Ar))
		o.openers[k.SPIs] = x
	}
	o.learnKey(k.Ei, k.Er, k.Ai, k.Ar)
}

// learnKey remembers what must never be read in a log. Half of a key is enough.
func (o *observer) learnKey(keys ...ipsec.Key) {
	if !o.w.s.Real {
		return
	}
	for _, k := range keys {
		if k.Len() >= 16 && len(o.keysHex) < 4096 {
			o.keysHex = append(o.keysHex, hex.EncodeToString(k.Bytes()[:8]))
		}
	}
}

func (o *observer) hash(b []byte) uint64 { return maphash.Bytes(o.seed, b) }

func (o *observer) forged(b []byte) { o.fake[o.hash(b)] = true }

func (o *observer) side(spis ipsec.IKESPIs, initiator bool) *side {
	id := sideID{spis, initiator}
	s := o.sides[id]
	if s == nil {
		s = &side{request: map[uint32]uint64{}, response: map[uint32]uint64{}, exchange: map[uint32]Exchange{}, answered: map[uint32]bool{}, attempts: map[uint32]int{}, lost: map[uint32]int{}, apart: map[uint32]bool{}, counters: map[uint32]bool{}}
		s.cut.init()
		o.sides[id] = s
	}
	return s
}

// read decodes a message once.
func (o *observer) read(b []byte) (*message.Message, *told) {
	m, err := message.Parse(b)
	if err != nil {
		return nil, nil
	}
	h := o.hash(b)
	if t := o.known[h]; t != nil {
		return m, t
	}
	t := &told{label: label{initiator: !m.Response}}
	kind := "response"
	if !m.Response {
		kind = "request"
	}
	requester := m.Initiator != m.Response
	switch m.Exchange {
	case message.IKESAInit:
		t.label.exchange = Init
	case message.IKEAuth:
		t.label.exchange = Auth
	case message.CreateChildSA, message.Informational:
		if m.Response {
			t.label.exchange = o.side(m.SPIs, requester).exchange[m.MessageID]
		} else {
			t.label.exchange, t.counters = o.inner(m, b)
		}
		if t.label.exchange == "" {
			t.label.exchange = Probe
		}
	}
	t.text = fmt.Sprintf("%s %s %d (%s)", m.Exchange, kind, m.MessageID, t.label.exchange)
	if f := fragment(m); f != nil {
		t.part, t.parts = f.Number, f.Total
		t.text += fmt.Sprintf(" %d/%d", t.part, t.parts)
	}
	if m.Exchange == message.Informational && m.MessageID == 0 {
		if c := o.open(m, b); c != nil {
			n, ok := c.Notify(message.MessageIDSync)
			if t.syncs = ok; ok && len(n.Data) == 12 {
				t.nonce = binary.BigEndian.Uint32(n.Data)
				if !m.Response {
					t.proposes = binary.BigEndian.Uint32(n.Data[4:])
				}
			}
		}
	}
	o.known[h] = t
	return m, t
}

// inner opens a request and says what it is about, and whether it synchronises replay
// counters.
func (o *observer) inner(m *message.Message, raw []byte) (_ Exchange, counters bool) {
	if f := fragment(m); f != nil {
		return o.innerPart(m, f, raw), false
	}
	c := o.open(m, raw)
	if c == nil {
		return "", false
	}
	_, counters = c.Notify(message.ReplayCounterSync)
	if m.Exchange == message.Informational {
		for _, p := range c.Payloads {
			if _, ok := p.(*message.Delete); ok {
				return Delete, counters
			}
		}
		return Probe, counters
	}
	if _, ok := c.Notify(message.RekeySA); ok {
		return RekeyChildX, counters
	}
	if p, ok := message.Get[*message.SA](c); ok && len(p.Proposals) > 0 && p.Proposals[0].Protocol == ipsec.ProtocolIKE {
		return RekeyIKEX, counters
	}
	return CreateChild, counters
}

// open decrypts a message; nil: the keys are not known.
func (o *observer) open(m *message.Message, raw []byte) *message.Message {
	k := o.openers[m.SPIs]
	if k == nil {
		return nil
	}
	dir := 1
	if m.Initiator {
		dir = 0
	}
	c := *m
	if k.sealer[dir] == nil || c.Open(raw, k.sealer[dir]) != nil {
		return nil
	}
	return &c
}

func (o *observer) describe(b []byte) string {
	if _, t := o.read(b); t != nil {
		return t.text
	}
	return "unreadable"
}

// label is what exchange a message belongs to, in its sender's role.
func (o *observer) label(x ike.Datagram) label {
	if _, t := o.read(x.Data); t != nil {
		return t.label
	}
	return label{}
}

// sent is a message that leaves a daemon.
func (o *observer) sent(d *daemon, x ike.Datagram) {
	m, t := o.read(x.Data)
	if m == nil {
		o.w.violate(RuleEffects, "%s sends a message that does not parse", d.h.name)
		return
	}
	o.check(d, m, t, x)
}

// received is a message that arrived at a daemon.
func (o *observer) received(d *daemon, x ike.Datagram) {
	if o.fake[o.hash(x.Data)] {
		return
	}
	m, t := o.read(x.Data)
	if m == nil {
		return
	}
	if s := o.side(m.SPIs, m.Initiator != m.Response); m.Response && s.cut.complete(d.process, m, t) {
		s.answered[m.MessageID] = true
	}
	if d.h.id != 0 {
		if r := o.w.realmAt(x.Local.Addr()); r != nil && r.pair == d.h.pair {
			d.h.of(r).life.hearsFrom(o.w.tunnelAt(d.h, x))
		}
	}
	d.takesPart(label{t.label.exchange, !t.label.initiator})
}

// onWire counts the transmissions of an exchange. A requester most of whose attempts
// the network lost, with the request or with its response, may give up (an attempt that
// comes while the answer to the one before is made is not answered apart); that excuses
// those at either end.
func (o *observer) onWire(raw []byte, t *tunnel, lost bool) {
	m, told := o.read(raw)
	if m == nil {
		return
	}
	s := o.side(m.SPIs, m.Initiator != m.Response)
	if !m.Response && told.part <= 1 {
		s.attempts[m.MessageID]++
	}
	if lost && s.loses(m.MessageID, told) {
		s.lost[m.MessageID]++
	}
	if s.mostlyLost(m.MessageID) {
		t.excuse(60 * time.Second)
	}
}

// mostlyLost says that the network lost most attempts of an exchange.
func (s *side) mostlyLost(id uint32) bool {
	n := s.attempts[id]
	return n >= 3 && 2*s.lost[id] >= n
}

// check is RFC 7296: one request at a time, retransmissions to the bit (§2.1), one
// response to a request, and no IV twice under SK keys.
func (o *observer) check(d *daemon, m *message.Message, t *told, x ike.Datagram) {
	w, raw := o.w, x.Data
	path := w.tunnelAt(d.h, x)
	h := o.hash(raw)
	requester := m.Initiator != m.Response
	s := o.side(m.SPIs, requester)
	if m.Exchange == message.IKESAInit {
		if !m.Response {
			w.saInit(d, path)
		}
		return // cookies and INVALID_KE_PAYLOAD change the request, and SPIs are not settled
	}
	if !protected(m) {
		return // an error to somebody unknown (RFC 7296 §2.21)
	}
	o.checkIV(d, m, raw)
	if t.syncs {
		o.synchronises(d, m, t, h, path)
		// These have an ID of their own, and what follows begins above all that was used
		for _, initiator := range []bool{true, false} {
			s := o.side(m.SPIs, initiator)
			s.any, s.synced = false, true
		}
		return
	}
	if path == nil {
		return // an answer to an attacker's address
	}
	split := path.apart(m.SPIs)
	if t.part > 1 {
		o.sentPart(d, m, t, h, split)
		return
	}
	if m.Response {
		if s.request[m.MessageID] == 0 {
			w.violate(RuleWindow, "%s answers %s, which nobody sent", d.h.name, t.text)
		}
		// Who answered in a split may have died alone, and so may who asked, if that is a pair.
		both := path.far != nil && s.apart[m.MessageID]
		if old, ok := s.response[m.MessageID]; ok && old != h && !split && !both {
			w.violate(RuleWindow, "%s: another answer than before: %s", d.h.name, t.text)
		}
		if s.counters[m.MessageID] && s.response[m.MessageID] != h {
			path.answersCounters(d.h)
		}
		s.response[m.MessageID] = h
		return
	}
	if old, ok := s.request[m.MessageID]; ok {
		// Of what one side of a split began, the other does not hear if that one dies alone.
		apart := s.apart[m.MessageID]
		if old != h && !split && !apart {
			w.violate(RuleWindow, "%s sends %s again with other bytes", d.h.name, t.text)
		}
		if path.split() || apart {
			path.splitIKE[m.SPIs] = path.splitIKE[m.SPIs] || old != h
		}
		s.request[m.MessageID], s.counters[m.MessageID] = h, t.counters
		return
	}
	// Those who came so far in a split may both be gone, if the peer is a pair.
	split = split || path.far != nil && s.apart[s.last]
	if s.any && m.MessageID != s.last+1 && !split {
		w.violate(RuleWindow, "%s sends %s after request %d", d.h.name, t.text, s.last)
	}
	if s.any && m.MessageID == s.last+1 && s.response[s.last] == 0 && !split {
		w.violate(RuleWindow, "%s sends %s although request %d was never answered", d.h.name, t.text, s.last)
	}
	if s.synced && !s.any {
		s.first = m.MessageID
	}
	s.last, s.any = max(s.last, m.MessageID), true
	s.request[m.MessageID], s.exchange[m.MessageID], s.counters[m.MessageID] = h, t.label.exchange, t.counters
	if path.split() {
		s.apart[m.MessageID] = true
	}
	if len(s.request) > 64 && m.MessageID > 64 {
		delete(s.request, m.MessageID-64)
		delete(s.response, m.MessageID-64)
		delete(s.exchange, m.MessageID-64)
		delete(s.answered, m.MessageID-64)
		delete(s.attempts, m.MessageID-64)
		delete(s.lost, m.MessageID-64)
		delete(s.apart, m.MessageID-64)
		delete(s.counters, m.MessageID-64)
	}
	switch t.label.exchange {
	case RekeyChildX:
		w.Result.ChildRekeys++
	case RekeyIKEX:
		w.Result.IKERekeys++
	}
}

func protected(m *message.Message) bool {
	if len(m.Payloads) == 0 {
		return false
	}
	_, ok := m.Payloads[len(m.Payloads)-1].(*message.Encrypted)
	return ok || fragment(m) != nil
}

func (o *observer) checkIV(d *daemon, m *message.Message, raw []byte) {
	k := o.openers[m.SPIs]
	if k == nil || !k.aead {
		return
	}
	for _, p := range m.Payloads {
		at := len(raw)
		switch p := p.(type) {
		case *message.Encrypted:
			at = p.Offset
		case *message.EncryptedFragment:
			at = p.Offset
		}
		if at+8 > len(raw) {
			continue
		}
		key := k.name[1]
		if m.Initiator {
			key = k.name[0]
		}
		o.w.ivs.used(&o.w.scene, key, binary.BigEndian.Uint64(raw[at:]), hash(string(raw)), d.process, d.h.name)
	}
}
