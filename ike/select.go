package ike

import (
	"slices"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// prfOf fills the PRF of a suite whose proposal names a hash for both purposes.
func prfOf(s ipsec.Suite) ipsec.Suite {
	if s.PRF == 0 {
		s.PRF = map[ipsec.TransformID]ipsec.TransformID{
			ipsec.INTEGHMACSHA1_96: ipsec.PRFHMACSHA1, ipsec.INTEGHMACSHA256_128: ipsec.PRFHMACSHA256,
			ipsec.INTEGHMACSHA384_192: ipsec.PRFHMACSHA384, ipsec.INTEGHMACSHA512_256: ipsec.PRFHMACSHA512,
		}[s.Integ]
	}
	return s
}

func ikeSuites(p1 *config.Phase1) []ipsec.Suite {
	out := make([]ipsec.Suite, len(p1.Proposals))
	for i, s := range p1.Proposals {
		out[i] = prfOf(s)
	}
	return out
}

// maxOffered is what one SA payload of ours holds (message.MaxProposals).
const maxOffered = message.MaxProposals

// ikeProposals offers suites with key exchange groups (RFC 7296 §3.3); spi is set
// when an IKE SA is rekeyed.
func ikeProposals(suites []ipsec.Suite, groups []ipsec.TransformID, spi []byte) []ipsec.Proposal {
	var out []ipsec.Proposal
	for i, s := range suites {
		if i == maxOffered {
			break
		}
		p := ipsec.Proposal{Number: uint8(i + 1), Protocol: ipsec.ProtocolIKE, SPI: spi}
		p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformENCR, ID: s.Encr, KeyBits: keyBits(s)})
		if !s.Encr.AEAD() {
			p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformINTEG, ID: s.Integ})
		}
		p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformPRF, ID: s.PRF})
		for _, g := range groups {
			p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformKE, ID: g})
		}
		out = append(out, p)
	}
	return out
}

// espProposals offers suites of a Child SA; groups is empty where the exchange
// has no key exchange of its own.
func espProposals(suites []ipsec.Suite, groups []ipsec.TransformID, spi []byte) []ipsec.Proposal {
	var out []ipsec.Proposal
	for i, s := range suites {
		if i == maxOffered {
			break
		}
		p := ipsec.Proposal{Number: uint8(i + 1), Protocol: ipsec.ProtocolESP, SPI: spi}
		p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformENCR, ID: s.Encr, KeyBits: keyBits(s)})
		if !s.Encr.AEAD() && s.Integ != ipsec.INTEGNone {
			p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformINTEG, ID: s.Integ})
		}
		for _, g := range groups {
			p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformKE, ID: g})
		}
		p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformESN, ID: esn(s.ESN)})
		out = append(out, p)
	}
	return out
}

// keyBits is the Key Length attribute, absent with fixed-length ciphers (RFC 7296 §3.3.5).
func keyBits(s ipsec.Suite) uint16 {
	switch s.Encr {
	case ipsec.ENCR3DES, ipsec.ENCRNULL, ipsec.ENCRChaCha20Poly1305:
		return 0
	}
	return s.KeyBits
}

func esn(on bool) ipsec.TransformID {
	if on {
		return ipsec.ESNYes
	}
	return ipsec.ESNNo
}

// choice is the outcome of proposal selection.
type choice struct {
	suite    ipsec.Suite // with KE
	accepted ipsec.Proposal
	peerSPI  []byte
}

