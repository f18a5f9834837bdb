package config

import (
	"path"
	"slices"
	"strings"

	"tandem/internal/ipsec"
)

// pemText is a certificate, a list or a key: the text itself (PEM, over several lines), or the
// absolute path of a file that holds it. In a string; a private key in an ipsec.Key.
type pemText struct{ key bool }

func (p pemText) allowed() string {
	if p.key {
		return "a private key in PEM, or the absolute path of its file (mode 0600)"
	}
	return "PEM, or the absolute path of a file"
}

func (p pemText) parse(words []word, into any) string {
	if p.key && words[0].text == "ENC" && !words[0].quoted {
		return "was left out when this text was shown, or is encrypted by the vendor: write it in plain form, or name its file"
	}
	if msg := single(words); msg != "" {
		return msg
	}
	s := strings.TrimSpace(words[0].text)
	switch {
	case strings.HasPrefix(s, "-----BEGIN "):
	case !strings.HasPrefix(s, "/") || strings.Contains(s, "\n"):
		if s == "" {
			return "is empty: it takes " + p.allowed()
		}
		return "must be " + p.allowed() // the value may be half a key: it is not repeated
	case len(s) > 255 || !isPrintable(s) || path.Clean(s) != s:
		return "must be a plain absolute path of at most 255 bytes"
	}
	switch v := into.(type) {
	case *string:
		*v = s
	case *ipsec.Key:
		*v = ipsec.NewKey([]byte(s))
	}
	return ""
}

func (p pemText) format(from any) string {
	s := ""
	switch v := from.(type) {
	case *string:
		s = *v
	case *ipsec.Key:
		s = string(v.Bytes())
	}
	if s == "" {
		return ""
	}
	return quote(s)
}

// hides says that the value is a secret: a path is none.
func (p pemText) hides(from any) bool {
	k, ok := from.(*ipsec.Key)
	return p.key && ok && !strings.HasPrefix(string(k.Bytes()), "/")
}
func (s secret) hides(any) bool { return true }

// hider is a value that is not shown to everybody.
type hider interface{ hides(from any) bool }

// manyOf is a list of words of one kind, each once, in a []string.
type manyOf struct{ of enum }

func (w manyOf) allowed() string { return "one or more of " + orList(w.of.words) }
func (w manyOf) parse(in []word, into any) string {
	var out []string
	for _, x := range in {
		var s string
		if msg := w.of.parse([]word{x}, &s); msg != "" {
			return msg
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	*into.(*[]string) = out
	return ""
}
func (manyOf) format(from any) string { return strings.Join(*from.(*[]string), " ") }
func (manyOf) list(from any) (out []word) {
	for _, s := range *from.(*[]string) {
		out = append(out, word{text: s})
	}
	return out
}
