package config

import (
	"fmt"
	"slices"
)

var userSpec = &spec[User]{
	path:  "user local",
	help:  "A dialup client by its identity, with a password or key of its own.",
	label: "user",
	entry: "NAME (up to 64 bytes): what the client sends as its identity",
	make: func(name string, _ int) (User, string) {
		return User{Name: name}, nameFault("a user", name, 64)
	},
	rows: []row[User]{
		{key: "status", value: toggle{}, def: "enable", at: func(u *User) any { return &u.Status }, help: "a disabled user is nobody"},
		{key: "type", value: enum{words: []string{"password"}, refused: map[string]string{
			"radius": "name the server of `config user radius` as a member of the group", "tacacs+": "no other server is asked", "ldap": "no other server is asked", "saml": "no other server is asked"}},
			def: "password", at: func(*User) any { return new(string) }, help: "the key stands here"},
		{key: "passwd", value: secret{key: "passwd", max: 256}, at: func(u *User) any { return &u.Secret }, help: "the user's password with EAP; with peertype dialup its pre-shared key, 1 to 256 bytes, required where authmethod is psk"},
	},
	ignored: append(plain("id passwd-time passwd-policy authtimeout auth-concurrent-override auth-concurrent-value sms-* email-to username-* workstation qkd-profile"),
		ignored{key: "two-factor", only: []string{"disable"}, why: "there is no second factor here"},
		ignored{key: "ppk-secret", only: []string{""}, why: "PPKs belong to phase 1 entries"}),
}

var userGroupSpec = &spec[UserPeerGroup]{
	path:  "user group",
	help:  "Users under one name, for `set usrgrp` and `set authusrgrp` of a phase 1.",
	label: "user group",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, _ int) (UserPeerGroup, string) {
		return UserPeerGroup{Name: name}, nameFault("a user group", name, 35)
	},
	rows: []row[UserPeerGroup]{
		{key: "member", value: names{max: 64, what: "names of users, of user peers, of RADIUS servers"}, at: func(g *UserPeerGroup) any { return &g.Members }, help: "who belongs to it; by user peers those with such a certificate, by servers all whom they accept (both with EAP only)"},
	},
	ignored: append(plain("id auth-concurrent-override auth-concurrent-value authtimeout http-digest-realm sso-attribute-value user-id password user-name sponsor company email mobile-phone expire* max-accounts multiple-guest-add"),
		ignored{key: "group-type", only: []string{"firewall"}, why: "users for firewall policies are not known here"}),
	children: []child[UserPeerGroup]{{path: "guest"}},
}

// checkUsers settles what groups and phase 1 entries say of users.
func (ld *loader) checkUsers(c *Config) {
	var users, groups []string
	known, members := map[string]*User{}, map[string][]string{}
	for _, p := range c.UserPeers {
		users = append(users, p.Name)
	}
	for _, r := range c.RADIUS {
		users = append(users, r.Name)
	}
	others := len(users)
	for i := range c.Users {
		users, known[c.Users[i].Name] = append(users, c.Users[i].Name), &c.Users[i]
	}
	for _, o := range ld.userGroups.entries {
		groups, members[o.val.Name] = append(groups, o.val.Name), o.val.Members
		for _, m := range o.val.Members {
			if known[m] == nil && !slices.Contains(users[:others], m) {
				ld.fault(o.src.at("member"), o.src.object, "member", fmt.Sprintf("member (%s) names no user, user peer or RADIUS server%s", echo(m), ld.hint(m, users)))
			}
		}
	}
	for _, o := range ld.phase1.entries {
		p, s := o.val, o.src
		fault := func(key, format string, args ...any) {
			if !s.bad[key] {
				ld.fault(s.at(key), s.object, key, fmt.Sprintf(format, args...))
			}
		}
		switch {
		case p.PeerType != "dialup" && p.UserGroup != "":
			fault("usrgrp", "usrgrp is only checked with `set peertype dialup` (peertype is %s)", p.PeerType)
		case p.PeerType != "dialup":
		case p.Type != "dynamic":
			fault("peertype", "peertype (dialup) needs `set type dynamic`: users are dialup clients")
		case p.UserGroup == "":
			fault("usrgrp", "usrgrp is missing: peertype dialup needs a user group")
		case !slices.Contains(groups, p.UserGroup):
			fault("usrgrp", "usrgrp (%s) names no user group%s", echo(p.UserGroup), ld.hint(p.UserGroup, groups))
		case p.AuthMethod == "psk":
			for _, m := range members[p.UserGroup] {
				if u := known[m]; u != nil && u.Status && u.Secret.Len() == 0 {
					fault("usrgrp", "usrgrp (%s): the user %s has no passwd, which would be its pre-shared key", p.UserGroup, echo(m))
				}
			}
		}
	}
}
