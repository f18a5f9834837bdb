package config

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tandem/internal/ipsec"
)

// address is one IP address of one family (4 or 6; 0: either), in a netip.Addr.
// 0.0.0.0 and :: mean "not set" and are stored as the invalid address.
type address struct{ family int }

func familyName(f int) string {
	switch f {
	case 4:
		return "an IPv4 address"
	case 6:
		return "an IPv6 address"
	}
	return "an IP address"
}

func (a address) allowed() string { return familyName(a.family) }
func (a address) is(x netip.Addr) bool {
	return a.family == 0 || x.Is4() == (a.family == 4)
}
func (a address) parse(words []word, into any) string {
	if msg := single(words); msg != "" {
		return msg
	}
	x, err := parseAddr(words[0].text)
	if err != nil || !a.is(x) {
		return fmt.Sprintf("(%s) must be %s", echo(words[0].text), familyName(a.family))
	}
	if x.IsUnspecified() {
		a.clear(into)
		return ""
	}
	*into.(*netip.Addr) = x
	return ""
}
func (a address) clear(into any) {
	p := into.(*netip.Addr)
	if !p.IsValid() || a.is(*p) {
		*p = netip.Addr{}
	}
}
func (a address) format(from any) string {
	x := *from.(*netip.Addr)
	switch {
	case x.IsValid() && a.is(x):
		return x.String()
	case a.family == 6:
		return "::"
	}
	return "0.0.0.0"
}

// parseAddr reads an address without zone; IPv4 in IPv6 is taken as IPv4.
func parseAddr(s string) (netip.Addr, error) {
	x, err := netip.ParseAddr(s)
	if err == nil && x.Zone() != "" {
		return x, fmt.Errorf("zone")
	}
	return x.Unmap(), err
}

// parsePrefix reads "addr mask", "addr/len" or a lone address. Host bits stay.
func parsePrefix(words []word, family int) (netip.Prefix, string) {
	want := "an IPv4 network (10.1.0.0 255.255.0.0 or 10.1.0.0/16)"
	if family == 6 {
		want = "an IPv6 network (2001:db8::/64)"
	}
	bad := func() (netip.Prefix, string) {
		return netip.Prefix{}, fmt.Sprintf("(%s) must be %s", echo(strings.Join(texts(words), " ")), want)
	}
	if len(words) > 2 || family == 6 && len(words) > 1 {
		return bad()
	}
	s, length, slash := strings.Cut(words[0].text, "/")
	x, err := netip.ParseAddr(s)
	if err != nil || x.Zone() != "" || x.Is4() != (family == 4) || x.Is4In6() {
		return bad()
	}
	n := x.BitLen()
	switch {
	case slash && len(words) == 2:
		return bad()
	case slash:
		if n, err = strconv.Atoi(length); err != nil || n < 0 || n > x.BitLen() || strconv.Itoa(n) != length {
			return bad()
		}
	case len(words) == 2:
		m, err := netip.ParseAddr(words[1].text)
		if err != nil || !m.Is4() {
			return bad()
		}
		b := m.As4()
		v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		n = bits.LeadingZeros32(^v)
		if bits.OnesCount32(v) != n {
			return netip.Prefix{}, fmt.Sprintf("(%s) has a mask with gaps; %s", echo(strings.Join(texts(words), " ")), "it must be "+want)
		}
	}
	return netip.PrefixFrom(x, n), ""
}

func formatPrefix(p netip.Prefix) string {
	if !p.Addr().Is4() {
		return p.String()
	}
	v := ^uint32(0) << (32 - p.Bits())
	if p.Bits() == 0 {
		v = 0
	}
	return p.Addr().String() + " " + netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}).String()
}

// network is a prefix in a netip.Prefix; the host bits are cleared unless host
// is set. With none, 0.0.0.0/0 and ::/0 mean "not set".
type network struct {
	family     int
	host, none bool
}

