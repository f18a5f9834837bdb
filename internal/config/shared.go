package config

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"
)

// DigestLen is the length of a digest of the shared part, in bytes.
const DigestLen = sha256.Size

// Shared is the part that the members of a cluster have alike, in the language: what
// differs from the defaults, without what belongs to one node alone. It has the secrets.
// By itself it need not load: what is missing is each node's own.
func (c *Config) Shared() []byte { return c.part(&printer{secrets: true, shared: true}) }

// own is the rest.
func (c *Config) own() []byte { return c.part(&printer{secrets: true, own: true}) }

func (c *Config) part(p *printer) []byte {
	for _, b := range blocks {
		if v := b.view(c); !v.empty(p) {
			v.print(p)
		}
	}
	return []byte(p.b.String())
}

// Digest is a digest of shared text. key is something that only the members know:
// without it anybody could test guesses of a pre-shared key.
func Digest(key, shared []byte) [DigestLen]byte {
	m := hmac.New(sha256.New, key)
	_, _ = m.Write(shared)
	return [DigestLen]byte(m.Sum(nil))
}

// Join is the configuration of the node that has c, with the shared part of another one.
// What is c's own goes with it, where the entries that it belongs to are still there.
// file only names the text in faults; the Config is nil when any of them is not a warning.
func (c *Config) Join(file string, shared []byte) (*Config, []Fault) {
	ld := newLoader(file)
	if len(shared) > MaxSize {
		ld.fault(0, "", "", fmt.Sprintf("the shared configuration must not be larger than %d MiB (it has %d bytes)", MaxSize>>20, len(shared)))
		return nil, ld.faults
	}
	ld.read(string(shared))
	ld.known = true
	ld.read(string(c.own()))
	return ld.finish(ld.build())
}

// Text is what a node's file says after it took over the shared part of another: the
// whole configuration in the language, with its secrets.
func (c *Config) Text() []byte {
	return append([]byte("# Written by tandem: a revision of the cluster's configuration with this node's own settings.\n# FILE.previous is what was here before.\n"),
		c.part(&printer{secrets: true})...)
}

// Differences names line by line what the shared parts of two configurations have
// differently: "- PATH: LINE" is only in from, "+ PATH: LINE" only in to. Secrets print
// as redacted.
func Differences(from, to *Config) (out []string) {
	before, after := from.statements(), to.statements()
	count := map[string]int{}
	for _, s := range before {
		count[s.text]++
	}
	var added []statement
	for _, s := range after {
		if count[s.text] > 0 {
			count[s.text]--
		} else {
			added = append(added, s)
		}
	}
	gone := map[string]int{}
	for _, s := range before {
		gone[s.text]++
	}
	// What is left of count is only in before; the last of several alike are meant.
	seen := map[string]int{}
	for _, s := range before {
		seen[s.text]++
		if seen[s.text] > gone[s.text]-count[s.text] {
			out = append(out, "- "+s.shown)
		}
	}
	for _, s := range added {
		out = append(out, "+ "+s.shown)
	}
	if len(out) > 0 {
		return out
	}
	for i := range before {
		if before[i].text != after[i].text {
			return []string{"~ " + after[i].shown + ": stands at another place"}
		}
	}
	return nil
}

// statement is one line with the path to it.
type statement struct{ text, shown string }

// statements are the lines of the shared part, entries by their names. An entry or a
// block counts as a statement of its own, so that empty ones differ from none.
func (c *Config) statements() (out []statement) {
	plain, shown := &printer{secrets: true, shared: true}, &printer{shared: true}
	c.part(plain)
	c.part(shown)
	var path []string
	for i, line := range plain.lines {
		verb, rest, _ := strings.Cut(line, " ")
		at := strings.Join(path, " ")
		switch verb {
		case "config", "edit":
			path = append(path, rest)
			if verb == "config" {
				continue
			}
		case "next", "end":
			path = path[:len(path)-1]
			continue
		}
		if at != "" {
			at += ": "
		}
		out = append(out, statement{at + line, at + oneLine(shown.lines[i])})
	}
	if c.HasPolicy && len(c.Policies) == 0 {
		s := "config " + policySpec.path + " (empty)"
		out = append(out, statement{s, s})
	}
	return out
}

// oneLine is a statement as one printable line.
func oneLine(s string) string {
	if first, _, cut := strings.Cut(s, "\n"); cut {
		s = first + " …"
	}
	return s
}
