package daemon

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/node"
)

// farmJSON is what a member of a farm answers to `get system ha status --json` and
// `diagnose sys ha standalone-peers --json`. The lab polls it; its reader is
// internal/lab, which has a type of its own on purpose.
type farmJSON struct {
	Hostname     string `json:"hostname"`
	Mode         string `json:"mode"`
	Group        int    `json:"group"`
	ID           int    `json:"id"`   // group-member-id
	Node         int    `json:"node"` // the same, but 16 for 0
	Joined       bool   `json:"joined"`
	Synchronised bool   `json:"synchronised"`
	Draining     bool   `json:"draining"`
	Quorum       bool   `json:"quorum"`
	QuorumLoss   string `json:"quorum_loss"` // continue, stop
	Leader       string `json:"leader"`      // empty: none is known
	Owned        int    `json:"owned"`       // tunnels with a Child SA whose sync-primary this member is
	Standby      int    `json:"standby"`     // those that it stands by for
	ScopesOwned  int    `json:"scopes_owned"`
	// Packets of all kinds handed to other members, and by them to this one, since this
	// process began; of these the IKE messages.
	Forwarded        uint64          `json:"forwarded"`
	ForwardedHere    uint64          `json:"forwarded_here"`
	ForwardedIKE     uint64          `json:"forwarded_ike"`
	ForwardedIKEHere uint64          `json:"forwarded_ike_here"`
	LogVersion       uint32          `json:"log_version"` // spoken by all members
	LogMin           uint32          `json:"log_min"`     // understood by this build
	LogMax           uint32          `json:"log_max"`
	OwnerMoves       uint64          `json:"owner_moves"`  // tunnels that came by a planned handover since this process began
	LANPrefixes      int             `json:"lan_prefixes"` // of clients of scopes that other members own, as these have told
	LANRefused       uint64          `json:"lan_refused"`  // messages about them, and parts of such
	Alarms           []alarmJSON     `json:"alarms"`
	DaemonPID        int             `json:"daemon_pid"`
	GuardianPID      int             `json:"guardian_pid"`
	Uptime           int64           `json:"uptime_s"`
	Members          []memberJSON    `json:"members"`
	Sites            []siteJSON      `json:"sites,omitempty"`
	Pools            []poolJSON      `json:"pools,omitempty"`
	Scopes           []scopeJSON     `json:"scopes"`
	Peers            []standaloneRow `json:"peers"`
	Interfaces       []physicalJSON  `json:"interfaces"`
}

// memberJSON is one member, this one among them.
type memberJSON struct {
	Hostname string `json:"hostname"`
	Node     int    `json:"node"`
	ID       int    `json:"id"`
	// State: active; draining; silent (not heard, or without a daemon); lost (decided);
	// left; joining (heard, and not decided to be a member).
	State       string `json:"state"`
	Voter       bool   `json:"voter"`
	Leader      bool   `json:"leader"`
	LogMin      uint32 `json:"log_min"` // log versions that its build understands; 0: it has not joined
	LogMax      uint32 `json:"log_max"`
	Features    uint64 `json:"features"`
	Aside       bool   `json:"aside"` // holds no tunnel: has no fgsp-sync, or is a witness
	Self        bool   `json:"self"`
	ScopesOwned int    `json:"scopes_owned"`
	Site        int    `json:"site,omitempty"`
	SiteActive  bool   `json:"site_active,omitempty"` // it has the addresses of its site
}

// poolJSON is one family of a pool of mode-cfg, where members share pools.
type poolJSON struct {
	Start     string `json:"start"`
	End       string `json:"end"`
	Size      int    `json:"size"`      // at most 16777216
	Delegated int    `json:"delegated"` // to all members
	Leased    int    `json:"leased"`    // by what this member owns
	Free      int    `json:"free"`      // this member could lease so many more without asking
	// Unsettled: scopes owned here in which addresses of clients that went silent stay taken,
	// because a member that is not heard may go on with them.
	Unsettled int `json:"unsettled"`
}

func poolRows(pools []node.PoolStatus) (out []poolJSON) {
	for _, x := range pools {
		out = append(out, poolJSON{x.Start.String(), x.End.String(), x.Size, x.Delegated, x.Leased, x.Free, x.Unsettled})
	}
	return out
}

