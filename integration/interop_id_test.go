package integration

import "testing"

// TestIDTypes: how each side may name itself with a pre-shared key, one gateway after the
// other on the same charon's wire. Distinguished names are those of TestCertificates.
func TestIDTypes(t *testing.T) {
	for _, c := range []struct{ name, ours, type1, charons, theirs, peerid string }{
		{"FQDN", "gw.test", "fqdn", "gw.test", "peer.test", "peer.test"},
		{"user FQDN", "gw@test", "user-fqdn", "gw@test", "peer@test", "peer@test"},
		{"key ID", "the gateway", "keyid", "keyid:the gateway", "keyid:the peer", "the peer"},
		{"IPv4 address", gwWAN, "address", gwWAN, peerWAN, peerWAN},
		{"IPv6 address", "2001:db8:99::1", "address", "2001:db8:99::1", "2001:db8:99::2", "2001:db8:99::2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := wire(t)
			ch := s.charon("peer", conn{id: `"` + c.theirs + `"`, remoteID: `"` + c.charons + `"`})
			g := s.gateway("gw", gwConf{phase1: []entry{toPeer(`localid "`+c.ours+`"`, "localid-type "+c.type1, "peertype one", `peerid "`+c.peerid+`"`)},
				phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
			ch.up()
			if st := g.wantUp("vpn1", "responder"); st.PeerID != c.peerid {
				t.Errorf("peer ID %q", st.PeerID)
			}
			ch.down(g)
		})
	}
}
