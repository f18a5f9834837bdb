package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
	"tandem/internal/needs"
)

const radiusSecret = "a RADIUS secret"

// eapGateway lets in carol by her password and whoever has a certificate of peer.test, or whom RADIUS accepts.
func eapGateway(a *authority, members string, more ...string) gwConf {
	return gwConf{
		phase1: []entry{{"users", append([]string{"type dynamic", "interface wan0", "authmethod signature", "certificate gw", "localid gw.test", "eap enable", "authusrgrp staff",
			"proposal aes128gcm-prfsha256", "dhgrp 31", "nattraversal forced", "dpd disable", "mode-cfg enable", "ipv4-start-ip 10.9.1.10", "ipv4-end-ip 10.9.1.20"}, more...)}},
		phase2: []entry{dialupPhase2("users", "users")},
		more: a.blocks("gw.test") + `config user peer
    edit "cert"
        set ca "ca"
        set cn "peer.test"
    next
end
config user local
    edit "carol"
        set passwd "Wonderland"
    next
end
config user radius
    edit "aaa"
        set server ` + peerWAN + `
        set secret "` + radiusSecret + `"
        set timeout 6
    next
    edit "two"
        set server 192.0.2.99
        set secret "of a host that is not there"
        set secondary-server ` + peerWAN + `
        set secondary-secret "` + radiusSecret + `"
        set timeout 2
    next
end
config user group
    edit "staff"
        set member ` + members + `
    next
end
`}
}

// eapClient is charon as a client: local is how it proves itself.
func eapClient(a *authority, id, local string) conn {
	return conn{id: id, remoteID: "gw.test", localTS: "dynamic", remoteTS: gwNet, conn: "vips = 0.0.0.0", local2: local, remote2: "auth = pubkey",
		secrets: "eap-carol { id = carol\n secret = \"Wonderland\" }",
		files:   map[string][]byte{"x509ca/ca.pem": a.read("ca.crt"), "x509/own.pem": a.read("peer.test.crt"), "private/own.pem": a.read("peer.test.key")}}
}

// freeRADIUS runs the server on a node: carol by her password, and certificates of an authority.
func (s *site) freeRADIUS(node string, a *authority) *lab.Process {
	s.t.Helper()
	bin, err := exec.LookPath("freeradius")
	if err != nil {
		needs.Missing(s.t, err.Error())
	}
	dir := filepath.Join(s.topo.Dir, "freeradius-"+node)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	conf := strings.NewReplacer("@DIR@", dir, "@CA@", a.path("ca.crt"), "@CERT@", a.path("aaa.test.crt"), "@KEY@", a.path("aaa.test.key"), "@SECRET@", radiusSecret, "@GW@", gwWAN).Replace(`
libdir = /usr/lib/freeradius
logdir = @DIR@
run_dir = @DIR@
name = radiusd
max_request_time = 10
cleanup_delay = 5
log {
 destination = stdout
}
security {
 max_attributes = 200
 reject_delay = 0
 status_server = no
}
client gw {
 ipaddr = @GW@
 secret = "@SECRET@"
 require_message_authenticator = yes
}
modules {
 eap {
  default_eap_type = mschapv2
  timer_expire = 60
  tls-config common {
   private_key_file = @KEY@
   certificate_file = @CERT@
   ca_file = @CA@
   cipher_list = "DEFAULT"
   tls_min_version = "1.2"
   tls_max_version = "1.2"
   ecdh_curve = ""
  }
  tls {
   tls = common
  }
  mschapv2 {
  }
 }
 mschap {
 }
 files {
  usersfile = @DIR@/users
  key = "%{User-Name}"
 }
}
server default {
 listen {
  type = auth
  ipaddr = *
  port = 1812
 }
 authorize {
  eap {
   ok = return
  }
  files
 }
 authenticate {
  Auth-Type MS-CHAP {
   mschap
  }
  eap
 }
}
`)
	if err := os.WriteFile(filepath.Join(dir, "users"), []byte("carol Cleartext-Password := \"Wonderland\"\n\npeer.test EAP-Type := TLS\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "radiusd.conf"), []byte(conf), 0o600); err != nil {
		s.t.Fatal(err)
	}
	p, err := s.topo.Start(node, "freeradius-"+node, []string{bin, "-X", "-d", dir, "-D", "/usr/share/freeradius"}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = stopProcess(p, 5*time.Second) })
	eventually(s.t, 10*time.Second, "FreeRADIUS is ready", func() bool {
		if !p.Running() {
			text, _ := os.ReadFile(p.LogPath)
			s.t.Fatalf("FreeRADIUS ended:\n%s", text)
		}
		return contains(p.LogPath, "Ready to process requests")
	})
	return p
}

func newEAPAuthority(t *testing.T) *authority {
	t.Helper()
	a := newAuthority(t, "ecdsa256")
	for _, n := range []string{"gw.test", "peer.test", "aaa.test"} {
		a.issue(n)
	}
	return a
}
