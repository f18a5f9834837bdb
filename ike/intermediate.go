package ike

import (
	"fmt"
	"log/slog"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// IKE_INTERMEDIATE (RFC 9242): between IKE_SA_INIT and IKE_AUTH, one exchange for each
// additional key exchange of the IKE SA (RFC 9370 §2.2.2), each under the keys that the one
// before it has made. IKE_AUTH authenticates all of them.

// maxIntermediate bounds the exchanges of one IKE SA that nobody has authenticated.
const maxIntermediate = 16

// intermediate is what they have come to. All of it is in the record of its IKE SA.
type intermediate struct {
	exchanges    int    // that are done
	methods      int    // additional key exchanges that are done, of those of the suite
	authI, authR []byte // IntAuth_i and IntAuth_r
	// former are the keys before the latest exchange, for its request should it be repeated;
	// those of messages only, and empty when that exchange changed none.
	former keymat.IKEKeys
}

// beginIntermediate follows IKE_SA_INIT.
func (sa *ikeSA) beginIntermediate() {
	if sa.caps&capIntermediate != 0 {
		sa.inter = &intermediate{}
	}
}

// authenticateIntermediate takes one message of IKE_INTERMEDIATE into what AUTH covers.
func (sa *ikeSA) authenticateIntermediate(initiators bool, m *message.Message) {
	if sa.inter == nil {
		return
	}
	key, so := sa.keys.Pr, &sa.inter.authR
	if initiators {
		key, so = sa.keys.Pi, &sa.inter.authI
	}
	*so = keymat.IntAuthNext(sa.suite.PRF, key.Bytes(), *so, m.IntAuthOctets())
}

// intAuth is what AUTH covers of IKE_INTERMEDIATE; nil when there was none.
func (sa *ikeSA) intAuth() []byte {
	if sa.inter == nil || sa.inter.exchanges == 0 {
		return nil
	}
	return keymat.IntAuth(sa.inter.authI, sa.inter.authR, uint32(1+sa.inter.exchanges))
}

// methodsLeft are the additional key exchanges that IKE_AUTH has to wait for.
func (sa *ikeSA) methodsLeft() []ipsec.TransformID {
	all := sa.suite.AddKE.Methods()
	if sa.inter == nil {
		return all
	}
	return all[min(sa.inter.methods, len(all)):]
}

// takeKeys goes on with other keys for messages and AUTH.
func (sa *ikeSA) takeKeys(next keymat.IKEKeys) {
	sa.keys.Wipe()
	sa.keys = next
	sa.sealer, sa.opener = nil, nil
}

// nextKeys derives the keys of an IKE SA anew from the secret of an additional key exchange.
func (sa *ikeSA) nextKeys(shared ipsec.Key) (keymat.IKEKeys, error) {
	defer shared.Wipe()
	return keymat.DeriveIKENext(sa.suite, sa.keys.D, sa.nonceI, sa.nonceR, shared, sa.spis)
}

// afterInit goes on with the additional key exchange that comes next, else with IKE_AUTH.
func (e *Engine) afterInit(sa *ikeSA, phase2 string) {
	sa.state = stateAuthSent
	left := sa.methodsLeft()
	if len(left) == 0 {
		m, err := message.Parse(sa.initResponse)
		if err != nil {
			e.intermediateFailed(sa, err.Error())
			return
		}
		e.authStart(sa, m, phase2)
		return
	}
	e.debug(sa, "initiator preparing INTERMEDIATE msg", slog.Int("group", int(left[0])))
	kx, err := keymat.NewKeyExchange(left[0], e.o.Rand)
	if err != nil {
		e.intermediateFailed(sa, err.Error())
		return
	}
	x := &exchange{kind: kindIntermediate, phase2: phase2, ke: kx}
	if !e.start(sa, x, []message.Payload{&message.KE{Group: left[0], Data: kx.Public()}}) {
		e.remove(sa, false, "cannot begin IKE_INTERMEDIATE")
	}
}

func (e *Engine) intermediateFailed(sa *ikeSA, reason string) {
	e.warn(sa, "negotiation failure", slog.String("reason", reason))
	e.fail(sa, reason)
	e.remove(sa, false, reason)
}

// intermediateResponse takes the responder's part of an additional key exchange.
func (e *Engine) intermediateResponse(sa *ikeSA, ev *event) {
	e.debug(sa, "initiator received INTERMEDIATE msg")
	x := e.finish(sa)
	defer e.drop(x)
	if sa.p1 == nil {
		e.remove(sa, false, "phase 1 is not configured any more")
		return
	}
	for _, n := range ev.m.Notifies() {
		if n.NotifyType.IsError() {
			e.intermediateFailed(sa, n.NotifyType.String()+" in INTERMEDIATE response")
			return
		}
	}
	sa.authenticateIntermediate(false, ev.m)
	ke, ok := message.Get[*message.KE](ev.m)
	if !ok || ke.Group != x.ke.Group() {
		e.intermediateFailed(sa, "INTERMEDIATE response without KE of the method that was agreed on")
		return
	}
	shared, err := x.ke.Shared(ke.Data)
	if err != nil {
		e.intermediateFailed(sa, err.Error())
		return
	}
	next, err := sa.nextKeys(shared)
	if err != nil {
		e.intermediateFailed(sa, err.Error())
		return
	}
	sa.inter.exchanges++
	sa.inter.methods++
	sa.takeKeys(next)
	e.keyLog(sa)
	e.afterInit(sa, x.phase2)
}

// intermediateRequest answers an additional key exchange. An exchange without one, of
// whatever use it is to the peer, changes no keys.
func (e *Engine) intermediateRequest(sa *ikeSA, ev *event) ([]message.Payload, error) {
	e.debug(sa, "responder received INTERMEDIATE msg")
	if sa.inter.exchanges >= maxIntermediate {
		return nil, refuse(message.InvalidSyntax, "more than %d IKE_INTERMEDIATE exchanges", maxIntermediate)
	}
	sa.authenticateIntermediate(true, ev.m)
	sa.inter.former.Wipe()
	sa.inter.former = keymat.IKEKeys{}
	ke, ok := message.Get[*message.KE](ev.m)
	if !ok {
		sa.inter.exchanges++
		return nil, nil
	}
	left := sa.methodsLeft()
	if len(left) == 0 || ke.Group != left[0] {
		return nil, refuse(message.InvalidSyntax, "IKE_INTERMEDIATE with group %d, which is not the next of %v", ke.Group, left)
	}
	public, shared, err := answerKE(e.o.Rand, ke)
	if err != nil {
		return nil, err
	}
	next, err := sa.nextKeys(shared)
	if err != nil {
		return nil, refuse(message.NoProposalChosen, "%w", err)
	}
	sa.inter.exchanges++
	sa.inter.methods++
	// The response is still under the keys of the request.
	ev.after = append(ev.after, func() {
		k := sa.keys
		sa.inter.former = keymat.IKEKeys{Ai: clonedKey(k.Ai), Ar: clonedKey(k.Ar), Ei: clonedKey(k.Ei), Er: clonedKey(k.Er)}
		sa.takeKeys(next)
		e.keyLog(sa)
	})
	return []message.Payload{&message.KE{Group: ke.Group, Data: public}}, nil
}

func clonedKey(k ipsec.Key) ipsec.Key { return ipsec.NewKey(k.Bytes()) }

// underFormer does something with the keys of the latest IKE_INTERMEDIATE exchange, which
// has replaced them.
func (sa *ikeSA) underFormer(do func()) {
	if sa.inter == nil || sa.inter.former.Ei.Len() == 0 {
		do()
		return
	}
	keys, s, o := sa.keys, sa.sealer, sa.opener
	sa.keys, sa.sealer, sa.opener = sa.inter.former, nil, nil
	do()
	sa.keys, sa.sealer, sa.opener = keys, s, o
}

func (x *intermediate) wipe() {
	if x != nil {
		x.former.Wipe()
	}
}

func (x *intermediate) encode() *syncpb.Intermediate {
	if x == nil {
		return nil
	}
	p := &syncpb.Intermediate{Exchanges: uint32(x.exchanges), Methods: uint32(x.methods), AuthI: x.authI, AuthR: x.authR}
	if x.former.Ei.Len() > 0 {
		p.Former = encodeKeys(x.former)
	}
	return p
}

func decodeIntermediate(p *syncpb.Intermediate) (*intermediate, error) {
	if p == nil {
		return nil, nil
	}
	if p.Exchanges > maxIntermediate || p.Methods > p.Exchanges || len(p.AuthI) > maxPRFLen || len(p.AuthR) > maxPRFLen {
		return nil, fmt.Errorf("%d IKE_INTERMEDIATE exchanges, %d methods", p.Exchanges, p.Methods)
	}
	return &intermediate{exchanges: int(p.Exchanges), methods: int(p.Methods), authI: p.AuthI, authR: p.AuthR, former: decodeKeys(p.Former)}, nil
}

// maxPRFLen is the length in bytes of the longest output of a PRF.
const maxPRFLen = 64
