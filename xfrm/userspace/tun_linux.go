package userspace

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/xfrm"
	"tandem/xfrm/esp"
)

const (
	minMTU = 576
	maxMTU = 9216

	slotRoom = esp.HeaderRoom + 8 // before a packet in a buffer of its own
	slotLen  = slotRoom + maxMTU + esp.TrailerRoom

	superLen = 1 << 16 // of a superpacket, at most
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
	uso     bool        // the interface takes UDP superpackets
	noMerge atomic.Bool // it takes no superpackets at all
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
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("userspace: interface %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("userspace: interface %s: %w", name, err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetLen); err != nil {
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
	return t.rc.Control(func(fd uintptr) {
		t.fd = int(fd)
		t.uso = offload(t.fd)
	})
}

// offload has the kernel hand over superpackets; udp says whether of UDP, too (Linux 6.2).
func offload(fd int) (udp bool) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return true
	}
	_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp) // without it there are none
	return false
}

var noOffload [vnetLen]byte

// write hands an inner packet to the interface. The caller is inside an epoch, or
// is the control goroutine, so that the descriptor is not closed under it.
func (t *tunnel) write(pkt []byte) bool {
	var v [2]unix.Iovec
	v[0].Base, v[1].Base = &noOffload[0], &pkt[0]
	v[0].SetLen(vnetLen)
	v[1].SetLen(len(pkt))
	return writev(t.fd, v[:])
}

func writev(fd int, v []unix.Iovec) bool {
	for {
		_, _, e := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
		if e != unix.EINTR {
			return e == 0
		}
	}
}

// batch is what one goroutine reads and seals with. Batches are pooled: an idle tunnel
// holds none.
type batch struct {
	in      [slotRoom + superLen + esp.TrailerRoom]byte
	packets cutter
	outbox
	extra [slotLen]byte // for fragments and errors
}

func newBatch() *batch { return &batch{} }

var batches = sync.Pool{New: func() any { return newBatch() }}

// transmit reads from the interface until it is closed.
func (p *Plane) transmit(t *tunnel) {
	var failed error
	read := func(fd uintptr) bool {
		for {
			more, err := p.drain(t, int(fd))
			p.evs.flush()
			if failed = err; err != nil || t.closing.Load() {
				return true
			}
			if !more {
				return false // the poller is edge-triggered: only after EAGAIN may we wait
			}
		}
	}
	for {
		if err := t.rc.Read(read); err != nil || t.closing.Load() {
			return // closed
		}
		if failed != nil {
			// EBADFD: somebody deleted the interface.
			p.log.Error("tunnel interface failed", "tunnel", t.Name, "err", failed)
			return
		}
	}
}

// drainReads bounds a batch: Deactivate waits for its end.
const drainReads = 128

// drain reads what the interface has, but no more than one flush should send, and sends
// it. more: there may be more to read.
func (p *Plane) drain(t *tunnel, fd int) (more bool, err error) {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	n, err := b.read(fd)
	if err != nil {
		return false, waits(err)
	}
	t.epoch.enter()
	defer t.epoch.leave()
	if t.closing.Load() {
		return false, nil
	}
	now := p.clock()
	t.sealing.Lock()
	defer t.sealing.Unlock()
	for i := 0; err == nil && i < drainReads && b.used < len(b.arena)/2; i++ {
		p.outboundRead(t, b, n, now)
		n, err = b.read(fd)
	}
	if err == nil {
		p.outboundRead(t, b, n, now)
	}
	p.socks.flush(&b.outbox)
	return err == nil, waits(err)
}

// waits forgives an interface that has nothing to read.
func waits(err error) error {
	if err == unix.EAGAIN {
		return nil
	}
	return err
}

// read returns the length of a packet, which lies at b.in[slotRoom:] behind its vnetHdr.
func (b *batch) read(fd int) (int, error) {
	for {
		n, err := unix.Read(fd, b.in[slotRoom-vnetLen:slotRoom+superLen])
		if err != unix.EINTR {
			return n - vnetLen, err
		}
	}
}

// outboundRead processes what read returned.
func (p *Plane) outboundRead(t *tunnel, b *batch, n int, now time.Time) {
	var in inner
	if n < 0 || !b.packets.begin(b.in[:], slotRoom, n, &in) {
		p.malformed.Add(1)
		return
	}
	p.outbound(t, b, &b.packets, &in, now)
}

// outboundPacket does the same with a whole packet that was put at b.in[slotRoom:].
func (p *Plane) outboundPacket(t *tunnel, b *batch, n int, now time.Time) {
	clear(b.in[slotRoom-vnetLen : slotRoom])
	p.outboundRead(t, b, n, now)
}
