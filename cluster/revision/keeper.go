package revision

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"tandem/cluster/fsm"
)

const (
	// patience with a member that heartbeats tell of and that does not say what it has.
	patience = 3 * time.Second
	// again is how long a member waits after it could not take a revision.
	again = 5 * time.Second
)

// Keeper is what one member knows of the cluster's revisions.
type Keeper struct {
	self  fsm.NodeID
	mine  State
	owns  bool
	epoch fsm.Epoch // under which it does
	since time.Time // it owns, or stopped owning

	peers   map[fsm.NodeID]*peer
	logged  bool      // a farm: its log decides
	log     *Revision // what it has decided; nil: not known yet
	logAt   time.Time // since when that is known
	retryAt time.Time
	kept    bool // what was taken last runs after a restart only
}

type peer struct {
	process uint64 // that heartbeats name
	since   time.Time
	heard   bool // its present process has said what it has
	old     bool // its build knows of no revisions
	state   State
}

// New makes the keeper of a member that has taken have and runs running. process is
// its own; logged says that it is a farm's.
func New(self fsm.NodeID, process uint64, have Revision, running Digest, logged bool) *Keeper {
	return &Keeper{self: self, mine: State{Process: process, Have: have, Running: running}, logged: logged, peers: map[fsm.NodeID]*peer{}}
}

// Mine is what this member says of itself.
func (k *Keeper) Mine() State { return k.mine }

// HandleAside: this member keeps its configuration to itself, or does no more.
func (k *Keeper) HandleAside(aside bool) { k.mine.Aside = aside }

// HandleRole: this member owns under the epoch, or does not; in a farm: the log can
// decide, or cannot.
func (k *Keeper) HandleRole(now time.Time, owns bool, e fsm.Epoch) {
	if owns != k.owns {
		k.since = now
	}
	k.owns, k.epoch = owns, e
}

// HandleLog: the farm's log has decided; the zero revision says that it has not yet.
func (k *Keeper) HandleLog(now time.Time, r Revision) {
	if k.log == nil || k.log.Number < r.Number {
		k.log, k.logAt = &r, now
	}
}

// HandlePresence: heartbeats tell of a process of the member, or of none (0).
func (k *Keeper) HandlePresence(now time.Time, n fsm.NodeID, process uint64) {
	p := k.peers[n]
	switch {
	case n == k.self:
	case process == 0:
		delete(k.peers, n)
	case p == nil || p.process != process:
		k.peers[n] = &peer{process: process, since: now}
	}
}

// HandleState: a member says what it has. It counts if its process is the present one.
func (k *Keeper) HandleState(n fsm.NodeID, s State) {
	if p := k.peers[n]; p != nil && p.process == s.Process {
		p.heard, p.old, p.state = true, false, s
	}
}

// HandleOld: a member's build does not know of revisions.
func (k *Keeper) HandleOld(n fsm.NodeID) {
	if p := k.peers[n]; p != nil {
		p.heard, p.old = true, true
	}
}

// HandleRunning: this member loaded what is of no revision.
func (k *Keeper) HandleRunning(d Digest) { k.mine.Running = d }

// Applied: this member took a revision and runs it.
func (k *Keeper) Applied(r Revision) {
	k.mine.Have, k.mine.Running = r, r.Digest
	if k.log != nil && k.log.Number < r.Number {
		k.log = &r // which this member heard before it heard of all that was decided
	}
	k.clear()
}

// Kept: this member took a revision that it will run when it starts again.
func (k *Keeper) Kept(now time.Time, r Revision, why string) {
	k.mine.Have, k.kept = r, true
	k.Failed(now, why)
}

// clear forgets what was in the way.
func (k *Keeper) clear() { k.mine.Fault, k.retryAt, k.kept = "", time.Time{}, false }

// Failed: this member could not take a revision.
func (k *Keeper) Failed(now time.Time, why string) {
	k.mine.Fault, k.retryAt = why, now.Add(again)
}