// siteJSON is a pair that is one member of the farm.
type siteJSON struct {
	Site   int      `json:"site"` // group-member-id; 16 for 0
	Nodes  []string `json:"nodes"`
	Active string   `json:"active"` // empty: nobody in the site
	Owner  string   `json:"owner"`  // of its first slot: the active node, or who stands in for the site
	Here   bool     `json:"here"`   // this member has the site's addresses
}

// scopeJSON is what is owned and moves as one: a slot of the farm.
type scopeJSON struct {
	Scope        string   `json:"scope"`
	Owner        string   `json:"owner"`   // as heard, else as decided; empty: nobody
	Decided      string   `json:"decided"` // owner as the members' log has it
	Epoch        uint64   `json:"epoch"`
	EpochNode    string   `json:"epoch_node"`
	Successor    string   `json:"successor"`
	Standbys     []string `json:"standbys"` // who shall hold the records
	Sync         []string `json:"sync"`     // who holds them
	Role         string   `json:"role"`     // here: sync-primary, standby, none
	Synchronised bool     `json:"synchronised"`
	Reason       string   `json:"reason"` // of the last change of owner, as decided
	// ReasonHere, LastChange (RFC 3339) and Covered are of the last change here.
	ReasonHere string `json:"reason_here,omitempty"`
	LastChange string `json:"last_change,omitempty"`
	Covered    bool   `json:"covered"`
}

// standaloneRow is one cluster-peer entry.
type standaloneRow struct {
	Address     string `json:"address"`
	Node        int    `json:"node"` // 0: not heard yet
	ID          int    `json:"id"`   // -1: not heard yet
	Hostname    string `json:"hostname"`
	Running     bool   `json:"running"`
	Up          bool   `json:"up"` // packets can be forwarded to it
	IKESent     uint64 `json:"ike_sent"`
	IKEReceived uint64 `json:"ike_received"`
	Sent        uint64 `json:"packets_sent"` // IKE messages not among them
	Received    uint64 `json:"packets_received"`
	Stream      uint32 `json:"stream_version"` // spoken with it; 0: no stream towards it
}

type physicalJSON struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
	Up   bool   `json:"up"`
}

// standaloneID is a node's group-member-id: that of its site, if it has one.
func (v *view) standaloneID(n cluster.NodeID) int {
	if s := v.siteOf(n); s != nil {
		return s.Number % fsm.MaxNodes
	}
	return int(n) % fsm.MaxNodes
}

func (v *view) siteOf(n cluster.NodeID) *node.SiteStatus {
	f := v.Node.Farm
	for i := range f.Sites {
		if slices.Contains(f.Sites[i].Nodes, n) {
			return &f.Sites[i]
		}
	}
	return nil
}

func (v *view) heardPeer(n cluster.NodeID) *cluster.Peer {
	f := v.Node.Farm
	for i := range f.Peers {
		if f.Peers[i].Node == n {
			return &f.Peers[i]
		}
	}
	return nil
}

// memberName is a member's name, or its number while nobody named it.
func (v *view) memberName(n cluster.NodeID) string {
	f := v.Node.Farm
	switch {
	case n == 0:
		return ""
	case n == f.Self:
		return v.Hostname
	}
	for i := range f.Members {
		if f.Members[i].Node == n {
			return f.Members[i].Name
		}
	}
	if p := v.heardPeer(n); p != nil && p.Name != "" {
		return p.Name
	}
	return fmt.Sprintf("node %d", n)
}

func (v *view) memberNames(list []cluster.NodeID) []string {
	out := []string{}
	for _, n := range list {
		out = append(out, v.memberName(n))
	}
	return out
}

