package main

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"tandem/internal/bench"
	"tandem/internal/lab"
)

// wgSockets is where wireguard-go has its UAPI sockets, one for each interface's name.
const wgSockets = "/var/run/wireguard"

// wgPrefix, the lab's name and the side are an interface's name, which no other has on
// this machine.
const wgPrefix = "tb"

// startWireGuard runs wireguard-go on both nodes and configures it over its UAPI socket.
func startWireGuard(ctx context.Context, t *lab.Topology, bin string) (*program, error) {
	p := &program{Program: bench.Program{Name: wireguardName}, a: "wga", b: "wgb", number: 1}
	version := "an unknown version"
	if info, err := buildinfo.ReadFile(bin); err == nil {
		version = info.Main.Version
	}
	p.About = "wireguard-go " + version + ", ChaCha20-Poly1305"
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	ends := []struct{ node, wan, inner, net string }{{p.a, wanB, p.innerA(), "10.1.0.0/16"}, {p.b, wanA, p.innerB(), "10.2.0.0/16"}}
	for i, e := range ends {
		dev := wgPrefix + t.ID + e.node[len(e.node)-1:]
		pr, err := t.Start(e.node, "wireguard-"+e.node, []string{bin, "--foreground", dev}, nil)
		if err != nil {
			return nil, err
		}
		p.procs = append(p.procs, pr)
		other := keys[1-i].PublicKey().Bytes()
		set := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=51820\nreplace_peers=true\npublic_key=%s\nendpoint=%s:51820\nreplace_allowed_ips=true\nallowed_ip=%s\n\n",
			hex.EncodeToString(keys[i].Bytes()), hex.EncodeToString(other), e.wan, e.net)
		err = poll(ctx, 10*time.Second, func() error { return wgSet(filepath.Join(wgSockets, dev+".sock"), set) })
		if err != nil {
			return nil, fmt.Errorf("wireguard-go on %s: %w", e.node, err)
		}
		if err := setMTU(ctx, t, e.node, dev); err != nil {
			return nil, err
		}
		if _, err := command(ctx, t, e.node, "ip", "route", "add", e.net, "dev", dev, "src", e.inner); err != nil {
			return nil, err
		}
	}
	return p, reachable(ctx, t, p)
}

// wgSet gives wireguard-go a configuration; the answer ends with errno=0.
func wgSet(socket, set string) error {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte(set)); err != nil {
		return err
	}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if code, ok := strings.CutPrefix(lines.Text(), "errno="); ok {
			if code != "0" {
				return fmt.Errorf("it refuses its configuration: errno %s", code)
			}
			return nil
		}
	}
	return fmt.Errorf("no answer at %s", socket)
}
