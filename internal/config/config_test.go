package config

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tandem/internal/ipsec"
)

// load reads a configuration that must have no fault; it returns the warnings.
func load(t *testing.T, file, text string) (*Config, []Fault) {
	t.Helper()
	c, faults := Load(file, []byte(text))
	for _, f := range faults {
		if !f.Warning {
			t.Error(f.Error())
		}
	}
	if c == nil {
		t.FailNow()
	}
	return c, faults
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var equalConfig = cmp.Options{
	cmp.Comparer(func(a, b ipsec.Key) bool { return bytes.Equal(a.Bytes(), b.Bytes()) }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreFields(Phase1{}, "Line"),
	cmpopts.IgnoreFields(Phase2{}, "Line"),
	cmpopts.IgnoreFields(LocalCertificate{}, "CertificateLine", "KeyLine"),
	cmpopts.IgnoreFields(CACertificate{}, "Line"),
	cmpopts.IgnoreFields(RemoteCertificate{}, "Line"),
	cmpopts.IgnoreFields(CRL{}, "Line"),
	cmpopts.IgnoreFields(UserPeer{}, "Line"),
	cmpopts.EquateEmpty(),
}

// What show prints, in both forms, loads again to an equal configuration.
func TestShowRoundTrip(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, f := range files {
		want, _ := load(t, f, readFile(t, f))
		for _, full := range []bool{false, true} {
			var b strings.Builder
			if err := want.ShowSecrets(&b, "", full); err != nil {
				t.Fatal(err)
			}
			got, warnings := load(t, f+" (shown)", b.String())
			for _, w := range warnings {
				if strings.Contains(w.Message, "has no effect here") {
					t.Errorf("%s: show prints what has no effect: %v", f, w.Error())
				}
			}
			if d := cmp.Diff(want, got, equalConfig); d != "" {
				t.Errorf("%s: full=%v: loading what was shown gives another configuration (-want +got):\n%s\n%s", f, full, d, b.String())
			}
			var again strings.Builder
			if err := got.ShowSecrets(&again, "", full); err != nil {
				t.Fatal(err)
			}
			if again.String() != b.String() {
				t.Errorf("%s: showing twice differs:\n%s", f, cmp.Diff(b.String(), again.String()))
			}
		}
	}
}
