package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// FarmSetup makes a schedule one of a farm: members behind a router instead of a pair.
// Of Setup it uses the clients, the heartbeats, loss, duplicates and delay.
type FarmSetup struct {
	Members  int // 3 to 16; Voters of them, the first ones
	Voters   int
	Late     int           // so many of them come only with a Join action
	Stop     bool          // quorum-loss stop
	LogLoss  int           // of proposals, in thousandths
	LogDelay time.Duration // at most, of each message of the log
	Standbys int           // that each slot should have
}

// What happens to farms only. Links of Partition is the set of members that are cut off,
// a bit each from member 1 on.
const (
	Partition Verb = "partition"     // of the sync network, for For; clients reach all
	Depose    Verb = "depose-leader" // the log's leader steps down
	SlowLog   Verb = "slow-log"      // what the log decides comes late, for For
	LoseMany  Verb = "lose-majority" // hosts in Links are lost, for For
	Rehash    Verb = "re-hash"       // the router spreads flows anew; Count of them, 0: all
	Drain     Verb = "drain"         // for For
	Join      Verb = "join"          // a member that was not there starts
)

var farmOrdinary = []Verb{Rehash, Drain, Join}

// ForFarmSeed is the schedule of a farm's seed.
func ForFarmSeed(seed uint64) *Schedule {
	r := stream(seed, "farm schedule")
	s := &Schedule{Seed: seed, Farm: &FarmSetup{}}
	f := s.Farm
	f.Members = pick(r, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 6)
	if chance(r, 0.06) {
		f.Members = 6 + r.IntN(11)
	}
	f.Voters = 3
	if f.Members >= 5 && chance(r, 0.4) {
		f.Voters = 5
	}
	if f.Members > f.Voters && chance(r, 0.3) {
		f.Late = 1
	}
	f.Stop = chance(r, 0.15)
	f.Standbys = pick(r, 2, 2, 2, 1, 3)
	f.LogLoss, f.LogDelay = pick(r, 0, 0, 20, 200), pick(r, 5*time.Millisecond, 5*time.Millisecond, 30*time.Millisecond)
	s.Setup = Setup{
		HBInterval: pick(r, 20*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond), Threshold: pick(r, 3, 3, 5),
		IKELife: 2 * time.Hour, Delay: between(r, 200*time.Microsecond, 15*time.Millisecond), MTU: 1500, TightLoop: chance(r, 0.3), Priority: [2]int{200, 100},
	}
	if f.Members <= 4 && chance(r, 0.15) {
		s.Setup.HBInterval = 10 * time.Millisecond
	}
	if chance(r, 0.3) {
		s.Setup.Loss = pick(r, 0.001, 0.01, 0.05)
	}
	if chance(r, 0.3) {
		s.Setup.Duplicate = pick(r, 0.001, 0.02, 0.1)
	}
	pfs := chance(r, 0.5)
	for range 2 + r.IntN(5) {
		s.Setup.Clients = append(s.Setup.Clients, Client{
			Dialup: chance(r, 0.8), Networks: 1, PFS: pfs, Group: 31, Window: true,
			Suite: pick(r, "aes128gcm", "aes256gcm", "chacha20poly1305"), IKESuite: pick(r, "aes128gcm-prfsha256", "chacha20poly1305-prfsha256"),
			ChildLife: 2 * time.Hour, IKELife: 2 * time.Hour, GatewayToo: 2 * time.Hour, DPD: "on-idle",
		})
		if c := &s.Setup.Clients[len(s.Setup.Clients)-1]; c.Dialup {
			c.Begins = "client"
		} else {
			c.Begins = "gateway"
		}
	}
	at := between(r, 7*time.Second, 10*time.Second)
	for range pick(r, 1, 2, 2, 3, 3, 4, 6) {
		a := farmFault(r, f)
		a.At = at
		s.Actions = append(s.Actions, a)
		if chance(r, 0.5) {
			at += between(r, time.Millisecond, 1500*time.Millisecond)
		} else {
			at += between(r, 2*time.Second, 9*time.Second)
		}
	}
	s.Length = at + between(r, 500*time.Millisecond, 8*time.Second)
	for range 3 + r.IntN(6) {
		a := farmEveryday(r, f, len(s.Setup.Clients))
		a.At = between(r, 6*time.Second, s.Length)
		if chance(r, 0.6) {
			a.At = max(6*time.Second, s.Actions[r.IntN(len(s.Actions))].At+between(r, -300*time.Millisecond, 600*time.Millisecond))
		}
		s.Actions = append(s.Actions, a)
	}
	if f.Late > 0 {
		s.Actions = append(s.Actions, Action{Verb: Join, Node: fmt.Sprintf("vm%d", f.Members), At: between(r, 8*time.Second, s.Length)})
	}
	s.order()
	return s
}

// subset is a random set of members, at most so many, as bits.
func subset(r *rand.Rand, members, most int) (bits int) {
	for range 1 + r.IntN(max(1, most)) {
		bits |= 1 << r.IntN(members)
	}
	return bits
}

