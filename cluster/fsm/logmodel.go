package fsm

import (
	"slices"
	"time"
)

// LogModel stands in for the agreed log in a simulation: proposals travel to a
// leader, get lost, are repeated, overtake one another, die with the leader or
// survive it; what is committed reaches every member in one order. It promises what
// Raft promises and no more. The same random numbers give the same log.
type LogModel struct {
	opt     LogOptions
	log     [][]byte
	leader  NodeID    // 0: there is none
	term    int       // of the leader
	vacant  time.Time // when the next election may succeed
	members []*logMember
	pending []logMessage // by due, then in order of sending
}

// LogOptions configure a LogModel.
type LogOptions struct {
	Voters []NodeID
	// Rand gives a number in [0, n).
	Rand func(n int) int
	// Reach says whether two members that are up reach one another now. nil: always.
	Reach func(a, b NodeID) bool
	// Loss and Repeat are chances of a proposal, in thousandths.
	Loss, Repeat int
	// MinDelay and MaxDelay bound every message; Election is how long a lost leader is missed.
	MinDelay, MaxDelay, Election time.Duration
}

// Delivery is an entry that a member applies now. Index counts from 1.
type Delivery struct {
	To    NodeID
	Index uint64
	Entry []byte
}

type logMember struct {
	id   NodeID
	up   bool
	next uint64 // index of the entry to be delivered
	due  time.Time
}

type logMessage struct {
	due      time.Time
	from     NodeID
	entry    []byte
	appended bool // at the leader of term, not yet committed
	term     int
}

// NewLogModel is an empty log with its first election due at once.
func NewLogModel(now time.Time, o LogOptions) *LogModel {
	l := &LogModel{opt: o, vacant: now}
	for _, v := range o.Voters {
		l.SetUp(v, true)
	}
	return l
}

// SetUp starts or stops a member; a new one joins with its first start.
func (l *LogModel) SetUp(n NodeID, up bool) {
	l.member(n).up = up
}

// Rewind makes a member go on after the entry of that index: it was restored from
// a snapshot, or from nothing.
func (l *LogModel) Rewind(n NodeID, index uint64) { l.member(n).next = index + 1 }

// Leader is the present one; 0: there is none.
func (l *LogModel) Leader() NodeID { return l.leader }

// Entry is a committed one; Len how many there are.
func (l *LogModel) Entry(index uint64) []byte { return l.log[index-1] }
func (l *LogModel) Len() uint64               { return uint64(len(l.log)) }

func (l *LogModel) member(n NodeID) *logMember {
	i, ok := slices.BinarySearchFunc(l.members, n, func(m *logMember, n NodeID) int { return int(m.id) - int(n) })
	if !ok {
		l.members = slices.Insert(l.members, i, &logMember{id: n, next: 1})
	}
	return l.members[i]
}

func (l *LogModel) reach(a, b NodeID) bool {
	return l.member(a).up && l.member(b).up && (a == b || l.opt.Reach == nil || l.opt.Reach(a, b))
}

// HasQuorum says whether a majority of voters is within reach of the member.
func (l *LogModel) HasQuorum(n NodeID) bool {
	k := 0
	for _, v := range l.opt.Voters {
		if l.reach(n, v) {
			k++
		}
	}
	return 2*k > len(l.opt.Voters)
}

func (l *LogModel) delay() time.Duration {
	d := l.opt.MaxDelay - l.opt.MinDelay
	return l.opt.MinDelay + time.Duration(l.opt.Rand(int(d/time.Microsecond)+1))*time.Microsecond
}

// Propose sends an entry towards the leader; nobody says what becomes of it.
func (l *LogModel) Propose(now time.Time, from NodeID, entry []byte) {
	if l.opt.Rand(1000) >= l.opt.Loss {
		l.send(logMessage{due: now.Add(l.delay()), from: from, entry: entry})
	}
	if l.opt.Rand(1000) < l.opt.Repeat {
		l.send(logMessage{due: now.Add(l.delay() + l.delay()), from: from, entry: entry})
	}
}

func (l *LogModel) send(m logMessage) {
	i := len(l.pending)
	for i > 0 && m.due.Before(l.pending[i-1].due) {
		i--
	}
	l.pending = slices.Insert(l.pending, i, m)
}

// Step does what is due and returns what is delivered, in order.
func (l *LogModel) Step(now time.Time) (out []Delivery) {
	l.elect(now)
	for len(l.pending) > 0 && !l.pending[0].due.After(now) {
		m := l.pending[0]
		l.pending = slices.Delete(l.pending, 0, 1)
		switch {
		case !m.appended && l.leader != 0 && l.reach(m.from, l.leader):
			m.appended, m.term, m.due = true, l.term, now.Add(l.delay())
			l.send(m)
		case !m.appended:
		case l.leader == 0: // it waits in the logs of some
			m.due = now.Add(l.opt.Election)
			l.send(m)
		case m.term == l.term || l.opt.Rand(2) == 0: // the new leader has it, or not
			l.log = append(l.log, m.entry)
		}
	}
	for _, m := range l.members {
		if l.leader == 0 || !l.reach(l.leader, m.id) || m.next > l.Len() || now.Before(m.due) {
			continue
		}
		for k := 1 + l.opt.Rand(16); k > 0 && m.next <= l.Len(); k-- {
			out = append(out, Delivery{m.id, m.next, l.log[m.next-1]})
			m.next++
		}
		m.due = now.Add(l.delay())
	}
	return out
}

// elect drops a leader that has lost its majority, and finds one that has one.
func (l *LogModel) elect(now time.Time) {
	if l.leader != 0 {
		if l.HasQuorum(l.leader) {
			return
		}
		l.leader, l.vacant = 0, now.Add(l.opt.Election)
	}
	if now.Before(l.vacant) {
		return
	}
	var able []NodeID
	for _, v := range l.opt.Voters {
		if l.HasQuorum(v) {
			able = append(able, v)
		}
	}
	if len(able) > 0 {
		l.leader = able[l.opt.Rand(len(able))]
		l.term++
	}
}

// Depose makes the leader step down, as a leadership transfer or a slow disk would.
func (l *LogModel) Depose(now time.Time) { l.leader, l.vacant = 0, now.Add(l.opt.Election) }

// NextTimeout is when Step has something to do, provided that nobody starts, stops
// or comes within reach before.
func (l *LogModel) NextTimeout() (t time.Time, ok bool) {
	first := func(u time.Time) {
		if !ok || u.Before(t) {
			t, ok = u, true
		}
	}
	if len(l.pending) > 0 {
		first(l.pending[0].due)
	}
	switch {
	case l.leader == 0:
		for _, v := range l.opt.Voters {
			if l.HasQuorum(v) {
				first(l.vacant)
				break
			}
		}
	default:
		for _, m := range l.members {
			if m.next <= l.Len() && l.reach(l.leader, m.id) {
				first(m.due)
			}
		}
	}
	return t, ok
}
