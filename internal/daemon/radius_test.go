package daemon

import (
	"crypto/hmac"
	"crypto/md5"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"layeh.com/radius"
	"layeh.com/radius/rfc2865"
	"layeh.com/radius/rfc2869"
	"layeh.com/radius/vendors/microsoft"

	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

var radiusQuestion = ike.AskRADIUS{
	Server: config.RADIUSServer{Name: "aaa", Servers: [2]string{"127.0.0.1"}, Secrets: [2]ipsec.Key{ipsec.NewKey([]byte("shared")), ipsec.NewKey([]byte("shared"))},
		Timeout: 3 * time.Second},
	User: "carol", State: []byte("the state"), EAP: []byte{2, 1, 0, 10, 1, 'c', 'a', 'r', 'o', 'l'},
	Client: netip.MustParseAddr("192.0.2.10"), Gateway: netip.MustParseAddr("192.0.2.1"),
}

// answered is a server's answer to a request, as it travels; change comes before it is proved.
func answered(t testing.TB, request []byte, secret string, code radius.Code, prove bool, change func(p *radius.Packet)) []byte {
	t.Helper()
	q, err := radius.Parse(request, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	p := q.Response(code)
	if change != nil {
		change(p)
	}
	if !prove {
		b, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err := rfc2869.MessageAuthenticator_Set(p, make([]byte, md5.Size)); err != nil {
		t.Fatal(err)
	}
	b, err := p.MarshalBinary() // with the request's authenticator
	if err != nil {
		t.Fatal(err)
	}
	h := hmac.New(md5.New, []byte(secret))
	h.Write(b)
	if err := rfc2869.MessageAuthenticator_Set(p, h.Sum(nil)); err != nil {
		t.Fatal(err)
	}
	if b, err = p.Encode(); err != nil {
		t.Fatal(err)
	}
	return b
}

func accepts(p *radius.Packet) {
	_ = rfc2869.EAPMessage_Set(p, []byte{3, 1, 0, 4})
	_ = rfc2865.UserName_SetString(p, "carol@example.org")
	_ = microsoft.MSMPPERecvKey_Set(p, []byte("sixteen bytes in"))
	_ = microsoft.MSMPPESendKey_Set(p, []byte("sixteen bytes ou"))
}

// A request has what RFC 3579 asks for, and only an answer that proves the secret twice is one.
func TestRADIUSPackets(t *testing.T) {
	request, err := radiusRequest(radiusQuestion, "gw", []byte("shared"))
	if err != nil {
		t.Fatal(err)
	}
	q, err := radius.Parse(request, []byte("shared"))
	if err != nil || !authenticates(request, request[4:20], []byte("shared")) || authenticates(request, request[4:20], []byte("other")) {
		t.Fatalf("%v: the request does not prove the secret", err)
	}
	if rfc2865.UserName_GetString(q) != "carol" || string(rfc2865.State_Get(q)) != "the state" || string(rfc2869.EAPMessage_Get(q)) != string(radiusQuestion.EAP) ||
		rfc2865.NASIdentifier_GetString(q) != "gw" || rfc2865.CallingStationID_GetString(q) != "192.0.2.10" || rfc2865.FramedMTU_Get(q) != radiusMTU {
		t.Errorf("%+v", q)
	}
	good := answered(t, request, "shared", radius.CodeAccessAccept, true, accepts)
	a, err := radiusResponse(good, request, []byte("shared"))
	if err != nil || a.Code != ike.RADIUSAccept || a.User != "carol@example.org" || string(a.EAP) != "\x03\x01\x00\x04" ||
		string(a.Key.Bytes()) != "sixteen bytes insixteen bytes ou"+strings.Repeat("\x00", 32) {
		t.Errorf("%+v, %v", a, err)
	}
	changed := append([]byte{}, good...)
	changed[len(changed)-1] ^= 1
	another, _ := radiusRequest(radiusQuestion, "gw", []byte("shared"))
	another[1] = request[1]
	for name, b := range map[string][]byte{
		"changed":                           changed,
		"of another secret":                 answered(t, request, "other", radius.CodeAccessAccept, true, accepts),
		"to another request":                answered(t, another, "shared", radius.CodeAccessAccept, true, accepts),
		"without Message-Authenticator":     answered(t, request, "shared", radius.CodeAccessAccept, false, accepts),
		"with half a Message-Authenticator": answered(t, request, "shared", radius.CodeAccessAccept, false, func(p *radius.Packet) { _ = rfc2869.MessageAuthenticator_Set(p, make([]byte, 8)) }),
		"cut off":                           good[:len(good)-1],
		"of another kind":                   answered(t, request, "shared", radius.CodeAccountingResponse, true, nil),
	} {
		if a, err := radiusResponse(b, request, []byte("shared")); err == nil {
			t.Errorf("an answer %s is taken: %+v", name, a)
		}
	}
	if a, err := radiusResponse(answered(t, request, "shared", radius.CodeAccessAccept, true, nil), request, []byte("shared")); err != nil || a.Key.Len() != 0 {
		t.Errorf("without keys: %+v, %v", a, err)
	}
	tooLong := radiusQuestion
	tooLong.EAP = make([]byte, 4096)
	if _, err := radiusRequest(tooLong, "gw", []byte("shared")); err == nil {
		t.Error("more than a packet holds is sent")
	}
}

func FuzzRADIUSResponse(f *testing.F) {
	request, err := radiusRequest(radiusQuestion, "gw", []byte("shared"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(answered(f, request, "shared", radius.CodeAccessAccept, true, accepts))
	f.Add(answered(f, request, "shared", radius.CodeAccessChallenge, true, func(p *radius.Packet) { _ = rfc2865.State_Set(p, []byte("x")) }))
	f.Add([]byte{2, request[1], 0, 20})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := radiusResponse(b, request, []byte("shared")); err == nil && !authenticates(b[:int(b[2])<<8|int(b[3])], request[4:20], []byte("shared")) {
			t.Errorf("%+v is not proved", a)
		}
		authenticates(b, request[4:20], []byte("shared"))
	})
}

// server is a RADIUS server on the loopback that accepts; it ignores so many questions first.
func server(t *testing.T, ignores int32) (port int, asked *atomic.Int32) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	asked = &atomic.Int32{}
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if asked.Add(1) <= ignores {
				continue
			}
			_, _ = c.WriteTo([]byte("nonsense"), from)
			_, _ = c.WriteTo(answered(t, b[:n], "shared", radius.CodeAccessAccept, true, accepts), from)
		}
	}()
	_, p, _ := net.SplitHostPort(c.LocalAddr().String())
	port, _ = strconv.Atoi(p)
	return port, asked
}

