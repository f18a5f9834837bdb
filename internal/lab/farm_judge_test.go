package lab

import (
	"encoding/binary"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scripted is a routing whose changes are given.
type scripted struct{ did []routeChange }

func (s *scripted) lost(string, time.Time) <-chan time.Time { return nil }
func (s *scripted) back(string) error                       { return nil }
func (s *scripted) rehash([]string) error                   { return nil }
func (s *scripted) active() []string                        { return Members[:3] }
func (s *scripted) changes() []routeChange                  { return s.did }
func (s *scripted) close() error                            { return nil }

// farmStory writes the captures and arrivals of a farm of three members and three
// tunnels, packet by packet.
type farmStory struct {
	t       *testing.T
	r       *farmRun
	routes  *scripted
	now     time.Time
	outer   map[string][]Frame
	inner   map[string][]Frame
	flows   []Flow
	up      []uint32 // numbers of ESP packets by tunnel
	down    []uint32
	ivs     []uint64
	members map[string]uint64 // sender IDs in IVs
}

func newFarmStory(t *testing.T) *farmStory {
	t.Helper()
	f := defaultFarm()
	f.Charon, f.Tandem, f.Processes = 0, 3, 1
	s := &farmStory{t: t, routes: &scripted{}, now: wireStart, outer: map[string][]Frame{}, inner: map[string][]Frame{},
		flows: make([]Flow, 3), up: make([]uint32, 3), down: make([]uint32, 3), ivs: make([]uint64, 3), members: map[string]uint64{}}
	for i, m := range Members {
		s.members[m] = uint64(i+1) << 40
	}
	s.r = &farmRun{stage: stage{o: Options{Progress: io.Discard}, s: &Scenario{}, began: timeNow(), res: Result{FarmFigures: &FarmFigures{Clients: 3, Members: 3}}},
		f: f, routes: s.routes, tunnels: f.tunnels(),
		up: wireStart, clients: &farmClients{}, flows: &Flows{Interval: 10 * time.Millisecond}, members: map[string]*Gateway{}}
	return s
}

func (s *farmStory) at(ms int) time.Time {
	return wireStart.Add(time.Duration(ms) * time.Millisecond)
}

func (s *farmStory) sendDown(i int, member string, seq uint32, iv uint64) {
	x := s.r.tunnels[i]
	s.outer[member] = append(s.outer[member], Frame{s.now, member, true, udpFrame(FarmLoopback, x.Outer, portNATT, espBytes(0xaa00+uint32(i), seq, iv, "down"))})
}

func probeBytes(flow int, seq uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, flowMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(flow))
	b = binary.BigEndian.AppendUint64(b, seq)
	return append(b, make([]byte, 8)...)
}

func (s *farmStory) deliver(i int, member string, seq uint64) {
	x := s.r.tunnels[i]
	s.inner[member] = append(s.inner[member], Frame{s.now, member, true, udpFrame(x.Host, x.Server, probePort+flowPortOff, probeBytes(i, seq))})
}

// play lets all tunnels carry a probe each way every 10 ms until a time. The owner of
// each sends, the members in reach receive from its client; without an owner nothing
// arrives.
func (s *farmStory) play(until int, owner, reach [3]string) {
	for ; s.now.Before(s.at(until)); s.now = s.now.Add(10 * time.Millisecond) {
		for i := range owner {
			x, f := s.r.tunnels[i], &s.flows[i]
			s.up[i]++
			s.outer[reach[i]] = append(s.outer[reach[i]], Frame{s.now, reach[i], false, udpFrame(x.Outer, FarmLoopback, portNATT, espBytes(0xbb00+uint32(i), s.up[i], uint64(s.up[i]), "up"))})
			f.Up.Sent++
			f.Down.Sent++
			if owner[i] == "" {
				continue
			}
			s.down[i]++
			s.ivs[i]++
			s.sendDown(i, owner[i], s.down[i], s.members[owner[i]]|s.ivs[i])
			s.deliver(i, owner[i], f.Up.Sent-1)
			f.Up.Arrivals = append(f.Up.Arrivals, Arrival{f.Up.Sent - 1, s.now})
			f.Down.Arrivals = append(f.Down.Arrivals, Arrival{f.Down.Sent - 1, s.now})
		}
	}
}

