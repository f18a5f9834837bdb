package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Members of a farm, in the order of their numbers. The last one has no fgsp-sync:
// it shares the address and the sync network, and takes no part.
var Members = []string{"DC1_VM1", "DC1_VM2", "DC1_VM3", "DC1_VM4"}

// Other nodes of a farm's network. Clients are c1, c2, … (charon) and t1, t2, …
// (Tandem).
const (
	NodeRouter    = "DC_Router" // between clients and members
	NodeSwitches  = "DC_Switch" // one switch for each cable of a member, so that a cut does not show at the other end
	NodeLANRouter = "LAN_Router"
)

// FarmLoopback is the address that every member has on lb1.
var FarmLoopback = netip.MustParseAddr("192.168.202.31")

const (
	maxFarmTunnels   = 1500
	maxFarmProcesses = 48  // their networks are 192.168.1.0/24 and on, beneath the members'
	maxPerNode       = 250 // addresses of one client network
)

// FarmSetup says who takes part in a farm. Zero values are not usable: see
// defaultFarm.
type FarmSetup struct {
	Sites     bool // two sites of two, not four members
	Sync      int  // members with fgsp-sync that the routers send to, the first ones
	Charon    int  // charon processes
	PerCharon int  // tunnels of each
	Tandem    int  // tunnels of Tandem clients, in all
	Processes int  // that hold them
	// MoveMin and MoveMax bound how long after a fault the router still sends to the
	// victim.
	MoveMin, MoveMax time.Duration
	QuorumLoss       string // continue or stop, for the members' configuration
	Seed             uint64 // of what is chosen at random
}

func defaultFarm() FarmSetup {
	return FarmSetup{Sync: 3, Charon: 4, PerCharon: 4, Tandem: 184, Processes: 4,
		MoveMin: 60 * time.Millisecond, MoveMax: 90 * time.Millisecond, QuorumLoss: "continue", Seed: 1}
}

// set takes one setting of a scenario's `farm` line.
func (f *FarmSetup) set(key, value string) error {
	numbers := map[string]*int{"sync": &f.Sync, "charon": &f.Charon, "charon-tunnels": &f.PerCharon, "tandem": &f.Tandem, "processes": &f.Processes}
	times := map[string]*time.Duration{"move-min": &f.MoveMin, "move-max": &f.MoveMax}
	switch {
	case numbers[key] != nil:
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > maxFarmTunnels {
			return fmt.Errorf("expected a number from 0 to %d", maxFarmTunnels)
		}
		*numbers[key] = n
	case times[key] != nil:
		d, err := positive(value)
		*times[key] = d
		return err
	case key == "seed":
		n, err := strconv.ParseUint(value, 10, 64)
		f.Seed = n
		return err
	case key == "quorum-loss":
		if value != "continue" && value != "stop" {
			return errors.New("expected continue or stop")
		}
		f.QuorumLoss = value
	default:
		return errors.New("unknown setting")
	}
	return nil
}

// Clients is the number of tunnels.
func (f *FarmSetup) Clients() int { return f.Charon*f.PerCharon + f.Tandem }

func (f *FarmSetup) check() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf("farm: "+format, args...))
		}
	}
	bad(!f.Sites && (f.Sync < 1 || f.Sync > len(Members)-1), "sync: 1 to %d members can take part", len(Members)-1)
	bad(f.Sites && f.Sync != len(SiteMembers), "sync: all nodes of sites take part")
	bad(f.Clients() < 1 || f.Clients() > maxFarmTunnels, "%d tunnels: 1 to %d are possible", f.Clients(), maxFarmTunnels)
	bad(f.Charon > 0 && f.PerCharon < 1, "charon-tunnels: a charon without a tunnel")
	bad(f.Tandem > 0 && (f.Processes < 1 || f.Processes > f.Tandem), "processes: %d for %d tunnels", f.Processes, f.Tandem)
	bad(f.Charon+f.Processes > maxFarmProcesses, "at most %d client processes", maxFarmProcesses)
	bad(f.PerCharon > maxPerNode || f.Processes > 0 && f.Tandem > f.Processes*maxPerNode, "at most %d tunnels in one process", maxPerNode)
	bad(f.MoveMin > f.MoveMax, "move-min is above move-max")
	return errors.Join(errs...)
}

// allTandem replaces charon by Tandem, process by process.
func (f *FarmSetup) allTandem() {
	f.Tandem, f.Processes = f.Clients(), f.Processes+f.Charon
	f.Charon = 0
}

// synced are the members with fgsp-sync.
func (f *FarmSetup) synced() []string { return f.members()[:f.Sync] }

// Tunnel is one dialup client's: an outer address of its own, a network behind it,
// and a server for it alone, so that a route of each client process finds it.
type Tunnel struct {
	Index  int    // from 0
	Name   string // of the client's phase 1 or connection
	Node   string
	Charon bool
	Outer  netip.Addr
	Net    netip.Prefix // behind the client
	Host   netip.Addr   // in it
	Server netip.Addr
}

// tunnels lists the clients' tunnels, node by node. Node k (from 1) has the network
// 192.168.k.0/24, tunnel i (from 1) the network 10.10.i.0/24, after the 255th
// 10.11.0.0/24 and so on.
func (f *FarmSetup) tunnels() []Tunnel {
	var all []Tunnel
	add := func(node string, k, n int, charon bool) {
		for j := range n {
			i := len(all) + 1
			net4 := netip.AddrFrom4([4]byte{10, byte(10 + i>>8), byte(i), 0})
			all = append(all, Tunnel{
				Index: i - 1, Name: "n" + strconv.Itoa(i), Node: node, Charon: charon,
				Outer:  netip.AddrFrom4([4]byte{192, 168, byte(k), byte(2 + j)}),
				Net:    netip.PrefixFrom(net4, 24),
				Host:   net4.Next(),
				Server: netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}),
			})
		}
	}
	for k := range f.Charon {
		add("c"+strconv.Itoa(k+1), k+1, f.PerCharon, true)
	}
	left := f.Tandem
	for k := range f.Processes {
		n := left / (f.Processes - k)
		left -= n
		add("t"+strconv.Itoa(k+1), f.Charon+k+1, n, false)
	}
	return all
}

// clientNodes lists the clients' nodes in the order of their networks.
func (f *FarmSetup) clientNodes() []string {
	var all []string
	for _, t := range f.tunnels() {
		if len(all) == 0 || all[len(all)-1] != t.Node {
			all = append(all, t.Node)
		}
	}
	return all
}
