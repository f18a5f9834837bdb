package daemon

import (
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// innerMTU is the largest inner packet, in bytes, that leaves in one outer packet
// of outer bytes (RFC 4303 §2: SPI, sequence number, IV, padding, pad length,
// next header, ICV; RFC 3948 §2.1 for UDP).
func innerMTU(outer int, s ipsec.Suite, udp, outerV6 bool) int {
	room := outer - 20
	if outerV6 {
		room = outer - 40
	}
	if udp {
		room -= 8
	}
	iv, block, icv := 8, 4, 16
	switch s.Encr {
	case ipsec.ENCRAESCBC:
		iv, block = 16, 16
	case ipsec.ENCR3DES:
		iv, block = 8, 8
	case ipsec.ENCRNULL:
		iv = 0
	case ipsec.ENCRAESGCM8:
		icv = 8
	case ipsec.ENCRAESGCM12:
		icv = 12
	}
	switch s.Integ {
	case ipsec.INTEGHMACSHA1_96:
		icv = 12
	case ipsec.INTEGHMACSHA256_128:
		icv = 16
	case ipsec.INTEGHMACSHA384_192:
		icv = 24
	case ipsec.INTEGHMACSHA512_256:
		icv = 32
	}
	room -= 8 + iv + icv
	return room - room%block - 2
}

// tunnelInnerMTU is the smallest inner MTU over everything that a phase 1 may
// negotiate: which suite a peer picks is not known when its interface is made.
func tunnelInnerMTU(c *config.Config, p *config.Phase1, outer int, outerV6 bool) int {
	udp := p.NATTraversal != "disable"
	if p.Takes(true) {
		// So that a segment of an inner TCP connection fits one of the outer: its header
		// with timestamps and the message's length, in place of UDP's.
		outer, udp = outer-(20+12+2-8), true
	}
	mtu := innerMTU(outer, ipsec.Suite{Encr: ipsec.ENCRAESGCM16}, udp, outerV6)
	for i := range c.Phase2 {
		if c.Phase2[i].Phase1 != p.Name {
			continue
		}
		for _, s := range c.Phase2[i].Proposals {
			mtu = min(mtu, innerMTU(outer, s, udp, outerV6))
		}
	}
	return mtu
}
