package statesync

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	"tandem/xfrm"
)

// What a journal and its replicas do to each other over links that lose, repeat and
// break: whatever is committed is held by every member that counts, and once the
// network is whole every replica equals the owner.

type history2 struct {
	rnd     *rand.Rand
	now     time.Time
	j       *Journal
	led     *Ledger
	epoch   cluster.Epoch
	state   map[ipsec.IKESPIs]uint64 // SPIs → ticket of the last record; 0: gone
	bounds  map[ipsec.ESPSPI]uint64
	last    uint64
	records map[uint64][]ipsec.IKESPIs
	done    uint64                   // highest committed ticket
	safe    map[ipsec.IKESPIs]uint64 // SPIs → highest committed ticket
	members []*remote

	valid    []cluster.Epoch         // that guardians entitle for and succeed from
	renewing map[cluster.NodeID]bool // whose RenewedBy is awaited
	behind   map[cluster.NodeID]bool // who did not stay, and has not left
	count    struct{ renewals, flying, behind, announced, refused int }
	trace    []string
}

// remote is a member: its process, its replica, and the two links to it.
type remote struct {
	h        *history2
	node     cluster.NodeID
	process  cluster.ProcessID
	r        *Replica
	led      *Ledger
	state    map[ipsec.IKESPIs]uint64
	bounds   map[ipsec.ESPSPI]uint64
	named    map[ipsec.IKESPIs]bool // during a copy
	asked    *cluster.Epoch         // for our entitlement
	entitled cluster.Epoch          // the guardian's answer; zero: none
	removed  uint64                 // frames up to here entitle to nothing: the member has left
	taken    SendFrame              // last frame
	renewed  bool                   // by it

	unacked []SendFrame // at the sender's stream
	acked   uint64      // highest acknowledgement given
	links   [2]wire
}

// wire is one link: frames one way, acknowledgements the other, in order.
type wire struct {
	up     bool
	frames []SendFrame
	acks   []SendAck
}

func (h *history2) note(format string, a ...any) {
	h.trace = append(h.trace, fmt.Sprintf(format, a...))
}

func (h *history2) drain() error {
	for {
		e, ok := h.j.Poll()
		if !ok {
			return nil
		}
		switch e := e.(type) {
		case SendFrame:
			m := h.member(e.Node)
			if e.Process != m.process {
				continue
			}
			if e.Restart {
				m.unacked = nil
			}
			m.unacked = append(m.unacked, e)
			for i := range m.links {
				if m.links[i].up {
					m.links[i].frames = append(m.links[i].frames, e)
				}
			}
		case Committed:
			h.note("committed %d", e.Ticket)
			if e.Ticket <= h.done {
				return fmt.Errorf("ticket %d committed after %d", e.Ticket, h.done)
			}
			h.done = e.Ticket
			for _, s := range h.records[e.Ticket] {
				h.safe[s] = e.Ticket
			}
			for _, n := range h.j.SyncSet() {
				m := h.member(n)
				for _, s := range h.records[e.Ticket] {
					if m.state[s] < e.Ticket {
						return fmt.Errorf("ticket %d is committed, node %d holds %d of %v", e.Ticket, n, m.state[s], s)
					}
				}
			}
		case BoundsEffective:
			for _, n := range h.j.SyncSet() {
				for _, b := range e.Bounds {
					if m := h.member(n); m.bounds[b.SPIIn] < b.N {
						return fmt.Errorf("bound %v is effective, node %d holds %d", b, n, m.bounds[b.SPIIn])
					}
				}
			}
		case Overflow:
			h.note("overflow %d", e.Node)
			h.leave(h.member(e.Node))
		case Entered:
			delete(h.renewing, e.Node)
			h.announce()
		case RenewedBy:
			h.note("renewed by %d", e.Node)
			if m := h.member(e.Node); m.entitled != h.epoch {
				return fmt.Errorf("node %d renewed, entitled at %v, the epoch is %v", e.Node, m.entitled, h.epoch)
			}
			delete(h.renewing, e.Node)
			h.announce()
		}
	}
}

func (h *history2) member(n cluster.NodeID) *remote { return h.members[n-2] }

func (h *history2) append() error {
	h.last++
	var entries []Entry
	var spis []ipsec.IKESPIs
	for range 1 + h.rnd.IntN(3) {
		s := ipsec.IKESPIs{I: ipsec.IKESPI(1 + h.rnd.IntN(12))}
		if slices.Contains(spis, s) {
			continue
		}
		spis = append(spis, s)
		h.state[s] = h.last
		entries = append(entries, h.entry(s))
	}
	h.records[h.last] = spis
	h.note("append %d %v", h.last, spis)
	h.j.Append(h.now, h.last, entries)
	return h.drain()
}

