package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
)

// FarmStatus is what `BIN diagnose sys ha standalone-peers --json --socket PATH`
// prints on stdout with exit status 0. The lab polls it to learn whether a member
// may have traffic and whether the farm may be hurt again. Unknown fields are
// ignored. An exit status other than 0 means: not up yet.
type FarmStatus struct {
	Hostname string `json:"hostname"`
	Group    int    `json:"group"`
	ID       int    `json:"id"`
	// Synchronised: this member has joined, its copy of all that it stands by for is
	// complete and entitled to succeed, and what it owns is stood by for. The routers
	// may send to it.
	Synchronised bool    `json:"synchronised"`
	Quorum       bool    `json:"quorum"`      // a majority of voters is heard
	Leader       string  `json:"leader"`      // hostname; empty: none is known
	Owned        int     `json:"owned"`       // tunnels whose sync-primary it is
	Standby      int     `json:"standby"`     // tunnels that it stands by for
	Forwarded    uint64  `json:"forwarded"`   // packets handed to another member since this daemon started, IKE, ESP and inner ones
	OwnerMoves   uint64  `json:"owner_moves"` // tunnels that this daemon took over in a planned move, not after a death
	Alarms       []alarm `json:"alarms"`
	DaemonPID    int     `json:"daemon_pid"`
	GuardianPID  int     `json:"guardian_pid"`
	Sites        []struct {
		Here bool `json:"here"` // this member has the shared addresses of its site
	} `json:"sites"`
}

type alarm struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// A FarmStatusFunc asks one member.
type FarmStatusFunc func(ctx context.Context, member string) (FarmStatus, error)

// AdminFarmStatus asks through the admin sockets. A member without
// `config system standalone-cluster` is a gateway of its own: it is synchronised
// when it serves.
func AdminFarmStatus(single bool, socket func(node string) string) FarmStatusFunc {
	return func(ctx context.Context, member string) (FarmStatus, error) {
		if single {
			out, err := memberCommand(ctx, socket(member), "get", "system", "ha", "status")
			var h HAStatus
			if err == nil {
				h, err = parseStatus(out)
			}
			return FarmStatus{Hostname: h.Hostname, Synchronised: err == nil && h.Role == RolePrimary, Quorum: true,
				Leader: h.Hostname, Owned: h.Tunnels, DaemonPID: h.DaemonPID, GuardianPID: h.GuardianPID}, err
		}
		out, err := memberCommand(ctx, socket(member), "diagnose", "sys", "ha", "standalone-peers")
		if err != nil {
			return FarmStatus{}, fmt.Errorf("status of %s: %w", member, err)
		}
		return parseFarmStatus(out)
	}
}

func parseFarmStatus(text []byte) (FarmStatus, error) {
	var s FarmStatus
	if err := json.Unmarshal(text, &s); err != nil {
		return FarmStatus{}, fmt.Errorf("farm status is not JSON: %w", err)
	}
	if s.Hostname == "" {
		return FarmStatus{}, fmt.Errorf("farm status names no member")
	}
	return s, nil
}

// Roles of a tunnel in `diagnose vpn tunnel list --json`.
const (
	tunnelOwner   = "sync-primary"
	tunnelStandby = "standby"
)

// heldSA is one Child SA as a member lists it.
type heldSA struct {
	SPIIn   string `json:"spi_in"`
	SPIOut  string `json:"spi_out"`
	Ceiling uint64 `json:"ceiling"`
}

// heldTunnel is one tunnel as a member lists it.
type heldTunnel struct {
	Name     string `json:"name"`
	Index    int    `json:"index"`
	Remote   string `json:"remote"`
	Role     string `json:"role"`
	ProxyIDs []struct {
		SAs []heldSA `json:"sas"`
	} `json:"proxyids"`
}

// A tunnelsFunc lists what one member holds, by the name of the tunnel.
type tunnelsFunc func(ctx context.Context, member string) (map[string]heldTunnel, error)

