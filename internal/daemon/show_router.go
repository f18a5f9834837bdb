package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// bgpJSON is `get router info bgp summary --json`.
type bgpJSON struct {
	Configured bool              `json:"configured"`
	RouterID   string            `json:"router_id,omitempty"`
	AS         uint32            `json:"as,omitempty"`
	Announced  bool              `json:"announced"`
	Reason     string            `json:"reason,omitempty"` // nothing is announced
	Prefixes   []string          `json:"prefixes"`
	Neighbors  []bgpNeighborJSON `json:"neighbors"`
}

type bgpNeighborJSON struct {
	Address     string `json:"address"`
	AS          uint32 `json:"as"`
	State       string `json:"state"`
	Established bool   `json:"established"`
	Since       int64  `json:"since_s"` // established or not, for so long; -1: never was
	Received    uint64 `json:"received"`
	Sent        uint64 `json:"sent"`
	BFD         string `json:"bfd,omitempty"`
}

// bfdJSON is `get router info bfd neighbor --json`.
type bfdJSON struct {
	Neighbors []bfdNeighborJSON `json:"neighbors"`
	Dropped   bfdDroppedJSON    `json:"dropped"`
}

type bfdNeighborJSON struct {
	Address       string  `json:"address"`
	Local         string  `json:"local,omitempty"`
	Interface     string  `json:"interface,omitempty"`
	State         string  `json:"state"`
	Reason        string  `json:"reason"` // why it left Up last
	Discriminator uint32  `json:"discriminator"`
	Remote        uint32  `json:"remote_discriminator"`
	TxMS          float64 `json:"tx_ms"`
	RxMS          float64 `json:"rx_ms"`
	Multiplier    uint8   `json:"multiplier"`
	DetectionMS   float64 `json:"detection_ms"`
}

type bfdDroppedJSON struct {
	TTL     uint64 `json:"ttl"`
	Faulty  uint64 `json:"faulty"`
	Unknown uint64 `json:"unknown"`
	Overrun uint64 `json:"overrun"`
}

func (r *routesView) bgpJSON() bgpJSON {
	j := bgpJSON{Configured: r.RouterID.IsValid(), AS: r.AS, Announced: r.BGP.Announced, Reason: r.Why, Prefixes: []string{}, Neighbors: []bgpNeighborJSON{}}
	if j.Configured {
		j.RouterID = r.RouterID.String()
	}
	for _, p := range r.Prefixes {
		j.Prefixes = append(j.Prefixes, p.String())
	}
	for i := range r.BGP.Neighbors {
		n := &r.BGP.Neighbors[i]
		x := bgpNeighborJSON{Address: n.Addr.String(), AS: n.RemoteAS, State: n.State, Established: n.Established, Since: -1, Received: n.Received, Sent: n.Sent}
		if !n.Since.IsZero() {
			x.Since = seconds(r.Now.Sub(n.Since))
		}
		if n.BFD != nil {
			x.BFD = n.BFD.Says.State.String()
		}
		j.Neighbors = append(j.Neighbors, x)
	}
	return j
}

func (r *routesView) bfdJSON() bfdJSON {
	d := r.BGP.Dropped
	j := bfdJSON{Neighbors: []bfdNeighborJSON{}, Dropped: bfdDroppedJSON{TTL: d.TTL, Faulty: d.Faulty, Unknown: d.Unknown, Overrun: d.Dropped}}
	for i := range r.BGP.Neighbors {
		n := &r.BGP.Neighbors[i]
		if n.BFD == nil {
			continue
		}
		p := &n.BFD.Says
		x := bfdNeighborJSON{Address: n.Addr.String(), State: p.State.String(), Reason: p.Diag.String(), Discriminator: p.MyDiscr, Remote: p.YourDiscr,
			TxMS: milliseconds(p.DesiredMinTx), RxMS: milliseconds(p.RequiredMinRx), Multiplier: p.DetectMult, DetectionMS: milliseconds(n.BFD.Detection)}
		if here, err := addrTowards(n.Addr); err == nil {
			x.Local, x.Interface = here.String(), deviceOf(here)
		}
		j.Neighbors = append(j.Neighbors, x)
	}
	return j
}

// deviceOf is the interface that has an address of ours, or "".
func deviceOf(a netip.Addr) string {
	all, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for i := range all {
		addrs, _ := all[i].Addrs()
		for _, x := range addrs {
			if n, ok := x.(*net.IPNet); ok && n.IP.Equal(a.AsSlice()) {
				return all[i].Name
			}
		}
	}
	return ""
}

const noBGP = "no BGP is configured (config router bgp, set as)\n"

// showBGP is `get router info bgp summary`.
func showBGP(s *session, _ []string) error {
	r, err := s.d.announced()
	if err != nil {
		return err
	}
	j := r.bgpJSON()
	switch {
	case s.json:
		return s.printJSON(j)
	case !j.Configured:
		s.printf(noBGP)
		return nil
	}
	s.printf("BGP router identifier %s, local AS number %d\n", j.RouterID, j.AS)
	if j.Announced {
		s.printf("Announced: %s\n\n", strings.Join(j.Prefixes, ", "))
	} else {
		s.printf("Announced: nothing (%s)\n\n", j.Reason)
	}
	s.printf("%-15s V %10s %7s %7s %8s %s\n", "Neighbor", "AS", "MsgRcvd", "MsgSent", "Up/Down", "State/PfxRcd")
	for i := range j.Neighbors {
		n := &j.Neighbors[i]
		state := n.State
		if n.Established {
			state = "0" // what neighbours announce is not taken
		}
		s.printf("%-15s 4 %10d %7d %7d %8s %s\n", n.Address, n.AS, n.Received, n.Sent, clockText(n.Since), state)
	}
	s.printf("\nTotal number of neighbors %d\n", len(j.Neighbors))
	return nil
}

// clockText is hours, minutes and seconds.
func clockText(s int64) string {
	if s < 0 {
		return "never"
	}
	d := time.Duration(s) * time.Second
	return fmt.Sprintf("%02d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, s%60)
}

// showBFD is `get router info bfd neighbor`.
func showBFD(s *session, _ []string) error {
	r, err := s.d.announced()
	if err != nil {
		return err
	}
	j := r.bfdJSON()
	if s.json {
		return s.printJSON(j)
	}
	if r.AS == 0 {
		s.printf(noBGP)
		return nil
	}
	s.printf("%-15s %-15s %-10s %-15s %s\n", "OurAddress", "NeighAddress", "State", "Interface", "LDesc/RDesc")
	for i := range j.Neighbors {
		n := &j.Neighbors[i]
		s.printf("%-15s %-15s %-10s %-15s %d/%d\n", n.Local, n.Address, strings.ToUpper(n.State), n.Interface, n.Discriminator, n.Remote)
	}
	return nil
}
