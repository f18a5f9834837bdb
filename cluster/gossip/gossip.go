package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/quiet"
	"tandem/proto/clusterpb"
)

const (
	// DefaultPort is that of gossip, UDP and TCP.
	DefaultPort = 711

	joinEvery   = 2 * time.Second // attempts to reach peers that are not members yet
	leaveWithin = 500 * time.Millisecond
	sayAgain    = 10 * time.Minute
)

// Options configure Start.
type Options struct {
	// Identity is this member; from its cluster's key follows that of gossip.
	Identity *cluster.Identity
	Name     string         // in the first record, until SetMeta
	Bind     netip.AddrPort // on the synchronisation link; port 0: any
	// Peers are addresses to join by; asked every two seconds, from one goroutine.
	Peers func() []netip.AddrPort
	Log   *slog.Logger
	// Notify is called when a member comes or goes or says something new, from one
	// goroutine. Only the latest of what happened to a member meanwhile is told. nil: nobody.
	Notify func(Member)

	tune func(*memberlist.Config) // tests are in a hurry
}

// State of a member as gossip has it, seconds late.
type State string

const (
	Alive State = "alive"
	Dead  State = "dead" // not heard for seconds
	Gone  State = "left" // said so
)

// Member is a node that was a member during this process's life.
type Member struct {
	Node  cluster.NodeID
	Self  bool
	State State
	Since time.Time // of the state
	Addr  netip.AddrPort
	// Version of what it says, 0: nothing was heard yet, and Meta is empty.
	Version uint64
	Meta    Meta
}

// Gossip is this member among the others.
type Gossip struct {
	o     Options
	list  *memberlist.Memberlist
	tr    *transport
	queue *memberlist.TransmitLimitedQueue
	lines *quiet.Lines

	mu      sync.Mutex
	members map[cluster.NodeID]*Member
	records map[cluster.NodeID][]byte
	version uint64 // of our own record
	self    Meta
	news    map[cluster.NodeID]bool
	wake    chan struct{}
	done    chan struct{}
	wg      sync.WaitGroup
	closed  sync.Once
}

// Start takes part until Close.
func Start(o Options) (*Gossip, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Peers == nil {
		o.Peers = func() []netip.AddrPort { return nil }
	}
	now := time.Now()
	g := &Gossip{o: o, members: map[cluster.NodeID]*Member{}, records: map[cluster.NodeID][]byte{}, news: map[cluster.NodeID]bool{},
		version: uint64(max(now.UnixMilli(), 1)), wake: make(chan struct{}, 1), done: make(chan struct{})}
	g.lines = &quiet.Lines{Every: sayAgain, Say: g.say}
	g.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: 4, NumNodes: g.alive}
	var err error
	if g.tr, err = newTransport(o.Bind, o.Identity, g.lines); err != nil {
		return nil, err
	}
	self := g.member(o.Identity.Node)
	self.Self, self.State, self.Since, self.Addr = true, Alive, now, g.tr.bind
	if err := g.SetMeta(Meta{Name: o.Name}); err != nil {
		return nil, errors.Join(err, g.tr.Shutdown())
	}
	c := memberlist.DefaultLANConfig()
	c.Name = strconv.Itoa(int(o.Identity.Node))
	c.Transport, c.BindAddr, c.BindPort, c.AdvertisePort = g.tr, g.tr.bind.Addr().String(), int(g.tr.bind.Port()), int(g.tr.bind.Port())
	c.SecretKey = o.Identity.GossipKey().Bytes()
	c.TCPTimeout, c.PushPullInterval = 2*time.Second, 10*time.Second
	c.DeadNodeReclaimTime = 10 * time.Second // a member that comes again with another address
	c.Delegate, c.Events, c.Alive, c.Conflict = delegate{g}, delegate{g}, delegate{g}, delegate{g}
	c.Logger = log.New(g.lines, "", 0)
	if o.tune != nil {
		o.tune(c)
	}
	if g.list, err = memberlist.Create(c); err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), g.tr.Shutdown())
	}
	g.wg.Go(g.join)
	g.wg.Go(g.tell)
	return g, nil
}

