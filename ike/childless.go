package ike

import "tandem/internal/config"

// Childless IKE SAs (RFC 6023): where the responder says CHILDLESS_IKEV2_SUPPORTED, our
// IKE_AUTH is without SA, TSi and TSr, and the first Child SA is made by CREATE_CHILD_SA,
// with a key exchange of its own. As responder we make whatever the initiator asks for.

// firstChild is the phase 2 entry of the Child SA that IKE_AUTH makes; nil when it makes none.
func (e *Engine) firstChild(sa *ikeSA, phase2 string) *config.Phase2 {
	if sa.childless() {
		return nil
	}
	return e.phase2(sa.phase1, phase2)
}

// childless says that IKE_AUTH of this IKE SA left its Child SA to CREATE_CHILD_SA.
func (sa *ikeSA) childless() bool { return sa.caps&capChildless != 0 }

// childrenOf lets the childless one of two IKE SAs with a peer make what goes with the
// other. Who began it asks, so that not both do.
func (e *Engine) childrenOf(loser, keeper *ikeSA) {
	if !keeper.childless() || !keeper.initiator {
		return
	}
	for _, c := range loser.children {
		keeper.want(c.Phase2)
	}
	e.proceed(keeper)
}

// childLater asks for the Child SA that IKE_AUTH has not made, since it was childless.
func (sa *ikeSA) childLater(x *exchange) {
	if x.spiIn == 0 && sa.childless() {
		sa.want(x.phase2)
	}
}
