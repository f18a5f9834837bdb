package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A state file holds one small record in two slots. A write goes to the older
// slot, in place, and is synced: a crash in the middle leaves the other slot, and
// since the file has its full size from the beginning, a full disk does not
// matter (where the file system writes in place, as ext4 and xfs do).
const (
	slotSize  = 4096
	slots     = 2
	slotMagic = "TDMSTAT1"
	slotBody  = 8 + 8 + 4 + 8 + 4 + 1 // magic, number, node, counter, epoch's node, flags
)

type slot struct {
	number  uint64 // rises with each write
	node    NodeID
	counter uint64 // of the epoch, or the incarnation
	epochBy NodeID
	flags   byte
}

const (
	flagNote byte = 1 << iota
	flagLost      // the file was made by a start that did not find it
)

func (s slot) marshal() []byte {
	b := make([]byte, 0, slotSize)
	b = append(b, slotMagic...)
	b = binary.BigEndian.AppendUint64(b, s.number)
	b = binary.BigEndian.AppendUint32(b, uint32(s.node))
	b = binary.BigEndian.AppendUint64(b, s.counter)
	b = binary.BigEndian.AppendUint32(b, uint32(s.epochBy))
	b = append(b, s.flags)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return b[:slotSize]
}

func parseSlot(b []byte) (s slot, ok bool) {
	if len(b) < slotBody+4 || string(b[:8]) != slotMagic ||
		binary.BigEndian.Uint32(b[slotBody:]) != crc32.ChecksumIEEE(b[:slotBody]) {
		return slot{}, false
	}
	return slot{
		number: binary.BigEndian.Uint64(b[8:]), node: NodeID(binary.BigEndian.Uint32(b[16:])),
		counter: binary.BigEndian.Uint64(b[20:]), epochBy: NodeID(binary.BigEndian.Uint32(b[28:])), flags: b[32],
	}, true
}

// stateFile is an open state file and its newest slot.
type stateFile struct {
	f   *os.File
	cur slot
	at  int // index of cur
}

// openStateFile opens the file or makes it; made says that there was none, or
// none of this node's that can be read.
func openStateFile(path string, node NodeID) (s *stateFile, made bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	s = &stateFile{f: f, at: -1}
	for i := range slots {
		b := make([]byte, slotSize)
		if _, err := f.ReadAt(b, int64(i*slotSize)); err != nil {
			continue // short: not written to the end
		}
		if x, ok := parseSlot(b); ok && x.node == node && (s.at < 0 || x.number > s.cur.number) {
			s.cur, s.at = x, i
		}
	}
	if s.at >= 0 {
		return s, false, nil
	}
	s.cur, s.at = slot{node: node, flags: flagLost}, 0
	// Written, not truncated to length: a file with holes would need space later.
	if _, err = f.WriteAt(make([]byte, slots*slotSize), 0); err == nil {
		err = s.write(s.cur)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return s, true, nil
}

func (s *stateFile) write(x slot) error {
	x.number, x.node = s.cur.number+1, s.cur.node
	at := (s.at + 1) % slots
	if _, err := s.f.WriteAt(x.marshal(), int64(at*slotSize)); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	s.cur, s.at = x, at
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// StateDir is what a node keeps on disk: its epoch and the note that it went on
// alone. It is safe for concurrent use.
type StateDir struct {
	mu  sync.Mutex
	dir string
	s   *stateFile
	was slot
}

// OpenStateDir opens the state of a node, and makes it if there is none. The
// directory must exist or be makeable, and be writable.
func OpenStateDir(dir string, node NodeID) (*StateDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	s, _, err := openStateFile(filepath.Join(dir, "epoch.state"), node)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w (the state of a cluster node must be writable)", err)
	}
	return &StateDir{dir: dir, s: s, was: s.cur}, nil
}

// Coverage is what the disk says about this node's last life, Epoch the highest
// epoch that it knows, both as found when it was opened. A disk counts as lost
// until something was written to it.
func (d *StateDir) Coverage() Coverage {
	switch {
	case d.was.flags&flagLost != 0:
		return CoverageLost
	case d.was.flags&flagNote != 0:
		return CoverageNote
	}
	return CoverageProven
}

// Epoch: see Coverage.
func (d *StateDir) Epoch() Epoch {
	if d.was.counter == 0 {
		return Epoch{}
	}
	return Epoch{Counter: d.was.counter, Node: d.was.epochBy}
}

// WriteNote writes the note (on or off) and the epoch, and returns when they are on disk.
func (d *StateDir) WriteNote(on bool, e Epoch) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	x := slot{counter: d.s.cur.counter, epochBy: d.s.cur.epochBy}
	if (Epoch{Counter: x.counter, Node: x.epochBy}).Less(e) {
		x.counter, x.epochBy = e.Counter, e.Node
	}
	if on {
		x.flags |= flagNote
	}
	if err := d.s.write(x); err != nil {
		return fmt.Errorf("state-dir %s: %w", d.dir, err)
	}
	return nil
}

// Close closes the files.
func (d *StateDir) Close() error { return d.s.f.Close() }

// NextIncarnation is the number of this start of the node's guardian: above that
// of every start before, by the disk or, if that is lost, by the clock.
func NextIncarnation(dir string, node NodeID, now time.Time) (uint64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("state-dir: %w", err)
	}
	s, _, err := openStateFile(filepath.Join(dir, "guardian.state"), node)
	if err != nil {
		return 0, fmt.Errorf("state-dir: %w", err)
	}
	defer s.f.Close()
	n := max(s.cur.counter+1, uint64(max(now.UnixMilli(), 1)))
	if err := s.write(slot{counter: n}); err != nil {
		return 0, fmt.Errorf("state-dir: %w", err)
	}
	return n, nil
}
