package ike

import (
	"slices"

	"tandem/ike/message"
	"tandem/internal/config"
)

// Bits of ikeSA.caps that IKE_SA_INIT negotiates, beside those of midsync.go. They are in
// records: append only.
const (
	capFragmentation uint32 = 1 << (8 + iota) // fragment.go
	capPPK                                    // ppk.go: both can use one
	capPPKUsed                                // and did
	capChildless                              // childless.go
	capIntermediate                           // intermediate.go
	capRedirect                               // redirect.go: the peer, who began, can be sent elsewhere
)

// initNotify is a capability that an empty notification in IKE_SA_INIT says.
type initNotify struct {
	cap    uint32
	notify message.NotifyType
	on     func(*config.Phase1) bool
	// unasked: only the responder says it, whether or not the initiator can.
	unasked bool
	// anyone: as responder, one entry that the peer may turn out to belong to is enough.
	anyone bool
}

var initNotifies = []initNotify{
	{cap: capFragmentation, notify: message.FragmentationSupported, on: func(p *config.Phase1) bool { return p.Fragmentation }},
	{cap: capPPK, notify: message.UsePPK, on: usesPPK, anyone: true},
	{cap: capChildless, notify: message.ChildlessSupported, on: func(p *config.Phase1) bool { return p.ChildlessIKE }, unasked: true},
	{cap: capIntermediate, notify: message.IntermediateSupported, on: func(p *config.Phase1) bool { return addKEs(p.AddKE).wanted() }},
}

// offeredCapabilities are the notifications of our IKE_SA_INIT request.
func offeredCapabilities(p1 *config.Phase1) (ps []message.Payload) {
	for _, n := range initNotifies {
		if n.on(p1) && !n.unasked {
			ps = append(ps, notify(n.notify, nil))
		}
	}
	return ps
}

// acceptedCapabilities are what the responder's IKE_SA_INIT says and p1 wants.
func acceptedCapabilities(p1 *config.Phase1, m *message.Message) (caps uint32) {
	for _, n := range initNotifies {
		if _, ok := m.Notify(n.notify); ok && n.on(p1) {
			caps |= n.cap
		}
	}
	return caps
}

// answerCapabilities takes what the initiator's IKE_SA_INIT says, and returns our answer.
func (e *Engine) answerCapabilities(sa *ikeSA, m *message.Message) (ps []message.Payload) {
	for _, n := range initNotifies {
		_, asked := m.Notify(n.notify)
		on := n.on(sa.p1) || n.anyone && slices.ContainsFunc(e.candidates(sa.local.Addr(), sa.remote.Addr(), sa.tcp), n.on)
		if on && (asked || n.unasked) {
			sa.caps |= n.cap
			ps = append(ps, notify(n.notify, nil))
		}
	}
	return ps
}
