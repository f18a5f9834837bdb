package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// ErrUsage says that what was asked for is not there, or cannot be here.
var ErrUsage = errors.New("cannot run")

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
	Silent  bool   // log level -1: nothing is logged
	// Settings are further lines of the charon-systemd section, in charon's words.
	Settings string
	// Credentials are files in swanctl's folders, which stand beside its swanctl.conf: "x509ca/ca.pem", "private/key.pem".
	Credentials map[string][]byte
}

// Charon is a running strongSwan of the lab, wholly in user space. Its
// namespace must be its own: it opens UDP 500 and 4500 and a TUN device.
type Charon struct {
	Dir     string   // log, sockets, configuration
	proc    *Process // nil in a guest
	swanctl string
	dial    func(context.Context) (net.Conn, error) // its vici socket
	uri     string                                  // the same for swanctl
	within  func(func() error) error                // the namespace in which uri is reached
	names   []string                                // of a farm's tunnels

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

// CharonPlugins are what charon loads, unless CharonConfig.Settings load others.
const CharonPlugins = "nonce aes aesni sha1 sha2 hmac kdf gcm ctr ccm chapoly curve25519 gmp openssl random pem x509 pubkey pkcs1 pkcs8 revocation constraints kernel-libipsec kernel-netlink socket-default vici updown eap-identity eap-mschapv2 eap-tls"

// StartCharon starts charon in a node's namespace and waits until it has loaded
// its configuration.
func (t *Topology) StartCharon(ctx context.Context, cfg CharonConfig) (*Charon, error) {
	bin, swanctl, err := FindCharon()
	if err != nil {
		return nil, err
	}
	c := &Charon{Dir: filepath.Join(t.Dir, "charon-"+cfg.Node), swanctl: swanctl, ended: make(chan struct{})}
	socket := filepath.Join(c.Dir, "vici")
	c.uri = "unix://" + socket
	c.dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	c.within = func(f func() error) error { return f() }
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.confPath(), []byte(cfg.conf(CharonPlugins, c.uri, c.LogPath())), 0o600); err != nil {
		return nil, err
	}
	if c.proc, err = t.Start(cfg.Node, "charon-"+cfg.Node, []string{bin}, []string{"STRONGSWAN_CONF=" + c.confPath()}); err != nil {
		return nil, err
	}
	if err := c.begin(ctx, cfg); err != nil {
		return nil, err
	}
	return c, nil
}

// GuestCharon is a charon on a kernel of its own, ESP included, which Start starts with
// the STRONGSWAN_CONF it is given. Dir is a folder that both kernels have; vici listens
// on Vici, which is reached from the namespace of Node.
type GuestCharon struct {
	Dir   string
	Vici  netip.AddrPort
	Start func(strongswanConf string) error
}

// guestPlugins are few, as each costs time to load in a guest.
const guestPlugins = "nonce aes sha1 sha2 hmac kdf gcm ctr ccm chapoly curve25519 openssl random pem x509 pubkey pkcs1 kernel-netlink socket-default vici updown"

// StartGuestCharon starts a charon in a guest and waits until it has loaded its
// configuration. Stop ends only what the lab has of it.
func (t *Topology) StartGuestCharon(ctx context.Context, g GuestCharon, cfg CharonConfig) (*Charon, error) {
	_, swanctl, err := FindCharon()
	if err != nil {
		return nil, err
	}
	c := &Charon{Dir: g.Dir, swanctl: swanctl, uri: "tcp://" + g.Vici.String(), ended: make(chan struct{})}
	c.dial = func(ctx context.Context) (conn net.Conn, err error) {
		err = t.In(cfg.Node, func() (err error) {
			conn, err = net.DialTimeout("tcp", g.Vici.String(), time.Second)
			return err
		})
		return conn, err
	}
	c.within = func(f func() error) error { return t.In(cfg.Node, f) }
	conf := cfg.conf(guestPlugins, "tcp://"+g.Vici.String(), c.LogPath())
	if err := errors.Join(os.MkdirAll(c.Dir, 0o700), os.WriteFile(c.confPath(), []byte(conf), 0o600)); err != nil {
		return nil, err
	}
	if err := g.Start(c.confPath()); err != nil {
		return nil, err
	}
	if err := c.begin(ctx, cfg); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Charon) confPath() string { return filepath.Join(c.Dir, "strongswan.conf") }

// conf is its strongswan.conf.
func (cfg CharonConfig) conf(plugins, uri, log string) string {
	level := 1
	if cfg.KeyLog {
		level = 4
	}
	least := 1
	if cfg.Silent {
		least, level = -1, -1
	}
	return fmt.Sprintf(`charon-systemd {
  load = %s
  plugins { vici { socket = %s } }
  retransmit_base = 1.2
  retransmit_timeout = 0.5
  retransmit_tries = 15
  %s
  filelog { f {
      path = %s
      time_format = %%H:%%M:%%S
      time_add_ms = yes
      flush_line = yes
      default = %d
      ike = %d
      chd = %d
    } }
}
`, plugins, uri, cfg.Settings, log, least, level, level)
}

