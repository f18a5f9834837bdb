package sim

import (
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// stream is the random source of one part of a run. Parts have sources of their own,
// so that a change in one disturbs the others as little as possible.
func stream(seed uint64, name string) *rand.Rand {
	return rand.New(rand.NewPCG(seed, hash(name)))
}

// secrets is what a process takes its random bytes from.
func secrets(seed uint64, name string) *rand.ChaCha8 {
	var k [32]byte
	binary.BigEndian.PutUint64(k[:], seed)
	binary.BigEndian.PutUint64(k[8:], hash(name))
	return rand.NewChaCha8(k)
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// between is a random duration in [lo, hi).
func between(r *rand.Rand, lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(r.Int64N(int64(hi-lo)))
}

// chance is true in p of the cases.
func chance(r *rand.Rand, p float64) bool { return p > 0 && r.Float64() < p }

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }
