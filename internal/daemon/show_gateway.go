package daemon

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tandem/ike"
	"tandem/internal/ipsec"
)

// gatewayJSON is one tunnel in `diagnose vpn ike gateway list --json`.
type gatewayJSON struct {
	Name             string     `json:"name"`
	Parent           string     `json:"parent,omitempty"`
	Index            int        `json:"index"`
	Version          int        `json:"version"`
	Interface        string     `json:"interface"`
	InterfaceIndex   int        `json:"interface_index"`
	Local            string     `json:"local"`
	Remote           string     `json:"remote"`
	TunID            string     `json:"tun_id"`
	TunID6           string     `json:"tun_id6"`
	NetworkID        int        `json:"network_id"`
	VirtualLocal     string     `json:"virtual_interface_addr_local,omitempty"`
	VirtualRemote    string     `json:"virtual_interface_addr_remote,omitempty"`
	PeerID           string     `json:"peer_id,omitempty"`
	Certificate      *certJSON  `json:"peer_certificate,omitempty"`
	NAT              bool       `json:"nat"`
	Transport        string     `json:"transport,omitempty"` // tcp, or UDP and plain ESP
	Role             string     `json:"role,omitempty"`      // in a cluster
	VCluster         int        `json:"vcluster,omitempty"`
	VDOM             string     `json:"vdom,omitempty"`
	Created          int64      `json:"created_s"`
	IKECreated       int        `json:"ike_created"`
	IKEEstablished   int        `json:"ike_established"`
	IKETime          [3]float64 `json:"ike_time_ms"` // min, average, max
	ChildCreated     int        `json:"ipsec_created"`
	ChildEstablished int        `json:"ipsec_established"`
	ChildTime        [3]float64 `json:"ipsec_time_ms"`
	Failure          string     `json:"last_failure,omitempty"`
	Assigned         []string   `json:"assigned,omitempty"`    // by configuration payload
	AssignedTo       string     `json:"assigned_to,omitempty"` // peer, or self
	AssignedDNS      []string   `json:"assigned_dns,omitempty"`
	AssignedDomains  []string   `json:"assigned_domains,omitempty"`
	AssignedSubnets  []string   `json:"assigned_subnets,omitempty"`
	SAs              []ikeJSON  `json:"ike_sas"`
}

// ikeJSON is one IKE SA.
type ikeJSON struct {
	ID          uint64  `json:"id"`
	SPIi        string  `json:"spi_i"`
	SPIr        string  `json:"spi_r"`
	Direction   string  `json:"direction"`
	Status      string  `json:"status"`
	Established int64   `json:"established_s"`
	Took        float64 `json:"took_ms"`
	Proposal    string  `json:"proposal"`
	SKei        string  `json:"sk_ei,omitempty"`
	SKer        string  `json:"sk_er,omitempty"`
	SKai        string  `json:"sk_ai,omitempty"`
	SKar        string  `json:"sk_ar,omitempty"`
	SendID      uint32  `json:"message_id_sent"`
	RecvID      uint32  `json:"message_id_recv"`
	Lifetime    int64   `json:"lifetime_s"`
	Rekey       int64   `json:"rekey_s"`
	DPDSent     uint32  `json:"dpd_sent"`
	DPDRecv     uint32  `json:"dpd_recv"`
	PPK         bool    `json:"ppk"`
	AddKE       []int   `json:"addke,omitempty"` // additional key exchange methods, in their order
}

func msTriple(d [3]time.Duration) (ms [3]float64) {
	for i := range d {
		ms[i] = milliseconds(d[i])
	}
	return ms
}

// tunIDs are the peer's address as tunnel ID in both families, as FortiOS prints
// them: an IPv4 peer's IPv6 ID has the address in its last four bytes. A dialup client
// that told the address of its tunnel interface is known by that.
func tunIDs(g *ike.GatewayStatus) (v4, v6 string) {
	remote := g.Remote.Addr()
	v4, v6 = "0.0.0.0", "::"
	defer func() {
		switch {
		case g.Parent == "" || !g.PeerAddr.IsValid():
		case g.PeerAddr.Is4():
			v4 = g.PeerAddr.String()
		default:
			v6 = g.PeerAddr.String()
		}
	}()
	switch {
	case remote.Is4():
		v4, v6 = remote.String(), "::"+remote.String()
	case remote.IsValid():
		v6 = remote.String()
	}
	return v4, v6
}

// known is an address, or none where there is no such.
func known(a, none netip.Addr) netip.Addr {
	if !a.IsValid() {
		return none
	}
	return a
}

// certJSON is the certificate by which a peer authenticated itself.
type certJSON struct {
	Subject   string    `json:"subject"`
	SHA256    string    `json:"sha256"`
	NotAfter  time.Time `json:"not_after"`
	Signature string    `json:"signature"`
	Method    string    `json:"auth_method"`
}

