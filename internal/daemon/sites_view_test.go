package daemon

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"tandem/cluster"
	"tandem/internal/node"
)

// testSitesView is testFarmView with its members in two sites, of which the second has
// nobody active.
func testSitesView(t *testing.T, id int) *view {
	v := testFarmView(t, id)
	v.Node.Farm.Sites = []node.SiteStatus{
		{Number: 1, Nodes: []cluster.NodeID{1, 2}, Active: 1, Owner: 1, Here: id == 1},
		{Number: 16, Nodes: []cluster.NodeID{3, 4}, Owner: 1},
	}
	return v
}

// Both status commands end with, or contain, the sites, and name a member by the number
// of its site.
func TestSitesInStatus(t *testing.T) {
	for _, line := range []string{"get system ha status", "diagnose sys ha standalone-peers"} {
		out, err := run(&fakeBackend{v: testSitesView(t, 1)}, line)
		if err != nil {
			t.Fatal(err)
		}
		want := "Sites: 2\n    site 1: active DC1_VM1, nodes DC1_VM1 DC1_VM2, addresses here\n    site 16: active none (its tunnels: DC1_VM1), nodes DC1_VM3 DC1_VM4\n"
		if !strings.Contains(out, want) {
			t.Errorf("%s:\n%s", line, out)
		}
	}
	out, err := run(&fakeBackend{v: testSitesView(t, 2)}, "get system ha status --json")
	if err != nil {
		t.Fatal(err)
	}
	var j farmJSON
	if err := json.Unmarshal([]byte(out), &j); err != nil {
		t.Fatal(err)
	}
	if len(j.Sites) != 2 || j.Sites[0].Active != "DC1_VM1" || j.Sites[0].Here || j.Sites[1].Active != "" || j.Sites[1].Owner != "DC1_VM1" {
		t.Errorf("%+v", j.Sites)
	}
	var ids, sites []int
	for _, m := range j.Members {
		ids, sites = append(ids, m.ID), append(sites, m.Site)
		if m.SiteActive != (m.Node == 1) {
			t.Errorf("%+v", m)
		}
	}
	if !slices.Equal(ids, []int{1, 1, 0, 0}) || !slices.Equal(sites, []int{1, 1, 16, 16}) || j.Node != 2 {
		t.Errorf("node %d: ids %v, sites %v", j.Node, ids, sites)
	}
}

// A node that owns nothing is synchronised if its site has another active node, and only then.
func TestSiteStandbyIsSynchronised(t *testing.T) {
	v := testSitesView(t, 2)
	f := v.Node.Farm
	for i := range f.Scopes {
		if s := &f.Scopes[i]; s.Heard == 2 { // its partner has that, too
			s.Heard, s.Owner = 1, 1
			s.Here.Role = cluster.RoleStandby
		}
	}
	if !v.farmSynchronised() {
		t.Error("the standby of a site is not synchronised")
	}
	f.Sites[0].Active = 0
	if v.farmSynchronised() {
		t.Error("a node of a site that nobody is active in is synchronised")
	}
}
