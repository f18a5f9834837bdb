package ike

import (
	"strings"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// Users of a dialup phase 1 (peertype dialup): their names are the identities that it accepts, and each
// has a pre-shared key of its own.

// userOf is the user of a phase 1 whose name is an identity; nil: none.
func userOf(c *config.Config, p1 *config.Phase1, id identity) *config.User {
	name, folds := id.String(), id.kind == message.IDFQDN || id.kind == message.IDRFC822
	for i := range c.Users {
		u := &c.Users[i]
		if u.Status && (u.Name == name || folds && strings.EqualFold(u.Name, name)) && c.InUserGroup(p1, u.Name) {
			return u
		}
	}
	return nil
}

// accepted says whether an identity is a user's, where only users are taken.
func (e *Engine) accepted(p1 *config.Phase1, id identity) bool {
	return p1.PeerType != "dialup" || userOf(e.cfg, p1, id) != nil
}

// sharedKey is the pre-shared key between a phase 1 and an identity.
func (e *Engine) sharedKey(p1 *config.Phase1, id identity) ipsec.Key {
	if p1.PeerType != "dialup" {
		return p1.PSK
	}
	if u := userOf(e.cfg, p1, id); u != nil {
		return u.Secret
	}
	return ipsec.Key{}
}

// eapUser is the user whom EAP proved by a password here; nil: it was another way.
func eapUser(c *config.Config, p1 *config.Phase1, id identity) *config.User {
	for _, u := range c.EAPUsers(p1).Local {
		if u.Name == id.data {
			return u
		}
	}
	return nil
}

// userGone says that a user was removed or has another key: its IKE SA ends.
func userGone(was *config.Config, a *config.Phase1, is *config.Config, b *config.Phase1, id identity) bool {
	if a != nil && b != nil && id.kind == idUser {
		x, y := eapUser(was, a, id), eapUser(is, b, id)
		return x != nil && (y == nil || string(x.Secret.Bytes()) != string(y.Secret.Bytes()))
	}
	if a == nil || b == nil || b.PeerType != "dialup" || id.kind == 0 {
		return false
	}
	x, y := userOf(was, a, id), userOf(is, b, id)
	return y == nil || x != nil && !signs(b) && string(x.Secret.Bytes()) != string(y.Secret.Bytes())
}
