package ike

import (
	"log/slog"
	"slices"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// informationalRequest answers INFORMATIONAL: deletions, notifications, or an
// empty message that asks whether we are there (RFC 7296 §1.4).
func (e *Engine) informationalRequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "received informational request")
	var ps []message.Payload
	if len(ev.m.Payloads) == 0 {
		sa.dpdRecv++
	}
	for _, p := range ev.m.Payloads {
		switch p := p.(type) {
		case *message.Delete:
			e.debug(sa, "processing delete request (proto "+itoa(int(p.Protocol))+")")
			switch p.Protocol {
			case ipsec.ProtocolIKE:
				e.ikeDeleted(sa, ev)
				return nil, nil
			case ipsec.ProtocolESP:
				if spis := e.childrenDeleted(sa, p.SPIs); len(spis) > 0 {
					ps = append(ps, &message.Delete{Protocol: ipsec.ProtocolESP, SPIs: spis})
				}
			}
		case *message.Notify:
			if p.NotifyType == message.AuthenticationFailed || p.NotifyType == message.InvalidSyntax {
				// RFC 7296 §2.21.2, §2.21.3: the IKE SA is gone without a DELETE.
				e.fail(sa, "peer sent "+p.NotifyType.String())
				ev.after = append(ev.after, func() { e.remove(sa, true, "peer sent "+p.NotifyType.String()) })
				return nil, nil
			}
			e.debug(sa, "processing notify type "+p.NotifyType.String())
			if p.NotifyType == message.AuthLifetime {
				e.noteAuthLifetime(e.latest(sa), p)
			}
			if p.NotifyType == message.Redirect {
				e.redirected(e.latest(sa), p)
			}
			if p.NotifyType == message.QCDToken {
				e.noteToken(sa, ev.m)
			}
		}
	}
	ps = append(ps, e.mobikeRequest(sa, ev)...)
	return append(ps, e.counterSync(sa, ev.m)...), nil
}

// childrenDeleted ends the Child SAs that the peer names and returns our SPIs of
// those that we were not about to delete ourselves (RFC 7296 §1.4.1).
func (e *Engine) childrenDeleted(sa *ikeSA, spis []ipsec.ESPSPI) []ipsec.ESPSPI {
	var out []ipsec.ESPSPI
	for _, spi := range spis {
		c := sa.childOut(spi)
		if c == nil {
			if x := sa.req; x != nil && (x.kind == kindCreateChild || x.kind == kindRekeyChild) &&
				len(x.deletedOutward) < maxDeletedChildren {
				e.touch(sa)
				x.deletedOutward = append(x.deletedOutward, spi)
			}
			continue
		}
		if c.state != childOwed {
			out = append(out, c.SPIIn)
		}
		inFlight := sa.req != nil && slices.Contains(sa.req.deletes, c.SPIIn)
		if !inFlight {
			sa.owed = slices.DeleteFunc(sa.owed, func(s ipsec.ESPSPI) bool { return s == c.SPIIn })
		}
		e.childDeleted(sa, c)
	}
	if len(out) > 0 {
		e.debug(sa, "sending delete ack")
	}
	return out
}

// ikeDeleted ends the IKE SA at the peer's request, once the answer is sealed.
func (e *Engine) ikeDeleted(sa *ikeSA, ev *event) {
	e.info(sa, "received IKE SA delete "+sa.spis.String())
	if x := sa.req; x != nil && x.kind == kindRekeyIKE && x.collided {
		// The peer did not notice our own rekey, or won: its new IKE SA inherits
		// everything and ours is forgotten (RFC 7296 §2.8.2, §2.25.2).
		if n := e.sas[ownOf(x.collidedIKE, false)]; n != nil && n.state == stateEstablished {
			e.inherit(sa, n)
		}
	}
	ev.after = append(ev.after, func() { e.remove(sa, true, "peer deleted it") })
}

// ownOf is our SPI of a pair.
func ownOf(s ipsec.IKESPIs, initiator bool) ipsec.IKESPI {
	if initiator {
		return s.I
	}
	return s.R
}

// dpdResponse takes the answer to our empty INFORMATIONAL.
func (e *Engine) dpdResponse(sa *ikeSA, ev *event) {
	e.drop(e.finish(sa))
	e.debug(sa, "received informational response", slog.Int("payloads", len(ev.m.Payloads)))
	e.noteAnsweredNAT(sa, ev, false)
}
