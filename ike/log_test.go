package ike

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// A level that nobody reads costs nothing; without a word about it every line is made.
func TestUnwantedLinesAreNotMade(t *testing.T) {
	stranger := (&message.Message{Header: message.Header{SPIs: ipsec.IKESPIs{I: 1, R: 2}, Exchange: message.Informational, Initiator: true, MessageID: 7}}).Encode()
	lines := func(wanted func(slog.Level) bool) (n int) {
		e := New(Options{Logs: wanted})
		now := time.Unix(1_000_000, 0)
		e.Resume(now)
		e.HandleDatagram(now, Datagram{Local: netip.MustParseAddrPort("192.0.2.1:500"), Remote: netip.MustParseAddrPort("192.0.2.2:500"), Data: stranger})
		for x, ok := e.Poll(); ok; x, ok = e.Poll() {
			if _, ok := x.(Log); ok {
				n++
			}
		}
		return n
	}
	if n := lines(nil); n == 0 {
		t.Error("no line about a request of an unknown IKE SA")
	}
	if n := lines(func(l slog.Level) bool { return l >= slog.LevelInfo }); n != 0 {
		t.Errorf("%d lines of a level that is not wanted", n)
	}
}
