package ike

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// entry is the record of an IKE SA as it stands.
func (e *Engine) entry(sa *ikeSA) Entry {
	out := Entry{SPIs: sa.spis}
	add := func(id ipsec.KeyID) {
		if id == 0 {
			return
		}
		for _, k := range out.KeyIDs {
			if k == id {
				return
			}
		}
		out.KeyIDs = append(out.KeyIDs, id)
	}
	add(sa.keyID)
	if sa.req != nil {
		add(sa.req.keyID)
	}
	for _, h := range sa.half {
		add(h.keyID)
	}
	for _, c := range sa.children {
		add(c.KeyID)
		out.ChildSPIs = append(out.ChildSPIs, c.SPIIn)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(e.encode(sa))
	if err != nil {
		panic("ike: record does not encode: " + err.Error()) // only invalid UTF-8 in a name can do that
	}
	out.Value = b
	return out
}

func age(now, t time.Time) int64 {
	if t.IsZero() {
		return -1
	}
	return now.Sub(t).Microseconds()
}

func unage(now time.Time, us int64) time.Time {
	if us < 0 {
		return time.Time{}
	}
	return now.Add(-time.Duration(us) * time.Microsecond)
}

func span(us int64) time.Duration { return time.Duration(us) * time.Microsecond }

func (e *Engine) encode(sa *ikeSA) *syncpb.IKESA {
	now := e.now
	p := &syncpb.IKESA{
		SpiI: uint64(sa.spis.I), SpiR: uint64(sa.spis.R), Initiator: sa.initiator,
		Phase1: sa.phase1, State: uint32(sa.state), Suite: encodeSuite(sa.suite),
		Keys:  encodeKeys(sa.keys),
		KeyId: uint64(sa.keyID), NextSend: sa.nextSend, NextRecv: sa.nextRecv,
		LastResponse: sa.lastResponse, LastRequest: sa.lastRequest,
		InitRequest: sa.initRequest, InitResponse: sa.initResponse, NonceI: sa.nonceI, NonceR: sa.nonceR,
		PeerIdType: uint32(sa.peerID.kind), PeerId: []byte(sa.peerID.data),
		OwnIdType: uint32(sa.ownID.kind), OwnId: []byte(sa.ownID.data),
		Local: encodeEndpoint(sa.local), Remote: encodeEndpoint(sa.remote), NonEsp: sa.nonESP, Tcp: sa.tcp,
		NatHere: sa.natHere, NatThere: sa.natThere, UdpEncap: sa.udpEncap, VendorIds: sa.vendorIDs,
		CreatedAge: age(now, sa.created), EstablishedAge: age(now, sa.established), Took: sa.took.Microseconds(),
		Soft: sa.soft.Microseconds(), Hard: sa.hard.Microseconds(),
		OwedDeletes: encodeSPIs(sa.owed), Closing: sa.closing,
		SuccessorI: uint64(sa.successor.I), SuccessorR: uint64(sa.successor.R), AwaitsDelete: sa.awaitsDelete,
		LowestNonce: sa.lowestNonce, DeletedChildren: encodeSPIs(sa.deletedChildren), ChildrenSeq: sa.childrenSeq,
		DpdSent: sa.dpdSent, DpdRecv: sa.dpdRecv,
		Moves: sa.moves, MovedTo: sa.movedTo, Adopted: sa.adopted, Rekey: sa.rekeyNow, InitialContact: sa.initialContact,
		Capabilities: sa.caps, SyncWanted: sa.sync.wanted, SyncProposed: sa.sync.proposed, SyncSeen: sa.sync.seen,
		PeerAddress: sa.peerAddr.AsSlice(), PeerAuth: sa.peerAuth.encode(),
		Mobility: encodeMobility(sa.mob),
		Assigned: encodeAssigned(sa.assigned), Intermediate: sa.inter.encode(), Followed: sa.followed,
		Eap:              sa.eap.encode(),
		AuthenticatedAge: age(now, sa.auth.since), AuthSoft: sa.auth.soft.Microseconds(), AuthHard: sa.auth.hard.Microseconds(),
		RedirectTo: sa.redirection().to.AsSlice(), RedirectedFrom: sa.redirection().from.AsSlice(),
		PeerToken: sa.peerToken, TokenDue: sa.tokenDue,
		ReplacesI: uint64(sa.replaces.I), ReplacesR: uint64(sa.replaces.R),
	}
	if t := sa.tunnel; t != nil {
		p.Tunnel, p.Index, p.Dialup = t.name, uint32(t.index), t.dialup
	}
	if sa.req != nil {
		p.Outstanding = encodeExchange(sa.req, now)
	}
	for _, h := range sa.half {
		p.HalfMade = append(p.HalfMade, encodeHalf(h, now))
	}
	for _, c := range sa.children {
		p.Children = append(p.Children, encodeChild(c, now))
	}
	return p
}

// decode reads a record. Nothing of it is trusted beyond what its sender could do anyway.
func (e *Engine) decode(value []byte) (*ikeSA, error) {
	var p syncpb.IKESA
	if err := proto.Unmarshal(value, &p); err != nil {
		return nil, err
	}
	now := e.now
	sa := &ikeSA{
		spis:      ipsec.IKESPIs{I: ipsec.IKESPI(p.SpiI), R: ipsec.IKESPI(p.SpiR)},
		initiator: p.Initiator, state: state(p.State), phase1: p.Phase1, suite: decodeSuite(p.Suite),
		keyID: ipsec.KeyID(p.KeyId), nextSend: p.NextSend, nextRecv: p.NextRecv,
		lastResponse: p.LastResponse, lastRequest: p.LastRequest,
		initRequest: p.InitRequest, initResponse: p.InitResponse, nonceI: p.NonceI, nonceR: p.NonceR,
		peerID: identity{message.IDType(p.PeerIdType), string(p.PeerId)},
		ownID:  identity{message.IDType(p.OwnIdType), string(p.OwnId)},
		local:  decodeEndpoint(p.Local), remote: decodeEndpoint(p.Remote), nonESP: p.NonEsp, tcp: p.Tcp,
		natHere: p.NatHere, natThere: p.NatThere, udpEncap: p.UdpEncap, vendorIDs: p.VendorIds,
		created: unage(now, p.CreatedAge), established: unage(now, p.EstablishedAge), took: span(p.Took),
		soft: span(p.Soft), hard: span(p.Hard), owed: decodeSPIs(p.OwedDeletes), closing: p.Closing,
		successor:    ipsec.IKESPIs{I: ipsec.IKESPI(p.SuccessorI), R: ipsec.IKESPI(p.SuccessorR)},
		awaitsDelete: p.AwaitsDelete, lowestNonce: p.LowestNonce,
		deletedChildren: decodeSPIs(p.DeletedChildren), childrenSeq: p.ChildrenSeq,
		dpdSent: p.DpdSent, dpdRecv: p.DpdRecv, lastIn: now, ticket: 0,
		moves: p.Moves, movedTo: p.MovedTo, adopted: p.Adopted, rekeyNow: p.Rekey, initialContact: p.InitialContact,
		caps: p.Capabilities, copied: true, sync: midSync{wanted: p.SyncWanted, proposed: p.SyncProposed, seen: p.SyncSeen},
	}
	sa.peerAddr, _ = netip.AddrFromSlice(p.PeerAddress)
	sa.peerAuth = decodePeerAuth(p.PeerAuth)
	sa.mob = decodeMobility(p.Mobility)
	sa.assigned = decodeAssigned(p.Assigned)
	sa.eap = decodeEAPState(p.Eap)
	sa.auth = authSpan{since: unage(now, p.AuthenticatedAge), soft: span(p.AuthSoft), hard: span(p.AuthHard)}
	var r redirection
	r.to, _ = netip.AddrFromSlice(p.RedirectTo)
	r.from, _ = netip.AddrFromSlice(p.RedirectedFrom)
	sa.setRedirection(r)
	sa.peerToken, sa.tokenDue = p.PeerToken, p.TokenDue
	sa.replaces = ipsec.IKESPIs{I: ipsec.IKESPI(p.ReplacesI), R: ipsec.IKESPI(p.ReplacesR)}
	sa.keys, sa.followed = decodeKeys(p.Keys), p.Followed
	var err error
	if sa.inter, err = decodeIntermediate(p.Intermediate); err != nil {
		return nil, fmt.Errorf("record of IKE SA %s: %w", sa.spis, err)
	}
	if sa.half, err = decodeHalves(p.HalfMade, now); err != nil {
		return nil, fmt.Errorf("record of IKE SA %s: %w", sa.spis, err)
	}
	if sa.state < stateInitSent || sa.state >= stateGone || sa.ownSPI() == 0 {
		return nil, fmt.Errorf("record of IKE SA %s in state %d", sa.spis, p.State)
	}
	if !sa.local.IsValid() || !sa.remote.IsValid() {
		return nil, fmt.Errorf("record of IKE SA %s without addresses", sa.spis)
	}
	sa.p1 = e.phase1(sa.phase1)
	switch {
	case p.Tunnel == "":
	case p.MovedTo != 0:
		sa.tunnel = &tunnel{name: p.Tunnel, phase1: p.Phase1, dialup: p.Dialup, index: int(p.Index)}
	default:
		sa.tunnel = e.tunnelOf(p.Tunnel, p.Phase1, p.Dialup, int(p.Index))
	}
	if p.Outstanding != nil {
		x, err := decodeExchange(p.Outstanding, now)
		if err != nil {
			return nil, fmt.Errorf("record of IKE SA %s: %w", sa.spis, err)
		}
		sa.req = x
	}
	for _, q := range p.Children {
		c := decodeChild(q, now)
		c.ike, c.p2 = sa, e.phase2(sa.phase1, q.Phase2)
		c.Tunnel, c.Phase1 = sa.name(), sa.phase1
		at := sa.espPath()
		c.Local, c.Remote, c.UDPEncap, c.TCP = at.local, at.remote, at.udpEncap, at.tcp
		sa.children = append(sa.children, c)
	}
	return sa, nil
}

func encodeKeys(k keymat.IKEKeys) *syncpb.IKEKeys {
	return &syncpb.IKEKeys{D: k.D.Bytes(), Ai: k.Ai.Bytes(), Ar: k.Ar.Bytes(), Ei: k.Ei.Bytes(), Er: k.Er.Bytes(), Pi: k.Pi.Bytes(), Pr: k.Pr.Bytes()}
}

func decodeKeys(k *syncpb.IKEKeys) keymat.IKEKeys {
	return keymat.IKEKeys{D: ipsec.NewKey(k.GetD()), Ai: ipsec.NewKey(k.GetAi()), Ar: ipsec.NewKey(k.GetAr()),
		Ei: ipsec.NewKey(k.GetEi()), Er: ipsec.NewKey(k.GetEr()), Pi: ipsec.NewKey(k.GetPi()), Pr: ipsec.NewKey(k.GetPr())}
}

func encodeExchange(x *exchange, now time.Time) *syncpb.Exchange {
	p := &syncpb.Exchange{
		Kind: uint32(x.kind), Id: x.id, Data: x.data, Attempts: uint32(x.attempts), Age: age(now, x.first),
		Nonce: x.nonce, KeyId: uint64(x.keyID), Phase2: x.phase2, SpiIn: uint32(x.spiIn), Rekeyed: uint32(x.rekeyed),
		NewSpi: uint64(x.newSPI), TsLocal: encodeSelectors(x.tsL), TsRemote: encodeSelectors(x.tsR),
		Deletes: encodeSPIs(x.deletes), Retries: uint32(x.retries), Cookies: uint32(x.cookies), Cookie: x.cookie,
		Collided: x.collided, CollidedNonce: x.collidedNonce, CollidedChild: uint32(x.collidedChild),
		CollidedI: uint64(x.collidedIKE.I), CollidedR: uint64(x.collidedIKE.R), DeletedOut: encodeSPIs(x.deletedOutward),
		Contested: x.contested, AddKe: encodeAddKEs(x.add), FollowUp: uint32(x.followUp), HalfMade: encodeHalf(x.half, now),
	}
	switch x.kind { // to whoever does not know the others it is kindDPD
	case kindCounters:
		p.Kind = uint32(kindDPD)
	case kindUpdate, kindCheck:
		p.Kind, p.Mobility = uint32(kindDPD), uint32(x.kind)
	case kindIntermediate:
		p.Kind, p.Intermediate = uint32(kindDPD), uint32(x.kind)
	}
	for _, f := range x.floors {
		p.FloorSpis, p.Floors = append(p.FloorSpis, uint32(f.spiIn)), append(p.Floors, f.n)
	}
	if x.ke != nil {
		p.Group, p.KePrivate = uint32(x.ke.Group()), x.ke.Private().Bytes()
	}
	for _, s := range x.offered {
		p.Offered = append(p.Offered, encodeSuite(s))
	}
	for _, g := range x.groups {
		p.Groups = append(p.Groups, uint32(g))
	}
	return p
}

func decodeExchange(p *syncpb.Exchange, now time.Time) (*exchange, error) {
	x := &exchange{
		kind: kind(p.Kind), id: p.Id, data: p.Data, attempts: int(p.Attempts), first: unage(now, p.Age),
		nonce: p.Nonce, keyID: ipsec.KeyID(p.KeyId), phase2: p.Phase2, spiIn: ipsec.ESPSPI(p.SpiIn),
		rekeyed: ipsec.ESPSPI(p.Rekeyed), newSPI: ipsec.IKESPI(p.NewSpi), tsL: decodeSelectors(p.TsLocal),
		tsR: decodeSelectors(p.TsRemote), deletes: decodeSPIs(p.Deletes), retries: int(p.Retries),
		cookies: int(p.Cookies), cookie: p.Cookie, collided: p.Collided, collidedNonce: p.CollidedNonce,
		collidedChild:  ipsec.ESPSPI(p.CollidedChild),
		collidedIKE:    ipsec.IKESPIs{I: ipsec.IKESPI(p.CollidedI), R: ipsec.IKESPI(p.CollidedR)},
		deletedOutward: decodeSPIs(p.DeletedOut), contested: p.Contested,
	}
	if x.kind < kindInit || x.kind > kindDPD {
		return nil, fmt.Errorf("exchange of kind %d", p.Kind)
	}
	if len(p.FloorSpis) != len(p.Floors) {
		return nil, fmt.Errorf("exchange with %d floors of %d SAs", len(p.Floors), len(p.FloorSpis))
	}
	for i, spi := range p.FloorSpis {
		x.kind = kindCounters
		x.floors = append(x.floors, floor{ipsec.ESPSPI(spi), p.Floors[i]})
	}
	switch kind(p.Mobility) {
	case 0:
	case kindUpdate, kindCheck:
		x.kind = kind(p.Mobility)
	default:
		return nil, fmt.Errorf("exchange of kind %d about addresses", p.Mobility)
	}
	if p.Intermediate != 0 {
		x.kind = kindIntermediate
	}
	var err error
	if x.add, err = decodeAddKEs(p.AddKe); err != nil {
		return nil, err
	}
	if p.HalfMade != nil {
		if x.half, err = decodeHalf(p.HalfMade, now); err != nil {
			return nil, err
		}
		x.followUp = len(x.half.secrets)
	}
	if int(p.FollowUp) != x.followUp || x.half != nil && x.half.kind != x.kind {
		return nil, fmt.Errorf("follow-up %d of an exchange of kind %d without what it is for", p.FollowUp, p.Kind)
	}
	if len(p.KePrivate) > 0 {
		kx, err := keymat.RestoreKeyExchange(ipsec.TransformID(p.Group), ipsec.NewKey(p.KePrivate))
		if err != nil {
			return nil, err
		}
		x.ke = kx
	} else if x.kind == kindInit || x.kind == kindRekeyIKE || x.kind == kindIntermediate || x.followUp > 0 {
		return nil, fmt.Errorf("exchange of kind %d without key exchange", p.Kind)
	}
	for _, s := range p.Offered {
		x.offered = append(x.offered, decodeSuite(s))
	}
	for _, g := range p.Groups {
		x.groups = append(x.groups, ipsec.TransformID(g))
	}
	return x, nil
}

func encodeChild(c *childSA, now time.Time) *syncpb.ChildSA {
	return &syncpb.ChildSA{
		Phase2: c.Phase2, SpiIn: uint32(c.SPIIn), SpiOut: uint32(c.SPIOut), Suite: encodeSuite(c.Suite),
		KeyId: uint64(c.KeyID), EncrIn: c.EncrIn.Bytes(), SaltIn: c.SaltIn.Bytes(), IntegIn: c.IntegIn.Bytes(),
		EncrOut: c.EncrOut.Bytes(), SaltOut: c.SaltOut.Bytes(), IntegOut: c.IntegOut.Bytes(),
		ReplayWindow: c.ReplayWindow, TsLocal: encodeSelectors(c.TSLocal), TsRemote: encodeSelectors(c.TSRemote),
		State: uint32(c.state), Outbound: c.outbound, Initiator: c.initiator, Replaces: uint32(c.replaces),
		LowestNonce: c.lowestNonce, InstalledAge: age(now, c.installed), Soft: c.soft.Microseconds(),
		Hard: c.hard.Microseconds(), SoftBytes: c.softBytes, HardBytes: c.hardBytes, Seq: c.seq,
		OutSeq: c.outSeq, InSeq: c.inSeq, InAccepted: c.inAccepted, Rekey: c.rekeyNow, Doubtful: c.doubtful,
	}
}

func decodeChild(p *syncpb.ChildSA, now time.Time) *childSA {
	return &childSA{
		ChildSA: ipsec.ChildSA{
			Phase2: p.Phase2, SPIIn: ipsec.ESPSPI(p.SpiIn), SPIOut: ipsec.ESPSPI(p.SpiOut), Suite: decodeSuite(p.Suite),
			KeyID: ipsec.KeyID(p.KeyId), EncrIn: ipsec.NewKey(p.EncrIn), SaltIn: ipsec.NewKey(p.SaltIn),
			IntegIn: ipsec.NewKey(p.IntegIn), EncrOut: ipsec.NewKey(p.EncrOut), SaltOut: ipsec.NewKey(p.SaltOut),
			IntegOut: ipsec.NewKey(p.IntegOut), ReplayWindow: p.ReplayWindow,
			TSLocal: decodeSelectors(p.TsLocal), TSRemote: decodeSelectors(p.TsRemote),
		},
		state: childState(p.State), outbound: p.Outbound, initiator: p.Initiator, replaces: ipsec.ESPSPI(p.Replaces),
		lowestNonce: p.LowestNonce, installed: unage(now, p.InstalledAge), soft: span(p.Soft), hard: span(p.Hard),
		softBytes: p.SoftBytes, hardBytes: p.HardBytes, seq: p.Seq,
		outSeq: p.OutSeq, inSeq: p.InSeq, inAccepted: p.InAccepted, rekeyNow: p.Rekey, doubtful: p.Doubtful,
	}
}

func encodeSuite(s ipsec.Suite) *syncpb.Suite {
	return &syncpb.Suite{Encr: uint32(s.Encr), KeyBits: uint32(s.KeyBits), Prf: uint32(s.PRF),
		Integ: uint32(s.Integ), Ke: uint32(s.KE), Esn: s.ESN, AddKe: encodeAddKE(s.AddKE)}
}

func decodeSuite(p *syncpb.Suite) ipsec.Suite {
	return ipsec.Suite{Encr: ipsec.TransformID(p.GetEncr()), KeyBits: uint16(p.GetKeyBits()), PRF: ipsec.TransformID(p.GetPrf()),
		Integ: ipsec.TransformID(p.GetInteg()), KE: ipsec.TransformID(p.GetKe()), ESN: p.GetEsn(), AddKE: decodeAddKE(p.GetAddKe())}
}

func encodeEndpoint(a netip.AddrPort) *syncpb.Endpoint {
	return &syncpb.Endpoint{Address: a.Addr().AsSlice(), Port: uint32(a.Port())}
}

func decodeEndpoint(p *syncpb.Endpoint) netip.AddrPort {
	a, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, uint16(p.GetPort()))
}

