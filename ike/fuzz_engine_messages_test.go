package ike

import (
	"bytes"
	"encoding/binary"
	"slices"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// seal protects payloads as one side of an IKE SA.
func (s *storm) seal(h message.Header, ps []message.Payload, flip int) ([]byte, bool) {
	r, ok := s.rings[h.SPIs]
	if !ok {
		return nil, false
	}
	both, ok := s.sealers[h.SPIs]
	if !ok {
		for i, k := range [][2]ipsec.Key{{r.Ei, r.Ai}, {r.Er, r.Ar}} {
			x, err := keymat.NewSealer(r.Suite, k[0], k[1], ipsec.NewIVCounter(0xfffffe+uint32(i)), testRand(9))
			if err != nil {
				s.t.Fatal(err)
			}
			both[i] = x
		}
		s.sealers[h.SPIs] = both
	}
	sealer := both[0]
	if !h.Initiator {
		sealer = both[1]
	}
	m := &message.Message{Header: h, Payloads: ps}
	if flip == 0 {
		b, err := m.Seal(sealer)
		return b, err == nil
	}
	first, inner := message.EncodePayloads(ps)
	if len(inner) == 0 {
		return nil, false
	}
	inner[flip>>3%len(inner)] ^= 1 << (flip & 7)
	plain := append(inner, 0)
	if n := sealer.BlockLen(); len(plain)%n != 0 {
		pad := n - len(plain)%n
		plain = append(append(inner, make([]byte, pad)...), byte(pad))
	}
	m.Payloads = nil
	aad := append(m.Encode(), byte(first), 0, 0, 0)
	n := 4 + sealer.IVLen() + len(plain) + sealer.ICVLen()
	binary.BigEndian.PutUint16(aad[30:], uint16(n))
	aad[16] = byte(message.TypeSK)
	binary.BigEndian.PutUint32(aad[24:], uint32(message.HeaderLen+n))
	b, err := sealer.Seal(aad, plain)
	return b, err == nil
}

// open reads a message with the keys of its sender.
func (s *storm) open(d Datagram) (message.Header, []message.Payload, bool) {
	m, err := message.Parse(d.Data)
	if err != nil {
		return message.Header{}, nil, false
	}
	if n := len(m.Payloads); n == 0 || m.Payloads[n-1].Type() != message.TypeSK {
		return m.Header, m.Payloads, true
	}
	r, ok := s.rings[m.SPIs]
	if !ok {
		return m.Header, nil, false
	}
	key, auth := r.Ei, r.Ai
	if !m.Initiator {
		key, auth = r.Er, r.Ar
	}
	o, err := keymat.NewOpener(r.Suite, key, auth)
	if err != nil || m.Open(d.Data, o) != nil {
		return m.Header, nil, false
	}
	return m.Header, m.Payloads, true
}

// mutate changes a message that is under way.
func (s *storm) mutate(d Datagram, p *program) (Datagram, bool) {
	h, ps, ok := s.open(d)
	if !ok {
		return d, false
	}
	clear := h.Exchange == message.IKESAInit || s.rings[h.SPIs].Ei.Len() == 0
	s.history = append(s.history, slices.Clone(ps))
	ps = slices.Clone(ps)
	flip := 0
	for range 1 + p.below(3) {
		switch p.below(13) {
		case 0:
			if i := p.below(len(ps)); i < len(ps) {
				ps = slices.Delete(ps, i, i+1)
			}
		case 1:
			if i := p.below(len(ps)); i < len(ps) {
				ps = append(ps, ps[i])
			}
		case 2:
			if i, j := p.below(len(ps)), p.below(len(ps)); len(ps) > 0 {
				ps[i], ps[j] = ps[j], ps[i]
			}
		case 3, 4:
			ps = slices.Insert(ps, p.below(len(ps)+1), s.payload(p))
		case 5:
			if i := p.below(len(ps)); i < len(ps) {
				ps[i] = s.payload(p)
			}
		case 6:
			h.MessageID += uint32(int32(int8(p.next())))
		case 7:
			h.Exchange = message.ExchangeType(34 + p.below(12))
		case 8:
			h.Response = !h.Response
		case 9:
			flip = 1 + p.next() + p.next()<<8
		case 10:
			if n := len(s.order); n > 0 && !clear {
				h.SPIs = s.order[p.below(n)]
			}
		case 11:
			h.Initiator = !h.Initiator
		case 12:
			if n := len(s.history); n > 0 {
				ps = slices.Clone(s.history[p.below(n)])
			}
		}
	}
	if clear {
		m := &message.Message{Header: h, Payloads: ps}
		if d.Data = m.Encode(); d.Data != nil && flip > 0 {
			d.Data[flip>>3%len(d.Data)] ^= 1 << (flip & 7)
		}
		return d, d.Data != nil
	}
	d.Data, ok = s.seal(h, ps, flip)
	return d, ok
}

// forge makes a message of one of the sides that its engine never sent, as the next in the
// window or beside it.
func (s *storm) forge(p *program) (Datagram, bool) {
	from, to := s.a, s.b
	if p.next()&1 != 0 {
		from, to = to, from
	}
	sas := to.ike()
	if len(sas) == 0 {
		return Datagram{}, false
	}
	sa := sas[p.below(len(sas))]
	h := message.Header{SPIs: sa.spis, MajorVersion: 2, Initiator: !sa.initiator, MessageID: sa.nextRecv,
		Exchange: []message.ExchangeType{message.CreateChildSA, message.Informational, message.IKEAuth, message.FollowupKE, message.Intermediate}[p.below(5)]}
	if sa.req != nil && p.next()&1 != 0 {
		h.Response, h.MessageID, h.Exchange = true, sa.req.id, sa.req.exchangeType()
	}
	if n := p.next(); n > 240 {
		h.MessageID += uint32(n - 248)
	}
	var ps []message.Payload
	switch p.below(4) {
	case 0: // a Child SA
		ps = append(ps, &message.Notify{Protocol: ipsec.ProtocolESP, SPI: spiBytes(s.spi(p)), NotifyType: message.RekeySA})
		fallthrough
	case 1:
		suite := sa.suite
		suite.PRF, suite.KE = 0, 0
		ps = append(ps, &message.SA{Proposals: espProposals([]ipsec.Suite{suite}, nil, spiBytes(s.spi(p)))}, &message.Nonce{Data: make([]byte, 16+p.below(64))},
			&message.TS{Selectors: list(netA)}, &message.TS{Responder: true, Selectors: list(netB)})
	case 2: // an IKE SA
		suite := sa.suite
		suite.KE = 0
		ps = append(ps, &message.SA{Proposals: ikeProposals([]ipsec.Suite{suite}, groups(ipsec.KEX25519), []byte{1, 2, 3, 4, 5, 6, byte(p.next()), byte(p.next())})},
			&message.Nonce{Data: make([]byte, 32)}, &message.KE{Group: ipsec.KEX25519, Data: append([]byte{9}, make([]byte, 31)...)})
	}
	for range p.below(4) {
		ps = append(ps, s.payload(p))
	}
	d := Datagram{Local: sa.remote, Remote: sa.local, NonESP: sa.nonESP}
	var ok bool
	d.Data, ok = s.seal(h, ps, 0)
	return d, ok
}

// spi is one that somebody has, or nobody.
func (s *storm) spi(p *program) ipsec.ESPSPI {
	var all []ipsec.ESPSPI
	for _, x := range []*side{s.a, s.b} {
		all = append(all, x.order...)
	}
	if i := p.below(len(all) + 3); i < len(all) {
		return all[i]
	}
	return ipsec.ESPSPI(p.next())<<24 | ipsec.ESPSPI(p.next())
}

// payload is any that an authenticated peer might send.
func (s *storm) payload(p *program) message.Payload {
	switch p.below(16) {
	case 0:
		return &message.Delete{Protocol: ipsec.ProtocolIKE}
	case 1, 2:
		d := &message.Delete{Protocol: ipsec.ProtocolESP}
		for range p.below(5) {
			d.SPIs = append(d.SPIs, s.spi(p))
		}
		return d
	case 3:
		return &message.Notify{Protocol: ipsec.ProtocolESP, SPI: spiBytes(s.spi(p)), NotifyType: message.RekeySA}
	case 4:
		errs := []message.NotifyType{message.TemporaryFailure, message.StateNotFound, message.ChildSANotFound, message.NoAdditionalSAs, message.InvalidSyntax, message.AuthenticationFailed,
			message.NoProposalChosen, message.TSUnacceptable, message.SinglePairRequired, message.InvalidSPI, message.InvalidMessageID}
		return notify(errs[p.below(len(errs))], nil)
	case 5:
		return notify(message.InvalidKEPayload, []byte{0, byte(p.next())})
	case 6:
		for _, x := range []*side{s.a, s.b} { // a link token that somebody waits for
			for _, sa := range x.ike() {
				if len(sa.half) > 0 && p.next()&1 != 0 {
					return notify(message.AdditionalKeyExchange, sa.half[0].link)
				}
			}
		}
		return notify(message.NotifyType(16384+p.below(60)), make([]byte, p.below(40)))
	case 7:
		return midValues{nonce: uint32(p.next()), send: uint32(p.next()), recv: uint32(p.next())}.payload()
	case 8:
		return notify(message.ReplayCounterSync, binary.BigEndian.AppendUint32(nil, uint32(p.next())<<20))
	case 9:
		return &message.SA{Proposals: espProposals([]ipsec.Suite{esp(gcm128), esp(cbc128sha256)}, groups(ipsec.KEX25519), spiBytes(s.spi(p)))}
	case 10:
		return &message.SA{Proposals: ikeProposals([]ipsec.Suite{gcm128, cbc128sha256}, groups(ipsec.KEX25519), make([]byte, 8))}
	case 11:
		k := &message.KE{Group: ipsec.TransformID(p.below(40)), Data: make([]byte, p.below(70))}
		if n := map[ipsec.TransformID]int{mlkem768: 1184, mlkem1024: 1568}[k.Group]; n > 0 && len(k.Data) > 20 {
			k.Data = make([]byte, n)
		}
		return k
	case 12:
		n := &message.Nonce{Data: bytes.Repeat([]byte{byte(p.next())}, 16+p.below(241))}
		return n
	case 13:
		return &message.TS{Responder: p.next()&1 != 0, Selectors: [][]ipsec.TrafficSelector{nil, list(netA), list(netB), list("0.0.0.0/0"), list("::/0", netA)}[p.below(5)]}
	case 14:
		return &message.ID{Responder: p.next()&1 != 0, IDType: message.IDType(p.below(13)), Data: []byte{192, 0, 2, byte(p.next())}}
	}
	return &message.Unknown{PayloadType: message.PayloadType(128 + p.below(100))}
}
