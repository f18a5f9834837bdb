package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

const transferPort = 7001

// Transfer is one long TCP connection through the tunnel: the sender's bytes
// are random, the receiver answers with their SHA-256 when the sender has ended.
type Transfer struct {
	conn   *net.TCPConn
	ln     *net.TCPListener
	cancel context.CancelFunc
	done   chan error
	sent   int64
	sum    hash.Hash
}

// StartTransfer connects from one host to another and sends rate bytes a second
// until Finish.
func (t *Topology) StartTransfer(ctx context.Context, from string, to string, toAddr netip.Addr, rate int) (*Transfer, error) {
	x := &Transfer{done: make(chan error, 1), sum: sha256.New()}
	addr := net.TCPAddrFromAddrPort(netip.AddrPortFrom(toAddr, transferPort))
	err := t.In(to, func() (err error) { x.ln, err = net.ListenTCP("tcp", addr); return err })
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	go x.serve()
	err = t.In(from, func() error {
		d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: -1}
		// One address and one family: the dialer makes its socket on this thread.
		c, err := d.DialContext(ctx, "tcp", addr.String())
		if err == nil {
			x.conn = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		x.ln.Close()
		return nil, fmt.Errorf("transfer: %w", err)
	}
	ctx, x.cancel = context.WithCancel(ctx)
	go func() { x.done <- x.send(ctx, rate) }()
	return x, nil
}

func (x *Transfer) serve() {
	c, err := x.ln.AcceptTCP()
	if err != nil {
		return
	}
	defer c.Close()
	h := sha256.New()
	if _, err := io.Copy(h, c); err == nil {
		_, _ = c.Write(h.Sum(nil))
	}
}

func (x *Transfer) send(ctx context.Context, rate int) error {
	const perSecond = 20
	block := make([]byte, max(1, rate/perSecond))
	rnd := rand.NewChaCha8([32]byte{1})
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_, _ = rnd.Read(block)
		n, err := x.conn.Write(block)
		x.sum.Write(block[:n])
		x.sent += int64(n)
		if err != nil {
			return err
		}
	}
}

// Finish ends the transfer and says whether the receiver had every byte. It
// waits at most the time given.
func (x *Transfer) Finish(within time.Duration) (sent int64, err error) {
	x.cancel()
	_ = x.conn.SetDeadline(timeNow().Add(within))
	defer x.ln.Close()
	defer x.conn.Close()
	if err := <-x.done; err != nil {
		return x.sent, fmt.Errorf("transfer: %w", err)
	}
	if err := x.conn.CloseWrite(); err != nil {
		return x.sent, fmt.Errorf("transfer: %w", err)
	}
	got, err := io.ReadAll(x.conn)
	if err != nil {
		return x.sent, fmt.Errorf("transfer: %w", err)
	}
	if !bytes.Equal(got, x.sum.Sum(nil)) {
		return x.sent, fmt.Errorf("transfer: receiver's checksum %s is not that of the %d bytes sent", hex.EncodeToString(got), x.sent)
	}
	if x.sent == 0 {
		return 0, errors.New("transfer: nothing was sent")
	}
	return x.sent, nil
}