// begin writes what swanctl reads and loads it. On failure charon ends.
func (c *Charon) begin(ctx context.Context, cfg CharonConfig) error {
	c.events.RekeyedSPIs = map[string]bool{}
	swanPath := filepath.Join(c.Dir, "swanctl.conf")
	if err := os.WriteFile(swanPath, []byte(cfg.Swanctl), 0o600); err != nil {
		return errors.Join(err, c.Stop())
	}
	for name, text := range cfg.Credentials {
		path := filepath.Join(c.Dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
			return errors.Join(err, c.Stop())
		}
	}
	if err := c.load(ctx, swanPath); err != nil {
		return errors.Join(err, c.Stop())
	}
	return nil
}

// PID is its process, where it runs on this host.
func (c *Charon) PID() int { return c.proc.PID }

// LogPath is charon's log: every message that it parsed and generated by its
// payloads, the proposals it selected, and why it refused.
func (c *Charon) LogPath() string { return filepath.Join(c.Dir, "log") }

// load waits for the vici socket, subscribes to what charon tells, and gives it
// its configuration.
func (c *Charon) load(ctx context.Context, swanPath string) error {
	err := poll(ctx, 10*time.Second, 20*time.Millisecond, func() error {
		if !c.Running() {
			return permanent(errors.New("charon ended: see " + c.proc.LogPath))
		}
		var err error
		c.conn, err = c.vici(ctx)
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
	return c.loadFile(ctx, swanPath)
}

// Load gives it another configuration in the place of the one that it has.
func (c *Charon) Load(ctx context.Context, swanctl string) error {
	path := filepath.Join(c.Dir, "swanctl.conf")
	if err := os.WriteFile(path, []byte(swanctl), 0o600); err != nil {
		return err
	}
	return c.loadFile(ctx, path)
}

func (c *Charon) loadFile(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, c.swanctl, "--load-all", "--clear", "--uri", c.uri, "--file", path)
	cmd.Env = append(os.Environ(), "STRONGSWAN_CONF="+c.confPath())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := c.within(cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("swanctl --load-all: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

func (c *Charon) vici(ctx context.Context) (*viciConn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	return newViciConn(conn), nil
}

// Version is what charon says of itself and of its kernel.
func (c *Charon) Version(ctx context.Context) (version, kernel string, err error) {
	m, _, err := c.run(ctx, "version", "", viciMessage{})
	return m.text("version"), m.text("release"), err
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
	v, err := c.vici(ctx)
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

// TerminateChild deletes a Child SA by its name and does not wait for the peer.
func (c *Charon) TerminateChild(ctx context.Context, child string) error {
	_, _, err := c.run(ctx, "terminate", "", viciMessage{"child": child, "timeout": "-1"})
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

// Reauthenticate begins a repeated authentication of an IKE SA by name.
func (c *Charon) Reauthenticate(ctx context.Context, ike string) error {
	_, _, err := c.run(ctx, "rekey", "", viciMessage{"ike": ike, "reauth": "yes"})
	return err
}

// Redirect sends the peer of an IKE SA to another gateway (RFC 5685).
func (c *Charon) Redirect(ctx context.Context, ike, gateway string) error {
	_, _, err := c.run(ctx, "redirect", "", viciMessage{"ike": ike, "gateway": gateway})
	return err
}

// CharonSA is an IKE SA of charon with the SPIs (hex) of its Child SAs.
type CharonSA struct {
	Name, State string
	SPIi, SPIr  string // hexadecimal
	Initiator   bool
	RemoteID    string
	RemoteHost  string // the peer's outer address
	Children    []CharonChild
}

// CharonChild is one Child SA. Encap says that its ESP travels in UDP; DH is the
// group of its own key exchange, empty for none.
type CharonChild struct {
	Name, State, SPIIn, SPIOut string
	Encap                      bool
	DH                         string
	LocalTS, RemoteTS          []string
}

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
			sa := CharonSA{Name: name, State: m.text("state"), SPIi: m.text("initiator-spi"), SPIr: m.text("responder-spi"),
				Initiator: m.text("initiator") == "yes", RemoteID: m.text("remote-id"), RemoteHost: m.text("remote-host")}
			children, _ := m["child-sas"].(viciMessage)
			for _, v := range children {
				if ch, ok := v.(viciMessage); ok {
					sa.Children = append(sa.Children, CharonChild{
						Name: ch.text("name"), State: ch.text("state"), SPIIn: ch.text("spi-in"), SPIOut: ch.text("spi-out"),
						Encap: ch.text("encap") == "yes", DH: ch.text("dh-group"),
						LocalTS: ch.list("local-ts"), RemoteTS: ch.list("remote-ts"),
					})
				}
			}
			all = append(all, sa)
		}
	}
	return all, nil
}

// Running says whether the process lives.
func (c *Charon) Running() bool { return c.proc == nil || c.proc.Running() }

// Stop kills charon without a word to its peer.
func (c *Charon) Stop() error {
	var err error
	if c.proc != nil {
		err = c.proc.Kill()
	}
	if c.conn != nil {
		err = errors.Join(err, c.conn.close())
	}
	return err
}

// Process is the running program.
func (c *Charon) Process() *Process { return c.proc }
