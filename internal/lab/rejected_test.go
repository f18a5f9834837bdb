package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// crossing is a client's traffic over a takeover, as the captures show it: to gw1
// for two seconds, then for a second and a half to gw2, which delivers on its LAN.
type crossing struct {
	every   time.Duration // between the client's packets
	reject  func(i int) bool
	late    time.Duration // that a delivery takes
	flooded int           // frames to gw1's hardware address that pass gw2's port after the fault
	idle    time.Duration // without packets before the fault
	kind    faultKind
	widened int
}

// judge writes the captures, reads them as a run does, and judges.
func (x crossing) judge(t *testing.T) (reached, rejected, lead int) {
	t.Helper()
	files := map[string][]Frame{} // by capture
	died := wireStart.Add(2 * time.Second)
	begin, until := died.Add(40*time.Millisecond), died.Add(1500*time.Millisecond)
	inner := ipFrame(netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("10.2.0.10"), protoUDP, make([]byte, 64))
	frame := func(gw string, seq uint32) []byte {
		f := udpFrame(wireClient, wireGateway, portNATT, espBytes(0xbb, seq, uint64(seq), "up"))
		f[5] = map[string]byte{NodeGW1: 1, NodeGW2: 2}[gw]
		return f
	}
	for gw, mac := range map[string]byte{NodeGW1: 1, NodeGW2: 2} { // each has been heard
		f := ipFrame(netip.MustParseAddr("192.0.2.77"), wireClient, protoUDP, nil)
		f[11] = mac
		files["wan-"+gw] = append(files["wan-"+gw], Frame{wireStart.Add(-time.Second), gw, true, f})
	}
	seq, first := uint32(0), 0
	for at := wireStart; at.Before(until); at = at.Add(x.every) {
		if at.After(died.Add(-x.idle)) && at.Before(died) {
			continue
		}
		seq++
		if at.Before(begin) {
			f := frame(NodeGW1, seq)
			files["wan-"+NodeGW1] = append(files["wan-"+NodeGW1], Frame{at, NodeGW1, false, f})
			if !at.Before(died) && x.flooded > 0 {
				x.flooded--
				files["wan-"+NodeGW2] = append(files["wan-"+NodeGW2], Frame{at, NodeGW2, false, f})
			}
			continue
		}
		files["wan-"+NodeGW2] = append(files["wan-"+NodeGW2], Frame{at, NodeGW2, false, frame(NodeGW2, seq)})
		if !x.reject(first) {
			files["lan-"+NodeGW2] = append(files["lan-"+NodeGW2], Frame{at.Add(x.late), NodeGW2, true, inner})
		}
		first++
	}
	dir := t.TempDir()
	r := &run{}
	for _, name := range []string{"wan-client", "wan-gw1", "wan-gw2", "lan-gw1", "lan-gw2"} {
		c := &Capture{Port: name[4:], Path: filepath.Join(dir, name)}
		p, err := newPcapWriter(c.Path, c.Port)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files[name] {
			if err := p.write(f); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.close(); err != nil {
			t.Fatal(err)
		}
		r.caps = append(r.caps, c)
	}
	check := NewChecker(CheckOptions{Client: NodeClient})
	for _, c := range r.caps[:3] {
		if err := ReadCapture(c.Path, func(f Frame) error { check.Add(f); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	delivered, err := r.delivered(check)
	if err != nil {
		t.Fatal(err)
	}
	f := &fault{kind: x.kind, at: died, victim: NodeGW1, survivor: NodeGW2, widened: x.widened}
	return r.judgeRejected(check, delivered[NodeGW2], f, until)
}

func TestRejectedAndLead(t *testing.T) {
	first := func(n int) func(int) bool { return func(i int) bool { return i < n } }
	for name, test := range map[string]struct {
		x                       crossing
		reached, rejected, lead int // reached: at least
	}{
		"all delivered": {
			crossing{every: 2 * time.Millisecond, reject: first(0), kind: faultKill}, 700, 0, 5,
		},
		"as many rejected as the lead": {
			crossing{every: 2 * time.Millisecond, reject: first(5), kind: faultKill}, 700, 5, 5,
		},
		"one more": {
			crossing{every: 2 * time.Millisecond, reject: first(6), kind: faultKill}, 700, 6, 5,
		},
		"a tenth, all the time": { // but for the last 200 ms
			crossing{every: 2 * time.Millisecond, reject: func(i int) bool { return i%10 == 0 }, kind: faultKill}, 700, 63, 5,
		},
		"all": {
			crossing{every: 2 * time.Millisecond, reject: func(int) bool { return true }, kind: faultKill}, 700, 630, 5,
		},
		"deliveries under way are no rejections": {
			crossing{every: 2 * time.Millisecond, late: 1900 * time.Microsecond, reject: first(3), kind: faultLoss}, 700, 3, 5,
		},
		"a widened lead": {
			crossing{every: 2 * time.Millisecond, reject: first(9), kind: faultKill, widened: 2}, 700, 9, 10,
		},
		"a handover has no lead": {
			crossing{every: 2 * time.Millisecond, reject: first(1), kind: faultHandover, widened: 16}, 700, 1, 0,
		},
		"below 100 packets a second there is none": {
			crossing{every: 11 * time.Millisecond, reject: first(1), kind: faultKill}, 100, 1, 0,
		},
		"nor after idle time": {
			crossing{every: 2 * time.Millisecond, idle: 1500 * time.Millisecond, reject: first(1), kind: faultKill}, 700, 1, 0,
		},
		"packets for the dead gateway that pass the port": {
			crossing{every: 2 * time.Millisecond, flooded: 15, reject: first(0), kind: faultLoss}, 700, 0, 5,
		},
	} {
		t.Run(name, func(t *testing.T) {
			reached, rejected, lead := test.x.judge(t)
			if reached < test.reached || rejected != test.rejected || lead != test.lead {
				t.Errorf("%d reached (at least %d), %d rejected (%d), lead %d (%d)",
					reached, test.reached, rejected, test.rejected, lead, test.lead)
			}
		})
	}
}

// TestLeadOfEachSA: the leads of several SAs add up, that of a young SA is of its
// own rate, and one that fell silent has none, nor has what another gateway received.
func TestLeadOfEachSA(t *testing.T) {
	w := newWire() // a packet each millisecond
	for i := uint32(1); i <= 700; i++ {
		w.up(NodeGW1, 0xb0, i, uint64(i), "up")
	}
	for i := uint32(1); i <= 200; i++ { // two SAs
		w.up(NodeGW1, 0xb1, i, uint64(i), "up")
		w.up(NodeGW1, 0xb3, i, uint64(i), "up")
	}
	for i := uint32(1); i <= 500; i++ {
		w.up(NodeGW2, 0xb2, i, uint64(i), "up")
	}
	c := NewChecker(CheckOptions{Client: NodeClient})
	for _, f := range w.frames {
		c.Add(f)
	}
	fault := wireStart.Add(1101 * time.Millisecond)
	if n := c.Lead(NodeGW1, fault); n < 10 || n > 12 {
		t.Errorf("lead of two SAs at 500/s each: %d", n)
	}
	if n := c.Lead(NodeGW2, fault); n != 0 {
		t.Errorf("lead of a standby: %d", n)
	}
}

func TestLargest(t *testing.T) {
	v := []any{map[string]any{"sas": []any{map[string]any{"fence_widened": 2.0}, map[string]any{"fence_widened": 8.0, "fence": 90.0}}}, "x"}
	if n := largest(v, "fence_widened"); n != 8 {
		t.Errorf("%d", n)
	}
	if n := largest(nil, "fence_widened"); n != 0 {
		t.Errorf("%d in nothing", n)
	}
}

func TestWaited(t *testing.T) {
	if d := waited(map[string]time.Duration{"a": 1, "c": 9}, map[string]time.Duration{"a": 5, "b": 3, "c": 9}); d != 4 {
		t.Errorf("%v", d)
	}
	if _, err := os.Stat("/proc/self/schedstat"); err == nil && len(runDelays([]int{os.Getpid()})) == 0 {
		t.Error("this process has no threads")
	}
}