func (s *farmStory) fault(kind faultKind, ms, moved int, victim string) {
	s.r.faults = append(s.r.faults, &farmFault{kind: kind, at: s.at(ms), moved: s.at(moved), victim: victim})
	s.routes.did = append(s.routes.did, routeChange{at: s.at(moved), why: "fault", member: victim})
}

// judge writes the captures and lets a run judge them as it would its own.
func (s *farmStory) judge() *Result {
	s.t.Helper()
	r := s.r
	r.ended = s.now
	dir := s.t.TempDir()
	var paths [2][]string
	for i, set := range []map[string][]Frame{s.outer, s.inner} {
		for _, m := range Members {
			p := filepath.Join(dir, []string{"outer", "inner"}[i]+m+".pcapng")
			w, err := newPcapWriter(p, m)
			if err != nil {
				s.t.Fatal(err)
			}
			for _, f := range set[m] {
				if err := w.write(f); err != nil {
					s.t.Fatal(err)
				}
			}
			if err := w.close(); err != nil {
				s.t.Fatal(err)
			}
			paths[i] = append(paths[i], p)
		}
	}
	check := NewChecker(CheckOptions{Merged: true, Up: r.up, End: r.ended, Tolerated: r.tolerated})
	wire, err := r.readWire(check, paths)
	if err != nil {
		s.t.Fatal(err)
	}
	rep := check.Report()
	r.fromWire(&rep, wire)
	r.judgeFlows(s.flows, wire)
	return &r.res
}

const vm1, vm2, vm3, vm4 = "DC1_VM1", "DC1_VM2", "DC1_VM3", "DC1_VM4"

