package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Schedule is everything that decides a run. Two runs of equal schedules are equal,
// byte for byte of their traces.
type Schedule struct {
	Seed    uint64
	Real    bool          // real ESP cryptography; otherwise packets are counted, not sealed
	Length  time.Duration // of virtual time before everything is healed and settles
	Setup   Setup
	Farm    *FarmSetup `json:",omitempty"` // nil: a pair
	Actions []Action   // by time
	Crash   Crash
}

// Setup is the cluster and its surroundings.
type Setup struct {
	Clients    []Client
	HBInterval time.Duration
	Threshold  int // intervals of silence
	Priority   [2]int
	Override   bool
	IKELife    time.Duration // of the gateways; a client has its own
	Drift      []int64       // ppm of each host's clock, gateways first
	Loss       float64       // of each packet of the outer network, always
	Duplicate  float64
	Reorder    float64 // that a packet takes a detour
	Delay      time.Duration
	MTU        int  // bytes that an IP packet of the outer network may have
	TightLoop  bool // a process gets its messages without pause between them

	VClusters []VCluster `json:",omitempty"` // of the gateways; client i is in the (i mod their number)th
	Faces     *FarPair   `json:",omitempty"` // the clients' part is played by another pair
}

// Client is one VPN client, our own engine in the client's role.
type Client struct {
	Dialup     bool // the gateway has a dialup phase 1 for it, and never begins
	NAT        bool
	Networks   int // phase 2 entries, hence Child SAs
	Suite      string
	IKESuite   string
	Group      int
	PFS        bool
	ESN        bool
	ChildLife  time.Duration
	IKELife    time.Duration
	GatewayToo time.Duration // lifetime of the Child SA on the gateway
	Begins     string        // "client", "gateway" or "both"
	DPD        string        // of the client
	Encap      bool          // ESP in UDP although no NAT is there
	Window     bool          // replay detection at the client

	Features Features
}

// Verb is what an Action does.
type Verb string

// The faults and the ordinary events of a run. Node is a host, or a role that is
// looked up when the action is due.
const (
	Kill         Verb = "kill"          // SIGKILL of the daemon; its guardian starts it again
	CrashAt      Verb = "crash-at"      // SIGKILL before or after an effect (Cell)
	KillGuardian Verb = "kill-guardian" // guardian and daemon end; started again after For
	LoseHost     Verb = "lose-host"     // power loss; back after For
	LoseDisk     Verb = "lose-disk"     // power loss, and an empty disk after For
	StopDaemon   Verb = "stop-daemon"   // SIGSTOP for For
	FreezeHost   Verb = "freeze-host"   // guardian, daemon and data plane stand still for For
	PauseHost    Verb = "pause-host"    // the same, and so does its clock
	PauseBoth    Verb = "pause-both"
	CutHB        Verb = "cut-heartbeats" // Links: 1 first, 2 second, 3 both; Direction; for For
	LossHB       Verb = "lossy-heartbeats"
	CutWAN       Verb = "cut-wan" // a gateway's outer link
	CutClient    Verb = "cut-client"
	Lossy        Verb = "lossy" // the outer network loses Rate of its packets for For
	StallStream  Verb = "stall-stream"
	BreakStream  Verb = "break-stream"
	Handover     Verb = "handover"     // execute ha failover set on the owner, unset a little later
	Restart      Verb = "restart"      // SIGTERM: a planned handover, then started again after For
	Rolling      Verb = "rolling"      // both, one after the other
	SlowDisk     Verb = "slow-disk"    // writes take For, for ten times as long
	FullDisk     Verb = "full-disk"    // writes fail for For
	StepClock    Verb = "step-clock"   // the wall clock jumps by For
	Monitor      Verb = "monitor-down" // a monitored interface fails for For
	Stubborn     Verb = "stubborn"     // the daemon hangs and does not die of SIGKILL for For
	Echo         Verb = "echo"         // frames come back to who sent them, for For
	FlapARP      Verb = "flap-arp"     // while two hold the addresses, neighbours change their minds

	Burst      Verb = "burst" // Count packets at Rate per second through a flow
	RekeyChild Verb = "rekey-child"
	RekeyIKE   Verb = "rekey-ike"
	Clear      Verb = "clear"
	Down       Verb = "down"
	Up         Verb = "up"
	Move       Verb = "move-client" // its NAT forgets it: another address and port
	Replay     Verb = "replay"      // Count captured packets again
	Garbage    Verb = "garbage"     // Count forged or broken packets
	Flood      Verb = "flood"       // Count IKE_SA_INIT from nowhere
	Passive    Verb = "passive"     // passive-mode on the gateways for For, by reload
)

// ordinary actions are no faults.
var ordinary = []Verb{Burst, RekeyChild, RekeyIKE, Clear, Down, Up, Move, Replay, Garbage, Flood, Passive}

