package daemon

import (
	"fmt"
	"strings"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// configJSON is one phase 1 in `diagnose vpn ike config list --json`.
type configJSON struct {
	Name          string         `json:"name"`
	Serial        int            `json:"serial"`
	Version       int            `json:"version"`
	Admin         string         `json:"status_admin"`
	Operational   string         `json:"status_operational"`
	Type          string         `json:"type"`
	Local         string         `json:"local"`
	Remote        string         `json:"remote"`
	DPD           string         `json:"dpd"`
	Auth          string         `json:"auth"`
	DHGroups      []int          `json:"dhgrp"`
	Interface     string         `json:"interface"`
	VirtualLocal  string         `json:"virtual_interface_addr_local,omitempty"`
	VirtualRemote string         `json:"virtual_interface_addr_remote,omitempty"`
	Policy        bool           `json:"policy"`
	Proposals     []string       `json:"proposal,omitempty"`
	Phase2        []phase2JSON   `json:"phase2s"`
	p             *config.Phase1 // for the long form
}

type phase2JSON struct {
	Name          string   `json:"name"`
	Protocol      uint8    `json:"proto"`
	Src           []string `json:"src"`
	Dst           []string `json:"dst"`
	DHGroups      []int    `json:"dhgrp"`
	KeepAlive     bool     `json:"keep_alive"`
	AutoNegotiate bool     `json:"auto_negotiate"`
	Replay        bool     `json:"replay"`
	Lifetime      int64    `json:"lifetime_s"`
	Proposals     []string `json:"proposal,omitempty"`
}

func groups(ids []ipsec.TransformID) []int {
	out := []int{}
	for _, id := range ids {
		out = append(out, int(id))
	}
	return out
}

func suites(ss []ipsec.Suite) []string {
	out := []string{}
	for _, s := range ss {
		out = append(out, s.String())
	}
	return out
}

func subnets(ts []ipsec.TrafficSelector) []string {
	out := []string{}
	for _, t := range ts {
		out = append(out, strings.SplitN(subnetText(t), ":", 2)[1])
	}
	return out
}

func (v *view) configJSON(i int, long bool) configJSON {
	p := &v.Config.Phase1[i]
	j := configJSON{Name: p.Name, Serial: i + 1, Version: 2, Admin: "up", Operational: "down", Type: p.Type,
		Local: "0.0.0.0", Remote: "0.0.0.0", DPD: p.DPD, Auth: p.AuthMethod, DHGroups: groups(p.DHGroups),
		Interface: p.Interface, Policy: v.Config.PolicyNames(p.Name), Phase2: []phase2JSON{}, p: p}
	if p.DPD == "disable" {
		j.DPD = "disabled"
	}
	for _, g := range v.gateways(p.Name) {
		for _, s := range g.IKE {
			if s.State == "established" {
				j.Operational = "up"
			}
		}
		if g.Name == p.Name && g.Local.Addr().IsValid() {
			j.Local = g.Local.Addr().String()
		}
	}
	if p.LocalGW.IsValid() {
		j.Local = p.LocalGW.String()
	}
	if p.RemoteGW.IsValid() {
		j.Remote = p.RemoteGW.String()
	}
	if t := v.Tunnels[p.Name]; t.IP.IsValid() {
		j.VirtualLocal, j.VirtualRemote = t.IP.Addr().String(), addrText(t.RemoteIP)
	}
	if long {
		j.Proposals = suites(p.Proposals)
	}
	for _, p2 := range v.Config.Phase2Of(p.Name) {
		d := phase2JSON{Name: p2.Name, Src: subnets(p2.Src), Dst: subnets(p2.Dst), DHGroups: []int{},
			KeepAlive: p2.Keepalive, AutoNegotiate: p2.AutoNegotiate, Replay: p2.Replay, Lifetime: seconds(p2.KeyLife)}
		if len(p2.Src) > 0 {
			d.Protocol = p2.Src[0].Protocol
		}
		if p2.PFS {
			d.DHGroups = groups(p2.DHGroups)
		}
		if long {
			d.Proposals = suites(p2.Proposals)
		}
		j.Phase2 = append(j.Phase2, d)
	}
	return j
}

// listConfig is `diagnose vpn ike config list [summary]`.
func listConfig(s *session, args []string) error {
	long := true
	if len(args) > 0 {
		if len(args) > 1 || !strings.HasPrefix("summary", args[0]) {
			return usagef("expected: [summary]")
		}
		long = false
	}
	v, err := s.d.view(s.ctx, false)
	if err != nil {
		return err
	}
	all := []configJSON{}
	for i := range v.Config.Phase1 {
		all = append(all, v.configJSON(i, long))
	}
	if s.json {
		return s.printJSON(all)
	}
	for i := range all {
		s.printConfig(&all[i], long)
	}
	return nil
}

func (s *session) printConfig(j *configJSON, long bool) {
	p := s.printf
	p("\nvd: root/0\nname: %s\nserial: %d\nversion: %d\nstatus.admin: %s\nstatus.operational: %s\n", j.Name, j.Serial, j.Version, j.Admin, j.Operational)
	p("type: %s\nlocal: %s\nremote: %s\nmode: main\ndpd: %s\nauth: %s\ndhgrp: %s\nxauth: none\n",
		j.Type, j.Local, j.Remote, j.DPD, j.Auth, groupText(j.DHGroups))
	p("interface: %s\n", j.Interface)
	if j.VirtualLocal != "" {
		p("virtual-interface-addr: %s -> %s\n", j.VirtualLocal, j.VirtualRemote)
	}
	p("auto-discovery-sender: disable\nauto-discovery-receiver: disable\n")
	if long {
		p("proposal: %s\nkeylife: %d\nnattraversal: %s\npassive-mode: %s\nauto-negotiate: %s\n", strings.Join(j.Proposals, " "),
			seconds(j.p.KeyLife), j.p.NATTraversal, enabled(j.p.PassiveMode), enabled(j.p.AutoNegotiate))
	}
	p("phase2s:\n")
	for _, d := range j.Phase2 {
		p("%s proto %d src %s dst %s", d.Name, d.Protocol, strings.Join(d.Src, ","), strings.Join(d.Dst, ","))
		if len(d.DHGroups) > 0 {
			p(" dhgrp %s", groupText(d.DHGroups))
		}
		if d.Replay {
			p(" replay")
		}
		if d.AutoNegotiate {
			p(" auto-negotiate")
		}
		if d.KeepAlive {
			p(" keep-alive")
		}
		p(" route-new\n")
		if long {
			p("  proposal: %s lifetime: %d\n", strings.Join(d.Proposals, " "), d.Lifetime)
		}
	}
	p("policy: %s\n", yesNo(j.Policy))
}

func groupText(ids []int) string { return strings.Trim(fmt.Sprint(ids), "[]") }

// showConfig is `show [full-configuration] [PATH]`.
func showConfig(s *session, args []string) error {
	full := false
	if len(args) > 0 && args[0] != "" && strings.HasPrefix("full-configuration", args[0]) {
		full, args = true, args[1:]
	}
	v, err := s.d.view(s.ctx, false)
	if err != nil {
		return err
	}
	var text strings.Builder
	show := v.Config.Show
	if s.showKeys {
		show = v.Config.ShowSecrets
	}
	if err := show(&text, strings.Join(args, " "), full); err != nil {
		return usageError{err.Error()}
	}
	if s.json {
		return s.printJSON(map[string]string{"path": strings.Join(args, " "), "text": text.String()})
	}
	s.printf("%s", text.String())
	return nil
}
