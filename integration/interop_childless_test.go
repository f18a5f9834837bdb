package integration

import "testing"

// TestChildless: an IKE_AUTH without SA and TS payloads, after which CREATE_CHILD_SA makes
// the Child SA with a key exchange of its own (RFC 6023); strongSwan insists on it.
func TestChildless(t *testing.T) {
	for _, c := range []struct{ name, direction, auto string }{
		{"charon initiates", "responder", "auto-negotiate disable"},
		{"tandem initiates", "initiator", "auto-negotiate enable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			ch := s.charon("peer", conn{conn: "childless = force"})
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer("childless-ike enable", c.auto)}, phase2: []entry{netPhase2()},
				routes: []entry{routeTo(peerNet, "vpn1")}})
			if c.direction == "responder" {
				ch.up()
			}
			g.wantUp("vpn1", c.direction)
			ch.one()
			s.wantPing("peer", peerIn, gwIn)
			ch.says(`IKE_SA_INIT response 0 \[[^]]*N\(CHDLESS_SUP\)`)
			ch.says(`IKE_AUTH request 1 \[[^]]* AUTH [^]]*\]`)
			for _, payload := range []string{" SA ", " TSi ", " TSr "} {
				if n := ch.said(`IKE_AUTH re[a-z]+ 1 \[[^]]*` + payload); n != 0 {
					t.Errorf("%d messages of IKE_AUTH with%s", n, payload)
				}
			}
			ch.says(`CREATE_CHILD_SA request [0-9] \[[^]]* SA No KE TSi TSr`)
			wan.wantAtLeast(2, "messages of CREATE_CHILD_SA", func(p packet) bool { return p.exchange() == exchCreateChild })
			ch.down(g)
		})
	}
}

// TestChildlessRefused: a peer that does not say that it can is given its Child SA in IKE_AUTH.
func TestChildlessRefused(t *testing.T) {
	t.Parallel()
	s := wire(t)
	ch := s.charon("peer", conn{conn: "childless = never"})
	g := s.gateway("gw", gwConf{phase1: []entry{toPeer("childless-ike enable", "auto-negotiate enable")}, phase2: []entry{netPhase2()},
		routes: []entry{routeTo(peerNet, "vpn1")}})
	g.wantUp("vpn1", "initiator")
	s.wantPing("peer", peerIn, gwIn)
	ch.says(`IKE_AUTH request 1 \[[^]]* SA TSi TSr`)
	ch.down(g)
}
