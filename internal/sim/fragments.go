package sim

import (
	"fmt"
	"strings"

	"tandem/cluster"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// Features of IKEv2 that a client and its tunnel use beside what every tunnel does. They
// are drawn from a source of their own, so that a seed is otherwise the same with them.
type Features struct {
	Fragments bool `json:",omitempty"` // small datagrams: IKE_AUTH and CREATE_CHILD_SA are cut (RFC 7383)
	Childless bool `json:",omitempty"` // RFC 6023
	PPK       bool `json:",omitempty"` // RFC 8784
}

// smallDatagrams is fragmentation-mtu where messages are cut, in bytes. The least that can
// be configured is as much as our messages have; it stands for this here.
const (
	smallDatagrams = 230
	leastMTU       = 500
)

func (s *Setup) features(seed uint64) {
	r := stream(seed, "features of IKE")
	for i := range s.Clients {
		s.Clients[i].Features = Features{Fragments: chance(r, 0.3), Childless: chance(r, 0.2), PPK: chance(r, 0.2)}
	}
}

// phase1 writes what both ends of the tunnel are told.
func (f Features) phase1(b *strings.Builder) {
	if f.Fragments {
		fmt.Fprintf(b, "set fragmentation-mtu %d\n", leastMTU)
	}
	if f.Childless {
		b.WriteString("set childless-ike enable\n")
	}
	if f.PPK {
		b.WriteString("set ppk require\nset ppk-identity sim\nset ppk-secret example-only-example-only-example\n")
	}
}

// cutSmall makes datagrams small where that was asked for.
func cutSmall(c *config.Config) {
	for i := range c.Phase1 {
		if p := &c.Phase1[i]; p.FragmentationMTU == leastMTU {
			p.FragmentationMTU = smallDatagrams
		}
	}
}

// fragments is what the observer knows of messages that are sent in fragments, of one end
// of an IKE SA as requester. A fragment is compared with itself; what is said of a
// message is said of its first fragment.
type fragments struct {
	exchange map[uint32]Exchange // of a request, as its first fragment tells
	sent     map[partID]uint64   // hash
	got      map[gotID]int       // different ones of a response that came to a process
	seen     map[gotPart]bool
	lost     map[uint32]int // the attempt of which something was lost last
}

type partID struct {
	id       uint32
	part     uint16
	response bool
}

type gotID struct {
	of cluster.ProcessID
	id uint32
}

type gotPart struct {
	gotID
	part uint16
}

func (f *fragments) init() {
	*f = fragments{map[uint32]Exchange{}, map[partID]uint64{}, map[gotID]int{}, map[gotPart]bool{}, map[uint32]int{}}
}

// fragment is which one a message is; nil: it is whole.
func fragment(m *message.Message) *message.EncryptedFragment {
	if len(m.Payloads) == 0 {
		return nil
	}
	f, _ := m.Payloads[len(m.Payloads)-1].(*message.EncryptedFragment)
	return f
}

// innerPart says what a request is about of which this is a fragment: the first payload
// tells, and in an SA payload its first proposal.
func (o *observer) innerPart(m *message.Message, f *message.EncryptedFragment, raw []byte) Exchange {
	known := o.side(m.SPIs, m.Initiator != m.Response).cut.exchange
	if f.Number != 1 {
		return known[m.MessageID]
	}
	k := o.openers[m.SPIs]
	dir := 1
	if m.Initiator {
		dir = 0
	}
	if k == nil || k.sealer[dir] == nil {
		return ""
	}
	part, err := m.OpenFragment(raw, k.sealer[dir])
	if err != nil {
		return ""
	}
	const protocol = 4 + 5 // of the first proposal, behind both headers' lengths
	x := CreateChild
	switch {
	case m.Exchange == message.Informational:
		x = Delete // nothing else of ours is that long
	case f.First == message.TypeNotify:
		x = RekeyChildX
	case f.First == message.TypeSA && len(part) > protocol && part[protocol] == ipsec.ProtocolIKE:
		x = RekeyIKEX
	}
	known[m.MessageID] = x
	return x
}

// sentPart compares a later fragment with itself (RFC 7296 §2.1).
func (o *observer) sentPart(d *daemon, m *message.Message, t *told, h uint64, split bool) {
	s := o.side(m.SPIs, m.Initiator != m.Response)
	key := partID{m.MessageID, t.part, m.Response}
	if old, ok := s.cut.sent[key]; ok && old != h && !split && !s.apart[m.MessageID] {
		o.w.violate(RuleWindow, "%s sends %s again with other bytes", d.h.name, t.text)
	}
	s.cut.sent[key] = h
}

// complete says that a process has all of a response.
func (f *fragments) complete(of cluster.ProcessID, m *message.Message, t *told) bool {
	if t.part == 0 {
		return true
	}
	id := gotID{of, m.MessageID}
	if part := (gotPart{id, t.part}); !f.seen[part] {
		f.seen[part] = true
		f.got[id]++
	}
	return f.got[id] == int(t.parts)
}

// loses says whether an attempt is lost with a datagram, which it is only once.
func (s *side) loses(id uint32, t *told) bool {
	if t.part == 0 {
		return true
	}
	if s.cut.lost[id] == s.attempts[id] {
		return false
	}
	s.cut.lost[id] = s.attempts[id]
	return true
}
