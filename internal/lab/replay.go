package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// replayable collects the ESP packets that the client sent within [from, to),
// in order, from its capture.
func replayable(path string, from, to time.Time) ([][]byte, error) {
	return capturedESP(path, true, from, to)
}

// ClientESP is the same, for who plays the lab's part itself.
func ClientESP(path string, from, to time.Time) ([][]byte, error) { return replayable(path, from, to) }

// clientESP is the same from a capture at the port towards a gateway.
func clientESP(path string, from, to time.Time) ([][]byte, error) {
	return capturedESP(path, false, from, to)
}

func capturedESP(path string, fromNode bool, from, to time.Time) ([][]byte, error) {
	var frames [][]byte
	err := readFlushed(path, func(f Frame) error {
		if f.FromNode == fromNode && !f.Time.Before(from) && f.Time.Before(to) && decodeOuter(f.Data).kind == outerESP {
			frames = append(frames, append([]byte(nil), f.Data...))
		}
		return nil
	})
	return frames, err
}

// lastHardwareAddress is the Ethernet address to which the switch last sent ESP at
// a gateway's port: the gateway's own, or a shared one.
func lastHardwareAddress(path string) (mac net.HardwareAddr, err error) {
	err = readFlushed(path, func(f Frame) error {
		if !f.FromNode && decodeOuter(f.Data).kind == outerESP {
			mac = append(net.HardwareAddr(nil), f.Data[:6]...)
		}
		return nil
	})
	return mac, err
}

// Inject sends frames out of the WAN switch's port towards a node, addressed to
// mac (nil: the node's own), at some ten thousand a second.
func (t *Topology) Inject(node string, mac net.HardwareAddr, frames [][]byte) (sent int, err error) {
	if len(mac) == 0 {
		if mac, err = t.hardwareAddress(node, "wan0"); err != nil {
			return 0, err
		}
	}
	return t.InjectAt(NodeWAN, node, mac, frames)
}

func (t *Topology) hardwareAddress(node, dev string) (net.HardwareAddr, error) {
	link, err := t.link(node, dev)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// withoutChecksum takes the UDP checksum out of a frame, if it is one of UDP: in a capture
// at the sender it is still to be made, and the receiver's kernel would drop the packet.
// RFC 768 and 3948 let IPv4 do without.
func withoutChecksum(f []byte) (ok bool) {
	const ethernet, udp = 14, 17
	switch {
	case len(f) < ethernet+20:
		return true
	case f[12] == 0x86 && f[13] == 0xdd:
		return f[ethernet+6] != udp
	}
	if at := ethernet + int(f[ethernet]&15)*4; f[ethernet+9] == udp && len(f) >= at+8 {
		f[at+6], f[at+7] = 0, 0
	}
	return true
}

// checksumErrors counts the UDP packets that a node's kernel has dropped as damaged.
func (t *Topology) checksumErrors(node string) (n int, err error) {
	err = t.In(node, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if len(fields) == 0 || fields[0] != "Udp:" {
				continue
			}
			if i := slices.Index(names, "InCsumErrors"); i > 0 && i < len(fields) {
				n, err = strconv.Atoi(fields[i])
				return err
			}
			names = fields
		}
		return errors.New("the kernel does not count damaged UDP packets")
	})
	return n, err
}

// arrive runs send, which sends captured packets to a node, and fails if the node's
// kernel has dropped any of them as damaged: whether they are refused is not seen then.
func (t *Topology) arrive(node string, send func() (int, error)) (sent int, err error) {
	before, err := t.checksumErrors(node)
	if err != nil {
		return 0, err
	}
	if sent, err = send(); err != nil {
		return sent, err
	}
	after, err := t.checksumErrors(node)
	if err == nil && after != before {
		err = fmt.Errorf("replay: %d of %d packets did not get past the kernel of %s", after-before, sent, node)
	}
	return sent, err
}

// InjectAt sends frames out of a device of a node, addressed to mac.
func (t *Topology) InjectAt(node, dev string, mac net.HardwareAddr, frames [][]byte) (sent int, err error) {
	fd, index := -1, 0
	err = t.In(node, func() error {
		intf, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		index = intf.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("replay: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: index}
	for i, f := range frames {
		if len(f) < 14 {
			return sent, errors.New("replay: frame without an Ethernet header")
		}
		f = append([]byte(nil), f...)
		copy(f, mac)
		if !withoutChecksum(f) {
			return sent, errors.New("replay: UDP over IPv6 cannot do without a checksum")
		}
		if err := unix.Sendto(fd, f, 0, to); err != nil {
			return sent, fmt.Errorf("replay: %w", err)
		}
		sent++
		if i%16 == 15 {
			time.Sleep(time.Millisecond) // the gateway's queue must not be what refuses them
		}
	}
	return sent, nil
}
