package revision

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/cluster/fsm"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func digest(n int) (d Digest) {
	d[0], d[1] = byte(n), byte(n>>8)
	return d
}

func rev(epoch, number uint64, d int) Revision {
	return Revision{Epoch: fsm.Epoch{Counter: epoch, Node: 1}, Number: number, Digest: digest(d)}
}

func TestOrder(t *testing.T) {
	sorted := []Revision{{}, {Number: 1, Digest: digest(9)}, rev(1, 2, 5), rev(1, 3, 1), rev(1, 3, 2), rev(2, 1, 0), {Epoch: fsm.Epoch{Counter: 2, Node: 2}, Number: 1}}
	for i, a := range sorted {
		for j, b := range sorted {
			if a.Before(b) != (i < j) || a.Same(b) != (i == j) {
				t.Errorf("%v before %v: %v, same %v", a, b, a.Before(b), a.Same(b))
			}
		}
	}
	if a, b := rev(1, 1, 1), rev(1, 1, 1); true {
		b.By = 3
		if !a.Same(b) || a.Before(b) || b.Before(a) {
			t.Error("where it was made counts")
		}
	}
}

// What a member does first, and what it waits for.
func TestNext(t *testing.T) {
	k := New(1, 10, Revision{}, digest(1), false)
	none := func(why string) {
		t.Helper()
		if a := k.Next(start); a != nil {
			t.Errorf("%s: %+v", why, a)
		}
	}
	none("nobody owns")
	k.HandlePresence(start, 2, 20)
	k.HandleRole(start, true, fsm.Epoch{Counter: 5, Node: 1})
	none("node 2 has not said what it has")
	if at, ok := k.NextTimeout(start); !ok || at != start.Add(patience) {
		t.Errorf("waits until %v", at)
	}
	if a, ok := k.Next(start.Add(patience)).(Adopt); !ok || a.Revision.Number != 1 {
		t.Errorf("its patience is over: %+v", a)
	}
	k.HandleState(2, State{Process: 19, Have: rev(4, 7, 2), Running: digest(2)})
	none("that was a former process")
	k.HandleState(2, State{Process: 20})
	a, ok := k.Next(start).(Adopt)
	if want := (Revision{fsm.Epoch{Counter: 5, Node: 1}, 1, digest(1), 1}); !ok || a.Revision != want {
		t.Fatalf("nobody has one: %+v", a)
	}
	if _, err := k.Base(); err == nil || !strings.Contains(err.Error(), "first revision") {
		t.Errorf("a change before the first revision: %v", err)
	}
	k.Applied(a.Revision)
	none("it runs the newest")
	if k.Settled(2) || !slices.Equal(k.Behind(a.Revision), []fsm.NodeID{2}) {
		t.Error("node 2 has not taken it")
	}
	k.HandleState(2, State{Process: 20, Have: a.Revision, Running: digest(1)})
	if !k.Settled(2) || len(k.Behind(a.Revision)) > 0 {
		t.Error("node 2 has taken it")
	}

	// A newer one.
	two := rev(6, 2, 3)
	k.HandleState(2, State{Process: 20, Have: two, Running: digest(3)})
	take, ok := k.Next(start).(Take)
	if !ok || take.Revision != two || !slices.Equal(take.From, []fsm.NodeID{2}) {
		t.Fatalf("%+v", take)
	}
	if _, err := k.Decide(1, a.Revision, digest(8)); err != (FirstError{two}) {
		t.Errorf("a change while a newer one comes: %v", err)
	}
	k.Failed(start, "no space")
	none("it failed")
	if _, err := k.Base(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("a change after a failure: %v", err)
	}
	if at, ok := k.NextTimeout(start); !ok || at != start.Add(again) {
		t.Errorf("tries again at %v", at)
	}
	if !k.Settled(2) {
		t.Error("a member with a fault never takes part")
	}
	if _, ok := k.Next(start.Add(again)).(Take); !ok {
		t.Error("it never tries again")
	}
	k.Kept(start, two, "restart")
	if a := k.Next(start.Add(again)); a == nil || a.(Take).Revision != two {
		t.Errorf("what needs a restart: %+v", a)
	}
	k.HandlePresence(start, 2, 0)
	if a := k.Next(start.Add(again)); a != nil {
		t.Errorf("alone, with a revision that needs a restart: %+v", a)
	}
	k.Applied(two)
	none("restarted")

	// Asides and builds of before count for nothing.
	k.HandlePresence(start, 3, 30)
	k.HandleState(3, State{Process: 30, Have: rev(99, 9, 9), Running: digest(9), Aside: true})
	none("it keeps its configuration to itself")
	k.HandlePresence(start, 4, 40)
	k.HandleOld(4)
	if !k.Settled(3) || !k.Settled(4) || len(k.Behind(two)) > 0 {
		t.Error("they hold somebody up")
	}
	k.HandleAside(true)
	k.HandleRunning(digest(77))
	none("this one keeps its own")
	if !k.Settled(9) {
		t.Error("it waits for others")
	}
}

