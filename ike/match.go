package ike

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/pki"
)

// candidates are the phase 1 entries that an IKE_SA_INIT between two addresses
// may belong to, static ones first. Only the identity in IKE_AUTH decides among
// several.
func (e *Engine) candidates(local, remote netip.Addr, tcp bool) []*config.Phase1 {
	var out []*config.Phase1
	for _, dialup := range []bool{false, true} {
		for i := range e.cfg.Phase1 {
			p1 := &e.cfg.Phase1[i]
			if p1.Dialup() == dialup && p1.Takes(tcp) && e.addressesMatch(p1, local, remote) && e.permitted(p1) {
				out = append(out, p1)
			}
		}
	}
	return out
}

func (e *Engine) addressesMatch(p1 *config.Phase1, local, remote netip.Addr) bool {
	if a, ok := e.localAddr(p1, local.Is6()); ok && a != local {
		return false
	}
	return p1.Dialup() || p1.RemoteGW == remote
}

// permitted says whether a firewall policy names the tunnel, which FortiOS
// demands; a configuration without any policy block is one that filters elsewhere.
func (e *Engine) permitted(p1 *config.Phase1) bool {
	if !e.cfg.HasPolicy {
		return true
	}
	for _, p := range e.cfg.Policies {
		if !p.Status {
			continue
		}
		for _, name := range slices.Concat(p.SrcIntf, p.DstIntf) {
			if name == p1.Name || name == "any" {
				return true
			}
		}
	}
	if at, ok := e.noPolicyAt[p1.Name]; !ok || e.now.Sub(at) >= noPolicyInterval {
		e.noPolicyAt[p1.Name] = e.now
		e.log(slog.LevelWarn, "ignoring request to establish IPsec SA, no policy configured",
			slog.String("tunnel", p1.Name))
	}
	return false
}

// noPolicyInterval is how often the missing policy is told of.
const noPolicyInterval = 5 * time.Second

// idMatches says whether a peer's identity satisfies peertype and peerid.
func idMatches(p1 *config.Phase1, id identity) bool {
	switch p1.PeerType {
	case "", "any", "peer", "peergrp", "dialup": // the certificate decides, or who the users are
		return true
	}
	if id.kind == message.IDDERASN1 {
		return pki.MatchDN([]byte(id.data), p1.PeerID)
	}
	if id.kind == message.IDFQDN || id.kind == message.IDRFC822 {
		return strings.EqualFold(id.data, p1.PeerID)
	}
	return id.String() == p1.PeerID
}

// ownIdentity is what localid and localid-type make us, else our address.
func ownIdentity(p1 *config.Phase1, local netip.Addr) identity {
	addr := func(a netip.Addr) identity {
		kind := message.IDIPv4
		if a.Is6() {
			kind = message.IDIPv6
		}
		return identity{kind, string(a.AsSlice())}
	}
	if p1.LocalID == "" {
		return addr(local)
	}
	kind := p1.LocalIDType
	a, err := netip.ParseAddr(p1.LocalID)
	if kind == "" || kind == "auto" {
		switch {
		case err == nil:
			kind = "address"
		case strings.Contains(p1.LocalID, "@"):
			kind = "user-fqdn"
		default:
			kind = "fqdn"
		}
	}
	switch kind {
	case "address":
		if err == nil {
			return addr(a)
		}
		return addr(local)
	case "user-fqdn":
		return identity{message.IDRFC822, p1.LocalID}
	case "keyid":
		return identity{message.IDKeyID, p1.LocalID}
	}
	return identity{message.IDFQDN, p1.LocalID}
}
