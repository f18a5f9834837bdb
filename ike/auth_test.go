package ike

import (
	"testing"

	"tandem/ike/message"
)

func TestTunnelComesUp(t *testing.T) {
	w, a, b := up(t, nil)
	if w.seenOf(message.IKESAInit) != 1 || w.seenOf(message.IKEAuth) != 1 {
		t.Errorf("%d SA_INIT, %d AUTH, want 1 each", w.seenOf(message.IKESAInit), w.seenOf(message.IKEAuth))
	}
	if !a.esp(b) || !b.esp(a) {
		t.Error("traffic does not pass")
	}
	for _, s := range []*side{a, b} {
		s.wantLog("established IKE SA")
		s.wantLog("set oper up")
		s.wantLog("added IPsec SA")
	}
	b.wantLog("responder received SA_INIT msg")
	if x := a.ike()[0]; x.children[0].Suite.KE != 0 {
		t.Error("the first Child SA has a key exchange of its own")
	}
}
