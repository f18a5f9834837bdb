package integration

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/cluster/raftauth"
	"tandem/proto/clusterpb"
)

// poolMemberEnv makes this test binary a member of TestPoolRanges' group, with the text of
// a poolConfig.
const poolMemberEnv = "TANDEM_POOL_MEMBER"

type poolConfig struct {
	Self     fsm.NodeID
	Process  uint64
	Identity string // folder of the certificate
	State    string // folder of the disk
	Peers    map[fsm.NodeID]string
}

// poolSpaces are what numbers are given out of: so few that they are used again and again.
var poolSpaces = []struct {
	space       fsm.Space
	first, last fsm.Number
	count       uint64
}{
	{fsm.SpaceSPI, fsm.SPINumber(4096), fsm.SPINumber(4096 + 767), 16},
	{fsm.SpaceIPv4, fsm.Number{Lo: 10<<24 + 1}, fsm.Number{Lo: 10<<24 + 320}, 8},
}

const (
	poolGiveEvery = 8 * time.Millisecond
	poolAskEvery  = 20 * time.Millisecond
	poolKeep      = 3 // ranges of a space that are used up: then the oldest is returned
)

// poolEvent is a line of a member's to the test. All members write to one pipe, so that
// the test reads in the order in which things happened.
type poolEvent struct {
	Node    fsm.NodeID
	Process uint64
	What    string // listens, joined, gave, frees, answer, state
	Port    int
	Space   fsm.Space
	Number  uint64
	Range   fsm.RangeID
	Left    uint64 // of the range's numbers, those that are not in use
	Alone   bool   // given out before this process was synchronised
	Code    fsm.Code
	State   *poolState `json:",omitempty"`
}

type poolState struct {
	Leader fsm.NodeID
	Joined bool
	Ranges []fsm.Range
	Lost   []fsm.NodeID
}

// poolOrder is what the test tells a member.
type poolOrder struct {
	What    string                 // know, remove, return, state, quiet
	Used    map[fsm.Space][]uint64 // know: all numbers in use
	Node    fsm.NodeID             // remove
	Process uint64                 // lose: of Node
	Range   fsm.RangeID            // return: another member's
}

type poolMember struct {
	cfg  poolConfig
	node *raftauth.Node
	out  *os.File

	mu     sync.Mutex // of all below: what is given out is given out before a range is closed, or not at all
	synced bool
	quiet  bool
	used   map[fsm.Space]map[uint64]bool
	opened map[fsm.RangeID]bool // by this process
}

// runPoolMember is a member until it is killed, or the test ends.
func runPoolMember(text string) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	fail := func(err error) {
		log.Error("this member ends", "error", err)
		os.Exit(3)
	}
	m := &poolMember{out: os.NewFile(3, "events"), used: map[fsm.Space]map[uint64]bool{}, opened: map[fsm.RangeID]bool{}}
	for _, s := range poolSpaces {
		m.used[s.space] = map[uint64]bool{}
	}
	if err := json.Unmarshal([]byte(text), &m.cfg); err != nil {
		fail(err)
	}
	id, err := cluster.LoadIdentity(m.cfg.Identity)
	if err != nil {
		fail(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	disk, err := raftauth.OpenDisk(m.cfg.State, raftauth.Logger(log))
	if err != nil {
		fail(err)
	}
	all := []fsm.NodeID{1, 2, 3}
	s := raftauth.NewStreamLayer(id, l, func(n fsm.NodeID) (string, bool) { at, ok := m.cfg.Peers[n]; return at, ok }, log)
	if m.node, err = raftauth.New(raftauth.Options{
		Self: m.cfg.Self, Name: fmt.Sprint("gw", m.cfg.Self), Process: m.cfg.Process, Voters: all, Members: all,
		Disk: disk, Transport: s.Transport(log), Peers: s, Log: log,
	}); err != nil {
		fail(err)
	}
	s.Serve(m.node.Answer)
	m.say(poolEvent{What: "listens", Port: l.Addr().(*net.TCPAddr).Port})
	for i := range poolSpaces {
		go every(poolGiveEvery, func() { m.give(i, fail) })
		go every(poolAskEvery, func() { m.askFor(i); m.giveBack(i, fail) })
	}
	told := false
	go every(poolAskEvery, func() {
		if m.node.Joined() && !told {
			told = true
			m.say(poolEvent{What: "joined"})
		}
	})
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var o poolOrder
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			fail(err)
		}
		m.obey(o)
	}
	os.Exit(0) // the test has ended
}

func every(d time.Duration, do func()) {
	for range time.Tick(d) {
		do()
	}
}

func (m *poolMember) say(e poolEvent) {
	e.Node, e.Process = m.cfg.Self, m.cfg.Process
	b, err := json.Marshal(e)
	if err == nil {
		_, err = m.out.Write(append(b, '\n')) // in one piece: shorter than PIPE_BUF, but for a state
	}
	if err != nil {
		os.Exit(4)
	}
}

func (m *poolMember) propose(c *clusterpb.Command) (fsm.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return m.node.Propose(ctx, c)
}

