package daemon

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tandem/cluster"
	"tandem/cluster/revision"
)

const (
	revisionFile    = "config.revision"
	maxRevisionFile = 4 << 10
)

// staged is a file that is written and synced under another name, so that a full disk
// is noticed before anything has changed.
type staged struct{ path, tmp string }

// stage writes what a file shall be. It gets the mode of the one that is there.
func stage(path string, text []byte) (*staged, error) {
	mode := fs.FileMode(0o600)
	if at, err := filepath.EvalSymlinks(path); err == nil {
		path = at
	}
	if i, err := os.Stat(path); err == nil {
		mode = i.Mode().Perm()
	}
	s := &staged{path, path + ".new"}
	f, err := os.OpenFile(s.tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		s.discard()
		return nil, err
	}
	return s, nil
}

// commit puts the file in its place; what was there is kept as FILE.previous if keep.
func (s *staged) commit(keep bool) error {
	if s == nil {
		return nil
	}
	if keep {
		if err := keepPrevious(s.path); err != nil {
			return err
		}
	}
	if err := os.Rename(s.tmp, s.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// keepPrevious gives the file a second name, which it keeps when its first one goes on
// to what follows: there is no moment without a file.
func keepPrevious(path string) error {
	previous := path + ".previous"
	if err := os.Remove(previous); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(path, previous); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *staged) discard() {
	if s != nil {
		_ = os.Remove(s.tmp)
	}
}

// markJSON is what the state-dir remembers: which revision this node took last.
type markJSON struct {
	Number    uint64 `json:"number"`
	Epoch     uint64 `json:"epoch,omitempty"`
	EpochNode uint32 `json:"epoch_node,omitempty"`
	Digest    string `json:"digest"` // keyed
	By        uint32 `json:"by,omitempty"`
}

func markText(r revision.Revision) []byte {
	b, err := json.Marshal(markJSON{r.Number, r.Epoch.Counter, uint32(r.Epoch.Node), hex.EncodeToString(r.Digest[:]), uint32(r.By)})
	if err != nil {
		panic(err) // of plain numbers
	}
	return append(b, '\n')
}

// readMark is the revision that was taken last; none is the zero one.
func readMark(dir string) (revision.Revision, error) {
	f, err := os.Open(filepath.Join(dir, revisionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return revision.Revision{}, nil
	}
	if err != nil {
		return revision.Revision{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRevisionFile))
	if err != nil {
		return revision.Revision{}, err
	}
	return parseMark(b)
}

func parseMark(b []byte) (r revision.Revision, err error) {
	var m markJSON
	if err := json.Unmarshal(b, &m); err != nil {
		return r, fmt.Errorf("%s: %w", revisionFile, err)
	}
	digest, err := hex.DecodeString(m.Digest)
	if err != nil {
		return r, fmt.Errorf("%s: %w", revisionFile, err)
	}
	r = revision.Revision{Epoch: cluster.Epoch{Counter: m.Epoch, Node: cluster.NodeID(m.EpochNode)}, Number: m.Number, By: cluster.NodeID(m.By)}
	if len(digest) != revision.DigestLen {
		return revision.Revision{}, fmt.Errorf("%s: a digest of %d bytes", revisionFile, len(digest))
	}
	r.Digest = revision.Digest(digest)
	return revision.OfMark(r.Mark())
}