// TestFarmJudge: each planted fault is found, and counts under its name only.
func TestFarmJudge(t *testing.T) {
	each := [3]string{vm1, vm2, vm3}
	moved := [3]string{vm2, vm2, vm3}
	for name, test := range map[string]struct {
		plant func(s *farmStory)
		want  map[string]float64 // beside zeros
	}{
		"clean": {func(s *farmStory) { s.play(2000, each, each) }, nil},
		"IV repeated by another member": {func(s *farmStory) {
			s.play(1000, each, each)
			s.down[0] += 100
			s.sendDown(0, vm2, s.down[0], s.members[vm1]|5)
			s.down[0]++
			s.play(1500, moved, moved)
		}, map[string]float64{"iv_repeats": 1, "owner_moves": 1}},
		"successor begins below": {func(s *farmStory) {
			s.play(1000, each, each)
			s.down[0] -= 50
			s.play(1010, moved, moved)
			s.down[0] += 100
			s.play(1500, moved, moved)
		}, map[string]float64{"seq_regressions": 1, "owner_moves": 1}},
		"regression of one member, tolerated among owners": {func(s *farmStory) {
			s.r.tolerated = []Interval{{s.at(900), s.at(1200)}}
			s.play(1000, each, each)
			s.sendDown(0, vm1, s.down[0]-3, s.members[vm1]|1<<20)
			s.now = s.now.Add(time.Millisecond)
			s.play(1500, each, each)
		}, map[string]float64{"seq_regressions_owner": 1, "seq_regressions_split": 1, "other_gap_ms": 1}},
		"IKE_SA_INIT": {func(s *farmStory) {
			s.play(1000, each, each)
			s.outer[vm3] = append(s.outer[vm3], Frame{s.now, vm3, false, udpFrame(s.r.tunnels[1].Outer, FarmLoopback, portIKE, ikeBytes(exchangeSAInit, 8, 0, "again"))})
			s.play(1500, each, each)
		}, map[string]float64{"sa_init_after_up": 1}},
		"delivered by two members": {func(s *farmStory) {
			s.play(1000, each, each)
			s.deliver(0, vm3, 17)
			s.play(1500, each, each)
		}, map[string]float64{"replays_accepted": 1}},
		"two owners": {func(s *farmStory) {
			s.play(1000, each, each)
			for range 10 {
				s.now = s.now.Add(5 * time.Millisecond)
				s.down[0]++
				s.ivs[0]++
				s.sendDown(0, vm3, s.down[0], s.members[vm3]|s.ivs[0])
				s.now = s.now.Add(5 * time.Millisecond)
				s.down[0]++
				s.ivs[0]++
				s.sendDown(0, vm1, s.down[0], s.members[vm1]|s.ivs[0])
			}
			s.play(1500, each, each)
		}, map[string]float64{"double_owner_ms": 95, "other_gap_ms": 100}},
		"a member without fgsp-sync speaks": {func(s *farmStory) {
			s.play(500, each, each)
			s.outer[vm4] = append(s.outer[vm4], Frame{s.now, vm4, true, udpFrame(FarmLoopback, s.r.tunnels[1].Outer, portIKE, ikeBytes(exchangeInformational, 0x20, 0, "x"))})
			s.play(1000, each, each)
		}, map[string]float64{"uninvolved_packets": 1}},
		"not silent": {func(s *farmStory) {
			s.play(500, each, each)
			s.r.silences = []silence{{Interval: Interval{s.at(600), s.at(700)}, member: vm2}}
			s.play(1000, each, each)
		}, map[string]float64{"failed_expectations": 1}},
		"does not carry": {func(s *farmStory) {
			s.play(500, each, each)
			s.play(1000, [3]string{vm1, "", vm3}, each)
			s.r.carries = []carry{{Interval{s.at(600), s.at(700)}, 3}, {Interval{s.at(600), s.at(700)}, 2}}
			s.play(1100, each, each)
		}, map[string]float64{"failed_expectations": 1, "lost_pings": 100, "other_gap_ms": 500}},
		"fault": {func(s *farmStory) {
			s.play(2000, each, each)
			s.fault(faultKill, 1995, 2080, vm1)
			s.play(2300, [3]string{"", vm2, vm3}, each)
			s.down[0] += 300
			s.play(4000, moved, moved)
		}, map[string]float64{"kills": 1, "tunnels_hit": 1, "outage_ms.max": 220, "outage_from_kill_ms.max": 300, "moved_after_ms.max": 85,
			"owner_moves": 1, "lost_pings": 60}},
		"fault without a successor": {func(s *farmStory) {
			s.play(2000, each, each)
			s.fault(faultLoss, 2000, 2060, vm1)
			s.play(2500, [3]string{"", vm2, vm3}, each)
			s.routes.did = append(s.routes.did, routeChange{at: s.at(2500), why: "rejoin", member: vm1})
			s.play(9000, [3]string{"", vm2, vm3}, each)
		}, map[string]float64{"kills": 1, "tunnels_hit": 1, "outage_ms.max": 6940, "outage_from_kill_ms.max": 7000, "moved_after_ms.max": 60,
			"lost_pings": 1400}},
		"rehash, followed": {func(s *farmStory) {
			s.play(1000, each, each)
			s.routes.did = append(s.routes.did, routeChange{at: s.at(1000), why: "rehash"})
			s.play(1300, each, moved)
			s.play(4000, moved, moved)
		}, map[string]float64{"rehashes": 1, "owner_moves": 1, "rehash_moves": 1, "rehash_settled_ms": 300}},
		"rehash, not followed, with loss": {func(s *farmStory) {
			s.play(1000, each, each)
			s.routes.did = append(s.routes.did, routeChange{at: s.at(1000), why: "rehash"})
			s.play(1100, [3]string{vm1, "", vm3}, moved)
			s.play(4000, each, moved)
		}, map[string]float64{"rehashes": 1, "rehash_astray": 1, "rehash_lost_percent": 1.67, "lost_pings": 20, "other_gap_ms": 100}},
		"rehash, there and back": {func(s *farmStory) {
			s.play(1000, each, each)
			s.routes.did = append(s.routes.did, routeChange{at: s.at(1000), why: "rehash"})
			s.play(1100, each, moved)
			s.play(1300, moved, moved)
			s.play(1700, each, moved)
			s.play(4000, moved, moved)
		}, map[string]float64{"rehashes": 1, "owner_moves": 3, "rehash_moves": 3, "rehash_settled_ms": 700}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFarmStory(t)
			test.plant(s)
			res := s.judge()
			res.Expectations = len(s.r.unexpected)
			for _, field := range []string{"iv_repeats", "seq_regressions", "seq_regressions_owner", "seq_regressions_split", "sa_init_after_up",
				"replays_accepted", "double_owner_ms", "double_owner_split_ms", "owner_moves", "uninvolved_packets", "failed_expectations", "lost_pings",
				"kills", "tunnels_hit", "outage_ms.max", "outage_from_kill_ms.max", "moved_after_ms.max", "bystander_ms", "other_gap_ms",
				"rehashes", "rehash_moves", "rehash_settled_ms", "rehash_astray", "rehash_lost_percent"} {
				got, err := res.figure(field)
				if err != nil {
					t.Fatal(err)
				}
				if got != test.want[field] {
					t.Errorf("%s is %v, want %v", field, got, test.want[field])
				}
			}
		})
	}
}

