package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// TestPairMessageIDSync: what the standby should have heard last is withheld on purpose,
// so that after SIGKILL of the active daemon the survivor is behind what charon has seen.
// RFC 6311 mends it, once, and the tunnel goes on with the same IKE SA, charon's requests
// first or ours.
func TestPairMessageIDSync(t *testing.T) {
	needCharon(t)
	// charon cannot protect a second message with ID 0 by AES-GCM, whose IVs it counts by
	// message ID.
	cbc := func(conf string) string {
		return strings.Replace(conf, "set proposal aes128gcm-prfsha256", "set proposal aes128-sha256", 1)
	}
	for _, first := range []string{"charon", "the survivor"} {
		t.Run(first+" asks first", func(t *testing.T) {
			t.Parallel()
			p := newPair(t, breakpointProgram(t), cbc)
			conf := pairConn()
			conf.conn, conf.ike = "dpd_delay = 1s", "aes128-sha256-x25519"
			ch := p.charon(lab.NodeClient, conf)
			ch.up()
			p.traffic()
			active, standby := p.synchronised()
			p.wantSame()
			inits := p.begun(exchInit)
			active.must("diagnose debug withhold")
			probes := p.begun(exchInfo)
			eventually(t, 20*time.Second, "charon's probes go unreplicated", func() bool { return p.begun(exchInfo) >= probes+3 })
			p.kill(active)
			p.takenOver(standby)
			if first != "charon" {
				standby.must("diagnose vpn ike rekey child name vpn1")
			}
			log := standby.proc.LogPath
			eventually(t, 30*time.Second, "the message IDs are synchronised", func() bool {
				return contains(log, "synced message IDs: send/recv=")
			})
			p.traffic()
			events := ch.Events()
			if err := ch.Rekey(ch.ctx, "net", ""); err != nil {
				t.Error(err)
			}
			eventually(t, 20*time.Second, "charon rekeys the Child SA", func() bool { return ch.Events().ChildRekeys > events.ChildRekeys })
			events = ch.Events()
			standby.must("diagnose vpn ike rekey child name vpn1")
			eventually(t, 20*time.Second, "the survivor rekeys the Child SA", func() bool { return ch.Events().ChildRekeys > events.ChildRekeys })
			p.traffic()
			if n := p.begun(exchInit); n != inits {
				t.Errorf("%d new IKE_SA_INIT", n-inits)
			}
			text, err := os.ReadFile(log)
			if n := strings.Count(string(text), "synced message IDs: send/recv="); err != nil || n != 1 {
				t.Errorf("%d synchronisations, %v", n, err)
			}
		})
	}
}
