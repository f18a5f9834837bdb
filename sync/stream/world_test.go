package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/internal/testkit"
	statesync "tandem/sync"
)

// authority is a throw-away CA; node IDs are common names.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) tls(t testing.TB, node cluster.NodeID) *tls.Config {
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(node) + 1), Subject: pkix.Name{CommonName: strconv.Itoa(int(node))},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: a.pool}
}

func nodeOfCert(s tls.ConnectionState) (cluster.NodeID, error) {
	n, err := strconv.Atoi(s.PeerCertificates[0].Subject.CommonName)
	return cluster.NodeID(n), err
}

// medium is what links are made of: each device can be cut or stalled.
type medium struct {
	mu      sync.Mutex
	cut     map[string]bool
	stalled map[string]chan struct{} // closed when it ends
	conns   map[string][]net.Conn
	dialled map[string]int
}

func newMedium() *medium {
	return &medium{cut: map[string]bool{}, stalled: map[string]chan struct{}{}, conns: map[string][]net.Conn{}, dialled: map[string]int{}}
}

func (m *medium) dial(ctx context.Context, l cluster.Link, port uint16) (net.Conn, error) {
	m.mu.Lock()
	cut := m.cut[l.Device]
	m.dialled[l.Device]++
	m.mu.Unlock()
	if cut {
		return nil, errors.New("the link is cut")
	}
	c, err := dial(ctx, l, port)
	if err != nil {
		return nil, err
	}
	c = &mediumConn{Conn: c, m: m, device: l.Device, closed: make(chan struct{})}
	m.mu.Lock()
	m.conns[l.Device] = append(m.conns[l.Device], c)
	m.mu.Unlock()
	return c, nil
}

func (m *medium) sever(device string) {
	m.mu.Lock()
	m.cut[device] = true
	conns := m.conns[device]
	m.conns[device] = nil
	m.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

func (m *medium) mend(device string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.cut, device)
	if c := m.stalled[device]; c != nil {
		close(c)
		delete(m.stalled, device)
	}
}

// stall makes writes on the device block, as a full send buffer does.
func (m *medium) stall(device string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stalled[device] = make(chan struct{})
}

func (m *medium) dials(device string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dialled[device]
}

type mediumConn struct {
	net.Conn
	m      *medium
	device string
	once   sync.Once
	closed chan struct{}
}

func (c *mediumConn) Write(b []byte) (int, error) {
	c.m.mu.Lock()
	wait := c.m.stalled[c.device]
	c.m.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(b)
}

func (c *mediumConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// host is a node with its endpoint, and what it was told.
type host struct {
	*Endpoint
	t       testing.TB
	node    cluster.NodeID
	process cluster.ProcessID
	port    uint16
	hold    bool          // does not call Done
	gate    chan struct{} // if there is one, Frame waits for it

	mu      sync.Mutex
	events  []string // "up 2 b1", "down 2 b1"
	got     []uint64 // in order
	high    uint64
	all     int    // with those that came again
	disgust string // what was out of order
	ackedTo uint64
	held    []Received
	ack     bool // acknowledge at once
}

func newHost(t testing.TB, a *authority, m *medium, node cluster.NodeID, process cluster.ProcessID) *host {
	t.Helper()
	h := newDeafHost(t, a, m.dial, node, process)
	addr, err := h.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.port = uint16(addr.(*net.TCPAddr).Port)
	return h
}

// newDeafHost makes a host that does not listen yet.
func newDeafHost(t testing.TB, a *authority, dial func(context.Context, cluster.Link, uint16) (net.Conn, error), node cluster.NodeID, process cluster.ProcessID) *host {
	t.Helper()
	h := &host{t: t, node: node, process: process}
	e, err := New(Options{
		Self: node, Process: process, TLS: a.tls(t, node), PeerNode: nodeOfCert, Log: slog.New(slog.DiscardHandler),
		Dial: dial,
		Handler: Handler{
			Up:    func(n cluster.NodeID, p cluster.ProcessID) { h.event("up", n, p) },
			Down:  func(n cluster.NodeID, p cluster.ProcessID) { h.event("down", n, p) },
			Frame: h.frame,
			Ack: func(n cluster.NodeID, p cluster.ProcessID, _ cluster.ScopeID, seq uint64) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.ackedTo = max(h.ackedTo, seq)
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Endpoint = e
	t.Cleanup(func() { e.Close() })
	return h
}

func (h *host) event(what string, n cluster.NodeID, p cluster.ProcessID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, fmt.Sprintf("%s %d %x", what, n, uint64(p)))
}

// frame plays the replica: first arrivals in order, the rest ignored.
func (h *host) frame(r Received) {
	seq := binary.BigEndian.Uint64(r.Frame)
	h.mu.Lock()
	h.all++
	switch {
	case seq == h.high+1:
		h.high = seq
		h.got = append(h.got, seq)
	case seq > h.high+1:
		h.disgust = fmt.Sprintf("frame %d after %d", seq, h.high)
	}
	high, ack := h.high, h.ack
	if h.hold {
		h.held = append(h.held, r)
	}
	hold, gate := h.hold, h.gate
	h.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if ack {
		h.Ack(statesync.SendAck{Node: r.Node, Process: r.Process, Seq: high})
	}
	if !hold {
		r.Done()
	}
}

func (h *host) knows(o *host, devices ...string) {
	var links []cluster.Link
	for _, d := range devices {
		links = append(links, cluster.Link{Device: d, Addr: "127.0.0.1"})
	}
	h.SetPeers(o.node, o.process, links, o.port)
}

func frameOf(seq uint64, size int) []byte {
	b := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(b, seq)
	return b
}

func (h *host) sends(o *host, from, to uint64, size int) {
	for seq := from; seq <= to; seq++ {
		h.Send(statesync.SendFrame{Node: o.node, Process: o.process, Seq: seq, Frame: frameOf(seq, size)})
	}
}

// until waits for a condition on what the host was told.
func (h *host) until(why string, ok func() bool) {
	h.t.Helper()
	testkit.Until(h.t, why, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.disgust != "" {
			h.t.Fatal(h.disgust)
		}
		return ok()
	})
}

func (h *host) told(want ...string) {
	h.t.Helper()
	h.until("told "+strings.Join(want, ", "), func() bool { return len(h.events) >= len(want) })
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.events, want) {
		h.t.Fatalf("told %q, want %q", h.events, want)
	}
}

// streams counts the open streams from a node.
func (h *host) streams(from cluster.NodeID) int {
	r := h.receiver(from)
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.streams)
}

// second counts the frames of a node that arrived again.
func (h *host) second(from cluster.NodeID) uint64 {
	r := h.receiver(from)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.second
}

// live counts the open streams to a node.
func (h *host) live(to cluster.NodeID) int {
	s := h.toward(to)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live
}

// kept is what is not acknowledged by a node, of all scopes.
func (e *Endpoint) kept(to cluster.NodeID) (frames, bytes int) {
	s := e.toward(to)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.logs {
		frames += len(o.frames)
	}
	return frames, s.bytes
}

// pair is two nodes with two links; node 1 sends, node 2 acknowledges.
func pair(t testing.TB) (*authority, *medium, *host, *host) {
	a, m := newAuthority(t), newMedium()
	one, two := newHost(t, a, m, 1, 0xa1), newHost(t, a, m, 2, 0xb1)
	two.ack = true
	one.knows(two, "hb1", "hb2")
	return a, m, one, two
}

func bothOpen(t testing.TB, from, to *host) {
	t.Helper()
	testkit.Until(t, "both links are open", func() bool { return to.streams(from.node) == 2 && from.live(to.node) == 2 })
}