func adminTunnels(socket func(node string) string) tunnelsFunc {
	return func(ctx context.Context, member string) (map[string]heldTunnel, error) {
		out, err := memberCommand(ctx, socket(member), "diagnose", "vpn", "tunnel", "list")
		if err != nil {
			return nil, fmt.Errorf("tunnels of %s: %w", member, err)
		}
		return parseTunnels(out)
	}
}

// parseTunnels takes a list of tunnels, bare or in an object's field "tunnels".
// Entries without an SA are phase 1 entries, not tunnels.
func parseTunnels(text []byte) (map[string]heldTunnel, error) {
	var list []heldTunnel
	if err := json.Unmarshal(text, &list); err != nil {
		var wrapped struct {
			Tunnels []heldTunnel `json:"tunnels"`
		}
		if json.Unmarshal(text, &wrapped) != nil {
			return nil, fmt.Errorf("tunnel list is not JSON: %w", err)
		}
		list = wrapped.Tunnels
	}
	all := map[string]heldTunnel{}
	for _, t := range list {
		if len(t.sas()) > 0 {
			all[t.Name] = t
		}
	}
	return all, nil
}

func (t *heldTunnel) sas() map[string]heldSA {
	all := map[string]heldSA{}
	for _, p := range t.ProxyIDs {
		for _, sa := range p.SAs {
			all[sa.SPIIn+"/"+sa.SPIOut] = sa
		}
	}
	return all
}

// disagreement compares what members list at two times, the second right after the
// first: names, indexes and SPIs must be equal, each tunnel has one sync-primary, and
// a standby's ceiling is neither below nor above what its owner had both times, if it was
// the same one. Empty when they agree on so many tunnels.
func disagreement(first, second map[string]map[string]heldTunnel, tunnels int) string {
	var members []string
	names := map[string]bool{}
	for m, held := range second {
		members = append(members, m)
		for n := range held {
			names[n] = true
		}
	}
	sort.Strings(members)
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	if len(sorted) != tunnels {
		return fmt.Sprintf("%d tunnels are listed, %d stand", len(sorted), tunnels)
	}
	for _, n := range sorted {
		owner := ""
		for _, m := range members {
			t, ok := second[m][n]
			switch {
			case !ok:
				return fmt.Sprintf("%s does not know %s", m, n)
			case t.Role == tunnelOwner && owner != "":
				return fmt.Sprintf("%s and %s own %s", owner, m, n)
			case t.Role == tunnelOwner:
				owner = m
			}
		}
		if owner == "" {
			return "nobody owns " + n
		}
		own, early := second[owner][n], first[owner][n]
		now, before := own.sas(), early.sas()
		stayed := early.Role == tunnelOwner
		for _, m := range members {
			t := second[m][n]
			sas, early := t.sas(), first[m][n]
			if m == owner {
				continue
			}
			if t.Index != own.Index || t.Remote != own.Remote || len(sas) != len(now) {
				return fmt.Sprintf("%s has %s with index %d, %s and %d SAs, %s with %d, %s and %d",
					m, n, t.Index, t.Remote, len(sas), owner, own.Index, own.Remote, len(now))
			}
			for spis, sa := range sas {
				o, ok := now[spis]
				if !ok {
					return fmt.Sprintf("%s has other SPIs of %s than %s", m, n, owner)
				}
				if stayed && sa.Ceiling < min(before[spis].Ceiling, o.Ceiling) {
					return fmt.Sprintf("%s: ceiling %d of %s, which %s had raised to %d", m, sa.Ceiling, n, owner, before[spis].Ceiling)
				}
				if e := early.sas()[spis]; stayed && e.Ceiling > max(before[spis].Ceiling, o.Ceiling) {
					return fmt.Sprintf("%s: ceiling %d of %s, %s only has %d", m, e.Ceiling, n, owner, o.Ceiling)
				}
			}
		}
	}
	return ""
}
