package node

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"net/netip"
	"slices"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

// What members tell each other about inner prefixes, in the bytes that the forwarding link
// carries. A message is a header (format, type, both processes, number) and parts up to
// its end; a part is of one scope at one epoch. A tunnel's name stands where it is named
// first in the message, later its number in the order of first naming.
const (
	lanFormat = 1
	lanHead   = 2 + 8 + 8 + 4
	lanPart   = 2 + 8 + 1 + 1 // scope, epoch, kind
	lanSum    = 4 + 8         // how many entries, and their digest
	// maxLAN is the longest message. Few datagrams carry it, and one is dealt with in well
	// under a millisecond.
	maxLAN      = 8 << 10
	maxLANName  = 63 // of a tunnel, bytes
	maxLANNames = 64 // in a message
	maxLANParts = 256
	newName     = 255
)

// lanKind is what a part of a message says.
type lanKind uint8

const (
	// Of the owner, to members.
	// Each says what the set is, in the end: the number of entries and their digest.
	lanState  lanKind = 1 + iota // no more than that
	lanChange                    // what has come and gone
	lanFirst                     // the set, whole, begins
	lanMore                      // goes on
	lanLast                      // ends
	lanWhole                     // begins and ends
	// Of the member, to the owner.
	lanHave    // as you say
	lanWant    // send it whole
	lanLimited // more entries than are kept; what is kept is kept up
	lanLater   // not now: this member believes that it owns the scope itself
	lanOld     // an older epoch, or not yours
	lanKinds
)

func (k lanKind) answers() bool { return k >= lanHave }
func (k lanKind) lists() bool   { return k >= lanChange && k <= lanWhole }

// lanEntry is an entry that has come or, in a change, gone.
type lanEntry struct {
	reach
	gone bool
}

// lanPartOf is one part of a message.
type lanPartOf struct {
	scope   cluster.ScopeID
	epoch   cluster.Epoch
	kind    lanKind
	is      setSum
	entries []lanEntry
}

// lanMessage is a message as read.
type lanMessage struct {
	answer   bool
	from, to cluster.ProcessID
	number   uint32
	parts    []lanPartOf
}

// lanWriter makes a message.
type lanWriter struct {
	b     []byte
	names []string
	parts int
	last  int // where the last part begins
}

func newLANWriter(answer bool, from, to cluster.ProcessID, number uint32) *lanWriter {
	b := append(make([]byte, 0, lanHead+64), lanFormat, 0)
	if answer {
		b[1] = 1
	}
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	b = binary.BigEndian.AppendUint64(b, uint64(to))
	return &lanWriter{b: binary.BigEndian.AppendUint32(b, number)}
}

// put adds a part with as many of the entries as there is room for, and returns how many
// those are; ok is false, and nothing is added, when not even an empty one would fit.
func (w *lanWriter) put(p *lanPartOf) (n int, ok bool) {
	room := lanPart
	if !p.kind.answers() {
		room += lanSum
	}
	if p.kind.lists() {
		room += 2
	}
	if w.parts == maxLANParts || len(w.b)+room > maxLAN {
		return 0, false
	}
	w.parts++
	w.last = len(w.b)
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(p.scope))
	w.b = binary.BigEndian.AppendUint64(w.b, p.epoch.Counter)
	w.b = append(w.b, byte(p.epoch.Node), byte(p.kind))
	if !p.kind.answers() {
		w.b = binary.BigEndian.AppendUint32(w.b, p.is.n)
		w.b = binary.BigEndian.AppendUint64(w.b, p.is.sum)
	}
	if !p.kind.lists() {
		return 0, true
	}
	count := len(w.b)
	w.b = append(w.b, 0, 0)
	for n < len(p.entries) && w.entry(&p.entries[n]) {
		n++
	}
	binary.BigEndian.PutUint16(w.b[count:], uint16(n))
	return n, true
}

// amend changes kind and sum of the last part, when it is known how many entries it has.
func (w *lanWriter) amend(p *lanPartOf) {
	b := w.b[w.last+lanPart-1:]
	b[0] = byte(p.kind)
	binary.BigEndian.PutUint32(b[1:], p.is.n)
	binary.BigEndian.PutUint64(b[5:], p.is.sum)
}

const (
	entryGone = 1 << iota
	entryBare
	entryIPv6
	entryKnown = entryGone | entryBare | entryIPv6
)

