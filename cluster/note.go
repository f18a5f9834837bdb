package cluster

import "time"

// noteWrite is a WriteNote that has not been answered; answers come in order.
type noteWrite struct {
	on      bool
	counter uint64
	then    func(now time.Time)
}

// writeNote puts the note (on or off) and the epoch on disk; then runs once the
// disk has answered, also with an error: going on is decided by who asked.
func (p *Pair) writeNote(on bool, e Epoch, then func(now time.Time)) {
	p.noteOn = on
	p.notes = append(p.notes, noteWrite{on, e.Counter, then})
	p.emit(WriteNote{On: on, Epoch: e})
}

// persist brings the highest epoch to the disk, which lags without harm: see epochReserve.
func (p *Pair) persist() {
	c := p.disk
	for _, n := range p.notes {
		c = max(c, n.counter)
	}
	if e := p.highest; e.Counter > c {
		p.writeNote(p.noteOn, e, nil)
	}
}

// clearNote: this node is no longer alone.
func (p *Pair) clearNote() {
	p.coverage = CoverageProven
	if p.noteOn {
		p.writeNote(false, p.highest, nil)
	}
}

// HandleNote answers the oldest open WriteNote.
func (p *Pair) HandleNote(now time.Time, err error) {
	p.enter(now)
	if len(p.notes) == 0 {
		return
	}
	n := p.notes[0]
	p.notes = p.notes[1:]
	if err != nil {
		p.alarm("disk", "cannot write the note: "+err.Error(), true)
	} else {
		p.disk = max(p.disk, n.counter)
		p.alarm("disk", "", false)
		p.alarm("note", "", false)
	}
	if n.then != nil {
		n.then(now)
	}
	if p.phase != stopped {
		p.consider(now)
	}
}