func farmFault(r *rand.Rand, f *FarmSetup) Action {
	vm := fmt.Sprintf("vm%d", 1+r.IntN(f.Members))
	if chance(r, 0.4) {
		vm = "owner" // of a client's tunnel
	}
	short, long := between(r, 20*time.Millisecond, 2*time.Second), between(r, 300*time.Millisecond, 8*time.Second)
	a := Action{Node: vm, For: pick(r, short, long)}
	switch a.Verb = pick(r, Kill, Kill, CrashAt, CrashAt, CrashAt, KillGuardian, LoseHost, LoseHost, LoseHost, LoseDisk, StopDaemon, FreezeHost,
		FreezeHost, Partition, Partition, Partition, Depose, SlowLog, LoseMany, StallStream, BreakStream); a.Verb {
	case Kill, Depose:
		a.For = 0
	case CrashAt:
		a.Cell = Cell{pick(r, farmEffects...), None, false, chance(r, 0.5)}
	case Partition:
		a.Links = subset(r, f.Members, f.Members/2)
	case LoseMany:
		a.Links = subset(r, f.Members, f.Members-1) | 3 // two voters at least
		a.For = between(r, 2*time.Second, 8*time.Second)
	}
	if a.Verb == Depose || a.Verb == Partition || a.Verb == LoseMany || a.Verb == SlowLog {
		a.Node = ""
	}
	return a
}

// farmEffects are those at which daemons of farms are killed.
var farmEffects = []string{
	"cluster.Announce", "cluster.AskRemoval", "cluster.Claim", "cluster.Entitle", "cluster.Propose", "cluster.WriteNote", "ike.Send",
	"node.Activate", "node.Deactivate", "node.Forward", "node.Install", "node.Remove", "node.SetBounds", "node.SetOutbound", "node.SetWindows",
	"node.TakeWindows", "statesync.SendAck", "statesync.SendFrame",
}

func farmEveryday(r *rand.Rand, f *FarmSetup, clients int) Action {
	who := pick(r, "owner", fmt.Sprintf("client%d", 1+r.IntN(clients)))
	switch v := pick(r, Burst, Burst, Burst, Rehash, Rehash, Rehash, Drain, Drain, RekeyChild, RekeyChild, RekeyIKE, Clear, Replay, Replay); v {
	case Burst:
		return Action{Verb: v, Flow: r.IntN(8), Count: 20 + r.IntN(400), Rate: pick(r, 50.0, 200, 1000, 4000), Direction: r.IntN(3)}
	case Rehash:
		return Action{Verb: v, Count: r.IntN(3)}
	case Drain:
		return Action{Verb: v, Node: fmt.Sprintf("vm%d", 1+r.IntN(f.Members)), For: between(r, time.Second, 12*time.Second)}
	case Replay:
		return Action{Verb: v, Count: 5 + r.IntN(60)}
	default:
		return Action{Verb: v, Node: who, Flow: r.IntN(8)}
	}
}

// checkFarm refuses what no run of a farm can make sense of.
func (s *Schedule) checkFarm() error {
	f := s.Farm
	if f.Members < 3 || f.Members > 16 || f.Voters < 3 || f.Voters > f.Members || f.Late < 0 || f.Members-f.Late < 3 {
		return fmt.Errorf("a farm needs 3 to 16 members, of them 3 voters at least, and 3 from the beginning: %+v", *f)
	}
	if slices.ContainsFunc(s.Setup.Clients, func(c Client) bool { return c.NAT || c.Networks != 1 }) {
		return fmt.Errorf("a farm's clients have one network each and no NAT")
	}
	return nil
}

// proposals are all that clients use.
func (s *Setup) proposals(of func(*Client) string) (text string) {
	var seen []string
	for i := range s.Clients {
		if p := of(&s.Clients[i]); !slices.Contains(seen, p) {
			seen = append(seen, p)
			text += " " + p
		}
	}
	return text
}

// farmConfig is what all members have configured: one dialup phase 1, and one for each
// site towards which the farm begins.
func (s *Setup) farmConfig() string {
	pfs := s.Clients[0].PFS
	text := fmt.Sprintf(`config vpn ipsec phase1-interface
edit "vpn1"
set type dynamic
set interface "wan0"
set ike-version 2
set local-gw %s
set peertype any
set proposal%s
set dhgrp 31
set dpd on-idle
set dpd-retryinterval 5
set fgsp-sync enable
set psksecret %q
next
end
config vpn ipsec phase2-interface
edit "vpn1"
set phase1name "vpn1"
set proposal%s
set pfs %s
set dhgrp 31
set src-subnet 10.200.0.0/24
next
end
`, clusterAddr, s.proposals(func(c *Client) string { return c.IKESuite }), psk, s.proposals(func(c *Client) string { return c.Suite }), onOff(pfs))
	for i, c := range s.Clients {
		if c.Dialup {
			continue
		}
		text += fmt.Sprintf(`config vpn ipsec phase1-interface
edit "site%[1]d"
set interface "wan0"
set ike-version 2
set local-gw %[2]s
set remote-gw %[3]s
set peertype any
set auto-negotiate enable
set proposal %[4]s
set dhgrp 31
set dpd on-idle
set dpd-retryinterval 5
set fgsp-sync enable
set psksecret %[5]q
next
end
config vpn ipsec phase2-interface
edit "site%[1]d"
set phase1name "site%[1]d"
set proposal %[6]s
set pfs %[7]s
set dhgrp 31
set auto-negotiate enable
set src-subnet 10.200.0.0/24
set dst-subnet 10.%[8]d.0.0/24
next
end
`, i+1, clusterAddr, clientAddr(i), c.IKESuite, psk, c.Suite, onOff(pfs), 1+i)
	}
	return text
}
