package ike

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"slices"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// Quick crash detection (RFC 6290), with `set ike-quick-crash-detect enable`. Each side gives
// the other a token in IKE_AUTH, and for the successor of an IKE SA that was rekeyed. Who has
// lost the IKE SA makes the same token anew from its SPIs (§5.1) and a secret that all members
// of a cluster share, and shows it beside INVALID_IKE_SPI, unprotected; then the other side
// ends the IKE SA at once, and begins anew.
//
// Whoever gets a token out of a member while another one still has the IKE SA can end it
// (§9.2). So it is shown only where no other member can have it: while all of them are in the
// sync set of this one, and it does not know the SPI. Otherwise INVALID_IKE_SPI goes alone.

const (
	qcdTokenLen = 32
	// What a peer's token may have (§4.1).
	qcdTokenShortest, qcdTokenLongest = 16, 128
	// maxCrashNotice bounds an unprotected message that is looked at for a token, in bytes.
	maxCrashNotice = 512
)

func (e *Engine) makesTokens() bool { return e.cfg.QuickCrashDetect && e.o.TokenSecret.Len() > 0 }

// token is ours for an IKE SA.
func (e *Engine) token(spis ipsec.IKESPIs, initiator bool) []byte {
	h := hmac.New(sha256.New, e.o.TokenSecret.Bytes())
	role := byte('R')
	if initiator {
		role = 'I'
	}
	h.Write([]byte{role})
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(spis.I)))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(spis.R)))
	return h.Sum(nil)[:qcdTokenLen]
}

// tokenPayloads give the peer our token, in IKE_AUTH or as the responder of a rekey (§4.2, §4.3).
func (e *Engine) tokenPayloads(sa *ikeSA) []message.Payload {
	if !e.makesTokens() {
		return nil
	}
	return []message.Payload{notify(message.QCDToken, e.token(sa.spis, sa.initiator))}
}

// sendToken gives it where we began the rekey (§4.3).
func (e *Engine) sendToken(sa *ikeSA) {
	sa.tokenDue = false
	e.touch(sa)
	if ps := e.tokenPayloads(sa); ps != nil && !e.start(sa, &exchange{kind: kindDPD}, ps) {
		sa.tokenDue = true
	}
}

// noteToken takes the peer's.
func (e *Engine) noteToken(sa *ikeSA, m *message.Message) {
	n, ok := m.Notify(message.QCDToken)
	if !ok || !e.cfg.QuickCrashDetect {
		return
	}
	if len(n.Data) < qcdTokenShortest || len(n.Data) > qcdTokenLongest {
		e.counters.Malformed++
		return
	}
	e.touch(sa)
	sa.peerToken = slices.Clone(n.Data)
}

// tokenFor is what goes beside INVALID_IKE_SPI: nothing where the IKE SA might be anybody's.
func (e *Engine) tokenFor(h message.Header) []message.Payload {
	protected := h.NextPayload == message.TypeSK || h.NextPayload == message.TypeSKF
	if !e.makesTokens() || h.Response || !protected || h.SPIs.I == 0 || h.SPIs.R == 0 || e.knowsSPI(ownOf(h.SPIs, !h.Initiator)) ||
		e.o.Sole != nil && !e.o.Sole() {
		return nil
	}
	e.counters.TokensSent++
	return []message.Payload{notify(message.QCDToken, e.token(h.SPIs, !h.Initiator))}
}

// knowsSPI says that an IKE SA has an SPI of ours, whatever the peer's is.
func (e *Engine) knowsSPI(own ipsec.IKESPI) bool { return e.sas[own] != nil || e.shelf[own] != nil }

// crashed takes an unprotected message that shows the peer's token (§4.5): the IKE SA ends,
// and what it carried is negotiated anew. A wrong token changes nothing.
func (e *Engine) crashed(sa *ikeSA, d Datagram, h message.Header) bool {
	if h.NextPayload != message.TypeNotify || len(d.Data) > maxCrashNotice || len(sa.peerToken) == 0 || !e.cfg.QuickCrashDetect ||
		sa.state != stateEstablished && sa.state != stateRekeyed {
		return false
	}
	m, err := message.Parse(d.Data)
	if err != nil {
		return false
	}
	_, lost := m.Notify(message.InvalidIKESPI)
	n, ok := m.Notify(message.QCDToken)
	if !lost || !ok {
		return false
	}
	if subtle.ConstantTimeCompare(n.Data, sa.peerToken) != 1 {
		e.counters.TokensWrong++
		return true
	}
	e.counters.TokensTaken++
	e.info(sa, "peer has lost its state: its QCD token is right")
	again := []string{}
	if !sa.closing && sa.state == stateEstablished {
		for _, c := range sa.children {
			if c.state != childOwed && c.p2 != nil && !slices.Contains(again, c.Phase2) {
				again = append(again, c.Phase2)
			}
		}
		e.fail(sa, "peer has lost its state")
	}
	t := sa.tunnel
	e.remove(sa, true, "peer has lost its state")
	if t != nil && t.mayInitiate() {
		for _, phase2 := range again {
			e.ask(t, phase2)
		}
	}
	return true
}
