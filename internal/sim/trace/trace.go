// Package trace records what happened in a simulated cluster and tells it to
// somebody who was not there: as lines of text, as a sequence diagram of box
// characters, and as the same diagram in SVG.
//
// A simulation adds events to a Log while it runs. When a checker finds a
// broken invariant, Around picks the stretch of the log that leads there, and
// WriteDiagram and WriteSVG draw it with a legend, for a reader who knows IKE
// and ESP but not this project.
//
// The same events always give the same bytes: nothing here reads a clock, and
// no output follows the order of a map. Names and texts may be hostile; what
// is not printable is written as an escape, and XML is escaped.
package trace

import "time"

// Kind says what an Event is, and which of its fields count.
type Kind uint8

const (
	// Message is an arrow From → To, sent at At, arrived at Until; with
	// Until < 0 it never arrived.
	Message Kind = iota
	// Note is a box on the lifeline From: what happened inside.
	Note
	// Fault is what the schedule did (crash, freeze, cut, restart) to the
	// lifeline From, to the path From–To, or to all when both are empty.
	Fault
	// State is a new state of the lifeline From. The first word of Text is the
	// state, one of StateOwner, StateStandby, StateDead, StateFrozen; what
	// follows explains it ("owner epoch 2"). Other words draw as standby does.
	State
	// Violation is a broken invariant, found on the lifeline From or, when that
	// is empty, on the whole.
	Violation
)

// The states that a lifeline draws differently.
const (
	StateOwner   = "owner"
	StateStandby = "standby"
	StateDead    = "dead"
	StateFrozen  = "frozen"
)

// The classes of messages. Others are allowed and draw in a neutral colour.
// ESP, heartbeats and acknowledgements are background: runs of them are folded
// in diagrams, and a full Log forgets them first.
const (
	ClassIKE       = "ike"
	ClassESP       = "esp"
	ClassFrame     = "frame"
	ClassAck       = "ack"
	ClassHeartbeat = "heartbeat"
	ClassDisk      = "disk"
)

// Event is one thing that happened.
type Event struct {
	At       time.Duration // virtual time since the beginning
	Kind     Kind
	From, To string        // lifelines: "client1", "gw1", "gw1/guardian", "attacker"
	Until    time.Duration // Message: arrival; < 0: lost; 0 or before At: at once
	Class    string        // Message: one of the classes; may be empty
	Text     string        // one line, such as "CREATE_CHILD_SA request id 3 (rekey Child 8a…)"
}

// Lost says whether e is a message that never arrived.
func (e Event) Lost() bool { return e.Kind == Message && e.Until < 0 }

// arrival is when a message that is not lost arrived.
func (e Event) arrival() time.Duration { return max(e.At, e.Until) }

func (e Event) background() bool {
	return e.Kind == Message && (e.Class == ClassESP || e.Class == ClassHeartbeat || e.Class == ClassAck)
}

// rank is how much the story needs e: what ranks lowest is left out first.
func (e Event) rank() int {
	switch {
	case e.background():
		return 0
	case e.Kind == Message || e.Kind == Note:
		return 1
	case e.Kind == Violation:
		return 3
	}
	return 2
}

// View says which part of a log a diagram shows.
type View struct {
	From, To  time.Duration // both included; To 0 means the end
	Lifelines []string      // from left to right; nil means all, sorted
	Title     string
	Footer    string
	MaxRows   int // 0 means DefaultRows; markers of gaps come on top
}

// DefaultRows is how many rows a diagram has at most when its View does not say.
const DefaultRows = 80