// addrPortText prints an address without what is not known of it.
func addrPortText(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return ""
	}
	return a.String()
}

func (v *view) gatewayJSON(g *ike.GatewayStatus, showKeys bool) gatewayJSON {
	j := gatewayJSON{
		Name: g.Name, Parent: g.Parent, Index: g.Index, Version: 2,
		Interface: g.Interface, InterfaceIndex: v.IfIndex[g.Interface],
		Local: addrPortText(g.Local), Remote: addrPortText(g.Remote),
		PeerID: g.PeerID, NAT: g.NAT, Created: v.since(g.Created),
		IKECreated: g.IKECreated, IKEEstablished: g.IKEEstablished, IKETime: msTriple(g.IKETime),
		ChildCreated: g.ChildCreated, ChildEstablished: g.ChildEstablished, ChildTime: msTriple(g.ChildTime),
		Failure: g.Failure, SAs: []ikeJSON{},
	}
	if c := g.Certificate; c != nil {
		j.Certificate = &certJSON{c.Subject, hex.EncodeToString(c.Fingerprint[:]), c.NotAfter.UTC(), c.Signature, c.Method}
	}
	if g.TCP {
		j.Transport = "tcp"
	}
	j.assigned(&g.Assigned)
	if !v.alone() {
		j.Role = v.role(g)
	}
	if j.VCluster = v.vclusterOf(g); j.VCluster != 0 {
		j.VDOM = v.vdomOf(g)
	}
	j.TunID, j.TunID6 = tunIDs(g)
	if p := v.phase1(phase1Of(g)); p != nil {
		j.NetworkID = p.NetworkID
	}
	if t, ok := v.Tunnels[phase1Of(g)]; ok && (t.IP.IsValid() || g.PeerAddr.IsValid()) {
		remote, none := t.RemoteIP, netip.IPv4Unspecified()
		if t.IP.Addr().Is6() {
			none = netip.IPv6Unspecified()
		}
		if g.PeerAddr.IsValid() { // what the peer says of itself is nearer to the truth
			remote = g.PeerAddr
		}
		j.VirtualLocal, j.VirtualRemote = known(t.IP.Addr(), none).String(), known(remote, none).String()
	}
	for _, s := range g.IKE {
		d := ikeJSON{
			ID: s.ID, SPIi: s.SPIs.I.String(), SPIr: s.SPIs.R.String(), Direction: "responder",
			Status: s.State, Established: v.since(s.Established), Took: milliseconds(s.Took),
			SKei: keyText(s.Keys.Ei, showKeys), SKer: keyText(s.Keys.Er, showKeys),
			SKai: keyText(s.Keys.Ai, showKeys), SKar: keyText(s.Keys.Ar, showKeys),
			SendID: s.SendID, RecvID: s.RecvID, Lifetime: seconds(s.Lifetime), Rekey: seconds(s.Rekey),
			DPDSent: s.DPDSent, DPDRecv: s.DPDRecv, PPK: s.PPK,
		}
		if s.Initiator {
			d.Direction = "initiator"
		}
		if s.Suite != (ipsec.Suite{}) {
			d.Proposal = s.Suite.String()
			for _, id := range s.Suite.AddKE.Methods() {
				d.AddKE = append(d.AddKE, int(id))
			}
		}
		j.SAs = append(j.SAs, d)
	}
	return j
}

// showGateways is `get vpn ike gateway [NAME]`.
func showGateways(s *session, args []string) error {
	if len(args) > 1 {
		return usagef("expected: [NAME]")
	}
	return listGateways(s, args)
}

// listGateways is `diagnose vpn ike gateway list [name NAME]`.
func listGateways(s *session, args []string) error {
	name, err := nameArg(args)
	if err != nil {
		return err
	}
	v, err := s.d.view(s.ctx, true)
	if err != nil {
		return err
	}
	all := []gatewayJSON{}
	var gateways []ike.GatewayStatus
	for _, g := range v.gateways(name) {
		if !v.template(&g) {
			gateways = append(gateways, g)
		}
	}
	for i := range gateways {
		all = append(all, v.gatewayJSON(&gateways[i], s.showKeys))
	}
	if s.json {
		return s.printJSON(all)
	}
	for i := range all {
		s.printGateway(&all[i], &gateways[i], v.Node.Farm != nil)
	}
	return nil
}

