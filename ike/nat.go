package ike

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"net/netip"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// natPort is where IKE and ESP in UDP run once a NAT is found (RFC 7296 §2.23).
const (
	ikePort = 500
	natPort = 4500
)

// natHash is the data of a NAT_DETECTION payload (RFC 7296 §2.23).
func natHash(spis ipsec.IKESPIs, a netip.AddrPort) []byte {
	b := make([]byte, 0, 34)
	b = binary.BigEndian.AppendUint64(b, uint64(spis.I))
	b = binary.BigEndian.AppendUint64(b, uint64(spis.R))
	b = append(b, a.Addr().Unmap().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, a.Port())
	h := sha1.Sum(b)
	return h[:]
}

// natPayloads tell the peer from where to where we believe to send. With
// nattraversal forced the source is false on purpose, so that both sides take to
// UDP; with disable there are none.
func (e *Engine) natPayloads(p1 *config.Phase1, spis ipsec.IKESPIs, local, remote netip.AddrPort) []message.Payload {
	var source []byte
	switch p1.NATTraversal {
	case "disable":
		return nil
	case "forced":
		source = e.random(sha1.Size)
	default:
		source = natHash(spis, local)
	}
	return []message.Payload{
		notify(message.NATDetectionSourceIP, source),
		notify(message.NATDetectionDestinationIP, natHash(spis, remote)),
	}
}

// detectNAT reads the peer's NAT_DETECTION payloads; spis are those of the
// message's header.
func detectNAT(p1 *config.Phase1, m *message.Message, d Datagram) (here, there bool) {
	if p1.NATTraversal == "disable" {
		return false, false
	}
	var sources, dests int
	var sourceOK, destOK bool
	for _, n := range m.Notifies() {
		switch n.NotifyType {
		case message.NATDetectionSourceIP:
			sources++
			sourceOK = sourceOK || bytes.Equal(n.Data, natHash(m.SPIs, d.Remote))
		case message.NATDetectionDestinationIP:
			dests++
			destOK = destOK || bytes.Equal(n.Data, natHash(m.SPIs, d.Local))
		}
	}
	if sources == 0 || dests == 0 {
		return false, false // the peer does not support it
	}
	return !destOK || p1.NATTraversal == "forced", !sourceOK
}

// noteNAT sets what NAT detection found.
func (sa *ikeSA) noteNAT(here, there bool) {
	if sa.tcp {
		here, there = false, false // a connection holds its mapping by itself
	}
	sa.natHere, sa.natThere = here, there
	sa.udpEncap = here || there || sa.tcp
}

// float moves the initiator to port 4500 before IKE_AUTH if there is a NAT, or if with
// MOBIKE there may be one later (RFC 4555 §3.3). m is the IKE_SA_INIT response.
func (sa *ikeSA) float(m *message.Message) {
	later := sa.mobikeOffer() != 0 && sa.p1.NATTraversal != "disable" && detectsNAT(m)
	if !sa.udpEncap && !later || sa.nonESP {
		return
	}
	sa.local = netip.AddrPortFrom(sa.local.Addr(), natPort)
	sa.remote = netip.AddrPortFrom(sa.remote.Addr(), natPort)
	sa.nonESP = true
}

// moved follows the peer to the source of an authenticated message that was not
// seen before (RFC 7296 §2.23). Without NAT only IKE_AUTH may do that, and with MOBIKE
// only that and UPDATE_SA_ADDRESSES (RFC 4555 §3.8).
func (e *Engine) moved(sa *ikeSA, d Datagram) {
	if sa.tcp || d.TCP {
		e.movedStream(sa, d)
		return
	}
	if d.Local == sa.local && d.Remote == sa.remote {
		return
	}
	half := sa.state == stateHalfOpen
	if !half && (!sa.udpEncap || sa.natHere && !sa.natThere || sa.mobike()) {
		return
	}
	e.touch(sa)
	sa.local, sa.remote, sa.nonESP = d.Local, d.Remote, d.NonESP
	e.setPeer(sa)
}

// setPeer tells the data plane the addresses of an IKE SA's children.
func (e *Engine) setPeer(sa *ikeSA) {
	at := sa.espPath()
	for _, c := range sa.children {
		c.Local, c.Remote, c.UDPEncap, c.TCP = at.local, at.remote, at.udpEncap, at.tcp
		e.hold(sa, SetPeer{SPIIn: c.SPIIn, Local: c.Local, Remote: c.Remote, UDPEncap: c.UDPEncap, TCP: c.TCP})
	}
	if len(sa.children) > 0 {
		e.info(sa, "peer moved")
	}
}

// HandlePeerMoved follows an authenticated ESP packet that came from another
// outer source: a NAT gave the peer a new mapping.
func (e *Engine) HandlePeerMoved(now time.Time, spiIn ipsec.ESPSPI, from netip.AddrPort) {
	defer e.begin(now)()
	c := e.children[spiIn]
	if !e.active || c == nil || !c.UDPEncap || c.TCP || c.ike.remote == from {
		return
	}
	sa := c.ike
	if sa.natHere && !sa.natThere || !sa.espMayMove(from) {
		return
	}
	e.heard(sa)
	e.touch(sa)
	sa.remote = from
	e.setPeer(sa)
	e.proceed(sa)
	e.arm(sa)
}

// keepalive sends a NAT keepalive when it is due (RFC 3948 §4).
func (e *Engine) keepalive(sa *ikeSA) {
	if !sa.natHere || !sa.nonESP || sa.p1 == nil || sa.p1.Keepalive <= 0 || sa.state != stateEstablished {
		sa.keepaliveAt = time.Time{}
		return
	}
	if sa.keepaliveAt.IsZero() {
		sa.keepaliveAt = e.now.Add(sa.p1.Keepalive)
		return
	}
	if sa.keepaliveAt.After(e.now) {
		return
	}
	e.free(SendKeepalive{Local: sa.local, Remote: sa.remote})
	sa.keepaliveAt = e.now.Add(sa.p1.Keepalive)
}
