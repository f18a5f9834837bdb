package pki

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"
)

// attribute is one part of a distinguished name: its short name or OID, and its value.
type attribute struct{ name, value string }

var shortNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.9": "STREET", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "T", "2.5.4.17": "postalCode",
	"2.5.4.42": "GN", "2.5.4.43": "I", "2.5.4.46": "dnQualifier", "2.5.4.65": "pseudonym",
	"1.2.840.113549.1.9.1": "emailAddress", "0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
}

// other spellings of short names, in lower case.
var spellings = map[string]string{
	"e": "emailaddress", "email": "emailaddress", "s": "st", "surname": "sn", "title": "t", "g": "gn", "givenname": "gn", "initials": "i",
	"commonname": "cn", "country": "c", "countryname": "c", "organization": "o", "organizationname": "o",
	"organizationalunit": "ou", "organizationalunitname": "ou", "locality": "l", "localityname": "l",
	"stateorprovince": "st", "stateorprovincename": "st", "userid": "uid", "domaincomponent": "dc",
}

// attributes are the parts of a name (DER), in its order; ok is false if it is none.
func attributes(der []byte) (out []attribute, ok bool) {
	var seq pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &seq); err != nil || len(rest) > 0 {
		return nil, false
	}
	for _, set := range seq {
		for _, a := range set {
			oid := a.Type.String()
			name, known := shortNames[oid]
			if !known {
				name = oid
			}
			text, isText := a.Value.(string)
			if !isText {
				b, _ := asn1.Marshal(a.Value)
				text = "#" + hex.EncodeToString(b)
			}
			out = append(out, attribute{name, text})
		}
	}
	return out, true
}

// DNString prints a distinguished name (DER) in its own order: "C=CH, O=Example, CN=gw1".
// What is no name prints in hexadecimal.
func DNString(der []byte) string {
	as, ok := attributes(der)
	if !ok {
		return hex.EncodeToString(der)
	}
	var parts []string
	for _, a := range as {
		value := strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == 0xfffd {
				return '?'
			}
			return r
		}, a.value)
		parts = append(parts, a.name+"="+strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(value))
	}
	return strings.Join(parts, ", ")
}

// parseDN reads a name as people write it: parts "TYPE=value" with commas (or
// semicolons, or slashes at the beginning of each) between them.
func parseDN(text string) []attribute {
	text = strings.TrimSpace(text)
	var parts []string
	separators := ",;"
	if strings.HasPrefix(text, "/") {
		separators, text = "/", text[1:]
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case strings.IndexByte(separators, c) >= 0:
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	parts = append(parts, b.String())
	var out []attribute
	for _, p := range parts {
		name, value, ok := strings.Cut(p, "=")
		if ok {
			out = append(out, attribute{strings.TrimSpace(name), strings.TrimSpace(value)})
		}
	}
	return out
}

// fold makes parts comparable: other spellings and case of the type, case and runs of
// blanks of the value (RFC 5280 §7.1).
func fold(in []attribute) []attribute {
	out := make([]attribute, len(in))
	for i, a := range in {
		name := strings.ToLower(a.name)
		if s, ok := spellings[name]; ok {
			name = s
		}
		out[i] = attribute{name, strings.ToLower(strings.Join(strings.Fields(a.value), " "))}
	}
	return out
}

// EqualDN says that two names (DER) are the same, however their strings are encoded.
func EqualDN(a, b []byte) bool {
	if string(a) == string(b) {
		return true
	}
	x, ok1 := attributes(a)
	y, ok2 := attributes(b)
	return ok1 && ok2 && slices.Equal(fold(x), fold(y))
}

// MatchDN says that a name (DER) is the one of a text, in either order of its parts.
func MatchDN(der []byte, text string) bool {
	x, ok := attributes(der)
	want := fold(parseDN(text))
	if !ok || len(want) == 0 {
		return false
	}
	have := fold(x)
	if slices.Equal(have, want) {
		return true
	}
	slices.Reverse(want)
	return slices.Equal(have, want)
}

// ContainsDN says that a name (DER) has every part of a text; an empty text asks for none.
func ContainsDN(der []byte, text string) bool {
	x, ok := attributes(der)
	have := fold(x)
	for _, w := range fold(parseDN(text)) {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return ok
}

// IsDN says that a text names at least one part of a distinguished name.
func IsDN(text string) bool { return len(parseDN(text)) > 0 }
