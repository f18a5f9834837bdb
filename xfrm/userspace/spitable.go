package userspace

import (
	"math/bits"
	"sync/atomic"

	"tandem/internal/ipsec"
)

// spiTable finds SAs by inbound SPI. Readers take no lock: chains are immutable
// and replaced as wholes. Writers are serialised by the plane's mutex.
type spiTable struct {
	buckets atomic.Pointer[[]atomic.Pointer[spiNode]]
	n       int
}

// bucketOf spreads SPIs over a number of buckets that is a power of two. In a farm the low
// bits of all SPIs of a slot are the same, so those above come first.
func bucketOf(spi ipsec.ESPSPI, size int) uint32 {
	return bits.RotateLeft32(uint32(spi), -7) & uint32(size-1)
}

type spiNode struct {
	sa   *sa
	next *spiNode
}

func (t *spiTable) get(spi ipsec.ESPSPI) *sa {
	b := t.buckets.Load()
	if b == nil {
		return nil
	}
	for n := (*b)[bucketOf(spi, len(*b))].Load(); n != nil; n = n.next {
		if n.sa.SPIIn == spi {
			return n.sa
		}
	}
	return nil
}

func (t *spiTable) put(s *sa) {
	b := t.buckets.Load()
	if b == nil || t.n >= len(*b) {
		t.grow()
		b = t.buckets.Load()
	}
	slot := &(*b)[bucketOf(s.SPIIn, len(*b))]
	slot.Store(&spiNode{s, slot.Load()})
	t.n++
}

func (t *spiTable) grow() {
	size := 256
	old := t.list()
	for size <= 2*len(old) {
		size *= 2
	}
	b := make([]atomic.Pointer[spiNode], size)
	for _, s := range old {
		slot := &b[bucketOf(s.SPIIn, size)]
		slot.Store(&spiNode{s, slot.Load()})
	}
	t.buckets.Store(&b)
}

func (t *spiTable) remove(spi ipsec.ESPSPI) {
	b := t.buckets.Load()
	if b == nil {
		return
	}
	slot := &(*b)[bucketOf(spi, len(*b))]
	var kept *spiNode
	for n := slot.Load(); n != nil; n = n.next {
		if n.sa.SPIIn != spi {
			kept = &spiNode{n.sa, kept}
		} else {
			t.n--
		}
	}
	slot.Store(kept)
}

// list returns all SAs, in no particular order that matters.
func (t *spiTable) list() []*sa {
	b := t.buckets.Load()
	if b == nil {
		return nil
	}
	l := make([]*sa, 0, t.n)
	for i := range *b {
		for n := (*b)[i].Load(); n != nil; n = n.next {
			l = append(l, n.sa)
		}
	}
	return l
}
