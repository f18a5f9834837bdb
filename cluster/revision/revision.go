// Package revision says which configuration the members of a cluster share, who may
// change it, and what a member has to do to have it. It is pure: it knows numbers and
// digests, never the text.
//
// Each change is a revision. In a pair the owner of scope 0 decides it, under its
// epoch; in a farm the members' log does. A member that is told of a newer one fetches
// the text from whoever runs it. Two halves that both went on alone may each decide
// one: the later epoch's counts in the end, on both. What a member starts with that is
// of no revision (a file that was edited meanwhile) becomes one only where nobody who
// can be reached runs the newest.
//
// One walk: the file of a member changes → Propose at the owner → Decide → the owner
// runs it, and Applied → State to the others → Next says Take → Applied there.
package revision

import (
	"bytes"
	"errors"
	"fmt"

	"tandem/cluster/fsm"
	"tandem/proto/syncpb"
)

// DigestLen is the length of a digest, in bytes.
const DigestLen = fsm.DigestLen

// Digest is of the text that the members share, keyed with a secret of the cluster.
type Digest [DigestLen]byte

// Revision is one configuration of the cluster. The zero one is before all others.
type Revision struct {
	Epoch  fsm.Epoch // under which it was decided; zero where the log decides
	Number uint64    // the one before plus 1
	Digest Digest
	By     fsm.NodeID // where the change was made; 0: not known
}

// Before orders revisions: by epoch, then number. Two that were decided alike by the
// same epoch and number are one; digests only keep the order total whatever happens.
func (r Revision) Before(o Revision) bool {
	switch {
	case r.Epoch != o.Epoch:
		return r.Epoch.Less(o.Epoch)
	case r.Number != o.Number:
		return r.Number < o.Number
	}
	return bytes.Compare(r.Digest[:], o.Digest[:]) < 0
}

// Same says that both are one revision.
func (r Revision) Same(o Revision) bool {
	return r.Epoch == o.Epoch && r.Number == o.Number && r.Digest == o.Digest
}

func (r Revision) String() string {
	if r.Epoch == (fsm.Epoch{}) {
		return fmt.Sprint(r.Number)
	}
	return fmt.Sprintf("%d (epoch %s)", r.Number, r.Epoch)
}

// State is what a member says of itself.
type State struct {
	Process uint64
	Have    Revision // the newest that it took
	Running Digest   // what it runs: Have's, unless something else is loaded
	Aside   bool     // it keeps its configuration to itself
	Fault   string   // why it cannot take what is newer; empty: nothing is in its way
}

// ordered says that the member runs its newest revision.
func (s *State) ordered() bool { return s.Have.Number > 0 && s.Have.Digest == s.Running }

// MaxFault bounds the text of a fault, in bytes.
const MaxFault = 2048

var errMalformed = errors.New("not what a member says of its configuration")

// Mark is a revision on the wire.
func (r Revision) Mark() *syncpb.RevisionMark {
	return &syncpb.RevisionMark{EpochCounter: r.Epoch.Counter, EpochNode: uint32(r.Epoch.Node), Number: r.Number, Digest: bytes.Clone(r.Digest[:]), By: uint32(r.By)}
}

// OfMark reads one; none is the zero revision.
func OfMark(m *syncpb.RevisionMark) (r Revision, err error) {
	if m == nil {
		return r, nil
	}
	if m.GetEpochNode() > fsm.MaxNodes || m.GetBy() > fsm.MaxNodes || (m.GetEpochNode() == 0) != (m.GetEpochCounter() == 0) {
		return r, fmt.Errorf("%w: node %d of epoch %d, by node %d", errMalformed, m.GetEpochNode(), m.GetEpochCounter(), m.GetBy())
	}
	r = Revision{Epoch: fsm.Epoch{Counter: m.GetEpochCounter(), Node: fsm.NodeID(m.GetEpochNode())}, Number: m.GetNumber(), By: fsm.NodeID(m.GetBy())}
	if r.Digest, err = OfBytes(m.GetDigest()); err != nil {
		return Revision{}, err
	}
	if r.Number == 0 && (r.Epoch != (fsm.Epoch{}) || r.Digest != (Digest{})) || r.Number > 1<<62 {
		return Revision{}, fmt.Errorf("%w: revision %d", errMalformed, r.Number)
	}
	return r, nil
}

// OfBytes reads a digest.
func OfBytes(b []byte) (d Digest, err error) {
	if len(b) != DigestLen {
		return d, fmt.Errorf("%w: a digest of %d bytes", errMalformed, len(b))
	}
	return Digest(b), nil
}

// Message is a state on the wire.
func (s *State) Message() *syncpb.ConfigState {
	return &syncpb.ConfigState{Process: s.Process, Have: s.Have.Mark(), Running: bytes.Clone(s.Running[:]), Aside: s.Aside, Fault: Short(s.Fault)}
}

// OfMessage reads it.
func OfMessage(m *syncpb.ConfigState) (s State, err error) {
	if m.GetProcess() == 0 || len(m.GetFault()) > MaxFault {
		return s, errMalformed
	}
	s = State{Process: m.GetProcess(), Aside: m.GetAside(), Fault: m.GetFault()}
	if s.Have, err = OfMark(m.GetHave()); err == nil {
		s.Running, err = OfBytes(m.GetRunning())
	}
	if err != nil {
		return State{}, err
	}
	return s, nil
}

// Short is a text that fits into a message.
func Short(s string) string {
	const more = " …"
	if len(s) <= MaxFault {
		return s
	}
	end := MaxFault - len(more)
	for end > 0 && s[end]&0xc0 == 0x80 {
		end--
	}
	return s[:end] + more
}
