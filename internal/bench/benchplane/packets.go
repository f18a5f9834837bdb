package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/mmsg"
)

// quietFor is how long a receiver waits for a packet more.
const quietFor = 150 * time.Millisecond

// datagrams opens a UDP socket with as much room as a receiver needs that is put off
// its processor.
func datagrams(local netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}))
}

// offer sends packets of packetBytes at a rate for a while. What it could not send in
// time it leaves out, beyond 5 ms: it offers, and never piles up.
func offer(local netip.Addr, to netip.AddrPort, id uint64, rate int, last time.Duration) error {
	runtime.LockOSThread()
	fd, err := datagrams(netip.AddrPortFrom(local, 0))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	payload := make([]byte, packetBytes)
	binary.BigEndian.PutUint64(payload, id)
	v := new(mmsg.Vector)
	for i := range mmsg.Batch {
		v.PrepareSend(i, false, netip.Addr{}, to, 0, payload, nil)
	}
	most := max(mmsg.Batch, rate/200)
	started := time.Now()
	gone := 0 // sent, or left out
	for {
		now := time.Since(started)
		if now >= last {
			return nil
		}
		due := int(now.Seconds()*float64(rate)) - gone
		if due > most {
			gone += due - most
			due = most
		}
		if due < 8 {
			ts := unix.NsecToTimespec(int64(50 * time.Microsecond))
			_ = unix.Nanosleep(&ts, nil)
			continue
		}
		n, e := mmsg.Send(fd, v, 0, min(due, mmsg.Batch))
		switch e {
		case 0:
			gone += n
		case unix.EAGAIN, unix.ENOBUFS:
			mmsg.WaitWritable(fd)
		case unix.EINTR, unix.ECONNREFUSED:
		default:
			return fmt.Errorf("sendmmsg: %w", e)
		}
	}
}

// count counts the packets that carry id, until none has come for a while; the file
// ready is removed once it listens. It gives up when nothing comes at all.
func count(at netip.AddrPort, id uint64, ready string) (int, error) {
	runtime.LockOSThread()
	fd, err := datagrams(at)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := os.Remove(ready); err != nil {
		return 0, err
	}
	var bufs [mmsg.Batch][256]byte
	v := new(mmsg.Vector)
	for i := range bufs {
		v.PrepareReceive(i, bufs[i][:])
	}
	n := 0
	patience := 5 * time.Second
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		k, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || k == 0 {
			return n, err
		}
		for {
			got, e := mmsg.Receive(fd, v, mmsg.Batch)
			if e != 0 {
				break // EAGAIN most likely; whatever else it is, poll tells
			}
			for i := range got {
				if v.Len(i) == packetBytes && binary.BigEndian.Uint64(bufs[i][:]) == id {
					n++
				}
			}
			v.Rearm(got)
			patience = quietFor
		}
	}
}