// printGateway prints the role where each tunnel has its own.
func (s *session) printGateway(j *gatewayJSON, g *ike.GatewayStatus, role bool) {
	p := s.printf
	vd := "root/0"
	if j.VCluster != 0 {
		vd = fmt.Sprintf("%s/%d", j.VDOM, j.VCluster)
	}
	p("\nvd: %s\nname: %s\nversion: %d\ninterface: %s %d\n", vd, j.Name, j.Version, j.Interface, j.InterfaceIndex)
	p("addr: %s -> %s\n", j.Local, j.Remote)
	p("tun_id: %s/%s\nremote_location: 0.0.0.0\nnetwork-id: %d\n", j.TunID, j.TunID6, j.NetworkID)
	if j.VirtualLocal != "" {
		p("virtual-interface-addr: %s -> %s\n", j.VirtualLocal, j.VirtualRemote)
	}
	p("created: %ds ago\n", j.Created)
	if j.PeerID != "" {
		p("peer-id: %s\npeer-id-auth: yes\n", j.PeerID)
	}
	if c := j.Certificate; c != nil {
		p("peer-certificate: %s\npeer-certificate-sha256: %s\npeer-certificate-expires: %s\npeer-signature: %s\n",
			c.Subject, c.SHA256, c.NotAfter.Format(time.RFC3339), c.Signature)
	}
	s.printAssigned(j)
	if j.NAT {
		p("nat: peer\n")
	}
	if j.Transport != "" {
		p("transport: %s\n", j.Transport)
	}
	if role {
		p("role: %s\n", j.Role)
	}
	ppk := slices.ContainsFunc(j.SAs, func(a ikeJSON) bool { return a.PPK })
	p("PPK: %s\n", yesNo(ppk))
	live := 0
	for i := range j.SAs {
		if j.SAs[i].Status != "connecting" {
			live++
		}
	}
	// Pairs are "now/ever", as FortiOS counts.
	counts := func(what string, now, ever, nowUp, everUp int, t [3]float64) {
		p("%s: created %d/%d", what, now, ever)
		if ever > 0 {
			p(" established %d/%d time %.0f/%.0f/%.0f ms", nowUp, everUp, t[0], t[1], t[2])
		}
		p("\n")
	}
	counts("IKE SA", len(j.SAs), j.IKECreated, live, j.IKEEstablished, j.IKETime)
	counts("IPsec SA", len(g.Children), j.ChildCreated, len(g.Children), j.ChildEstablished, j.ChildTime)
	if j.Failure != "" {
		p("last-failure: %s\n", j.Failure)
	}
	for i := range j.SAs {
		a, keys := &j.SAs[i], g.IKE[i].Keys
		p("\nid/spi: %d %s/%s\ndirection: %s\n", a.ID, a.SPIi, a.SPIr, a.Direction)
		if a.Status == "connecting" {
			p("status: connecting\n")
		} else {
			started := a.Established + seconds(g.IKE[i].Took)
			p("status: %s %d-%ds ago = %.0fms\n", a.Status, started, a.Established, a.Took)
		}
		p("proposal: %s\nchild: no\n", a.Proposal)
		for _, k := range []struct {
			name string
			key  ipsec.Key
		}{{"SK_ei", keys.Ei}, {"SK_er", keys.Er}, {"SK_ai", keys.Ai}, {"SK_ar", keys.Ar}} {
			text := groupedKey(k.key, s.showKeys)
			if text != "" {
				text = " " + text
			}
			p("%s:%s\n", k.name, text)
		}
		if len(a.AddKE) > 0 {
			p("addke: %s\n", groupText(a.AddKE))
		}
		p("PPK: %s\nmessage-id sent/recv: %d/%d\n", yesNo(a.PPK), a.SendID, a.RecvID)
		p("lifetime/rekey: %d/%d\n", a.Lifetime, a.Rekey)
		p("DPD sent/recv: %08x/%08x\n", a.DPDSent, a.DPDRecv)
	}
}

// clearGateways is `diagnose vpn ike gateway clear|flush [name NAME]` and
// `diagnose vpn tunnel flush [NAME]`.
func clearGateways(s *session, args []string) error {
	name, err := nameArg(args)
	if err != nil {
		return err
	}
	n, err := s.d.clear(s.ctx, name)
	if err != nil {
		return err
	}
	if s.json {
		return s.printJSON(struct {
			Cleared int `json:"cleared"`
		}{n})
	}
	if n == 0 && name != "" {
		return fmt.Errorf("no IKE SA of %q stands here", name)
	}
	s.printf("%d IKE SA cleared\n", n)
	return nil
}

// rekeyNow is `diagnose vpn ike rekey child|ike [name NAME]`.
func rekeyNow(s *session, args []string) error {
	if len(args) == 0 {
		return usagef("expected: child or ike, then [name NAME]")
	}
	what, _, ok := pick(args[0], []string{"child", "ike"})
	if !ok {
		return usagef("expected child or ike, got %q", args[0])
	}
	name, err := nameArg(args[1:])
	if err != nil {
		return err
	}
	n, err := s.d.rekey(s.ctx, name, what == "ike")
	if err != nil {
		return err
	}
	if s.json {
		return s.printJSON(struct {
			Rekeying int `json:"rekeying"`
		}{n})
	}
	if n == 0 {
		return fmt.Errorf("no SA stands here that could be rekeyed")
	}
	s.printf("%d SA being rekeyed\n", n)
	return nil
}