// parts calls f for every member that takes part and has been heard, by number, this one first.
func (k *Keeper) parts(f func(fsm.NodeID, *State)) {
	f(k.self, &k.mine)
	for _, n := range slices.Sorted(maps.Keys(k.peers)) {
		if p := k.peers[n]; p.heard && !p.old && !p.state.Aside {
			f(n, &p.state)
		}
	}
}

// newest is the newest revision that anybody took, or the log decided; run says that
// somebody runs it.
func (k *Keeper) newest() (r Revision, run bool) {
	if k.log != nil {
		r = *k.log
		k.parts(func(_ fsm.NodeID, s *State) {
			run = run || r.Number > 0 && s.Running == r.Digest
			if s.Have.Same(r) && s.Have.By != 0 {
				r.By = s.Have.By // the log does not know
			}
		})
		return r, run
	}
	k.parts(func(_ fsm.NodeID, s *State) {
		if r.Before(s.Have) {
			r, run = s.Have, false
		}
		run = run || s.ordered() && s.Have.Same(r)
	})
	return r, run
}

// after is the revision that follows r under this member's ownership.
func (k *Keeper) after(r Revision, d Digest, by fsm.NodeID) Revision {
	next := Revision{Number: r.Number + 1, Digest: d, By: by}
	if !k.logged {
		if next.Epoch = k.epoch; next.Epoch.Less(r.Epoch) {
			next.Epoch = r.Epoch
		}
	}
	return next
}

// Action is what this member has to do. Concrete types are below.
type Action interface{ action() }

// Take a revision: fetch its text from one of the members and run it.
type Take struct {
	Revision Revision
	From     []fsm.NodeID // by number; this member itself is among them if it runs the text already
}

// Adopt makes what this member runs a revision: nobody runs the newest.
type Adopt struct{ Base, Revision Revision }

func (Take) action()  {}
func (Adopt) action() {}

// Next is what is to be done now; nil: nothing.
func (k *Keeper) Next(now time.Time) Action {
	if k.mine.Aside || k.logged && k.log == nil {
		return nil
	}
	r, run := k.newest()
	switch {
	case run && k.mine.ordered() && k.mine.Have.Same(r):
		k.clear() // what could not be taken is not there any more
		return nil
	case now.Before(k.retryAt):
		return nil
	case run:
		t := Take{Revision: r}
		k.parts(func(n fsm.NodeID, s *State) {
			if s.Running == r.Digest {
				t.From = append(t.From, n)
			}
		})
		return t
	case k.decides() && !k.kept && !k.waiting(now):
		return Adopt{r, k.after(r, k.mine.Running, k.self)}
	}
	return nil
}

// decides says that it is for this member to make a revision of what it runs. In a farm
// that is the lowest number of those who share, and the log judges. In a pair it is the
// owner, or the only one who shares: an owner that keeps its configuration to itself, or
// whose build knows of no revisions, has no part in it.
func (k *Keeper) decides() bool {
	if !k.logged {
		return k.owns || k.only()
	}
	lowest := k.self
	k.parts(func(n fsm.NodeID, _ *State) { lowest = min(lowest, n) })
	return k.owns && lowest == k.self
}

// only says that there are others, and none of them shares.
func (k *Keeper) only() bool {
	for _, p := range k.peers {
		if !p.heard || !p.old && !p.state.Aside {
			return false
		}
	}
	return len(k.peers) > 0
}

