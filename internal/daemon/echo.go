package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// An ICMP echo request (RFC 792, RFC 4443 §4.1) of ours: type, code, checksum,
// identifier, number, and 16 bytes that say which probe of which process it is.
const (
	echoHeader  = 8
	echoLength  = echoHeader + 16
	echo4, ack4 = 8, 0
	echo6, ack6 = 128, 129
)

// probeID tells one probe from all others.
type probeID struct {
	nonce  uint64 // of the process and the link monitor
	server uint32
	seq    uint16
}

// echoRequest is the message to be sent. The kernel completes ICMPv6's checksum.
func echoRequest(id probeID, v6 bool) []byte {
	b := make([]byte, echoLength)
	b[0] = echo4
	if v6 {
		b[0] = echo6
	}
	binary.BigEndian.PutUint16(b[4:], uint16(id.nonce))
	binary.BigEndian.PutUint16(b[6:], id.seq)
	binary.BigEndian.PutUint64(b[8:], id.nonce)
	binary.BigEndian.PutUint32(b[16:], id.server)
	if !v6 {
		binary.BigEndian.PutUint16(b[2:], ^onesSum(b))
	}
	return b
}

// echoReply reads an answer to a request of this nonce; false: it is none.
func echoReply(b []byte, nonce uint64, v6 bool) (id probeID, ok bool) {
	kind := byte(ack4)
	if v6 {
		kind = ack6
	}
	if len(b) != echoLength || b[0] != kind || b[1] != 0 || !v6 && onesSum(b) != 0xffff {
		return id, false
	}
	id = probeID{nonce: binary.BigEndian.Uint64(b[8:]), server: binary.BigEndian.Uint32(b[16:]), seq: binary.BigEndian.Uint16(b[6:])}
	return id, id.nonce == nonce && binary.BigEndian.Uint16(b[4:]) == uint16(nonce)
}

func onesSum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// icmp4Filter is ICMP_FILTER of Linux's uapi: a bit set for each type that is not wanted.
const icmp4Filter = 1

// echoSocket opens a raw socket at a device which hears echo replies only. from may be
// invalid: the device's address.
func echoSocket(dev string, from netip.Addr, v6 bool) (*net.IPConn, error) {
	network, local := "ip4:icmp", "0.0.0.0"
	if v6 {
		network, local = "ip6:ipv6-icmp", "::"
	}
	if from.IsValid() {
		local = from.String()
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			if err = unix.BindToDevice(int(fd), dev); err != nil {
				return
			}
			if v6 {
				f := &unix.ICMPv6Filter{}
				for i := range f.Data {
					f.Data[i] = ^uint32(0)
				}
				f.Data[ack6>>5] &^= 1 << (ack6 & 31)
				err = unix.SetsockoptICMPv6Filter(int(fd), unix.SOL_ICMPV6, unix.ICMPV6_FILTER, f)
				return
			}
			err = unix.SetsockoptInt(int(fd), unix.SOL_RAW, icmp4Filter, ^(1 << ack4))
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := lc.ListenPacket(context.Background(), network, local)
	if err != nil {
		return nil, fmt.Errorf("ICMP socket at %s: %w", dev, err)
	}
	return c.(*net.IPConn), nil
}
