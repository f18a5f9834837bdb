package guardian

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tandem/cluster"
	"tandem/internal/ipsec"
)

// within runs a function on a thread of its own in a network namespace.
func within(t *testing.T, ns string, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := os.Open("/run/netns/" + ns)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestHeartbeatsOfStrangers: what is no heartbeat, another cluster's, recorded, or of a
// number in use is refused with one line for each reason, however much of it comes;
// nobody is answered, and the pair goes on.
func TestHeartbeatsOfStrangers(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	mark := a.mark()
	ours, other := ipsec.NewKey([]byte("a key of the test's own")), ipsec.NewKey(bytes.Repeat([]byte{7}, 32))
	beat := func(key ipsec.Key, node cluster.NodeID, incarnation uint64) []byte {
		h := cluster.Heartbeat{Node: node, Name: "mallory", Incarnation: incarnation, Seq: 1, Process: 9, Running: true}
		d, err := h.Marshal(key)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	// From another address than the second gateway's, on the same wire.
	run(t, "ip -n "+p.ns[2]+" addr add fe80::bad/64 dev hb0 nodad")
	within(t, p.ns[2], func() error {
		i, err := net.InterfaceByName("hb0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, o := range [][2]int{{unix.IPV6_MULTICAST_IF, i.Index}, {unix.IPV6_MULTICAST_HOPS, 255}} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o[0], o[1]); err != nil {
				return err
			}
		}
		from := &unix.SockaddrInet6{ZoneId: uint32(i.Index)}
		copy(from.Addr[:], net.ParseIP("fe80::bad"))
		if err := unix.Bind(fd, from); err != nil {
			return err
		}
		for range 30 {
			for _, d := range [][]byte{
				[]byte("garbage"), beat(other, 2, 1<<62), beat(ours, 2, 1), beat(ours, 2, 1<<62), beat(ours, 1, 1<<62),
			} {
				if err := unix.Sendto(fd, d, 0, &unix.SockaddrInet6{Port: DefaultPort, Addr: group, ZoneId: uint32(i.Index)}); err != nil {
					return err
				}
			}
		}
		a.want(mark, "heartbeat refused", "our number 1") // the last of each round
		b := make([]byte, 2048)
		if n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT); err == nil {
			return fmt.Errorf("answered with %d bytes", n)
		}
		return nil
	})
	for _, reason := range []string{"not a heartbeat", "of another cluster, or forged", "an earlier start", "another node has number 2", "our number 1"} {
		a.want(mark, "heartbeat refused", reason, "fe80::bad")
		n := 0
		a.mu.Lock()
		for _, l := range a.lines[mark:] {
			if strings.Contains(l, "heartbeat refused") && strings.Contains(l, reason) {
				n++
			}
		}
		a.mu.Unlock()
		if n != 1 {
			t.Errorf("%s: %d lines", reason, n)
		}
	}
	for _, g := range []*gateway{a, b} {
		g.wantNone(mark, "EVENT TellLoss")
	}
	a.wantNone(mark, "mallory\",") // nothing of it is told
}
