package ike

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"testing"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// eapPair is a change for pair: the client, which is a's side or b's, proves itself by EAP to the other.
// Both have certificates of one CA; the client uses its own for EAP-TLS only.
func eapPair(client, gateway func(*config.Config), clientIsA bool) func(a, b *config.Config) {
	ca := newAuthority("CA", nil, 0)
	return func(a, b *config.Config) {
		names := [2]string{"a.test", "b.test"}
		c, g := a, b
		if !clientIsA {
			c, g = b, a
			names = [2]string{"b.test", "a.test"}
		}
		signing(g, ca.gateway(names[1], "ecdsa256", nil), ca)
		signing(c, ca.gateway(names[0], "ecdsa256", func(x *x509.Certificate) { x.Subject = pkix.Name{CommonName: "carol"} }), ca)
		p := &g.Phase1[0]
		p.Type, p.RemoteGW = "dynamic", netip.Addr{}
		p.EAP, p.EAPIdentity, p.AuthUserGroup = true, "use-id-payload", "staff"
		g.Users = []config.User{{Name: "carol", Secret: ipsec.NewKey([]byte("Wonderland")), Status: true},
			{Name: "dave", Secret: ipsec.NewKey([]byte("other")), Status: true}, {Name: "eve", Secret: ipsec.NewKey([]byte("out")), Status: true}}
		g.UserGroups = []config.UserPeerGroup{{Name: "staff", Members: []string{"carol", "dave"}}}
		q := &c.Phase1[0]
		q.EAP, q.AuthUser, q.AuthPassword, q.Certificate = true, "carol", ipsec.NewKey([]byte("Wonderland")), nil
		if client != nil {
			client(c)
		}
		if gateway != nil {
			gateway(g)
		}
	}
}

// byTLS has a client prove itself by its certificate, as a user peer of the gateway's group.
func byTLS(clientChange, gatewayChange func(*config.Config), clientIsA bool) func(a, b *config.Config) {
	return eapPair(func(c *config.Config) {
		p := &c.Phase1[0]
		p.Certificate, p.AuthPassword = []string{"own"}, ipsec.Key{}
		if clientChange != nil {
			clientChange(c)
		}
	}, func(g *config.Config) {
		g.UserPeers = []config.UserPeer{{Name: "carols", CA: "CA", CN: "carol", CNType: "string"}}
		g.UserGroups[0].Members = []string{"carols"}
		if gatewayChange != nil {
			gatewayChange(g)
		}
	}, clientIsA)
}

// eapUp sets a up with b as its gateway, and says what became of it.
func eapUp(t *testing.T, change func(a, b *config.Config)) (w *world, a, b *side) {
	t.Helper()
	w, a, b = pair(t, change)
	b.resume()
	a.resume()
	w.settle()
	return w, a, b
}
