package config

import (
	"strings"
	"testing"
)

const poolText = `config vpn ipsec phase1-interface
	edit "dial"
		set type dynamic
		set interface "wan1"
		set psksecret "s3cretvalue"
		set mode-cfg enable
		set ipv4-start-ip 10.9.0.1
		set ipv4-end-ip 10.9.0.9
	next
end
`

// TestPoolsThatCannotBeShared: where an address could be given out twice, mode-cfg is refused.
func TestPoolsThatCannotBeShared(t *testing.T) {
	second := strings.NewReplacer(`edit "dial"`, `edit "dial2"`, "wan1", "wan2", "10.9.0.1\n", "10.9.0.9\n", "10.9.0.9", "10.9.0.19").Replace(poolText)
	second = strings.Replace(second, "start-ip 10.9.0.19", "start-ip 10.9.0.9", 1)
	vclusters := `config system ha
	set mode a-p
	set hbdev "hb0" 50
	set vcluster-status enable
	config vcluster
		edit 2
			set vdom "red"
		next
	end
end
config system interface
	edit "wan1"
		set vdom "root"
		set ip 192.0.2.1/24
	next
	edit "wan2"
		set vdom "red"
		set ip 198.51.100.1/24
	next
end
`
	for _, tc := range []struct{ name, text, want string }{
		{"alone", poolText, ""},
		{"pair", ha("set mode a-p\nset hbdev hb0 50") + poolText, ""},
		{"client", strings.Replace(goodPhase1, "next\n", "set mode-cfg enable\nnext\n", 1), ""},
		{"group", groupText + poolText, "group of three or four"},
		{"farm", site("set group-member-id 1\n") + poolText, ""},
		{"client in a farm", site("set group-member-id 1\n") + strings.Replace(goodPhase1, "next\n", "set mode-cfg enable\nnext\n", 1), "standalone-cluster"},
		{"one pool in two virtual clusters", vclusters + poolText + second, "would be given out twice"},
		{"two pools in two virtual clusters", vclusters + poolText + strings.ReplaceAll(second, "start-ip 10.9.0.9", "start-ip 10.9.0.10"), ""},
		{"one pool for two in one", poolText + second, ""},
	} {
		_, faults := Load("f", []byte(tc.text))
		var found []string
		for _, f := range faults {
			if !f.Warning {
				found = append(found, f.Error())
			}
		}
		if all := strings.Join(found, "\n"); (tc.want == "") != (all == "") || !strings.Contains(all, tc.want) || tc.want != "" && len(found) != 1 {
			t.Errorf("%s: faults %q, want one about %q", tc.name, all, tc.want)
		}
	}
}
