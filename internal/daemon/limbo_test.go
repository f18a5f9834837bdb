package daemon

import (
	"testing"
	"time"

	"tandem/xfrm"
)

func TestLimbo(t *testing.T) {
	var l limbo
	now := time.Unix(1e9, 0)
	buf := []byte("first")
	l.add(now, xfrm.Stray{Scope: 1, Packet: buf})
	copy(buf, "other") // the data plane's again
	l.add(now.Add(time.Millisecond), xfrm.Stray{Scope: 2, Packet: []byte("second")})
	l.add(now.Add(2*time.Millisecond), xfrm.Stray{Scope: 1, Packet: []byte("third")})
	xs := l.take(now.Add(3*time.Millisecond), func(x *xfrm.Stray) bool { return x.Scope == 1 })
	if len(xs) != 2 || string(xs[0].Packet) != "first" || string(xs[1].Packet) != "third" {
		t.Errorf("%v", xs)
	}
	if xs := l.take(now.Add(limboTime+2*time.Millisecond), func(*xfrm.Stray) bool { return true }); len(xs) != 0 {
		t.Errorf("kept for too long: %v", xs)
	}
	for range 2 * limboSize {
		l.add(now, xfrm.Stray{Scope: 3})
	}
	if xs := l.take(now, func(*xfrm.Stray) bool { return true }); len(xs) != limboSize {
		t.Errorf("%d packets", len(xs))
	}
}
