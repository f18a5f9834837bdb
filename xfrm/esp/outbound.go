package esp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"tandem/internal/ipsec"
)

// ErrSequence means that the SA has no sequence number left (RFC 4303 §3.3.3):
// it has stopped and must be replaced.
var ErrSequence = errors.New("esp: sequence numbers exhausted")

// MaxSequence is the last sequence number that an SA may send.
func MaxSequence(esn bool) uint64 {
	if esn {
		return math.MaxUint64
	}
	return math.MaxUint32
}

// Outbound seals packets of one SA. It is not safe for concurrent use.
type Outbound struct {
	t    *transform
	spi  ipsec.ESPSPI
	iv   *ipsec.IVCounter // AEAD
	rand *IVSource        // CBC
}

// NewOutbound builds the sealing end of a Child SA. iv is required for an AEAD,
// rand for CBC.
func NewOutbound(c *ipsec.ChildSA, iv *ipsec.IVCounter, rand *IVSource) (*Outbound, error) {
	l, err := LayoutOf(c.Suite)
	if err != nil {
		return nil, err
	}
	if c.Suite.Encr.AEAD() && iv == nil {
		return nil, fmt.Errorf("esp: SA %v has no IV counter", c.SPIIn)
	}
	if !c.Suite.Encr.AEAD() && l.IVLen > 0 && rand == nil {
		return nil, fmt.Errorf("esp: SA %v has no source of unpredictable IVs", c.SPIIn)
	}
	t, err := newTransform(c.Suite, l, c.EncrOut.Bytes(), c.SaltOut.Bytes(), c.IntegOut.Bytes(), false)
	if err != nil {
		return nil, err
	}
	return &Outbound{t: t, spi: c.SPIOut, iv: iv, rand: rand}, nil
}

// Seal makes an ESP packet of the payload buf[off:off+n] in place. HeaderRoom
// bytes before it and TrailerRoom bytes behind it are overwritten; the returned
// packet is a part of buf. seq must never have been used before; nextHeader is 4
// or 41 in tunnel mode.
func (o *Outbound) Seal(buf []byte, off, n int, seq uint64, nextHeader uint8) ([]byte, error) {
	if seq == 0 || seq > MaxSequence(o.t.esn) {
		return nil, ErrSequence
	}
	start := off - espHeaderLen - o.t.IVLen
	if start < 0 || off+n+TrailerRoom > len(buf) {
		return nil, io.ErrShortBuffer
	}
	n, err := o.seal(buf[start:], buf, off, n, seq, nextHeader)
	if err != nil {
		return nil, err
	}
	return buf[start : start+n], nil
}

// SealTo is Seal into other memory: it makes the packet at the beginning of dst, which
// holds Layout.SealedLen(n) bytes and does not overlap buf, and returns its length. Up to
// PadRoom bytes behind the payload are needed, and are as before when it returns.
func (o *Outbound) SealTo(dst, buf []byte, off, n int, seq uint64, nextHeader uint8) (int, error) {
	if seq == 0 || seq > MaxSequence(o.t.esn) {
		return 0, ErrSequence
	}
	if len(dst) < o.t.SealedLen(n) || off+n+PadRoom > len(buf) {
		return 0, io.ErrShortBuffer
	}
	end := off + n
	behind := [PadRoom]byte(buf[end:])
	n, err := o.seal(dst, buf, off, n, seq, nextHeader)
	copy(buf[end:], behind[:])
	return n, err
}

// seal makes the packet at the beginning of dst, whose payload overlaps the one in buf
// exactly or not at all.
func (o *Outbound) seal(dst, buf []byte, off, n int, seq uint64, nextHeader uint8) (int, error) {
	pad := (o.t.Align - (n+2)%o.t.Align) % o.t.Align
	end := off + n
	for i := range pad { // RFC 4303 §2.4
		buf[end+i] = byte(i + 1)
	}
	buf[end+pad] = byte(pad)
	buf[end+pad+1] = nextHeader
	binary.BigEndian.PutUint32(dst, uint32(o.spi))
	binary.BigEndian.PutUint32(dst[4:], uint32(seq))
	var err error
	if o.iv != nil && o.t.aead != nil {
		err = o.iv.Next(dst[espHeaderLen:])
	} else if o.t.IVLen > 0 {
		err = o.rand.next(dst[espHeaderLen : espHeaderLen+o.t.IVLen])
	}
	if err != nil {
		return 0, err
	}
	return o.t.seal(dst, buf[off:end+pad+2], seq), nil
}

// IVSource hands out unpredictable bytes from a reader, which it asks in large
// pieces. It is safe for concurrent use, so that all SAs may share one.
type IVSource struct {
	mu  sync.Mutex
	r   io.Reader
	buf [4096]byte
	off int
}

// NewIVSource reads from r, which must be a cryptographic random source.
func NewIVSource(r io.Reader) *IVSource { return &IVSource{r: r, off: 4096} }

func (s *IVSource) next(dst []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off+len(dst) > len(s.buf) {
		if _, err := io.ReadFull(s.r, s.buf[:]); err != nil {
			return fmt.Errorf("esp: IV: %w", err)
		}
		s.off = 0
	}
	copy(dst, s.buf[s.off:])
	clear(s.buf[s.off : s.off+len(dst)])
	s.off += len(dst)
	return nil
}