func encodeSPIs(in []ipsec.ESPSPI) []uint32 {
	var out []uint32
	for _, s := range in {
		out = append(out, uint32(s))
	}
	return out
}

func decodeSPIs(in []uint32) []ipsec.ESPSPI {
	var out []ipsec.ESPSPI
	for _, s := range in {
		out = append(out, ipsec.ESPSPI(s))
	}
	return out
}

func encodeSelectors(in []ipsec.TrafficSelector) []*syncpb.Selector {
	var out []*syncpb.Selector
	for _, t := range in {
		out = append(out, &syncpb.Selector{Protocol: uint32(t.Protocol), StartPort: uint32(t.StartPort),
			EndPort: uint32(t.EndPort), Start: t.Start.AsSlice(), End: t.End.AsSlice()})
	}
	return out
}

func decodeSelectors(in []*syncpb.Selector) []ipsec.TrafficSelector {
	var out []ipsec.TrafficSelector
	for _, p := range in {
		a, ok1 := netip.AddrFromSlice(p.GetStart())
		b, ok2 := netip.AddrFromSlice(p.GetEnd())
		if ok1 && ok2 {
			out = append(out, ipsec.TrafficSelector{Protocol: uint8(p.GetProtocol()), StartPort: uint16(p.GetStartPort()),
				EndPort: uint16(p.GetEndPort()), Start: a, End: b})
		}
	}
	return out
}
