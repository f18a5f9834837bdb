package ike

import (
	"fmt"
	"slices"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// Negotiation of additional key exchanges (RFC 9370 §2.2.1): transform types ADDKE1 to
// ADDKE7 beside the key exchange itself.

// addKEs are the methods that are offered or allowed as each additional key exchange, best
// first. An empty list is one without that key exchange; KENone in a list makes it optional.
type addKEs [ipsec.MaxAddKE][]ipsec.TransformID

func addKEType(i int) ipsec.TransformType { return ipsec.TransformADDKE1 + ipsec.TransformType(i) }

// wanted says whether there is any.
func (a addKEs) wanted() bool {
	return slices.ContainsFunc(a[:], func(ids []ipsec.TransformID) bool { return len(ids) > 0 })
}

// optional says that a negotiation may do without any of them.
func (a addKEs) optional() bool {
	return !slices.ContainsFunc(a[:], func(ids []ipsec.TransformID) bool {
		return len(ids) > 0 && !slices.Contains(ids, ipsec.KENone)
	})
}

// offer adds them to proposals. Where they are optional the proposals without them follow:
// a peer that does not know these transform types takes none that has them (RFC 7296 §3.3.6).
func (a addKEs) offer(ps []ipsec.Proposal) []ipsec.Proposal {
	if !a.wanted() {
		return ps
	}
	var out []ipsec.Proposal
	for _, p := range ps {
		p.Transforms = slices.Clone(p.Transforms)
		for i, ids := range a {
			for _, id := range ids {
				p.Transforms = append(p.Transforms, ipsec.Transform{Type: addKEType(i), ID: id})
			}
		}
		out = append(out, p)
	}
	if a.optional() {
		out = append(out, ps...)
	}
	out = out[:min(len(out), maxOffered)]
	for i := range out {
		out[i].Number = uint8(i + 1)
	}
	return out
}

// choose picks the first of our methods for each additional key exchange that a proposal
// contains. All methods of one negotiation differ (RFC 9370 §2.2.1): ke is that of the key
// exchange itself, KENone where there is none, and then there are no others either.
func (a addKEs) choose(p ipsec.Proposal, ke ipsec.TransformID) (chosen ipsec.AddKE, ok bool) {
	var from func(i int, used []ipsec.TransformID) bool
	from = func(i int, used []ipsec.TransformID) bool {
		if i == len(a) {
			return true
		}
		ours := a[i]
		if len(ours) == 0 || ke == ipsec.KENone {
			ours = []ipsec.TransformID{ipsec.KENone}
		}
		for _, id := range ours {
			chosen[i] = id
			switch {
			case id == ipsec.KENone:
				if (count(p, addKEType(i)) == 0 || has(p, addKEType(i), id, 0)) && from(i+1, used) {
					return true
				}
			case !slices.Contains(used, id) && has(p, addKEType(i), id, 0) && from(i+1, append(used[:len(used):len(used)], id)):
				return true
			}
		}
		return false
	}
	return chosen, from(0, []ipsec.TransformID{ke})
}

// allow says whether additional key exchanges are such as might have been chosen.
func (a addKEs) allow(chosen ipsec.AddKE) bool {
	for i, id := range chosen {
		if !slices.Contains(a[i], id) && (id != ipsec.KENone || len(a[i]) > 0) {
			return false
		}
	}
	return true
}

// accept adds what was chosen to the proposal that we answer: one transform of each type
// that the offer has.
func accept(acc, offered ipsec.Proposal, chosen ipsec.AddKE) ipsec.Proposal {
	for i, id := range chosen {
		if count(offered, addKEType(i)) > 0 {
			acc.Transforms = append(acc.Transforms, ipsec.Transform{Type: addKEType(i), ID: id})
		}
	}
	return acc
}

// plain says that a responder's choice has at most one transform of each additional type.
func plain(p ipsec.Proposal) bool {
	for i := range ipsec.MaxAddKE {
		if count(p, addKEType(i)) > 1 {
			return false
		}
	}
	return true
}

// withoutIntermediate are the additional key exchanges with a peer that has not said
// INTERMEDIATE_EXCHANGE_SUPPORTED: those that are required cannot be met.
func (a addKEs) withoutIntermediate() addKEs {
	for i, ids := range a {
		if slices.Contains(ids, ipsec.KENone) {
			a[i] = nil
		}
	}
	return a
}

// addKEsWith are the additional key exchanges of a phase 1 for an IKE_SA_INIT request.
func addKEsWith(p1 *config.Phase1, m *message.Message) (a addKEs, ok bool) {
	a = p1.AddKE
	if _, can := m.Notify(message.IntermediateSupported); !can {
		a = a.withoutIntermediate()
		return a, !a.wanted()
	}
	return a, true
}

func encodeAddKE(a ipsec.AddKE) (out []uint32) {
	if a == (ipsec.AddKE{}) {
		return nil
	}
	for _, id := range a {
		out = append(out, uint32(id))
	}
	return out
}

func decodeAddKE(in []uint32) (a ipsec.AddKE) {
	for i := range min(len(in), len(a)) {
		a[i] = ipsec.TransformID(in[i])
	}
	return a
}

func encodeAddKEs(a addKEs) (out []*syncpb.Methods) {
	if !a.wanted() {
		return nil
	}
	for _, ids := range a {
		m := &syncpb.Methods{}
		for _, id := range ids {
			m.Ids = append(m.Ids, uint32(id))
		}
		out = append(out, m)
	}
	return out
}

func decodeAddKEs(in []*syncpb.Methods) (a addKEs, err error) {
	if len(in) > len(a) {
		return a, fmt.Errorf("%d additional key exchanges", len(in))
	}
	for i, m := range in {
		for _, id := range m.GetIds() {
			a[i] = append(a[i], ipsec.TransformID(id))
		}
	}
	return a, nil
}
