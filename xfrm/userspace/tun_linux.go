package userspace

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"tandem/internal/mmsg"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const (
	minMTU = 576
	maxMTU = 9216

	batchLen = mmsg.Batch
	slotRoom = esp.HeaderRoom + 8
	slotLen  = slotRoom + maxMTU + esp.TrailerRoom
)

// tunnel is one TUN interface and what belongs to it.
type tunnel struct {
	xfrm.Tunnel
	scope *scope
	epoch *epoch
	done  chan struct{} // transmit has ended

	file    *os.File
	rc      syscall.RawConn
	fd      int
	closing atomic.Bool
	sealing sync.Mutex // from the first sequence number of a batch to its sending

	routes   routes
	acquires acquires

	noSA, inactive, tooBig, strays, injected atomic.Uint64
}

// openTUN makes a TUN interface without packet information and sets it up, or
// takes over the one that an earlier process left. The interface is persistent:
// removing it costs tens of milliseconds in the kernel, which a dying process
// would spend before anybody learns of its death.
func openTUN(name string, mtu int) (*os.File, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("userspace: tunnel name %q: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("userspace: /dev/net/tun: %w", err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("userspace: interface %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("userspace: interface %s: %w", name, err)
	}
	// The queue waits while one batch is sealed; the default of 500 is ample.
	if err := ifUp(name, mtu); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// removeTUN makes the interface go with its descriptor.
func removeTUN(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0) }

func ifUp(name string, mtu int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, _ := unix.NewIfreq(name)
	ifr.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(s, unix.SIOCSIFMTU, ifr); err != nil {
		return fmt.Errorf("userspace: MTU of %s: %w", name, err)
	}
	ifr, _ = unix.NewIfreq(name)
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("userspace: flags of %s: %w", name, err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("userspace: setting %s up: %w", name, err)
	}
	return nil
}

func (t *tunnel) attach(f *os.File) (err error) {
	t.file = f
	if t.rc, err = f.SyscallConn(); err != nil {
		return err
	}
	return t.rc.Control(func(fd uintptr) { t.fd = int(fd) })
}

// write hands an inner packet to the interface. The caller is inside an epoch, or
// is the control goroutine, so that the descriptor is not closed under it.
func (t *tunnel) write(pkt []byte) bool {
	for {
		_, err := unix.Write(t.fd, pkt)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// batch is what one goroutine reads from a tunnel and sends at a time. Batches
// are pooled: an idle tunnel holds none.
type batch struct {
	slots [batchLen][slotLen]byte
	lens  [batchLen]int
	n     int

	outbox
	extra [slotLen]byte // for packets that have no slot of their own
}

func newBatch() *batch { return &batch{} }

var batches = sync.Pool{New: func() any { return newBatch() }}

// transmit reads from the interface until it is closed.
func (p *Plane) transmit(t *tunnel) {
	var b *batch
	var failed error
	read := func(fd uintptr) bool {
		b = batches.Get().(*batch)
		b.n = 0
		for b.n < batchLen {
			n, err := unix.Read(int(fd), b.slots[b.n][slotRoom:slotRoom+maxMTU])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				if err != unix.EAGAIN {
					failed = err
				}
				break
			}
			b.lens[b.n] = n
			b.n++
		}
		if b.n == 0 && failed == nil {
			batches.Put(b)
			b = nil
			return false // the poller is edge-triggered: only after EAGAIN may we wait
		}
		return true
	}
	for {
		if err := t.rc.Read(read); err != nil {
			return // closed
		}
		t.epoch.enter()
		if t.closing.Load() {
			t.epoch.leave()
			return
		}
		p.outbound(t, b, p.clock())
		t.epoch.leave()
		batches.Put(b)
		p.evs.flush()
		if failed != nil {
			// EBADFD: somebody deleted the interface.
			p.log.Error("tunnel interface failed", "tunnel", t.Name, "err", failed)
			return
		}
	}
}
