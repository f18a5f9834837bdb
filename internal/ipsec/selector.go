package ipsec

import (
	"fmt"
	"net/netip"
)

// TrafficSelector is one range of RFC 7296 §3.13.1. Start and End are of one
// family; Protocol 0 means any; ports 0–65535 mean any.
type TrafficSelector struct {
	Protocol           uint8
	StartPort, EndPort uint16
	Start, End         netip.Addr
}

// SelectorFromPrefix covers all of p, any protocol, any port.
func SelectorFromPrefix(p netip.Prefix) TrafficSelector {
	p = p.Masked()
	return TrafficSelector{EndPort: 65535, Start: p.Addr(), End: lastAddr(p)}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Contains says whether an address, protocol and port lie in the selector.
func (t TrafficSelector) Contains(a netip.Addr, proto uint8, port uint16) bool {
	return t.Start.Is4() == a.Is4() && t.Start.Compare(a) <= 0 && a.Compare(t.End) <= 0 &&
		(t.Protocol == 0 || t.Protocol == proto) && t.StartPort <= port && port <= t.EndPort
}

// Intersect returns the part that both selectors cover; ok is false when they
// are disjoint. This is what narrowing (RFC 7296 §2.9) returns to the initiator.
func (t TrafficSelector) Intersect(o TrafficSelector) (r TrafficSelector, ok bool) {
	if t.Start.Is4() != o.Start.Is4() || t.Protocol != 0 && o.Protocol != 0 && t.Protocol != o.Protocol {
		return r, false
	}
	r = t
	if r.Protocol == 0 {
		r.Protocol = o.Protocol
	}
	r.StartPort, r.EndPort = max(t.StartPort, o.StartPort), min(t.EndPort, o.EndPort)
	if o.Start.Compare(r.Start) > 0 {
		r.Start = o.Start
	}
	if o.End.Compare(r.End) < 0 {
		r.End = o.End
	}
	return r, r.StartPort <= r.EndPort && r.Start.Compare(r.End) <= 0
}

// String prints the selector as diagnose does: "proto:start-end:port".
func (t TrafficSelector) String() string {
	port := "0"
	if t.StartPort != 0 || t.EndPort != 65535 {
		port = fmt.Sprintf("%d-%d", t.StartPort, t.EndPort)
		if t.StartPort == t.EndPort {
			port = fmt.Sprint(t.StartPort)
		}
	}
	return fmt.Sprintf("%d:%s-%s:%s", t.Protocol, t.Start, t.End, port)
}