// An edited file becomes a revision only where nobody runs the newest.
func TestEditedFile(t *testing.T) {
	was := rev(3, 8, 1)
	k := New(1, 10, was, digest(2), false)
	k.HandlePresence(start, 2, 20)
	k.HandleRole(start, true, fsm.Epoch{Counter: 4, Node: 1})
	k.HandleState(2, State{Process: 20, Have: was, Running: digest(1)})
	if a, ok := k.Next(start).(Take); !ok || a.Revision != was {
		t.Errorf("node 2 runs it: %+v", a)
	}
	k.HandleState(2, State{Process: 20, Have: rev(3, 9, 4), Running: digest(5)})
	a, ok := k.Next(start).(Adopt)
	if !ok || a.Revision.Number != 10 || a.Revision.Digest != digest(2) || !rev(3, 9, 4).Before(a.Revision) {
		t.Errorf("both files are edited, this member owns: %+v", a)
	}
	k.HandleRole(start, false, fsm.Epoch{})
	if a := k.Next(start); a != nil {
		t.Errorf("it does not own: %+v", a)
	}
	// An owner whose epoch is older than what somebody knows goes above it all the same.
	k.HandleRole(start, true, fsm.Epoch{Counter: 1, Node: 1})
	if a, ok := k.Next(start).(Adopt); !ok || !rev(3, 9, 4).Before(a.Revision) {
		t.Errorf("%+v", a)
	}
}

func TestDecide(t *testing.T) {
	base := rev(4, 1, 1)
	k := New(1, 10, base, digest(1), false)
	if _, err := k.Decide(2, base, digest(2)); !errors.As(err, new(NotOwnerError)) {
		t.Errorf("it does not own: %v", err)
	}
	k.HandleRole(start, true, fsm.Epoch{Counter: 4, Node: 1})
	r, err := k.Decide(2, base, digest(2))
	if want := (Revision{fsm.Epoch{Counter: 4, Node: 1}, 2, digest(2), 2}); err != nil || r != want {
		t.Fatalf("%v %v", r, err)
	}
	if same, err := k.Decide(2, base, digest(1)); err != nil || same != base {
		t.Errorf("nothing changes: %v %v", same, err)
	}
	k.Applied(r)
	_, err = k.Decide(1, base, digest(3))
	var first FirstError
	if !errors.As(err, &first) || first.Newest != r || !strings.Contains(err.Error(), "node 2") {
		t.Errorf("the second change on one revision: %v", err)
	}
	if next, err := k.Decide(1, r, digest(3)); err != nil || next.Number != 3 {
		t.Errorf("%v %v", next, err)
	}
}

// Where the owner has no part in it, who shares alone decides for itself.
func TestOnlyOneShares(t *testing.T) {
	for _, aside := range []func(k *Keeper){
		func(k *Keeper) { k.HandleState(2, State{Process: 20, Aside: true}) },
		func(k *Keeper) { k.HandleOld(2) },
	} {
		k := New(1, 10, Revision{}, digest(1), false)
		k.HandleRole(start, false, fsm.Epoch{Counter: 5, Node: 2})
		k.HandlePresence(start, 2, 20)
		if a := k.Next(start.Add(patience)); a != nil {
			t.Errorf("the other one may share: %+v", a)
		}
		aside(k)
		a, ok := k.Next(start).(Adopt)
		if !ok {
			t.Fatal("no first revision")
		}
		k.Applied(a.Revision)
		if r, err := k.Decide(1, a.Revision, digest(2)); err != nil || r.Number != 2 {
			t.Errorf("%v %v", r, err)
		}
		k.HandleState(2, State{Process: 20})
		if _, err := k.Decide(1, a.Revision, digest(2)); !errors.As(err, new(NotOwnerError)) {
			t.Errorf("the owner shares now: %v", err)
		}
	}
}