// selectIKE picks the first of our suites that a proposal of the peer contains,
// with the group of its KE payload if we allow it, else our first common one.
func selectIKE(offered []ipsec.Proposal, suites []ipsec.Suite, groups []ipsec.TransformID, ke ipsec.TransformID, add addKEs) (choice, bool) {
	for _, s := range suites {
		for _, p := range offered {
			if p.Protocol != ipsec.ProtocolIKE || !onlyTypes(p, ipsec.TransformENCR, ipsec.TransformPRF, ipsec.TransformINTEG, ipsec.TransformKE) {
				continue
			}
			if !has(p, ipsec.TransformENCR, s.Encr, keyBits(s)) || !has(p, ipsec.TransformPRF, s.PRF, 0) || !integOK(p, s) {
				continue
			}
			g, ok := selectGroup(p, groups, ke)
			if !ok {
				continue
			}
			more, ok := add.choose(p, g)
			if !ok {
				continue
			}
			s.KE, s.AddKE = g, more
			acc := accept(ikeProposals([]ipsec.Suite{s}, []ipsec.TransformID{g}, nil)[0], p, more)
			acc.Number = p.Number
			return choice{s, acc, p.SPI}, true
		}
	}
	return choice{}, false
}

// selectESP does the same for a Child SA. Without groups there is no key exchange:
// in IKE_AUTH (first) the peer's groups do not matter, else it must offer none
// or leave it open.
func selectESP(offered []ipsec.Proposal, suites []ipsec.Suite, groups []ipsec.TransformID, ke ipsec.TransformID, add addKEs, first bool) (choice, bool) {
	for _, s := range suites {
		for _, p := range offered {
			if p.Protocol != ipsec.ProtocolESP || len(p.SPI) != 4 || espSPI(p.SPI) <= lastReservedSPI ||
				!onlyTypes(p, ipsec.TransformENCR, ipsec.TransformINTEG, ipsec.TransformKE, ipsec.TransformESN) {
				continue
			}
			if !has(p, ipsec.TransformENCR, s.Encr, keyBits(s)) || !integOK(p, s) || !esnOK(p, s.ESN) {
				continue
			}
			s.KE = ipsec.KENone
			var use []ipsec.TransformID
			switch {
			case len(groups) > 0 && !first:
				g, ok := selectGroup(p, groups, ke)
				if !ok {
					continue
				}
				s.KE, use = g, []ipsec.TransformID{g}
			case !first && count(p, ipsec.TransformKE) > 0 && !has(p, ipsec.TransformKE, ipsec.KENone, 0):
				continue
			}
			var more ipsec.AddKE
			if !first {
				var ok bool
				if more, ok = add.choose(p, s.KE); !ok {
					continue
				}
			}
			s.AddKE = more
			acc := espProposals([]ipsec.Suite{s}, use, nil)[0]
			if count(p, ipsec.TransformESN) == 0 {
				acc.Transforms = slices.DeleteFunc(acc.Transforms, func(t ipsec.Transform) bool { return t.Type == ipsec.TransformESN })
			}
			if !first {
				acc = accept(acc, p, more)
			}
			acc.Number = p.Number
			return choice{s, acc, p.SPI}, true
		}
	}
	return choice{}, false
}

// lastReservedSPI: no SA has an SPI up to here (RFC 4303 §2.1).
const lastReservedSPI = 255

func selectGroup(p ipsec.Proposal, groups []ipsec.TransformID, ke ipsec.TransformID) (ipsec.TransformID, bool) {
	if slices.Contains(groups, ke) && has(p, ipsec.TransformKE, ke, 0) {
		return ke, true
	}
	for _, g := range groups {
		if has(p, ipsec.TransformKE, g, 0) {
			return g, true
		}
	}
	return 0, false
}

func has(p ipsec.Proposal, t ipsec.TransformType, id ipsec.TransformID, bits uint16) bool {
	return slices.Contains(p.Transforms, ipsec.Transform{Type: t, ID: id, KeyBits: bits})
}

func count(p ipsec.Proposal, t ipsec.TransformType) int {
	n := 0
	for _, x := range p.Transforms {
		if x.Type == t {
			n++
		}
	}
	return n
}

// onlyTypes refuses a proposal with a transform type that we do not know (RFC 7296 §3.3.6).
func onlyTypes(p ipsec.Proposal, types ...ipsec.TransformType) bool {
	return !slices.ContainsFunc(p.Transforms, func(x ipsec.Transform) bool {
		return !slices.Contains(types, x.Type) && (x.Type < ipsec.TransformADDKE1 || x.Type > ipsec.TransformADDKE7)
	})
}

