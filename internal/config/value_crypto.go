package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tandem/internal/ipsec"
)

// ciphers are the encryption halves of a proposal.
var ciphers = []struct {
	name string
	id   ipsec.TransformID
	bits uint16
}{
	{"aes128", ipsec.ENCRAESCBC, 128},
	{"aes192", ipsec.ENCRAESCBC, 192},
	{"aes256", ipsec.ENCRAESCBC, 256},
	{"aes128gcm", ipsec.ENCRAESGCM16, 128},
	{"aes192gcm", ipsec.ENCRAESGCM16, 192},
	{"aes256gcm", ipsec.ENCRAESGCM16, 256},
	{"chacha20poly1305", ipsec.ENCRChaCha20Poly1305, 0},
	{"3des", ipsec.ENCR3DES, 0},
	{"null", ipsec.ENCRNULL, 0},
}

// hashes are the other halves: PRF of IKE, integrity of IKE and ESP.
var hashes = []struct {
	name       string
	prf, integ ipsec.TransformID
}{
	{"sha1", ipsec.PRFHMACSHA1, ipsec.INTEGHMACSHA1_96},
	{"sha256", ipsec.PRFHMACSHA256, ipsec.INTEGHMACSHA256_128},
	{"sha384", ipsec.PRFHMACSHA384, ipsec.INTEGHMACSHA384_192},
	{"sha512", ipsec.PRFHMACSHA512, ipsec.INTEGHMACSHA512_256},
}

// refusedHalves are algorithms that FortiOS offers and that are not taken here.
var refusedHalves = map[string]string{
	"des":     "56-bit DES must not be used (RFC 8247 §2.1)",
	"md5":     "HMAC-MD5 must not be used (RFC 8247 §2.3)",
	"prfmd5":  "HMAC-MD5 must not be used (RFC 8247 §2.2)",
	"aria128": "ARIA has no IKEv2 transform number", "aria192": "ARIA has no IKEv2 transform number", "aria256": "ARIA has no IKEv2 transform number",
	"seed": "SEED has no IKEv2 transform number",
}

// proposals is a list of suites, in a []ipsec.Suite without KE.
type proposals struct{ phase int }

func (p proposals) allowed() string {
	if p.phase == 1 {
		return "suites such as aes256-sha256 (aes128, aes192, aes256 or 3des; sha1, sha256, sha384 or sha512), aes256gcm-prfsha384 or chacha20poly1305-prfsha256"
	}
	return "suites such as aes256-sha256 (aes128, aes192, aes256, 3des or null; sha1, sha256, sha384 or sha512), aes256gcm or chacha20poly1305"
}