// In a farm the log's word is the newest, whatever members say.
func TestLog(t *testing.T) {
	k := New(1, 10, Revision{}, digest(1), true)
	k.HandleRole(start, true, fsm.Epoch{})
	if _, err := k.Base(); err == nil || k.Next(start) != nil {
		t.Errorf("it is not known what was decided: %v", err)
	}
	k.HandleLog(start, Revision{})
	if a, ok := k.Next(start).(Adopt); !ok || a.Revision != (Revision{Number: 1, Digest: digest(1), By: 1}) {
		t.Errorf("nothing was decided, and it leads: %+v", a)
	}
	k.HandleRole(start, false, fsm.Epoch{})
	k.HandlePresence(start, 2, 20)
	k.HandleState(2, State{Process: 20, Have: Revision{Number: 9, Digest: digest(9)}, Running: digest(9)})
	k.HandleLog(start, Revision{Number: 2, Digest: digest(2)})
	k.HandleLog(start, Revision{Number: 1, Digest: digest(1)})
	if a := k.Next(start.Add(patience)); a != nil {
		t.Errorf("nobody runs what was decided, and another leads: %+v", a)
	}
	k.HandleRole(start, true, fsm.Epoch{})
	if a := k.Next(start); a != nil {
		t.Errorf("who proposed it may be about to run it: %+v", a)
	}
	if at, ok := k.NextTimeout(start); !ok || at != start.Add(patience) {
		t.Errorf("it waits until %v", at)
	}
	if a, ok := k.Next(start.Add(patience)).(Adopt); !ok || a.Revision != (Revision{Number: 3, Digest: digest(1), By: 1}) {
		t.Errorf("nobody runs what was decided, and it leads: %+v", a)
	}
	k.HandleState(2, State{Process: 20, Have: Revision{Number: 2, Digest: digest(2), By: 2}, Running: digest(2)})
	a, ok := k.Next(start).(Take)
	if !ok || a.Revision.By != 2 || !slices.Equal(a.From, []fsm.NodeID{2}) {
		t.Fatalf("%+v", a)
	}
	k.Applied(a.Revision)
	if r, err := k.Follow(digest(5)); err != nil || r != (Revision{Number: 3, Digest: digest(5), By: 1}) {
		t.Errorf("%v %v", r, err)
	}
	// Of several the lowest number makes the first one.
	three := New(3, 30, Revision{}, digest(1), true)
	three.HandleLog(start, Revision{})
	three.HandlePresence(start, 2, 20)
	three.HandleState(2, State{Process: 20})
	three.HandleRole(start, true, fsm.Epoch{})
	if a := three.Next(start); a != nil {
		t.Errorf("node 2 is there: %+v", a)
	}
	three.HandleState(2, State{Process: 20, Aside: true})
	if a, ok := three.Next(start).(Adopt); !ok || a.Revision.Number != 1 {
		t.Errorf("node 2 keeps its own: %+v", a)
	}

	// Its own change, decided before the member has heard of that by its log.
	k.Applied(Revision{Number: 3, Digest: digest(5), By: 1})
	k.HandleLog(start, Revision{Number: 2, Digest: digest(2)})
	if a := k.Next(start); a != nil {
		t.Errorf("it goes back: %+v", a)
	}
}

// world is a cluster of keepers with owners, cuts, crashes and edited files.
type world struct {
	t     *testing.T
	r     *rand.Rand
	now   time.Time
	nodes []*member
	epoch uint64
	texts int
	cut   bool // 1 and 2 on one side, 3 on the other
}

type member struct {
	id   fsm.NodeID
	k    *Keeper // nil: down
	proc uint64
	disk Revision
	file Digest
}

func (w *world) sees(a, b *member) bool {
	return a != b && a.k != nil && b.k != nil && (!w.cut || (a.id == 3) == (b.id == 3))
}

func (w *world) start(m *member) {
	m.proc++
	m.k = New(m.id, m.proc<<8|uint64(m.id), m.disk, m.file, false)
}

// elect makes one owner for each side that has none.
func (w *world) elect() {
	for _, m := range w.nodes {
		if m.k == nil {
			continue
		}
		owned := m.k.Owns()
		for _, o := range w.nodes {
			owned = owned || w.sees(m, o) && o.k.Owns()
		}
		if !owned {
			w.epoch++
			m.k.HandleRole(w.now, true, fsm.Epoch{Counter: w.epoch, Node: m.id})
		}
	}
}

// heal leaves one owner, under a later epoch.
func (w *world) heal() {
	w.cut = false
	var owners []*member
	for _, m := range w.nodes {
		if m.k != nil && m.k.Owns() {
			owners = append(owners, m)
		}
	}
	if len(owners) < 2 {
		return
	}
	keep := w.r.IntN(len(owners))
	w.epoch++
	for i, m := range owners {
		m.k.HandleRole(w.now, i == keep, fsm.Epoch{Counter: w.epoch, Node: m.id})
	}
}

