package raftauth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"tandem/cluster/fsm"
)

// machine is the farm's state as Raft drives it. Raft by itself does not know,
// when a member starts again, how much of its log is committed: it would show the
// last snapshot until a leader is found. So the state is kept beside the log, too
// (Node.keep), and entries that it contains are passed over.
type machine struct {
	mu    sync.Mutex
	m     *fsm.Machine
	index uint64 // of the last entry that m contains

	min, max uint32
	changed  func(index uint64, scopes []fsm.ScopeID)
	unfit    func(error) // a snapshot that this build does not understand
}

func newMachine(min, max uint32, changed func(uint64, []fsm.ScopeID)) *machine {
	return &machine{m: fsm.NewBuild(min, max), min: min, max: max, changed: changed}
}

// Apply carries out a committed entry.
func (f *machine) Apply(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return nil
	}
	f.mu.Lock()
	if l.Index <= f.index {
		f.mu.Unlock()
		return fsm.Result{Code: fsm.Unchanged, Repeated: true}
	}
	if err := f.m.Unfit(); err != nil {
		// What this build does not understand it must not pass over either: the state
		// would be kept, and a later build would go on from it.
		f.mu.Unlock()
		return fsm.Result{Code: fsm.TooNew, Why: err.Error()}
	}
	r := f.m.Apply(l.Data)
	f.index = l.Index
	f.mu.Unlock()
	f.changed(l.Index, r.Scopes)
	return r
}

// marshal is the state with the index that it belongs to.
func (f *machine) marshal() (uint64, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index, append(binary.BigEndian.AppendUint64(nil, f.index), f.m.Snapshot()...)
}

// restore takes a marshalled state unless it is older than the one that is known.
func (f *machine) restore(b []byte) error {
	if len(b) < 8 {
		return errors.New("a state without an index")
	}
	index := binary.BigEndian.Uint64(b)
	m := fsm.NewBuild(f.min, f.max)
	if err := m.Restore(b[8:]); err != nil {
		return err
	}
	f.mu.Lock()
	older := index < f.index
	if !older {
		f.m, f.index = m, index
	}
	f.mu.Unlock()
	if !older {
		f.changed(index, nil)
	}
	return nil
}

// Snapshot is for Raft's own snapshots.
func (f *machine) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	err := f.m.Unfit()
	f.mu.Unlock()
	if err != nil {
		return nil, err // it would be taken for the state after entries that were not applied
	}
	_, b := f.marshal()
	return snapshot(b), nil
}

// Restore takes one of them.
func (f *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, 8+fsm.MaxSnapshot+1))
	if err != nil {
		return err
	}
	if err := f.restore(b); err != nil {
		if errors.Is(err, fsm.ErrUnfit) && f.unfit != nil {
			f.unfit(err)
		}
		return fmt.Errorf("snapshot of the farm: %w", err)
	}
	return nil
}

type snapshot []byte

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (snapshot) Release() {}
