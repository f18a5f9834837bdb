package ike

import (
	"bytes"
	"encoding/binary"
	"slices"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// again finds the answer to a CREATE_CHILD_SA request that was carried out before, under
// another message ID. Whoever takes part in a synchronisation of message IDs sends what is
// not answered yet once more (renumber), though the answer may be on its way, or lost. The
// peer's SPI in the offer tells: nobody gives his own out twice.
func (e *Engine) again(sa *ikeSA, m *message.Message) []message.Payload {
	if sa.lastResponse == nil || sa.caps&capMessageIDSync == 0 {
		return nil
	}
	if m.Exchange == message.FollowupKE {
		return e.followedAgain(sa, m)
	}
	offer, ok := message.Get[*message.SA](m)
	if m.Exchange != message.CreateChildSA || !ok {
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
		if p.Protocol == ours.Protocol && e.peersOf(sa, ours, p.SPI) {
			return ps
		}
	}
	return nil
}

// peersOf says whether the SA that a proposal of ours chose has the peer's SPI.
func (e *Engine) peersOf(sa *ikeSA, ours ipsec.Proposal, spi []byte) bool {
	if len(spi) != len(ours.SPI) {
		return false
	}
	switch {
	case ours.Protocol == ipsec.ProtocolESP && len(spi) == 4:
		c := e.children[espSPI(ours.SPI)]
		return c != nil && c.SPIOut == espSPI(spi) || slices.ContainsFunc(sa.half, func(h *halfMade) bool {
			return h.kind != kindRekeyIKE && h.spiIn == espSPI(ours.SPI) && h.spiOut == espSPI(spi)
		})
	case ours.Protocol == ipsec.ProtocolIKE && len(spi) == 8:
		spis := ipsec.IKESPIs{I: ipsec.IKESPI(binary.BigEndian.Uint64(spi)), R: ipsec.IKESPI(binary.BigEndian.Uint64(ours.SPI))}
		n, h := e.sas[spis.R], sa.halfRekey()
		return n != nil && !n.initiator && n.spis.I == spis.I || h != nil && h.spis == spis
	}
	return false
}

// followedAgain is the same for IKE_FOLLOWUP_KE: a link token is used once.
func (e *Engine) followedAgain(sa *ikeSA, m *message.Message) []message.Payload {
	link, ok := m.Notify(message.AdditionalKeyExchange)
	if !ok || len(sa.followed) == 0 || !bytes.Equal(link.Data, sa.followed) {
		return nil
	}
	h, err := message.ParseHeader(message.Split(sa.lastResponse)[0])
	if err != nil || h.Exchange != message.FollowupKE {
		return nil
	}
	ps, err := e.ownPayloads(sa, sa.lastResponse)
	if err != nil {
		return nil
	}
	return ps
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