func (n network) allowed() string {
	switch {
	case n.family == 6:
		return "an IPv6 address and prefix length"
	case n.host:
		return "an IPv4 address and mask, in either form"
	}
	return "an IPv4 network and mask, in either form"
}
func (n network) parse(words []word, into any) string {
	p, msg := parsePrefix(words, n.family)
	if msg != "" {
		return msg
	}
	if !n.host {
		p = p.Masked()
	}
	if n.none && p.Addr().IsUnspecified() {
		n.clear(into)
		return ""
	}
	*into.(*netip.Prefix) = p
	return ""
}
func (n network) is(p netip.Prefix) bool { return p.Addr().Is4() == (n.family == 4) }
func (n network) clear(into any) {
	p := into.(*netip.Prefix)
	if !p.IsValid() || n.is(*p) {
		*p = netip.Prefix{}
	}
}
func (n network) format(from any) string {
	p := *from.(*netip.Prefix)
	switch {
	case p.IsValid() && n.is(p):
		return formatPrefix(p)
	case n.family == 6:
		return "::/0"
	}
	return "0.0.0.0 0.0.0.0"
}

// firstOf is the first prefix of one family in a []netip.Prefix; the others of
// that family are secondary addresses, which nested blocks hold.
type firstOf struct{ family int }

func (f firstOf) allowed() string { return network{family: f.family, host: true}.allowed() }
func (f firstOf) index(l []netip.Prefix) int {
	return slices.IndexFunc(l, func(p netip.Prefix) bool { return p.Addr().Is4() == (f.family == 4) })
}
func (f firstOf) parse(words []word, into any) string {
	p, msg := parsePrefix(words, f.family)
	if msg != "" {
		return msg
	}
	f.clear(into)
	if l := into.(*[]netip.Prefix); !p.Addr().IsUnspecified() {
		*l = append([]netip.Prefix{p}, *l...)
	}
	return ""
}
func (f firstOf) clear(into any) {
	l := into.(*[]netip.Prefix)
	if i := f.index(*l); i >= 0 {
		*l = slices.Delete(*l, i, i+1)
	}
	if len(*l) == 0 {
		*l = nil
	}
}
func (f firstOf) format(from any) string {
	l := *from.(*[]netip.Prefix)
	if i := f.index(l); i >= 0 {
		return formatPrefix(l[i])
	}
	if f.family == 6 {
		return "::/0"
	}
	return "0.0.0.0 0.0.0.0"
}

// prefixOf returns the prefix that covers exactly the selector's addresses.
func prefixOf(t ipsec.TrafficSelector) (netip.Prefix, bool) {
	for n := 0; n <= t.Start.BitLen(); n++ {
		p := netip.PrefixFrom(t.Start, n)
		if p.Masked().Addr() == t.Start {
			if s := ipsec.SelectorFromPrefix(p); s.End == t.End {
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}

// addresses are up to most IP addresses, in a []netip.Addr.
type addresses struct{ most int }

func (a addresses) allowed() string { return fmt.Sprintf("up to %d IP addresses", a.most) }
func (a addresses) parse(words []word, into any) string {
	var out []netip.Addr
	for _, w := range words {
		x, err := parseAddr(w.text)
		if err != nil || x.IsUnspecified() || x.IsMulticast() {
			return fmt.Sprintf("(%s) must be an IP address", echo(w.text))
		}
		if slices.Contains(out, x) {
			return fmt.Sprintf("(%s) is there twice", x)
		}
		out = append(out, x)
	}
	if len(out) == 0 || len(out) > a.most {
		return fmt.Sprintf("must be 1 to %d IP addresses", a.most)
	}
	*into.(*[]netip.Addr) = out
	return ""
}
func (a addresses) clear(into any) { *into.(*[]netip.Addr) = nil }
func (a addresses) format(from any) string {
	var out []string
	for _, x := range *from.(*[]netip.Addr) {
		out = append(out, x.String())
	}
	return strings.Join(out, " ")
}