// Fault says whether the verb breaks something.
func (v Verb) Fault() bool {
	return !slices.Contains(ordinary, v) && !slices.Contains(farmOrdinary, v) && v != ReplaySync
}

// Action is one thing that happens to the world.
type Action struct {
	At        time.Duration
	Verb      Verb
	Node      string // gw1, gw2, client1…, owner, standby
	For       time.Duration
	Links     int
	Direction int // 0 both, 1 from Node, 2 towards it
	Rate      float64
	Count     int
	Flow      int
	Cell      Cell
	VCluster  int `json:",omitempty"` // which one, from 0 on
}

func (a Action) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", a.Verb, a.Node)
	if a.VCluster > 0 {
		fmt.Fprintf(&b, " of virtual cluster %d", a.VCluster+1)
	}
	if a.Cell != (Cell{}) {
		fmt.Fprintf(&b, " %s", a.Cell)
	}
	if a.Links != 0 {
		fmt.Fprintf(&b, " links %d", a.Links)
	}
	if a.Direction != 0 {
		fmt.Fprintf(&b, " direction %d", a.Direction)
	}
	if a.Count != 0 {
		fmt.Fprintf(&b, " count %d", a.Count)
	}
	if a.Rate != 0 {
		fmt.Fprintf(&b, " rate %.3g", a.Rate)
	}
	if a.For != 0 {
		fmt.Fprintf(&b, " for %v", a.For)
	}
	return strings.ReplaceAll(b.String(), "  ", " ")
}

// String describes the schedule for people.
func (s *Schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %v, heartbeats %v x %d, loss %.3g, duplicates %.3g, reordering %.3g, delay %v, real cryptography %v\n",
		s.Seed, s.Length, s.Setup.HBInterval, s.Setup.Threshold, s.Setup.Loss, s.Setup.Duplicate, s.Setup.Reorder, s.Setup.Delay, s.Real)
	if s.Farm != nil {
		fmt.Fprintf(&b, "farm: %+v\n", *s.Farm)
	}
	for i, v := range s.Setup.VClusters {
		fmt.Fprintf(&b, "virtual cluster %d: %+v\n", i+1, v)
	}
	if s.Setup.Faces != nil {
		fmt.Fprintf(&b, "the other pair: %+v\n", *s.Setup.Faces)
	}
	for i, c := range s.Setup.Clients {
		fmt.Fprintf(&b, "client%d: %+v\n", i+1, c)
	}
	for _, a := range s.Actions {
		fmt.Fprintf(&b, "%12v  %s\n", a.At, a)
	}
	if s.Crash.Nth > 0 {
		fmt.Fprintf(&b, "SIGKILL %s, the %d. time\n", s.Crash.Cell, s.Crash.Nth)
	}
	return b.String()
}

// Generate makes the schedule of a seed.
func Generate(seed uint64, real bool) *Schedule { return generate(seed, real, aims) }

// generate lets crashes aim at some of the crash points.
func generate(seed uint64, real bool, aims []Cell) *Schedule {
	r := stream(seed, "schedule")
	s := &Schedule{Seed: seed, Real: real, Setup: setup(r)}
	s.Setup.features(seed)
	s.Length = between(r, 8*time.Minute, 13*time.Minute)
	n := pick(r, 1, 2, 2, 3, 3, 3, 4, 4, 5, 6, 9)
	at := between(r, 5*time.Second, 30*time.Second)
	for i := range n {
		a := fault(r, seed, i, aims)
		a.At = at
		s.Actions = append(s.Actions, a)
		if room := s.Length - at; chance(r, 0.4) {
			at += between(r, time.Millisecond, 3*time.Second) // on the heels of the one before
		} else {
			at += between(r, room/16, max(room/16+1, room*3/8))
		}
	}
	for range 4 + r.IntN(8) {
		a := everyday(r, len(s.Setup.Clients))
		if chance(r, 0.6) { // near a fault
			a.At = max(0, s.Actions[r.IntN(n)].At+between(r, -2*time.Second, 2*time.Second))
		} else {
			a.At = between(r, 4*time.Second, s.Length)
		}
		s.Actions = append(s.Actions, a)
	}
	slices.SortStableFunc(s.Actions, func(a, b Action) int { return int(a.At - b.At) })
	s.Length = max(s.Length, s.Actions[len(s.Actions)-1].At+10*time.Second)
	return s
}

func setup(r *rand.Rand) Setup {
	s := Setup{
		HBInterval: pick(r, 10*time.Millisecond, 10*time.Millisecond, 20*time.Millisecond, 100*time.Millisecond),
		Threshold:  pick(r, 3, 3, 5), Priority: [2]int{200, pick(r, 100, 200)}, Override: chance(r, 0.2),
		IKELife: between(r, 120*time.Second, 900*time.Second).Round(time.Second),
		Delay:   between(r, 200*time.Microsecond, 40*time.Millisecond), MTU: pick(r, 1500, 1500, 1280),
		TightLoop: chance(r, 0.3),
	}
	if chance(r, 0.5) {
		s.Loss = pick(r, 0.001, 0.01, 0.05, 0.15)
	}
	if chance(r, 0.4) {
		s.Duplicate = pick(r, 0.001, 0.02, 0.1)
	}
	if chance(r, 0.4) {
		s.Reorder = pick(r, 0.001, 0.02, 0.1)
	}
	for range pick(r, 1, 1, 1, 2, 2, 3) {
		s.Clients = append(s.Clients, client(r))
	}
	for range len(s.Clients) + 2 {
		s.Drift = append(s.Drift, r.Int64N(401)-200)
	}
	return s
}

