package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A CA, a gateway and a client in one command each; the help's configuration loads with them.
func TestPKI(t *testing.T) {
	dir := t.TempDir()
	run := func(want int, args ...string) string {
		t.Helper()
		out, code, text := tandem(append(append([]string{"pki"}, args...), "--dir", dir)...)
		if code != want {
			t.Fatalf("pki %v: exit %d, want %d: %s", args, code, want, text)
		}
		return out + text
	}
	if s := run(1, "node", "gw.example.com"); !strings.Contains(s, "there is no CA yet: make it with `tandem pki ca --dir "+dir) {
		t.Error(s)
	}
	if s := run(0, "ca", "--name", "Example VPN CA", "--organization", "Example"); !strings.Contains(s, "subject:     O=Example, CN=Example VPN CA\n") {
		t.Error(s)
	}
	run(0, "node", "gw.example.com", "--ip", "192.0.2.1", "--ip", "2001:db8::1", "--dns", "vpn.example.com")
	for args, want := range map[string]string{
		"ca": "is never overwritten", "node gw.example.com": "is never overwritten", "client a/b": "without blanks and slashes", "client x --key-type dsa": "must be one of ecdsa256",
		"revoke nobody": "no such file"} {
		if s := run(1, strings.Fields(args)...); !strings.Contains(s, want) {
			t.Errorf("%s: %s", args, s)
		}
	}
	for args, want := range map[string]string{"node x --ip nowhere": "is no address", "client x --days 0": "--days must be between 1 and 36500", "client": "accepts 1 arg"} {
		if s := run(2, strings.Fields(args)...); !strings.Contains(s, want) {
			t.Errorf("%s: %s", args, s)
		}
	}
	var j issuedJSON
	if err := json.Unmarshal([]byte(run(0, "client", "alice@example.com", "--key-type", "ed25519", "--days", "10", "--json")), &j); err != nil {
		t.Fatal(err)
	}
	if j.Subject != "O=Example, CN=alice@example.com" || len(j.Emails) != 1 || j.KeyType != "ed25519" || time.Until(j.NotAfter) > 10*24*time.Hour || len(j.Fingerprint) != 64 || j.Key != filepath.Join(dir, "alice@example.com.key") {
		t.Errorf("%+v", j)
	}
	if s := run(0, "revoke", "alice@example.com"); !strings.Contains(s, "1 certificates are revoked") {
		t.Error(s)
	}
	if s := run(0, "revoke", "--json"); !strings.Contains(s, j.Serial) {
		t.Error(s)
	}

	// The help teaches a configuration: it is one.
	help, code, _ := tandem("pki", "--help")
	_, block, ok := strings.Cut(help, "A gateway then says\n\n")
	block, _, ok2 := strings.Cut(block, "            …")
	if code != 0 || !ok || !ok2 {
		t.Fatal(help)
	}
	conf := filepath.Join(dir, "gw.conf")
	write := func(change ...string) {
		text := strings.ReplaceAll(block, "/etc/tandem/pki", dir) + "set interface wan\nset remote-gw 192.0.2.10\nnext\nend\n"
		if err := os.WriteFile(conf, []byte(strings.NewReplacer(change...).Replace(text)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if out, code, text := tandem("check", conf); code != 0 || !strings.Contains(out, ": ok, 1 phase 1") || strings.Contains(out, "warning") {
		t.Errorf("exit %d: %s%s", code, out, text)
	}
	write("gw.example.com.crt", "alice@example.com.crt")
	if out, code, _ := tandem("check", conf); code != 1 || !strings.Contains(out, "gw.conf:9: certificate gw: private-key is not the key of the certificate (O=Example, CN=alice@example.com)") {
		t.Errorf("exit %d: %s", code, out)
	}
	write()
	if err := os.Chmod(filepath.Join(dir, "gw.example.com.key"), 0o640); err != nil {
		t.Fatal(err)
	}
	if out, code, _ := tandem("check", conf, "--json"); code != 1 || !strings.Contains(out, "others can read it (mode 0640): it must have mode 0600") {
		t.Errorf("exit %d: %s", code, out)
	}
}