// entry encodes the ticket; the size varies so that queues fill.
func (h *history2) entry(s ipsec.IKESPIs) Entry {
	v := fmt.Appendf(nil, "%d %s", h.state[s], strings.Repeat("x", h.rnd.IntN(60)))
	return Entry{SPIs: s, Value: v}
}

func (h *history2) raise() error {
	var bs []xfrm.Bound
	for range 1 + h.rnd.IntN(4) {
		spi := ipsec.ESPSPI(300 + h.rnd.IntN(5))
		h.bounds[spi]++
		bs = append(bs, ceiling(spi, h.bounds[spi]))
	}
	h.j.SetBounds(h.now, bs)
	return h.drain()
}

func (h *history2) join(m *remote) error {
	var entries []Entry
	for _, s := range slices.SortedFunc(maps.Keys(h.state), func(a, b ipsec.IKESPIs) int { return int(a.I) - int(b.I) }) {
		entries = append(entries, h.entry(s))
	}
	var bs []xfrm.Bound
	for _, spi := range slices.Sorted(maps.Keys(h.bounds)) {
		bs = append(bs, ceiling(spi, h.bounds[spi]))
	}
	h.note("join %d", m.node)
	delete(h.behind, m.node)
	h.j.Join(h.now, m.node, m.process, entries, bs)
	return h.drain()
}

func (m *remote) start(process cluster.ProcessID) {
	m.process = process
	m.led = NewLedger(chance(uint64(process)))
	m.r = NewReplica(process, m.led)
	m.state, m.bounds = map[ipsec.IKESPIs]uint64{}, map[ipsec.ESPSPI]uint64{}
	m.asked, m.unacked, m.acked, m.named = nil, nil, 0, nil
	m.entitled, m.removed, m.taken, m.renewed = cluster.Epoch{}, 0, SendFrame{}, false
	m.cut(0)
	m.cut(1)
}

func (m *remote) cut(i int) { m.links[i] = wire{} }

// connect opens a link: the hello tells what was acknowledged, the rest is sent again.
func (m *remote) connect(i int) error {
	m.links[i] = wire{up: true, frames: slices.Clone(m.unacked)}
	m.forget(m.acked)
	m.h.j.HandleAck(m.h.now, m.node, m.process, m.acked)
	return m.h.drain()
}

func (m *remote) forget(acked uint64) {
	for len(m.unacked) > 0 && m.unacked[0].Seq <= acked {
		m.unacked = m.unacked[1:]
	}
}

// receive delivers the first frame of a link.
func (m *remote) receive(i int) error {
	l := &m.links[i]
	if len(l.frames) == 0 {
		return nil
	}
	f := l.frames[0]
	l.frames = l.frames[1:]
	before := m.r.epoch
	err := m.r.HandleFrame(m.h.now, 1, ownerProcess, f.Frame)
	m.taken = f
	m.h.note("node %d link %d frame %d: %v", m.node, i, f.Seq, err)
	if errors.Is(err, ErrGap) || errors.Is(err, ErrNoCopy) {
		m.cut(i)
	} else if err != nil && !errors.Is(err, ErrOldEpoch) {
		return err
	}
	if err := m.drain(); err != nil || !m.renewed {
		return err
	}
	m.renewed = false
	return m.refusesOld(before)
}

// refusesOld tries the next frame under the epoch before a renewal.
func (m *remote) refusesOld(before cluster.Epoch) error {
	x := new(syncpb.Frame)
	if err := proto.Unmarshal(m.taken.Frame, x); err != nil {
		return err
	}
	x.Seq++
	x.EpochCounter, x.EpochNode = before.Counter, uint32(before.Node)
	x.Events = []*syncpb.Frame_Event{record(&syncpb.Frame_Entry{SpiI: 1, Value: []byte("999999 old")})}
	if err := m.r.HandleFrame(m.h.now, 1, ownerProcess, marshal(x)); !errors.Is(err, ErrOldEpoch) {
		return fmt.Errorf("node %d takes a frame of %v after %v: %v", m.node, before, m.r.epoch, err)
	}
	m.h.count.refused++
	return m.drain()
}

