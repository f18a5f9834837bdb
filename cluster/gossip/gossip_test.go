package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/testkit"
)

// hurry makes memberlist find out in tenths of a second; pushPull off: what arrives
// after the join came by packets.
func hurry(c *memberlist.Config) {
	c.ProbeInterval, c.ProbeTimeout, c.GossipInterval = 100*time.Millisecond, 50*time.Millisecond, 20*time.Millisecond
	c.SuspicionMult, c.SuspicionMaxTimeoutMult, c.AwarenessMaxMultiplier = 2, 1, 2
	c.PushPullInterval = 0
}

func identities(t *testing.T, group string, n int) []*cluster.Identity {
	t.Helper()
	dir := filepath.Join(t.TempDir(), group)
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("gw%d", i+1))
	}
	if err := cluster.InitCluster(dir, group, names, time.Now()); err != nil {
		t.Fatal(err)
	}
	var ids []*cluster.Identity
	for _, name := range names {
		id, err := cluster.LoadIdentity(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func start(t *testing.T, id *cluster.Identity, bind netip.AddrPort, log *testkit.Log, peers ...netip.AddrPort) *Gossip {
	t.Helper()
	g, err := Start(Options{Identity: id, Name: id.Name, Bind: bind, Peers: func() []netip.AddrPort { return peers },
		Log: slog.New(slog.NewTextHandler(log, nil)), tune: hurry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func (g *Gossip) find(n cluster.NodeID) Member {
	for _, m := range g.Members() {
		if m.Node == n {
			return m
		}
	}
	return Member{}
}

// die ends a member without its having a say.
func (g *Gossip) die() {
	g.closed.Do(func() {
		close(g.done)
		g.wg.Wait()
		_ = g.list.Shutdown()
	})
}

// TestMembers: three members meet, say what is new, one leaves, one dies and comes
// again, each time seen by the others.
func TestMembers(t *testing.T) {
	ids, log := identities(t, "north", 3), &testkit.Log{}
	var told sync.Map
	a, err := Start(Options{Identity: ids[0], Name: "gw1", Bind: loopback, Log: slog.New(slog.NewTextHandler(log, nil)), tune: hurry,
		Notify: func(m Member) { told.Store(m.Node, m) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	b, c := start(t, ids[1], loopback, log, a.Addr()), start(t, ids[2], loopback, log, a.Addr())
	all := []*Gossip{a, b, c}
	testkit.Until(t, "all know all", func() bool {
		for _, g := range all {
			for n := cluster.NodeID(1); n <= 3; n++ {
				if m := g.find(n); m.State != Alive || m.Meta.Name != fmt.Sprintf("gw%d", n) || m.Self != (g.o.Identity.Node == n) {
					return false
				}
			}
		}
		return true
	})
	if m := a.find(2); m.Addr != b.Addr() {
		t.Errorf("the second is at %v, not %v", m.Addr, b.Addr())
	}

	meta := Meta{Name: "gw2", Build: "v1.2.3", LogMin: 1, LogMax: 2, Features: 5, Config: bytes.Repeat([]byte{7}, DigestLen),
		Owned: 8, Tunnels: 1000, Packets: 2_000_000, Scopes: map[cluster.ScopeID]uint64{0: 9, fsm.Slot(2, 0): 1, fsm.Slot(16, 7): ^uint64(0)}}
	if err := b.SetMeta(meta); err != nil {
		t.Fatal(err)
	}
	same := func(m Meta) bool {
		return m.Name == meta.Name && m.Build == meta.Build && m.LogMin == meta.LogMin && m.LogMax == meta.LogMax && m.Features == meta.Features &&
			bytes.Equal(m.Config, meta.Config) && m.Owned == meta.Owned && m.Tunnels == meta.Tunnels && m.Packets == meta.Packets && maps.Equal(m.Scopes, meta.Scopes)
	}
	testkit.Until(t, "the others know what the second says", func() bool { return same(a.find(2).Meta) && same(c.find(2).Meta) })
	testkit.Until(t, "who wants to be told is", func() bool { m, ok := told.Load(cluster.NodeID(2)); return ok && same(m.(Member).Meta) })
	version := b.find(2).Version
	if err := b.SetMeta(meta); err != nil || b.find(2).Version != version {
		t.Errorf("what is no news is said again: %v", err)
	}

	if err := c.Close(); err != nil {
		t.Error(err)
	}
	testkit.Until(t, "the third has left", func() bool { return a.find(3).State == Gone && b.find(3).State == Gone })
	b.die()
	testkit.Until(t, "the second is dead", func() bool { return a.find(2).State == Dead })
	if m := a.find(2); m.Meta.Tunnels != 1000 {
		t.Errorf("what it said last is forgotten: %+v", m)
	}
	again := start(t, ids[1], b.Addr(), log, a.Addr())
	testkit.Until(t, "it is back, and knows who is there", func() bool {
		return a.find(2).State == Alive && a.find(2).Meta.Tunnels == 0 && again.find(1).State == Alive && again.find(1).Meta.Name == "gw1"
	})
}

// TestLargestRecord: a record of the greatest length goes out in a packet; a longer
// one is refused, because it never would.
func TestLargestRecord(t *testing.T) {
	ids, log := identities(t, "north", 2), &testkit.Log{}
	a := start(t, ids[0], loopback, log)
	b := start(t, ids[1], loopback, log, a.Addr())
	testkit.Until(t, "they have met", func() bool { return a.find(2).Version > 0 && b.find(1).Version > 0 })

	m := Meta{Name: strings.Repeat("n", 35), Build: strings.Repeat("b", 40), LogMin: 1 << 20, LogMax: 1 << 20, Features: 1 << 40,
		Config: make([]byte, DigestLen), Owned: maxScopes, Tunnels: 100_000, Packets: 100_000_000, Scopes: map[cluster.ScopeID]uint64{}}
	for n := cluster.NodeID(1); n <= fsm.MaxNodes; n++ {
		for k := range fsm.SlotsPerMember {
			m.Scopes[fsm.Slot(n, k)] = ^uint64(0)
		}
	}
	if err := b.SetMeta(m); err != nil {
		t.Fatalf("a member of the largest farm that holds everything cannot say so: %v", err)
	}
	fits := func(n int) []byte {
		m.Name = strings.Repeat("n", n)
		r, err := encode(2, b.version+1, &m)
		if err != nil && !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
		return r
	}
	length := 35
	for length < maxName && len(fits(length+1)) > 0 {
		length++
	}
	if n := len(fits(length)); n != MaxRecord && length != maxName {
		t.Fatalf("%d bytes with a name of %d", n, length)
	}
	m.Build += strings.Repeat("b", min(maxBuild-len(m.Build), MaxRecord-len(fits(length))))
	for len(fits(length)) < MaxRecord {
		m.Features <<= 7
	}
	if n := len(fits(length)); n != MaxRecord {
		t.Fatalf("the test cannot make a record of %d bytes, only %d", MaxRecord, n)
	}
	if err := b.SetMeta(m); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "the largest record arrives", func() bool { return len(a.find(2).Meta.Name) == length && a.find(2).Meta.Build == m.Build })

	before := b.find(2).Version
	m.Features = 1 << 63
	if err := b.SetMeta(m); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a record that is too long: %v", err)
	}
	if b.find(2).Version != before {
		t.Error("it takes the place of the one before")
	}
}

// TestOthersAreRefused: a member of another cluster, packets under another key, and a
// stranger on the stream's port: nobody gets in or an answer, and each is said once.
func TestOthersAreRefused(t *testing.T) {
	ours, theirs := identities(t, "north", 2), identities(t, "south", 2)
	log, other := &testkit.Log{}, &testkit.Log{}
	a := start(t, ours[0], loopback, log)
	foreign := start(t, theirs[1], loopback, other, a.Addr())
	testkit.Until(t, "its stream is refused", func() bool { return len(log.With("refused:", "from=127.0.0.1:")) == 1 })

	key := foreign.list
	to, err := key.Join([]string{a.Addr().String()})
	if err == nil || to != 0 {
		t.Fatal("a member of another cluster joins")
	}
	u, err := net.Dial("udp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for range 20 {
		if err := foreign.list.SendToAddress(memberlist.Address{Addr: a.Addr().String(), Name: "1"}, []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, "its packets are refused", func() bool { return len(log.With("Decrypt packet failed")) == 1 })

	c, err := net.Dial("tcp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(bytes.Repeat([]byte{9}, 64)); err != nil {
		t.Fatal(err)
	}
	// TLS says at most that it does not understand.
	got := make([]byte, 64)
	if n, err := c.Read(got); err == nil && (n > 7 || got[0] != 21) {
		t.Errorf("a stranger is answered: %x", got[:n])
	}

	// All of ours go on, and the refused are still said once each.
	b := start(t, ours[1], loopback, log, a.Addr())
	testkit.Until(t, "ours meet", func() bool { return a.find(2).State == Alive && b.find(1).State == Alive })
	if n := len(log.With("Decrypt packet failed")); n != 1 {
		t.Errorf("%d lines about packets:\n%s", n, log)
	}
	if len(foreign.Members()) != 1 {
		t.Errorf("the other cluster's member knows %+v", foreign.Members())
	}
}

// TestTwoOfOneNumber: the second to come is refused, and that is said.
func TestTwoOfOneNumber(t *testing.T) {
	ids, log := identities(t, "north", 2), &testkit.Log{}
	a := start(t, ids[0], loopback, log)
	b := start(t, ids[1], loopback, log, a.Addr())
	testkit.Until(t, "they have met", func() bool { return a.find(2).State == Alive && b.find(1).State == Alive })
	start(t, ids[1], loopback, &testkit.Log{}, a.Addr())
	testkit.Until(t, "the second of that number is told apart", func() bool { return len(log.With("two nodes have one number")) > 0 })
	if m := a.find(2); m.Addr != b.Addr() {
		t.Errorf("it took the place of the first: %+v", m)
	}
}

// TestEarlierLife: a record of an earlier life that is ahead of ours gives way.
func TestEarlierLife(t *testing.T) {
	ids, log := identities(t, "north", 2), &testkit.Log{}
	a := start(t, ids[0], loopback, log)
	old, err := encode(2, uint64(time.Now().Add(240*time.Hour).UnixMilli()), &Meta{Name: "earlier"})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.take(old); err != nil {
		t.Fatal(err)
	}
	start(t, ids[1], loopback, log, a.Addr())
	testkit.Until(t, "the new life counts", func() bool { return a.find(2).Meta.Name == "gw2" })
}

func FuzzRecord(f *testing.F) {
	b, _ := encode(3, 7, &Meta{Name: "gw3", Config: make([]byte, DigestLen), Scopes: map[cluster.ScopeID]uint64{1: 2, 16: 3}})
	f.Add(b)
	f.Add([]byte{})
	f.Add(append([]byte{8, 1, 16, 3}, 0x6a, 2, 5, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, v, m, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(n, v, m)
		if err != nil {
			return // a record that only a newer build fits into a packet
		}
		n2, v2, m2, err := decode(again)
		if err != nil || n2 != n || v2 != v || m2.Name != m.Name || !maps.Equal(m2.Scopes, m.Scopes) || !bytes.Equal(m2.Config, m.Config) {
			t.Fatalf("%+v is %+v, %v", m, m2, err)
		}
	})
}

// FuzzState: what comes over a stream is bounded, and never makes us give way about ourselves.
func FuzzState(f *testing.F) {
	r, _ := encode(3, 7, &Meta{Name: "gw3"})
	f.Add(append([]byte{10, byte(len(r))}, r...))
	f.Add([]byte{10, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		g := &Gossip{o: Options{Identity: &cluster.Identity{Node: 1}}, members: map[cluster.NodeID]*Member{}, records: map[cluster.NodeID][]byte{},
			queue: &memberlist.TransmitLimitedQueue{RetransmitMult: 1, NumNodes: func() int { return 1 }}, version: 5, self: Meta{Name: "us"}}
		_ = g.merge(b)
		if len(g.members) > fsm.MaxNodes {
			t.Fatalf("%d members", len(g.members))
		}
		if p := g.members[1]; p != nil && p.Version != 0 && p.Meta.Name != "us" {
			t.Fatalf("somebody says of us: %+v", p)
		}
	})
}
