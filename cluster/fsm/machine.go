package fsm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"tandem/proto/clusterpb"
)

// Machine is the state. It is not safe for concurrent use.
type Machine struct {
	version   uint32
	unfit     error
	applied   uint64
	floor     uint64 // no epoch is promised beneath it
	nextRange RangeID
	spiCursor uint32 // SPIs are used up before any is used again
	stop      bool
	config    ConfigRevision
	members   []Member  // by node
	scopes    []Scope   // by ID
	ranges    []Range   // by space and first number
	sessions  []session // by node

	min, max uint32 // log versions of this build
}

// session is what is remembered of a proposer.
type session struct {
	node          NodeID
	life, highest uint64
	outcomes      []outcome // of its latest commands, by seq
}

type outcome struct {
	seq   uint64
	code  Code
	value uint64
}

// Code says what became of a command.
type Code uint8

const (
	Done       Code = 1 + iota
	Unchanged       // it is so already
	Malformed       // no command, or out of bounds: not remembered
	Superseded      // a later command of the proposer came before; Result.Value is the life remembered
	TooNew          // needs a log version that not all members understand
	Unknown         // there is no such member, scope or range
	NotYours        // another node must say this
	OldEpoch        // the scope has moved on
	Refused         // the state does not permit it
	Exhausted       // nothing is left to give
	lastCode
)

var codes = [...]string{"", "done", "unchanged", "malformed", "superseded", "too new", "unknown", "not yours", "old epoch", "refused", "exhausted"}

func (c Code) String() string {
	if c > 0 && int(c) < len(codes) {
		return codes[c]
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// Result is the answer to a command, the same on every member.
type Result struct {
	Code     Code
	Why      string    // for people, when it was not done
	Repeated bool      // it was carried out before; Code and Value are of that time
	Value    uint64    // DelegateRange, MoveRange: the range's ID
	Scopes   []ScopeID // that have changed
}

// OK says that what the command wants is so.
func (r Result) OK() bool { return r.Code == Done || r.Code == Unchanged }

func refuse(c Code, format string, args ...any) Result {
	return Result{Code: c, Why: fmt.Sprintf(format, args...)}
}

// New is the state before the first entry.
func New() *Machine { return NewBuild(MinVersion, MaxVersion) }

// NewBuild is a machine of a build that understands other log versions.
func NewBuild(lowest, highest uint32) *Machine {
	return &Machine{version: 1, nextRange: 1, spiCursor: firstSPI, min: lowest, max: highest}
}

// Subject is what a command is about: of two with the same subject that wait to be
// decided, one is enough.
func Subject(c *clusterpb.Command) string {
	var of any
	switch x := c.GetWhat().(type) {
	case *clusterpb.Command_SetSyncSet:
		of = x.SetSyncSet.GetScope()
	case *clusterpb.Command_TakeOver:
		of = x.TakeOver.GetScope()
	case *clusterpb.Command_Decline:
		of = x.Decline.GetScope()
	case *clusterpb.Command_RenewTerm:
		of = x.RenewTerm.GetScope()
	case *clusterpb.Command_ReportLoss:
		of = x.ReportLoss.GetNode()
	case *clusterpb.Command_SetSuccessor:
		of = x.SetSuccessor.GetScope()
	case *clusterpb.Command_DelegateRange:
		if of = x.DelegateRange.GetSpace(); x.DelegateRange.GetProcess() != 0 {
			of = fmt.Sprintf("%d %d %x", x.DelegateRange.GetSpace(), x.DelegateRange.GetScope(), x.DelegateRange.GetFirst())
		}
	case *clusterpb.Command_ReturnRange:
		of = x.ReturnRange.GetRange()
	case *clusterpb.Command_MoveRange:
		of = x.MoveRange.GetRange()
	}
	return fmt.Sprintf("%T %v", c.GetWhat(), of)
}

// Encode is a command as an entry. A command never says more than its fields.
func Encode(c *clusterpb.Command) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		panic(err) // a name that is no UTF-8: checked where names are read
	}
	return b
}

