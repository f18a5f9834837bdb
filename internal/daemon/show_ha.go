package daemon

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/internal/config"
	"tandem/internal/node"
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
	electionJSON
	Log *logJSON `json:"log,omitempty"` // of a group of three or four
	// With virtual clusters; role, epoch, … above are then of the node as a whole:
	// primary if it is of any of them, synchronised if all of them are.
	VClusters []vclusterJSON `json:"vclusters,omitempty"`
}

// logJSON is the log by which the members of a group decide.
type logJSON struct {
	Leader string     `json:"leader"` // empty: none is known
	Quorum bool       `json:"quorum"`
	Pools  []poolJSON `json:"pools,omitempty"`
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
	Penalty  int        `json:"pingserver_penalty"`
	Failover bool       `json:"failover"`
	Links    []linkJSON `json:"links"`
}

type linkJSON struct {
	Device string `json:"device"`
	Addr   string `json:"addr"`
}

// vclusterJSON is one virtual cluster.
type vclusterJSON struct {
	ID           int        `json:"id"`
	Role         string     `json:"role"`
	Synchronised bool       `json:"synchronised"`
	Alone        bool       `json:"alone"`
	Epoch        uint64     `json:"epoch"`
	EpochNode    string     `json:"epoch_node"`
	Owner        string     `json:"owner"`
	Reason       string     `json:"reason,omitempty"`
	Covered      bool       `json:"covered"`
	DetectMS     float64    `json:"detect_ms"`
	LastChange   string     `json:"last_change,omitempty"` // RFC 3339
	Takeovers    int        `json:"takeovers"`
	Priority     int        `json:"priority"`
	Override     bool       `json:"override"`
	MonitorsUp   int        `json:"monitors_up"`
	VDOM         []string   `json:"vdom"`
	Phase1       []string   `json:"phase1"` // what belongs to it
	Peers        []peerJSON `json:"peers"`
	electionJSON
}

func (v *view) vclustersJSON() (out []vclusterJSON) {
	for i := range v.Node.VClusters {
		x := &v.Node.VClusters[i]
		h := &x.HA
		j := vclusterJSON{ID: x.ID, Role: roleName(h.Role), Synchronised: h.Synchronised, Alone: h.Alone, Epoch: h.Epoch.Counter,
			EpochNode: v.nodeName(h.Epoch.Node), Owner: v.nodeName(h.Owner), Reason: reasonOf(h), Covered: h.LastCovered,
			DetectMS: milliseconds(h.LastDetected), LastChange: changeText(h), Takeovers: h.Takeovers, Priority: h.Election.Priority,
			Override: h.Election.Override, MonitorsUp: h.Election.MonitorsUp, VDOM: []string{}, Phase1: []string{}, Peers: peersJSON(h),
			electionJSON: v.electionJSON(x)}
		j.VDOM = append(j.VDOM, v.vcluster(x.ID).VDOM...)
		for k := range v.Config.Phase1 {
			if p := &v.Config.Phase1[k]; v.Config.VClusterOf(p) == x.ID {
				j.Phase1 = append(j.Phase1, p.Name)
			}
		}
		out = append(out, j)
	}
	return out
}

// vcluster is a virtual cluster as configured.
func (v *view) vcluster(id int) (c config.VCluster) {
	for _, c = range v.Config.VirtualClusters() {
		if c.ID == id {
			return c
		}
	}
	return config.VCluster{}
}

func changeText(h *cluster.HAStatus) string {
	if h.LastChange.IsZero() {
		return ""
	}
	return h.LastChange.UTC().Format(time.RFC3339Nano)
}

func peersJSON(h *cluster.HAStatus) []peerJSON {
	out := []peerJSON{}
	for i := range h.Peers {
		p := &h.Peers[i]
		d := peerJSON{Node: uint32(p.Node), Hostname: p.Name, Serial: p.Election.Serial, Role: roleName(p.Role), Running: p.Running,
			Epoch: p.Epoch.Counter, Entitled: p.Entitled, Priority: p.Election.Priority, Age: seconds(p.Election.Age),
			Monitors: p.Election.MonitorsUp, Penalty: p.Election.Penalty, Failover: p.Election.Failover, Links: []linkJSON{}}
		for _, l := range p.Links {
			d.Links = append(d.Links, linkJSON{l.Device, l.Addr})
		}
		out = append(out, d)
	}
	return out
}

