package daemon

import (
	"fmt"
	"time"

	"tandem/cluster"
)

// haJSON is `get system ha status --json`. The lab polls it; its reader is
// internal/lab, which has a type of its own on purpose.
type haJSON struct {
	Hostname     string      `json:"hostname"`
	Mode         string      `json:"mode"`
	Role         string      `json:"role"` // primary, secondary, starting
	Synchronised bool        `json:"synchronised"`
	Epoch        uint64      `json:"epoch"`
	EpochNode    string      `json:"epoch_node"`
	Owner        string      `json:"owner"`
	Alone        bool        `json:"alone"`
	GuardianPID  int         `json:"guardian_pid"`
	DaemonPID    int         `json:"daemon_pid"`
	Tunnels      int         `json:"tunnels"`
	Reason       string      `json:"reason,omitempty"`
	Covered      bool        `json:"covered"`
	DetectMS     float64     `json:"detect_ms"`
	LastChange   string      `json:"last_change,omitempty"` // RFC 3339
	Takeovers    int         `json:"takeovers"`
	GroupID      int         `json:"group_id"`
	GroupName    string      `json:"group_name"`
	Serial       string      `json:"serial"`
	Priority     int         `json:"priority"`
	Override     bool        `json:"override"`
	MonitorsUp   int         `json:"monitors_up"`
	Uptime       int64       `json:"uptime_s"`
	Alarms       []alarmJSON `json:"alarms"`
	Peers        []peerJSON  `json:"peers"`
}

type alarmJSON struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

type peerJSON struct {
	Node     uint32     `json:"node"`
	Hostname string     `json:"hostname"`
	Serial   string     `json:"serial"`
	Role     string     `json:"role"`
	Running  bool       `json:"running"`
	Epoch    uint64     `json:"epoch"`
	Entitled bool       `json:"entitled"`
	Priority int        `json:"priority"`
	Age      int64      `json:"age_s"`
	Monitors int        `json:"monitors_up"`
	Links    []linkJSON `json:"links"`
}

type linkJSON struct {
	Device string `json:"device"`
	Addr   string `json:"addr"`
}

func (v *view) haJSON() haJSON {
	j := haJSON{Hostname: v.Hostname, Mode: v.Config.HA.Mode, Role: "primary", DaemonPID: v.DaemonPID, GuardianPID: v.GuardianPID,
		Tunnels: v.established(), GroupID: v.Config.HA.GroupID, GroupName: v.Config.HA.GroupName,
		Priority: v.Config.HA.Priority, Override: v.Config.HA.Override, Uptime: v.since(v.Started),
		Alarms: []alarmJSON{}, Peers: []peerJSON{}}
	h := v.Node.HA
	if h == nil {
		j.Owner = v.Hostname
		return j
	}
	j.Role, j.Synchronised, j.Alone = roleName(h.Role), h.Synchronised, h.Alone
	j.Epoch, j.EpochNode, j.Owner = h.Epoch.Counter, v.nodeName(h.Epoch.Node), v.nodeName(h.Owner)
	j.Reason, j.Covered, j.DetectMS, j.Takeovers = h.LastReason, h.LastCovered, milliseconds(h.LastDetected), h.Takeovers
	j.Serial, j.MonitorsUp = h.Serial, h.Election.MonitorsUp
	if !h.LastChange.IsZero() {
		j.LastChange = h.LastChange.UTC().Format(time.RFC3339Nano)
	}
	for _, a := range h.Alarms {
		j.Alarms = append(j.Alarms, alarmJSON{a.Name, a.Text})
	}
	for i := range h.Peers {
		p := &h.Peers[i]
		d := peerJSON{Node: uint32(p.Node), Hostname: p.Name, Serial: p.Election.Serial, Role: roleName(p.Role), Running: p.Running,
			Epoch: p.Epoch.Counter, Entitled: p.Entitled, Priority: p.Election.Priority, Age: seconds(p.Election.Age),
			Monitors: p.Election.MonitorsUp, Links: []linkJSON{}}
		for _, l := range p.Links {
			d.Links = append(d.Links, linkJSON{l.Device, l.Addr})
		}
		j.Peers = append(j.Peers, d)
	}
	return j
}

// nodeName is the member's name, or its number while no heartbeat named it.
func (v *view) nodeName(id cluster.NodeID) string {
	h := v.Node.HA
	switch {
	case id == 0:
		return ""
	case id == h.Self:
		return h.Name
	}
	for i := range h.Peers {
		if h.Peers[i].Node == id && h.Peers[i].Name != "" {
			return h.Peers[i].Name
		}
	}
	return fmt.Sprint(uint32(id))
}

// showHAStatus is `get system ha status` and `diagnose sys ha status`.
func showHAStatus(s *session, _ []string) error {
	v, err := s.d.view(s.ctx, false)
	if err != nil {
		return err
	}
	if v.Node.Farm != nil {
		return s.showFarm(v)
	}
	j := v.haJSON()
	if s.json {
		return s.printJSON(j)
	}
	p := s.printf
	if v.Node.HA == nil {
		p("HA Health Status: OK\nModel: Tandem\nMode: Standalone\n")
		return nil
	}
	s.printHA(v, &j)
	return nil
}

