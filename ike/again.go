package ike

import (
	"encoding/binary"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// again finds the answer to a CREATE_CHILD_SA request that was carried out before, under
// another message ID. Whoever takes part in a synchronisation of message IDs sends what is
// not answered yet once more (renumber), though the answer may be on its way, or lost. The
// peer's SPI in the offer tells: nobody gives his own out twice.
func (e *Engine) again(sa *ikeSA, m *message.Message) []message.Payload {
	offer, ok := message.Get[*message.SA](m)
	if m.Exchange != message.CreateChildSA || !ok || sa.lastResponse == nil || sa.caps&capMessageIDSync == 0 {
		return nil
	}
	ps, err := e.ownPayloads(sa, sa.lastResponse)
	if err != nil {
		return nil
	}
	chosen, ok := message.Get[*message.SA](&message.Message{Payloads: ps})
	if !ok || len(chosen.Proposals) != 1 {
		return nil
	}
	ours := chosen.Proposals[0]
	for _, p := range offer.Proposals {
		if p.Protocol == ours.Protocol && e.peersOf(ours, p.SPI) {
			return ps
		}
	}
	return nil
}

// peersOf says whether the SA that a proposal of ours chose has the peer's SPI.
func (e *Engine) peersOf(ours ipsec.Proposal, spi []byte) bool {
	if len(spi) != len(ours.SPI) {
		return false
	}
	switch {
	case ours.Protocol == ipsec.ProtocolESP && len(spi) == 4:
		c := e.children[espSPI(ours.SPI)]
		return c != nil && c.SPIOut == espSPI(spi)
	case ours.Protocol == ipsec.ProtocolIKE && len(spi) == 8:
		n := e.sas[ipsec.IKESPI(binary.BigEndian.Uint64(ours.SPI))]
		return n != nil && !n.initiator && n.spis.I == ipsec.IKESPI(binary.BigEndian.Uint64(spi))
	}
	return false
}

// repeatable says whether the last response answers a message ID. After a synchronisation
// it is kept for what it says only: see again.
func (sa *ikeSA) repeatable(id uint32) bool {
	for _, d := range message.Split(sa.lastResponse) {
		h, err := message.ParseHeader(d)
		return err == nil && h.MessageID == id
	}
	return false
}