func decode(entry []byte) (*clusterpb.Command, error) {
	if len(entry) > MaxEntry {
		return nil, fmt.Errorf("%d bytes are more than %d", len(entry), MaxEntry)
	}
	c := &clusterpb.Command{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: raised == 0}).Unmarshal(entry, c); err != nil {
		return nil, err
	}
	switch id := c.GetId(); {
	case !validNode(id.GetNode()):
		return nil, fmt.Errorf("proposer %d is no node", id.GetNode())
	case id.GetLife() == 0 || id.GetSeq() == 0:
		return nil, fmt.Errorf("the command has no ID")
	case c.GetVersion() == 0:
		return nil, fmt.Errorf("the command has no version")
	}
	return c, nil
}

func validNode(n uint32) bool { return n >= 1 && n <= MaxNodes }

// Apply carries out one entry of the log.
func (m *Machine) Apply(entry []byte) Result {
	m.applied++
	c, err := decode(entry)
	if err != nil {
		return refuse(Malformed, "%v", err)
	}
	id := c.GetId()
	s := m.session(NodeID(id.GetNode()))
	switch {
	case id.GetLife() < s.life:
		return Result{Code: Superseded, Value: s.life, Why: "from a process before the proposer's present one"}
	case id.GetLife() > s.life:
		s.life, s.highest, s.outcomes = id.GetLife(), 0, nil
	case id.GetSeq() <= s.highest:
		for _, o := range s.outcomes {
			if o.seq == id.GetSeq() {
				return Result{Code: o.code, Value: o.value, Repeated: true, Why: "carried out before"}
			}
		}
		return Result{Code: Superseded, Value: s.life, Why: "a later command of the proposer came before"}
	}
	r := m.do(c)
	slices.Sort(r.Scopes)
	r.Scopes = slices.Compact(r.Scopes)
	s.highest = id.GetSeq()
	if len(s.outcomes) == remembered {
		s.outcomes = slices.Delete(s.outcomes, 0, 1)
	}
	s.outcomes = append(s.outcomes, outcome{s.highest, r.Code, r.Value})
	return r
}

func (m *Machine) session(n NodeID) *session {
	i, ok := slices.BinarySearchFunc(m.sessions, n, func(s session, n NodeID) int { return cmp.Compare(s.node, n) })
	if !ok {
		m.sessions = slices.Insert(m.sessions, i, session{node: n})
	}
	return &m.sessions[i]
}

func (m *Machine) do(c *clusterpb.Command) Result {
	by := NodeID(c.GetId().GetNode())
	if c.GetVersion() > m.version {
		return refuse(TooNew, "the command needs log version %d, the members have agreed on %d", c.GetVersion(), m.version)
	}
	if w, ok := c.GetWhat().(*clusterpb.Command_AddMember); ok {
		return m.addMember(by, w.AddMember)
	}
	if p := m.member(by); p == nil || p.State == Left {
		return refuse(NotYours, "node %d is no member", by)
	}
	if b := c.GetBatch(); b != nil {
		return m.batch(by, b)
	}
	return m.one(by, c)
}

// Batchable says whether a command may go with others.
func Batchable(c *clusterpb.Command) bool {
	switch c.GetWhat().(type) {
	case *clusterpb.Command_SetSyncSet, *clusterpb.Command_SetSuccessor, *clusterpb.Command_TakeOver,
		*clusterpb.Command_RenewTerm, *clusterpb.Command_Decline, *clusterpb.Command_ReportLoss, *clusterpb.Command_MoveRange:
	case *clusterpb.Command_DelegateRange:
		if c.GetDelegateRange().GetProcess() == 0 { // it is told which it got
			return false
		}
	case *clusterpb.Command_ReturnRange:
		if c.GetReturnRange().GetProcess() == 0 {
			return false
		}
	default:
		return false
	}
	return c.GetId() == nil && c.GetVersion() <= 1
}

// MaxBatch bounds the commands that go together.
const MaxBatch = MaxNodes * SlotsPerMember

// batch carries out one after the other. It is done if one of them is; Why names those that
// are not.
func (m *Machine) batch(by NodeID, b *clusterpb.Batch) Result {
	cs := b.GetCommands()
	if len(cs) == 0 || len(cs) > MaxBatch || slices.ContainsFunc(cs, func(c *clusterpb.Command) bool { return !Batchable(c) }) {
		return refuse(Malformed, "%d commands, or one that cannot go with others", len(cs))
	}
	all := Result{Code: Unchanged}
	for _, c := range cs {
		r := m.one(by, c)
		all.Scopes = append(all.Scopes, r.Scopes...)
		if !r.OK() {
			all.Why = strings.TrimPrefix(all.Why+"; "+r.Why, "; ")
		}
		if r.Code == Done || all.Code == Unchanged {
			all.Code = r.Code
		}
	}
	return all
}

