package daemon

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/internal/node"
)

// electionView is what decides the election on this node, beside the node's own status.
type electionView struct {
	Monitors []monitorView
	Servers  []serverView
	MACs     []macView
}

// monitorView is a monitored interface.
type monitorView struct {
	Name     string
	Up       bool
	Left     time.Duration // until it counts, though it is up: it failed again and again
	Failures int           // in the last minutes
}

// macView is an interface with a virtual MAC address.
type macView struct {
	Name         string
	Virtual, Own [6]byte
	Active       bool // it is on the interface
}

// lookAtElection completes a view. On the loop.
func (d *Daemon) lookAtElection(now time.Time, v *view) {
	for _, m := range monitoredBy(d.cfg) {
		left, failures := d.links.damp.Held(now, m)
		v.Election.Monitors = append(v.Election.Monitors, monitorView{m, d.links.up[m], left, failures})
	}
	if d.pinger != nil {
		v.Election.Servers = d.pinger.servers()
	}
	m := d.addresses.macs
	names := slices.Sorted(slices.Values(d.cfg.HA.VirtualMAC))
	for _, n := range names {
		x := macView{Name: n, Virtual: m.virtual[n], Own: m.own[n]}
		if link, ok := d.links.link[n]; ok {
			x.Active = bytes.Equal(link.Attrs().HardwareAddr, x.Virtual[:])
		}
		v.Election.MACs = append(v.Election.MACs, x)
	}
}

// changeJSON is why the ownership is where it is.
type changeJSON struct {
	Time      string         `json:"time"` // RFC 3339
	Epoch     uint64         `json:"epoch"`
	EpochNode string         `json:"epoch_node"`
	Reason    string         `json:"reason"`
	Evidence  string         `json:"evidence"`
	DecidedBy string         `json:"decided_by"`
	Covered   bool           `json:"covered"`
	DetectMS  float64        `json:"detect_ms"`
	Compared  []comparedJSON `json:"compared"` // what was compared at that moment: this node, then the other one
}

type comparedJSON struct {
	Hostname   string `json:"hostname"`
	MonitorsUp int    `json:"monitors_up"`
	Penalty    int    `json:"pingserver_penalty"`
	Age        int64  `json:"age_s"`
	Priority   int    `json:"priority"`
	Override   bool   `json:"override"`
	Serial     string `json:"serial"`
	Failover   bool   `json:"failover"`
}

func comparedOf(name string, e *cluster.Election) comparedJSON {
	return comparedJSON{name, e.MonitorsUp, e.Penalty, seconds(e.Age), e.Priority, e.Override, e.Serial, e.Failover}
}

type monitorJSON struct {
	Interface string  `json:"interface"`
	Up        bool    `json:"up"`
	Counts    bool    `json:"counts"` // as working: it is up and not damped
	HeldS     float64 `json:"held_s"` // until it counts
	Failures  int     `json:"failures"`
}

type pingserverJSON struct {
	Monitor   string `json:"link_monitor"`
	Interface string `json:"interface"`
	Server    string `json:"server"`
	State     string `json:"state"` // up, down
	Probed    bool   `json:"probed"`
	Since     string `json:"since,omitempty"` // RFC 3339
	Priority  int    `json:"ha_priority"`
	Counts    bool   `json:"counts"` // its interface is one of pingserver-monitor-interface
}

type macJSON struct {
	Interface string `json:"interface"`
	MAC       string `json:"mac"`
	Own       string `json:"own_mac"`
	Active    bool   `json:"active"`
}

// electionJSON is what of the status decides the election.
type electionJSON struct {
	Failover     bool             `json:"failover"` // execute ha failover set
	Penalty      int              `json:"pingserver_penalty"`
	FlipS        float64          `json:"pingserver_flip_s"` // until pingservers may cause a change again
	MonitorsSeen int              `json:"monitors_seen"`     // those that work now; monitors_up are those that count
	HoldS        float64          `json:"failover_hold_s"`   // until monitors_seen counts
	Monitors     []monitorJSON    `json:"monitors"`
	Pingservers  []pingserverJSON `json:"pingservers"`
	MACs         []macJSON        `json:"virtual_macs"`
	Change       *changeJSON      `json:"change,omitempty"`
	Next         *nextJSON        `json:"next_change,omitempty"`
	Successor    string           `json:"successor,omitempty"` // who was promised the ownership, in a group of three or four
}

// nextJSON is a change of owner that is waited for.
type nextJSON struct {
	Reason string  `json:"reason"`
	InS    float64 `json:"in_s"`
}

