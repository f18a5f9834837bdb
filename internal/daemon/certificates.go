package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"tandem/internal/config"
	"tandem/internal/pki"
)

// readCertificates reads the files that a configuration names for certificates and keys, and
// adds what is wrong with them, or with the time that they are valid, to the faults. The
// configuration is nil again where one is no warning.
func readCertificates(file string, c *config.Config, faults []config.Fault, strict bool) (*config.Config, []config.Fault) {
	if c == nil {
		return nil, faults
	}
	for _, f := range c.ReadCertificates(file, time.Now(), strict, readCredential) {
		faults = append(faults, f)
		if !f.Warning {
			c = nil
		}
	}
	return c, faults
}

// readCredential reads one file. A private key that others can read is refused.
func readCredential(path string, private bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, plain(err)
	}
	defer f.Close()
	i, err := f.Stat()
	switch {
	case err != nil:
		return nil, plain(err)
	case !i.Mode().IsRegular():
		return nil, errors.New("it is no file")
	case private && i.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("others can read it (mode %#o): it must have mode 0600", i.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, pki.MaxFile+1))
	return b, plain(err)
}

// plain is an error without the path, which is named already.
func plain(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// CheckConfig is LoadConfig of a text, with all faults, warnings too; the configuration is nil
// where one is no warning. An own certificate that has expired is none here: a gateway runs all the same.
func CheckConfig(path string, text []byte) (*config.Config, []config.Fault) {
	c, faults := config.Load(path, text)
	return readCertificates(path, c, faults, true)
}
