package ike

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"tandem/internal/ipsec"
)

// other is another implementation of what RFC 9242 and RFC 9370 say, made from the texts on
// the standard library alone: of the code under test it has nothing. It speaks
// aes128gcm-prfsha256, X25519 and ML-KEM, has the pre-shared key "secret", and cuts its
// messages into fragments if limit is set.
type other struct {
	t         *testing.T
	s         *side
	at        netip.AddrPort
	initiator bool // of the IKE SA
	limit     int  // bytes of an encrypted content; 0: no fragments
	add       []uint16

	i, r             uint64
	ni, nr           []byte
	d, ei, er        []byte
	pi, pr           []byte
	intI, intR       []byte
	initReq, initRes []byte
	send, recv       uint32
	iv               uint64
}

// Of the registries.
const (
	oSA, oKE, oIDi, oIDr, oAUTH, oNonce, oN, oD, oTSi, oTSr, oSK, oSKF = 33, 34, 35, 36, 39, 40, 41, 42, 44, 45, 46, 53

	oInit, oAuth, oCreate, oInfo, oIntermediate, oFollowup = 34, 35, 36, 37, 43, 44
)

type part struct {
	kind byte
	body []byte
}

func be(n int, v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v)[8-n:] }

func hmacOf(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func expand(key, seed []byte, n int) (out []byte) {
	var last []byte
	for c := byte(1); len(out) < n; c++ {
		last = hmacOf(key, last, seed, []byte{c})
		out = append(out, last...)
	}
	return out[:n]
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func chain(ps []part) (first byte, out []byte) {
	for i, p := range ps {
		next := byte(0)
		if i+1 < len(ps) {
			next = ps[i+1].kind
		}
		out = append(out, next, 0)
		out = append(out, be(2, uint64(len(p.body)+4))...)
		out = append(out, p.body...)
	}
	if len(ps) > 0 {
		first = ps[0].kind
	}
	return first, out
}

func unchain(first byte, b []byte) (ps []part) {
	for first != 0 {
		n := binary.BigEndian.Uint16(b[2:])
		ps = append(ps, part{first, b[4:n]})
		first, b = b[0], b[n:]
	}
	return ps
}

func (o *other) body(ps []part, kind byte) []byte {
	o.t.Helper()
	for _, p := range ps {
		if p.kind == kind {
			return p.body
		}
	}
	o.t.Fatalf("no payload %d in %v", kind, kindsOf(ps))
	return nil
}

func kindsOf(ps []part) (out []string) {
	for _, p := range ps {
		s := fmt.Sprint(p.kind)
		if p.kind == oN {
			s += fmt.Sprintf("(%d)", binary.BigEndian.Uint16(p.body[2:]))
		}
		out = append(out, s)
	}
	return out
}

func told(kind uint16, data []byte) part {
	return part{oN, join([]byte{0, 0}, be(2, uint64(kind)), data)}
}

func findNotify(ps []part, kind uint16) ([]byte, bool) {
	for _, p := range ps {
		if p.kind == oN && binary.BigEndian.Uint16(p.body[2:]) == kind {
			return p.body[4+int(p.body[1]):], true
		}
	}
	return nil, false
}

// offer is an SA payload with one proposal: AES-GCM of 128 bits, and what is asked for.
func (o *other) offer(protocol byte, spi []byte, ke, add bool) part {
	type tf struct {
		kind byte
		id   uint16
		more []byte
	}
	all := []tf{{1, 20, []byte{0x80, 14, 0, 128}}}
	if protocol == 1 {
		all = append(all, tf{2, 5, nil})
	} else {
		all = append(all, tf{5, 0, nil})
	}
	if ke {
		all = append(all, tf{4, 31, nil})
	}
	for i, id := range o.add {
		if add {
			all = append(all, tf{byte(6 + i), id, nil})
		}
	}
	var b []byte
	for i, x := range all {
		more := byte(3)
		if i+1 == len(all) {
			more = 0
		}
		b = append(b, more, 0)
		b = append(b, be(2, uint64(8+len(x.more)))...)
		b = append(b, x.kind, 0)
		b = append(b, be(2, uint64(x.id))...)
		b = append(b, x.more...)
	}
	head := []byte{0, 0}
	head = append(head, be(2, uint64(8+len(spi)+len(b)))...)
	head = append(head, 1, protocol, byte(len(spi)), byte(len(all)))
	return part{oSA, join(head, spi, b)}
}

// chosenSPI is the SPI in an SA payload.
func chosenSPI(body []byte) []byte { return body[8 : 8+body[6]] }

func ts(prefix string) []byte {
	p := netip.MustParsePrefix(prefix)
	a := p.Addr().As4()
	end := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	return join([]byte{1, 0, 0, 0, 7, 0, 0, 16, 0, 0, 255, 255}, a[:], be(4, uint64(end)))
}

// header is an IKE header without its length.
func (o *other) header(next, exchange byte, response bool, id uint32) []byte {
	flags := byte(0)
	if o.initiator {
		flags |= 8
	}
	if response {
		flags |= 0x20
	}
	return join(be(8, o.i), be(8, o.r), []byte{next, 0x20, exchange, flags}, be(4, uint64(id)), make([]byte, 4))
}

func setLen(b []byte) []byte { binary.BigEndian.PutUint32(b[24:], uint32(len(b))); return b }

// exchange hands over datagrams and returns those that come back.
func (o *other) deliver(ds ...[]byte) (out [][]byte) {
	o.s.sent = nil
	for _, d := range ds {
		o.s.receive(Datagram{Local: netip.AddrPortFrom(o.s.addr, 500), Remote: o.at, Data: d})
	}
	for _, d := range o.s.sent {
		out = append(out, d.Data)
	}
	return out
}

// intAuth is RFC 9242 §3.3.2 for one message: as if it were neither padded nor cut.
func (o *other) intAuth(initiators bool, header []byte, first byte, inner []byte) {
	a := join(header, []byte{first, 0}, be(2, uint64(4+len(inner))))
	a[16] = oSK
	binary.BigEndian.PutUint32(a[24:], uint32(len(a)+len(inner)))
	if initiators {
		o.intI = hmacOf(o.pi, o.intI, a, inner)
	} else {
		o.intR = hmacOf(o.pr, o.intR, a, inner)
	}
}

func gcmOf(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return g
}

func (o *other) seal(exchange byte, response bool, id uint32, ps ...part) (out [][]byte) {
	first, inner := chain(ps)
	key := o.ei
	if !o.initiator {
		key = o.er
	}
	if exchange == oIntermediate {
		o.intAuth(o.initiator, o.header(oSK, exchange, response, id), first, inner)
	}
	one := func(kind, first byte, extra, content []byte) {
		o.iv++
		iv := be(8, o.iv)
		n := 4 + len(extra) + 8 + len(content) + 1 + 16
		aad := join(o.header(kind, exchange, response, id), []byte{first, 0}, be(2, uint64(n)), extra)
		binary.BigEndian.PutUint32(aad[24:], uint32(28+n))
		nonce := join(key[16:], iv)
		out = append(out, gcmOf(key).Seal(join(aad, iv), nonce, join(content, []byte{0}), aad))
	}
	if o.limit == 0 || len(inner) <= o.limit {
		one(oSK, first, nil, inner)
		return out
	}
	total := (len(inner) + o.limit - 1) / o.limit
	for n := 1; n <= total; n++ {
		content := inner[:min(o.limit, len(inner))]
		inner = inner[len(content):]
		one(oSKF, first, join(be(2, uint64(n)), be(2, uint64(total))), content)
		first = 0
	}
	return out
}

// open reads the datagrams of one message.
func (o *other) open(ds [][]byte) (exchange byte, id uint32, ps []part) {
	o.t.Helper()
	if len(ds) == 0 {
		o.t.Fatal("no message came")
	}
	key := o.er
	if !o.initiator {
		key = o.ei
	}
	var first byte
	var inner []byte
	for i, d := range ds {
		at := 32
		if d[16] == oSKF {
			at = 36
		}
		plain, err := gcmOf(key).Open(nil, join(key[16:], d[at:at+8]), d[at+8:], d[:at])
		if err != nil {
			o.t.Fatalf("exchange %d, datagram %d of %d: %v", d[18], i+1, len(ds), err)
		}
		if i == 0 {
			first = d[28]
		}
		inner = append(inner, plain[:len(plain)-1-int(plain[len(plain)-1])]...)
	}
	if ds[0][18] == oIntermediate {
		o.intAuth(!o.initiator, bytes.Clone(ds[0][:28]), first, inner)
	}
	return ds[0][18], binary.BigEndian.Uint32(ds[0][20:]), unchain(first, inner)
}

// request sends one and reads the answer.
func (o *other) request(exchange byte, ps ...part) []part {
	o.t.Helper()
	back := o.deliver(o.seal(exchange, false, o.send, ps...)...)
	got, id, answer := o.open(back)
	if got != exchange || id != o.send {
		o.t.Fatalf("exchange %d with ID %d is answered by %d with %d", exchange, o.send, got, id)
	}
	o.send++
	return answer
}

// keys takes seven keys from SKEYSEED.
func (o *other) keys(seed []byte) {
	k := expand(seed, join(o.ni, o.nr, be(8, o.i), be(8, o.r)), 32+20+20+32+32)
	o.d, o.ei, o.er, o.pi, o.pr = k[:32], k[32:52], k[52:72], k[72:104], k[104:136]
}

func ke(method uint16, data []byte) part {
	return part{oKE, join(be(2, uint64(method)), []byte{0, 0}, data)}
}

// begin makes our part of a key exchange, and what completes it.
func (o *other) begin(method uint16) (public []byte, complete func([]byte) []byte) {
	switch method {
	case 36:
		k, _ := mlkem.GenerateKey768()
		return k.EncapsulationKey().Bytes(), func(c []byte) []byte { s, err := k.Decapsulate(c); o.must(err); return s }
	case 37:
		k, _ := mlkem.GenerateKey1024()
		return k.EncapsulationKey().Bytes(), func(c []byte) []byte { s, err := k.Decapsulate(c); o.must(err); return s }
	}
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	o.must(err)
	return k.PublicKey().Bytes(), func(c []byte) []byte {
		p, err := ecdh.X25519().NewPublicKey(c)
		o.must(err)
		s, err := k.ECDH(p)
		o.must(err)
		return s
	}
}

// answer is the responder's part.
func (o *other) answer(method uint16, peer []byte) (public, shared []byte) {
	switch method {
	case 36:
		k, err := mlkem.NewEncapsulationKey768(peer)
		o.must(err)
		shared, public = k.Encapsulate()
		return public, shared
	case 37:
		k, err := mlkem.NewEncapsulationKey1024(peer)
		o.must(err)
		shared, public = k.Encapsulate()
		return public, shared
	}
	public, complete := o.begin(method)
	return public, complete(peer)
}

func (o *other) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

func nonce() []byte { b := make([]byte, 32); rand.Read(b); return b }

// auth is AUTH by the pre-shared key (RFC 7296 §2.15, RFC 9242 §3.3.2).
func (o *other) auth(initiators bool, id []byte, mid uint32) []byte {
	msg, n, p := o.initReq, o.nr, o.pi
	if !initiators {
		msg, n, p = o.initRes, o.ni, o.pr
	}
	octets := join(msg, n, hmacOf(p, id))
	if len(o.add) > 0 {
		octets = join(octets, o.intI, o.intR, be(4, uint64(mid)))
	}
	return hmacOf(hmacOf([]byte("secret"), []byte("Key Pad for IKEv2")), octets)
}

// wantChild checks the keys of the Child SA with an SPI of the engine's choice; first says
// that the keys of the initiator of its exchange, which was ours, come in to the engine.
func (o *other) wantChild(spi []byte, ours bool, keymat []byte) {
	o.t.Helper()
	c := o.s.installed[ipsec.ESPSPI(binary.BigEndian.Uint32(spi))]
	if c == nil {
		o.t.Fatalf("Child SA %x is not installed", spi)
	}
	in, out := keymat[:20], keymat[20:40]
	if !ours {
		in, out = out, in
	}
	if !bytes.Equal(join(c.SA.EncrIn.Bytes(), c.SA.SaltIn.Bytes()), in) || !bytes.Equal(join(c.SA.EncrOut.Bytes(), c.SA.SaltOut.Bytes()), out) {
		o.t.Errorf("Child SA %x has other keys", spi)
	}
}

const noteIntermediate, noteFragments, noteAddKE, noteRekey = 16438, 16430, 16441, 16393

func newOther(t *testing.T, s *side, initiator bool, add []uint16, limit int) *other {
	s.quietSend = true
	addr := addrA
	if s.addr.String() == addrA {
		addr = addrB
	}
	return &other{t: t, s: s, at: netip.AddrPortFrom(netip.MustParseAddr(addr), 500), initiator: initiator, add: add, limit: limit, i: 0x1122334455667788, ni: nonce(), nr: nonce()}
}

// start is the initiator's IKE_SA_INIT.
func (o *other) start() {
	public, complete := o.begin(31)
	first, body := chain([]part{o.offer(1, nil, true, true), ke(31, public), {oNonce, o.ni}, told(noteIntermediate, nil), told(noteFragments, nil)})
	o.initReq = setLen(join(o.header(first, oInit, false, 0), body))
	back := o.deliver(o.initReq)
	if len(back) != 1 {
		o.t.Fatal("no answer to IKE_SA_INIT")
	}
	o.initRes = back[0]
	o.r = binary.BigEndian.Uint64(o.initRes[8:])
	ps := unchain(o.initRes[16], o.initRes[28:])
	if _, ok := findNotify(ps, noteIntermediate); !ok {
		o.t.Fatalf("IKE_SA_INIT response without INTERMEDIATE_EXCHANGE_SUPPORTED: %v", kindsOf(ps))
	}
	o.nr = o.body(ps, oNonce)
	o.keys(hmacOf(join(o.ni, o.nr), complete(o.body(ps, oKE)[4:])))
	o.send = 1
}

// connect is the initiator up to the first Child SA.
func (o *other) connect() {
	o.start()
	for _, method := range o.add {
		public, complete := o.begin(method)
		ps := o.request(oIntermediate, ke(method, public))
		o.keys(hmacOf(o.d, complete(o.body(ps, oKE)[4:]), o.ni, o.nr))
	}
	id := join([]byte{2, 0, 0, 0}, []byte("other"))
	ps := o.request(oAuth, part{oIDi, id}, part{oAUTH, join([]byte{2, 0, 0, 0}, o.auth(true, id, o.send))},
		o.offer(3, []byte{9, 9, 9, 1}, false, false), part{oTSi, ts(netA)}, part{oTSr, ts(netB)})
	if !bytes.Equal(o.body(ps, oAUTH)[4:], o.auth(false, o.body(ps, oIDr), o.send-1)) {
		o.t.Fatal("AUTH of the responder is another one")
	}
	o.wantChild(chosenSPI(o.body(ps, oSA)), true, expand(o.d, join(o.ni, o.nr), 40))
}

// followUps carries out the additional key exchanges after CREATE_CHILD_SA; ps is its
// response. It returns SK(1) | SK(2) …
func (o *other) followUps(ps []part) (secrets []byte) {
	o.t.Helper()
	for i, method := range o.add {
		link, ok := findNotify(ps, noteAddKE)
		if !ok {
			o.t.Fatalf("no ADDITIONAL_KEY_EXCHANGE after %d of them: %v", i, kindsOf(ps))
		}
		public, complete := o.begin(method)
		ps = o.request(oFollowup, ke(method, public), told(noteAddKE, link))
		secrets = append(secrets, complete(o.body(ps, oKE)[4:])...)
	}
	if _, ok := findNotify(ps, noteAddKE); ok {
		o.t.Error("ADDITIONAL_KEY_EXCHANGE in the last response")
	}
	return secrets
}

// rekeyChild rekeys a Child SA and checks the keys of the new one.
func (o *other) rekeyChild(spi []byte) {
	o.t.Helper()
	ni := nonce()
	public, complete := o.begin(31)
	ps := o.request(oCreate, part{oN, join([]byte{3, 4}, be(2, noteRekey), spi)}, o.offer(3, []byte{9, 9, 9, 2}, true, true), part{oNonce, ni},
		ke(31, public), part{oTSi, ts(netA)}, part{oTSr, ts(netB)})
	shared := complete(o.body(ps, oKE)[4:])
	fresh := chosenSPI(o.body(ps, oSA))
	nr := o.body(ps, oNonce)
	if o.s.installed[ipsec.ESPSPI(binary.BigEndian.Uint32(fresh))] != nil {
		o.t.Error("the Child SA is installed before its last key exchange")
	}
	more := o.followUps(ps)
	o.wantChild(fresh, true, expand(o.d, join(shared, ni, nr, more), 40))
}

// rekeyIKE rekeys the IKE SA and goes on with the new one.
func (o *other) rekeyIKE() {
	o.t.Helper()
	ni, spi := nonce(), []byte{7, 7, 7, 7, 7, 7, 7, 7}
	public, complete := o.begin(31)
	ps := o.request(oCreate, o.offer(1, spi, true, true), part{oNonce, ni}, ke(31, public))
	shared := complete(o.body(ps, oKE)[4:])
	r, nr := binary.BigEndian.Uint64(chosenSPI(o.body(ps, oSA))), o.body(ps, oNonce)
	more := o.followUps(ps)
	o.request(oInfo, part{oD, []byte{1, 0, 0, 0}}) // the old one
	o.ni, o.nr, o.i, o.r = ni, nr, binary.BigEndian.Uint64(spi), r
	o.keys(hmacOf(o.d, shared, ni, nr, more))
	o.send = 0
	if got := o.request(oInfo); len(got) != 0 {
		o.t.Errorf("the new IKE SA answers %v", kindsOf(got))
	}
}
