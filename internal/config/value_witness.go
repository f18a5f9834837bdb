package config

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Witness is a voter of a farm's log that holds no tunnel: where it listens, and its
// number. Members learn each other's numbers from heartbeats; a witness sends none.
type Witness struct {
	Addr netip.Addr // invalid: there is none
	Node int        // 1–16
}

// witness is an address and a node number, in a Witness.
type witness struct{}

func (witness) allowed() string { return "an IP address and a node number (1–16)" }

func (witness) parse(words []word, into any) string {
	if len(words) != 2 {
		return "takes two values: the witness's address and its node number (set witness 172.31.1.9 3)"
	}
	a, err := parseAddr(words[0].text)
	if err != nil || a.IsUnspecified() || a.IsMulticast() {
		return fmt.Sprintf("(%s) must be %s", echo(words[0].text), familyName(0))
	}
	n, err := strconv.Atoi(words[1].text)
	if err != nil || n < 1 || n > 16 {
		return fmt.Sprintf("(%s): the second value must be the witness's node number, between 1 and 16", echo(words[1].text))
	}
	*into.(*Witness) = Witness{Addr: a, Node: n}
	return ""
}

func (witness) clear(into any) { *into.(*Witness) = Witness{} }

func (witness) format(from any) string {
	w := *from.(*Witness)
	if !w.Addr.IsValid() {
		return ""
	}
	return fmt.Sprintf("%s %d", w.Addr, w.Node)
}

// checkWitness: a witness belongs to a farm, at an address of its own.
func (ld *loader) checkWitness(c *Config) {
	w, s := c.Tandem.Witness, ld.tandem.src
	if !w.Addr.IsValid() {
		return
	}
	if !c.Standalone.Farm() {
		ld.fault(s.at("witness"), "system tandem", "witness", fmt.Sprintf("witness (%s) needs cluster peers in `config system standalone-cluster`: the pair of `config system ha` decides without a witness", w.Addr))
	}
	for i := range c.Standalone.Peers {
		if p := &c.Standalone.Peers[i]; p.PeerIP == w.Addr {
			ld.fault(s.at("witness"), "system tandem", "witness", fmt.Sprintf("witness (%s) is the address of cluster-peer %d: a witness is no peer", w.Addr, p.ID))
		}
	}
	if len(c.Standalone.Peers) > 14 {
		ld.fault(s.at("witness"), "system tandem", "witness", fmt.Sprintf("witness (%s) and %d members are more than 16 nodes", w.Addr, len(c.Standalone.Peers)+1))
	}
}