func (m *remote) drain() error {
	for {
		e, ok := m.r.Poll()
		if !ok {
			return nil
		}
		switch e := e.(type) {
		case CopyBegins:
			m.named, m.asked = map[ipsec.IKESPIs]bool{}, nil
		case ApplyRecord:
			for _, x := range e.Entries {
				var t uint64
				if _, err := fmt.Sscanf(string(x.Value), "%d", &t); err != nil {
					return err
				}
				if t < m.state[x.SPIs] {
					return fmt.Errorf("node %d: %v goes back from %d to %d", m.node, x.SPIs, m.state[x.SPIs], t)
				}
				m.state[x.SPIs] = t
				if m.named != nil {
					m.named[x.SPIs] = true
				}
			}
		case ApplyBounds:
			for _, b := range e.Bounds {
				m.bounds[b.SPIIn] = b.N
			}
		case CopyComplete:
			maps.DeleteFunc(m.state, func(s ipsec.IKESPIs, _ uint64) bool { return !m.named[s] })
			m.named = nil
			m.ask(e.Epoch)
		case Renewed:
			m.renewed = true
			m.ask(e.Epoch)
		case SendAck:
			m.acked = e.Seq
			for i := range m.links {
				if m.links[i].up {
					m.links[i].acks = append(m.links[i].acks, e)
				}
			}
		}
	}
}

func (m *remote) answer(i int) error {
	l := &m.links[i]
	if len(l.acks) == 0 {
		return nil
	}
	a := l.acks[0]
	l.acks = l.acks[1:]
	m.forget(a.Seq)
	m.h.j.HandleAck(m.h.now, m.node, m.process, a.Seq)
	return m.h.drain()
}

// ask asks the guardian, unless what asks was sent before we were taken out.
func (m *remote) ask(e cluster.Epoch) {
	if m.taken.Seq > m.removed {
		m.asked = &e
	}
}

// confirm is the guardian's answer.
func (m *remote) confirm() error {
	if m.asked == nil {
		return nil
	}
	e := *m.asked
	m.asked = nil
	if !slices.Contains(m.h.valid, e) {
		return nil
	}
	m.entitled = e
	m.h.note("node %d entitled at %v", m.node, e)
	m.r.ConfirmEntryAt(e)
	return m.drain()
}

// renew goes on under a later epoch with some of the members.
func (h *history2) renew() error {
	var stay []cluster.NodeID
	for _, m := range h.members {
		if h.rnd.IntN(3) > 0 {
			stay = append(stay, m.node)
		}
	}
	h.epoch = h.epoch.Next(1)
	h.valid = append(h.valid, h.epoch)
	h.note("renew %v with %v of %v", h.epoch, stay, h.j.SyncSet())
	h.renewing = map[cluster.NodeID]bool{}
	for _, n := range h.j.SyncSet() {
		if slices.Contains(stay, n) && !h.behind[n] {
			h.renewing[n] = true
		} else {
			h.behind[n] = true
			h.count.behind++
		}
	}
	h.count.renewals++
	if h.j.waiting.len() > 0 {
		h.count.flying++
	}
	h.j.Renew(h.now, h.epoch, stay)
	if err := h.drain(); err != nil {
		return err
	}
	h.announce()
	return h.drain()
}

// announce ends the epochs before once all who stay have followed: only then do the
// others leave.
func (h *history2) announce() {
	if len(h.renewing) > 0 || len(h.valid) == 1 {
		return
	}
	h.note("announced %v", h.epoch)
	h.count.announced++
	h.valid = []cluster.Epoch{h.epoch}
	for _, n := range slices.Sorted(maps.Keys(h.behind)) {
		h.leave(h.member(n))
	}
}

// leave takes a member out, after its guardian has given up the entitlement.
func (h *history2) leave(m *remote) {
	h.note("leave %d", m.node)
	m.entitled, m.asked = cluster.Epoch{}, nil
	if p := h.j.find(m.node); p != nil && p.process == m.process {
		m.removed = p.seq
	}
	delete(h.behind, m.node)
	delete(h.renewing, m.node)
	h.j.Leave(h.now, m.node)
	h.announce()
}

// lost looks for a member that could succeed without something that is committed.
func (h *history2) lost() error {
	for _, m := range h.members {
		if !slices.Contains(h.valid, m.entitled) {
			continue
		}
		for s, t := range h.safe {
			if m.state[s] < t {
				return fmt.Errorf("node %d could succeed from %v with %d of %v, of which %d is committed", m.node, m.entitled, m.state[s], s, t)
			}
		}
	}
	return nil
}

