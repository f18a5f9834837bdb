package integration

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/lab"
)

// TestChildRekeyUnderTraffic: a hundred packets a second each way, three rekeys,
// none lost; the initiator of a rekey deletes the old SA.
func TestChildRekeyUnderTraffic(t *testing.T) {
	for _, by := range []string{"charon", "tandem"} {
		t.Run("by "+by, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			ch := s.charon("peer", conn{})
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer()}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
			ch.up()
			g.wantUp("vpn1", "responder")
			s.pingBoth() // neighbours and routes are known
			l := s.startLoss(wan)
			flow := func() {
				t.Helper()
				a, b := l.probes.Received()
				eventually(t, 10*time.Second, "fifty more packets each way", func() bool { x, y := l.probes.Received(); return x > a+50 && y > b+50 })
			}
			flow()
			for i := 1; i <= 3; i++ {
				_, old := ch.one()
				if by == "charon" {
					if err := ch.Rekey(ch.ctx, "net", ""); err != nil {
						t.Fatal(err)
					}
				} else {
					g.must("diagnose vpn ike rekey child name vpn1")
				}
				eventually(t, 10*time.Second, "rekeyed", func() bool { return ch.Events().ChildRekeys == i })
				g.wantOneChild("vpn1")
				verb := map[string]string{"charon": "sending", "tandem": "received"}[by]
				ch.says(verb + " DELETE for ESP CHILD_SA with SPI " + map[string]string{"charon": old.SPIIn, "tandem": old.SPIOut}[by])
				ch.says(`CREATE_CHILD_SA request \d+ \[ N\(REKEY_SA\) `)
				eventually(t, 10*time.Second, "only the new SA is left at the gateway", func() bool {
					all := g.children("vpn1")
					return len(all) == 1 && all[0].SPIIn != old.SPIOut && all[0].SPIOut != old.SPIIn && all[0].Outbound
				})
				flow()
			}
			l.wantNone()
			ch.down(g)
		})
	}
}

// loss counts what is lost between the two sides of a wire, and by whom.
type loss struct {
	s                *site
	wan              *tap
	probes           *lab.Probes
	fromPeer, fromGW int // ESP packets seen before
}

func (l *loss) esp(src string) int {
	return l.wan.count(func(p packet) bool { return p.kind == kindUDPESP && from(src)(p) })
}

// startLoss sends a hundred probes a second each way.
func (s *site) startLoss(wan *tap) *loss {
	s.t.Helper()
	l := &loss{s: s, wan: wan}
	l.fromPeer, l.fromGW = l.esp(peerWAN), l.esp(gwWAN)
	var err error
	if l.probes, err = s.topo.StartProbes("peer", netip.MustParseAddr(peerIn), "gw", netip.MustParseAddr(gwIn), 10*time.Millisecond); err != nil {
		s.t.Fatal(err)
	}
	return l
}

// wantNone ends the probes; none was lost by us.
func (l *loss) wantNone() {
	l.s.t.Helper()
	t := l.s.t
	streams := l.probes.Stop(300 * time.Millisecond)
	fromPeer, fromGW := l.esp(peerWAN)-l.fromPeer, l.esp(gwWAN)-l.fromGW
	for i, st := range streams {
		seen := map[uint64]bool{}
		for _, a := range st.Arrivals {
			seen[a.Seq] = true
		}
		// What strongSwan loses by itself (its user-space ESP is without an
		// outbound SA for a moment) never was on the wire, or was there: it is
		// told apart by the capture, and none is ours.
		ours := fromPeer - len(seen)
		theirs := int(st.Sent) - fromPeer
		if i == 1 {
			ours, theirs = int(st.Sent)-fromGW, fromGW-len(seen)
		}
		if ours != 0 || len(st.Arrivals) != len(seen) {
			t.Errorf("%s → %s: we lost %d of %d, %d arrived in all", st.From, st.To, ours, st.Sent, len(st.Arrivals))
		}
		if theirs != 0 {
			t.Logf("%s → %s: strongSwan lost %d of %d", st.From, st.To, theirs, st.Sent)
		}
		if theirs < 0 || theirs > 3 {
			t.Errorf("%s → %s: strongSwan lost %d of %d", st.From, st.To, theirs, st.Sent)
		}
	}
}