func (v *view) farmJSON() farmJSON {
	c, f := &v.Config.Standalone, v.Node.Farm
	j := farmJSON{
		Hostname: v.Hostname, Mode: "fgsp", Group: c.GroupID, ID: c.MemberID, Node: c.Member(), QuorumLoss: v.Config.Tandem.QuorumLoss,
		DaemonPID: v.DaemonPID, GuardianPID: v.GuardianPID, Uptime: v.since(v.Started), Alarms: v.alarms(),
		Members: []memberJSON{}, Scopes: []scopeJSON{}, Peers: []standaloneRow{}, Interfaces: []physicalJSON{},
	}
	for _, p := range v.Farm.Interfaces {
		j.Interfaces = append(j.Interfaces, physicalJSON(p))
	}
	if f == nil {
		return j
	}
	j.Node = int(f.Self)
	for _, s := range f.Sites {
		j.Sites = append(j.Sites, siteJSON{s.Number, v.memberNames(s.Nodes), v.memberName(s.Active), v.memberName(s.Owner), s.Here})
	}
	j.Joined, j.Synchronised, j.Draining = f.Joined, v.farmSynchronised(), f.Draining()
	j.Pools = poolRows(f.Pools)
	j.LANPrefixes, j.LANRefused = f.LAN.Prefixes, f.LAN.Refused
	j.Quorum, j.Leader, j.OwnerMoves = !f.Quorum.Lost, v.memberName(v.Farm.Leader), f.Counters.OwnerMoves
	j.LogVersion, j.LogMin, j.LogMax = f.Version, fsm.MinVersion, fsm.MaxVersion
	for i := range v.Node.Gateways {
		switch g := &v.Node.Gateways[i]; {
		case len(g.Children) == 0:
		case v.owner(g):
			j.Owned++
		default:
			j.Standby++
		}
	}
	owned := map[cluster.NodeID]int{}
	for i := range f.Scopes {
		s := v.scopeJSON(&f.Scopes[i])
		j.Scopes = append(j.Scopes, s)
		owned[ownerOf(&f.Scopes[i])]++
	}
	j.ScopesOwned = owned[f.Self]
	for _, m := range v.Farm.Link.Members {
		j.Forwarded += m.Sent
		j.ForwardedHere += m.Received
		j.ForwardedIKE += m.SentIKE
		j.ForwardedIKEHere += m.ReceivedIKE
	}
	j.Members = v.memberRows(owned)
	for i := range c.Peers {
		j.Peers = append(j.Peers, v.standaloneRow(c.Peers[i].PeerIP.String(), v.Farm.Nodes[c.Peers[i].PeerIP]))
	}
	return j
}

// ownerOf is who is heard to own a scope, else who was decided to.
func ownerOf(s *node.ScopeStatus) cluster.NodeID {
	if s.Heard != 0 {
		return s.Heard
	}
	return s.Owner
}

func (v *view) scopeJSON(s *node.ScopeStatus) scopeJSON {
	j := scopeJSON{
		Scope: s.ID.String(), Owner: v.memberName(ownerOf(s)), Decided: v.memberName(s.Owner), Epoch: s.Epoch.Counter, EpochNode: v.memberName(s.Epoch.Node),
		Successor: v.memberName(s.Successor), Standbys: v.memberNames(s.Standbys), Sync: v.memberNames(s.Sync), Role: "none", Reason: s.Reason.String(),
	}
	h := s.Here
	if h == nil {
		return j
	}
	switch self := v.Node.Farm.Self; {
	case h.Role == cluster.RoleOwner:
		j.Role = "sync-primary"
		j.Epoch, j.EpochNode = h.Epoch.Counter, v.memberName(h.Epoch.Node) // renewed without asking
	case slices.Contains(s.Standbys, self) || slices.Contains(s.Sync, self) || s.Successor == self || h.Synchronised:
		j.Role = "standby"
	}
	if j.Role != "none" {
		j.Synchronised = h.Synchronised
	}
	j.ReasonHere, j.Covered = h.LastReason, h.LastCovered
	if !h.LastChange.IsZero() && h.LastReason != "" {
		j.LastChange = h.LastChange.UTC().Format(time.RFC3339Nano)
	}
	return j
}

