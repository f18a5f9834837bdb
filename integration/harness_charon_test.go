package integration

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// conn is one connection of charon's with one child named net. Empty fields
// take what toPeer and netPhase2 say on the other side.
type conn struct {
	local, remote     string // outer addresses
	id, remoteID      string // empty: the address; remoteID "-" sends no IDr and takes any
	secret            string
	ike, esp          string // proposals
	localTS, remoteTS string
	noEncap           bool
	mobike            bool
	conn, child       string // further lines
	secrets           string // further secrets
	// Certificates: what local and remote say in the place of auth = psk, and swanctl's files.
	local2, remote2 string
	files           map[string][]byte
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (c conn) render() string {
	local, remote := or(c.local, peerWAN), or(c.remote, gwWAN)
	encap, rid := "yes", "id = "+or(c.remoteID, remote)
	if c.noEncap {
		encap = "no"
	}
	mobike := "no"
	if c.mobike {
		mobike = "yes"
	}
	if c.remoteID == "-" {
		rid = "id = %any"
	}
	lid := ""
	if c.id != "" {
		lid = "id = " + c.id
	}
	return fmt.Sprintf(`
connections { gw {
    version = 2
    local_addrs = %s
    remote_addrs = %s
    encap = %s
    proposals = %s
    mobike = %s
    %s
    local { %s
        %s }
    remote { %s
        %s }
    children { net {
        local_ts = %s
        remote_ts = %s
        esp_proposals = %s
        %s
    } }
} }
secrets { ike { secret = "%s" }
    %s }
`, local, remote, encap, or(c.ike, "aes128gcm16-prfsha256-x25519"), mobike, c.conn, or(c.local2, "auth = psk"), lid, or(c.remote2, "auth = psk"), rid,
		or(c.localTS, peerNet), or(c.remoteTS, gwNet), or(c.esp, "aes128gcm16-x25519"), c.child, or(c.secret, psk), c.secrets)
}

// charon is a running strongSwan.
type charon struct {
	*lab.Charon
	t   *testing.T
	ctx context.Context
}

// charon starts strongSwan on a node; settings are further lines for
// strongswan.conf.
func (s *site) charon(node string, c conn, settings ...string) *charon {
	s.t.Helper()
	needCharon(s.t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	ch, err := s.topo.StartCharon(ctx, lab.CharonConfig{Node: node, Swanctl: c.render(), Settings: strings.Join(settings, "\n"), Credentials: c.files})
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := ch.Stop(); err != nil {
			s.t.Error(err)
		}
		cancel()
	})
	running := &charon{ch, s.t, ctx}
	running.sayVersion("user-space ESP")
	return running
}

// up initiates the child and wants it to stand.
func (c *charon) up() {
	c.t.Helper()
	if err := c.Initiate(c.ctx, "net", 10*time.Second); err != nil {
		c.t.Fatal(err)
	}
}

// down deletes the connection and wants the SAs gone on both sides.
func (c *charon) down(g *gateway) {
	c.t.Helper()
	if err := c.Terminate(c.ctx, "gw"); err != nil {
		c.t.Errorf("charon's terminate: %v", err)
	}
	c.wantNone()
	g.wantNone("")
}

func (c *charon) sas() []lab.CharonSA {
	c.t.Helper()
	sas, err := c.SAs(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return sas
}

func (c *charon) wantNone() {
	c.t.Helper()
	eventually(c.t, 10*time.Second, "no SA at charon", func() bool { return len(c.sas()) == 0 })
}

// one is the only IKE SA, and its only installed Child SA.
func (c *charon) one() (lab.CharonSA, lab.CharonChild) {
	c.t.Helper()
	var sa lab.CharonSA
	var child lab.CharonChild
	ok := holds(10*time.Second, func() bool {
		sas := c.sas()
		if len(sas) != 1 || sas[0].State != "ESTABLISHED" {
			return false
		}
		n := 0
		sa = sas[0]
		for _, x := range sa.Children {
			if x.State == "INSTALLED" {
				n, child = n+1, x
			}
		}
		return n == 1
	})
	if !ok {
		c.t.Fatalf("charon has not one IKE SA with one Child SA: %+v", c.sas())
	}
	return sa, child
}

// says waits for a line in charon's log.
func (c *charon) says(pattern string) {
	c.t.Helper()
	re := regexp.MustCompile(pattern)
	eventually(c.t, 10*time.Second, "charon says "+pattern, func() bool {
		text, err := os.ReadFile(c.LogPath())
		return err == nil && re.Match(text)
	})
}

// said counts the matches of a pattern in charon's log.
func (c *charon) said(pattern string) int {
	text, err := os.ReadFile(c.LogPath())
	if err != nil {
		return 0
	}
	return len(regexp.MustCompile(pattern).FindAll(text, -1))
}
