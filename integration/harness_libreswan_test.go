package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// libreswan is a pluto on a guest's kernel.
type libreswan struct {
	t        *testing.T
	s        *site
	dir, bin string
	conns    []string // those of a part
}

// libreswan starts pluto in the guest, for all parts of a test. Its programs lie in the
// cache of the guest, and look for each other in a folder that the machine need not have.
func (s *site) libreswan() *libreswan {
	s.t.Helper()
	cache, err := guestFiles()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &libreswan{t: s.t, s: s, dir: filepath.Join(s.guest.dir, "libreswan"), bin: "/usr/libexec/ipsec/"}
	if err := os.MkdirAll(filepath.Join(p.dir, "nss"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	for name, text := range map[string]string{"ipsec.conf": "config setup\n", "ipsec.secrets": ": PSK \"" + psk + "\"\n"} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	out, err := s.guest.shell(fmt.Sprintf(`set -e
mount -t tmpfs libexec /usr/libexec
mkdir -p /usr/libexec/ipsec /run/pluto
mount --bind %s/libreswan/usr/libexec/ipsec /usr/libexec/ipsec
certutil -N -d sql:%s/nss --empty-password
%spluto --config %s/ipsec.conf --secretsfile %s/ipsec.secrets --nssdir %s/nss --logfile %s/log
%spluto --version
`, cache, p.dir, p.bin, p.dir, p.dir, p.dir, p.dir, p.bin))
	if err != nil {
		s.t.Fatalf("pluto: %v: %s", err, out)
	}
	kernel, _ := s.guest.run("uname", "-r")
	sayPeer(s.t, "libreswan", regexp.MustCompile(`(?i)libreswan v?(\d[\w.]*)`).FindStringSubmatch(out + "libreswan 0")[1]+", Linux "+strings.TrimSpace(kernel)+" ESP")
	p.says("loading secrets")
	return p
}

// with is the same pluto for a part of a test, with conns (ipsec.conf's words) that go
// with it.
func (p *libreswan) with(s *site, conns string) *libreswan {
	s.t.Helper()
	part := &libreswan{t: s.t, s: s, dir: p.dir, bin: p.bin}
	path := filepath.Join(p.dir, "conns.conf")
	if err := os.WriteFile(path, []byte("config setup\n"+conns), 0o600); err != nil {
		s.t.Fatal(err)
	}
	add := []string{p.bin + "addconn", "--ctlsocket", "/run/pluto/pluto.ctl", "--config", path}
	for line := range strings.SplitSeq(conns, "\n") {
		if name, ok := strings.CutPrefix(line, "conn "); ok {
			add, part.conns = append(add, name), append(part.conns, name)
		}
	}
	if out, err := s.guest.run(add...); err != nil || strings.Contains(out, "failed to add") {
		s.t.Fatalf("addconn: %v: %s", err, out)
	}
	s.t.Cleanup(part.remove)
	return part
}

// whack gives pluto a command.
func (p *libreswan) whack(args ...string) string {
	p.t.Helper()
	out, err := p.s.guest.run(append([]string{p.bin + "whack"}, args...)...)
	if err != nil {
		p.t.Errorf("whack %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (p *libreswan) log() string {
	text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return string(text)
}

// said counts the matches of a pattern in its log.
func (p *libreswan) said(pattern string) int {
	return len(regexp.MustCompile(pattern).FindAllString(p.log(), -1))
}

// says waits for a line of its log.
func (p *libreswan) says(pattern string) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	eventually(p.t, 20*time.Second, "libreswan says "+pattern, func() bool { return re.MatchString(p.log()) })
}

// rekeyIKE rekeys the IKE SA that its conns share: it belongs to one of them, to which
// one is libreswan's secret, and the others have nothing to rekey.
func (p *libreswan) rekeyIKE() {
	p.t.Helper()
	for _, c := range p.conns {
		_, _ = p.s.guest.run(p.bin+"whack", "--name", c, "--rekey-ike")
	}
}

// remove takes its conns away, and what stands of them.
func (p *libreswan) remove() {
	p.t.Helper()
	for _, c := range p.conns {
		p.whack("--delete", "--name", c)
	}
	p.conns = nil
}