// memberRows are those who joined once, and who is heard beside them.
func (v *view) memberRows(owned map[cluster.NodeID]int) []memberJSON {
	f := v.Node.Farm
	row := func(n cluster.NodeID) memberJSON {
		return memberJSON{Hostname: v.memberName(n), Node: int(n), ID: v.standaloneID(n), State: "joining",
			Leader: n == v.Farm.Leader, Self: n == f.Self, ScopesOwned: owned[n]}
	}
	rows, known := []memberJSON{}, map[cluster.NodeID]bool{}
	for i := range f.Members {
		m := &f.Members[i]
		known[m.Node] = true
		r := row(m.Node)
		r.Voter, r.Aside = m.Voter, m.Witness
		if s := v.siteOf(m.Node); s != nil {
			r.Site, r.SiteActive = s.Number, s.Active == m.Node
		}
		r.LogMin, r.LogMax, r.Features = m.MinVersion, m.MaxVersion, m.Features
		p := v.heardPeer(m.Node)
		switch {
		case m.State == fsm.Left:
			r.State = "left"
		case m.Lost:
			r.State = "lost"
		case !r.Self && (p == nil || !p.Running):
			r.State = "silent"
		case m.State == fsm.Draining:
			r.State = "draining"
		default:
			r.State = "active"
		}
		rows = append(rows, r)
	}
	heard := []cluster.NodeID{f.Self}
	for i := range f.Peers {
		heard = append(heard, f.Peers[i].Node)
	}
	for _, n := range heard {
		if !known[n] {
			r := row(n)
			if p := v.heardPeer(n); p != nil && !p.Running {
				r.State = "silent"
			}
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b memberJSON) int { return a.Node - b.Node })
	return rows
}

func (v *view) standaloneRow(address string, n cluster.NodeID) standaloneRow {
	r := standaloneRow{Address: address, ID: -1}
	if n == 0 {
		return r
	}
	r.Node, r.ID, r.Hostname = int(n), v.standaloneID(n), v.memberName(n)
	if p := v.heardPeer(n); p != nil {
		r.Running = p.Running
	}
	m := v.Farm.Link.Members[n]
	r.Up, r.IKESent, r.IKEReceived = m.Up, m.SentIKE, m.ReceivedIKE
	r.Stream = v.Farm.Streams[n]
	r.Sent, r.Received = m.Sent-m.SentIKE, m.Received-m.ReceivedIKE
	return r
}

// heartbeatPort is what standalone-peers prints as the peers' port.
const heartbeatPort = 708

// showStandalonePeers is `diagnose sys ha standalone-peers`. It differs from FortiOS's
// in this: session-type counts IKE messages that were forwarded to and from the member,
// packet-type all other packets, since there are no sessions to synchronise; a peer
// that was not heard yet has standalone_id=-; dev_base lists our own interfaces only,
// since members do not tell each other theirs, by their order in the kernel; and all
// sixteen ids are printed.
func showStandalonePeers(s *session, _ []string) error {
	v, err := s.d.view(s.ctx, true)
	if err != nil {
		return err
	}
	j := v.farmJSON()
	if s.json {
		return s.printJSON(j)
	}
	p := s.printf
	detected := 0
	for i := range j.Peers {
		if j.Peers[i].Running {
			detected++
		}
	}
	p("Group=%d, ID=%d\nDetected-peers=%d\nKernel standalone-peers: num=%d.\n", j.Group, j.ID, detected, len(j.Peers))
	for i := range j.Peers {
		r := &j.Peers[i]
		id := "-"
		if r.Node != 0 {
			id = fmt.Sprint(r.ID)
		}
		p("peer%d: vfid=0, peerip:port = %s:%d, standalone_id=%s\n", i, hostPart(r.Address), heartbeatPort, id)
		p("        session-type: send=%d, recv=%d\n", r.IKESent, r.IKEReceived)
		p("         packet-type: send=%d, recv=%d\n", r.Sent, r.Received)
	}
	p("Kernel standalone dev_base:\n")
	for id := range fsm.MaxNodes {
		p("        standalone_id=%d:\n", id)
		if id != j.ID {
			continue
		}
		for k, i := range j.Interfaces {
			fail := 1
			if i.Up {
				fail = 0
			}
			p("                phyindex=%d: mac=%s, linkfail=%d\n", k, i.MAC, fail)
		}
	}
	s.printSites(j.Sites)
	return nil
}

// printSites ends both commands where there are sites.
func (s *session) printSites(sites []siteJSON) {
	if len(sites) == 0 {
		return
	}
	s.printf("Sites: %d\n", len(sites))
	for i := range sites {
		x, here := &sites[i], ""
		if x.Here {
			here = ", addresses here"
		}
		active := x.Active
		if active == "" {
			active = "none (its tunnels: " + orNobody(x.Owner) + ")"
		}
		s.printf("    site %d: active %s, nodes %s%s\n", x.Site, active, strings.Join(x.Nodes, " "), here)
	}
}

