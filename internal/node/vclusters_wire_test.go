package node

import (
	"net/netip"
	"strings"

	"tandem/ike"
	"tandem/ike/message"
	"tandem/xfrm"
)

func (p *vpeer) do(f func(*Node)) {
	f(p.node)
	for {
		e, ok := p.node.Poll()
		if !ok {
			return
		}
		switch e := e.(type) {
		case ike.Send:
			p.w.send(e.Datagram)
		case Install:
			p.sas[e.SA.SPIIn] = e.SA
		case SetOutbound:
			p.outbound[e.SPIIn] = e.Use
		case Remove:
			delete(p.sas, e.SPIIn)
			delete(p.outbound, e.SPIIn)
		case Log:
			p.w.log(p.tunnel, e)
			switch {
			case strings.HasPrefix(e.Message, "added IPsec SA: "):
				p.rekeyed.child++
			case strings.HasPrefix(e.Message, "established IKE SA "):
				p.rekeyed.ike++
			}
		}
	}
}

// send puts an IKE datagram on the wire: to a peer by its address, or to the gateway that
// has the shared address.
func (w *vworld) send(d ike.Datagram) {
	h, err := message.ParseHeader(d.Data)
	if err != nil {
		w.t.Errorf("%v sent a message that does not parse: %v", d.Local, err)
		return
	}
	w.note(h, d)
	if w.lost != nil && w.lost(d.Local.Addr(), h) {
		return
	}
	back := ike.Datagram{Local: d.Remote, Remote: d.Local, NonESP: d.NonESP, Data: d.Data}
	w.after(wireDelay, func() {
		for _, p := range w.peers {
			if p.addr == d.Remote.Addr() {
				p.do(func(n *Node) { n.HandleIKE(w.now, back) })
				return
			}
		}
		scope := xfrm.Scope(1)
		if d.Remote.Addr() == netip.MustParseAddr("198.51.100.1") {
			scope = 2
		}
		for _, g := range w.gw {
			if g.alive && g.claimed[scope] {
				g.do(func(n *VClusters) { n.HandleIKE(w.now, back) })
			}
		}
	})
}

// note counts requests and their answers.
func (w *vworld) note(h message.Header, d ike.Datagram) {
	spis := h.SPIs
	if h.Exchange == message.IKESAInit {
		if !h.Response {
			w.inits++
		}
		return
	}
	w.ikeSAs[spis] = true
	k := vexchange{spis, h.MessageID, h.Initiator != h.Response}
	r := w.requests[k]
	if r == nil {
		r = &vrequest{kind: h.Exchange}
		w.requests[k] = r
	}
	if !h.Response {
		r.times++
		return
	}
	if r.answers > 0 && r.answer != string(d.Data) {
		r.differing = true
	}
	r.answers, r.answer = r.answers+1, string(d.Data)
}
