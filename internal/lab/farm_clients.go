package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// farmClients are the running clients of a farm.
type farmClients struct {
	charons []*Charon
	tandems []*Process
}

// clientText fills in a template of the example for one tunnel.
func (t *Topology) clientText(template string, x *Tunnel) string {
	return t.fill(template, "@NODE@", x.Node, "@NAME@", x.Name, "@INDEX@", strconv.Itoa(x.Index+1), "@OUTER@", x.Outer.String(),
		"@NET@", x.Net.Addr().String(), "@HOST@", x.Host.String(), "@SERVER@", x.Server.String())
}

// startClients starts every client process of a farm and lets them dial: charons
// tunnel by tunnel, Tandems by themselves. It does not wait for the Tandems'
// tunnels.
func (t *Topology) startClients(ctx context.Context, bin, example string, tunnels []Tunnel, keyLog bool) (*farmClients, error) {
	files := map[string]string{}
	for _, f := range []string{"client.conf", "tunnel.conf", "client.swanctl"} {
		text, err := os.ReadFile(filepath.Join(example, f))
		if err != nil {
			return nil, err
		}
		files[f] = string(text)
	}
	all := &farmClients{}
	for len(tunnels) > 0 {
		n := 1
		for n < len(tunnels) && tunnels[n].Node == tunnels[0].Node {
			n++
		}
		mine := tunnels[:n]
		tunnels = tunnels[n:]
		if err := t.startClient(ctx, bin, files, mine, keyLog, all); err != nil {
			return nil, fmt.Errorf("client %s: %w", mine[0].Node, err)
		}
	}
	return all, all.dial(ctx)
}

func (t *Topology) startClient(ctx context.Context, bin string, files map[string]string, mine []Tunnel, keyLog bool, all *farmClients) error {
	node := mine[0].Node
	var text strings.Builder
	if mine[0].Charon {
		for i := range mine {
			text.WriteString(t.clientText(files["client.swanctl"], &mine[i]))
		}
		c, err := t.StartCharon(ctx, CharonConfig{Node: node, Swanctl: text.String(), KeyLog: keyLog})
		if err != nil {
			return err
		}
		for i := range mine {
			c.names = append(c.names, mine[i].Name)
		}
		all.charons = append(all.charons, c)
		return nil
	}
	text.WriteString(t.clientText(files["client.conf"], &mine[0]))
	for i := range mine {
		text.WriteString(t.clientText(files["tunnel.conf"], &mine[i]))
	}
	conf := filepath.Join(t.Dir, node+".conf")
	if err := errors.Join(os.MkdirAll(filepath.Join(t.Dir, node), 0o700), os.WriteFile(conf, []byte(text.String()), 0o600)); err != nil {
		return err
	}
	p, err := t.Start(node, node, []string{bin, "run", "--config", conf}, nil)
	if err == nil {
		all.tandems = append(all.tandems, p)
	}
	return err
}

// dial brings up the charons' tunnels, each charon one after another.
func (f *farmClients) dial(ctx context.Context) error {
	errs := make([]error, len(f.charons))
	var wg sync.WaitGroup
	for i, c := range f.charons {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for _, n := range c.names {
				if err := c.Initiate(ctx, n, 15*time.Second); err != nil {
					errs[i] = fmt.Errorf("tunnel %s of charon: %w", n, err)
					return
				}
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// running says which client process has ended by itself.
func (f *farmClients) running() error {
	for _, c := range f.charons {
		if !c.Running() {
			return fmt.Errorf("a charon has ended by itself: %s", tail(c.LogPath()))
		}
	}
	for _, p := range f.tandems {
		if !p.Running() {
			return fmt.Errorf("client %s has ended by itself: %s", p.Node, tail(p.LogPath))
		}
	}
	return nil
}
