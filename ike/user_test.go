package ike

import (
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// users is a gateway B for users and a client A that is one of them.
func users(t *testing.T, id, key string) (*world, *side, *side) {
	return pair(t, func(a, b *config.Config) {
		a.Phase1[0].LocalID, a.Phase1[0].PSK = id, ipsec.NewKey([]byte(key))
		b.Phase1[0] = phase1To("toA", "", func(p *config.Phase1) { p.PeerType, p.UserGroup, p.PSK = "dialup", "clients", ipsec.Key{} })
		b.Users = []config.User{{Name: "alice@example.org", Secret: ipsec.NewKey([]byte("k")), Status: true},
			{Name: "Bob", Secret: ipsec.NewKey([]byte("key of bob")), Status: true},
			{Name: "carol", Secret: ipsec.NewKey([]byte("key of carol")), Status: false},
			{Name: "dave", Secret: ipsec.NewKey([]byte("key of dave")), Status: true}}
		b.UserGroups = []config.UserPeerGroup{{Name: "clients", Members: []string{"alice@example.org", "Bob", "carol"}}}
	})
}

// Each user has a key of its own; nobody else's will do, and who is not of the group is nobody.
func TestUsers(t *testing.T) {
	for _, tc := range []struct {
		id, key string
		up      bool
	}{
		{"alice@example.org", "k", true}, {"bob", "key of bob", true}, {"bob", "k", false}, {"alice@example.org", "key of bob", false},
		{"carol", "key of carol", false}, {"dave", "key of dave", false}, {"", "", false}, {"eve", "", false},
	} {
		w, a, b := users(t, tc.id, tc.key)
		b.resume()
		a.resume()
		w.settle()
		if up := len(a.established()) == 1 && len(b.established()) == 1; up != tc.up {
			t.Errorf("%s with %q: up %v", tc.id, tc.key, up)
		}
	}
}

// A user who is removed, or gets another key, loses its tunnel; the others keep theirs.
func TestUserChanged(t *testing.T) {
	for name, change := range map[string]func(c *config.Config){
		"removed":     func(c *config.Config) { c.UserGroups[0].Members = []string{"Bob"} },
		"disabled":    func(c *config.Config) { c.Users[0].Status = false },
		"another key": func(c *config.Config) { c.Users[0].Secret = ipsec.NewKey([]byte("other")) },
		"":            func(c *config.Config) { c.Users[1].Secret = ipsec.NewKey([]byte("other")); c.Users[2].Status = true },
	} {
		w, a, b := users(t, "alice@example.org", "k")
		a.e.cfg.Phase1[0].AutoNegotiate = false
		b.resume()
		a.resume()
		a.up("net")
		w.settle()
		if len(b.established()) != 1 {
			t.Fatal("not up")
		}
		c := *b.e.cfg
		c.Users = append([]config.User(nil), c.Users...)
		c.UserGroups = []config.UserPeerGroup{c.UserGroups[0]}
		change(&c)
		b.e.Reconfigure(w.now, &c)
		b.drain()
		w.settle()
		if n := len(b.established()); n != map[bool]int{true: 1, false: 0}[name == ""] {
			t.Errorf("%s: %d IKE SAs", name, n)
		}
		w.run(time.Second)
	}
	if (&Engine{cfg: &config.Config{}}).accepted(&config.Phase1{PeerType: "dialup"}, identity{message.IDFQDN, "x"}) {
		t.Error("a group that does not exist has users")
	}
}