// waiting says that a member has not said yet what it has, or that who changed the
// configuration may be about to run what the log has decided.
func (k *Keeper) waiting(now time.Time) bool {
	if k.log != nil && k.log.Number > 0 && now.Sub(k.logAt) < patience {
		return true
	}
	for _, p := range k.peers {
		if !p.heard && now.Sub(later(p.since, k.since)) < patience {
			return true
		}
	}
	return false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// NextTimeout is when Next may say something else than now.
func (k *Keeper) NextTimeout(now time.Time) (time.Time, bool) {
	if now.Before(k.retryAt) {
		return k.retryAt, true
	}
	var at time.Time
	first := func(t time.Time) {
		if now.Before(t) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	first(k.logAt.Add(patience))
	for _, p := range k.peers {
		if !p.heard {
			first(later(p.since, k.since).Add(patience))
		}
	}
	return at, !at.IsZero()
}

// Base is the revision on which a change made here builds. The error says why nothing
// can be changed here now.
func (k *Keeper) Base() (Revision, error) {
	r, _ := k.newest()
	switch {
	case k.logged && k.log == nil:
		return r, errors.New("the members' log has not begun")
	case !k.mine.Have.Same(r) && k.mine.Fault != "":
		return r, fmt.Errorf("revision %s could not be taken here: %s", r, k.mine.Fault)
	case !k.mine.Have.Same(r):
		return r, FirstError{r} // on its way to this member
	case r.Number == 0:
		return r, errors.New("the members have not agreed on a first revision yet")
	case !k.mine.ordered():
		return r, fmt.Errorf("this member does not run revision %s yet", r)
	}
	return r, nil
}

// FirstError says that somebody else's change came first.
type FirstError struct{ Newest Revision }

func (e FirstError) Error() string {
	who := ""
	if e.Newest.By != 0 {
		who = fmt.Sprintf(" (made on node %d)", e.Newest.By)
	}
	return fmt.Sprintf("another change came first: revision %s%s", e.Newest, who)
}

// NotOwnerError says that this member does not decide.
type NotOwnerError struct{}

func (NotOwnerError) Error() string { return "this member does not decide" }

// Decide judges a change of a pair: by, made on base. Only the owner decides; the first
// change on a revision is the next one.
func (k *Keeper) Decide(by fsm.NodeID, base Revision, d Digest) (Revision, error) {
	if !k.decides() {
		return Revision{}, NotOwnerError{}
	}
	r, err := k.Base()
	if err != nil {
		return Revision{}, err
	}
	switch {
	case d == r.Digest: // nothing that is shared changes
		return r, nil
	case !base.Same(r):
		return Revision{}, FirstError{r}
	}
	return k.after(r, d, by), nil
}

// Follow is Decide where the log does: what to propose, and on what.
func (k *Keeper) Follow(d Digest) (Revision, error) {
	r, err := k.Base()
	if err != nil {
		return Revision{}, err
	}
	return k.after(r, d, k.self), nil
}

// Settled says that the member can take part: it and this one run the newest revision,
// or it is known that they will not.
func (k *Keeper) Settled(n fsm.NodeID) bool {
	p := k.peers[n]
	switch {
	case k.mine.Aside:
		return true
	case p == nil, !p.heard:
		return false
	case p.old, p.state.Aside:
		return true
	}
	r, _ := k.newest()
	if r.Number == 0 { // the cluster begins
		return true
	}
	done := func(s *State) bool { return s.Fault != "" || s.ordered() && s.Have.Same(r) }
	return done(&p.state) && done(&k.mine)
}

// Behind are the members that take part and do not run the revision, by number.
func (k *Keeper) Behind(r Revision) (list []fsm.NodeID) {
	for _, n := range slices.Sorted(maps.Keys(k.peers)) {
		if p := k.peers[n]; !p.old && !(p.heard && (p.state.Aside || p.state.Running == r.Digest)) {
			list = append(list, n)
		}
	}
	return list
}

// Member is one other member as this one knows it.
type Member struct {
	Node  fsm.NodeID
	Heard bool
	Old   bool
	State State
}

// Members lists the others, by number.
func (k *Keeper) Members() (list []Member) {
	for _, n := range slices.Sorted(maps.Keys(k.peers)) {
		p := k.peers[n]
		list = append(list, Member{n, p.heard, p.old, p.state})
	}
	return list
}

// Newest is the newest revision that is known; run says that somebody runs it.
func (k *Keeper) Newest() (r Revision, run bool) { return k.newest() }

// Owns says whether this member decides.
func (k *Keeper) Owns() bool { return k.owns }
