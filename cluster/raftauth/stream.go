package raftauth

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/internal/quiet"
	"tandem/proto/clusterpb"
)

const (
	handshakeTimeout = 2 * time.Second
	maxConns         = 8 * fsm.MaxNodes // that wait or are open, from all members together
	maxCall          = fsm.MaxEntry + 64

	// The first byte of a connection says what it is for.
	forRaft  byte = 'R'
	forCalls byte = 'C'
)

// StreamLayer carries Raft and the calls beside it over one TCP port: mutual TLS
// with the cluster's certificates, and nothing is read before both sides are known.
type StreamLayer struct {
	id      *cluster.Identity
	listen  net.Listener
	resolve func(fsm.NodeID) (string, bool)
	refused *quiet.Refusals

	raft   chan net.Conn
	done   chan struct{}
	slots  chan struct{}
	wg     sync.WaitGroup
	answer func(fsm.NodeID, *clusterpb.RaftCall) *clusterpb.RaftAnswer

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]inbound
	calls  map[fsm.NodeID]net.Conn // idle, one a member
}

// inbound is the other end of an incoming connection; node 0: it is not known yet.
type inbound struct {
	node fsm.NodeID
	host string
}

// NewStreamLayer serves on a listener; resolve says where a member listens.
func NewStreamLayer(id *cluster.Identity, l net.Listener, resolve func(fsm.NodeID) (string, bool), log *slog.Logger) *StreamLayer {
	return &StreamLayer{id: id, listen: l, resolve: resolve, refused: quiet.NewRefusals(log, "HA raft connection refused"), raft: make(chan net.Conn), done: make(chan struct{}),
		slots: make(chan struct{}, maxConns), conns: map[net.Conn]inbound{}, calls: map[fsm.NodeID]net.Conn{}}
}

// Transport is Raft's transport over the layer.
func (s *StreamLayer) Transport(log *slog.Logger) raft.Transport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, MaxPool: 3, Timeout: time.Second, Logger: Logger(log), MaxRPCsInFlight: 1,
	})
}

// Serve begins to accept; calls are answered by the function.
func (s *StreamLayer) Serve(answer func(fsm.NodeID, *clusterpb.RaftCall) *clusterpb.RaftAnswer) {
	s.answer = answer
	s.wg.Add(1)
	go s.acceptAll()
}

func (s *StreamLayer) acceptAll() {
	defer s.wg.Done()
	for {
		c, err := s.listen.Accept()
		if err != nil {
			select {
			case <-s.done:
				return
			case <-time.After(HeartbeatTimeout): // out of descriptors, most likely
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
			s.wg.Add(1)
			go s.incoming(c)
		default:
			s.refused.Add(c.RemoteAddr().String(), errors.New("too many connections"))
			c.Close()
		}
	}
}

func (s *StreamLayer) incoming(raw net.Conn) {
	defer s.wg.Done()
	c := tls.Server(raw, s.id.VoterTLS())
	if !s.track(c) {
		return
	}
	from, purpose, err := s.greet(c)
	if err != nil {
		select {
		case <-s.done: // we are closing: nobody is refused
		default:
			s.refused.Add(raw.RemoteAddr().String(), err)
		}
		s.untrack(c)
		return
	}
	if purpose == forRaft {
		select {
		case s.raft <- &counted{Conn: c, end: func() { s.untrack(c) }}:
		case <-s.done:
			s.untrack(c)
		}
		return
	}
	defer s.untrack(c)
	for {
		q := &clusterpb.RaftCall{}
		if err := readMessage(c, q); err != nil {
			return
		}
		c.SetWriteDeadline(time.Now().Add(handshakeTimeout))
		if err := writeMessage(c, s.answer(from, q)); err != nil {
			return
		}
	}
}

func (s *StreamLayer) greet(c *tls.Conn) (fsm.NodeID, byte, error) {
	c.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := c.Handshake(); err != nil {
		return 0, 0, err
	}
	from, err := s.id.PeerVoter(c.ConnectionState())
	if err != nil {
		return 0, 0, err
	}
	if err := s.admit(c, fsm.NodeID(from)); err != nil {
		return 0, 0, err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, 0, err
	}
	if b[0] != forRaft && b[0] != forCalls {
		return 0, 0, fmt.Errorf("unknown purpose %d", b[0])
	}
	return fsm.NodeID(from), b[0], c.SetDeadline(time.Time{})
}

// admit takes the number of a member or witness, unless it is in use: two that vote under
// one number would break every decision. Whoever is connected from where the number's
// heartbeats come from has it; a second one elsewhere, with a copy of its certificate,
// has not.
func (s *StreamLayer) admit(c *tls.Conn, from fsm.NodeID) error {
	here := hostOf(c.RemoteAddr().String())
	known := ""
	if at, ok := s.resolve(from); ok {
		known = hostOf(at)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.conns {
		if known != "" && known != here && o.node == from && o.host == known {
			return fmt.Errorf("another node has number %d: it is connected from %s", from, o.host)
		}
	}
	if _, ok := s.conns[c]; ok {
		s.conns[c] = inbound{node: from, host: here}
	}
	return nil
}

// hostOf is an address without port and zone.
func hostOf(at string) string {
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return at
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return host
}

// track remembers an incoming connection, so that Close can end it.
func (s *StreamLayer) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		<-s.slots
		return false
	}
	s.conns[c] = inbound{}
	return true
}

