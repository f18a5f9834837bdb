package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// Packet types of the vici protocol ("Packet layer").
const (
	viciCmdRequest      = 0
	viciCmdResponse     = 1
	viciCmdUnknown      = 2
	viciEventRegister   = 3
	viciEventUnregister = 4
	viciEventConfirm    = 5
	viciEventUnknown    = 6
	viciEvent           = 7
)

const viciMaxPacket = 512 << 10

// viciConn is one connection to charon, for one goroutine: a connection that
// has registered for events is read by nextEvent only.
type viciConn struct {
	c net.Conn
	r *bufio.Reader
}

func newViciConn(c net.Conn) *viciConn { return &viciConn{c, bufio.NewReader(c)} }

func (v *viciConn) close() error { return v.c.Close() }

func (v *viciConn) send(kind byte, name string, body []byte) error {
	b := make([]byte, 4, 6+len(name)+len(body))
	b = append(append(b, kind, byte(len(name))), name...)
	b = append(b, body...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := v.c.Write(b)
	return err
}

// receive returns a packet's type, its name (events only) and its message.
func (v *viciConn) receive() (kind byte, name string, m viciMessage, err error) {
	var head [5]byte
	if _, err = io.ReadFull(v.r, head[:]); err != nil {
		return
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > viciMaxPacket {
		return 0, "", nil, errVici
	}
	body := make([]byte, n-1)
	if _, err = io.ReadFull(v.r, body); err != nil {
		return
	}
	kind = head[4]
	if kind == viciEvent {
		r := &viciReader{body}
		if name, err = r.name(); err != nil {
			return
		}
		body = r.b
	}
	m, err = decodeVici(body)
	return
}

// command runs one command and returns its response and the events of the kind
// stream that came before it (empty stream: none are asked for). Success "no"
// is an error with charon's own words.
func (v *viciConn) command(ctx context.Context, name, stream string, args viciMessage) (viciMessage, []viciMessage, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = timeNow().Add(30 * time.Second)
	}
	if err := v.c.SetDeadline(deadline); err != nil {
		return nil, nil, err
	}
	if stream != "" {
		if err := v.register(stream); err != nil {
			return nil, nil, err
		}
		defer func() {
			if v.send(viciEventUnregister, stream, nil) == nil {
				_, _, _, _ = v.receive()
			}
		}()
	}
	if err := v.send(viciCmdRequest, name, args.encode(nil)); err != nil {
		return nil, nil, fmt.Errorf("vici %s: %w", name, err)
	}
	var events []viciMessage
	for {
		kind, _, m, err := v.receive()
		if err != nil {
			return nil, nil, fmt.Errorf("vici %s: %w", name, err)
		}
		switch kind {
		case viciEvent:
			events = append(events, m)
		case viciCmdResponse:
			if m.text("success") == "no" {
				return m, events, fmt.Errorf("charon refuses %s: %s", name, m.text("errmsg"))
			}
			return m, events, nil
		case viciCmdUnknown:
			return nil, nil, fmt.Errorf("charon knows no command %s", name)
		default:
			return nil, nil, errVici
		}
	}
}

func (v *viciConn) register(event string) error {
	if err := v.send(viciEventRegister, event, nil); err != nil {
		return err
	}
	kind, _, _, err := v.receive()
	if err != nil {
		return err
	}
	if kind != viciEventConfirm {
		return fmt.Errorf("charon knows no event %s", event)
	}
	return nil
}