func until(now, at time.Time) float64 { return max(0, at.Sub(now).Seconds()) }

// reasonOf is why the ownership is where it is.
func reasonOf(h *cluster.HAStatus) string {
	if h.Change.Reason != "" {
		return h.Change.Reason
	}
	return h.LastReason
}

// electionJSON is about a virtual cluster; nil: the node as a whole.
func (v *view) electionJSON(c *node.VClusterStatus) (j electionJSON) {
	j.Monitors, j.Pingservers, j.MACs = []monitorJSON{}, []pingserverJSON{}, []macJSON{}
	h, monitor, ping := v.Node.HA, monitoredBy(v.Config), v.Config.HA.Pingserver.Monitor
	all := true
	if c != nil {
		h = &c.HA
		if len(v.Node.VClusters) > 0 {
			x := v.vcluster(c.ID)
			monitor, ping, all = x.Monitor, x.Pingserver.Monitor, false
		}
	}
	if h == nil {
		return j
	}
	j.Failover, j.Penalty, j.MonitorsSeen = h.Election.Failover, h.Election.Penalty, h.Seen
	j.FlipS, j.HoldS = until(v.Now, h.Flip), until(v.Now, h.Held)
	for _, m := range v.Election.Monitors {
		if slices.Contains(monitor, m.Name) {
			j.Monitors = append(j.Monitors, monitorJSON{m.Name, m.Up, m.Up && m.Left == 0, m.Left.Seconds(), m.Failures})
		}
	}
	for _, s := range v.Election.Servers {
		x := pingserverJSON{Monitor: s.Monitor, Interface: s.Interface, Server: s.Server.String(), State: "up", Probed: s.Running,
			Priority: s.Priority, Counts: slices.Contains(ping, s.Interface)}
		if s.Dead {
			x.State = "down"
		}
		if !s.Since.IsZero() {
			x.Since = s.Since.UTC().Format(time.RFC3339Nano)
		}
		if all || x.Counts {
			j.Pingservers = append(j.Pingservers, x)
		}
	}
	for _, m := range v.Election.MACs {
		if all || v.Config.VClusterOfInterface(m.Name) == c.ID {
			j.MACs = append(j.MACs, macJSON{m.Name, macText(m.Virtual), macText(m.Own), m.Active})
		}
	}
	j.Successor = v.nodeName(h.Successor)
	if h.Next != "" {
		j.Next = &nextJSON{h.Next, until(v.Now, h.NextAt)}
	}
	if c := &h.Change; !c.At.IsZero() {
		x := &changeJSON{Time: c.At.UTC().Format(time.RFC3339Nano), Epoch: c.Epoch.Counter, EpochNode: v.nodeName(c.Epoch.Node), Reason: c.Reason,
			Evidence: c.Evidence, DecidedBy: v.decider(c.By), Covered: c.Covered, DetectMS: milliseconds(c.Detected),
			Compared: []comparedJSON{comparedOf(h.Name, &c.Mine)}}
		if c.Peer != 0 {
			x.Compared = append(x.Compared, comparedOf(v.nodeName(c.Peer), &c.Its))
		}
		j.Change = x
	}
	return j
}

// decider is who decided on a change of owner: a node, or in a group the members' log.
func (v *view) decider(n cluster.NodeID) string {
	if n == 0 && v.Config.Group() {
		return "the members' log"
	}
	return v.nodeName(n)
}

func macText(m [6]byte) string { return net.HardwareAddr(m[:]).String() }

// printChange is what the last change rested on.
func (s *session) printChange(j *electionJSON) {
	c := j.Change
	if c == nil {
		return
	}
	if c.Evidence != "" {
		s.printf("    decided by: %s, evidence: %s\n", c.DecidedBy, c.Evidence)
	} else {
		s.printf("    decided by: %s\n", c.DecidedBy)
	}
	for _, x := range c.Compared {
		s.printf("    %s: monitors %d, pingserver penalty %d, age %d s, priority %d, override %s, failover %s\n",
			x.Hostname, x.MonitorsUp, x.Penalty, x.Age, x.Priority, enabled(x.Override), map[bool]string{true: "set", false: "unset"}[x.Failover])
	}
	if j.Successor != "" {
		s.printf("    successor: %s\n", j.Successor)
	}
	if n := j.Next; n != nil {
		s.printf("    next change: in %.1f s: %s\n", n.InS, n.Reason)
	}
}

