package config

import (
	"slices"
	"strings"
	"testing"
)

const groupText = `config system ha
	set mode a-p
	set hbdev "hb0" 50
	set unicast-status enable
	config unicast-peers
		edit 1
			set peer-ip 172.31.1.2
		next
		edit 2
			set peer-ip 172.31.1.3
		next
	end
end
`

// TestGroup: a group of three has one virtual cluster, ranked by `config system ha`,
// decides with its peers by a log, and its peers are each member's own to name.
func TestGroup(t *testing.T) {
	c, faults := Load("f", []byte(groupText))
	if c == nil || len(faults) != 0 {
		t.Fatalf("faults: %v", faults)
	}
	var peers []string
	for _, a := range c.LogPeers() {
		peers = append(peers, a.String())
	}
	if v := c.VirtualClusters(); !c.Group() || !c.Virtual() || len(v) != 1 || v[0].ID != 1 || v[0].Priority != 128 {
		t.Errorf("group %v, virtual %v: %+v", c.Group(), c.Virtual(), v)
	}
	if !slices.Equal(peers, []string{"172.31.1.2", "172.31.1.3"}) {
		t.Errorf("members: %v", peers)
	}
	if s := string(c.Shared()); strings.Contains(s, "peer-ip") || !strings.Contains(s, "unicast-status enable") {
		t.Errorf("shared with the other members:\n%s", s)
	}
	again, faults := Load("g", c.Text())
	if again == nil || !again.Group() || len(again.HA.UnicastPeers) != 2 {
		t.Errorf("read again: %v", faults)
	}
	joined, faults := c.Join("h", c.Shared())
	if joined == nil || !slices.Equal(joined.LogPeers(), c.LogPeers()) {
		t.Errorf("with the shared part of another: %v", faults)
	}
	if pair, _ := Load("p", []byte(strings.Replace(groupText, "set unicast-status enable", "", 1))); pair == nil || pair.Group() || pair.Virtual() || pair.LogPeers() != nil {
		t.Error("without unicast-status it is no pair")
	}
}
