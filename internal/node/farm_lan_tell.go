package node

import (
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

const (
	// lanAgain is after how long a message is repeated that was not answered; doubled each
	// time, to lanLongest.
	lanAgain   = 100 * time.Millisecond
	lanLongest = 2 * time.Second
	lanRoom    = 128 // bytes that must be left in a message for it to be gone on with
	// maxUntold bounds what waits to be told of a scope; beyond it the set is sent whole.
	maxUntold = 1024
)

// lanReader is a member's process that is told of our scopes.
type lanReader struct {
	process cluster.ProcessID
	number  uint32 // of the last message
	topics  map[cluster.ScopeID]*topic
	later   time.Time   // when there is more to say; zero: when something changes
	open    []byte      // the message that is not answered
	parts   []lanPartOf // what it says, without the entries
	again   time.Time   // when it is repeated
	wait    time.Duration
}

// topic is how far a reader has been told of a scope.
type topic struct {
	epoch  cluster.Epoch
	step   lanStep
	later  time.Time
	untold []lanEntry // what has changed since
	whole  []lanEntry // what is left of a set on its way
	is     setSum     // what the reader holds when it has taken what was sent
}

// lanStep is what a reader is to be sent next.
type lanStep uint8

const (
	tellState lanStep = iota // what the set is
	askWhole                 // nothing: it may ask for the whole set
	tellFirst
	tellMore
	tellChanges
	tellNothing // it knows of a later epoch
)

// lanChanged notes a change of one of our scopes for everybody who knows what was before.
func (f *Farm) lanChanged(id cluster.ScopeID, x lanEntry) {
	for _, r := range f.lan.readers {
		t := r.topics[id]
		if t == nil || t.step == tellState || t.step == tellNothing {
			continue
		}
		if t.untold = append(t.untold, x); len(t.untold) > maxUntold {
			*t = topic{epoch: t.epoch}
		}
	}
	f.lan.due = true
}

// tell sends what there is to each member that can be told.
func (f *Farm) tell(now time.Time) {
	f.lan.due = false
	for _, k := range slices.Sorted(maps.Keys(f.peers)) {
		p := f.peers[k]
		m, known := f.decided.Member(k)
		if !known || m.Witness || m.State == fsm.Left || !p.Running || p.Process == 0 || k == f.opt.Self {
			if r := f.lan.readers[k]; r != nil { // its messages are numbered on if it comes again
				f.lan.readers[k] = &lanReader{process: r.process, number: r.number, topics: map[cluster.ScopeID]*topic{}}
			}
			continue
		}
		r := f.lan.readers[k]
		if r == nil || r.process != p.Process {
			r = &lanReader{process: p.Process, topics: map[cluster.ScopeID]*topic{}}
			f.lan.readers[k] = r
		}
		if r.open == nil {
			f.compose(now, r)
		} else if now.Before(r.again) {
			continue
		}
		if r.open != nil {
			r.again = now.Add(r.wait)
			r.wait = min(2*r.wait, lanLongest)
			f.emit(SendLAN{k, r.open})
		}
	}
}

// compose makes the next message to a reader, if there is something to say: changes
// first, so that they do not wait for sets on their way.
func (f *Farm) compose(now time.Time, r *lanReader) {
	maps.DeleteFunc(r.topics, func(id cluster.ScopeID, _ *topic) bool { _, ours := f.owned[id]; return !ours })
	w := newLANWriter(false, f.opt.Process, r.process, r.number+1)
	r.parts, r.later = r.parts[:0], time.Time{}
	for _, pass := range []lanStep{tellChanges, tellState, tellFirst} {
		for _, id := range f.order {
			if len(w.b) > maxLAN-lanRoom {
				break // before much is made ready in vain
			}
			e, ours := f.owned[id]
			if !ours {
				continue
			}
			t := r.topics[id]
			if t == nil || t.epoch != e {
				t = &topic{epoch: e}
				r.topics[id] = t
			}
			if t.step != pass && !(pass == tellFirst && t.step == tellMore) {
				continue
			}
			if now.Before(t.later) {
				if r.later.IsZero() || t.later.Before(r.later) {
					r.later = t.later
				}
				continue
			}
			if p := f.next(id, t); p.kind != 0 {
				n, ok := w.put(&p)
				if !ok {
					break
				}
				f.sent(&p, t, n, w)
				p.entries = nil
				r.parts = append(r.parts, p)
			}
		}
	}
	if len(r.parts) > 0 {
		r.number++
		r.open, r.wait = w.b, lanAgain
	}
}

// next is what a reader is to be told of a scope; kind 0: nothing.
func (f *Farm) next(id cluster.ScopeID, t *topic) lanPartOf {
	n := f.scopes[id]
	p := lanPartOf{scope: id, epoch: t.epoch}
	switch t.step {
	case tellState:
		p.kind, p.is = lanState, n.reachIs
	case tellChanges:
		if len(t.untold) > 0 {
			p.kind, p.entries = lanChange, t.untold
		}
	case tellFirst:
		t.untold, t.is = nil, n.reachIs
		t.whole = make([]lanEntry, 0, len(n.reach))
		for _, r := range slices.SortedFunc(maps.Keys(n.reach), compareReach) {
			if r.tellable() {
				t.whole = append(t.whole, lanEntry{reach: r})
			}
		}
		p.kind, p.entries, p.is = lanWhole, t.whole, t.is
	case tellMore:
		p.kind, p.entries, p.is = lanLast, t.whole, t.is
	}
	return p
}

// sent notes what has gone into the message: n of the entries.
func (f *Farm) sent(p *lanPartOf, t *topic, n int, w *lanWriter) {
	switch p.kind {
	case lanState:
		t.step, t.untold, t.is = askWhole, nil, p.is
	case lanChange:
		for i := range t.untold[:n] {
			if x := &t.untold[i]; x.gone {
				t.is.take(x.reach)
			} else {
				t.is.add(x.reach)
			}
		}
		p.is = t.is
		w.amend(p)
		if t.untold = t.untold[n:]; len(t.untold) == 0 {
			t.untold = nil
		}
	case lanWhole, lanLast:
		if t.whole = t.whole[n:]; len(t.whole) > 0 {
			p.kind = map[lanKind]lanKind{lanWhole: lanFirst, lanLast: lanMore}[p.kind]
			w.amend(p)
			t.step = tellMore
			return
		}
		t.whole, t.step = nil, tellChanges
	}
}

// lanAnswered takes a reader's answer, part by part as it was told.
func (f *Farm) lanAnswered(now time.Time, from cluster.NodeID, m *lanMessage) {
	r := f.lan.readers[from]
	if r == nil || r.open == nil || r.process != m.from || r.number != m.number || len(r.parts) != len(m.parts) {
		return
	}
	r.open = nil
	f.lan.due = true
	for i := range m.parts {
		was, is := &r.parts[i], &m.parts[i]
		t := r.topics[was.scope]
		if t == nil || t.epoch != was.epoch || is.scope != was.scope || is.epoch != was.epoch {
			continue
		}
		switch is.kind {
		case lanHave:
			if t.step == askWhole {
				t.step = tellChanges
			}
		case lanLimited:
			if t.step == askWhole {
				t.step = tellFirst
			}
		case lanWant:
			if t.step != tellState {
				t.step, t.whole, t.untold = tellFirst, nil, nil
			}
			if was.kind == lanLast || was.kind == lanWhole { // whatever is wrong, it is not sent all the time
				t.later = now.Add(lanLongest)
			}
		case lanLater:
			*t = topic{epoch: t.epoch, later: now.Add(lanAgain)}
		case lanOld:
			*t = topic{epoch: t.epoch, step: tellNothing}
		}
	}
}
