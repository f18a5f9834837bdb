package ipsec

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
)

// KeyID names a secret across the cluster: chosen at random by the process that
// made it, carried beside it in records, inherited by the keys derived from it.
// It is not secret.
type KeyID uint64

// SenderRange is the half-open range [Lo, Hi) of 24-bit sender IDs that one
// process may use under one key. The creator of a key holds [0, 1<<24).
type SenderRange struct{ Lo, Hi uint32 }

// FullSenderRange is what the creator of a key holds.
var FullSenderRange = SenderRange{0, 1 << 24}

// Size is the number of sender IDs in the range.
func (r SenderRange) Size() uint32 { return r.Hi - r.Lo }

// Split gives away the upper half; the lowest ID, which is the one in use, stays.
// ok is false when there is nothing left to give.
func (r SenderRange) Split() (keep, give SenderRange, ok bool) {
	if r.Size() < 2 {
		return r, SenderRange{}, false
	}
	mid := r.Lo + r.Size()/2
	return SenderRange{r.Lo, mid}, SenderRange{mid, r.Hi}, true
}

// SmallSenderRange: with fewer IDs than this left, the SA is rekeyed early.
const SmallSenderRange = 256

// ErrNonceSpace means that no explicit IV is left for the key in this process.
var ErrNonceSpace = errors.New("explicit IV space exhausted for this key")

// IVCounter makes the explicit 8-byte IVs of one AEAD key in one process:
// sender ID (24 bits) ‖ counter (40 bits). It is shared by everything in the
// process that seals under that key, and is never reset.
type IVCounter struct {
	sender uint64
	next   atomic.Uint64
}

// NewIVCounter starts at counter 0 under the given sender ID (less than 1<<24).
func NewIVCounter(sender uint32) *IVCounter { return &IVCounter{sender: uint64(sender) << 40} }

// Next writes the next IV to dst, which must hold 8 bytes.
// It returns ErrNonceSpace after 2^40 IVs.
func (c *IVCounter) Next(dst []byte) error {
	n := c.next.Add(1) - 1
	if n >= 1<<40 {
		c.next.Store(1 << 40)
		return ErrNonceSpace
	}
	binary.BigEndian.PutUint64(dst, c.sender|n)
	return nil
}

// Used is how many IVs this process has taken.
func (c *IVCounter) Used() uint64 { return c.next.Load() }

// SenderID is the 24-bit ID in the IVs.
func (c *IVCounter) SenderID() uint32 { return uint32(c.sender >> 40) }
