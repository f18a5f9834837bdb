package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"tandem/internal/bench"
	"tandem/internal/lab"
)

// openssl's AES-GCM is the fastest that charon has here.
const charonPlugins = "load = openssl nonce random pem pkcs1 pkcs8 hmac kdf curve25519 kernel-libipsec kernel-netlink socket-default vici updown"

// startCharon runs strongSwan on both nodes, with ESP in user space (kernel-libipsec).
func startCharon(ctx context.Context, t *lab.Topology) (*program, error) {
	p := &program{Program: bench.Program{Name: charonName}, a: "cha", b: "chb", number: 1}
	version := ""
	if out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", "charon-systemd").Output(); err == nil {
		version = " " + string(out)
	}
	p.About = "strongSwan" + version + ", kernel-libipsec with openssl, AES-128-GCM; inner MTU 1400, for it cuts off what is longer"
	var ends []*lab.Charon
	for _, e := range []struct{ node, local, remote, localNet, remoteNet string }{
		{p.a, wanA, wanB, "10.2.1.0/24", "10.1.1.0/24"}, {p.b, wanB, wanA, "10.1.1.0/24", "10.2.1.0/24"},
	} {
		conf, err := files.ReadFile("conf/charon.swanctl")
		if err != nil {
			return nil, err
		}
		text := strings.NewReplacer("@LOCAL@", e.local, "@REMOTE@", e.remote, "@LOCALNET@", e.localNet, "@REMOTENET@", e.remoteNet).Replace(string(conf))
		c, err := t.StartCharon(ctx, lab.CharonConfig{Node: e.node, Swanctl: text, Settings: charonPlugins})
		if err != nil {
			return nil, err
		}
		ends = append(ends, c)
		p.procs = append(p.procs, c.Process())
	}
	if err := ends[1].Initiate(ctx, "net", 10*time.Second); err != nil {
		return nil, fmt.Errorf("strongSwan: %w", err)
	}
	return p, reachable(ctx, t, p)
}
