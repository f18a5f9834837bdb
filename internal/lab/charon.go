package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrNoCharon says that strongSwan is not installed: `tandem lab run` exits
// with status 2 and names the packages.
var ErrNoCharon = errors.New("charon-systemd or swanctl is not installed (apt-get install charon-systemd strongswan-swanctl libcharon-extra-plugins libstrongswan-standard-plugins libstrongswan-extra-plugins)")

// FindCharon returns the programs' paths or ErrNoCharon.
func FindCharon() (charon, swanctl string, err error) {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/bin", "/sbin")
	find := func(name string) string {
		for _, d := range dirs {
			if p, err := exec.LookPath(filepath.Join(d, name)); err == nil {
				return p
			}
		}
		return ""
	}
	charon, swanctl = find("charon-systemd"), find("swanctl")
	if charon == "" || swanctl == "" {
		return "", "", ErrNoCharon
	}
	return charon, swanctl, nil
}

// CharonConfig is what a charon of the lab runs with.
type CharonConfig struct {
	Node    string // where it runs
	Swanctl string // text of its swanctl.conf
	KeyLog  bool   // log level 4, which prints keys: for tshark only
}

// Charon is a running strongSwan of the lab, wholly in user space. Its
// namespace must be its own: it opens UDP 500 and 4500 and a TUN device.
type Charon struct {
	Dir     string // log, sockets, configuration
	proc    *Process
	swanctl string

	mu     sync.Mutex
	events CharonEvents
	conn   *viciConn // events
	ended  chan struct{}
}

// CharonEvents is what charon reported since it started.
type CharonEvents struct {
	ChildRekeys int // completed, whoever began them
	IKERekeys   int
	IKEUps      int
	IKEDowns    int
	ChildDowns  int // not those that a rekey brings
	// SPIs of the Child SAs that came by a rekey, both directions, as charon
	// prints them (eight hex digits).
	RekeyedSPIs map[string]bool
}

const charonPlugins = "nonce aes aesni sha1 sha2 hmac kdf gcm ctr ccm chapoly curve25519 gmp openssl random pem x509 pubkey pkcs1 pkcs8 revocation constraints kernel-libipsec kernel-netlink socket-default vici updown eap-identity eap-mschapv2 eap-tls"

// StartCharon starts charon in a node's namespace and waits until it has loaded
// its configuration.
func (t *Topology) StartCharon(ctx context.Context, cfg CharonConfig) (*Charon, error) {
	bin, swanctl, err := FindCharon()
	if err != nil {
		return nil, err
	}
	c := &Charon{Dir: filepath.Join(t.Dir, "charon-"+cfg.Node), swanctl: swanctl, ended: make(chan struct{})}
	c.events.RekeyedSPIs = map[string]bool{}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	level := 1
	if cfg.KeyLog {
		level = 4
	}
	conf := fmt.Sprintf(`charon-systemd {
  load = %s
  plugins { vici { socket = unix://%s } }
  retransmit_base = 1.2
  retransmit_timeout = 0.5
  retransmit_tries = 15
  filelog { f {
      path = %s
      time_format = %%H:%%M:%%S
      time_add_ms = yes
      flush_line = yes
      default = 1
      ike = %d
      chd = %d
    } }
}
`, charonPlugins, c.socket(), filepath.Join(c.Dir, "log"), level, level)
	confPath, swanPath := filepath.Join(c.Dir, "strongswan.conf"), filepath.Join(c.Dir, "swanctl.conf")
	if err := errors.Join(os.WriteFile(confPath, []byte(conf), 0o600), os.WriteFile(swanPath, []byte(cfg.Swanctl), 0o600)); err != nil {
		return nil, err
	}
	c.proc, err = t.Start(cfg.Node, "charon-"+cfg.Node, []string{bin}, []string{"STRONGSWAN_CONF=" + confPath})
	if err != nil {
		return nil, err
	}
	if err := c.load(ctx, swanPath); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Charon) socket() string { return filepath.Join(c.Dir, "vici") }

