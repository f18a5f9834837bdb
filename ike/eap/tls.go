package eap

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"net"
	"time"
)

// Session is a TLS connection that is fed with flights and returns flights: crypto/tls runs as a
// coroutine, within the call to Step and at no other time. It cannot leave its process: crypto/tls
// neither lets its state be taken out nor draws its ephemeral keys from Config.Rand (Go 1.26), so a
// replay from a replicated seed would not give the same messages.
type Session struct {
	conn   *tls.Conn
	in     bytes.Buffer
	out    []byte
	server bool
	resume func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool
	done   bool
	err    error
}

// NewServer and NewClient begin a session under a configuration that the session owns from then on. Close
// ends it.
func NewServer(c *tls.Config) *Session { return newSession(c, true) }
func NewClient(c *tls.Config) *Session { return newSession(c, false) }

func newSession(c *tls.Config, server bool) *Session {
	c.SessionTicketsDisabled = true // each authentication stands for itself
	c.MinVersion = tls.VersionTLS12
	c.DynamicRecordSizingDisabled = true
	s := &Session{server: server}
	if server {
		s.conn = tls.Server(wire{s}, c)
	} else {
		s.conn = tls.Client(wire{s}, c)
	}
	s.resume, s.stop = iter.Pull(func(yield func(struct{}) bool) {
		s.yield = yield
		s.err = s.run()
		s.done = s.err == nil
	})
	return s
}

// run is the whole of it. Under TLS 1.3 the server says that it will send nothing more by one byte of
// data (RFC 9190 §2.5).
func (s *Session) run() error {
	if err := s.conn.Handshake(); err != nil {
		return err
	}
	if s.conn.ConnectionState().Version < tls.VersionTLS13 {
		return nil
	}
	if s.server {
		_, err := s.conn.Write([]byte{0})
		return err
	}
	b := make([]byte, 1)
	if n, err := s.conn.Read(b); err != nil {
		return err
	} else if n != 1 || b[0] != 0 {
		return errCommitment
	}
	return nil
}

var (
	errCommitment = errors.New("eap: the server's commitment message is not there")
	errClosed     = errors.New("eap: the TLS session was closed")
)

// Step feeds a flight of the peer and returns ours, which may come with an error: an alert. done says
// that the handshake is complete.
func (s *Session) Step(flight []byte) (out []byte, done bool, err error) {
	s.in.Write(flight)
	if !s.done && s.err == nil {
		s.resume()
	}
	out, s.out = s.out, nil
	return out, s.done, s.err
}

// Close ends a session wherever it is.
func (s *Session) Close() {
	s.stop()
	s.in.Reset()
}

// State is what was agreed on.
func (s *Session) State() tls.ConnectionState { return s.conn.ConnectionState() }

// Key is the MSK of a complete session, 64 bytes (RFC 5216 §2.3, RFC 9190 §2.3).
func (s *Session) Key() ([]byte, error) {
	if !s.done {
		return nil, errors.New("eap: no key before TLS is done")
	}
	state := s.conn.ConnectionState()
	label, context := "client EAP encryption", []byte(nil)
	if state.Version >= tls.VersionTLS13 {
		label, context = "EXPORTER_EAP_TLS_Key_Material", []byte{byte(TLS)}
	}
	k, err := state.ExportKeyingMaterial(label, context, 128)
	if err != nil {
		return nil, err
	}
	return k[:64], nil
}

// wire is the connection beneath TLS.
type wire struct{ s *Session }

// Read gives what is there; where that is nothing, Step returns until there is more.
func (w wire) Read(b []byte) (int, error) {
	for w.s.in.Len() == 0 {
		if !w.s.yield(struct{}{}) {
			return 0, errClosed
		}
	}
	return w.s.in.Read(b)
}

func (w wire) Write(b []byte) (int, error) {
	if len(w.s.out)+len(b) > maxTLSMessage {
		return 0, io.ErrShortWrite
	}
	w.s.out = append(w.s.out, b...)
	return len(b), nil
}

func (wire) Close() error                     { return nil }
func (wire) LocalAddr() net.Addr              { return nil }
func (wire) RemoteAddr() net.Addr             { return nil }
func (wire) SetDeadline(time.Time) error      { return nil }
func (wire) SetReadDeadline(time.Time) error  { return nil }
func (wire) SetWriteDeadline(time.Time) error { return nil }
