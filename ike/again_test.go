package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
)

// TestAnswerLostBeforeASync: the peer asks, the answer is lost, the owner dies, and its
// successor synchronises message IDs. The peer then sends its request under another ID; it
// is carried out once.
func TestAnswerLostBeforeASync(t *testing.T) {
	for name, ask := range map[string]func(s *side){
		"rekey of a Child SA":    (*side).rekeyChild,
		"rekey of the IKE SA":    (*side).rekeyIKE,
		"creation of a Child SA": func(s *side) { s.up("net") },
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, nil)
			a2 := w.standby(a, 77)
			b.resume()
			a.resume()
			w.settle()
			a.ask(1)
			b.ask(1)
			if name == "creation of a Child SA" {
				b.down("net")
				w.settle()
			}
			answers := 0
			w.drop = func(d Datagram) bool {
				h, err := message.ParseHeader(d.Data)
				lost := err == nil && h.Exchange == message.CreateChildSA && h.Response && d.Local.Addr() == a.addr
				if lost {
					answers++
				}
				return lost
			}
			ask(b)
			w.settle()
			if answers != 1 {
				t.Fatalf("%d answers were lost", answers)
			}
			w.drop = nil
			w.succeeded(a, a2, true)
			w.run(20 * time.Second)
			a2.wantLog("request was answered before under another message ID")
			w.run(40 * time.Second)
			if len(a2.ike()) != 1 || len(b.ike()) != 1 {
				t.Errorf("%d and %d IKE SAs", len(a2.ike()), len(b.ike()))
			}
			x, y := a2.established()[0], b.established()[0]
			if x.spis != y.spis || len(x.children) != 1 || len(y.children) != 1 || x.children[0].SPIOut != y.children[0].SPIIn {
				t.Errorf("%s with %d Child SAs, %s with %d", x.spis, len(x.children), y.spis, len(y.children))
			}
			w.wantInStep(a2, b)
		})
	}
}