func (m *Machine) one(by NodeID, c *clusterpb.Command) Result {
	switch w := c.GetWhat().(type) {
	case *clusterpb.Command_PromoteVoter:
		return m.promoteVoter(w.PromoteVoter)
	case *clusterpb.Command_Drain:
		return m.drain(w.Drain)
	case *clusterpb.Command_RemoveMember:
		return m.removeMember(w.RemoveMember)
	case *clusterpb.Command_AssignSlots:
		return m.assignSlots(w.AssignSlots)
	case *clusterpb.Command_SetSyncSet:
		return m.setSyncSet(by, w.SetSyncSet)
	case *clusterpb.Command_SetSuccessor:
		return m.setSuccessor(w.SetSuccessor)
	case *clusterpb.Command_TakeOver:
		return m.takeOver(by, w.TakeOver)
	case *clusterpb.Command_RenewTerm:
		return m.renewTerm(w.RenewTerm)
	case *clusterpb.Command_Decline:
		return m.decline(by, w.Decline)
	case *clusterpb.Command_ReportLoss:
		return m.reportLoss(w.ReportLoss)
	case *clusterpb.Command_DelegateRange:
		return m.delegateRange(by, w.DelegateRange)
	case *clusterpb.Command_MoveRange:
		return m.moveRange(by, w.MoveRange)
	case *clusterpb.Command_ReturnRange:
		return m.returnRange(by, w.ReturnRange)
	case *clusterpb.Command_SetConfigRevision:
		return m.setConfigRevision(w.SetConfigRevision)
	case *clusterpb.Command_SetQuorumLoss:
		if m.stop == w.SetQuorumLoss.GetStop() {
			return Result{Code: Unchanged}
		}
		m.stop = w.SetQuorumLoss.GetStop()
		return Result{Code: Done}
	case *clusterpb.Command_SetVersion:
		return m.setVersion(w.SetVersion.GetVersion())
	}
	if r, ok := m.next(by, c); ok {
		return r
	}
	return refuse(Malformed, "the command says nothing that log version %d knows", m.version)
}

func (m *Machine) setConfigRevision(w *clusterpb.SetConfigRevision) Result {
	if len(w.GetDigest()) != DigestLen {
		return refuse(Malformed, "a digest has %d bytes, not %d", DigestLen, len(w.GetDigest()))
	}
	r := ConfigRevision{w.GetNumber(), [DigestLen]byte(w.GetDigest())}
	switch {
	case r == m.config:
		return Result{Code: Unchanged}
	case r.Number != m.config.Number+1:
		return refuse(Refused, "the revision is %d: %d does not follow it", m.config.Number, r.Number)
	}
	m.config = r
	return Result{Code: Done}
}

// setVersion raises the version of the log once every member's build understands it.
func (m *Machine) setVersion(v uint32) Result {
	switch {
	case v == m.version:
		return Result{Code: Unchanged}
	case v != m.version+1:
		return refuse(Refused, "the log version is %d: %d does not follow it", m.version, v)
	}
	for i := range m.members {
		if p := &m.members[i]; p.State != Left && (p.MaxVersion < v || p.MinVersion > v) {
			return refuse(Refused, "node %d understands versions %d to %d", p.Node, p.MinVersion, p.MaxVersion)
		}
	}
	m.version = v
	m.checkFit()
	return Result{Code: Done}
}

func (m *Machine) checkFit() {
	if m.version < m.min || m.version > m.max {
		m.unfit = fmt.Errorf("%w: it is %d, and this build understands %d to %d", ErrUnfit, m.version, m.min, m.max)
	}
}

// ErrUnfit: the log has a version that this build does not understand.
var ErrUnfit = errors.New("the members have agreed on another version of their log")

// Unfit says why this build cannot follow the log any more: an older build was
// started in place of one that had announced more. It must stop.
func (m *Machine) Unfit() error { return m.unfit }

// Proposer is whose command an entry is; 0: it is none.
func Proposer(entry []byte) NodeID {
	c, err := decode(entry)
	if err != nil {
		return 0
	}
	return NodeID(c.GetId().GetNode())
}
