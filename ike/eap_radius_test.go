package ike

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tandem/ike/eap"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// testRADIUS is a RADIUS server that knows one user by MSCHAPv2. A State counts once, as with real ones.
type testRADIUS struct {
	open     map[string]eap.MSAnswer // conversations, by State; an answer where it was right
	asked    int
	forgets  bool // the host that answers is another one each time, and knows nothing of the other
	keyless  bool
	silent   bool
	password string
}

var testChallenge = []byte("a challenge of16")

func (r *testRADIUS) answer(q AskRADIUS) RADIUSAnswer {
	if r.asked++; r.silent {
		return RADIUSAnswer{}
	}
	reject := RADIUSAnswer{Code: RADIUSReject, EAP: eap.Packet{Code: eap.Failure, ID: 1}.Encode()}
	in, err := eap.Parse(q.EAP)
	if err != nil || in.Code != eap.Response {
		return reject
	}
	known, ok := r.open[string(q.State)]
	delete(r.open, string(q.State))
	state := fmt.Sprintf("state %d", r.asked)
	challenge := func(data []byte) RADIUSAnswer {
		return RADIUSAnswer{Code: RADIUSChallenge, State: []byte(state), Which: 1,
			EAP: eap.Packet{Code: eap.Request, ID: in.ID + 1, Type: eap.MSCHAPv2, Data: data}.Encode()}
	}
	switch {
	case len(q.State) == 0 && in.Type == eap.Identity && q.User == string(in.Data):
		r.open[state] = eap.MSAnswer{}
		return challenge(eap.EncodeMSChallenge(7, testChallenge, "aaa"))
	case !ok || in.Type != eap.MSCHAPv2 || q.Which != 1:
		return reject
	case known.NT == nil:
		a, err := eap.ParseMSAnswer(in.Data)
		if err != nil || a.Name != "carol" || !a.Right(testChallenge, []byte(r.password)) {
			return reject
		}
		proof, _ := a.Authenticator(testChallenge, []byte(r.password))
		r.open[state] = a
		return challenge(eap.EncodeMSSuccess(7, proof))
	}
	key, _ := known.Key([]byte(r.password))
	x := RADIUSAnswer{Code: RADIUSAccept, EAP: eap.Packet{Code: eap.Success, ID: in.ID}.Encode(), Key: ipsec.NewKey(key), User: "carol@aaa", Which: 1}
	if r.keyless {
		x.Key = ipsec.Key{}
	}
	return x
}

func byRADIUS(clientIsA bool) func(a, b *config.Config) {
	return eapPair(nil, func(g *config.Config) {
		g.RADIUS = []config.RADIUSServer{{Name: "aaa", Servers: [2]string{"192.0.2.9"}}}
		g.UserGroups[0].Members = []string{"aaa"}
	}, clientIsA)
}

func TestEAPByRADIUS(t *testing.T) {
	for name, tc := range map[string]struct {
		server testRADIUS
		reason string
	}{
		"accepts":      {testRADIUS{password: "Wonderland"}, ""},
		"rejects":      {testRADIUS{password: "another"}, "rejects the user"},
		"silent":       {testRADIUS{silent: true}, "does not answer"},
		"gives no key": {testRADIUS{password: "Wonderland", keyless: true}, "gives no key"},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, byRADIUS(true))
			server := tc.server
			server.open = map[string]eap.MSAnswer{}
			b.radius = server.answer
			reasons := ""
			b.onLog = func(l Log) { reasons += fmt.Sprint(l.Attrs) }
			b.resume()
			a.resume()
			w.settle()
			if tc.reason == "" {
				agree(t, a, b, 1, 1)
				if sa := b.established()[0]; sa.peerID != (identity{idUser, "carol@aaa"}) || server.asked != 3 {
					t.Errorf("it is %+v after %d questions", sa.peerID, server.asked)
				}
				return
			}
			if len(a.ike())+len(b.ike()) != 0 || !strings.Contains(reasons, tc.reason) {
				t.Errorf("%v, %v: %s", describe(a.ike()), describe(b.ike()), reasons)
			}
		})
	}
}

// A question that is out changes nothing: the message is as if it had not come, and comes again.
func TestEAPByRADIUSWaits(t *testing.T) {
	w, a, b := pair(t, byRADIUS(true))
	b.resume()
	a.resume()
	w.settle()
	records := len(b.records)
	w.run(10 * time.Second)
	if len(b.questions) < 2 || len(b.records) != records {
		t.Fatalf("%d questions, %d records more", len(b.questions), len(b.records)-records)
	}
	if b.questions[0].Key != b.questions[1].Key {
		t.Error("the same message asks something else")
	}
	server := testRADIUS{password: "Wonderland", open: map[string]eap.MSAnswer{}}
	b.radius = server.answer
	b.questions = b.questions[:1]
	b.drain()
	w.settle()
	agree(t, a, b, 1, 1)
}

// TestEAPByRADIUSOwnerDies kills the gateway after every effect. Its successor asks the same server on, with
// the State of the record; only where the server has already dealt with a question whose answer died with
// the owner, it rejects the second, and the client begins anew.
func TestEAPByRADIUSOwnerDies(t *testing.T) {
	anew, continued := 0, 0
	for k := 1; ; k++ {
		w, a, b := pair(t, func(x, y *config.Config) {
			byRADIUS(false)(x, y)
			x.Phase1[0].DPD, y.Phase1[0].DPD = "disable", "disable"
			y.Phase1[0].AutoNegotiate = true
		})
		server := testRADIUS{password: "Wonderland", open: map[string]eap.MSAnswer{}}
		heir := w.standby(a, 77)
		a.radius, heir.radius = server.answer, server.answer
		a.cutAt = k
		a.resume()
		b.resume()
		w.settle()
		if !a.dead {
			agree(t, a, b, 1, 1)
			break
		}
		began := w.now
		heir.resume()
		w.run(45 * time.Second)
		agree(t, heir, b, 1, 1)
		if took := heir.established()[0].established.Sub(began); took > 15*time.Second {
			t.Errorf("took %s", took)
		}
		if distinctInits(w) > 1 {
			anew++
		} else {
			continued++
		}
		if t.Failed() {
			t.Fatalf("effect %d", k)
		}
	}
	if continued < anew || anew > 3 {
		t.Errorf("%d continued, %d began anew", continued, anew)
	}
	t.Logf("%d continued, %d began anew", continued, anew)
}