// A question is asked once, however often its message comes, is sent again while there is no answer, and
// ends with one or with silence.
func TestRADIUSAsks(t *testing.T) {
	port, asked := server(t, 1)
	again := make(chan ike.Datagram, 10)
	r := newRADIUS(slog.New(slog.DiscardHandler), "gw", func(d ike.Datagram) { again <- d })
	defer r.close()
	q := radiusQuestion
	q.Key[0], q.Server.Port, q.Datagram.Data = 1, port, []byte("the message")
	r.ask(q)
	r.ask(q)
	if d := <-again; string(d.Data) != "the message" {
		t.Errorf("%q is handed in", d.Data)
	}
	if a, ok := r.answer(q.Key); !ok || a.Code != ike.RADIUSAccept || a.Which != 1 || asked.Load() != 2 {
		t.Errorf("%+v, %v after %d questions", a, ok, asked.Load())
	}
	// The first host is not there.
	q.Key[0], q.Server.Servers, q.Server.Timeout = 2, [2]string{"127.0.0.2", "127.0.0.1"}, 2*time.Second
	r.ask(q)
	<-again
	if a, ok := r.answer(q.Key); !ok || a.Code != ike.RADIUSAccept || a.Which != 2 {
		t.Errorf("%+v, %v", a, ok)
	}
	// A conversation stays where it began.
	q.Key[0], q.Which, q.Server.Timeout = 3, 1, time.Second/2
	r.ask(q)
	<-again
	if a, ok := r.answer(q.Key); !ok || a.Code != ike.RADIUSSilence {
		t.Errorf("%+v, %v", a, ok)
	}
	now := r.now()
	r.now = func() time.Time { return now.Add(radiusHeld + time.Second) }
	if _, ok := r.answer(q.Key); ok {
		t.Error("an answer is kept for ever")
	}
	// Ending does not wait for servers.
	q.Key[0], q.Server.Timeout = 4, 5*time.Minute
	r.ask(q)
}
