package integration

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tandem/internal/needs"
)

// tshark runs over what a tap recorded, with the keys of a key log ("" for none).
func (tp *tap) tshark(keyLog string, args ...string) (string, error) {
	tp.t.Helper()
	if err := tp.c.Flush(); err != nil {
		tp.t.Fatal(err)
	}
	home, err := os.MkdirTemp("", "tandem-tshark-")
	if err != nil {
		tp.t.Fatal(err)
	}
	defer os.RemoveAll(home)
	dir := filepath.Join(home, "wireshark")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tp.t.Fatal(err)
	}
	var ike, esp strings.Builder
	if keyLog != "" {
		text, err := os.ReadFile(keyLog)
		if err != nil {
			tp.t.Fatal(err)
		}
		for _, line := range strings.SplitAfter(string(text), "\n") {
			if strings.HasPrefix(line, `"`) {
				esp.WriteString(line)
			} else {
				ike.WriteString(line)
			}
		}
	}
	for name, text := range map[string]string{"ikev2_decryption_table": ike.String(), "esp_sa": esp.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			tp.t.Fatal(err)
		}
	}
	// A copy up to the last whole packet: the recording goes on.
	cmd := exec.Command("tshark", append([]string{"-n", "-r", tp.c.Path,
		"-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+home, "HOME="+home)
	out, err := cmd.Output()
	return string(out), err
}

// deleted is one DELETE payload that tshark saw.
type deleted struct{ ispi, protocol, spi string }

// deletes are the DELETE payloads in requests from an address.
func (tp *tap) deletes(keyLog, src string) (out []deleted) {
	tp.t.Helper()
	text, err := tp.tshark(keyLog, "-Y", "isakmp.delete.protoid && ip.src == "+src, "-T", "fields", "-E", "aggregator=;",
		"-e", "isakmp.ispi", "-e", "isakmp.delete.protoid", "-e", "isakmp.delete.spi")
	if err != nil && text == "" {
		return nil
	}
	for _, line := range strings.Split(text, "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 3 {
			continue
		}
		spis := strings.Split(strings.ReplaceAll(f[2], ":", ""), ";")
		for _, proto := range strings.Split(f[1], ";") {
			d := deleted{ispi: strings.TrimPrefix(strings.ReplaceAll(f[0], ":", ""), "0x"), protocol: proto}
			if proto != "1" && len(spis) > 0 {
				d.spi, spis = strings.TrimPrefix(spis[0], "0x"), spis[1:]
			}
			out = append(out, d)
		}
	}
	return out
}

// TestKeyLogDecrypts: with `set key-log` the outer capture opens in tshark, IKE and
// ESP, every ICV correct. Without it, no key is in any file that the run leaves.
func TestKeyLogDecrypts(t *testing.T) {
	for _, c := range []struct{ name, phase1, phase2, ike, esp string }{
		{"GCM", "aes128gcm-prfsha256", "aes256gcm", "aes128gcm16-prfsha256-x25519", "aes256gcm16-x25519"},
		{"CBC", "aes128-sha256", "aes256-sha256", "aes128-sha256-x25519", "aes256-sha256-x25519"},
	} {
		t.Run(c.name, func(t *testing.T) {
			needs.Program(t, "tshark")
			t.Parallel()
			s := wire(t)
			wan := s.tap("gw", "wan0")
			keys := filepath.Join(s.topo.Dir, "keys")
			ch := s.charon("peer", conn{ike: c.ike, esp: c.esp})
			g := s.gateway("gw", gwConf{tandem: []string{"key-log " + keys}, phase1: []entry{toPeer("proposal " + c.phase1)},
				phase2: []entry{netPhase2("proposal " + c.phase2)}, routes: []entry{routeTo(peerNet, "vpn1")}})
			ch.up()
			g.wantUp("vpn1", "responder")
			s.pingBoth()
			g.must("diagnose vpn ike rekey child name vpn1")
			eventually(t, 10*time.Second, "rekeyed", func() bool { return ch.Events().ChildRekeys == 1 })
			g.wantOneChild("vpn1")
			s.pingBoth()
			if st, err := os.Stat(keys); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("key log: %v, %v", st, err)
			}
			ch.down(g)
			out, err := wan.tshark(keys, "-V")
			if err != nil {
				t.Fatal(err)
			}
			esp := wan.count(func(p packet) bool { return p.kind == kindUDPESP })
			sk := wan.count(func(p packet) bool { return p.kind == kindIKE && p.exchange() > 34 })
			seen := func(pattern string) int { return len(regexp.MustCompile(pattern).FindAllString(out, -1)) }
			echo := seen(`Type: (0 \(Echo \(ping\) reply\)|8 \(Echo \(ping\) request\))`)
			espICV, ikeICV := seen(`ESP ICV: .*\[correct\]`), seen(`Integrity Checksum Data: .*\[correct\]`)
			t.Logf("%d ESP packets, %d SK messages; correct ICVs: %d and %d; %d echoes", esp, sk, espICV, ikeICV, echo)
			if esp < 16 || espICV != esp || echo != esp {
				t.Errorf("of %d ESP packets %d have a correct ICV and %d open to an echo", esp, espICV, echo)
			}
			if sk < 8 || ikeICV != sk {
				t.Errorf("of %d SK messages %d have a correct ICV", sk, ikeICV)
			}
			for _, bad := range []string{"[incorrect", "Malformed", "Bad: True"} {
				if strings.Contains(out, bad) {
					t.Errorf("tshark says %s", bad)
				}
			}
		})
	}
	t.Run("no key without it", func(t *testing.T) {
		t.Parallel()
		s := wire(t)
		ch := s.charon("peer", conn{ike: "aes128-sha256-x25519"})
		g := s.gateway("gw", gwConf{phase1: []entry{toPeer("proposal aes128-sha256")}, phase2: []entry{netPhase2()}, routes: []entry{routeTo(peerNet, "vpn1")}})
		secrets := map[string]string{psk: "the pre-shared key"}
		collect := func() {
			t.Helper()
			for _, words := range []string{"diagnose vpn ike gateway list", "diagnose vpn tunnel list"} {
				shown := g.must(words, "--json", "--show-keys")
				found := regexp.MustCompile(`"(key|ah_key|sk_e[ir]|sk_a[ir])": "([0-9a-f]{32,})"`).FindAllStringSubmatch(shown, -1)
				if len(found) < 2 {
					t.Fatalf("%s --show-keys shows %d keys:\n%s", words, len(found), shown)
				}
				for _, m := range found {
					secrets[m[2]] = m[1]
				}
				// Without the flag none of them is shown.
				for _, flags := range [][]string{{"--json"}, nil} {
					plain := g.must(words, flags...)
					for k, what := range secrets {
						if strings.Contains(plain, k) || strings.Contains(strings.ReplaceAll(plain, "-", ""), k) {
							t.Errorf("%s %v shows %s", words, flags, what)
						}
					}
				}
			}
		}
		ch.up()
		g.wantUp("vpn1", "responder")
		s.pingBoth()
		collect()
		g.must("diagnose vpn ike rekey child name vpn1")
		eventually(t, 10*time.Second, "Child SA rekeyed", func() bool { return ch.Events().ChildRekeys == 1 })
		g.wantOneChild("vpn1")
		collect()
		g.must("diagnose vpn ike rekey ike name vpn1")
		eventually(t, 10*time.Second, "IKE SA rekeyed", func() bool { return ch.Events().IKERekeys == 1 })
		g.wantUp("vpn1", "initiator")
		collect()
		if strings.Contains(g.must("show full-configuration"), psk) {
			t.Error("show prints the pre-shared key")
		}
		ch.down(g)
		g.stop()
		files := 0
		err := filepath.WalkDir(s.topo.Dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || path == g.conf || d.Name() == "swanctl.conf" {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			lower := strings.ToLower(string(text))
			for k, what := range secrets {
				if strings.Contains(lower, strings.ToLower(k)) {
					t.Errorf("%s holds %s", path, what)
				}
				raw := ""
				_, _ = fmt.Sscanf(k, "%x", &raw)
				if raw != "" && strings.Contains(string(text), raw) {
					t.Errorf("%s holds the bytes of %s", path, what)
				}
			}
			return nil
		})
		if err != nil || files < 3 {
			t.Errorf("%d files searched for %d secrets: %v", files, len(secrets), err)
		}
		if len(secrets) < 9 {
			t.Errorf("only %d secrets were collected", len(secrets))
		}
	})
}
