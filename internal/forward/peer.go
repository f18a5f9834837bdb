package forward

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tandem/xfrm/esp"
)

const (
	windowSize  = 4096                   // datagrams
	helloFirst  = 100 * time.Millisecond // until a hello is repeated, doubling
	helloLast   = time.Second
	helloGap    = 20 * time.Millisecond  // between hellos on request
	resetGap    = 100 * time.Millisecond // between resets
	mtuLife     = time.Minute            // of what is known about a path
	noRouteLife = time.Second
)

// peer is another member.
type peer struct {
	id      NodeID
	addr    netip.AddrPort
	session uint64 // of what we send
	tx      atomic.Pointer[sending]
	stats   counters

	// Owned by the sending goroutine.
	counter  uint64 // nonce last used
	message  uint32 // number of the next message in fragments
	mtu      int    // longest datagram that fits, bytes
	mtuUntil time.Time

	mu    sync.Mutex // guards greeting
	greet greeting

	// Owned by the receiving goroutine. candidate takes the place of current with its
	// first authentic message.
	current, candidate *receiving
	resetAt            time.Time
	parts              reassembly
}

// sending is what the peer's token gives: the key of our session.
type sending struct {
	token uint64
	aead  cipher.AEAD
}

// receiving is one session of the peer.
type receiving struct {
	session, token uint64
	aead           cipher.AEAD
	window         esp.Window
}

// greeting is our side of asking for a token.
type greeting struct {
	echo   uint64    // of the last hello; 0: none is unanswered
	sent   time.Time // when
	wait   time.Duration
	wanted bool // a token is missing or, as the peer says, no longer good
}

func newPeer(id NodeID, addr netip.AddrPort) *peer {
	return &peer{id: id, addr: addr, session: random(), greet: greeting{wanted: true}}
}

// random is never 0.
func random() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:])
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// due says whether to say hello now, with which echo, and if not, when to ask again;
// a zero time means that nothing is wanted.
func (g *greeting) due(now time.Time) (echo uint64, next time.Time) {
	if !g.wanted {
		return 0, time.Time{}
	}
	if at := g.sent.Add(g.wait); now.Before(at) {
		return 0, at
	}
	g.echo, g.sent = random(), now
	g.wait = min(max(2*g.wait, helloFirst), helloLast)
	return g.echo, now.Add(g.wait)
}

// want asks for a hello soon.
func (g *greeting) want() {
	g.wanted = true
	g.wait = helloGap
}

// answered takes the answer to the last hello, once.
func (g *greeting) answered(echo uint64) bool {
	if g.echo == 0 || echo != g.echo {
		return false
	}
	*g = greeting{sent: g.sent}
	return true
}

// hear notes the session that said hello and returns its token. new: it was not
// known before.
func (p *peer) hear(k *keys, self NodeID, session uint64) (token uint64, fresh bool) {
	for _, r := range []*receiving{p.current, p.candidate} {
		if r != nil && r.session == session {
			return r.token, false
		}
	}
	token = random()
	p.candidate = &receiving{
		session: session, token: token, aead: k.data(p.id, self, session, token), window: esp.NewWindow(windowSize),
	}
	return token, true
}

// of finds the session of a datagram.
func (p *peer) of(session uint64) *receiving {
	for _, r := range [2]*receiving{p.current, p.candidate} {
		if r != nil && r.session == session {
			return r
		}
	}
	return nil
}

// counters of one peer; each side's goroutines write their own.
type counters struct {
	sent, sentBytes, received, receivedBytes, datagramsOut, datagramsIn    atomic.Uint64
	sentIKE, receivedIKE                                                   atomic.Uint64
	noSession, queueFull, tooLong, tooFar, sendFailed                      atomic.Uint64
	forged, replayed, unknownSession, malformed, incomplete, staleGreeting atomic.Uint64
}

// MemberStats count what went to and came from one member. Packets and bytes are
// those of the packets carried; datagrams those of the link.
type MemberStats struct {
	Up                            bool // packets can be sent
	Sent, SentBytes               uint64
	Received, ReceivedBytes       uint64
	SentIKE, ReceivedIKE          uint64 // of these the IKE messages
	DatagramsSent, DatagramsHeard uint64

	// Packets that were not sent: the member has not answered yet; more came than the
	// link could send; longer than 65,535 bytes with what goes with them, or without
	// outer addresses; another member's stray; no route, and datagrams that the socket
	// refused.
	NoSession, QueueFull, TooLong, TooFar, SendFailed uint64
	// Datagrams that were not delivered: not sealed by this member, sealed and seen
	// before, of a session that is not in use, sealed and nonsense, answers to nothing
	// that was asked; and messages of which parts were lost.
	Forged, Replayed, UnknownSession, Malformed, StaleGreeting, Incomplete uint64
}

func (p *peer) snapshot() MemberStats {
	c := &p.stats
	return MemberStats{
		Up: p.tx.Load() != nil, Sent: c.sent.Load(), SentBytes: c.sentBytes.Load(),
		Received: c.received.Load(), ReceivedBytes: c.receivedBytes.Load(),
		SentIKE: c.sentIKE.Load(), ReceivedIKE: c.receivedIKE.Load(),
		DatagramsSent: c.datagramsOut.Load(), DatagramsHeard: c.datagramsIn.Load(),
		NoSession: c.noSession.Load(), QueueFull: c.queueFull.Load(), TooLong: c.tooLong.Load(),
		TooFar: c.tooFar.Load(), SendFailed: c.sendFailed.Load(),
		Forged: c.forged.Load(), Replayed: c.replayed.Load(), UnknownSession: c.unknownSession.Load(),
		Malformed: c.malformed.Load(), StaleGreeting: c.staleGreeting.Load(), Incomplete: c.incomplete.Load(),
	}
}

// Stats of a link. Strangers are datagrams from addresses of no member, Malformed
// those of members that are none of ours, NoMember packets for a member that is not
// configured.
type Stats struct {
	Members                        map[NodeID]MemberStats
	Strangers, Malformed, NoMember uint64
}
