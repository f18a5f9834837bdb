package ike

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"tandem/ike/message"
)

// sealRaw protects arbitrary inner bytes, as an authenticated peer could.
func sealRaw(t *testing.T, s *side, sa *ikeSA, exch message.ExchangeType, response bool, id uint32, first byte, inner []byte) []byte {
	t.Helper()
	return sealPatched(t, s, sa, exch, response, id, first, inner, nil)
}

// FuzzHandleDatagram gives an engine with an established IKE SA, and rekeys of
// its own under way, what a stranger sends (mode even) and what its authenticated
// peer may send at worst (mode odd): message inside, request or response.
func FuzzHandleDatagram(f *testing.F) {
	f.Add(byte(0), byte(37), byte(0), []byte("garbage"))
	for _, exch := range []byte{35, 36, 37, 43, 44, 99} {
		for mode := byte(1); mode < 16; mode += 2 {
			f.Add(mode, exch, byte(0), []byte{})
			f.Add(mode, exch, byte(42), []byte{0, 0, 0, 8, 1, 0, 0, 0})                          // DELETE of the IKE SA
			f.Add(mode, exch, byte(42), []byte{0, 0, 0, 12, 3, 4, 0, 1, 1, 2, 3, 4})             // DELETE of a Child SA
			f.Add(mode, exch, byte(41), []byte{0, 0, 0, 12, 3, 4, 0x40, 0x09, 1, 2, 3, 4})       // REKEY_SA
			f.Add(mode, exch, byte(41), []byte{0, 0, 0, 8, 0, 0, 0, 24})                         // AUTHENTICATION_FAILED
			f.Add(mode, exch, byte(33), []byte{0, 0, 0, 8, 0, 0, 0, 4, 40, 0, 0, 8, 1, 2, 3, 4}) // SA, Nonce
		}
	}
	_, peer := message.EncodePayloads([]message.Payload{
		&message.Notify{Protocol: 3, SPI: []byte{1, 2, 3, 4}, NotifyType: message.RekeySA},
		&message.SA{Proposals: espProposals(suites(), nil, []byte{9, 9, 9, 9})}, &message.Nonce{Data: make([]byte, 32)},
		&message.TS{Selectors: selectors()}, &message.TS{Responder: true, Selectors: selectors()}})
	f.Add(byte(1), byte(36), byte(41), peer)
	_, ike := message.EncodePayloads([]message.Payload{
		&message.SA{Proposals: ikeProposals(suites(), groups(31), make([]byte, 8))}, &message.Nonce{Data: make([]byte, 32)},
		&message.KE{Group: 31, Data: make([]byte, 32)}})
	f.Add(byte(1), byte(36), byte(33), ike)
	f.Add(byte(11), byte(36), byte(33), ike)
	f.Fuzz(func(t *testing.T, mode, exch, first byte, data []byte) {
		w, a, b := up(t, nil)
		sa := a.ike()[0]
		switch mode >> 2 & 3 { // what the engine under test has under way
		case 1:
			b.rekeyChild()
		case 2:
			b.rekeyIKE()
		case 3:
			clearAll(b)
		}
		w.wire = nil
		records := len(b.records)
		d := Datagram{Local: sa.local, Remote: sa.remote}
		if mode&1 == 0 {
			d.Data = data
			if mode&2 != 0 && len(data) >= message.HeaderLen {
				// With the right SPIs the cheap checks are passed.
				binary.BigEndian.PutUint64(data, uint64(sa.spis.I))
				binary.BigEndian.PutUint64(data[8:], uint64(sa.spis.R))
			}
			w.deliver(d)
			if h, err := message.ParseHeader(data); err == nil && h.Exchange == message.IKESAInit && !h.Response {
				return
			}
			if len(b.records) != records {
				t.Error("a stranger changed an IKE SA")
			}
		} else {
			response, id := mode&2 != 0, sa.nextSend
			if response {
				id = sa.nextRecv
			}
			d.Data = sealRaw(t, a, sa, message.ExchangeType(exch), response, id, first, data)
			w.deliver(d)
			w.deliver(d)
		}
		w.wire = nil
		w.drop = func(Datagram) bool { return true }
		for range 5 {
			w.now = w.now.Add(20 * time.Second)
			b.e.HandleTimeout(w.now)
			b.drain()
		}
		b.e.Status(w.now)
		b.e.Snapshot(w.now)
	})
}

// FuzzApply gives a standby records of whatever content.
func FuzzApply(f *testing.F) {
	t := &testing.T{}
	f.Add([]byte(nil))
	for _, begin := range []func(*side){func(*side) {}, (*side).rekeyChild, (*side).rekeyIKE, clearAll} {
		w, a, b := up(t, nil)
		begin(a)
		for _, x := range append(a.e.Snapshot(w.now), b.e.Snapshot(w.now)...) {
			f.Add(x.Value)
		}
	}
	w, a, _ := pair(t, nil)
	a.resume()
	for _, x := range a.e.Snapshot(w.now) {
		f.Add(x.Value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		w, a, _ := pair(t, nil)
		sa, err := a.e.decode(value)
		if err != nil {
			return
		}
		a.e.Apply(w.now, Record{Entries: []Entry{{SPIs: sa.spis, Value: value}}})
		a.e.Resume(w.now)
		for range 5 {
			for {
				x, ok := a.e.Poll()
				if !ok {
					break
				}
				if p, ok := x.(Persist); ok {
					a.e.Committed(w.now, p.Ticket)
				}
			}
			w.now = w.now.Add(15 * time.Second)
			a.e.HandleTimeout(w.now)
		}
		a.e.Snapshot(w.now)
	})
}

// FuzzOverlayNotifies gives what an authenticated Tandem may tell at worst of its interface
// and its network.
func FuzzOverlayNotifies(f *testing.F) {
	f.Add([]byte{10, 99, 0, 2}, []byte{3})
	f.Add([]byte{}, []byte{})
	f.Add(bytes.Repeat([]byte{0xfe}, 16), []byte{1, 2})
	f.Add([]byte{127, 0, 0, 1}, []byte{255})
	f.Add(append(make([]byte, 10), 0xff, 0xff, 10, 0, 0, 1), make([]byte, 300))
	_, a, _ := up(&testing.T{}, exchanging)
	sa := a.established()[0]
	f.Fuzz(func(t *testing.T, addr, id []byte) {
		m := &message.Message{Payloads: []message.Payload{notify(message.TandemInterfaceAddress, addr), notify(message.TandemNetworkID, id)}}
		sa.peerAddr = netip.Addr{}
		a.event(func(e *Engine) { e.notePeerAddress(sa, m) })
		if x := sa.peerAddr; x.IsValid() && (len(addr) != 4 && len(addr) != 16 || x.IsUnspecified() || x.IsLoopback() || x.IsMulticast() || x.Is4In6()) {
			t.Errorf("%x is taken for an interface's address: %s", addr, x)
		}
		if n := sa.peerNetwork(m); n >= 0 && n <= 255 && len(id) != 1 {
			t.Errorf("%x is taken for network %d", id, n)
		}
	})
}