func (h *history2) step() error {
	m := h.members[h.rnd.IntN(len(h.members))]
	i := h.rnd.IntN(2)
	h.now = h.now.Add(time.Millisecond)
	switch op := h.rnd.IntN(100); {
	case op < 16:
		return h.append()
	case op < 18:
		return h.renew()
	case op < 26:
		return h.raise()
	case op < 55:
		return m.receive(i)
	case op < 75:
		return m.answer(i)
	case op < 80:
		m.cut(i)
	case op < 88:
		return m.connect(i)
	case op < 93:
		return m.confirm()
	case op < 95:
		return h.join(m)
	case op < 97:
		h.leave(m)
		return h.drain()
	case op < 98:
		h.note("restart %d", m.node)
		h.leave(m)
		m.start(m.process + 16)
		return h.drain()
	case op < 99:
		h.j.Stop()
		h.epoch = h.epoch.Next(1)
		h.j.Start(h.now, h.epoch)
		h.valid = []cluster.Epoch{h.epoch} // whoever was entitled before is not any more
		h.renewing, h.behind = map[cluster.NodeID]bool{}, map[cluster.NodeID]bool{}
		h.note("epoch %v", h.epoch)
		return h.drain()
	}
	return nil
}

// settle makes the network whole, brings everybody in and delivers everything.
func (h *history2) settle() error {
	for _, m := range h.members {
		if err := h.join(m); err != nil {
			return err
		}
		m.cut(0)
		if err := m.connect(1); err != nil {
			return err
		}
	}
	for range 100_000 {
		idle := true
		for _, m := range h.members {
			idle = idle && len(m.links[1].frames) == 0 && len(m.links[1].acks) == 0 && m.asked == nil
			for _, f := range []func() error{func() error { return m.receive(1) }, m.confirm, func() error { return m.answer(1) }} {
				if err := f(); err != nil {
					return err
				}
			}
		}
		if idle {
			break
		}
	}
	if len(h.j.SyncSet()) != len(h.members) {
		return fmt.Errorf("sync set %v at the end", h.j.SyncSet())
	}
	if h.j.Pending() || h.j.waiting.len() > 0 {
		return errors.New("something is unacknowledged at the end")
	}
	for _, m := range h.members {
		if !maps.Equal(m.state, h.state) || !maps.Equal(m.bounds, h.bounds) {
			return fmt.Errorf("node %d holds %v %v, the owner %v %v", m.node, m.state, m.bounds, h.state, h.bounds)
		}
	}
	return nil
}

func TestJournalAndReplicasInRandomHistories(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 300
	}
	committed, overflowed := uint64(0), 0
	renewals, flying, behind, announced, refused := 0, 0, 0, 0, 0
	for seed := range uint64(n) {
		led := NewLedger(chance(seed))
		limit := 1 << 20
		if seed%4 == 0 {
			limit = 2000
		}
		h := &history2{rnd: rand.New(chance(seed)), now: t0, led: led, j: NewJournal(ownerProcess, led, limit),
			epoch: epoch1, state: map[ipsec.IKESPIs]uint64{}, bounds: map[ipsec.ESPSPI]uint64{}, records: map[uint64][]ipsec.IKESPIs{},
			safe: map[ipsec.IKESPIs]uint64{}, valid: []cluster.Epoch{epoch1}, renewing: map[cluster.NodeID]bool{}, behind: map[cluster.NodeID]bool{}}
		h.j.Start(h.now, h.epoch)
		for i := range 1 + int(seed%3) {
			m := &remote{h: h, node: cluster.NodeID(2 + i)}
			m.start(cluster.ProcessID(0x100 + i))
			h.members = append(h.members, m)
		}
		var err error
		for i := 0; i < 300 && err == nil; i++ {
			if seed%2 == 1 && i%75 == 0 {
				err = h.settle() // or few would be in for long
			}
			if err == nil {
				err = h.step()
			}
			if err == nil {
				err = h.lost()
			}
		}
		if err == nil {
			err = h.settle()
		}
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(h.trace[max(0, len(h.trace)-40):], "\n"))
		}
		committed += h.done
		renewals, flying, behind = renewals+h.count.renewals, flying+h.count.flying, behind+h.count.behind
		announced, refused = announced+h.count.announced, refused+h.count.refused
		for _, l := range h.trace {
			if strings.HasPrefix(l, "overflow") {
				overflowed++
			}
		}
	}
	if committed == 0 || overflowed == 0 {
		t.Errorf("the histories are too tame: %d committed, %d overflows", committed, overflowed)
	}
	t.Logf("%d committed, %d overflows, %d renewals, %d with records in flight; %d left behind, %d announced, %d old frames refused", committed, overflowed, renewals, flying, behind, announced, refused)
	if flying < n/4 || behind < n/4 || announced < n/4 || refused < n/4 {
		t.Errorf("the renewals are too tame: %d, %d with records in flight; %d left behind, %d announced, %d old frames refused", renewals, flying, behind, announced, refused)
	}
}
