package sim

import (
	"fmt"
	"slices"
)

//go:generate go run ./effects_gen
//go:generate go run ./simulate --census census_gen.go

// Exchange tells apart what an IKE message is about. None: no message is involved.
type Exchange string

// The exchanges, as far as a crash in the middle of each is a story of its own.
const (
	None        Exchange = "none"
	Init        Exchange = "IKE_SA_INIT"
	Auth        Exchange = "IKE_AUTH"
	CreateChild Exchange = "create Child SA"
	RekeyChildX Exchange = "rekey Child SA"
	RekeyIKEX   Exchange = "rekey IKE SA"
	Delete      Exchange = "DELETE"
	Probe       Exchange = "dead peer detection"
)

// Exchanges are all of them but None.
var Exchanges = []Exchange{Init, Auth, CreateChild, RekeyChildX, RekeyIKEX, Delete, Probe}

// Cell is a crash point: before or after a daemon carries out an effect, while it
// takes part in an exchange in a role.
type Cell struct {
	Effect    string // its Go type
	Exchange  Exchange
	Initiator bool
	After     bool
}

func (c Cell) String() string {
	when, role := "before", "responder"
	if c.After {
		when = "after"
	}
	if c.Initiator {
		role = "initiator"
	}
	if c.Exchange == None {
		return fmt.Sprintf("%s %s", when, c.Effect)
	}
	return fmt.Sprintf("%s %s, %s as %s", when, c.Effect, c.Exchange, role)
}

// Crash kills the daemon at the Nth moment (from 1; 0: never) at which any gateway
// is at the crash point. Up to that moment the run is the one without it: this
// reaches every moment that a run is known to pass.
type Crash struct {
	Cell Cell
	Nth  int
}

// crash ends a daemon at a crash point.
func (w *world) crash(d *daemon, c Cell) {
	w.Result.Crashes[c]++
	w.Result.Faults[CrashAt]++
	if w.tracing != nil {
		w.fault(d.h.name, "SIGKILL %s", c)
	}
	w.disturbed(d.h.pair, d.h.pair.realms[0], Action{Verb: CrashAt})
	d.h.die(d, "crash point")
}

// Cells are all crash points that could be: every effect type that a node can emit
// (effectTypes is generated from its source), in every exchange and role. Most of
// them exist only now and then, some never: no note is written because of a probe.
func Cells() []Cell { return cells }

var cells = func() (out []Cell) {
	for _, e := range effectTypes {
		for _, after := range []bool{false, true} {
			out = append(out, Cell{e, None, false, after})
			for _, x := range Exchanges {
				out = append(out, Cell{e, x, false, after}, Cell{e, x, true, after})
			}
		}
	}
	return out
}()

// ParseCell reads what Cell.String wrote.
func ParseCell(text string) (Cell, error) {
	i := slices.IndexFunc(cells, func(c Cell) bool { return c.String() == text })
	if i < 0 {
		return Cell{}, fmt.Errorf("%q is no crash point; one is %q", text, cells[len(cells)-1])
	}
	return cells[i], nil
}

// label is what a daemon is doing: the exchange of the IKE message that it last
// sent or received, in its role.
type label struct {
	exchange  Exchange
	initiator bool
}

func (l label) cell(effect string, after bool) Cell {
	if l.exchange == "" || l.exchange == None {
		return Cell{effect, None, false, after}
	}
	return Cell{effect, l.exchange, l.initiator, after}
}