// TestIKERekey: the Child SAs live on under new SPIs of the IKE SA, message IDs
// begin at 0 again, and the old IKE SA is deleted within itself.
func TestIKERekey(t *testing.T) {
	for _, by := range []string{"charon", "tandem"} {
		t.Run("by "+by, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			ch := s.charon("peer", conn{})
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer()}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
			ch.up()
			was := g.wantUp("vpn1", "responder")
			oldSA, oldChild := ch.one()
			s.pingBoth()
			direction := "responder"
			if by == "charon" {
				if err := ch.Rekey(ch.ctx, "", "gw"); err != nil {
					t.Fatal(err)
				}
			} else {
				direction = "initiator" // of the new IKE SA
				g.must("diagnose vpn ike rekey ike name vpn1")
			}
			eventually(t, 10*time.Second, "rekeyed", func() bool { return ch.Events().IKERekeys == 1 })
			eventually(t, 10*time.Second, "only the new IKE SA is left at the gateway", func() bool {
				st := g.status("vpn1")
				return len(st.SAs) == 1 && st.SAs[0].Direction == direction && st.SAs[0].Status == "established"
			})
			now := g.status("vpn1").SAs[0]
			sa, child := ch.one()
			if now.SPIi == was.SAs[0].SPIi || now.SPIr == was.SAs[0].SPIr || sa.SPIi != now.SPIi || sa.SPIr != now.SPIr || sa.SPIi == oldSA.SPIi {
				t.Errorf("SPIs: %+v after %+v, charon %+v", now, was.SAs[0], sa)
			}
			if child.SPIIn != oldChild.SPIIn || child.SPIOut != oldChild.SPIOut {
				t.Errorf("children are not inherited: %+v after %+v", child, oldChild)
			}
			if now.SendID != 0 || now.RecvID != 0 {
				t.Errorf("message IDs of the new IKE SA: %d/%d", now.SendID, now.RecvID)
			}
			// The DELETE of the old one travels in the old one, from who rekeyed.
			ch.says(map[string]string{"charon": `deleting IKE_SA gw`, "tandem": `received DELETE for IKE_SA gw`}[by])
			last := byte(0)
			for _, p := range wan.packets() {
				if p.kind == kindIKE && spiOf(p, 0) == was.SAs[0].SPIi && spiOf(p, 8) == was.SAs[0].SPIr {
					last = p.exchange()
				}
			}
			if last != byte(message.Informational) {
				t.Errorf("the last message of the old IKE SA is exchange %d", last)
			}
			// Exchanges of the new one, begun by either side, count from 0.
			if err := ch.Rekey(ch.ctx, "net", ""); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, "Child SA rekeyed in the new IKE SA", func() bool { return ch.Events().ChildRekeys == 1 })
			g.wantOneChild("vpn1")
			g.must("diagnose vpn ike rekey child name vpn1")
			eventually(t, 10*time.Second, "Child SA rekeyed by us in the new IKE SA", func() bool { return ch.Events().ChildRekeys == 2 })
			g.wantOneChild("vpn1")
			first := map[bool]uint32{}
			for _, p := range wan.packets() {
				if p.kind != kindIKE || spiOf(p, 0) != now.SPIi || p.response() {
					continue
				}
				ours := from(gwWAN)(p)
				if _, seen := first[ours]; !seen {
					first[ours] = binary.BigEndian.Uint32(p.ike[20:])
				}
			}
			if len(first) != 2 || first[true] != 0 || first[false] != 0 {
				t.Errorf("first message IDs in the new IKE SA (ours: true): %v", first)
			}
			s.pingBoth()
			ch.down(g)
		})
	}
}

// spiOf is an SPI of an IKE header as hexadecimal: at 0 the initiator's, at 8 the
// responder's.
func spiOf(p packet, at int) string {
	if len(p.ike) < 28 {
		return ""
	}
	var b strings.Builder
	for _, x := range p.ike[at : at+8] {
		const digits = "0123456789abcdef"
		b.WriteByte(digits[x>>4])
		b.WriteByte(digits[x&15])
	}
	return b.String()
}