func orNobody(name string) string {
	if name == "" {
		return "nobody"
	}
	return name
}

func hostPart(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}

// showFarm is `get system ha status` on a member of a farm.
func (s *session) showFarm(v *view) error {
	j := v.farmJSON()
	if s.json {
		return s.printJSON(j)
	}
	p := s.printf
	health := "OK"
	if len(j.Alarms) > 0 || !j.Quorum {
		health = "WARNING"
	}
	p("HA Health Status: %s\n", health)
	for _, a := range j.Alarms {
		p("    WARNING: %s: %s\n", a.Name, a.Text)
	}
	p("Model: Tandem\nMode: FGSP\nGroup ID: %d\nMember ID: %d\n", j.Group, j.ID)
	p("Member Uptime: %d days %d:%02d:%02d\n", j.Uptime/86400, j.Uptime/3600%24, j.Uptime/60%60, j.Uptime%60)
	quorum := "no (quorum-loss " + j.QuorumLoss + ")"
	if j.Quorum {
		quorum = "yes"
	}
	leader := j.Leader
	if leader == "" {
		leader = "none known"
	}
	p("Quorum: %s\nLeader: %s\n", quorum, leader)
	p("Log version: %d, this build understands %d to %d\n", j.LogVersion, j.LogMin, j.LogMax)
	state := "out-of-sync"
	switch {
	case j.Synchronised:
		state = "in-sync"
	case slices.ContainsFunc(j.Members, func(m memberJSON) bool { return m.Self && m.Aside }):
		state = "synchronises nothing"
	}
	p("Configuration Status:\n    %s: %s, joined: %s, draining: %s\n", j.Hostname, state, yesNo(j.Joined), yesNo(j.Draining))
	p("Tunnels: sync-primary of %d, standby for %d, moved here %d\n", j.Owned, j.Standby, j.OwnerMoves)
	p("Forwarded: %d packets to other members, %d from them; of these IKE %d and %d\n", j.Forwarded, j.ForwardedHere, j.ForwardedIKE, j.ForwardedIKEHere)
	s.printPools(j.Pools, j.Quorum)
	p("Members: %d\n", len(j.Members))
	for i := range j.Members {
		m := &j.Members[i]
		words := []string{m.State}
		for _, w := range []struct {
			on   bool
			word string
		}{{m.Voter, "voter"}, {m.Leader, "leader"}, {m.Aside, "holds no tunnel"}, {m.Self, "this member"}} {
			if w.on {
				words = append(words, w.word)
			}
		}
		p("    %s: id %d, %s, owns %d scopes\n", m.Hostname, m.ID, strings.Join(words, ", "), m.ScopesOwned)
	}
	s.printSites(j.Sites)
	p("Scopes: %d\n", len(j.Scopes))
	for i := range j.Scopes {
		s.printScope(&j.Scopes[i])
	}
	return nil
}

func (s *session) printPools(pools []poolJSON, quorum bool) {
	for _, x := range pools {
		text := ""
		if !quorum {
			text = "; no quorum: no more than these"
		}
		if x.Unsettled > 0 {
			text += fmt.Sprintf("; addresses of silent clients stay taken in %d scopes: a member is not heard", x.Unsettled)
		}
		s.printf("Pool %s-%s: %d of %d addresses delegated, %d leased here, %d ready here%s\n", x.Start, x.End, x.Delegated, x.Size, x.Leased, x.Free, text)
	}
}

func (s *session) printScope(x *scopeJSON) {
	role := x.Role
	if role != "none" && !x.Synchronised {
		role += map[string]string{"sync-primary": " (alone)", "standby": " (copying)"}[x.Role]
	}
	owner := orNobody(x.Owner)
	if x.Decided != x.Owner {
		owner += " (decided: " + orNobody(x.Decided) + ")"
	}
	s.printf("    %s: owner %s, epoch %d of %s, successor %s, sync set %s, role here %s, reason %s\n",
		x.Scope, owner, x.Epoch, orNobody(x.EpochNode), orNobody(x.Successor), orNobody(strings.Join(x.Sync, " ")), role, x.Reason)
	if x.LastChange != "" {
		s.printf("        <%s> %s\n", x.LastChange, x.ReasonHere)
	}
}
