package daemon

import (
	"context"
	"fmt"
	"net/netip"

	"tandem/ike"
	"tandem/internal/ipsec"
)

// tunnelJSON is one tunnel in `diagnose vpn tunnel list --json`.
type tunnelJSON struct {
	Name           string         `json:"name"`
	Parent         string         `json:"parent,omitempty"`
	Index          int            `json:"index"`
	Version        int            `json:"version"`
	Serial         int            `json:"serial"`
	Local          string         `json:"local"`
	Remote         string         `json:"remote"`
	TunID          string         `json:"tun_id"`
	TunID6         string         `json:"tun_id6"`
	MTU            int            `json:"mtu"`
	DstMTU         int            `json:"dst_mtu"`
	Mode           string         `json:"mode"`
	Role           string         `json:"role"`
	VCluster       int            `json:"vcluster,omitempty"`
	AcceptTraffic  bool           `json:"accept_traffic"`
	InIdle         int64          `json:"in_idle_s"` // 0 when nothing has come yet
	OutIdle        int64          `json:"out_idle_s"`
	InPackets      uint64         `json:"in_packets"`
	InBytes        uint64         `json:"in_bytes"`
	InErrors       uint64         `json:"in_errors"`
	OutPackets     uint64         `json:"out_packets"`
	OutBytes       uint64         `json:"out_bytes"`
	OutErrors      uint64         `json:"out_errors"`
	DPD            string         `json:"dpd"`
	DPDIdleMS      int64          `json:"dpd_idle_ms"`
	DPDRetry       int            `json:"dpd_retry"`
	DPDSent        uint32         `json:"dpd_sent"`
	NATT           string         `json:"natt"` // none, keepalive, forced
	NATTInterval   int64          `json:"natt_interval_s"`
	NATTRemotePort uint16         `json:"natt_remote_port"`
	NoSA           uint64         `json:"no_sa_packets"`
	Inactive       uint64         `json:"inactive_packets"`
	TooBig         uint64         `json:"too_big_packets"`
	Assigned       []string       `json:"assigned,omitempty"` // by configuration payload, to the peer or to us
	Selectors      []selectorJSON `json:"proxyids"`
	lgwy, bound    int
}

// selectorJSON is one phase 2 entry with its SAs.
type selectorJSON struct {
	Name     string      `json:"name"`
	Protocol uint8       `json:"proto"`
	Serial   int         `json:"serial"`
	AddRoute bool        `json:"add_route"`
	Src      []string    `json:"src"`
	Dst      []string    `json:"dst"`
	SAs      []childJSON `json:"sas"`
}

// childJSON is one Child SA. Sequence numbers are full ones (64 bits with ESN).
type childJSON struct {
	SPIIn         string   `json:"spi_in"`
	SPIOut        string   `json:"spi_out"`
	Outbound      bool     `json:"outbound"` // the one that its selectors send through
	Suite         string   `json:"suite"`
	MTU           int      `json:"mtu"`
	Expire        int64    `json:"expire_s"`
	ReplayWindow  uint32   `json:"replaywin"`
	Seqno         uint64   `json:"seqno"` // next to send; on a standby the leased ceiling
	Ceiling       uint64   `json:"ceiling"`
	Fence         uint64   `json:"fence"`
	ReplayLastSeq uint64   `json:"replaywin_lastseq"`
	ESN           bool     `json:"esn"`
	Rekey         int64    `json:"rekey_s"`
	Lifetime      int64    `json:"lifetime_s"`
	InPackets     uint64   `json:"in_packets"`
	InBytes       uint64   `json:"in_bytes"`
	OutPackets    uint64   `json:"out_packets"`
	OutBytes      uint64   `json:"out_bytes"`
	InReplayed    uint64   `json:"in_replayed"`
	InFenced      uint64   `json:"in_fenced"`
	InAuthFailed  uint64   `json:"in_auth_failed"`
	InSelector    uint64   `json:"in_selector"`
	OutSelector   uint64   `json:"out_selector"`
	InErrors      uint64   `json:"in_errors"`
	OutErrors     uint64   `json:"out_errors"`
	IVUsed        uint64   `json:"iv_used"`
	FenceWidened  uint64   `json:"fence_widened"` // factor on the fence's lead while the standby answers late; 1: none
	EncIn         keyJSON  `json:"dec"`
	EncOut        keyJSON  `json:"enc"`
	Src           []string `json:"src"` // as narrowed
	Dst           []string `json:"dst"`
}

