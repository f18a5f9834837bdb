package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// State of a session (RFC 5880 §4.1).
type State uint8

const (
	AdminDown State = iota
	Down
	Init
	Up
)

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

var stateNames = [...]string{"AdminDown", "Down", "Init", "Up"}

// Diag says why the sender's session left Up last (RFC 5880 §4.1).
type Diag uint8

const (
	DiagNone            Diag = 0
	DiagExpired         Diag = 1 // the detection time passed without a packet
	DiagNeighbourDown   Diag = 3 // the neighbour said that its session is down
	DiagPathDown        Diag = 5
	DiagAdminDown       Diag = 7
	packetVersion            = 1
	packetLength             = 24
	authenticatedLength      = packetLength + 2
)

func (d Diag) String() string {
	switch d {
	case DiagNone:
		return "none"
	case DiagExpired:
		return "detection time expired"
	case DiagNeighbourDown:
		return "neighbour signalled session down"
	case DiagPathDown:
		return "path down"
	case DiagAdminDown:
		return "administratively down"
	}
	return fmt.Sprintf("diagnostic %d", uint8(d))
}

// Packet is a control packet without authentication (RFC 5880 §4.1). Intervals have
// microseconds on the wire: at most 2^32-1 of them.
type Packet struct {
	Diag              Diag // 0–31
	State             State
	Poll, Final       bool
	Independent       bool // the control plane's fate is not the data plane's (C)
	Demand            bool
	DetectMult        uint8 // 1–255
	MyDiscr           uint32
	YourDiscr         uint32
	DesiredMinTx      time.Duration
	RequiredMinRx     time.Duration
	RequiredMinEchoRx time.Duration
}

// Why a packet is dropped (RFC 5880 §6.8.6).
var (
	ErrShort         = errors.New("bfd: packet too short")
	ErrVersion       = errors.New("bfd: version is not 1")
	ErrLength        = errors.New("bfd: length field does not fit")
	ErrDetectMult    = errors.New("bfd: detection multiplier is zero")
	ErrMultipoint    = errors.New("bfd: multipoint bit is set")
	ErrDiscriminator = errors.New("bfd: discriminators are not possible")
	ErrAuth          = errors.New("bfd: authentication is not in use")
)

// Decode reads a packet and makes the checks of RFC 5880 §6.8.6 that need no session.
func Decode(b []byte) (Packet, error) {
	if len(b) < packetLength {
		return Packet{}, ErrShort
	}
	flags, length := b[1], int(b[3])
	p := Packet{
		Diag: Diag(b[0] & 0x1f), State: State(flags >> 6), DetectMult: b[2],
		Poll: flags&0x20 != 0, Final: flags&0x10 != 0, Independent: flags&0x08 != 0, Demand: flags&0x02 != 0,
		MyDiscr: binary.BigEndian.Uint32(b[4:]), YourDiscr: binary.BigEndian.Uint32(b[8:]),
		DesiredMinTx: micros(b[12:]), RequiredMinRx: micros(b[16:]), RequiredMinEchoRx: micros(b[20:]),
	}
	auth := flags&0x04 != 0
	switch {
	case b[0]>>5 != packetVersion:
		return Packet{}, ErrVersion
	case length < packetLength, auth && length < authenticatedLength, length > len(b):
		return Packet{}, ErrLength
	case p.DetectMult == 0:
		return Packet{}, ErrDetectMult
	case flags&0x01 != 0:
		return Packet{}, ErrMultipoint
	case p.MyDiscr == 0, p.YourDiscr == 0 && p.State != Down && p.State != AdminDown:
		return Packet{}, ErrDiscriminator
	case auth:
		return Packet{}, ErrAuth
	}
	return p, nil
}

// Append writes the packet behind b.
func (p Packet) Append(b []byte) []byte {
	flags := byte(p.State) << 6
	for _, f := range []struct {
		on  bool
		bit byte
	}{{p.Poll, 0x20}, {p.Final, 0x10}, {p.Independent, 0x08}, {p.Demand, 0x02}} {
		if f.on {
			flags |= f.bit
		}
	}
	b = append(b, packetVersion<<5|byte(p.Diag)&0x1f, flags, p.DetectMult, packetLength)
	b = binary.BigEndian.AppendUint32(b, p.MyDiscr)
	b = binary.BigEndian.AppendUint32(b, p.YourDiscr)
	for _, d := range []time.Duration{p.DesiredMinTx, p.RequiredMinRx, p.RequiredMinEchoRx} {
		b = binary.BigEndian.AppendUint32(b, uint32(min(d.Microseconds(), 1<<32-1)))
	}
	return b
}

func micros(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}
