package ike

import (
	"log/slog"
	"slices"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// close ends an IKE SA in good order: its Child SAs stop at once, or where others have taken
// their place when what is under way has come; the peer gets a DELETE for them and then one
// for the IKE SA.
func (e *Engine) close(sa *ikeSA, reason string) {
	if sa.state != stateEstablished && sa.state != stateRekeyed {
		e.remove(sa, false, reason)
		return
	}
	if sa.closing {
		return
	}
	e.touch(sa)
	e.info(sa, "deleting", slog.String("reason", reason))
	sa.closing = true
	for _, c := range slices.Clone(sa.children) {
		e.endChild(c)
	}
	sa.wants = nil
	if sa.tunnel != nil {
		e.tunnelChanged(sa.tunnel, reason)
	}
}

// endChild ends a Child SA here and owes the peer the DELETE.
func (e *Engine) endChild(c *childSA) {
	sa := c.ike
	e.touch(sa)
	sa.owe(c.SPIIn)
	e.debugChild(c, "sending delete for IPsec SA SPI "+c.SPIIn.String())
	e.removeChildAfter(c, c.linger())
}

// maxDeletes is how many SPIs one DELETE of ours names.
const maxDeletes = 64

// sendDeletes sends the owed DELETE of Child SAs.
func (e *Engine) sendDeletes(sa *ikeSA) bool {
	n := min(len(sa.owed), maxDeletes)
	spis := slices.Clone(sa.owed[:n])
	for _, s := range spis {
		e.debug(sa, "send IPsec SA delete, spi "+s.String())
	}
	return e.start(sa, &exchange{kind: kindDeleteChild, deletes: spis},
		[]message.Payload{&message.Delete{Protocol: ipsec.ProtocolESP, SPIs: spis}})
}

func (e *Engine) deleteChildResponse(sa *ikeSA, _ *event) {
	x := e.finish(sa)
	for _, s := range x.deletes {
		if c := e.children[s]; c != nil && c.ike == sa && c.state == childOwed {
			e.childDeleted(sa, c)
		} else {
			sa.noteDeleted(s)
		}
	}
	sa.owed = slices.DeleteFunc(sa.owed, func(s ipsec.ESPSPI) bool { return slices.Contains(x.deletes, s) })
	e.drop(x)
}

// sendDeleteIKE sends the DELETE of the IKE SA itself, its last request.
func (e *Engine) sendDeleteIKE(sa *ikeSA) bool {
	e.info(sa, "send IKE SA delete "+sa.spis.String())
	return e.start(sa, &exchange{kind: kindDeleteIKE},
		[]message.Payload{&message.Delete{Protocol: ipsec.ProtocolIKE}})
}

func (e *Engine) deleteIKEResponse(sa *ikeSA, _ *event) {
	e.drop(e.finish(sa))
	e.remove(sa, true, "peer acknowledged the delete")
}