func integOK(p ipsec.Proposal, s ipsec.Suite) bool {
	if s.Encr.AEAD() || s.Integ == ipsec.INTEGNone {
		return count(p, ipsec.TransformINTEG) == 0 || has(p, ipsec.TransformINTEG, ipsec.INTEGNone, 0)
	}
	return has(p, ipsec.TransformINTEG, s.Integ, 0)
}

// esnOK takes a proposal without the transform as one without ESN, as some old
// implementations send it.
func esnOK(p ipsec.Proposal, on bool) bool {
	return has(p, ipsec.TransformESN, esn(on), 0) || !on && count(p, ipsec.TransformESN) == 0
}

// acceptedIKE checks a responder's choice against what we offered.
func acceptedIKE(sa *message.SA, suites []ipsec.Suite, group ipsec.TransformID, add addKEs) (choice, bool) {
	if len(sa.Proposals) != 1 || !plain(sa.Proposals[0]) {
		return choice{}, false
	}
	return selectIKE(sa.Proposals, suites, []ipsec.TransformID{group}, group, add)
}

func acceptedESP(sa *message.SA, suites []ipsec.Suite, group ipsec.TransformID, add addKEs) (choice, bool) {
	if len(sa.Proposals) != 1 || !plain(sa.Proposals[0]) {
		return choice{}, false
	}
	var groups []ipsec.TransformID
	if group != ipsec.KENone {
		groups = []ipsec.TransformID{group}
	}
	return selectESP(sa.Proposals, suites, groups, group, add, false)
}

// narrow intersects what the peer proposes with what we allow (RFC 7296 §2.9).
func narrow(offered, ours []ipsec.TrafficSelector) []ipsec.TrafficSelector {
	var out []ipsec.TrafficSelector
	for _, o := range offered {
		for _, u := range ours {
			x, ok := o.Intersect(u)
			if !ok || slices.ContainsFunc(out, func(y ipsec.TrafficSelector) bool { return covers(y, x) }) {
				continue
			}
			out = slices.DeleteFunc(out, func(y ipsec.TrafficSelector) bool { return covers(x, y) })
			if len(out) < maxSelectors {
				out = append(out, x)
			}
		}
	}
	return out
}

// maxSelectors bounds the selectors of one Child SA and direction.
const maxSelectors = 64

// covers says that b lies wholly in a.
func covers(a, b ipsec.TrafficSelector) bool {
	x, ok := a.Intersect(b)
	return ok && x == b
}

func allCovered(by, ts []ipsec.TrafficSelector) bool {
	return !slices.ContainsFunc(ts, func(t ipsec.TrafficSelector) bool {
		return !slices.ContainsFunc(by, func(b ipsec.TrafficSelector) bool { return covers(b, t) })
	})
}

// tsMatch is a phase 2 entry and the selectors that it shares with an offer.
type tsMatch struct {
	p2            *config.Phase2
	local, remote []ipsec.TrafficSelector
	rule          string
}

// matchSelectors finds the phase 2 entry for a peer's selectors: one with exactly
// these, else one that contains them, else the first that shares any traffic.
func matchSelectors(p2s []*config.Phase2, remote, local []ipsec.TrafficSelector) (tsMatch, bool) {
	best, bestRank := tsMatch{}, 0
	for _, p2 := range p2s {
		m := tsMatch{p2: p2, local: narrow(local, p2.Src), remote: narrow(remote, p2.Dst)}
		if len(m.local) == 0 || len(m.remote) == 0 {
			continue
		}
		rank := 1
		m.rule = "narrowed"
		if allCovered(p2.Src, local) && allCovered(p2.Dst, remote) {
			rank, m.rule = 2, "subset"
			if allCovered(local, p2.Src) && allCovered(remote, p2.Dst) {
				rank = 3
			}
		}
		if rank > bestRank {
			best, bestRank = m, rank
		}
	}
	return best, bestRank > 0
}
