package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"tandem/internal/lab"
)

// siteTunnel is a member's static phase 1 towards the k-th peer, and its route.
func siteTunnel(k int, begins string) string {
	return fmt.Sprintf(`
config vpn ipsec phase1-interface
    edit "site%[1]d"
        set interface "wan0"
        set ike-version 2
        set local-gw %[2]s
        set remote-gw 203.0.113.%[3]d
        set psksecret "%[4]s"
        set proposal aes128gcm-prfsha256
        set dhgrp 31
        set nattraversal forced
        set auto-negotiate %[5]s
        set dpd on-idle
        set dpd-retrycount 3
        set dpd-retryinterval 0 400
        set fgsp-sync enable
    next
end
config vpn ipsec phase2-interface
    edit "site%[1]d"
        set phase1name "site%[1]d"
        set proposal aes128gcm
        set dhgrp 31
        set src-subnet 10.2.0.0 255.255.255.0
        set dst-subnet 10.1.%[6]d.0 255.255.255.0
    next
end
config router static
    edit %[1]d
        set dst 10.1.%[6]d.0 255.255.255.0
        set device "site%[1]d"
    next
end
`, k+1, sharedGW, 4*k+2, psk, begins, k)
}

// siteConn is the same as the peer has it, which never begins anything.
func siteConn(k int) conn {
	return conn{local: fmt.Sprintf("203.0.113.%d", 4*k+2), remote: sharedGW, localTS: fmt.Sprintf("10.1.%d.0/24", k), remoteTS: "10.2.0.0/24"}
}

// initiations are the IKE_SA_INIT requests that left each member's port towards a peer:
// their SPIs, each once, however often it was sent.
type initiations map[string][]string

func (in initiations) String() string {
	s := ""
	for _, m := range trioMembers {
		s += fmt.Sprintf("%s: %d ", m, len(in[m]))
	}
	return s
}

func (in initiations) total() (n int) {
	for _, spis := range in {
		n += len(spis)
	}
	return n
}

// initiating is a farm that begins the tunnels towards two charons.
type initiating struct {
	*trio
	taps  map[string]*tap // each member's port
	wires []*tap          // each peer's port at the router
	peers []*charon
}

// begun looks at what left the members, and that the same reached the peer.
func (f *initiating) begun(k int) initiations {
	f.t.Helper()
	peer := netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", 4*k+2))
	shared := netip.MustParseAddr(sharedGW)
	all := initiations{}
	for _, m := range trioMembers {
		for _, p := range f.taps[m].packets() {
			if p.exchange() != exchInit || p.response() || p.dst.Addr() != peer {
				continue
			}
			if p.src.Addr() != shared {
				f.t.Errorf("%s begins from %v", m, p.src)
			}
			if spi := spiOf(p, 0); !slices.Contains(all[m], spi) {
				all[m] = append(all[m], spi)
			}
		}
	}
	return all
}

// owner waits until a tunnel stands, the same at the peer and on every member that is
// there, with one owner, who is said.
func (f *initiating) owner(k int, without ...string) (owner string, sa lab.CharonSA) {
	f.t.Helper()
	name := "site" + strconv.Itoa(k+1)
	said := map[string][]tunnelOwner{}
	if !holds(15*time.Second, func() bool {
		owner = ""
		sas := f.peers[k].sas()
		if len(sas) != 1 || sas[0].State != "ESTABLISHED" || len(sas[0].Children) != 1 || sas[0].Children[0].State != "INSTALLED" {
			return false
		}
		sa = sas[0]
		for _, m := range trioMembers {
			if slices.Contains(without, m) {
				continue
			}
			var all []tunnelOwner
			f.members[m].decode("diagnose vpn ike gateway list", &all)
			said[m] = all
			i := slices.IndexFunc(all, func(x tunnelOwner) bool { return x.Name == name })
			if i < 0 || len(all[i].SAs) != 1 || all[i].SAs[0].SPIi != sa.SPIi || all[i].SAs[0].SPIr != sa.SPIr || all[i].SAs[0].Status != "established" {
				return false
			}
			if all[i].Role == "sync-primary" {
				if owner != "" {
					return false
				}
				owner = m
			}
		}
		return owner != ""
	}) {
		f.t.Fatalf("%s has not one IKE SA with one owner: charon has %+v, the members %+v", name, f.peers[k].sas(), said)
	}
	return owner, sa
}

