package integration

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
)

// scripted is an IKE peer that sends exactly what a test says: as initiator
// towards the gateway (dial), or as responder (listen).
type scripted struct {
	t       *testing.T
	conn    *net.UDPConn
	gw      netip.AddrPort
	marker  bool // non-ESP marker (port 4500)
	suite   ipsec.Suite
	id      *message.ID
	secret  string
	spis    ipsec.IKESPIs
	keys    keymat.IKEKeys
	ni, nr  []byte
	kx      keymat.KeyExchange
	initReq []byte // as sent
	initRes []byte // as received
	iv      *ipsec.IVCounter
	sendID  uint32
	isResp  bool
}

var scriptedSuite = ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128, PRF: ipsec.PRFHMACSHA256, KE: ipsec.KEX25519}

// socket opens a UDP socket in a node's namespace that ends with the test.
func (s *site) socket(node, local string, port uint16) *net.UDPConn {
	s.t.Helper()
	var c *net.UDPConn
	err := s.topo.In(node, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(local), port)))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// dial makes a scripted initiator on a port of its own; port 4500 of the gateway
// is its goal, so that ESP in UDP is possible from the beginning (RFC 7296 §2.23).
func (s *site) dial(node, local, fqdn, secret string) *scripted {
	s.t.Helper()
	return &scripted{t: s.t, conn: s.socket(node, local, 0), gw: netip.AddrPortFrom(netip.MustParseAddr(gwWAN), 4500), marker: true,
		suite: scriptedSuite, id: &message.ID{IDType: message.IDFQDN, Data: []byte(fqdn)}, secret: secret, iv: ipsec.NewIVCounter(0)}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return b
}

func spi64() ipsec.IKESPI { return ipsec.IKESPI(binary.BigEndian.Uint64(random(8)) | 1) }

func (p *scripted) send(b []byte) {
	p.t.Helper()
	if p.marker {
		b = append(make([]byte, 4), b...)
	}
	if _, err := p.conn.WriteToUDPAddrPort(b, p.gw); err != nil {
		p.t.Fatal(err)
	}
}

// receive returns the next IKE message within a time, nil for none.
func (p *scripted) receive(within time.Duration) []byte {
	p.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 65536)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			p.t.Fatal(err)
		}
		b := append([]byte(nil), buf[:n]...)
		if p.isResp {
			p.gw = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		}
		if !p.marker {
			return b
		}
		if n > 4 && binary.BigEndian.Uint32(b) == 0 {
			return b[4:]
		}
	}
}

// ask sends a request and wants an answer.
func (p *scripted) ask(b []byte) []byte {
	p.t.Helper()
	for range 3 {
		p.send(b)
		if r := p.receive(2 * time.Second); r != nil {
			return r
		}
	}
	p.t.Fatal("the gateway does not answer")
	return nil
}

// wantSilence wants no answer for a while.
func (p *scripted) wantSilence(why string) {
	p.t.Helper()
	if b := p.receive(700 * time.Millisecond); b != nil {
		p.t.Fatalf("%s: got %x", why, b)
	}
}

func (p *scripted) parse(b []byte) *message.Message {
	p.t.Helper()
	m, err := message.Parse(b)
	if err != nil {
		p.t.Fatalf("parse %x: %v", b, err)
	}
	return m
}

func ikeProposal(s ipsec.Suite) ipsec.Proposal {
	p := ipsec.Proposal{Number: 1, Protocol: ipsec.ProtocolIKE}
	add := func(t ipsec.TransformType, id ipsec.TransformID, bits uint16) {
		p.Transforms = append(p.Transforms, ipsec.Transform{Type: t, ID: id, KeyBits: bits})
	}
	add(ipsec.TransformENCR, s.Encr, s.KeyBits)
	add(ipsec.TransformPRF, s.PRF, 0)
	if s.Integ != ipsec.INTEGNone {
		add(ipsec.TransformINTEG, s.Integ, 0)
	}
	add(ipsec.TransformKE, s.KE, 0)
	return p
}

