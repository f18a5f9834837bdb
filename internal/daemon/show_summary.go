package daemon

import (
	"fmt"
	"strings"

	"tandem/ike"
	"tandem/internal/config"
)

// summaryJSON is one line of `get vpn ipsec tunnel summary`.
type summaryJSON struct {
	Name           string `json:"name"`
	Remote         string `json:"remote"`
	SelectorsTotal int    `json:"selectors_total"`
	SelectorsUp    int    `json:"selectors_up"`
	RxPackets      uint64 `json:"rx_packets"`
	RxErrors       uint64 `json:"rx_errors"`
	TxPackets      uint64 `json:"tx_packets"`
	TxErrors       uint64 `json:"tx_errors"`
	Role           string `json:"role,omitempty"` // in a cluster
	VCluster       int    `json:"vcluster,omitempty"`
}

// showSummary is `get vpn ipsec tunnel summary`.
func showSummary(s *session, _ []string) error {
	v, err := s.d.view(s.ctx, true)
	if err != nil {
		return err
	}
	all := []summaryJSON{}
	for i := range v.Node.Gateways {
		g := &v.Node.Gateways[i]
		t := v.totals(g)
		if v.template(g) {
			continue
		}
		j := summaryJSON{Name: g.Name, Remote: listPort(g.Remote, anyEncap(g)),
			RxPackets: t.InPackets, RxErrors: t.InErrors, TxPackets: t.OutPackets, TxErrors: t.OutErrors}
		if !v.alone() {
			j.Role = v.role(g)
		}
		j.VCluster = v.vclusterOf(g)
		for k := range v.Config.Phase2 {
			p2 := &v.Config.Phase2[k]
			if p2.Phase1 != phase1Of(g) {
				continue
			}
			j.SelectorsTotal++
			for c := range g.Children {
				if g.Children[c].Phase2 == p2.Name {
					j.SelectorsUp++
					break
				}
			}
		}
		all = append(all, j)
	}
	if s.json {
		return s.printJSON(all)
	}
	for _, j := range all {
		role := ""
		if v.Node.Farm != nil { // there each tunnel has its own
			role = " role: " + j.Role
		}
		s.printf("'%s' %s selectors(total,up): %d/%d rx(pkt,err): %d/%d tx(pkt,err): %d/%d%s\n",
			j.Name, j.Remote, j.SelectorsTotal, j.SelectorsUp, j.RxPackets, j.RxErrors, j.TxPackets, j.TxErrors, role)
	}
	return nil
}

func anyEncap(g *ike.GatewayStatus) bool {
	for i := range g.Children {
		if g.Children[i].SA.UDPEncap {
			return true
		}
	}
	return false
}

// showTunnelName is `get vpn ipsec tunnel name NAME`.
func showTunnelName(s *session, args []string) error {
	if len(args) != 1 {
		return usagef("expected: NAME")
	}
	v, err := s.d.view(s.ctx, true)
	if err != nil {
		return err
	}
	found := v.gateways(args[0])
	if len(found) == 0 {
		return fmt.Errorf("no tunnel is named %q", args[0])
	}
	if s.json {
		all := []tunnelJSON{}
		for i := range found {
			all = append(all, v.tunnelJSON(&found[i], s.showKeys))
		}
		return s.printJSON(all)
	}
	for i := range found {
		s.printTunnelName(v, &found[i])
	}
	return nil
}

func (s *session) printTunnelName(v *view, g *ike.GatewayStatus) {
	p, t := s.printf, v.totals(g)
	j := v.tunnelJSON(g, s.showKeys)
	local, remote, dpd := "dynamic", "static", "disabled"
	if p1 := v.phase1(phase1Of(g)); p1 != nil {
		if p1.LocalGW.IsValid() {
			local = "static"
		}
		if p1.Dialup() {
			remote = "dynamic"
		}
		if p1.DPD != "disable" {
			dpd = p1.DPD
		}
	}
	p("gateway\n  name: '%s'\n  type: route-based\n", g.Name)
	p("  local-gateway: %s (%s)\n  remote-gateway: %s (%s)\n  mode: ike-v2\n", j.Local, local, j.Remote, remote)
	p("  interface: '%s' (%d)\n", g.Interface, v.IfIndex[g.Interface])
	p("  rx packets: %d bytes: %d errors: %d\n", t.InPackets, t.InBytes, t.InErrors)
	p("  tx packets: %d bytes: %d errors: %d\n", t.OutPackets, t.OutBytes, t.OutErrors)
	p("  dpd: %s\n", dpd)
	for _, a := range j.Assigned {
		p("  assigned-address: %s\n", a)
	}
	p("  selectors\n")
	for i := range v.Config.Phase2 {
		if p2 := &v.Config.Phase2[i]; p2.Phase1 == phase1Of(g) {
			s.printNamedSelector(v, g, p2)
		}
	}
	p("  NPU acceleration: none\n")
}

func (s *session) printNamedSelector(v *view, g *ike.GatewayStatus, p2 *config.Phase2) {
	p := s.printf
	p("    name: '%s'\n    auto-negotiate: %s\n    mode: tunnel\n", p2.Name, enabled(p2.AutoNegotiate))
	for _, t := range p2.Src {
		p("    src: %s\n", subnetText(t))
	}
	for _, t := range p2.Dst {
		p("    dst: %s\n", subnetText(t))
	}
	for i := range g.Children {
		c := &g.Children[i]
		if c.Phase2 != p2.Name {
			continue
		}
		t := v.Tunnels[phase1Of(g)]
		j := v.childJSON(g, c, &t, s.showKeys)
		replay := "disabled"
		if c.SA.ReplayWindow > 0 {
			replay = "enabled"
		}
		p("    SA\n      lifetime/rekey: %d/%d\n      mtu: %d\n      tx-esp-seq: %x\n      replay: %s\n      qat: 0\n",
			j.Lifetime, j.Rekey, j.MTU, j.Seqno, replay)
		for _, k := range []struct {
			dir, spi string
			keys     *keyJSON
		}{{"inbound", j.SPIIn, &j.EncIn}, {"outbound", j.SPIOut, &j.EncOut}} {
			p("      %s\n        spi: %s\n", k.dir, k.spi)
			p("        enc: %s\n", strings.TrimSpace(shortEncr(k.keys.ESP)+" "+k.keys.Key))
			p("        auth: %s\n", strings.TrimSpace(k.keys.AH+" "+k.keys.AuthKey))
		}
	}
}

// shortEncr is the cipher's name in `get vpn ipsec tunnel name`, where FortiOS
// prints six letters.
func shortEncr(esp string) string {
	switch esp {
	case "aes":
		return "aes-cb"
	case "aes-gcm":
		return "aes-gc"
	case "chacha20poly1305":
		return "chacha"
	}
	return esp
}
