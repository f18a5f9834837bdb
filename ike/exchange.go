package ike

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// kind of an exchange that we begin. The numbers are in records: append only.
type kind uint8

const (
	kindInit        kind = 1
	kindAuth        kind = 2
	kindCreateChild kind = 3
	kindRekeyChild  kind = 4
	kindRekeyIKE    kind = 5
	kindDeleteChild kind = 6
	kindDeleteIKE   kind = 7
	kindDPD         kind = 8
	kindCounters    kind = 9  // see counters.go
	kindUpdate      kind = 10 // see roaming.go
	kindCheck       kind = 11 // see mobike.go

	kindIntermediate kind = 12 // see intermediate.go
)

func (k kind) String() string {
	switch k {
	case kindInit:
		return "SA_INIT"
	case kindAuth:
		return "AUTH"
	case kindCreateChild, kindRekeyChild, kindRekeyIKE:
		return "CREATE_CHILD"
	case kindIntermediate:
		return "INTERMEDIATE"
	}
	return "INFORMATIONAL"
}

func (k kind) exchangeType() message.ExchangeType {
	switch k {
	case kindInit:
		return message.IKESAInit
	case kindAuth:
		return message.IKEAuth
	case kindCreateChild, kindRekeyChild, kindRekeyIKE:
		return message.CreateChildSA
	case kindIntermediate:
		return message.Intermediate
	}
	return message.Informational
}

// exchangeType is that of the request which is out.
func (x *exchange) exchangeType() message.ExchangeType {
	if x.followUp > 0 {
		return message.FollowupKE
	}
	return x.kind.exchangeType()
}

func (x *exchange) String() string {
	if x.followUp > 0 {
		return "FOLLOWUP_KE"
	}
	return x.kind.String()
}

// exchange is a request of ours that waits for its response, with the secrets
// made for it. All but the fields marked so is in the record of its IKE SA.
type exchange struct {
	kind     kind
	id       uint32
	data     []byte // as sent
	attempts int
	first    time.Time // of the first transmission

	nonce   []byte
	ke      keymat.KeyExchange
	keyID   ipsec.KeyID
	offered []ipsec.Suite
	groups  []ipsec.TransformID
	add     addKEs
	phase2  string
	spiIn   ipsec.ESPSPI // chosen for the new Child SA
	rekeyed ipsec.ESPSPI // inbound SPI of the Child SA that is rekeyed
	newSPI  ipsec.IKESPI
	tsL     []ipsec.TrafficSelector
	tsR     []ipsec.TrafficSelector
	deletes []ipsec.ESPSPI
	floors  []floor
	retries int // after INVALID_KE_PAYLOAD
	cookies int
	cookie  []byte

	// The peer rekeys the same SA at the same time (RFC 7296 §2.8.1, §2.8.2).
	collided       bool
	collidedNonce  []byte // the lower nonce of the peer's exchange
	collidedChild  ipsec.ESPSPI
	collidedIKE    ipsec.IKESPIs
	deletedOutward []ipsec.ESPSPI
	contested      bool // the other side of a split sent another request with this ID

	// followUp counts the IKE_FOLLOWUP_KE exchanges, this one included; 0: it is none.
	followUp int
	half     *halfMade // what they are for

	// What follows is this process's own.
	ticket Ticket
	sent   bool // its record is committed, so it is on its way
	next   time.Time
	wait   time.Duration
}

func (x *exchange) wipe() {
	if x.ke != nil {
		x.ke.Private().Wipe()
	}
}

// started begins the schedule of retransmissions.
func (x *exchange) started(now time.Time) {
	x.sent = true
	x.attempts++
	x.first = now
	x.next = now.Add(x.wait)
}

// start sends a request: it becomes the outstanding one and leaves when its
// record is committed.
func (e *Engine) start(sa *ikeSA, x *exchange, ps []message.Payload) bool {
	data, err := e.seal(sa, x.exchangeType(), false, sa.nextSend, ps)
	if err != nil {
		e.warn(sa, "cannot protect IKE message", slog.String("error", err.Error()))
		sa.stalled = e.now.Add(stallWait)
		return false
	}
	e.launch(sa, x, data)
	return true
}