func client(r *rand.Rand) Client {
	c := Client{
		Dialup: chance(r, 0.4), Networks: pick(r, 1, 1, 2, 3), PFS: chance(r, 0.6), ESN: chance(r, 0.3),
		Suite:    pick(r, "aes128gcm", "aes256gcm", "chacha20poly1305", "aes128gcm", "aes128-sha256"),
		IKESuite: pick(r, "aes128gcm-prfsha256", "aes256gcm-prfsha384", "chacha20poly1305-prfsha256", "aes128-sha256"),
		Group:    31, DPD: pick(r, "on-idle", "on-idle", "on-demand"), Encap: chance(r, 0.2), Window: chance(r, 0.9),
	}
	life := func() time.Duration {
		if chance(r, 0.5) {
			return between(r, 120*time.Second, 400*time.Second).Round(time.Second)
		}
		return 2 * time.Hour
	}
	c.ChildLife, c.GatewayToo, c.IKELife = life(), life(), life()
	c.Begins = pick(r, "client", "client", "gateway", "both")
	c.NAT = c.Dialup && chance(r, 0.5)
	if c.Dialup {
		c.Begins = "client"
	}
	return c
}

// fault is the i-th of a seed. Seeds take turns with the crash points, so that a
// number of them reaches all.
func fault(r *rand.Rand, seed uint64, i int, aims []Cell) Action {
	owner := pick(r, "owner", "owner", "owner", "standby", "gw1", "gw2")
	short := between(r, 20*time.Millisecond, 3*time.Second)
	long := between(r, 500*time.Millisecond, 40*time.Second)
	switch v := pick(r, Kill, CrashAt, CrashAt, CrashAt, CrashAt, KillGuardian, LoseHost, LoseHost, LoseDisk, StopDaemon, FreezeHost, PauseHost,
		PauseBoth, CutHB, CutHB, LossHB, CutWAN, CutClient, Lossy, StallStream, BreakStream, Handover, Handover, Restart,
		Rolling, SlowDisk, FullDisk, StepClock, Monitor, Stubborn, FlapARP, Echo); v {
	case CrashAt:
		return Action{Verb: v, Node: pick(r, "owner", "", "", "standby"), Cell: aims[(seed*7+uint64(i)*131+uint64(r.IntN(3)))%uint64(len(aims))], For: between(r, 10*time.Second, 80*time.Second)}
	case StopDaemon, FreezeHost, PauseHost:
		return Action{Verb: v, Node: owner, For: pick(r, short, long)}
	case PauseBoth, StallStream, BreakStream, CutClient, CutWAN, SlowDisk, FullDisk:
		return Action{Verb: v, Node: pick(r, owner, "client1"), For: pick(r, short, short, long)}
	case CutHB, LossHB:
		return Action{Verb: v, Node: owner, For: pick(r, short, long), Links: pick(r, 3, 3, 1, 2), Direction: pick(r, 0, 0, 1, 2), Rate: pick(r, 0.1, 0.3, 0.6)}
	case Lossy:
		return Action{Verb: v, For: long, Rate: pick(r, 0.1, 0.3, 0.5)}
	case StepClock:
		return Action{Verb: v, Node: owner, For: pick(r, -time.Hour, time.Hour, -3*time.Second, 100*24*time.Hour)}
	default:
		return Action{Verb: v, Node: owner, For: long}
	}
}

func everyday(r *rand.Rand, clients int) Action {
	who := pick(r, "owner", fmt.Sprintf("client%d", 1+r.IntN(clients)))
	flow := r.IntN(8)
	switch v := pick(r, Burst, Burst, Burst, Burst, RekeyChild, RekeyChild, RekeyChild, RekeyIKE, RekeyIKE, Clear, Down, Up, Move, Replay, Replay, Garbage, Flood, Passive); v {
	case Burst:
		return Action{Verb: v, Flow: flow, Count: 20 + r.IntN(600), Rate: pick(r, 50.0, 200, 1000, 5000), Direction: r.IntN(3)}
	case Replay, Garbage, Flood:
		return Action{Verb: v, Count: 5 + r.IntN(100)}
	case Passive:
		return Action{Verb: v, Node: "owner", For: between(r, time.Second, 20*time.Second)}
	default:
		return Action{Verb: v, Node: who, Flow: flow}
	}
}
