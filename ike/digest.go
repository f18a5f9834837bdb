package ike

// Digest is a sum over the Child SAs that exist here, and their number: the same
// wherever the same ones do, in whatever order they came. It shows where copies
// differ, and says nothing of what is in them.
func (e *Engine) Digest() (sum uint64, children int) {
	for spi := range e.children {
		sum ^= mix(uint64(spi))
	}
	return sum, len(e.children)
}

// mix spreads a number over 64 bits, each depending on each.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
