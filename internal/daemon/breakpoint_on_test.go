//go:build breakpoints

package daemon

import (
	"testing"

	"tandem/ike"
	"tandem/internal/node"
	statesync "tandem/sync"
)

func ikeMessage(exchange, flags byte) ike.Send {
	data := make([]byte, 28)
	data[18], data[19] = exchange, flags
	return ike.Send{Datagram: ike.Datagram{Data: data}}
}

func TestBreakpointMatches(t *testing.T) {
	request, response := ikeMessage(35, 0x08), ikeMessage(35, 0x20)
	for _, c := range []struct {
		spec string
		e    node.Effect
		want bool
	}{
		{"ike.Send", request, true},
		{"ike.Send(IKE_AUTH)", response, true},
		{"ike.Send(IKE_AUTH,response):before", response, true},
		{"ike.Send(IKE_AUTH,response)", request, false},
		{"ike.Send(IKE_AUTH,request):2:after", request, true},
		{"ike.Send(CREATE_CHILD_SA)", request, false},
		{"ike.Send(IKE_AUTH)", ike.Send{}, false},
		{"statesync.SendFrame:3", statesync.SendFrame{}, true},
		{"node.Install", node.Install{}, true},
		{"node.Install", node.Claim{}, false},
	} {
		var b breakpoint
		if err := b.arm(c.spec); err != nil {
			t.Fatal(err)
		}
		if b.matches(c.e) != c.want {
			t.Errorf("%s and %T: want %v", c.spec, c.e, c.want)
		}
	}
	for _, bad := range []string{"Send", "ike.Send(NOTHING)", "ike.Send:x", "ike.Send:1:during"} {
		if err := new(breakpoint).arm(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	var b breakpoint
	if err := b.arm(""); err != nil || b.matches(request) {
		t.Error("nothing armed, nothing matches")
	}
}
