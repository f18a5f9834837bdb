package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"tandem/internal/lab"
)

// TestPairKilledAmidEAP: the active daemon dies by SIGKILL while a RADIUS server has been asked about a
// client and has not answered. The survivor asks it on with the State of the record: charon's tunnel
// comes to stand by the IKE SA that it began with the other node.
func TestPairKilledAmidEAP(t *testing.T) {
	needCharon(t)
	t.Parallel()
	a := newEAPAuthority(t)
	blocks := eapGateway(a, "aaa").more
	p := newPair(t, program(t), func(conf string) string {
		at := strings.Index(conf, "config vpn ipsec phase1-interface")
		return conf[:at] + "config system tandem\n    set log-level debug\nend\n" + blocks + strings.NewReplacer("set remote-gw 192.0.2.10\n", "set type dynamic\n",
			"set psksecret \""+pairSecret+"\"\n", "set authmethod signature\n set certificate gw\n set localid gw.test\n set eap enable\n set authusrgrp staff\n",
			"        set auto-negotiate disable\n", "", "        set keepalive enable\n", "").Replace(conf[at:])
	})
	p.freeRADIUS(lab.NodeClient, a)
	p.nft(lab.NodeClient, `table inet amid {
	chain in {
		type filter hook input priority 0
		udp dport 1812 numgen inc mod 1000 > 0 drop
	}
}
`)
	active, standby := p.synchronised()
	cn := eapClient(a, "carol", "auth = eap-mschapv2")
	cn.localTS, cn.conn = "", ""
	ch := p.charon(lab.NodeClient, cn, "retransmit_timeout = 1", "retransmit_base = 1.2")
	done := make(chan error, 1)
	go func() { done <- ch.Initiate(ch.ctx, "net", 30*time.Second) }()
	eventually(t, 10*time.Second, "the second question is out", func() bool {
		text, err := os.ReadFile(active.proc.LogPath)
		return err == nil && strings.Count(string(text), "the RADIUS server aaa has to be asked") >= 2
	})
	p.kill(active)
	p.takenOver(standby)
	p.nft(lab.NodeClient, "delete table inet amid\n")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.traffic()
	if n := p.begun(exchInit); n != 1 {
		t.Errorf("%d IKE_SA_INIT", n)
	}
}
