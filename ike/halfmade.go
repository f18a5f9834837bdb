package ike

import (
	"crypto/hmac"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// halfMade is a new SA whose CREATE_CHILD_SA exchange is done and whose additional key
// exchanges are not (RFC 9370 §2.2.4). Its initiator has it in the exchange that is
// outstanding, its responder in a short list. All of it is in the record of its IKE SA.
type halfMade struct {
	kind    kind // kindCreateChild, kindRekeyChild or kindRekeyIKE
	suite   ipsec.Suite
	ni, nr  []byte
	secrets []ipsec.Key // SK(0), SK(1) …
	link    []byte      // what the next request must bring back

	// Of a Child SA.
	phase2          string
	spiIn, spiOut   ipsec.ESPSPI
	replaces        ipsec.ESPSPI
	tsLocal, tsPeer []ipsec.TrafficSelector

	spis ipsec.IKESPIs // of an IKE SA

	// Of the responder.
	keyID ipsec.KeyID
	since time.Time // the latest request for it
}

const (
	// maxHalfMade is how many of them a peer may have on one IKE SA. A peer goes on with one
	// after another, so there are more only when it has forgotten some.
	maxHalfMade = 4
	// halfMadeSpan is how long the peer may take to go on. RFC 9370 §2.2.4 thinks of 5 to 20 s;
	// it is also as long as a peer may be without an owner here.
	halfMadeSpan = 20 * time.Second
	linkLen      = 16  // bytes of our tokens
	maxLinkLen   = 512 // bytes of a peer's
)

func (h *halfMade) wipe() {
	for _, k := range h.secrets {
		k.Wipe()
	}
}

// next is the additional key exchange that comes next; KENone when all are done.
func (h *halfMade) next() ipsec.TransformID {
	if all := h.suite.AddKE.Methods(); len(h.secrets) <= len(all) {
		return all[len(h.secrets)-1]
	}
	return ipsec.KENone
}

// complete says that its last key exchange is done.
func (h *halfMade) complete() bool { return len(h.secrets) > len(h.suite.AddKE.Methods()) }

// keepHalf keeps what a peer has begun, and returns what it must be told. The oldest one
// goes if there are too many.
func (e *Engine) keepHalf(sa *ikeSA, h *halfMade) message.Payload {
	e.touch(sa)
	for i := 0; i < len(sa.half); i++ {
		if o := sa.half[i]; o.kind == h.kind && o.replaces == h.replaces && o.phase2 == h.phase2 {
			e.dropHalf(sa, o) // the peer begins anew
			i--
		}
	}
	if len(sa.half) >= maxHalfMade {
		e.dropHalf(sa, sa.half[0])
	}
	h.link, h.since = e.random(linkLen), e.now
	e.refKey(h.keyID)
	sa.half = append(sa.half, h)
	e.asking[sa.ownSPI()] = struct{}{}
	e.debug(sa, "waiting for FOLLOWUP_KE", slog.Int("group", int(h.next())))
	return notify(message.AdditionalKeyExchange, h.link)
}

// dropHalf forgets one, with its secrets.
func (e *Engine) dropHalf(sa *ikeSA, h *halfMade) {
	e.touch(sa)
	sa.half = slices.DeleteFunc(sa.half, func(o *halfMade) bool { return o == h })
	e.unrefKey(h.keyID)
	h.wipe()
}

// dropHalves forgets those that the peer has begun for a reason.
func (e *Engine) dropHalves(sa *ikeSA, which func(*halfMade) bool) {
	for _, h := range slices.Clone(sa.half) {
		if which(h) {
			e.dropHalf(sa, h)
		}
	}
}

// expireHalves forgets those with which the peer does not go on.
func (e *Engine) expireHalves(sa *ikeSA) {
	e.dropHalves(sa, func(h *halfMade) bool {
		late := !e.now.Before(h.since.Add(halfMadeSpan))
		if late {
			e.info(sa, "peer does not go on with the key exchanges of a new SA", slog.String("kind", h.kind.String()))
		}
		return late
	})
}

// halfRekey finds the rekey of the IKE SA that the peer has begun; nil: none.
func (sa *ikeSA) halfRekey() *halfMade {
	for _, h := range sa.half {
		if h.kind == kindRekeyIKE {
			return h
		}
	}
	return nil
}

// halfOf finds the successor of a Child SA that the peer has begun; nil: none.
func (sa *ikeSA) halfOf(spiIn ipsec.ESPSPI) *halfMade {
	for _, h := range sa.half {
		if h.kind == kindRekeyChild && h.replaces == spiIn {
			return h
		}
	}
	return nil
}

// halfLinked finds what a link token belongs to; nil: nothing.
func (sa *ikeSA) halfLinked(link []byte) *halfMade {
	for _, h := range sa.half {
		if hmac.Equal(h.link, link) {
			return h
		}
	}
	return nil
}

func (sa *ikeSA) halfPending(s ipsec.ESPSPI) bool {
	return slices.ContainsFunc(sa.half, func(h *halfMade) bool { return h.spiIn == s && h.kind != kindRekeyIKE })
}

func encodeHalf(h *halfMade, now time.Time) *syncpb.HalfMade {
	if h == nil {
		return nil
	}
	p := &syncpb.HalfMade{
		Kind: uint32(h.kind), Suite: encodeSuite(h.suite), NonceI: h.ni, NonceR: h.nr, Link: h.link, Phase2: h.phase2,
		SpiIn: uint32(h.spiIn), SpiOut: uint32(h.spiOut), Replaces: uint32(h.replaces),
		TsLocal: encodeSelectors(h.tsLocal), TsRemote: encodeSelectors(h.tsPeer),
		SpiI: uint64(h.spis.I), SpiR: uint64(h.spis.R), KeyId: uint64(h.keyID), RequestAge: age(now, h.since),
	}
	for _, k := range h.secrets {
		p.Secrets = append(p.Secrets, k.Bytes())
	}
	return p
}

func decodeHalf(p *syncpb.HalfMade, now time.Time) (*halfMade, error) {
	h := &halfMade{
		kind: kind(p.Kind), suite: decodeSuite(p.Suite), ni: p.NonceI, nr: p.NonceR, link: p.Link, phase2: p.Phase2,
		spiIn: ipsec.ESPSPI(p.SpiIn), spiOut: ipsec.ESPSPI(p.SpiOut), replaces: ipsec.ESPSPI(p.Replaces),
		tsLocal: decodeSelectors(p.TsLocal), tsPeer: decodeSelectors(p.TsRemote),
		spis:  ipsec.IKESPIs{I: ipsec.IKESPI(p.SpiI), R: ipsec.IKESPI(p.SpiR)},
		keyID: ipsec.KeyID(p.KeyId), since: unage(now, p.RequestAge),
	}
	if h.kind < kindCreateChild || h.kind > kindRekeyIKE {
		return nil, fmt.Errorf("half-made SA of kind %d", p.Kind)
	}
	if n := len(p.Secrets); n < 1 || n > len(h.suite.AddKE.Methods()) || len(h.link) > maxLinkLen {
		return nil, fmt.Errorf("half-made SA with %d of %d secrets", n, 1+len(h.suite.AddKE.Methods()))
	}
	for _, k := range p.Secrets {
		h.secrets = append(h.secrets, ipsec.NewKey(k))
	}
	return h, nil
}

func decodeHalves(in []*syncpb.HalfMade, now time.Time) (out []*halfMade, err error) {
	if len(in) > maxHalfMade {
		return nil, fmt.Errorf("%d half-made SAs", len(in))
	}
	for _, p := range in {
		h, err := decodeHalf(p, now)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}
