package sim

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/node"
	"tandem/proto/clusterpb"
)

// The log that members share is fsm.LogModel: it promises what Raft promises. What
// cluster/raftauth does around Raft is modelled here with its figures.
const (
	logLook      = 100 * time.Millisecond // how often a member looks who leads
	quorumGrace  = 500 * time.Millisecond
	proposeTries = 100 * time.Millisecond
	proposeGives = 2 * time.Second
	snapshotAt   = 40 // entries
)

// openLog begins with what the disk has: a snapshot, or nothing.
func (d *farmDaemon) openLog() {
	m, w := d.m, d.m.w
	d.state, d.asked = fsm.New(), map[string]bool{}
	if len(m.disk.snapshot) > 0 {
		if err := d.state.Restore(m.disk.snapshot); err != nil {
			w.violate(RuleEffects, "%s cannot restore its snapshot: %v", m.name, err)
		}
	}
	d.index = m.disk.index
	d.held = fsm.Holdings{Node: m.id, Store: m.disk.store, Opened: slices.Clone(m.disk.opened)}
	d.led = -quorumGrace
	w.log.Rewind(fsm.NodeID(m.id), d.index)
	w.log.SetUp(fsm.NodeID(m.id), true)
	w.logTurn()
}

// logTurn does what the log has to do now, and plans its next turn.
func (w *farm) logTurn() {
	w.logGen++
	gen := w.logGen
	at := w.now + 50*time.Millisecond // it does not notice by itself what is up and what is not
	if t, ok := w.log.NextTimeout(); ok {
		at = min(at, max(w.now, t.Sub(epoch)))
	}
	w.queue.push(at, func() {
		if w.logGen == gen {
			w.deliver()
			w.logTurn()
		}
	})
}

// deliver applies what the log has for the members.
func (w *farm) deliver() {
	for _, x := range w.log.Step(w.at()) {
		m := w.members[x.To]
		d := m.d
		if d == nil || x.Index != d.index+1 {
			continue
		}
		r := d.state.Apply(x.Entry)
		d.index = x.Index
		w.decided(x, d.state, r)
		w.mix("apply", uint64(m.id), x.Index)
		if fsm.Proposer(x.Entry) == fsm.NodeID(m.id) {
			d.answered(x.Entry, r)
		}
		if d.index%snapshotAt == 0 {
			m.disk.index, m.disk.snapshot = d.index, d.state.Snapshot()
			d.held.Forget(w.view(d))
			m.disk.opened = slices.Clone(d.held.Opened)
		}
		if !d.kick {
			d.kick = true
			wait := between(w.chance, 0, 4*time.Millisecond)
			if w.now < w.slowLog {
				wait = between(w.chance, 20*time.Millisecond, 600*time.Millisecond)
			}
			d.later(wait, func(now time.Time) {
				d.kick = false
				d.f.HandleDecided(now, w.view(d))
			})
		}
	}
}

// decided notes an entry when the first member applies it.
func (w *farm) decided(x fsm.Delivery, m *fsm.Machine, r fsm.Result) {
	if w.tracing == nil || x.Index <= w.rule.logNoted {
		return
	}
	w.rule.logNoted = x.Index
	c := &clusterpb.Command{}
	if proto.Unmarshal(x.Entry, c) != nil {
		return
	}
	var b strings.Builder
	for _, c := range cluster.Parts(c) {
		b.WriteString(" " + fsm.Subject(c))
	}
	for _, id := range r.Scopes {
		s, _ := m.Scope(id)
		fmt.Fprintf(&b, "; %v: vm%d at %v, next vm%d at %v, sync %v", id, s.Owner, s.Epoch, s.Successor, s.Next, s.Sync)
	}
	w.note("", "log", "entry %d, of vm%d, %v:%s", x.Index, c.GetId().GetNode(), r.Code, b.String())
}

// view is the state as a member has it. Members at the same entry share it.
func (w *farm) view(d *farmDaemon) *fsm.Machine {
	for _, v := range w.views {
		if v.index == d.index {
			return v.state
		}
	}
	x := d.state.Clone()
	if n := len(x.Scopes()); n != w.rule.slots {
		w.rule.slots, w.rule.slotsAt = n, w.now
	}
	if len(w.views) >= 32 {
		w.views = w.views[1:]
	}
	w.views = append(w.views, decidedView{d.index, x})
	return x
}

