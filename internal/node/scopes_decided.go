package node

import (
	"maps"
	"slices"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

const (
	// A loss is reported to the log by its leader, when those who were promised the
	// scopes have had their time to act.
	reportDeath   = 200 * time.Millisecond
	reportSilence = time.Second
	reportAgain   = 500 * time.Millisecond
)

// decisions are what members decide by a log, as far as it is known here, and whom the
// log's leader has to tell it of.
type decisions struct {
	decided *fsm.Machine
	quorum  Quorum
	leads   bool
	losses  map[cluster.NodeID]loss
}

// Quorum is whether the log has a leader, and whether to stop without one.
type Quorum struct{ Lost, Stop bool }

// loss is a member that was lost and has not been heard since.
type loss struct {
	process  cluster.ProcessID
	at       time.Time
	report   time.Time
	reported time.Time
}

func newDecisions() decisions {
	return decisions{decided: fsm.New(), quorum: Quorum{Lost: true}, losses: map[cluster.NodeID]loss{}}
}

// grants says whether the log counts a process as a member.
func (d *decisions) grants(n cluster.NodeID, process cluster.ProcessID) bool {
	p, _ := d.decided.Member(n)
	return p.Process == uint64(process) && p.State != fsm.Left && !p.Lost
}

// alarm is raised while there is no quorum.
func (q Quorum) alarm() cluster.Alarm {
	text := "no quorum: going on with what is owned or promised, nothing new is decided"
	if q.Stop {
		text = "no quorum: stopped, as quorum-loss stop says"
	}
	return cluster.Alarm{Name: "quorum", Text: text, On: q.Lost}
}

// lose notes that a member's process was lost.
func (d *decisions) lose(now time.Time, n cluster.NodeID, process cluster.ProcessID, kind cluster.Loss) {
	wait := reportDeath
	if kind == cluster.LossSilence {
		wait = reportSilence
	}
	d.losses[n] = loss{process: process, at: now, report: now.Add(wait)}
}

// Lost says that a member was lost and has not been heard since.
func (d *decisions) Lost(n cluster.NodeID) bool { return d.losses[n] != loss{} }

// open are the losses that the log does not know of.
func (d *decisions) open() (out []cluster.NodeID) {
	for _, k := range slices.Sorted(maps.Keys(d.losses)) {
		if p, known := d.decided.Member(k); known && !p.Lost && p.Process == uint64(d.losses[k].process) {
			out = append(out, k)
		}
	}
	return out
}

// reports has the leader report who was lost, so that what nobody was promised is given
// to somebody.
func (d *decisions) reports(now time.Time, emit func(Effect)) {
	if !d.leads {
		return
	}
	for _, k := range d.open() {
		l := d.losses[k]
		if now.Before(d.reportDue(k, l)) {
			continue
		}
		l.reported = now
		d.losses[k] = l
		emit(reportLoss(k, l.process))
	}
}

// nextReport is when the leader reports the next loss.
func (d *decisions) nextReport() (t time.Time, ok bool) {
	if d.leads {
		for _, k := range d.open() {
			t, ok = earlier(t, ok, func() (time.Time, bool) { return d.reportDue(k, d.losses[k]), true })
		}
	}
	return t, ok
}

// reportDue is when a loss is reported, first or again: at once if a scope waits for
// it, because its owner is lost as well and somebody else has to be promised it.
func (d *decisions) reportDue(n cluster.NodeID, l loss) time.Time {
	if !l.reported.IsZero() {
		return l.reported.Add(reportAgain)
	}
	for _, s := range d.decided.Scopes() {
		o, lost := d.losses[s.Owner]
		if p, _ := d.decided.Member(s.Owner); s.Successor == n && lost && p.Process == uint64(o.process) {
			return l.at
		}
	}
	return l.report
}