type keyJSON struct {
	ESP      string `json:"esp"`
	KeyLen   int    `json:"key_len"` // bytes, an AEAD's salt included
	Key      string `json:"key,omitempty"`
	AH       string `json:"ah"`
	AHKeyLen int    `json:"ah_key_len"`
	AuthKey  string `json:"ah_key,omitempty"`
}

func keysJSON(s ipsec.Suite, encr, salt, integ ipsec.Key, show bool) keyJSON {
	k := keyJSON{
		ESP: encrName(s), KeyLen: encr.Len() + salt.Len(), Key: keyText(encr, show),
		AH: integName(s), AHKeyLen: integ.Len(), AuthKey: keyText(integ, show),
	}
	if show && salt.Len() > 0 {
		k.Key += keyText(salt, true)
	}
	return k
}

func texts[T fmt.Stringer](ts []T) []string {
	out := []string{}
	for _, t := range ts {
		out = append(out, t.String())
	}
	return out
}

// listPort is the port in tunnel listings: 0 unless ESP travels in UDP.
func listPort(a netip.AddrPort, encap bool) string {
	if !encap {
		return fmt.Sprintf("%s:0", addrText(a.Addr()))
	}
	return addrPortText(a)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "0.0.0.0"
	}
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func (v *view) tunnelJSON(g *ike.GatewayStatus, showKeys bool) tunnelJSON {
	name := phase1Of(g)
	t, p := v.Tunnels[name], v.phase1(name)
	sum := v.totals(g)
	j := tunnelJSON{
		VCluster: v.vclusterOf(g),
		Name:     g.Name, Parent: g.Parent, Index: g.Index, Version: 2, Serial: v.serial(g),
		MTU: t.MTU, DstMTU: t.OuterMTU, Mode: "auto/1", Role: v.role(g), AcceptTraffic: true,
		InIdle: v.since(sum.LastIn), OutIdle: v.since(sum.LastOut),
		InPackets: sum.InPackets, InBytes: sum.InBytes, InErrors: sum.InErrors,
		OutPackets: sum.OutPackets, OutBytes: sum.OutBytes, OutErrors: sum.OutErrors,
		NATT: "none", NoSA: t.Counters.NoSA, Inactive: t.Counters.Inactive, TooBig: t.Counters.TooBig,
		bound: v.IfIndex[g.Interface],
	}
	j.TunID, j.TunID6 = tunIDs(g)
	j.Assigned = texts(g.Assigned.Addrs)
	encap := false
	for i := range g.Children {
		encap = encap || g.Children[i].SA.UDPEncap
	}
	j.Local, j.Remote = listPort(g.Local, encap), listPort(g.Remote, encap)
	for _, s := range g.IKE {
		j.DPDSent = max(j.DPDSent, s.DPDSent)
	}
	if p != nil {
		j.DPD, j.DPDIdleMS, j.DPDRetry = p.DPD, p.DPDRetryInterval.Milliseconds(), p.DPDRetryCount
		if p.LocalGW.IsValid() {
			j.lgwy = 1
		}
		switch {
		case g.Parent != "":
			j.Mode = "dial_inst/3"
		case p.Dialup():
			j.Mode = "dialup/2"
		}
		if encap {
			j.NATT, j.NATTInterval, j.NATTRemotePort = "keepalive", seconds(p.Keepalive), g.Remote.Port()
		}
	}
	for i := range v.Config.Phase2 {
		if p2 := &v.Config.Phase2[i]; p2.Phase1 == name && (p == nil || !p.Dialup() || g.Parent != "") {
			sel := selectorJSON{Name: p2.Name, Serial: i + 1, Src: texts(p2.Src), Dst: texts(p2.Dst), SAs: []childJSON{}}
			if len(p2.Src) > 0 {
				sel.Protocol = p2.Src[0].Protocol
			}
			sel.AddRoute = p != nil && p.AddRoute && p.Dialup()
			for c := range g.Children {
				if g.Children[c].Phase2 == p2.Name {
					sel.SAs = append(sel.SAs, v.childJSON(g, &g.Children[c], &t, showKeys))
				}
			}
			if g.Parent != "" && len(sel.SAs) > 0 { // an instance shows what was negotiated, not the template
				sel.Src, sel.Dst = sel.SAs[0].Src, sel.SAs[0].Dst
			}
			j.Selectors = append(j.Selectors, sel)
		}
	}
	return j
}

