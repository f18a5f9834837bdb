package mmsg

import (
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Prober asks the kernel for path MTUs.
type Prober struct {
	mu sync.Mutex
	v6 bool
	fd int
}

// OpenProber is for one family of addresses, in the network namespace of the
// calling thread.
func OpenProber(v6 bool) (*Prober, error) {
	domain := unix.AF_INET
	if v6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Prober{v6: v6, fd: fd}, nil
}

// Close ends it; MTU is 0 from then on.
func (p *Prober) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
}

// MTU of the path to an address, in bytes of IP; 0 when there is no route. Nothing
// is sent.
func (p *Prober) MTU(to netip.Addr) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return 0
	}
	// Dissolving the association first forgets the source of the last question.
	unix.RawSyscall(unix.SYS_CONNECT, uintptr(p.fd), uintptr(unsafe.Pointer(&unix.RawSockaddr{Family: unix.AF_UNSPEC})), unix.SizeofSockaddrInet4)
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: 9, Addr: addr4(to)}
	level, name := unix.IPPROTO_IP, unix.IP_MTU
	if p.v6 {
		sa = &unix.SockaddrInet6{Port: 9, Addr: to.As16()}
		level, name = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	if unix.Connect(p.fd, sa) != nil {
		return 0
	}
	n, err := unix.GetsockoptInt(p.fd, level, name)
	if err != nil {
		return 0
	}
	return n
}

func addr4(a netip.Addr) [4]byte {
	if a = a.Unmap(); !a.Is4() {
		return [4]byte{}
	}
	return a.As4()
}
