package raftauth

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"tandem/cluster/fsm"
)

// Disk is what a member keeps: the log, Raft's own numbers, snapshots. No key and
// no tunnel is in any of them.
type Disk struct {
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	Close     func() error
}

// OpenDisk opens, or makes, dir/raft.
func OpenDisk(dir string, log hclog.Logger) (*Disk, error) {
	dir = filepath.Join(dir, "raft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	s, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "log.db"),
		BoltOptions: &bbolt.Options{Timeout: time.Second}}) // another process holds it: say so instead of waiting
	if err != nil {
		return nil, fmt.Errorf("state-dir: %s: %w", filepath.Join(dir, "log.db"), err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("state-dir: %w", err), s.Close())
	}
	return &Disk{Log: s, Stable: s, Snapshots: snaps, Close: s.Close}, nil
}

// MemoryDisk is one in memory, for tests: it outlives the members that use it.
func MemoryDisk() *Disk {
	s := raft.NewInmemStore()
	return &Disk{Log: s, Stable: s, Snapshots: raft.NewInmemSnapshotStore(), Close: func() error { return nil }}
}

// Keys in the stable store, beside Raft's own.
var (
	keyStore  = []byte("tandem store")
	keyLife   = []byte("tandem life")
	keyOpened = []byte("tandem opened ranges")
	keyState  = []byte("tandem state")
)

// stable returns nil for what was never written: stores differ in how they say that.
func stable(s raft.StableStore, key []byte) ([]byte, error) {
	b, err := s.Get(key)
	if err != nil && (errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() == "not found") {
		return nil, nil
	}
	return b, err
}

func stableUint(s raft.StableStore, key []byte) (uint64, error) {
	b, err := stable(s, key)
	if err != nil || len(b) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

func setUint(s raft.StableStore, key []byte, n uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, n))
}

// identity reads, or makes, the number of this disk and of this start.
func (d *Disk) identity() (store, life uint64, err error) {
	if store, err = stableUint(d.Stable, keyStore); err != nil {
		return 0, 0, err
	}
	if store == 0 {
		var b [8]byte
		rand.Read(b[:])
		store = binary.BigEndian.Uint64(b[:]) | 1
		if err := setUint(d.Stable, keyStore, store); err != nil {
			return 0, 0, err
		}
	}
	if life, err = stableUint(d.Stable, keyLife); err != nil {
		return 0, 0, err
	}
	// A lost disk must not bring back old lives: the clock is above them.
	life = max(life+1, uint64(max(time.Now().UnixMilli(), 1)))
	return store, life, setUint(d.Stable, keyLife, life)
}

// Holdings are the marks of the member's ranges, on its disk. Safe for concurrent use.
type Holdings struct {
	mu sync.Mutex
	h  fsm.Holdings
	s  raft.StableStore
	// stale: the disk has refused a write, and holds less than h.
	stale bool
}

func openHoldings(s raft.StableStore, node fsm.NodeID, store uint64) (*Holdings, error) {
	b, err := stable(s, keyOpened)
	if err != nil {
		return nil, err
	}
	if len(b)%8 != 0 {
		return nil, fmt.Errorf("state-dir: the marks of opened ranges are broken")
	}
	h := &Holdings{h: fsm.Holdings{Node: node, Store: store}, s: s}
	for ; len(b) > 0; b = b[8:] {
		h.h.Open(fsm.RangeID(binary.BigEndian.Uint64(b)))
	}
	return h, nil
}

// Open returns when the range is marked on disk: numbers may be given out of it.
func (h *Holdings) Open(id fsm.RangeID) error { return h.write(func(x *fsm.Holdings) { x.Open(id) }) }

// Close returns when it is sure that nothing is given out of the range any more:
// it may be returned.
func (h *Holdings) Close(id fsm.RangeID) error { return h.write(func(x *fsm.Holdings) { x.Close(id) }) }

func (h *Holdings) forget(onDisk *fsm.Machine) error {
	return h.write(func(x *fsm.Holdings) { x.Forget(onDisk) })
}

func (h *Holdings) write(change func(*fsm.Holdings)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := slices.Clone(h.h.Opened)
	change(&h.h)
	if slices.Equal(before, h.h.Opened) && !h.stale {
		return nil
	}
	var b []byte
	for _, id := range h.h.Opened {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	err := h.s.Set(keyOpened, b)
	if h.stale = err != nil; h.stale {
		return fmt.Errorf("state-dir: %w", err)
	}
	return nil
}