func (v *view) childJSON(g *ike.GatewayStatus, c *ike.ChildStatus, t *tunnelView, showKeys bool) childJSON {
	n, sa := v.Counters[c.SA.SPIIn], &c.SA
	mtu := 0
	if t.OuterMTU > 0 {
		mtu = innerMTU(t.OuterMTU, sa.Suite, sa.UDPEncap, sa.Remote.Addr().Is6())
	}
	return childJSON{
		SPIIn: sa.SPIIn.String(), SPIOut: sa.SPIOut.String(), Outbound: c.Outbound, Suite: sa.Suite.String(),
		MTU: mtu, Expire: seconds(c.Left), ReplayWindow: sa.ReplayWindow,
		Seqno: v.nextSeq(g, sa.SPIIn), Ceiling: n.Ceiling, Fence: n.Fence, ReplayLastSeq: n.InSeq, ESN: sa.Suite.ESN,
		Rekey: seconds(c.Rekey), Lifetime: seconds(c.Lifetime),
		InPackets: n.InPackets, InBytes: n.InBytes, OutPackets: n.OutPackets, OutBytes: n.OutBytes,
		InReplayed: n.InReplayed, InFenced: n.InFenced, InAuthFailed: n.InAuthFailed,
		InSelector: n.InSelector, OutSelector: n.OutSelector, InErrors: n.InErrors, OutErrors: n.OutErrors,
		IVUsed: n.IVUsed, FenceWidened: max(n.FenceWidened, 1),
		EncIn:  keysJSON(sa.Suite, sa.EncrIn, sa.SaltIn, sa.IntegIn, showKeys),
		EncOut: keysJSON(sa.Suite, sa.EncrOut, sa.SaltOut, sa.IntegOut, showKeys),
		Src:    texts(sa.TSLocal), Dst: texts(sa.TSRemote),
	}
}

// listTunnels is `diagnose vpn tunnel list [name NAME]`.
func listTunnels(s *session, args []string) error {
	name, err := nameArg(args)
	if err != nil {
		return err
	}
	v, err := s.d.view(s.ctx, true)
	if err != nil {
		return err
	}
	all := []tunnelJSON{}
	gateways := v.gateways(name)
	for i := range gateways {
		all = append(all, v.tunnelJSON(&gateways[i], s.showKeys))
	}
	if s.json {
		return s.printJSON(all)
	}
	if name == "" {
		s.printf("list all ipsec tunnel in vd 0\n")
	} else {
		s.printf("list ipsec tunnel by names in vd 0\n")
	}
	for i := range all {
		s.printTunnel(&all[i], v)
	}
	return nil
}

func (s *session) printTunnel(j *tunnelJSON, v *view) {
	p := s.printf
	linkDPD, mode, on := "off", "off", 0
	if j.DPD != "" && j.DPD != "disable" {
		linkDPD, mode, on = "on", j.DPD, 1
	}
	lgwy := "dyn"
	if j.lgwy == 1 {
		lgwy = "static"
	}
	p("------------------------------------------------------\n")
	p("name=%s ver=%d serial=%x %s->%s tun_id=%s tun_id6=%s dst_mtu=%d dpd-link=%s weight=1\n",
		j.Name, j.Version, j.Serial, j.Local, j.Remote, j.TunID, j.TunID6, j.DstMTU, linkDPD)
	accept := 0
	if j.AcceptTraffic {
		accept = 1
	}
	p("bound_if=%d lgwy=%s/1 tun=intf/0 mode=%s encap=none/512 options[0200]=frag-rfc  run_state=0 role=%s accept_traffic=%d overlay_id=0\n",
		j.bound, lgwy, j.Mode, j.Role, accept)
	if j.Parent != "" {
		p("\nparent=%s index=%d\n", j.Parent, j.Index)
	}
	sas := 0
	for i := range j.Selectors {
		sas += len(j.Selectors[i].SAs)
	}
	p("proxyid_num=%d child_num=0 refcnt=%d ilast=%d olast=%d ad=/0\n", len(j.Selectors), 3+len(j.Selectors)+sas, j.InIdle, j.OutIdle)
	p("stat: rxp=%d txp=%d rxb=%d txb=%d\n", j.InPackets, j.OutPackets, j.InBytes, j.OutBytes)
	p("dpd: mode=%s on=%d idle=%dms retry=%d count=0 seqno=%d\n", mode, on, j.DPDIdleMS, j.DPDRetry, j.DPDSent)
	p("natt: mode=%s draft=0 interval=%d remote_port=%d\n", j.NATT, j.NATTInterval, j.NATTRemotePort)
	p("fec: egress=0 ingress=0\n")
	for i := range j.Selectors {
		s.printSelector(&j.Selectors[i], j, v)
	}
}

