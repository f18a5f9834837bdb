package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// assignments are the addresses that a farm's members have assigned, by who says to own
// the tunnel: tunnel → addresses.
func (f *trio) assignments(members ...string) map[string]string {
	f.t.Helper()
	out := map[string]string{}
	for _, m := range members {
		var all []struct {
			Name, Role string
			Failure    string                    `json:"last_failure"`
			Assigned   []string                  `json:"assigned"`
			SAs        []struct{ Status string } `json:"ike_sas"`
		}
		if err := json.Unmarshal([]byte(f.members[m].must("diagnose vpn ike gateway list", "--json")), &all); err != nil {
			f.t.Fatal(err)
		}
		for _, g := range all {
			if g.Role == "sync-primary" && len(g.SAs) > 0 {
				out[m+" "+g.Name] = strings.Join(g.Assigned, " ")
			}
			if g.Role == "sync-primary" && strings.HasPrefix(g.Failure, "INTERNAL_ADDRESS_FAILURE") && len(g.SAs) == 1 {
				out[m+" "+g.Name] = g.SAs[0].Status + " without address"
			}
		}
	}
	return out
}

// TestFarmAddresses: the clients of a farm, strongSwan's, get addresses from whichever member
// they come to; none is that of two. When a member ends by SIGKILL, its client keeps address
// and tunnel. Who gets none keeps the IKE SA; and when another has hung up, it gets that one's.
func TestFarmAddresses(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needCharon(t)
	f := newFarmOf(t, program(t), trioMembers, 4, `
config vpn ipsec phase1-interface
    edit "vpn1"
        set mode-cfg enable
        set ipv4-start-ip 10.9.0.1
        set ipv4-end-ip 10.9.0.3
    next
end
`, func(*trio) {})
	f.must(trioServer, "ip", "route", "replace", "10.9.0.0/24", "via", "10.2.0.3")
	for _, m := range trioMembers {
		eventually(t, 20*time.Second, m+" has an address ready", func() bool {
			h, ok := status[struct {
				Pools []struct{ Free int } `json:"pools"`
			}](f.members[m])
			return ok && len(h.Pools) == 1 && h.Pools[0].Free == 1
		})
	}
	var cs []*charon
	for k := range 4 {
		f.toGateway(k, trioMembers[k%3])
		cs = append(cs, f.charon(trioClient(k), conn{local: fmt.Sprintf("203.0.113.%d", 4*k+2), remote: sharedGW, id: fmt.Sprintf("c%d.test", k), remoteID: "-",
			secret: "a secret of gateways and client", localTS: "dynamic", remoteTS: "10.2.0.0/24", conn: "vips = 0.0.0.0"}))
	}
	for _, c := range cs[:3] {
		c.up()
	}
	had := f.assignments(trioMembers...)
	if all := slices.Sorted(maps.Values(had)); !slices.Equal(all, []string{"10.9.0.1", "10.9.0.2", "10.9.0.3"}) {
		t.Fatalf("assigned: %v", had)
	}
	address := make([]string, 3)
	for k := range address {
		for x, a := range had {
			if strings.HasPrefix(x, trioMembers[k]+" ") {
				address[k] = a
			}
		}
		f.wantPing(trioClient(k), address[k], trioServing)
	}

	// Nothing is left for the fourth.
	if err := cs[3].Initiate(cs[3].ctx, "net", 10*time.Second); err == nil {
		t.Error("the fourth client has a Child SA")
	}
	cs[3].says("INT_ADDR_FAIL|INTERNAL_ADDRESS_FAILURE")
	if got := slices.Collect(maps.Values(f.assignments("gw1"))); !slices.Contains(got, "established without address") {
		t.Errorf("the fourth client's IKE SA at gw1: %v", got)
	}

	// The first member ends, its client goes on.
	if err := syscall.Kill(f.members["gw1"].proc.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.toGateway(0, "gw2")
	f.toGateway(3, "gw3")
	f.wantPing(trioClient(0), address[0], trioServing)
	eventually(t, 10*time.Second, "the survivors have the three addresses", func() bool {
		var all []string
		for _, a := range f.assignments("gw2", "gw3") {
			if strings.HasPrefix(a, "10.") {
				all = append(all, a)
			}
		}
		return slices.Equal(slices.Sorted(slices.Values(all)), []string{"10.9.0.1", "10.9.0.2", "10.9.0.3"})
	})

	// The third hangs up, the fourth gets its address.
	_ = cs[3].Terminate(cs[3].ctx, "gw")
	if err := cs[2].Terminate(cs[2].ctx, "gw"); err != nil {
		t.Error(err)
	}
	eventually(t, 10*time.Second, "the fourth client has an address", func() bool {
		if cs[3].Initiate(cs[3].ctx, "net", 5*time.Second) == nil {
			return true
		}
		_ = cs[3].Terminate(cs[3].ctx, "gw")
		return false
	})
	f.wantPing(trioClient(3), address[2], trioServing)
	for k := range 2 {
		f.wantPing(trioClient(k), address[k], trioServing)
	}
}