// give gives out the next number of a space: nobody is asked.
func (m *poolMember) give(i int, fail func(error)) {
	s := poolSpaces[i]
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.quiet {
		return
	}
	for _, r := range m.mine(s.space) {
		for k := range r.Count {
			n := r.First.Add(k).Lo
			if m.used[s.space][n] {
				continue
			}
			if err := m.node.Holdings().Open(r.ID); err != nil {
				fail(err)
			}
			m.opened[r.ID], m.used[s.space][n] = true, true
			m.say(poolEvent{What: "gave", Space: s.space, Number: n, Range: r.ID, Left: m.left(r), Alone: !m.synced})
			return
		}
	}
}

// left is how many of a range's numbers are not in use.
func (m *poolMember) left(r fsm.Range) (n uint64) {
	for k := range r.Count {
		if !m.used[r.Space][r.First.Add(k).Lo] {
			n++
		}
	}
	return n
}

// mine are the ranges that numbers may be given out of, the oldest first: what the log and
// the disk say, and what this very process has opened. The last fresh one is kept for a
// start alone.
func (m *poolMember) mine(space fsm.Space) []fsm.Range {
	list, fresh := m.node.Usable(space, m.synced), m.node.Usable(space, false)
	if m.synced && len(fresh) == 1 {
		list = slices.DeleteFunc(list, func(r fsm.Range) bool { return r.ID == fresh[0].ID })
	}
	if !m.synced {
		for _, r := range m.node.View().Ranges(m.cfg.Self) {
			if r.Space == space && m.opened[r.ID] {
				list = append(list, r)
			}
		}
	}
	slices.SortFunc(list, func(a, b fsm.Range) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// askFor has a range delegated when less than two fresh ones are left.
func (m *poolMember) askFor(i int) {
	s := poolSpaces[i]
	m.mu.Lock()
	enough := m.quiet || !m.synced || len(m.node.Usable(s.space, false)) >= 2
	m.mu.Unlock()
	if enough {
		return
	}
	self, _ := m.node.View().Member(m.cfg.Self)
	_, _ = m.propose(&clusterpb.Command{What: &clusterpb.Command_DelegateRange{DelegateRange: &clusterpb.DelegateRange{
		Node: uint32(m.cfg.Self), Store: self.Store, Space: uint32(s.space), First: s.space.Bytes(s.first), Last: s.space.Bytes(s.last), Count: s.count}}})
}

// giveBack returns the oldest range when many are used up: the tunnels with its numbers end.
func (m *poolMember) giveBack(i int, fail func(error)) {
	s := poolSpaces[i]
	m.mu.Lock()
	var usedUp []fsm.Range
	if m.synced && !m.quiet {
		usedUp = slices.DeleteFunc(m.mine(s.space), func(r fsm.Range) bool { return m.left(r) > 0 })
	}
	if len(usedUp) < poolKeep {
		m.mu.Unlock()
		return
	}
	r := usedUp[0]
	if err := m.node.Holdings().Close(r.ID); err != nil {
		fail(err)
	}
	for k := range r.Count {
		delete(m.used[s.space], r.First.Add(k).Lo)
	}
	m.say(poolEvent{What: "frees", Range: r.ID})
	m.mu.Unlock()
	_, _ = m.propose(returning(m.cfg.Self, r.ID))
}

func returning(by fsm.NodeID, r fsm.RangeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_ReturnRange{ReturnRange: &clusterpb.ReturnRange{Node: uint32(by), Range: uint64(r)}}}
}

func (m *poolMember) obey(o poolOrder) {
	switch o.What {
	case "know": // what is in use, as the owners of the tunnels would tell it
		m.mu.Lock()
		for space, list := range o.Used {
			for _, n := range list {
				m.used[space][n] = true
			}
		}
		m.synced = true
		m.mu.Unlock()
	case "quiet":
		m.mu.Lock()
		m.quiet = true
		m.mu.Unlock()
	case "remove", "return", "lose":
		c := returning(m.cfg.Self, o.Range)
		switch o.What {
		case "remove":
			c = &clusterpb.Command{What: &clusterpb.Command_RemoveMember{RemoveMember: &clusterpb.RemoveMember{Node: uint32(o.Node)}}}
		case "lose":
			c = &clusterpb.Command{What: &clusterpb.Command_ReportLoss{ReportLoss: &clusterpb.ReportLoss{Node: uint32(o.Node), Process: o.Process}}}
		}
		r, err := m.propose(c)
		if err != nil {
			r.Code = ^fsm.Code(0)
		}
		m.say(poolEvent{What: "answer", Code: r.Code})
	case "state":
		v := m.node.View()
		s := &poolState{Leader: m.node.Leader(), Joined: m.node.Joined()}
		for _, p := range v.Members() {
			s.Ranges = append(s.Ranges, v.Ranges(p.Node)...)
			if p.Lost {
				s.Lost = append(s.Lost, p.Node)
			}
		}
		m.say(poolEvent{What: "state", State: s})
	}
}