func (v *view) haJSON() haJSON {
	j := haJSON{Hostname: v.Hostname, Mode: v.Config.HA.Mode, Role: "primary", DaemonPID: v.DaemonPID, GuardianPID: v.GuardianPID,
		Tunnels: v.established(), GroupID: v.Config.HA.GroupID, GroupName: v.Config.HA.GroupName,
		Priority: v.Config.HA.Priority, Override: v.Config.HA.Override, Uptime: v.since(v.Started),
		Alarms: []alarmJSON{}, Peers: []peerJSON{}}
	h := v.Node.HA
	j.electionJSON = v.electionJSON(nil)
	if h == nil {
		j.Owner = v.Hostname
		return j
	}
	j.Role, j.Synchronised, j.Alone = roleName(h.Role), h.Synchronised, h.Alone
	j.Epoch, j.EpochNode, j.Owner = h.Epoch.Counter, v.nodeName(h.Epoch.Node), v.nodeName(h.Owner)
	j.Reason, j.Covered, j.DetectMS, j.Takeovers = h.LastReason, h.LastCovered, milliseconds(h.LastDetected), h.Takeovers
	j.Reason = reasonOf(h)
	j.Serial, j.MonitorsUp = h.Serial, h.Election.MonitorsUp
	j.LastChange, j.VClusters = changeText(h), v.vclustersJSON()
	for _, a := range h.Alarms {
		j.Alarms = append(j.Alarms, alarmJSON{a.Name, a.Text})
	}
	j.Peers = peersJSON(h)
	if v.Config.Group() {
		j.Log = &logJSON{v.nodeName(v.Farm.Leader), v.Node.Quorum, poolRows(v.Node.Pools)}
	}
	if v.ConfigAlarm != "" {
		j.Alarms = append(j.Alarms, alarmJSON{"configuration", v.ConfigAlarm})
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
	all := v.clusters()
	for i := range all {
		c := &all[i]
		if len(v.Node.VClusters) > 0 {
			p("    vcluster-%d:\n", c.ID)
		}
		if h := &c.HA; h.LastReason != "" {
			p("    <%s> %s is selected as the primary because %s.\n", h.LastChange.Format("2006/01/02 15:04:05"), v.nodeName(h.Owner), reasonOf(h))
			covered := yesNo(h.LastCovered)
			if h.Owner != 0 && h.Owner != h.Self {
				covered = "known to " + v.nodeName(h.Owner) // whoever took over
			}
			p("    covered: %s, epoch: %s, detected after: %.1f ms, takeovers: %d\n", covered, h.Epoch, milliseconds(h.LastDetected), h.Takeovers)
			x := v.electionJSON(c)
			s.printChange(&x)
		}
	}
	if j.Log != nil {
		p("Members' log: quorum %s, leader %s\n", yesNo(j.Log.Quorum), j.Log.Leader)
		s.printPools(j.Log.Pools, j.Log.Quorum)
	}
	p("ses_pickup: %s\n", enabled(v.Config.HA.SessionPickup))
	if len(v.Node.VClusters) == 0 {
		p("override: %s\n", enabled(j.Override))
	}
	for i := range v.Node.VClusters {
		p("override: vcluster-%d %s\n", all[i].ID, enabled(all[i].HA.Election.Override))
	}
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
	s.printMonitors(v, all)
	for _, m := range membersOf(h) {
		p("%-12s: %s, %s, HA cluster index = %d\n", m.title(), m.name, m.serial, m.id)
	}
	p("number of vcluster: %d\n", len(all))
	for i := range all {
		h := &all[i].HA
		p("vcluster %d: %s\n", all[i].ID, map[bool]string{true: "work", false: "standby"}[h.Role == cluster.RoleOwner])
		for _, m := range membersOf(h) {
			p("%s: %s, HA operating index = %d\n", m.title(), m.serial, map[bool]int{true: 0, false: 1}[m.role == cluster.RoleOwner])
		}
	}
}

// clusters are the virtual clusters; without them, the one that there is.
func (v *view) clusters() []node.VClusterStatus {
	if len(v.Node.VClusters) > 0 {
		return v.Node.VClusters
	}
	return []node.VClusterStatus{{ID: 1, HA: *v.Node.HA}}
}

// haMember is a node of a cluster.
type haMember struct {
	role         cluster.Role
	name, serial string
	id           cluster.NodeID
}

func (m haMember) title() string {
	switch m.role {
	case cluster.RoleOwner:
		return "Primary"
	case cluster.RoleStandby:
		return "Secondary"
	}
	return "Starting"
}

// membersOf are this node and its peers.
func membersOf(h *cluster.HAStatus) []haMember {
	out := []haMember{{h.Role, h.Name, h.Serial, h.Self}}
	for i := range h.Peers {
		q := &h.Peers[i]
		out = append(out, haMember{q.Role, q.Name, q.Election.Serial, q.Node})
	}
	return out
}

// failoverSet is `execute ha failover set [CLUSTER]`; failoverUnset likewise.
func failoverSet(s *session, args []string) error   { return s.failover(args, true) }
func failoverUnset(s *session, args []string) error { return s.failover(args, false) }

func (s *session) failover(args []string, set bool) error {
	id, err := s.clusterArg(args)
	if err != nil {
		return err
	}
	if err := s.d.failover(s.ctx, id, set); err != nil {
		return err
	}
	if s.json {
		return s.printJSON(map[string]bool{"failover": set})
	}
	s.printf("failover %s\n", map[bool]string{true: "requested", false: "unset"}[set])
	return nil
}

// clusterArg is the scope of a cluster's number. Without virtual clusters there is one, 1.
func (s *session) clusterArg(args []string) (cluster.ScopeID, error) {
	v, err := s.d.view(s.ctx, false)
	if err != nil {
		return 0, err
	}
	all := v.Node.VClusters
	if len(all) == 0 {
		if len(args) > 1 || len(args) == 1 && args[0] != "0" && args[0] != "1" {
			return 0, usagef("expected: [CLUSTER]; the one cluster here is number 1")
		}
		return 0, nil
	}
	var ids []string
	for i := range all {
		ids = append(ids, strconv.Itoa(all[i].ID))
		if len(args) == 1 && args[0] == ids[i] {
			return cluster.ScopeID(all[i].ID), nil
		}
	}
	return 0, usagef("expected: CLUSTER, a virtual cluster: %s", strings.Join(ids, ", "))
}

// reload is `execute reload`.
func reload(s *session, _ []string) error {
	r, err := s.d.reload(s.ctx)
	if err != nil {
		return err
	}
	if s.json {
		return s.printJSON(r)
	}
	s.printf("configuration loaded\n")
	if r.Revision > 0 {
		s.printf("revision %d runs on %s\n", r.Revision, strings.Join(r.Members, ", "))
	}
	for _, m := range r.Behind {
		s.printf("%s has not taken it yet: `diagnose sys ha checksum cluster` says why\n", m)
	}
	return nil
}