// stallWait is how long an IKE SA rests when it cannot begin an exchange.
const stallWait = time.Second

// launch is start for bytes that are final.
func (e *Engine) launch(sa *ikeSA, x *exchange, data []byte) {
	e.touch(sa)
	x.id, x.data = sa.nextSend, data
	x.first = e.now
	x.wait = e.firstWait(sa, x)
	if x.keyID != 0 {
		e.refKey(x.keyID)
	}
	sa.nextSend++
	sa.req, sa.lastRequest = x, data
	e.asking[sa.ownSPI()] = struct{}{}
	e.logSent(sa, x.String(), x.id, len(data))
	e.holdMessage(sa, sa.datagram(data))
	e.expectCommit(sa)
}

// finish takes the outstanding exchange off the IKE SA.
func (e *Engine) finish(sa *ikeSA) *exchange {
	x := sa.req
	e.touch(sa)
	sa.req = nil
	e.dropParts(sa.slot(true))
	return x
}

// drop forgets the secrets of an exchange that came to nothing or has served.
func (e *Engine) drop(x *exchange) {
	x.wipe()
	e.unrefKey(x.keyID)
	x.keyID = 0
}

// expectCommit stops the timer of retransmissions until the record is committed.
func (e *Engine) expectCommit(sa *ikeSA) {
	if sa.req != nil {
		sa.req.ticket, sa.req.sent = 0, false
	}
}

func (e *Engine) logSent(sa *ikeSA, what string, id uint32, n int) {
	e.debug(sa, "sent IKE msg ("+what+")", slog.Uint64("message_id", uint64(id)), slog.Int("len", n))
}

// childSA is one Child SA. All but the fields marked so is in the record of its IKE SA.
type childSA struct {
	ipsec.ChildSA
	state       childState
	outbound    bool
	initiator   bool         // of the exchange that made it
	replaces    ipsec.ESPSPI // inbound SPI of its predecessor
	lowestNonce []byte
	installed   time.Time
	soft, hard  time.Duration // since installed; 0: none
	softBytes   uint64
	hardBytes   uint64
	seq         uint32
	outSeq      uint64 // these when it was last moved to another engine
	inSeq       uint64
	inAccepted  []uint64
	rekeyNow    bool // regardless of the soft lifetime
	doubtful    bool // a process whose memory is lost may have rekeyed it with the peer

	// What follows is this process's own.
	ike     *ikeSA
	p2      *config.Phase2 // nil when not configured any more
	rekeyAt time.Time      // earliest next look at whether to rekey
	floorAt time.Time      // when inSeq holds; zero: it does
	useAt   time.Time      // see beside
	expired bool           // hard limit of traffic reached
	brought bool           // another process has used it, and its numbers come when it is installed
	window  *ipsec.Window
}

// childState says who ends a Child SA. The numbers are in records: append only.
type childState uint8

const (
	childInstalled childState = 1
	childReplaced  childState = 2 // rekeyed by the peer, which will delete it
	childOwed      childState = 3 // we delete it: rekeyed by us, or redundant
)

func (s childState) String() string {
	switch s {
	case childInstalled:
		return "installed"
	case childReplaced:
		return "rekeyed"
	}
	return "deleting"
}

func (c *childSA) attrs(more ...slog.Attr) []slog.Attr {
	return append([]slog.Attr{
		slog.String("phase2", c.Phase2),
		slog.String("spi_in", c.SPIIn.String()),
		slog.String("spi_out", c.SPIOut.String()),
	}, more...)
}

// answerKE is the responder's side of a key exchange; the group has been agreed on.
func answerKE(rand io.Reader, ke *message.KE) (public []byte, shared ipsec.Key, err error) {
	public, shared, err = keymat.Answer(ke.Group, rand, ke.Data)
	switch {
	case errors.Is(err, keymat.ErrKEData):
		return nil, shared, refuse(message.InvalidSyntax, "DH group %d: %w", ke.Group, err)
	case err != nil:
		return nil, shared, refuse(message.NoProposalChosen, "DH group %d: %w", ke.Group, err)
	}
	return public, shared, nil
}