// clean judges what went over a peer's wire: no IV for two packets, no sequence number
// that falls as the peer sees them.
func (f *initiating) clean(k int) {
	f.t.Helper()
	c := f.wires[k].c
	check := lab.NewChecker(lab.CheckOptions{Client: c.Port})
	if err := c.Flush(); err != nil {
		f.t.Fatal(err)
	}
	_ = lab.ReadCapture(c.Path, func(x lab.Frame) error { check.Add(x); return nil }) // the last may not be whole
	if r := check.Report(); r.ESP < 200 || r.IVRepeats+r.SeqRegressions > 0 {
		f.t.Errorf("%s: %d ESP packets, %d IVs repeated, %d sequence regressions: %v", trioClient(k), r.ESP, r.IVRepeats, r.SeqRegressions, r.Violations)
	}
}

// TestFarmInitiates: a farm of three has two static tunnels without passive-mode. One
// begins by itself, the other when a host on the LAN sends, at whichever member. Each is
// begun by its owner alone, once: when a member is killed and comes back, when the peer
// deletes it, when the peer is found dead.
func TestFarmInitiates(t *testing.T) {
	t.Parallel()
	needCharon(t)
	const auto, demand = 0, 1
	f := &initiating{taps: map[string]*tap{}}
	newTrioOf(t, program(t), 2, siteTunnel(auto, "enable")+siteTunnel(demand, "disable"), func(tr *trio) {
		f.trio = tr
		for k := range 2 {
			f.toGateway(k, trioMembers[k])
			f.toClient(k, trioMembers[k])
			f.peers = append(f.peers, f.charon(trioClient(k), siteConn(k)))
			f.wires = append(f.wires, f.tap(trioRouter, trioClient(k)))
		}
		for _, m := range trioMembers {
			f.taps[m] = f.tap(m, "wan0")
		}
	})
	begunBy := map[int]map[string]int{auto: {}, demand: {}}
	wantBegun := func(what string) {
		t.Helper()
		for _, k := range []int{auto, demand} {
			got := f.begun(k)
			for _, m := range trioMembers {
				if len(got[m]) != begunBy[k][m] {
					t.Fatalf("%s: IKE_SA_INITs towards %s: %v, want %v", what, trioClient(k), got, begunBy[k])
				}
			}
		}
	}
	// stands waits for a tunnel that its owner has just begun.
	stands := func(k int, what string, without ...string) (string, lab.CharonSA) {
		t.Helper()
		owner, sa := f.owner(k, without...)
		begunBy[k][owner]++
		wantBegun(what)
		return owner, sa
	}
	// gone waits until no member that is there has a tunnel's SAs.
	gone := func(k int, without ...string) {
		t.Helper()
		name := "site" + strconv.Itoa(k+1)
		eventually(t, 15*time.Second, "the SAs of "+name+" are gone everywhere", func() bool {
			return !slices.ContainsFunc(trioMembers, func(m string) bool {
				return !slices.Contains(without, m) && len(f.members[m].status(name).SAs)+len(f.members[m].children(name)) > 0
			})
		})
	}
	terminate := func(k int) {
		t.Helper()
		if err := f.peers[k].Terminate(f.peers[k].ctx, "gw"); err != nil {
			t.Fatal(err)
		}
	}

	// The first stands by itself. The second is begun by its owner only when it is
	// wanted, whichever member has the packets from the LAN and the peer's answers.
	victim, sa := stands(auto, "by itself")
	for i, m := range trioMembers {
		f.toClient(demand, m)
		f.toGateway(demand, trioMembers[(i+1)%len(trioMembers)])
		f.wantPing(trioServer, trioServing, trioInner(demand))
		stands(demand, "wanted at "+m)
		if m != trioMembers[len(trioMembers)-1] {
			terminate(demand)
			gone(demand)
			wantBegun("deleted, and nobody wants it")
		}
	}
	demanded, demandSA := f.owner(demand)

	// A member that stays has the packets of all from here on.
	stays := trioMembers[(slices.Index(trioMembers, victim)+1)%len(trioMembers)]
	if stays == demanded {
		stays = trioMembers[(slices.Index(trioMembers, victim)+2)%len(trioMembers)]
	}
	var probes []*prober
	for k := range f.peers {
		f.toGateway(k, stays)
		f.toClient(k, stays)
		probes = append(probes, f.probe(trioServer, trioServing, trioInner(k)))
	}
	more := func() {
		t.Helper()
		for k := range f.peers {
			carried := func() int {
				return f.wires[k].count(func(p packet) bool { return p.kind == kindUDPESP && from(sharedGW)(p) })
			}
			n := carried() + 50
			eventually(t, 20*time.Second, "another fifty packets to "+trioClient(k), func() bool { return carried() >= n })
		}
	}
	same := func(what string, k int, want lab.CharonSA, without ...string) string {
		t.Helper()
		owner, now := f.owner(k, without...)
		if now.SPIi != want.SPIi || now.SPIr != want.SPIr || now.Children[0].SPIIn != want.Children[0].SPIIn {
			t.Fatalf("%s: %+v was %+v", what, now, want)
		}
		wantBegun(what)
		return owner
	}
	more()

	// Whoever began the first is killed, guardian and daemon.
	if err := f.members[victim].proc.Kill(); err != nil {
		t.Fatal(err)
	}
	f.together(victim)
	heir := same("its owner is dead", auto, sa, victim)
	same("another member is dead", demand, demandSA, victim)
	more()
	for _, p := range probes {
		sent, lost, doubled := p.end()
		t.Logf("%s: %d probes sent, %d lost, %d answered twice", p.name, sent, lost, doubled)
		if sent < 100 || lost > 25 || doubled > 0 {
			t.Errorf("%s: of %d probes %d are lost and %d answered twice", p.name, sent, lost, doubled)
		}
	}
	wantBegun("its owner was killed under traffic")

	// The peer deletes it: the heir begins it anew.
	terminate(auto)
	eventually(t, 15*time.Second, "another tunnel", func() bool { return f.begun(auto).total() > 1 })
	owner, sa := stands(auto, "deleted by the peer", victim)
	if owner != heir {
		t.Errorf("%s owns the new tunnel, %s owned the one before", owner, heir)
	}

	// The peer of the other falls silent: it is found dead, and begun anew once it is wanted.
	f.cut(trioClient(demand))
	gone(demand, victim)
	f.join(trioClient(demand))
	wantBegun("found dead, and nobody wants it")
	f.wantPing(trioServer, trioServing, trioInner(demand))
	_, demandSA = stands(demand, "found dead, and wanted", victim)

	// The killed one comes back, and has its slots again.
	f.start(f.members[victim], program(t))
	f.together()
	if now := same("the slot is at home again", auto, sa); now != victim {
		t.Errorf("%s owns the tunnel, not %s, whose slot it is", now, victim)
	}
	same("all are back", demand, demandSA)
	for k := range f.peers {
		f.wantPing(trioServer, trioServing, trioInner(k))
		f.wantPing(trioClient(k), trioInner(k), trioServing)
		f.clean(k)
	}
	wantBegun("in the end")
	t.Logf("begun towards the first by %v, towards the second by %v", f.begun(auto), f.begun(demand))
}
