package ike

import "time"

// InitialContact says that a dialup peer has begun anew here, or where a record comes from:
// its IKE SAs of a phase 1 entry that were established before have ended. Other engines of
// the gateway may hold some (Engine.InitialContact).
type InitialContact struct {
	Phase1 string
	begun  time.Time
	peer   identity
}

// initialContact ends the other IKE SAs of an identity that says it has none (RFC 7296
// §2.4). Where tunnels are spread over several engines, and several members, others may hold
// them: every one is told that has the record.
func (e *Engine) initialContact(sa *ikeSA) {
	e.info(sa, "processing INITIAL-CONTACT")
	for _, old := range e.ofPeer(sa.peerID) {
		if old != sa && !crossed(old, sa) {
			e.endBefore(old, sa.phase1)
		}
	}
	e.tellInitialContact(sa)
	e.debug(sa, "processed INITIAL-CONTACT")
}

// crossed says that both sides began at once: when the peer wrote that it has no other, ours
// did not stand there yet. Which of the two goes is decided by their nonces (duplicates).
func crossed(old, sa *ikeSA) bool {
	return old.initiator != sa.initiator && !old.established.Before(sa.created)
}

func (e *Engine) endBefore(old *ikeSA, phase1 string) {
	if old.phase1 == phase1 && (old.state == stateEstablished || old.state == stateRekeyed) {
		e.remove(old, true, "INITIAL-CONTACT")
	}
}

// tellInitialContact: a static tunnel is in one engine only, and a pair has but one.
func (e *Engine) tellInitialContact(sa *ikeSA) {
	if e.o.Share.of() > 1 && sa.tunnel != nil && sa.tunnel.dialup {
		e.free(InitialContact{sa.phase1, sa.created, sa.peerID})
	}
}

func (InitialContact) effect() {}

// InitialContact ends what this engine still owns of a peer that has begun anew elsewhere.
func (e *Engine) InitialContact(now time.Time, p InitialContact) {
	defer e.begin(now)()
	if !e.active {
		return
	}
	for _, old := range e.ofPeer(p.peer) {
		if old.established.Before(p.begun) {
			e.endBefore(old, p.Phase1)
		}
	}
}