// Addr is where this member listens.
func (g *Gossip) Addr() netip.AddrPort { return g.tr.bind }

// Close leaves, so that nobody takes us for dead, and ends everything.
func (g *Gossip) Close() error {
	var err error
	g.closed.Do(func() {
		close(g.done)
		g.wg.Wait()
		g.farewell()
		err = errors.Join(g.list.Leave(leaveWithin), g.list.Shutdown())
	})
	return err
}

// farewell has it known that our silence is meant.
func (g *Gossip) farewell() {
	said := make(chan struct{})
	g.mu.Lock()
	m := g.self
	m.leaving = true
	err := g.publish(m, said)
	g.mu.Unlock()
	if err != nil || g.list.NumMembers() < 2 {
		return
	}
	t := time.NewTimer(leaveWithin)
	defer t.Stop()
	select {
	case <-said:
	case <-t.C:
	}
}

// SetMeta says something new about this member. A record that no packet takes is an
// error (ErrTooLarge), and the one before stays.
func (g *Gossip) SetMeta(m Meta) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, err := encode(g.o.Identity.Node, g.version, &m)
	if err != nil {
		return err
	}
	if string(old) == string(g.records[g.o.Identity.Node]) {
		return nil // nothing new
	}
	return g.publish(m, nil)
}

// publish makes our next record; said, unless nil, is closed when it was sent often
// enough. Called with the lock.
func (g *Gossip) publish(m Meta, said chan struct{}) error {
	self := g.o.Identity.Node
	b, err := encode(self, g.version+1, &m)
	if err != nil {
		return err
	}
	g.version++
	_, _, clone, _ := decode(b)
	p := g.member(self)
	p.Version, p.Meta = g.version, *clone
	g.self, g.records[self] = *clone, b
	g.queue.QueueBroadcast(&broadcast{node: self, record: b, said: said})
	g.changed(self)
	return nil
}

// Members are all that were met, this one among them, by number. What they hold must
// not be changed.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []Member
	for _, p := range g.members {
		if p.State != "" {
			all = append(all, *p)
		}
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

func (g *Gossip) member(n cluster.NodeID) *Member {
	p := g.members[n]
	if p == nil {
		p = &Member{Node: n}
		g.members[n] = p
	}
	return p
}

// alive is how many take part, for the number of times that a record is sent.
func (g *Gossip) alive() int {
	if g.list == nil {
		return 1
	}
	return g.list.NumMembers()
}

// changed has Notify told. Called with the lock.
func (g *Gossip) changed(n cluster.NodeID) {
	if g.o.Notify == nil {
		return
	}
	g.news[n] = true
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *Gossip) tell() {
	for {
		select {
		case <-g.done:
			return
		case <-g.wake:
		}
		g.mu.Lock()
		var news []Member
		for n := range g.news {
			if p := g.members[n]; p.State != "" {
				news = append(news, *p)
			}
		}
		clear(g.news)
		g.mu.Unlock()
		slices.SortFunc(news, func(a, b Member) int { return cmp.Compare(a.Node, b.Node) })
		for _, m := range news {
			g.o.Notify(m)
		}
	}
}

// join reaches for peers that are no members, again and again.
func (g *Gossip) join() {
	tick := time.NewTicker(joinEvery)
	defer tick.Stop()
	for {
		present := map[netip.AddrPort]bool{}
		for _, m := range g.list.Members() {
			present[addrOf(m)] = true
		}
		for _, a := range g.o.Peers() {
			a = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
			if present[a] {
				continue
			}
			if _, err := g.list.Join([]string{a.String()}); err != nil {
				g.o.Log.Debug("gossip: a peer is not reached", "address", a.String(), "error", err)
			}
			select {
			case <-g.done:
				return
			default:
			}
		}
		select {
		case <-g.done:
			return
		case <-tick.C:
		}
	}
}

func addrOf(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}

// take takes a record; fresh: it was news, and is passed on.
func (g *Gossip) take(b []byte) error {
	n, version, m, err := decode(b)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.member(n)
	switch {
	case n == g.o.Identity.Node:
		// An earlier life of ours, or somebody with our number: ours goes above it.
		if version < g.version || string(b) == string(g.records[n]) {
			return nil
		}
		g.version = version
		return g.publish(g.self, nil)
	case version <= p.Version:
		return nil
	}
	b = slices.Clone(b)
	p.Version, p.Meta, g.records[n] = version, *m, b
	if m.leaving && p.State == Dead {
		p.State = Gone
	}
	g.queue.QueueBroadcast(&broadcast{node: n, record: b})
	g.changed(n)
	return nil
}

// broadcast is a record on its way; a newer one of the same node takes its place.
type broadcast struct {
	node   cluster.NodeID
	record []byte
	said   chan struct{}
}

func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.node == b.node
}
func (b *broadcast) Message() []byte { return b.record }
func (b *broadcast) Finished() {
	if b.said != nil {
		close(b.said)
		b.said = nil
	}
}