func (s *session) printSelector(sel *selectorJSON, j *tunnelJSON, v *view) {
	p := s.printf
	route := ""
	if sel.AddRoute {
		route = " add-route"
	}
	p("proxyid=%s proto=%d sa=%d ref=%d serial=%d%s\n", sel.Name, sel.Protocol, len(sel.SAs), 1+len(sel.SAs), sel.Serial, route)
	for _, t := range sel.Src {
		p("  src: %s\n", t)
	}
	for _, t := range sel.Dst {
		p("  dst: %s\n", t)
	}
	for i := range sel.SAs {
		c := &sel.SAs[i]
		esn := 0
		if c.ESN {
			esn = 1
		}
		p("  SA:  ref=3 options=2 type=00 soft=0 mtu=%d expire=%d/0B replaywin=%d\n", c.MTU, c.Expire, c.ReplayWindow)
		p("       seqno=%x esn=%d replaywin_lastseq=%08x qat=0 rekey=0 hash_search_len=1\n", c.Seqno, esn, c.ReplayLastSeq)
		p("  life: type=01 bytes=0/0 timeout=%d/%d\n", c.Rekey, c.Lifetime)
		for _, k := range []struct {
			dir, spi string
			keys     *keyJSON
		}{{"dec", c.SPIIn, &c.EncIn}, {"enc", c.SPIOut, &c.EncOut}} {
			p("  %s: spi=%s esp=%s key=%d %s\n", k.dir, k.spi, k.keys.ESP, k.keys.KeyLen, k.keys.Key)
			auth := ""
			if k.keys.AuthKey != "" {
				auth = " " + k.keys.AuthKey
			}
			p("       ah=%s key=%d%s\n", k.keys.AH, k.keys.AHKeyLen, auth)
		}
		p("  dec:pkts/bytes=%d/%d, enc:pkts/bytes=%d/%d\n", c.InPackets, c.InBytes, c.OutPackets, c.OutBytes)
		p("  npu_flag=00 npu_rgwy=%s npu_lgwy=%s npu_selid=0 dec_npuid=0 enc_npuid=0\n", hostOf(j.Remote), hostOf(j.Local))
	}
}

func hostOf(hostport string) string {
	if a, err := netip.ParseAddrPort(hostport); err == nil {
		return a.Addr().String()
	}
	return "0.0.0.0"
}

// tunnelUp is `diagnose vpn tunnel up PHASE2 [PHASE1]`; tunnelDown likewise.
func tunnelUp(s *session, args []string) error   { return s.upDown(args, s.d.up, "up") }
func tunnelDown(s *session, args []string) error { return s.upDown(args, s.d.down, "down") }

func (s *session) upDown(args []string, do func(ctx context.Context, phase1, phase2 string) error, word string) error {
	if len(args) < 1 || len(args) > 2 {
		return usagef("expected: PHASE2 [PHASE1]")
	}
	phase2, phase1 := args[0], ""
	if len(args) == 2 {
		phase1 = args[1]
	} else {
		v, err := s.d.view(s.ctx, true)
		if err != nil {
			return err
		}
		var owners []string
		for i := range v.Config.Phase2 {
			if v.Config.Phase2[i].Name == phase2 {
				owners = append(owners, v.Config.Phase2[i].Phase1)
			}
		}
		switch len(owners) {
		case 0:
			return fmt.Errorf("no phase 2 is named %q", phase2)
		case 1:
			phase1 = owners[0]
		default:
			return usagef("%q belongs to several phase 1: %v; name one", phase2, owners)
		}
	}
	if err := do(s.ctx, phase1, phase2); err != nil {
		return err
	}
	if s.json {
		return s.printJSON(map[string]string{"phase1": phase1, "phase2": phase2, "requested": word})
	}
	s.printf("%s %s: %s requested\n", phase1, phase2, word)
	return nil
}
