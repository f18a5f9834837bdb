package daemon

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// firewallTable is the one nftables table that is ours, in the inet family.
const firewallTable = "tandem"

// fwRule is one rendered line: what it matches and whether it lets through.
// Empty interface names and invalid ranges match everything.
type fwRule struct {
	in, out  string
	src, dst ipsec.TrafficSelector
	accept   bool
}

// firewallRules renders the policies: in their order, and at the end nothing may
// enter or leave a tunnel that no policy allowed. Traffic that touches no tunnel
// is not ours to judge. Without a policy block there are no rules at all.
func firewallRules(c *config.Config) ([]fwRule, error) {
	if !c.HasPolicy {
		return nil, nil
	}
	tunnels := map[string]bool{}
	for i := range c.Phase1 {
		tunnels[c.Phase1[i].Name] = true
	}
	var rules []fwRule
	for i := range c.Policies {
		p := &c.Policies[i]
		if !p.Status {
			continue
		}
		src, err := ranges(c, p.SrcAddr, p.SrcAddr6)
		if err != nil {
			return nil, fmt.Errorf("policy %d: srcaddr: %w", p.ID, err)
		}
		dst, err := ranges(c, p.DstAddr, p.DstAddr6)
		if err != nil {
			return nil, fmt.Errorf("policy %d: dstaddr: %w", p.ID, err)
		}
		for _, in := range p.SrcIntf {
			for _, out := range p.DstIntf {
				for _, pair := range touching(c, tunnels, in, out) {
					for _, s := range src {
						for _, d := range dst {
							if s.Start.IsValid() && d.Start.IsValid() && s.Start.Is4() != d.Start.Is4() {
								continue
							}
							rules = append(rules, fwRule{pair[0], pair[1], s, d, p.Accept})
						}
					}
				}
			}
		}
	}
	for i := range c.Phase1 {
		rules = append(rules, fwRule{in: c.Phase1[i].Name}, fwRule{out: c.Phase1[i].Name})
	}
	return rules, nil
}

// touching turns a policy's pair of interfaces into pairs of which at least one
// is a tunnel; "any" comes back as "".
func touching(c *config.Config, tunnels map[string]bool, in, out string) [][2]string {
	if in == "any" {
		in = ""
	}
	if out == "any" {
		out = ""
	}
	if tunnels[in] || tunnels[out] {
		return [][2]string{{in, out}}
	}
	var pairs [][2]string
	for i := range c.Phase1 {
		name := c.Phase1[i].Name
		if in == "" {
			pairs = append(pairs, [2]string{name, out})
		}
		if out == "" {
			pairs = append(pairs, [2]string{in, name})
		}
	}
	return pairs
}

// ranges resolves address and group names of one policy field in both families.
func ranges(c *config.Config, names, names6 []string) ([]ipsec.TrafficSelector, error) {
	var out []ipsec.TrafficSelector
	for _, family := range []struct {
		names []string
		v6    bool
	}{{names, false}, {names6, true}} {
		for _, n := range family.names {
			found, ok := c.Resolve(n, family.v6)
			if !ok {
				return nil, fmt.Errorf("no address or group is named %q", n)
			}
			out = append(out, found...)
		}
	}
	return out, nil
}

// applyFirewall makes our table hold exactly these rules, in one transaction;
// without rules the table goes.
func applyFirewall(rules []fwRule) error {
	if len(rules) == 0 {
		return removeFirewall()
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: firewallTable, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // so that deleting it cannot fail
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: establishedExprs()})
	for _, r := range rules {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.exprs()})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: policies not installed: %w", err)
	}
	return nil
}

// removeFirewall takes our table away; it is no error if there is none.
func removeFirewall() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == firewallTable {
			conn.DelTable(t)
			if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("nftables: %w", err)
			}
		}
	}
	return nil
}

// establishedExprs: ct state established,related accept.
func establishedExprs() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
			Xor:  binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

func (r fwRule) exprs() []expr.Any {
	var e []expr.Any
	iface := func(key expr.MetaKey, name string) {
		if name != "" {
			padded := make([]byte, unix.IFNAMSIZ)
			copy(padded, name)
			e = append(e, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded})
		}
	}
	iface(expr.MetaKeyIIFNAME, r.in)
	iface(expr.MetaKeyOIFNAME, r.out)
	if a := firstValid(r.src.Start, r.dst.Start); a.IsValid() {
		proto := byte(unix.NFPROTO_IPV4)
		if a.Is6() {
			proto = unix.NFPROTO_IPV6
		}
		e = append(e, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}})
	}
	addr := func(t ipsec.TrafficSelector, offset4, offset6 uint32) {
		if !t.Start.IsValid() {
			return
		}
		p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset4, Len: 4}
		if t.Start.Is6() {
			p.Offset, p.Len = offset6, 16
		}
		e = append(e, p, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: t.Start.AsSlice(), ToData: t.End.AsSlice()})
	}
	addr(r.src, 12, 8)
	addr(r.dst, 16, 24)
	verdict := expr.VerdictDrop
	if r.accept {
		verdict = expr.VerdictAccept
	}
	return append(e, &expr.Counter{}, &expr.Verdict{Kind: verdict})
}

func firstValid(a, b netip.Addr) netip.Addr {
	if a.IsValid() {
		return a
	}
	return b
}
