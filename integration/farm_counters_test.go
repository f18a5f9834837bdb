package integration

import (
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFarmCounterSync: a member of a farm ends by SIGKILL, guardian and all, under the
// traffic of a client, whose packets nobody receives until the router has learnt of it:
// whoever listens has them, and nobody has seen their numbers. The successor has the client
// raise them (RFC 6311). From then on nothing captured before is delivered, whether it is
// sent to the successor again or to the third member, which hands it on; and nothing is lost
// of what the client sends after its answer.
func TestFarmCounterSync(t *testing.T) {
	for _, c := range []struct {
		name, esn string
		silent    bool // the client sends nothing more after its answer
	}{{"under traffic", "disable", false}, {"client falls silent, ESN", "require", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			f := newTrio(t, program(t), 1)
			esn := func(s string) string {
				return strings.Replace(s, "set proposal aes128gcm\n", "set proposal aes128gcm\n        set esn "+c.esn+"\n", 1)
			}
			for _, m := range trioMembers {
				f.members[m].edit(esn)
				f.members[m].must("execute reload")
			}
			f.clients[0].edit(esn)
			f.toGateway(0, "gw1")
			f.toClient(0, "gw1")
			wire := f.tap(trioRouter, trioClient(0))
			f.up()
			sa := f.ikeSA(0)
			eventually(t, 10*time.Second, "gw1 owns the tunnel, the others have copies", func() bool {
				owner, listed := f.owners()
				return listed[sa] == len(trioMembers) && slices.Equal(owner[sa], []string{"gw1"})
			})

			s := f.stream(trioClient(0), trioInner(0), trioServer, trioServing)
			s.flow()
			eventually(t, 10*time.Second, "the stream flows", func() bool { sent, got := s.state(); return len(sent) > 200 && got[100] == 1 })
			begun := time.Now()
			if err := syscall.Kill(f.members["gw1"].proc.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			before, _ := s.state()
			survivors := trioMembers[1:]
			heir := ""
			eventually(t, 10*time.Second, "a survivor owns the tunnel", func() bool {
				for _, m := range survivors {
					all, _ := answer[[]tunnelOwner](f.members[m], "diagnose vpn ike gateway list")
					if len(all) == 1 && all[0].Role == "sync-primary" {
						heir = m
					}
				}
				return heir != ""
			})
			other := survivors[1-slices.Index(survivors, heir)]
			eventually(t, 10*time.Second, "some are lost", func() bool { sent, _ := s.state(); return len(sent) > len(before)+50 })
			if c.silent {
				s.pause()
			}
			f.toClient(0, heir)
			f.toGateway(0, heir)
			if c.silent {
				s.send() // by which the successor hears that the client is there
			}
			eventually(t, 10*time.Second, "the counters are synchronised", func() bool {
				return contains(f.members[heir].proc.LogPath, "synced replay counters")
			})
			client := "203.0.113.2"
			answered := wire.answered(client, begun)
			if !c.silent {
				after, _ := s.state()
				eventually(t, 10*time.Second, "the stream goes on", func() bool { sent, _ := s.state(); return len(sent) > len(after)+250 })
				s.pause()
			}
			sent, got, lost := s.whole(answered)

			frames := wire.sentBy(client, begun.Add(-time.Second), answered)
			for _, m := range []string{heir, other} {
				refused := f.members[heir].refused()
				n, err := f.topo.InjectAt(trioRouter, m, f.hardwareAddress(m, "wan0"), frames)
				if err != nil || n < lost {
					t.Fatalf("%d of %d frames injected towards %s, %v", n, len(frames), m, err)
				}
				if !holds(10*time.Second, func() bool { return f.members[heir].refused() >= refused+uint64(n) }) {
					t.Errorf("sent again to %s: the successor, %s, refused %d of %d", m, heir, f.members[heir].refused()-refused, n)
				}
				s.noneAgain(got, n)
				_, got = s.state()
			}
			t.Logf("%d captured packets sent again to %s and to %s, %d of which had been lost; %d datagrams after the answer", len(frames), heir, other, lost, after(sent, answered))
			f.wantPing(trioClient(0), trioInner(0), trioServing)
			if now := f.ikeSA(0); now != sa {
				t.Errorf("the IKE SA was %s and is %s", sa, now)
			}
		})
	}
}

func (s *site) hardwareAddress(node, dev string) net.HardwareAddr {
	s.t.Helper()
	out := s.must(node, "ip", "-o", "link", "show", "dev", dev)
	mac, err := net.ParseMAC(regexp.MustCompile(`link/ether ([0-9a-f:]+)`).FindStringSubmatch(out + " link/ether ")[1])
	if err != nil {
		s.t.Fatalf("%s: %v: %s", node, err, out)
	}
	return mac
}
