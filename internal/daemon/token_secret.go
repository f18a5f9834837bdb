package daemon

import (
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"

	"tandem/internal/ipsec"
)

// tokenSecret is what a gateway without a cluster makes tokens of quick crash detection from
// (RFC 6290): 32 random bytes in the state-dir, made once, because they have to outlive the
// process. Whoever reads them can end IKE SAs, and read nothing. Without them none are made.
func tokenSecret(log *slog.Logger, dir string) ipsec.Key {
	path := filepath.Join(dir, "crash-token")
	if b, err := os.ReadFile(path); err == nil && len(b) == 32 {
		return ipsec.NewKey(b)
	}
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = writeAtOnce(path, b)
	}
	if err != nil {
		log.Warn("quick crash detection has no secret that outlives this process: it makes no tokens", "error", err)
		return ipsec.Key{}
	}
	return ipsec.NewKey(b)
}

// writeAtOnce writes a file of its owner's alone, whole or not at all.
func writeAtOnce(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