// talk lets all members hear each other, and one that has something to do do it.
func (w *world) talk() (quiet bool) {
	for _, m := range w.nodes {
		for _, o := range w.nodes {
			if m.k == nil || o == m {
				continue
			}
			if !w.sees(m, o) {
				m.k.HandlePresence(w.now, o.id, 0)
				continue
			}
			m.k.HandlePresence(w.now, o.id, o.k.Mine().Process)
			m.k.HandleState(o.id, o.k.Mine())
		}
	}
	for _, i := range w.r.Perm(len(w.nodes)) {
		m := w.nodes[i]
		if m.k == nil {
			continue
		}
		switch a := m.k.Next(w.now).(type) {
		case Take:
			ok := m.k.Mine().Running == a.Revision.Digest
			for _, n := range a.From {
				o := w.nodes[n-1]
				ok = ok || w.sees(m, o) && o.k.Mine().Running == a.Revision.Digest
			}
			if !ok {
				w.t.Fatalf("node %d should take %v, and none of %v has it", m.id, a.Revision, a.From)
			}
			if w.r.IntN(8) == 0 {
				m.k.Failed(w.now, "no space")
				return false
			}
			m.k.Applied(a.Revision)
			m.disk, m.file = a.Revision, a.Revision.Digest
			return false
		case Adopt:
			m.k.Applied(a.Revision)
			m.disk = a.Revision
			return false
		}
	}
	return true
}

func (w *world) change(m *member) {
	base, err := m.k.Base()
	if err != nil {
		return
	}
	w.texts++
	d := digest(w.texts)
	for _, o := range w.nodes {
		if o != m && !w.sees(m, o) || o.k == nil || !o.k.Owns() {
			continue
		}
		r, err := o.k.Decide(m.id, base, d)
		if err != nil {
			continue
		}
		for _, x := range w.nodes {
			if x.k != nil && x.k.Mine().Have.Number == r.Number && x.k.Mine().Have.Epoch == r.Epoch && !x.k.Mine().Have.Same(r) {
				w.t.Fatalf("%v was decided twice", r)
			}
		}
		o.k.Applied(r)
		o.disk, o.file = r, d
		if m != o && w.r.IntN(4) > 0 { // or it dies on the way back
			m.k.Applied(r)
			m.disk, m.file = r, d
		}
		return
	}
}

// TestMembersEndAlike: whatever changes, crashes, is edited and cut, in the end all run
// the same revision, and nothing is left to do.
func TestMembersEndAlike(t *testing.T) {
	seeds := 3000
	if testing.Short() {
		seeds = 500
	}
	for seed := range seeds {
		w := &world{t: t, r: rand.New(rand.NewPCG(uint64(seed), 1)), now: start, texts: 3}
		for i := range 3 {
			m := &member{id: fsm.NodeID(i + 1), file: digest(w.r.IntN(3))}
			w.nodes = append(w.nodes, m)
			w.start(m)
		}
		for range 60 {
			w.now = w.now.Add(time.Duration(w.r.IntN(1000)) * time.Millisecond)
			m := w.nodes[w.r.IntN(3)]
			switch w.r.IntN(12) {
			case 0:
				m.k = nil
			case 1:
				if m.k == nil {
					w.start(m)
				}
			case 2:
				if m.k == nil { // edited while it was down
					w.texts++
					m.file = digest(w.texts)
				}
			case 3:
				w.cut = true
			case 4:
				w.heal()
			case 5, 6, 7:
				if m.k != nil {
					w.change(m)
				}
			default:
				w.talk()
			}
			w.elect()
		}
		w.heal()
		for _, m := range w.nodes {
			if m.k == nil {
				w.start(m)
			}
		}
		w.elect()
		quiet := 0
		for round := 0; quiet < 3; round++ {
			if round > 200 {
				t.Fatalf("seed %d: it never ends", seed)
			}
			if w.talk() {
				quiet++
				w.now = w.now.Add(again) // who failed tries again
			} else {
				quiet = 0
			}
		}
		first := w.nodes[0].k.Mine()
		for _, m := range w.nodes {
			if s := m.k.Mine(); !s.ordered() || !s.Have.Same(first.Have) || m.file != s.Running {
				t.Fatalf("seed %d: node %d has %v (%x) and runs %x, its file says %x; node 1 has %v", seed, m.id, s.Have, s.Have.Digest[:2], s.Running[:2], m.file[:2], first.Have)
			}
			for _, o := range w.nodes {
				if o != m && !m.k.Settled(o.id) {
					t.Fatalf("seed %d: node %d waits for node %d", seed, m.id, o.id)
				}
			}
		}
	}
}

func TestMessages(t *testing.T) {
	s := State{Process: 3, Have: rev(7, 2, 5), Running: digest(6), Aside: true, Fault: strings.Repeat("é", MaxFault)}
	back, err := OfMessage(s.Message())
	if err != nil {
		t.Fatal(err)
	}
	if s.Fault = Short(s.Fault); back != s || len(s.Fault) > MaxFault || !strings.HasSuffix(s.Fault, "é …") {
		t.Errorf("%+v became %+v", s, back)
	}
	if fmt.Sprint(rev(7, 2, 5)) != "2 (epoch 7.1)" || fmt.Sprint(Revision{Number: 4}) != "4" {
		t.Error("its words")
	}
}
