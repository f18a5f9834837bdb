package ike

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Down deletes the Child SAs of a phase 2 entry, or all of a tunnel when phase2 is
// empty. phase1 may name a dialup instance. What auto-negotiate wants comes back.
func (e *Engine) Down(now time.Time, phase1, phase2 string) error {
	defer e.begin(now)()
	if !e.active {
		return errNotActive
	}
	found := false
	for _, t := range e.sortedTunnels() {
		if t.name != phase1 && t.phase1 != phase1 {
			continue
		}
		found = true
		for _, sa := range slices.Clone(t.sas) {
			for _, c := range slices.Clone(sa.children) {
				if phase2 == "" || c.Phase2 == phase2 {
					e.endChild(c)
				}
			}
			e.proceed(sa)
			e.arm(sa)
		}
	}
	if !found && e.phase1(phase1) == nil {
		return fmt.Errorf("tunnel %s is not configured", phase1)
	}
	return nil
}

// Clear deletes the IKE SAs of a tunnel, of all instances of a dialup phase 1, or
// all when name is empty; they are negotiated again as configured. It returns how many.
func (e *Engine) Clear(now time.Time, name string) int {
	defer e.begin(now)()
	if !e.active {
		return 0
	}
	n := 0
	for _, sa := range e.sorted() {
		if name != "" && sa.name() != name && sa.phase1 != name {
			continue
		}
		n++
		e.close(sa, "cleared")
		e.proceed(sa)
		e.arm(sa)
	}
	return n
}

// Status lists the tunnels: configured static ones, then whatever else has an
// IKE SA, in the order of their making.
func (e *Engine) Status(now time.Time) []GatewayStatus {
	all, _, _ := e.StatusAfter(now, 0, len(e.tunnels)+len(e.cfg.Phase1))
	return all
}

// StatusAfter is at most limit of them, from the beginning for 0, else those that were
// made after the last one of the part before; more says that there are others.
func (e *Engine) StatusAfter(now time.Time, after uint64, limit int) (part []GatewayStatus, last uint64, more bool) {
	defer e.begin(now)()
	for i := range e.cfg.Phase1 {
		if p1 := &e.cfg.Phase1[i]; !p1.Dialup() {
			e.staticTunnel(p1)
		}
	}
	all := e.sortedTunnels()
	i, _ := slices.BinarySearchFunc(all, after, func(t *tunnel, n uint64) int { return cmp.Compare(t.seq, n+1) })
	all = all[i:]
	if more = len(all) > limit; more {
		all = all[:limit]
	}
	for _, t := range all {
		part, last = append(part, e.tunnelStatus(now, t)), t.seq
	}
	return part, last, more
}

func (e *Engine) tunnelStatus(now time.Time, t *tunnel) GatewayStatus {
	g := GatewayStatus{Name: t.name, Index: t.index, Created: t.created, Failure: t.failure,
		IKECreated: t.ikeCreated, IKEEstablished: t.ikeEstablished,
		ChildCreated: t.childCreated, ChildEstablished: t.childEstablished,
		IKETime: t.statsIKE.all(), ChildTime: t.statsCh.all()}
	if t.dialup {
		g.Parent = t.phase1
	}
	if p1 := t.p1; p1 != nil {
		g.Interface = p1.Interface
		if a, ok := e.localAddr(p1, p1.RemoteGW.Is6()); ok {
			g.Local = addrPort(a, ikePort)
		}
		if p1.RemoteGW.IsValid() {
			g.Remote = addrPort(p1.RemoteGW, ikePort)
		}
	}
	for _, sa := range t.sas {
		g.Local, g.Remote, g.NAT, g.TCP = sa.local, sa.remote, sa.natHere || sa.natThere, sa.tcp
		if sa.peerAddr.IsValid() {
			g.PeerAddr = sa.peerAddr
		}
		if x := sa.assigned; x != nil {
			g.Assigned = Assigned{x.client, x.addrs, x.dns, x.subnets, x.domains}
		}
		if sa.peerID.kind != 0 {
			g.PeerID = sa.peerID.String()
			g.Certificate = sa.peerAuth.status()
		}
		s := IKEStatus{ID: sa.seq, SPIs: sa.spis, Initiator: sa.initiator, State: sa.state.String(),
			Established: sa.established, Took: sa.took, Suite: sa.suite, Lifetime: sa.hard,
			SendID: sa.nextSend, RecvID: sa.nextRecv, DPDSent: sa.dpdSent, DPDRecv: sa.dpdRecv,
			PPK: sa.caps&capPPKUsed != 0, Keys: sa.keyLog()}
		if sa.closing && sa.state == stateEstablished {
			s.State = "deleting"
		}
		if sa.soft > 0 {
			s.Rekey = sa.established.Add(sa.soft).Sub(now)
		}
		if at := sa.reauthDue(); !at.IsZero() {
			s.Rekey = at.Sub(now)
		}
		g.IKE = append(g.IKE, s)
		for _, c := range sa.children {
			x := ChildStatus{Phase2: c.Phase2, SA: c.ChildSA, Outbound: c.outbound, Installed: c.installed, Lifetime: c.hard}
			if c.hard > 0 {
				x.Left, x.Rekey = c.installed.Add(c.hard).Sub(now), c.installed.Add(c.soft).Sub(now)
			}
			g.Children = append(g.Children, x)
		}
	}
	return g
}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
