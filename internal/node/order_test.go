package node

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Others wait for frames and acknowledgements. A frame leaves before the log lines of the
// same input, and an acknowledgement before the standby does what the frame asks for,
// which it then does before its next input.
func TestWhatOthersWaitForComesFirst(t *testing.T) {
	const day = 86400
	w := newWorld(t, 1, fmt.Sprintf(gatewayConf, day, "", day, day), fmt.Sprintf(clientConf, day, "", "disable", day, day))
	w.run(30*time.Second, "synchronised", w.synchronised)
	framed, acknowledged := 0, 0
	w.look = func(m *member, carried []string) {
		last, line := -1, slices.Index(carried, "node.Log")
		for i, e := range carried {
			if e == "statesync.SendFrame" {
				last = i
			}
		}
		if last >= 0 && line >= 0 {
			framed++
			if line < last {
				t.Errorf("%s: a line before a frame: %v", m.name, carried)
			}
		}
		installs, ack := slices.Index(carried, "node.Install"), slices.Index(carried, "statesync.SendAck")
		if ack >= 0 && installs >= 0 {
			acknowledged++
			if ack != 0 {
				t.Errorf("%s: before an acknowledgement: %v", m.name, carried)
			}
			if len(m.sas) == 0 {
				t.Errorf("%s: acknowledged, but not done: %v", m.name, carried)
			}
		}
	}
	w.up(w.client, "gw", "net1")
	w.run(30*time.Second, "the tunnel on both", func() bool { return w.agree(1) })
	if framed == 0 || acknowledged == 0 {
		t.Errorf("%d frames with lines and %d acknowledgements of SAs were seen", framed, acknowledged)
	}
}