// logTick is what a member does about the log now and then.
func (d *farmDaemon) logTick() {
	m, w := d.m, d.m.w
	if d.dead {
		return
	}
	w.after(logLook/2, d.logTick)
	if m.frozen || d.stopped {
		return
	}
	leader := w.log.Leader()
	heard := leader != 0 && w.reach(m, w.members[leader])
	if heard {
		d.led = w.now
	}
	if q := w.now-d.led < quorumGrace; q != d.quorum {
		d.quorum = q
		w.note(m.name, "log", "quorum %v", q)
		d.run(func(now time.Time) { d.f.HandleQuorum(now, node.Quorum{Lost: !q, Stop: !q && w.s.Farm.Stop}) })
	}
	if leads := heard && leader == fsm.NodeID(m.id); leads != d.leads {
		d.leads = leads
		d.run(func(now time.Time) { d.f.HandleLeader(now, leads) })
	}
	p, ok := d.state.Member(m.id)
	d.synced = ok && p.Process == uint64(d.process) && !p.Lost
	switch {
	case !d.synced:
		if w.now-d.member >= logLook {
			d.member = w.now
			d.propose(&clusterpb.Command{What: &clusterpb.Command_AddMember{AddMember: &clusterpb.AddMember{
				Node: uint32(m.id), Name: m.name, MinVersion: 1, MaxVersion: 1, Process: uint64(d.process), Store: m.disk.store}}})
		}
	case d.leads && len(d.queue) == 0 && d.index == w.log.Len():
		for _, c := range d.state.Plan(w.s.Farm.Standbys) {
			d.propose(c)
		}
	}
}

// propose has one command at a time decided; one that asks for the same as another
// waits for that.
func (d *farmDaemon) propose(c *clusterpb.Command) {
	key := fsm.Subject(c)
	if d.asked[key] {
		return
	}
	d.asked[key] = true
	if before := c.GetAddMember() != nil; (before || cluster.Urgent(c)) && len(d.queue) > 1 { // waits only for what is under way
		i := 1
		for i < len(d.queue) && (d.queue[i].GetAddMember() != nil || !before && cluster.Urgent(d.queue[i])) {
			i++
		}
		d.queue = slices.Insert(d.queue, i, c)
		return
	}
	if d.queue = append(d.queue, c); len(d.queue) == 1 {
		d.begin()
	}
}

func (d *farmDaemon) begin() {
	if len(d.queue) == 0 {
		return
	}
	c, n := cluster.Together(d.queue)
	d.queue = slices.Replace(d.queue, 0, n, c)
	d.number++
	c.Id = &clusterpb.CommandID{Node: uint32(d.m.id), Life: d.life, Seq: d.number}
	c.Version = 1
	d.since = d.m.w.now
	d.try(c, d.number)
}

// try sends the first command until it is answered, or too old.
func (d *farmDaemon) try(c *clusterpb.Command, number uint64) {
	w := d.m.w
	if d.dead || len(d.queue) == 0 || d.queue[0] != c || d.number != number {
		return
	}
	if w.now-d.since >= proposeGives {
		d.next()
		return
	}
	if !d.stopped && !d.m.frozen {
		w.log.Propose(w.at(), fsm.NodeID(d.m.id), fsm.Encode(c))
		w.logTurn()
	}
	w.after(proposeTries, func() { d.try(c, number) })
}

func (d *farmDaemon) next() {
	for _, c := range cluster.Parts(d.queue[0]) {
		delete(d.asked, fsm.Subject(c))
	}
	d.queue = d.queue[1:]
	d.begin()
}

// answered goes on when the log has taken the command that is with it.
func (d *farmDaemon) answered(entry []byte, r fsm.Result) {
	if len(d.queue) == 0 || !bytes.Equal(entry, fsm.Encode(d.queue[0])) {
		return
	}
	if r.Code == fsm.Superseded {
		d.life = max(d.life, r.Value+1)
		d.number = 0
		d.begin()
		return
	}
	if !r.OK() {
		d.m.w.note(d.m.name, "log", "not decided: %s", r.Why)
	}
	d.next()
}
