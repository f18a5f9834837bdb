package config

import (
	"fmt"
	"slices"
	"time"
)

var radiusSpec = &spec[RADIUSServer]{
	path:  "user radius",
	help:  "Servers that decide on users by EAP (RFC 3579): name it as a member of a user group.",
	label: "RADIUS server",
	entry: "NAME (up to 35 bytes)",
	make: func(name string, _ int) (RADIUSServer, string) {
		return RADIUSServer{Name: name}, nameFault("a RADIUS server", name, 35)
	},
	rows: []row[RADIUSServer]{
		{key: "server", value: text{max: 63, what: "an IP address or host name"}, at: func(r *RADIUSServer) any { return &r.Servers[0] }, help: "required"},
		{key: "secret", value: secret{key: "secret", max: 128}, at: func(r *RADIUSServer) any { return &r.Secrets[0] }, help: "shared with it; required"},
		{key: "secondary-server", value: text{max: 63, what: "an IP address or host name"}, at: func(r *RADIUSServer) any { return &r.Servers[1] }, help: "asked where the first does not answer; a conversation stays with the one that answered"},
		{key: "secondary-secret", value: secret{key: "secondary-secret", max: 128}, at: func(r *RADIUSServer) any { return &r.Secrets[1] }, help: "required with secondary-server"},
		{key: "radius-port", value: number{0, 65535, 0}, def: "0", at: func(r *RADIUSServer) any { return &r.Port }, help: "0: 1812"},
		{key: "timeout", value: number{1, 300, time.Second}, def: "5", at: func(r *RADIUSServer) any { return &r.Timeout }, help: "for an answer, of all servers together; a question is sent again within it"},
		{key: "nas-ip", value: address{4}, at: func(r *RADIUSServer) any { return &r.NASIP }, help: "told as NAS-IP-Address"},
		{key: "nas-id", value: text{max: 253}, at: func(r *RADIUSServer) any { return &r.NASID }, help: "told as NAS-Identifier; empty: the host's name"},
		{key: "source-ip", value: address{4}, at: func(r *RADIUSServer) any { return &r.SourceIP4 }, help: "the address that questions come from; unset: the system's choice"},
	},
	ignored: append(plain("auth-type username-case-sensitive group-override-attr-type password-renewal password-encoding h3c-compatibility acct-* rsso* sso-* nas-id-type call-station-id-type interface interface-select-method use-management-vdom switch-controller-* class status-ttl mac-* delimiter user-name"),
		ignored{key: "tertiary-server", only: []string{""}, why: "two servers are asked at most"},
		ignored{key: "transport-protocol", only: []string{"udp"}, why: "servers are asked by UDP"},
		ignored{key: "require-message-authenticator", only: []string{"enable"}, why: "EAP always has it"},
		ignored{key: "all-usergroup", only: []string{"disable"}, why: "name the server as a member of the group"}),
	children: []child[RADIUSServer]{{path: "accounting-server"}},
}

// checkEAP settles what phase 1 entries say of EAP, and what RADIUS servers need.
func (ld *loader) checkEAP(c *Config) {
	for _, o := range ld.radius.entries {
		for i, key := range [][2]string{{"server", "secret"}, {"secondary-server", "secondary-secret"}} {
			server, secret := o.val.Servers[i] != "", o.val.Secrets[i].Len() > 0
			switch {
			case i == 0 && !server && !o.src.bad[key[0]]:
				ld.fault(o.src.at(key[0]), o.src.object, key[0], key[0]+" is missing: it needs an address or host name")
			case server && !secret && !o.src.bad[key[1]]:
				ld.fault(o.src.at(key[1]), o.src.object, key[1], fmt.Sprintf("%s is missing: %s needs it", key[1], key[0]))
			}
		}
	}
	var groups []string
	for _, g := range c.UserGroups {
		groups = append(groups, g.Name)
	}
	for _, o := range ld.phase1.entries {
		p, s := o.val, o.src
		fault := func(key, format string, args ...any) {
			if !s.bad[key] {
				ld.fault(s.at(key), s.object, key, fmt.Sprintf(format, args...))
			}
		}
		if !p.EAP {
			for _, key := range []string{"authusrgrp", "authusr"} {
				if v := map[string]string{"authusrgrp": p.AuthUserGroup, "authusr": p.AuthUser}[key]; v != "" {
					fault(key, "%s (%s) needs `set eap enable`", key, echo(v))
				}
			}
			continue
		}
		if p.PPK != "disable" {
			fault("ppk", "ppk (%s) excludes eap enable: EAP's key is mixed with no other here", p.PPK)
		}
		if p.Type != "dynamic" {
			ld.checkEAPClient(p, s, fault)
			continue
		}
		switch {
		case p.PeerType != "any" && p.PeerType != "one":
			fault("peertype", "peertype (%s) excludes eap enable: who is accepted stands in authusrgrp", p.PeerType)
		case p.AuthUserGroup == "":
			fault("authusrgrp", "authusrgrp is missing: eap enable needs a user group")
		case !slices.Contains(groups, p.AuthUserGroup):
			fault("authusrgrp", "authusrgrp (%s) names no user group%s", echo(p.AuthUserGroup), ld.hint(p.AuthUserGroup, groups))
		}
		if p.AuthUser != "" || p.AuthPassword.Len() > 0 {
			fault("authusr", "authusr and authpasswd are a client's: type dynamic has users in authusrgrp")
		}
		u := c.EAPUsers(&p.Phase1)
		for _, x := range u.Local {
			if x.Secret.Len() == 0 {
				fault("authusrgrp", "authusrgrp (%s): the user %s has no passwd", p.AuthUserGroup, echo(x.Name))
			}
		}
		if len(u.Peers) > 0 && p.AuthMethod != "signature" {
			fault("authusrgrp", "authusrgrp (%s) has user peers, who come by EAP-TLS: that needs `set authmethod signature` and a certificate", p.AuthUserGroup)
		}
	}
}

func (ld *loader) checkEAPClient(p *phase1Draft, _ *source, fault func(key, format string, args ...any)) {
	if p.AuthUserGroup != "" {
		fault("authusrgrp", "authusrgrp (%s) is a gateway's with `set type dynamic`: a client has authusr", echo(p.AuthUserGroup))
	}
	switch password := p.AuthPassword.Len() > 0; {
	case password && p.AuthUser == "":
		fault("authusr", "authusr is missing: authpasswd needs the user's name")
	case !password && len(p.Certificate) == 0:
		fault("authpasswd", "authpasswd is missing: a client with eap enable needs a password, or a certificate for EAP-TLS")
	case p.EAPOnly && len(p.Certificate) == 0:
		fault("eap-only", "eap-only (enable) needs a certificate: only EAP-TLS proves both sides well enough")
	}
}