func TestGap(t *testing.T) {
	a := arrivals(0, 10, 20, 300, 310)
	for _, test := range []struct {
		from, until, end, want float64
	}{
		{15, 100, 400, 270},  // begins within, ends later; the next was due at 30
		{50, 100, 400, 250},  // what is before does not count
		{100, 200, 400, 200}, // to the first arrival
		{301, 325, 345, 25},  // silence to the end
		{0, 15, 400, 0},
		{-100, 15, 400, 100}, // nothing was there before
	} {
		if got := milliseconds(Gap(a, at(test.from), at(test.until), at(test.end), 10*time.Millisecond)); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestDisagreement(t *testing.T) {
	held := func(role string, spi string, ceiling uint64) heldTunnel {
		h := heldTunnel{Name: "vpn1_0", Remote: "192.168.1.2:4500", Role: role}
		h.ProxyIDs = append(h.ProxyIDs, struct {
			SAs []heldSA `json:"sas"`
		}{[]heldSA{{spi, "b", ceiling}}})
		return h
	}
	type list = map[string]map[string]heldTunnel
	lists := func(a, b heldTunnel) list {
		return list{vm1: {"vpn1_0": a}, vm2: {"vpn1_0": b}}
	}
	fine := lists(held(tunnelOwner, "a", 100), held(tunnelStandby, "a", 100))
	if bad := disagreement(fine, lists(held(tunnelOwner, "a", 140), held(tunnelStandby, "a", 120)), 1); bad != "" {
		t.Error(bad)
	}
	other := held(tunnelStandby, "a", 100)
	other.Index = 7
	for want, x := range map[string][2]list{
		"other SPIs":         {fine, lists(held(tunnelOwner, "a", 100), held(tunnelStandby, "c", 100))},
		"own vpn1_0":         {fine, lists(held(tunnelOwner, "a", 100), held(tunnelOwner, "a", 100))},
		"nobody owns":        {fine, lists(held(tunnelStandby, "a", 100), held(tunnelStandby, "a", 100))},
		"does not know":      {fine, list{vm1: fine[vm1], vm2: {}}},
		"index 7":            {fine, lists(held(tunnelOwner, "a", 100), other)},
		"had raised to 100":  {fine, lists(held(tunnelOwner, "a", 140), held(tunnelStandby, "a", 90))},
		"only has 100":       {lists(held(tunnelOwner, "a", 100), held(tunnelStandby, "a", 150)), fine},
		"0 tunnels are list": {fine, list{vm1: {}, vm2: {}}},
	} {
		if bad := disagreement(x[0], x[1], 1); !strings.Contains(bad, want) {
			t.Errorf("%s: %q", want, bad)
		}
	}
}

// FuzzFarmStatus: what a member prints, and what a probe holds, may be anything.
func FuzzFarmStatus(f *testing.F) {
	f.Add([]byte(`{"hostname":"DC1_VM1","group":1,"id":1,"synchronised":true,"quorum":true,"leader":"DC1_VM2","owned":3,"forwarded":7,"alarms":[{"name":"quorum","text":"lost"}]}`))
	f.Add([]byte(`[{"name":"vpn1_0","index":0,"role":"sync-primary","proxyids":[{"sas":[{"spi_in":"a","spi_out":"b","ceiling":1000}]}]}]`))
	f.Add(probeBytes(3, 9))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseFarmStatus(b); err == nil && s.Hostname == "" {
			t.Error("a status without a name")
		}
		if held, err := parseTunnels(b); err == nil {
			for n, h := range held {
				if h.Name != n || len(h.sas()) == 0 {
					t.Errorf("%q: %+v", n, h)
				}
			}
		}
		if _, _, ok := parseFlow(b); ok && len(b) != flowSize {
			t.Error("a probe of another size")
		}
		w := newFarmWire([]Tunnel{{Outer: netip.MustParseAddr("192.168.1.2"), Host: netip.MustParseAddr("10.10.1.1")}}, nil, nil)
		w.begin()
		w.addOuter(Frame{Data: b})
		w.addInner(Frame{Data: b, FromNode: true})
	})
}