func espProposal(s ipsec.Suite, spi ipsec.ESPSPI) ipsec.Proposal {
	p := ipsec.Proposal{Number: 1, Protocol: ipsec.ProtocolESP, SPI: binary.BigEndian.AppendUint32(nil, uint32(spi)),
		Transforms: []ipsec.Transform{{Type: ipsec.TransformENCR, ID: s.Encr, KeyBits: s.KeyBits}}}
	if s.KE != ipsec.KENone {
		p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformKE, ID: s.KE})
	}
	p.Transforms = append(p.Transforms, ipsec.Transform{Type: ipsec.TransformESN, ID: ipsec.ESNNo})
	return p
}

// initMessage builds an IKE_SA_INIT request with fresh SPI, nonce and KE; before
// stands in front of the payloads, after behind.
func (p *scripted) initMessage(before, after []message.Payload) *message.Message {
	p.t.Helper()
	kx, err := keymat.NewKeyExchange(p.suite.KE, rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	p.kx, p.ni, p.spis = kx, random(32), ipsec.IKESPIs{I: spi64()}
	return p.initAgain(before, after)
}

// initAgain builds the request once more with the same SPI, nonce and KE.
func (p *scripted) initAgain(before, after []message.Payload) *message.Message {
	ps := append([]message.Payload{}, before...)
	ps = append(ps, &message.SA{Proposals: []ipsec.Proposal{ikeProposal(p.suite)}},
		&message.KE{Group: p.suite.KE, Data: p.kx.Public()}, &message.Nonce{Data: p.ni},
		// Hashes that fit nothing: a NAT on both sides, so ESP travels in UDP.
		&message.Notify{NotifyType: message.NATDetectionSourceIP, Data: random(20)},
		&message.Notify{NotifyType: message.NATDetectionDestinationIP, Data: random(20)})
	ps = append(ps, after...)
	return &message.Message{Header: message.Header{SPIs: ipsec.IKESPIs{I: p.spis.I}, MajorVersion: 2,
		Exchange: message.IKESAInit, Initiator: true}, Payloads: ps}
}

// init runs IKE_SA_INIT with a request that may carry more payloads.
func (p *scripted) init(after ...message.Payload) {
	p.t.Helper()
	p.initReq = p.initMessage(nil, after).Encode()
	p.accept(p.ask(p.initReq))
}

// accept takes the response to initReq and derives the keys.
func (p *scripted) accept(res []byte) {
	p.t.Helper()
	p.initRes = res
	m := p.parse(res)
	ke, ok1 := message.Get[*message.KE](m)
	nonce, ok2 := message.Get[*message.Nonce](m)
	if !ok1 || !ok2 {
		p.t.Fatalf("IKE_SA_INIT response without KE or nonce: %v", notifyNames(m))
	}
	p.spis, p.nr = m.SPIs, nonce.Data
	shared, err := p.kx.Shared(ke.Data)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.keys, err = keymat.DeriveIKE(p.suite, p.ni, p.nr, shared, p.spis); err != nil {
		p.t.Fatal(err)
	}
	p.sendID = 1
}

func notifyNames(m *message.Message) (out []string) {
	for _, n := range m.Notifies() {
		out = append(out, n.NotifyType.String())
	}
	return out
}

func (p *scripted) sealer() message.Sealer {
	p.t.Helper()
	key, auth := p.keys.Ei, p.keys.Ai
	if p.isResp {
		key, auth = p.keys.Er, p.keys.Ar
	}
	s, err := keymat.NewSealer(p.suite, key, auth, p.iv, rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// seal builds a protected request under the next message ID.
func (p *scripted) seal(exch message.ExchangeType, ps ...message.Payload) []byte {
	p.t.Helper()
	m := &message.Message{Header: message.Header{SPIs: p.spis, MajorVersion: 2, Exchange: exch, Initiator: !p.isResp, MessageID: p.sendID}, Payloads: ps}
	b, err := m.Seal(p.sealer())
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// open decrypts a message of the gateway's.
func (p *scripted) open(b []byte) *message.Message {
	p.t.Helper()
	key, auth := p.keys.Er, p.keys.Ar
	if p.isResp {
		key, auth = p.keys.Ei, p.keys.Ai
	}
	o, err := keymat.NewOpener(p.suite, key, auth)
	if err != nil {
		p.t.Fatal(err)
	}
	m := p.parse(b)
	if err := m.Open(b, o); err != nil {
		p.t.Fatalf("not protected under the IKE SA's keys: %v: %x", err, b)
	}
	return m
}

// request runs one protected exchange.
func (p *scripted) request(exch message.ExchangeType, ps ...message.Payload) *message.Message {
	p.t.Helper()
	m := p.open(p.ask(p.seal(exch, ps...)))
	if !m.Response || m.MessageID != p.sendID || m.Exchange != exch {
		p.t.Fatalf("answer to %s %d is %s %d (response: %v)", exch, p.sendID, m.Exchange, m.MessageID, m.Response)
	}
	p.sendID++
	return m
}

// authPayloads are IDi and AUTH.
func (p *scripted) authPayloads() []message.Payload {
	return []message.Payload{p.id, &message.Auth{Method: message.AuthPSK,
		Data: keymat.AuthPSK(p.suite.PRF, []byte(p.secret), p.initReq, p.nr, p.keys.Pi.Bytes(), p.id.Body())}}
}

// espPair is a Child SA of a scripted peer, AES-GCM only.
type espPair struct {
	p               *scripted
	in, out         ipsec.ESPSPI
	keys            keymat.ChildKeys
	seq             uint32
	local, remote   []ipsec.TrafficSelector // as the gateway narrowed them
	rawOut, saltOut []byte
}

var childSuite = ipsec.Suite{Encr: ipsec.ENCRAESGCM16, KeyBits: 128}

func selector(cidr string) ipsec.TrafficSelector {
	return ipsec.SelectorFromPrefix(netip.MustParsePrefix(cidr))
}

func childPayloads(s ipsec.Suite, spi ipsec.ESPSPI, tsi, tsr []ipsec.TrafficSelector) []message.Payload {
	return []message.Payload{&message.SA{Proposals: []ipsec.Proposal{espProposal(s, spi)}},
		&message.TS{Selectors: tsi}, &message.TS{Responder: true, Selectors: tsr}}
}

// auth runs IKE_AUTH with a Child SA for the selectors and wants it all accepted.
func (p *scripted) auth(local, remote string, more ...message.Payload) *espPair {
	p.t.Helper()
	spi := ipsec.ESPSPI(binary.BigEndian.Uint32(random(4)) | 0x1000)
	ps := append(p.authPayloads(), more...)
	ps = append(ps, childPayloads(childSuite, spi, []ipsec.TrafficSelector{selector(local)}, []ipsec.TrafficSelector{selector(remote)})...)
	m := p.request(message.IKEAuth, ps...)
	auth, ok := message.Get[*message.Auth](m)
	idr, ok2 := m.ID(true)
	if !ok || !ok2 {
		p.t.Fatalf("IKE_AUTH refused: %v", notifyNames(m))
	}
	want := keymat.AuthPSK(p.suite.PRF, []byte(p.secret), p.initRes, p.ni, p.keys.Pr.Bytes(), idr.Body())
	if string(want) != string(auth.Data) {
		p.t.Fatal("the gateway's AUTH is wrong")
	}
	return p.child(m, spi, childSuite, p.ni, p.nr, ipsec.Key{})
}

// child reads the responder's half of a Child SA and derives its keys.
func (p *scripted) child(m *message.Message, spi ipsec.ESPSPI, s ipsec.Suite, ni, nr []byte, shared ipsec.Key) *espPair {
	p.t.Helper()
	sa, ok := message.Get[*message.SA](m)
	tsi, ok1 := m.TS(false)
	tsr, ok2 := m.TS(true)
	if !ok || !ok1 || !ok2 || len(sa.Proposals) != 1 || len(sa.Proposals[0].SPI) != 4 {
		p.t.Fatalf("no Child SA: %v", notifyNames(m))
	}
	keys, err := keymat.DeriveChild(p.suite.PRF, p.keys.D, s, ni, nr, shared)
	if err != nil {
		p.t.Fatal(err)
	}
	return &espPair{p: p, in: spi, out: ipsec.ESPSPI(binary.BigEndian.Uint32(sa.Proposals[0].SPI)), keys: keys,
		local: tsi.Selectors, remote: tsr.Selectors, rawOut: keys.EncrI.Bytes(), saltOut: keys.SaltI.Bytes()}
}

// sendPacket seals one inner IPv4 packet with the standard library alone
// (RFC 4303 §2, RFC 4106) and sends it in UDP.
func (e *espPair) sendPacket(inner []byte) {
	e.p.t.Helper()
	e.seq++
	b := binary.BigEndian.AppendUint32(nil, uint32(e.out))
	b = binary.BigEndian.AppendUint32(b, e.seq)
	iv := binary.BigEndian.AppendUint64(nil, uint64(e.seq))
	pad := (4 - (len(inner)+2)%4) % 4
	plain := append([]byte{}, inner...)
	for i := range pad {
		plain = append(plain, byte(i+1))
	}
	plain = append(plain, byte(pad), 4)
	block, err := aes.NewCipher(e.rawOut)
	if err != nil {
		e.p.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		e.p.t.Fatal(err)
	}
	sealed := gcm.Seal(nil, append(append([]byte{}, e.saltOut...), iv...), plain, b[:8])
	b = append(append(b, iv...), sealed...)
	if _, err := e.p.conn.WriteToUDPAddrPort(b, e.p.gw); err != nil {
		e.p.t.Fatal(err)
	}
}

// udpPacket is an inner IPv4 packet with a UDP datagram.
func udpPacket(src, dst string, sport, dport uint16, payload []byte) []byte {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
	b = append(append(b, s[:]...), d[:]...)
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0) // no checksum
	return append(b, payload...)
}

// bye deletes the IKE SA.
func (p *scripted) bye() {
	p.t.Helper()
	p.request(message.Informational, &message.Delete{Protocol: ipsec.ProtocolIKE})
}

// createChild makes a further Child SA with a key exchange.
func (p *scripted) createChild(local, remote string) *espPair {
	p.t.Helper()
	kx, err := keymat.NewKeyExchange(p.suite.KE, rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	s := childSuite
	s.KE = p.suite.KE
	spi, ni := ipsec.ESPSPI(binary.BigEndian.Uint32(random(4))|0x1000), random(32)
	ps := childPayloads(s, spi, []ipsec.TrafficSelector{selector(local)}, []ipsec.TrafficSelector{selector(remote)})
	ps = append(ps, &message.Nonce{Data: ni}, &message.KE{Group: s.KE, Data: kx.Public()})
	m := p.request(message.CreateChildSA, ps...)
	ke, ok1 := message.Get[*message.KE](m)
	nr, ok2 := message.Get[*message.Nonce](m)
	if !ok1 || !ok2 {
		p.t.Fatalf("CREATE_CHILD_SA refused: %v", notifyNames(m))
	}
	shared, err := kx.Shared(ke.Data)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.child(m, spi, s, ni, nr.Data, shared)
}

// receiveESP returns the next packet of ESP in UDP within a time, nil for none.
func (p *scripted) receiveESP(within time.Duration) []byte {
	p.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 65536)
	for {
		n, err := p.conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			p.t.Fatal(err)
		}
		if n > 8 && binary.BigEndian.Uint32(buf) != 0 {
			return append([]byte(nil), buf[:n]...)
		}
	}
}