func (s *StreamLayer) untrack(c net.Conn) {
	s.mu.Lock()
	_, known := s.conns[c]
	delete(s.conns, c)
	s.mu.Unlock()
	if known {
		c.Close()
		<-s.slots
	}
}

// counted is a connection in Raft's hands.
type counted struct {
	net.Conn
	end func()
}

func (c *counted) Close() error {
	c.end()
	return nil
}

// Accept gives Raft its connections.
func (s *StreamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-s.raft:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Addr is where the layer listens.
func (s *StreamLayer) Addr() net.Addr { return s.listen.Addr() }

// Dial connects Raft to a member, named by its number, and to nobody else.
func (s *StreamLayer) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.dial(ctx, nodeOf(a), forRaft)
}

func (s *StreamLayer) dial(ctx context.Context, to fsm.NodeID, purpose byte) (net.Conn, error) {
	at, ok := s.resolve(to)
	if !ok {
		return nil, fmt.Errorf("node %d has no known address", to)
	}
	d := tls.Dialer{Config: s.id.VoterTLS()}
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	got, err := s.id.PeerVoter(c.(*tls.Conn).ConnectionState())
	if err == nil && fsm.NodeID(got) != to {
		err = fmt.Errorf("at %s is node %d, not %d", at, got, to)
	}
	if err == nil {
		if t, ok := ctx.Deadline(); ok {
			c.SetWriteDeadline(t)
		}
		_, err = c.Write([]byte{purpose})
		c.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Who asks a member at an address for its number: its certificate says it.
func (s *StreamLayer) Who(ctx context.Context, at string) (fsm.NodeID, error) {
	d := tls.Dialer{Config: s.id.VoterTLS()}
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	id, err := s.id.PeerVoter(c.(*tls.Conn).ConnectionState())
	if err != nil {
		return 0, err
	}
	if t, ok := ctx.Deadline(); ok {
		c.SetWriteDeadline(t)
	}
	_, err = c.Write([]byte{forCalls}) // a connection that ends without a purpose is a refused one
	return fsm.NodeID(id), err
}

// Call asks another member. A connection that has failed is not used again, and the
// call is repeated on a new one: what is asked bears repetition.
func (s *StreamLayer) Call(ctx context.Context, to fsm.NodeID, q *clusterpb.RaftCall) (*clusterpb.RaftAnswer, error) {
	s.mu.Lock()
	c := s.calls[to]
	delete(s.calls, to)
	s.mu.Unlock()
	if c != nil {
		if a, err := s.exchange(ctx, to, c, q); err == nil || ctx.Err() != nil {
			return a, err
		}
	}
	c, err := s.dial(ctx, to, forCalls)
	if err != nil {
		return nil, err
	}
	return s.exchange(ctx, to, c, q)
}

func (s *StreamLayer) exchange(ctx context.Context, to fsm.NodeID, c net.Conn, q *clusterpb.RaftCall) (*clusterpb.RaftAnswer, error) {
	t, _ := ctx.Deadline() // zero: none
	c.SetDeadline(t)
	going := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	a := &clusterpb.RaftAnswer{}
	err := errors.Join(writeMessage(c, q), readMessage(c, a))
	if !going() && err == nil {
		err = ctx.Err() // of a connection with that deadline nothing more comes
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.calls[to] != nil {
		c.Close()
	} else {
		s.calls[to] = c
	}
	return a, nil
}

// Close ends everything.
func (s *StreamLayer) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	err := s.listen.Close()
	for c := range s.conns {
		c.Close()
	}
	for _, c := range s.calls {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func writeMessage(w io.Writer, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readMessage(r io.Reader, m proto.Message) error {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > maxCall {
		return fmt.Errorf("a message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}
