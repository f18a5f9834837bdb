package integration

import (
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// breakCase is one exchange, and where in it the active daemon dies.
type breakCase struct {
	name  string
	at    string // the effect, as TANDEM_BREAK has it, without :before or :after
	short string // before or after: the side that -short tries; all others try both
	// begin makes the exchange happen. For the gateway as its responder, charon
	// begins; it may block until the exchange is over.
	begin func(p *pair, c *charon, active *gateway) error
	fresh bool   // there is no tunnel before
	more  bool   // a second Child SA stands afterwards
	conn  string // further lines of charon's connection
	conf  string // further lines of phase 1
	certs bool   // certificates in the place of the pre-shared key
}

const (
	sendAuthRequest, sendAuthResponse   = "ike.Send(IKE_AUTH,request):1", "ike.Send(IKE_AUTH,response):1"
	sendChildRequest, sendChildResponse = "ike.Send(CREATE_CHILD_SA,request):1", "ike.Send(CREATE_CHILD_SA,response):1"
	sendInfoRequest, sendInfoResponse   = "ike.Send(INFORMATIONAL,request):1", "ike.Send(INFORMATIONAL,response):1"
)

// A response dies with its sender before it is sent; a request that was sent
// leaves a response that nobody takes.
var breakCases = []breakCase{
	{name: "IKE_AUTH/responder", at: sendAuthResponse, short: "before", fresh: true, begin: initiate("net")},
	{name: "IKE_AUTH/initiator", at: sendAuthRequest, short: "after", fresh: true, begin: tunnelUp("vpn1")},
	{name: "IKE_AUTH by certificate/responder", at: sendAuthResponse, short: "before", fresh: true, certs: true, begin: initiate("net")},
	{name: "IKE_AUTH by certificate/initiator", at: sendAuthRequest, short: "after", fresh: true, certs: true, begin: tunnelUp("vpn1")},
	{name: "Child create/responder", at: sendChildResponse, short: "before", more: true, begin: initiate("more")},
	{name: "Child create/initiator", at: sendChildRequest, short: "after", more: true, begin: tunnelUp("more")},
	{name: "Child rekey/responder", at: sendChildResponse, short: "before", begin: rekey("net", "")},
	{name: "Child rekey/initiator", at: sendChildRequest, short: "after", begin: rekeyHere("child")},
	{name: "IKE rekey/responder", at: sendChildResponse, short: "before", begin: rekey("", "gw")},
	{name: "IKE rekey/initiator", at: sendChildRequest, short: "after", begin: rekeyHere("ike")},
	{name: "DPD/responder", at: sendInfoResponse, short: "before", begin: wait, conn: "dpd_delay = 1s"},
	{name: "DPD/initiator", at: sendInfoRequest, short: "after", begin: wait,
		conf: "set dpd on-idle\nset dpd-retryinterval 1\nset dpd-retrycount 10\n"},
	// The one who rekeyed deletes the old Child SA.
	{name: "DELETE/responder", at: sendInfoResponse, short: "before", begin: rekey("net", "")},
	{name: "DELETE/initiator", at: sendInfoRequest, short: "after", begin: rekeyHere("child")},
}

func initiate(child string) func(*pair, *charon, *gateway) error {
	return func(_ *pair, c *charon, _ *gateway) error { return c.Initiate(c.ctx, child, 20*time.Second) }
}

func rekey(child, ike string) func(*pair, *charon, *gateway) error {
	return func(_ *pair, c *charon, _ *gateway) error { return c.Rekey(c.ctx, child, ike) }
}

// The daemon may die before it has answered the command: the breakpoint tells
// whether it understood.
func rekeyHere(what string) func(*pair, *charon, *gateway) error {
	return func(_ *pair, _ *charon, g *gateway) error {
		_, _ = g.cli("diagnose vpn ike rekey " + what + " name vpn1")
		return nil
	}
}

func tunnelUp(phase2 string) func(*pair, *charon, *gateway) error {
	return func(_ *pair, _ *charon, g *gateway) error {
		_, _ = g.cli("diagnose vpn tunnel up " + phase2)
		return nil
	}
}

func wait(*pair, *charon, *gateway) error { return nil }

// TestPairKilledWithinExchange: a real SIGKILL in the middle of each exchange, as
// its initiator and as its responder. The survivor finishes the exchange that it did
// not begin, on the same SAs, and the traffic goes on.
func TestPairKilledWithinExchange(t *testing.T) {
	needCharon(t)
	for _, c := range breakCases {
		sides := []string{c.short}
		if !testing.Short() {
			sides = []string{"before", "after"}
		}
		for _, side := range sides {
			t.Run(c.name+"/"+side, func(t *testing.T) {
				t.Parallel()
				c.run(t, side)
			})
		}
	}
}

func (c *breakCase) run(t *testing.T, side string) {
	conf := pairConn()
	var certs *authority
	if c.certs {
		certs = newAuthority(t, "ecdsa256")
		conf = certs.client(conf, certs.issue("client.test"))
		certs.issue("gw.test")
	}
	p := newPair(t, breakpointProgram(t), func(conf string) string {
		if c.certs {
			conf = strings.Replace(certs.blocks("gw.test")+conf, "set auto-negotiate disable\n", "set auto-negotiate disable\nset authmethod signature\nset certificate gw\n", 1)
		}
		conf = strings.Replace(conf, "set auto-negotiate disable\n", "set auto-negotiate disable\n"+or(c.conf, "set dpd disable\n"), 1)
		return strings.Replace(conf, "config vpn ipsec phase2-interface\n", `config vpn ipsec phase2-interface
    edit "more"
        set phase1name "vpn1"
        set proposal aes128gcm
        set dhgrp 31
        set src-subnet 10.3.0.0 255.255.255.0
        set dst-subnet 10.1.0.0 255.255.255.0
    next
`, 1)
	})
	conf.conn = c.conn
	conf.child = `}
    more {
        local_ts = 10.1.0.0/24
        remote_ts = 10.3.0.0/24
        esp_proposals = aes128gcm16-x25519`
	ch := p.charon(lab.NodeClient, conf)
	if !c.fresh {
		ch.up()
		p.traffic()
	}
	active, standby := p.synchronised()
	if !c.fresh {
		p.wantSame()
	}
	inits := p.begun(exchInit)
	before := ch.Events()

	armed, err := active.proc.Daemon(false)
	if err != nil {
		t.Fatal(err)
	}
	active.must("diagnose debug break", c.at+":"+side)
	begun := make(chan error, 1)
	go func() { begun <- c.begin(p, ch, active) }()
	eventually(t, 20*time.Second, "the daemon dies at "+c.at+":"+side, func() bool {
		now, err := active.proc.Daemon(false)
		return err != nil || now != armed
	})
	p.takenOver(standby)
	if err := <-begun; err != nil {
		t.Errorf("charon's part of the exchange: %v", err)
	}
	log := active.proc.LogPath
	if !contains(log, "daemon ended", "signal: killed") || contains(log, "killing the daemon") {
		t.Error("the daemon did not end at the breakpoint")
	}
	p.wantAnswered()
	p.traffic()

	// What charon has afterwards.
	want := 1
	if c.more {
		want = 2
	}
	var sas []lab.CharonSA
	ok := holds(10*time.Second, func() bool {
		sas = ch.sas()
		n := 0
		for _, s := range sas {
			for _, x := range s.Children {
				if x.State == "INSTALLED" {
					n++
				}
			}
		}
		return len(sas) == 1 && sas[0].State == "ESTABLISHED" && n == want && len(sas[0].Children) == want
	})
	if !ok {
		t.Errorf("charon has not one IKE SA with %d Child SAs: %+v", want, sas)
	}
	after := ch.Events()
	child, ike := after.ChildRekeys-before.ChildRekeys, after.IKERekeys-before.IKERekeys
	wantChild, wantIKE := 0, 0
	switch {
	case strings.HasPrefix(c.name, "Child rekey"), strings.HasPrefix(c.name, "DELETE"):
		wantChild = 1
	case strings.HasPrefix(c.name, "IKE rekey"):
		wantIKE = 1
	}
	if child != wantChild || ike != wantIKE {
		t.Errorf("%d Child and %d IKE rekeys, want %d and %d", child, ike, wantChild, wantIKE)
	}
	if !c.fresh && (after.IKEUps != before.IKEUps || after.IKEDowns != before.IKEDowns) {
		t.Errorf("the tunnel was set up anew: before %+v, after %+v", before, after)
	}
	// The exchange of IKE_AUTH itself goes on, too: nothing begins anew.
	if c.fresh {
		inits++
	}
	if n := p.begun(exchInit); n != inits {
		t.Errorf("%d IKE_SA_INIT exchanges on the wire, want %d", n, inits)
	}
	p.synchronised()
	if c.certs {
		if st := standby.status("vpn1"); st.Certificate == nil || st.Certificate.Subject != "CN=client.test" {
			t.Errorf("the survivor does not know how the client proved itself: %+v", st)
		}
	}
	all := p.wantSame()
	for _, s := range sas {
		for _, x := range s.Children {
			if !strings.Contains(all, "ESP "+x.SPIOut+" "+x.SPIIn) {
				t.Errorf("charon's Child SA %s/%s is not the pair's:\n%s", x.SPIIn, x.SPIOut, all)
			}
		}
	}
}