func (p proposals) parse(words []word, into any) string {
	var out []ipsec.Suite
	for _, w := range words {
		s, msg := p.suite(strings.ToLower(w.text))
		if msg != "" {
			return fmt.Sprintf("(%s) %s", echo(w.text), msg)
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	if len(out) > 16 {
		return fmt.Sprintf("takes at most 16 suites (it has %d)", len(out))
	}
	*into.(*[]ipsec.Suite) = out
	return ""
}

func (p proposals) suite(s string) (ipsec.Suite, string) {
	enc, rest, dash := strings.Cut(s, "-")
	for _, half := range []string{enc, rest} {
		if why := refusedHalves[half]; why != "" {
			return ipsec.Suite{}, "is refused: " + why
		}
	}
	unknown := func() (ipsec.Suite, string) {
		return ipsec.Suite{}, fmt.Sprintf("is no phase %d suite; allowed: %s", p.phase, p.allowed()) + didYouMean(s, p.all())
	}
	i := slices.IndexFunc(ciphers, func(c struct {
		name string
		id   ipsec.TransformID
		bits uint16
	}) bool {
		return c.name == enc
	})
	if i < 0 {
		return unknown()
	}
	suite := ipsec.Suite{Encr: ciphers[i].id, KeyBits: ciphers[i].bits}
	if suite.Encr == ipsec.ENCRNULL && p.phase == 1 {
		return ipsec.Suite{}, "is refused: IKE messages are always encrypted (RFC 7296 §2.14)"
	}
	hash, hasPRF := strings.CutPrefix(rest, "prf")
	j := slices.IndexFunc(hashes, func(h struct {
		name       string
		prf, integ ipsec.TransformID
	}) bool {
		return h.name == hash
	})
	switch aead := suite.Encr.AEAD(); {
	case aead && p.phase == 2 && !dash:
		return suite, ""
	case aead && p.phase == 2 && hasPRF && j >= 0:
		return ipsec.Suite{}, "names a PRF, which phase 2 has not: write " + enc
	case aead && p.phase == 2:
		return ipsec.Suite{}, "authenticates by itself: write " + enc
	case aead && !dash:
		return ipsec.Suite{}, "lacks the PRF that phase 1 needs: write " + enc + "-prfsha256"
	case aead && !hasPRF && j >= 0:
		return ipsec.Suite{}, "authenticates by itself and needs a PRF only: write " + enc + "-prf" + hash
	case rest == "null":
		return ipsec.Suite{}, "is refused: encryption without integrity gives no protection (RFC 8221 §4)"
	case j < 0 || !dash || aead != hasPRF:
		return unknown()
	}
	if p.phase == 1 {
		suite.PRF = hashes[j].prf
	}
	if !suite.Encr.AEAD() {
		suite.Integ = hashes[j].integ
	}
	return suite, ""
}

// all lists every accepted suite.
func (p proposals) all() (out []string) {
	for _, c := range ciphers {
		switch {
		case c.id == ipsec.ENCRNULL && p.phase == 1:
		case c.id.AEAD() && p.phase == 2:
			out = append(out, c.name)
		default:
			for _, h := range hashes {
				if c.id.AEAD() {
					out = append(out, c.name+"-prf"+h.name)
				} else {
					out = append(out, c.name+"-"+h.name)
				}
			}
		}
	}
	return out
}

func (p proposals) format(from any) string { return strings.Join(p.strings(from), " ") }
func (p proposals) strings(from any) (out []string) {
	for _, s := range *from.(*[]ipsec.Suite) {
		s.ESN = false
		if n := s.String(); !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}
func (p proposals) list(from any) (words []word) {
	for _, s := range p.strings(from) {
		words = append(words, word{text: s})
	}
	return words
}

// groupIDs are the key exchange methods that can be configured.
var groupIDs = []ipsec.TransformID{
	ipsec.KEMODP1024, ipsec.KEMODP1536, ipsec.KEMODP2048, ipsec.KEMODP3072, ipsec.KEMODP4096,
	ipsec.KEECP256, ipsec.KEECP384, ipsec.KEECP521, ipsec.KEX25519,
}

var refusedGroups = map[int]string{
	1:  "a 768-bit group is broken (RFC 8247 §2.4)",
	22: "a group with small subgroups must not be used (RFC 8247 §2.4)",
	23: "a group with small subgroups must not be used (RFC 8247 §2.4)",
	24: "a group with small subgroups must not be used (RFC 8247 §2.4)",
}

// groups is a list of key exchange methods, best first, in a []ipsec.TransformID.
type groups struct{}

func (groups) allowed() string {
	var s []string
	for _, g := range groupIDs {
		s = append(s, strconv.Itoa(int(g)))
	}
	return orList(s)
}
func (g groups) parse(words []word, into any) string {
	var out []ipsec.TransformID
	for _, w := range words {
		n, err := strconv.Atoi(w.text)
		if why := refusedGroups[n]; err == nil && why != "" {
			return fmt.Sprintf("(%d) is refused: %s; allowed: %s", n, why, g.allowed())
		}
		id := ipsec.TransformID(n)
		if err != nil || n < 0 || n > 65535 || !slices.Contains(groupIDs, id) {
			return fmt.Sprintf("(%s) must be %s", echo(w.text), g.allowed())
		}
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	*into.(*[]ipsec.TransformID) = out
	return ""
}
func (groups) format(from any) string {
	var out []string
	for _, id := range *from.(*[]ipsec.TransformID) {
		out = append(out, strconv.Itoa(int(id)))
	}
	return strings.Join(out, " ")
}
func (groups) list(from any) (words []word) {
	for _, id := range *from.(*[]ipsec.TransformID) {
		words = append(words, word{text: strconv.Itoa(int(id))})
	}
	return words
}