// printMonitors is what decides the election now.
func (s *session) printMonitors(v *view, all []node.VClusterStatus) {
	p := s.printf
	serial := v.Node.HA.Serial
	p("MONDEV stats:\n    %s:\n", serial)
	monitored := func(c *node.VClusterStatus) int {
		if len(v.Node.VClusters) > 0 {
			return len(v.vcluster(c.ID).Monitor)
		}
		return len(v.Config.HA.Monitor)
	}
	// prefix names the virtual cluster, where there are some.
	prefix := func(c *node.VClusterStatus) string {
		if len(v.Node.VClusters) > 0 {
			return fmt.Sprintf("vcluster-%d ", c.ID)
		}
		return ""
	}
	for i := range all {
		c := &all[i]
		p("        %sup: %d of %d\n", prefix(c), c.HA.Election.MonitorsUp, monitored(c))
		if hold := until(v.Now, c.HA.Held); hold > 0 {
			p("        %sfailover-hold-time: %d of %d work now, which counts in %.1f s\n", prefix(c), c.HA.Seen, monitored(c), hold)
		}
	}
	for _, m := range v.Election.Monitors {
		state := "down"
		if m.Up {
			state = "up"
		}
		if m.Left > 0 {
			state += fmt.Sprintf(", damped: it failed %d times and counts in %.1f s", m.Failures, m.Left.Seconds())
		}
		p("        %s: %s\n", m.Name, state)
	}
	if len(v.Election.Servers) > 0 {
		p("PINGSVR stats:\n    %s:\n", serial)
		for i := range all {
			c := &all[i]
			threshold := v.Config.HA.Pingserver.Threshold
			if len(v.Node.VClusters) > 0 {
				threshold = v.vcluster(c.ID).Pingserver.Threshold
			}
			p("        %spenalty %d, failover threshold %d\n", prefix(c), c.HA.Election.Penalty, threshold)
			if flip := until(v.Now, c.HA.Flip); flip > 0 {
				p("        %spingserver-flip-timeout: no failover for their sake in the next %.0f s\n", prefix(c), flip)
			}
			for k := range c.HA.Peers {
				q := &c.HA.Peers[k].Election
				p("        %spenalty %d of %s\n", prefix(c), q.Penalty, q.Serial)
			}
		}
		for _, x := range v.Election.Servers {
			state := "UP"
			if x.Dead {
				state = "DOWN"
			}
			if x.Since.IsZero() {
				state = "N/A"
			} else {
				state += "(since " + x.Since.Format("2006/01/02 15:04:05") + ")"
			}
			if !x.Running {
				state += ", not probed here"
			}
			p("        %s: %s, pingsvr: state=%s, server=%s, ha_prio=%d\n", x.Monitor, x.Interface, state, x.Server, x.Priority)
		}
	}
	if len(v.Election.MACs) > 0 {
		p("Virtual MAC addresses:\n")
	}
	for _, m := range v.Election.MACs {
		p("    %s: %s, own %s, %s\n", m.Name, macText(m.Virtual), macText(m.Own), map[bool]string{true: "active", false: "not active"}[m.Active])
	}
}

// failoverStatus is `execute ha failover status`.
func failoverStatus(s *session, args []string) error {
	v, err := s.d.view(s.ctx, false)
	if err != nil {
		return err
	}
	word := map[bool]string{true: "set", false: "unset"}
	if all := v.Node.VClusters; len(all) > 0 && len(args) == 0 {
		list := []failoverJSON{}
		for i := range all {
			list = append(list, failoverJSON{all[i].ID, all[i].HA.Election.Failover})
		}
		if s.json {
			return s.printJSON(map[string]any{"vclusters": list})
		}
		for _, x := range list {
			s.printf("failover status: vcluster-%d %s\n", x.ID, word[x.Failover])
		}
		return nil
	}
	id, err := s.clusterArg(args)
	if err != nil {
		return err
	}
	set := v.Node.HA != nil && v.Node.HA.Election.Failover
	for i := range v.Node.VClusters {
		if x := &v.Node.VClusters[i]; x.ID == int(id) {
			set = x.HA.Election.Failover
		}
	}
	if s.json {
		return s.printJSON(map[string]bool{"failover": set})
	}
	s.printf("failover status: %s\n", word[set])
	return nil
}

// failoverJSON is a virtual cluster in `execute ha failover status --json`.
type failoverJSON struct {
	ID       int  `json:"id"`
	Failover bool `json:"failover"`
}
