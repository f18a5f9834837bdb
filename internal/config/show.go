package config

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Show prints the configuration in its own language: what differs from the
// defaults, or with full everything, as `show full-configuration` does. path
// selects one block ("vpn ipsec phase1-interface"), one family of blocks ("vpn
// ipsec"), one entry ("vpn ipsec phase1-interface vpn1"), or everything ("").
// Secrets print as `ENC redacted`. The error says that path names nothing.
func (c *Config) Show(w io.Writer, path string, full bool) error {
	return c.show(w, path, &printer{full: full})
}

// ShowSecrets is Show with secrets in plain form, for the node's own operator.
// Loading its text of everything gives an equal Config, line numbers apart.
func (c *Config) ShowSecrets(w io.Writer, path string, full bool) error {
	return c.show(w, path, &printer{full: full, secrets: true})
}

func (c *Config) show(w io.Writer, path string, p *printer) error {
	found := path == ""
	for _, b := range blocks {
		v := b.view(c)
		switch {
		case path == "" || strings.HasPrefix(b.path, path+" "):
			found = true
			if !v.empty(p) {
				v.print(p)
			}
		case b.path == path:
			found = true
			v.print(p)
		case strings.HasPrefix(path, b.path+" "):
			n, ok := v.(interface{ has(name string) bool })
			if name := strings.TrimPrefix(path, b.path+" "); ok && n.has(name) {
				found = true
				p.only = name
				v.print(p)
			}
		}
	}
	if !found {
		return fmt.Errorf("nothing to show at %s%s", echo(path), didYouMean(path, Paths()))
	}
	_, err := io.WriteString(w, p.b.String())
	return err
}

// Paths lists the blocks of the language in the order in which Show prints them.
func Paths() (paths []string) {
	for _, b := range blocks {
		paths = append(paths, b.path)
	}
	return paths
}

func (t *table[T]) has(name string) bool {
	return slices.ContainsFunc(t.entries, func(o *object[T]) bool { return o.src.name == name })
}

// BlockChecksum is the checksum of one block.
type BlockChecksum struct {
	Path string
	Sum  string // 64 hexadecimal digits
}

// Checksum returns a checksum of each block that members of a cluster must have
// alike: of its canonical text, without defaults and without what belongs to one node alone
// (priorities, host name, management addresses, paths). key is something that
// only the members know; under it, secrets enter. Without a key they stay out,
// because a plain checksum would let anybody test guesses of a pre-shared key.
func (c *Config) Checksum(key []byte) (sums []BlockChecksum) {
	for _, b := range blocks {
		p := &printer{secrets: len(key) > 0, shared: true}
		b.view(c).print(p)
		m := hmac.New(sha256.New, key)
		io.WriteString(m, p.b.String())
		sums = append(sums, BlockChecksum{Path: b.path, Sum: hex.EncodeToString(m.Sum(nil))})
	}
	return sums
}

// viewOf wraps a value of the model for printing.
func viewOf[T any](def *spec[T], val T) printable {
	return &object[T]{def: def, val: &val, src: newSource(def.path, "", 0)}
}

func same[T any](v T) T { return v }

// tableOf wraps a slice of the model for printing.
func tableOf[M, T any](def *spec[T], vals []M, draft func(M) T, name func(*T) string) *table[T] {
	var drafts []T
	for _, v := range vals {
		drafts = append(drafts, draft(v))
	}
	return newTable(def, "").fill(drafts, name)
}

func addressView(c *Config, def *spec[addressDraft], v6 bool) printable {
	var own []Address
	for _, a := range c.Addresses {
		if a.Ranges[0].Start.Is4() != v6 {
			own = append(own, a)
		}
	}
	return tableOf(def, own, draftAddress, func(a *addressDraft) string { return a.name })
}

func groupView(c *Config, def *spec[AddrGroup], v6 bool) printable {
	var own []AddrGroup
	for _, g := range c.AddrGroups {
		if g.V6 == v6 {
			own = append(own, g)
		}
	}
	return tableOf(def, own, same[AddrGroup], func(g *AddrGroup) string { return g.Name })
}

func routeView(c *Config, def *spec[Route], v6 bool) printable {
	var own []Route
	for _, r := range c.Routes {
		if r.Dst.Addr().Is4() != v6 {
			own = append(own, r)
		}
	}
	return tableOf(def, own, same[Route], func(r *Route) string { return fmt.Sprint(r.ID) })
}