// load waits for the vici socket, subscribes to what charon tells, and gives it
// its configuration.
func (c *Charon) load(ctx context.Context, swanPath string) error {
	err := poll(ctx, 10*time.Second, 20*time.Millisecond, func() error {
		if !c.proc.Running() {
			return permanent(errors.New("charon ended: see " + c.proc.LogPath))
		}
		var err error
		c.conn, err = dialVici(ctx, c.socket())
		return err
	})
	if err != nil {
		return fmt.Errorf("charon's vici socket: %w", err)
	}
	for _, e := range []string{"ike-updown", "child-updown", "ike-rekey", "child-rekey"} {
		if err := c.conn.register(e); err != nil {
			return err
		}
	}
	go c.listen()
	cmd := exec.CommandContext(ctx, c.swanctl, "--load-all", "--uri", "unix://"+c.socket(), "--file", swanPath)
	cmd.Env = append(os.Environ(), "STRONGSWAN_CONF="+filepath.Join(c.Dir, "strongswan.conf"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swanctl --load-all: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (c *Charon) listen() {
	defer close(c.ended)
	for {
		kind, name, m, err := c.conn.receive()
		if err != nil {
			return // closed by Stop, or charon died, which Running tells
		}
		if kind == viciEvent {
			c.mu.Lock()
			c.events.add(name, m)
			c.mu.Unlock()
		}
	}
}

// add counts one event.
func (e *CharonEvents) add(name string, m viciMessage) {
	up := m.text("up") == "yes"
	switch name {
	case "ike-updown":
		if up {
			e.IKEUps++
		} else {
			e.IKEDowns++
		}
	case "child-updown":
		if !up {
			e.ChildDowns++
		}
	case "ike-rekey":
		e.IKERekeys++
	case "child-rekey":
		e.ChildRekeys++
		m.walk("", func(section, key, value string) {
			if section == "new" && (key == "spi-in" || key == "spi-out") {
				e.RekeyedSPIs[value] = true
			}
		})
	}
}

// Events returns what charon has reported so far.
func (c *Charon) Events() CharonEvents {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.events
	e.RekeyedSPIs = map[string]bool{}
	for k := range c.events.RekeyedSPIs {
		e.RekeyedSPIs[k] = true
	}
	return e
}

func (c *Charon) run(ctx context.Context, command, stream string, args viciMessage) (viciMessage, []viciMessage, error) {
	v, err := dialVici(ctx, c.socket())
	if err != nil {
		return nil, nil, err
	}
	defer v.close()
	return v.command(ctx, command, stream, args)
}

// Initiate brings up a Child SA (and its IKE SA) within the time given.
func (c *Charon) Initiate(ctx context.Context, child string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within+time.Second)
	defer cancel()
	_, _, err := c.run(ctx, "initiate", "", viciMessage{
		"child": child, "timeout": strconv.FormatInt(within.Milliseconds(), 10),
	})
	return err
}

// Terminate deletes an IKE SA by the name of its connection.
func (c *Charon) Terminate(ctx context.Context, ike string) error {
	_, _, err := c.run(ctx, "terminate", "", viciMessage{"ike": ike, "timeout": "5000"})
	return err
}

// Rekey begins the rekey of a Child SA or an IKE SA by name; the other is empty.
func (c *Charon) Rekey(ctx context.Context, child, ike string) error {
	m := viciMessage{}
	if child != "" {
		m["child"] = child
	}
	if ike != "" {
		m["ike"] = ike
	}
	_, _, err := c.run(ctx, "rekey", "", m)
	return err
}

// CharonSA is an IKE SA of charon with the SPIs (hex) of its Child SAs.
type CharonSA struct {
	Name, State string
	Children    []CharonChild
}

// CharonChild is one Child SA.
type CharonChild struct{ Name, State, SPIIn, SPIOut string }

// SAs lists charon's SAs.
func (c *Charon) SAs(ctx context.Context) ([]CharonSA, error) {
	_, events, err := c.run(ctx, "list-sas", "list-sa", viciMessage{})
	if err != nil {
		return nil, err
	}
	var all []CharonSA
	for _, e := range events {
		for name, v := range e {
			m, ok := v.(viciMessage)
			if !ok {
				continue
			}
			sa := CharonSA{Name: name, State: m.text("state")}
			children, _ := m["child-sas"].(viciMessage)
			for _, v := range children {
				if ch, ok := v.(viciMessage); ok {
					sa.Children = append(sa.Children, CharonChild{ch.text("name"), ch.text("state"), ch.text("spi-in"), ch.text("spi-out")})
				}
			}
			all = append(all, sa)
		}
	}
	return all, nil
}

// Running says whether the process lives.
func (c *Charon) Running() bool { return c.proc.Running() }

// Stop kills charon without a word to its peer.
func (c *Charon) Stop() error {
	err := c.proc.Kill()
	if c.conn != nil {
		err = errors.Join(err, c.conn.close())
	}
	return err
}