func (w *lanWriter) entry(x *lanEntry) bool {
	i := slices.Index(w.names, x.Tunnel)
	size := 3 + (x.Prefix.Bits()+7)/8
	if i < 0 {
		size += 1 + len(x.Tunnel)
	}
	if len(w.b)+size > maxLAN || i < 0 && len(w.names) == maxLANNames {
		return false
	}
	flags := byte(0)
	if x.gone {
		flags |= entryGone
	}
	if x.bare {
		flags |= entryBare
	}
	if x.Prefix.Addr().Is6() {
		flags |= entryIPv6
	}
	if i < 0 {
		w.names = append(w.names, x.Tunnel)
		w.b = append(w.b, flags, newName, byte(len(x.Tunnel)))
		w.b = append(w.b, x.Tunnel...)
	} else {
		w.b = append(w.b, flags, byte(i))
	}
	w.b = append(w.b, byte(x.Prefix.Bits()))
	w.b = append(w.b, x.Prefix.Addr().AsSlice()[:(x.Prefix.Bits()+7)/8]...)
	return true
}

var errLAN = errors.New("malformed message about inner prefixes")

// readLAN reads a message; every byte counts.
func readLAN(b []byte) (*lanMessage, error) {
	if len(b) < lanHead || len(b) > maxLAN || b[0] != lanFormat || b[1] > 1 {
		return nil, errLAN
	}
	m := &lanMessage{
		answer: b[1] == 1, from: cluster.ProcessID(binary.BigEndian.Uint64(b[2:])), to: cluster.ProcessID(binary.BigEndian.Uint64(b[10:])),
		number: binary.BigEndian.Uint32(b[18:]),
	}
	var names []string
	for b = b[lanHead:]; len(b) > 0; {
		if len(b) < lanPart || len(m.parts) == maxLANParts {
			return nil, errLAN
		}
		p := lanPartOf{
			scope: cluster.ScopeID(binary.BigEndian.Uint16(b)),
			epoch: cluster.Epoch{Counter: binary.BigEndian.Uint64(b[2:]), Node: cluster.NodeID(b[10])}, kind: lanKind(b[11]),
		}
		home := p.scope.Home()
		if home < 1 || home > fsm.MaxNodes || p.kind < lanState || p.kind >= lanKinds || p.kind.answers() != m.answer {
			return nil, errLAN
		}
		b = b[lanPart:]
		if !p.kind.answers() {
			if len(b) < lanSum {
				return nil, errLAN
			}
			p.is = setSum{binary.BigEndian.Uint32(b), binary.BigEndian.Uint64(b[4:])}
			b = b[lanSum:]
		}
		if p.kind.lists() {
			var ok bool
			if b, ok = p.read(b, &names); !ok {
				return nil, errLAN
			}
		}
		m.parts = append(m.parts, p)
	}
	return m, nil
}

// read reads the entries of a part, and returns what follows them.
func (p *lanPartOf) read(b []byte, names *[]string) (rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; n > len(b)/3 {
		return nil, false
	}
	for range n {
		if len(b) < 3 || b[0]&^entryKnown != 0 {
			return nil, false
		}
		x := lanEntry{gone: b[0]&entryGone != 0}
		x.bare = b[0]&entryBare != 0
		six := b[0]&entryIPv6 != 0
		if i := int(b[1]); i == newName {
			l := int(b[2])
			if b = b[3:]; l < 1 || l > maxLANName || len(b) < l+1 || len(*names) == maxLANNames || slices.Contains(*names, string(b[:l])) {
				return nil, false
			}
			x.Tunnel = string(b[:l])
			*names = append(*names, x.Tunnel)
			b = b[l:]
		} else {
			if i >= len(*names) {
				return nil, false
			}
			x.Tunnel = (*names)[i]
			b = b[2:]
		}
		if x.Prefix, b, ok = readPrefix(b, six); !ok || x.gone && p.kind != lanChange {
			return nil, false
		}
		p.entries = append(p.entries, x)
	}
	return b, true
}

// readPrefix reads the length and as many bytes of the address as that says.
func readPrefix(b []byte, six bool) (p netip.Prefix, rest []byte, ok bool) {
	size := 4
	if six {
		size = 16
	}
	if len(b) < 1 {
		return p, nil, false
	}
	n := int(b[0])
	l := (n + 7) / 8
	if b = b[1:]; n < 1 || n > 8*size || len(b) < l || n%8 != 0 && bits.TrailingZeros8(b[l-1]) < 8-n%8 {
		return p, nil, false
	}
	var a [16]byte
	copy(a[:], b[:l])
	addr := netip.AddrFrom16(a)
	if !six {
		addr = netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.PrefixFrom(addr, n), b[l:], !addr.Is4In6()
}
