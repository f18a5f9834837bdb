package config

import (
	"net/netip"
	"slices"
	"time"

	"tandem/internal/ipsec"
)

// User is one `config user local` entry: an identity with a key of its own.
type User struct {
	Name   string
	Secret ipsec.Key
	Status bool
}

// InUserGroup says that a phase 1 with peertype dialup accepts a user.
func (c *Config) InUserGroup(p *Phase1, user string) bool {
	return p.PeerType == "dialup" && slices.ContainsFunc(c.UserGroups, func(g UserPeerGroup) bool {
		return g.Name == p.UserGroup && slices.Contains(g.Members, user)
	})
}

// UserPeerGroup is one `config user peergrp` entry, or one of `config user group`.
type UserPeerGroup struct {
	Name    string
	Members []string
}

// RADIUSServer is one `config user radius` entry.
type RADIUSServer struct {
	Name             string
	Servers          [2]string // addresses or host names; the second may be empty
	Secrets          [2]ipsec.Key
	Port             int           // 0: 1812
	Timeout          time.Duration // 1–300 s, for all servers together
	NASIP, SourceIP4 netip.Addr    // invalid: none
	NASID            string        // empty: the host's name
}

// EAPUsers are who a dialup phase 1 with EAP accepts.
type EAPUsers struct {
	Local []*User         // by password, here
	Peers []*UserPeer     // by certificate, here
	By    []*RADIUSServer // everybody whom these accept
}

// EAPUsers resolves the group of a phase 1.
func (c *Config) EAPUsers(p *Phase1) (out EAPUsers) {
	for _, g := range c.UserGroups {
		if g.Name != p.AuthUserGroup {
			continue
		}
		for _, m := range g.Members {
			if i := slices.IndexFunc(c.Users, func(u User) bool { return u.Name == m }); i >= 0 {
				if c.Users[i].Status {
					out.Local = append(out.Local, &c.Users[i])
				}
			} else if i := slices.IndexFunc(c.UserPeers, func(u UserPeer) bool { return u.Name == m }); i >= 0 {
				out.Peers = append(out.Peers, &c.UserPeers[i])
			} else if i := slices.IndexFunc(c.RADIUS, func(r RADIUSServer) bool { return r.Name == m }); i >= 0 {
				out.By = append(out.By, &c.RADIUS[i])
			}
		}
	}
	return out
}
