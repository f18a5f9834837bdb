package ike

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"tandem/ike/message"
)

// TestMobikeAnswers: what the gateway answers to each of MOBIKE's notifications, and whether
// the peer is elsewhere then.
func TestMobikeAnswers(t *testing.T) {
	w, a, b := roaming(t, nil)
	ask := func(from string, ps ...message.Payload) (Datagram, []string) {
		t.Helper()
		w.wire = nil
		d := a.request(ps...)
		d.Local = netip.MustParseAddrPort(from)
		b.receive(flip(d))
		a.ike()[0].nextSend++
		if len(w.wire) == 0 {
			t.Fatal("no answer")
		}
		r := w.wire[0]
		w.wire = nil
		return r, b.says(r)
	}
	at := addrA + ":4500"
	nat := func() []message.Payload {
		return []message.Payload{notify(message.NATDetectionSourceIP, make([]byte, 20)), notify(message.NATDetectionDestinationIP, make([]byte, 20))}
	}
	cookie := notify(message.Cookie2, []byte("eight or more"))
	for _, c := range []struct {
		name, from string
		ps         []message.Payload
		want       []string
		moves      bool
	}{
		{name: "a path test", from: addrC + ":4500", ps: []message.Payload{cookie}, want: []string{"COOKIE2"}},
		{name: "NAT detection", from: addrC + ":4500", ps: nat(), want: []string{"NAT_DETECTION_SOURCE_IP", "NAT_DETECTION_DESTINATION_IP"}},
		{name: "further addresses", from: at, ps: []message.Payload{notify(message.AdditionalIP4Address, []byte{198, 51, 100, 7}),
			notify(message.AdditionalIP6Address, make([]byte, 16)), cookie}, want: []string{"COOKIE2"}},
		{name: "no further addresses", from: at, ps: []message.Payload{notify(message.NoAdditionalAddresses, nil)}},
		{name: "COOKIE2 too short", from: at, ps: []message.Payload{notify(message.Cookie2, make([]byte, 7))}},
		{name: "COOKIE2 too long", from: at, ps: []message.Payload{notify(message.Cookie2, make([]byte, 65))}},
		{name: "an update through a NAT where none is allowed", from: addrC + ":4500", ps: []message.Payload{notify(message.UpdateSAAddresses, nil),
			noNATs(netip.MustParseAddrPort(addrA+":4500"), netip.MustParseAddrPort(addrB+":4500")), cookie}, want: []string{"COOKIE2", "UNEXPECTED_NAT_DETECTED"}},
		{name: "an update from a group", from: "224.0.0.1:4500", ps: []message.Payload{notify(message.UpdateSAAddresses, nil)}, want: []string{"UNACCEPTABLE_ADDRESSES"}},
		{name: "an update from ourselves", from: addrB + ":4500", ps: []message.Payload{notify(message.UpdateSAAddresses, nil), cookie}, want: []string{"COOKIE2", "UNACCEPTABLE_ADDRESSES"}},
		{name: "an update from nowhere", from: "0.0.0.0:4500", ps: []message.Payload{notify(message.UpdateSAAddresses, nil)}, want: []string{"UNACCEPTABLE_ADDRESSES"}},
		{name: "an update from a loopback", from: "127.0.0.1:4500", ps: []message.Payload{notify(message.UpdateSAAddresses, nil)}, want: []string{"UNACCEPTABLE_ADDRESSES"}},
		{name: "an update", from: addrC + ":4500", ps: append(nat(), notify(message.UpdateSAAddresses, nil), cookie),
			want: []string{"COOKIE2", "NAT_DETECTION_SOURCE_IP", "NAT_DETECTION_DESTINATION_IP"}, moves: true},
	} {
		r, got := ask(c.from, c.ps...)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: answered %v, want %v", c.name, got, c.want)
		}
		if r.Remote.String() != c.from {
			t.Errorf("%s from %s: the answer goes to %s", c.name, c.from, r.Remote)
		}
		if moved := b.ike()[0].remote.String() != at; moved != c.moves {
			t.Errorf("%s: the peer is at %s", c.name, b.ike()[0].remote)
		}
	}
}

func TestMobikeHostile(t *testing.T) {
	elsewhere := netip.MustParseAddrPort("198.51.100.66:4500")
	t.Run("replayed and forged updates", func(t *testing.T) {
		w, a, b := roaming(t, nil)
		a.goes(addrC)
		w.settle()
		replays := slices.Clone(w.seen)
		a.goes(addrD)
		w.settle()
		for _, d := range append(replays, w.seen...) {
			if d.Remote.Addr() == b.addr {
				d.Local = elsewhere
				w.deliver(d)
			}
		}
		forged := &message.Message{Header: a.ike()[0].header(message.Informational, false, a.ike()[0].nextSend),
			Payloads: []message.Payload{notify(message.UpdateSAAddresses, nil)}}
		w.deliver(Datagram{Local: elsewhere, Remote: b.ike()[0].local, NonESP: true, Data: forged.Encode()})
		w.settle()
		wantAt(t, a, b, addrD, false)
		b.e.HandlePeerMoved(w.now, b.order[0], elsewhere)
		b.drain()
		wantAt(t, a, b, addrD, false)
	})
	t.Run("an update of the gateway", func(t *testing.T) {
		w, a, b := roaming(t, nil)
		d := b.request(notify(message.UpdateSAAddresses, nil))
		d.Local = elsewhere
		a.receive(flip(d))
		b.ike()[0].nextSend++
		w.settle()
		wantAt(t, a, b, addrA, false)
	})
	t.Run("COOKIE2 of the answer is wrong", func(t *testing.T) {
		for _, cookie := range [][]byte{nil, []byte("a guess of 16 b.")} {
			w, a, b := roaming(t, nil)
			w.drop = func(d Datagram) bool {
				h, _ := message.ParseHeader(d.Data)
				if h.Response || h.Initiator {
					return false
				}
				w.drop = nil
				var ps []message.Payload
				if cookie != nil {
					ps = append(ps, notify(message.Cookie2, cookie))
				}
				sa := a.ike()[0]
				end := a.e.begin(w.now)
				r, err := a.e.seal(sa, message.Informational, true, h.MessageID, ps)
				end()
				if err != nil {
					t.Fatal(err)
				}
				w.wire = append(w.wire, sa.datagram(r))
				sa.nextRecv++
				return true
			}
			a.goes(addrC)
			w.settle()
			w.run(time.Second)
			b.wantLog("COOKIE2 of the answer is not ours")
			if len(b.established()) != 0 || len(b.installed) != 0 {
				t.Errorf("cookie %q: the IKE SA lives on: %v", cookie, describe(b.ike()))
			}
		}
	})
	t.Run("nobody answers at the new address", func(t *testing.T) {
		w, a, b := roaming(t, nil)
		d := a.request(notify(message.UpdateSAAddresses, nil))
		d.Local = elsewhere
		w.deliver(d)
		w.run(30 * time.Second)
		if got := b.installed[b.order[0]].SA.Remote.String(); got != addrA+":4500" {
			t.Errorf("ESP goes to %s", got)
		}
	})
}