func (s *session) printHA(v *view, j *haJSON) {
	p, h := s.printf, v.Node.HA
	health := "OK"
	if len(j.Alarms) > 0 {
		health = "WARNING"
	}
	p("HA Health Status: %s\n", health)
	for _, a := range j.Alarms {
		p("    WARNING: %s: %s\n", a.Name, a.Text)
	}
	p("Model: Tandem\nMode: HA A-P\nGroup Name: %s\nGroup ID: %d\nDebug: 0\n", j.GroupName, j.GroupID)
	p("Cluster Uptime: %d days %d:%02d:%02d\n", j.Uptime/86400, j.Uptime/3600%24, j.Uptime/60%60, j.Uptime%60)
	if !h.LastChange.IsZero() {
		p("Cluster state change time: %s\n", h.LastChange.Format("2006-01-02 15:04:05"))
	}
	p("Primary selected using:\n")
	if j.Reason != "" {
		p("    <%s> %s is selected as the primary because %s.\n", h.LastChange.Format("2006/01/02 15:04:05"), j.Owner, j.Reason)
		p("    covered: %s, epoch: %s, detected after: %.1f ms, takeovers: %d\n", yesNo(j.Covered), h.Epoch, j.DetectMS, j.Takeovers)
	}
	p("ses_pickup: %s\noverride: %s\n", enabled(v.Config.HA.SessionPickup), enabled(j.Override))
	p("Configuration Status:\n")
	sync := func(in bool) string {
		if in {
			return "in-sync"
		}
		return "out-of-sync"
	}
	self := j.Synchronised
	if h.Role == cluster.RoleOwner {
		self = true // the owner holds what the others copy
	}
	p("    %s(updated 0 seconds ago): %s\n", h.Serial, sync(self))
	for i := range h.Peers {
		q := &h.Peers[i]
		p("    %s(updated 0 seconds ago): %s\n", q.Election.Serial, sync(q.Role == cluster.RoleOwner || q.Entitled))
	}
	p("HBDEV stats:\n")
	for i := range h.Peers {
		q := &h.Peers[i]
		p("    %s:\n", q.Election.Serial)
		for _, d := range v.Config.HA.HBDev {
			state := "down"
			for _, l := range q.Links {
				if l.Device == d.Name {
					state = "up, peer " + l.Addr
				}
			}
			p("        %s: %s\n", d.Name, state)
		}
	}
	p("MONDEV stats:\n    %s:\n        up: %d of %d\n", h.Serial, j.MonitorsUp, len(v.Config.HA.Monitor))
	members := []struct {
		role         cluster.Role
		name, serial string
		id           cluster.NodeID
	}{{h.Role, h.Name, h.Serial, h.Self}}
	for i := range h.Peers {
		q := &h.Peers[i]
		members = append(members, struct {
			role         cluster.Role
			name, serial string
			id           cluster.NodeID
		}{q.Role, q.Name, q.Election.Serial, q.Node})
	}
	title := func(r cluster.Role) string {
		switch r {
		case cluster.RoleOwner:
			return "Primary"
		case cluster.RoleStandby:
			return "Secondary"
		}
		return "Starting"
	}
	for _, m := range members {
		p("%-12s: %s, %s, HA cluster index = %d\n", title(m.role), m.name, m.serial, m.id)
	}
	p("number of vcluster: 1\nvcluster 1: %s\n", map[bool]string{true: "work", false: "standby"}[h.Role == cluster.RoleOwner])
	for _, m := range members {
		p("%s: %s, HA operating index = %d\n", title(m.role), m.serial, map[bool]int{true: 0, false: 1}[m.role == cluster.RoleOwner])
	}
}

// failoverSet is `execute ha failover set [CLUSTER]`; failoverUnset likewise.
func failoverSet(s *session, args []string) error   { return s.failover(args, true) }
func failoverUnset(s *session, args []string) error { return s.failover(args, false) }

func (s *session) failover(args []string, set bool) error {
	if len(args) > 1 || len(args) == 1 && args[0] != "0" && args[0] != "1" {
		return usagef("expected: [CLUSTER]; the one cluster here is number 1")
	}
	if err := s.d.failover(s.ctx, set); err != nil {
		return err
	}
	if s.json {
		return s.printJSON(map[string]bool{"failover": set})
	}
	s.printf("failover %s\n", map[bool]string{true: "requested", false: "unset"}[set])
	return nil
}

// reload is `execute reload`.
func reload(s *session, _ []string) error {
	if err := s.d.reload(s.ctx); err != nil {
		return err
	}
	if s.json {
		return s.printJSON(map[string]bool{"reloaded": true})
	}
	s.printf("configuration loaded\n")
	return nil
}
