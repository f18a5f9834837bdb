package ike

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"strconv"

	"tandem/ike/message"
)

func itoa(n int) string { return strconv.Itoa(n) }

// ownVendorID says that this is Tandem; it promises nothing.
var ownVendorID = []byte{0x54, 0x61, 0x6e, 0x64, 0x65, 0x6d, 0x20, 0x49, 0x4b, 0x45, 0x76, 0x32, 0x9d, 0x31, 0xc4, 0x07}

// vendors are the vendor IDs that we can name, by prefix.
var vendors = []struct {
	name   string
	prefix []byte
}{
	{"Tandem", ownVendorID},
	{"FortiGate", []byte{0x82, 0x99, 0x03, 0x17, 0x57, 0xa3, 0x60, 0x82, 0xc6, 0xa6, 0x21, 0xde}},
	{"FortiGate", []byte{0x1d, 0x6e, 0x17, 0x8f, 0x6c, 0x2c, 0x0b, 0xe2, 0x84, 0x98, 0x54, 0x65, 0x45, 0x0f, 0xe9, 0xd4}},
	{"strongSwan", []byte{0x88, 0x2f, 0xe5, 0x6d, 0x6f, 0xd2, 0x0d, 0xbc, 0x22, 0x51, 0x61, 0x3b, 0x2e, 0xbe, 0x5b, 0xeb}},
}

// maxVendorIDs bounds what a record keeps of the peer's.
const maxVendorIDs = 8

func (sa *ikeSA) noteVendorIDs(m *message.Message) {
	for _, p := range m.Payloads {
		if v, ok := p.(*message.VendorID); ok && len(sa.vendorIDs) < maxVendorIDs && len(v.Data) <= 64 {
			sa.vendorIDs = append(sa.vendorIDs, vendorOnce(v.Data))
		}
	}
}

// vendorOnce is a vendor ID apart from its message, without a copy of our own.
func vendorOnce(id []byte) []byte {
	if bytes.Equal(id, ownVendorID) {
		return ownVendorID
	}
	return bytes.Clone(id)
}

func (e *Engine) logVendorIDs(sa *ikeSA) {
	for _, id := range sa.vendorIDs {
		e.debug(sa, "peer vendor ID", slog.String("vendor", vendorName(id)), slog.String("data", hex.EncodeToString(id)))
	}
}

func vendorName(id []byte) string {
	for _, v := range vendors {
		if bytes.HasPrefix(id, v.prefix) {
			return v.name
		}
	}
	return "unknown"
}

// keyLog names the keys of a new IKE SA.
func (e *Engine) keyLog(sa *ikeSA) {
	e.hold(sa, sa.keyLog())
}

func (sa *ikeSA) keyLog() KeyLog {
	return KeyLog{SPIs: sa.spis, Suite: sa.suite, Ei: sa.keys.Ei, Er: sa.keys.Er, Ai: sa.keys.Ai, Ar: sa.keys.Ar}
}

// lineLimit is one kind of line about one phase 1.
type lineLimit struct {
	limiter
	before int // that were not written since the last one that was
}

// seldom logs what a stranger's message brings about, within a rate for each kind of line
// and phase 1 (which may be empty): there are as many strangers as somebody forges.
func (e *Engine) seldom(level slog.Level, phase1, message string, attrs ...slog.Attr) {
	if !e.logs(level) {
		return
	}
	key := phase1 + "\x00" + message
	l := e.lines[key]
	if l == nil {
		l = &lineLimit{limiter: limiter{rate: 0.2, burst: 5}}
		e.lines[key] = l
	}
	if !l.allow(e.now) {
		l.before++
		return
	}
	if phase1 != "" {
		attrs = append([]slog.Attr{slog.String("tunnel", phase1)}, attrs...)
	}
	if l.before > 0 {
		attrs = append(attrs, slog.Int("like_it_before", l.before))
		l.before = 0
	}
	e.log(level, message, attrs...)
}

// fail notes why a negotiation came to nothing, for diagnose.
func (e *Engine) fail(sa *ikeSA, reason string) {
	if sa.tunnel != nil {
		sa.tunnel.failure = reason
		return
	}
	e.failName(sa.phase1, reason)
}

func (e *Engine) failName(phase1, reason string) {
	if p1 := e.phase1(phase1); p1 != nil && !p1.Dialup() {
		e.staticTunnel(p1).failure = reason
	}
}
