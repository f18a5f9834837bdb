package forward

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"tandem/cluster/fsm"
	"tandem/internal/ipsec"
)

// NodeID is a member's number, as cluster.NodeID.
type NodeID = fsm.NodeID

type packetType uint8

const (
	typeData packetType = 1 + iota
	typeFragment
	typeHello
	typeToken
	typeReset
)

const (
	version     = 1
	maxNode     = 16
	headerLen   = 20
	fragmentLen = 8 // more in front of a fragment
	tagLen      = 16
	greetingLen = headerLen + 8 + sha256.Size
	nonceLen    = 12
)

// header stands in front of each datagram. session is that of whoever sends the
// data: in a token or a reset, of the datagram's receiver. counter is the nonce of
// sealed datagrams, the echo of greetings.
type header struct {
	kind             packetType
	from, to         NodeID
	session, counter uint64
}

func (h *header) put(b []byte) {
	b[0], b[1], b[2], b[3] = byte(h.kind), version, byte(h.from), byte(h.to)
	binary.BigEndian.PutUint64(b[4:], h.session)
	binary.BigEndian.PutUint64(b[12:], h.counter)
}

func parseHeader(b []byte) (h header, ok bool) {
	if len(b) < headerLen || b[1] != version {
		return h, false
	}
	h = header{
		kind: packetType(b[0]), from: NodeID(b[2]), to: NodeID(b[3]),
		session: binary.BigEndian.Uint64(b[4:]), counter: binary.BigEndian.Uint64(b[12:]),
	}
	if h.from < 1 || h.from > maxNode || h.to < 1 || h.to > maxNode || h.from == h.to {
		return h, false
	}
	switch h.kind {
	case typeData:
		return h, len(b) > headerLen+tagLen
	case typeFragment:
		return h, len(b) > headerLen+fragmentLen+tagLen
	case typeHello, typeToken, typeReset:
		return h, len(b) == greetingLen
	}
	return h, false
}

// fragment tells which part of which message a datagram carries. All parts but the
// last are of one length, which follows from count and total.
type fragment struct {
	id           uint32
	index, count uint8
	total        uint16 // bytes of the message
}

func (f *fragment) put(b []byte) {
	binary.BigEndian.PutUint32(b, f.id)
	b[4], b[5] = f.index, f.count
	binary.BigEndian.PutUint16(b[6:], f.total)
}

func parseFragment(b []byte) fragment {
	return fragment{binary.BigEndian.Uint32(b), b[4], b[5], binary.BigEndian.Uint16(b[6:])}
}

// span is where the part lies in its message; ok is false for a part that cannot be.
func (f *fragment) span() (from, to int, ok bool) {
	total, count := int(f.total), int(f.count)
	if count < 2 || int(f.index) >= count || total < count {
		return 0, 0, false
	}
	each := (total + count - 1) / count
	from = int(f.index) * each
	to = min(from+each, total)
	return from, to, from < to
}

// keys derives what members share from the cluster's secret.
type keys struct {
	secret, greeting ipsec.Key
}

func newKeys(secret ipsec.Key) keys {
	return keys{secret: secret, greeting: ipsec.NewKey(derive(secret, nil, "tandem forward greeting"))}
}

func derive(secret ipsec.Key, salt []byte, info string) []byte {
	b, err := hkdf.Key(sha256.New, secret.Bytes(), salt, info, 32)
	if err != nil {
		panic(err) // only for absurd lengths
	}
	return b
}

// data is the AEAD of one session from one member to another.
func (k *keys) data(from, to NodeID, session, token uint64) cipher.AEAD {
	var salt [16]byte
	binary.BigEndian.PutUint64(salt[:], session)
	binary.BigEndian.PutUint64(salt[8:], token)
	b := derive(k.secret, salt[:], "tandem forward data "+string([]byte{byte(from), byte(to)}))
	defer clear(b)
	c, err := aes.NewCipher(b)
	if err != nil {
		panic(err) // the length is right
	}
	a, err := cipher.NewGCM(c)
	if err != nil {
		panic(err)
	}
	return a
}

// greet makes a hello, a token or a reset.
func (k *keys) greet(h header, token uint64) []byte {
	b := make([]byte, headerLen+8, greetingLen)
	h.put(b)
	binary.BigEndian.PutUint64(b[headerLen:], token)
	return append(b, k.mac(b)...)
}

// greeted checks a greeting of the right length and returns its token.
func (k *keys) greeted(b []byte) (token uint64, ok bool) {
	ok = hmac.Equal(b[headerLen+8:], k.mac(b[:headerLen+8]))
	return binary.BigEndian.Uint64(b[headerLen:]), ok
}

func (k *keys) mac(b []byte) []byte {
	m := hmac.New(sha256.New, k.greeting.Bytes())
	m.Write(b)
	return m.Sum(nil)
}