// delegate is what memberlist calls, from its goroutines.
type delegate struct{ g *Gossip }

func (d delegate) NodeMeta(int) []byte { return nil } // 512 bytes are too few

func (d delegate) NotifyMsg(b []byte) { d.refused(d.g.take(b)) }

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.queue.GetBroadcasts(overhead, limit)
}

func (d delegate) LocalState(bool) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	s := &clusterpb.GossipState{}
	for n := cluster.NodeID(1); n <= fsm.MaxNodes; n++ {
		if b := d.g.records[n]; b != nil {
			r := &clusterpb.GossipRecord{}
			if proto.Unmarshal(b, r) == nil {
				s.Records = append(s.Records, r)
			}
		}
	}
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	return b
}

func (d delegate) MergeRemoteState(b []byte, _ bool) { d.refused(d.g.merge(b)) }

func (g *Gossip) merge(b []byte) error {
	if len(b) > maxState {
		return fmt.Errorf("%w: a state of %d bytes", ErrTooLarge, len(b))
	}
	var s clusterpb.GossipState
	if err := proto.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	if len(s.GetRecords()) > fsm.MaxNodes {
		return fmt.Errorf("gossip: %d records", len(s.GetRecords()))
	}
	var errs []error
	for _, r := range s.GetRecords() {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err == nil {
			err = g.take(b)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (d delegate) refused(err error) {
	if err != nil {
		_, _ = d.g.lines.Write([]byte("[WARN] record refused: " + err.Error()))
	}
}

func numberOf(n *memberlist.Node) cluster.NodeID {
	i, err := strconv.Atoi(n.Name)
	if err != nil || i < 1 || i > fsm.MaxNodes || strconv.Itoa(i) != n.Name {
		return 0
	}
	return cluster.NodeID(i)
}

// NotifyAlive refuses names that are no numbers.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if numberOf(n) == 0 {
		return fmt.Errorf("%.16q is no node's number", n.Name)
	}
	return nil
}

func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	_, _ = d.g.lines.Write(fmt.Appendf(nil, "[WARN] two nodes have one number: node %s is at %s, and from=%s", existing.Name, addrOf(existing), addrOf(other)))
}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.state(n, Alive) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.state(n, Alive) }
func (d delegate) NotifyLeave(n *memberlist.Node)  { d.state(n, Dead) }

func (d delegate) state(n *memberlist.Node, s State) {
	g, id := d.g, numberOf(n)
	if id == 0 || id == g.o.Identity.Node {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.member(id)
	if s == Dead && p.Meta.leaving {
		s = Gone
	}
	if p.State != s {
		p.State, p.Since = s, time.Now()
	}
	p.Addr = addrOf(n)
	g.changed(id)
}

// say passes a line of memberlist's, or of ours, on.
func (g *Gossip) say(line string, before int) {
	level := slog.LevelDebug
	if strings.HasPrefix(line, "[ERR]") || strings.HasPrefix(line, "[WARN]") {
		level = slog.LevelWarn
	}
	line = strings.TrimPrefix(line[strings.Index(line, "]")+1:], " ")
	g.o.Log.Log(context.Background(), level, "gossip", "line", strings.TrimPrefix(line, "memberlist: "), "like_it_before", before)
}
