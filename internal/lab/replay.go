package lab

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// replayable collects the ESP packets that the client sent within [from, to),
// in order, from its capture.
func replayable(path string, from, to time.Time) ([][]byte, error) {
	var frames [][]byte
	err := readFlushed(path, func(f Frame) error {
		if f.FromNode && !f.Time.Before(from) && f.Time.Before(to) && decodeOuter(f.Data).kind == outerESP {
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
		link, err := t.link(node, "wan0")
		if err != nil {
			return 0, err
		}
		mac = link.Attrs().HardwareAddr
	}
	fd, index := -1, 0
	err = t.In(NodeWAN, func() error {
		intf, err := net.InterfaceByName(node)
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
