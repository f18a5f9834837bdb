package config

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem/internal/ipsec"
)

// value is a way of writing a setting. parse stores the words in the pointer
// and returns what is wrong with them, worded to follow the keyword:
// "(100) must be between 120 and 172800". format returns the canonical words,
// empty where there is nothing to write. allowed is the documentation's range.
type value interface {
	parse(words []word, into any) string
	format(from any) string
	allowed() string
}

// clearer is a value that shares its pointer with another keyword and clears only its own part.
type clearer interface{ clear(into any) }

// lister is a value that append can add to.
type lister interface{ list(from any) []word }

func single(words []word) string {
	if len(words) > 1 {
		return "takes one value; put quotes around a value that holds spaces"
	}
	return ""
}

// toggle is enable or disable, in a bool. FortiOS takes any beginning of the
// words, and has itself printed "enabled".
type toggle struct{}

func (toggle) allowed() string { return "enable or disable" }
func (toggle) parse(words []word, into any) string {
	if msg := single(words); msg != "" {
		return msg
	}
	switch w := words[0].text; {
	case w == "":
	case strings.HasPrefix("enabled", w):
		*into.(*bool) = true
		return ""
	case strings.HasPrefix("disabled", w):
		*into.(*bool) = false
		return ""
	}
	return fmt.Sprintf("(%s) must be enable or disable", echo(words[0].text))
}
func (toggle) format(from any) string {
	if *from.(*bool) {
		return "enable"
	}
	return "disable"
}

// enum is one of some words, in a string; refused names values that FortiOS has
// and the reason why they are not taken. A beginning that fits one word only is taken for it.
type enum struct {
	words   []string
	refused map[string]string
	alias   map[string]string
}

func oneOf(words ...string) enum { return enum{words: words} }

func (e enum) allowed() string { return orList(e.words) }
func (e enum) parse(words []word, into any) string {
	if msg := single(words); msg != "" {
		return msg
	}
	w := words[0].text
	if why, ok := e.refused[w]; ok {
		return fmt.Sprintf("(%s) is refused: %s", w, why)
	}
	if a, ok := e.alias[w]; ok {
		w = a
	}
	if i := slices.Index(e.words, w); i < 0 {
		var fits []string
		for _, k := range e.words {
			if w != "" && strings.HasPrefix(k, w) {
				fits = append(fits, k)
			}
		}
		if len(fits) != 1 {
			return fmt.Sprintf("(%s) must be %s", echo(w), orList(e.words))
		}
		w = fits[0]
	}
	*into.(*string) = w
	return ""
}
func (e enum) format(from any) string { return *from.(*string) }

// fixed is a keyword with one possible value, which means what happens anyway.
type fixed struct{ word, why string }

func only(word, why string) fixed { return fixed{word, why} }

func (f fixed) allowed() string { return f.word }
func (f fixed) parse(words []word, _ any) string {
	for _, w := range words {
		if !strings.EqualFold(w.text, f.word) {
			return fmt.Sprintf("(%s) must be %s: %s", echo(w.text), f.word, f.why)
		}
	}
	return ""
}
func (fixed) format(any) string { return "" }

// nowhere is where a fixed value is kept.
func nowhere[T any](*T) any { return new(struct{}) }

// number is between min and max, in an int, uint64, uint8 or uint16; with a
// unit, in a time.Duration.
type number struct {
	min, max int64
	unit     time.Duration
}

func (n number) unitName() string {
	switch n.unit {
	case time.Second:
		return " seconds"
	case time.Minute:
		return " minutes"
	case time.Millisecond:
		return " milliseconds"
	case 0:
		return ""
	}
	return " × " + n.unit.String()
}
func (n number) allowed() string { return fmt.Sprintf("%d–%d%s", n.min, n.max, n.unitName()) }
func (n number) parse(words []word, into any) string {
	if msg := single(words); msg != "" {
		return msg
	}
	v, err := strconv.ParseInt(words[0].text, 10, 64)
	if err != nil || v < n.min || v > n.max {
		return fmt.Sprintf("(%s) must be between %d and %d", echo(words[0].text), n.min, n.max)
	}
	switch p := into.(type) {
	case *int:
		*p = int(v)
	case *uint64:
		*p = uint64(v)
	case *uint8:
		*p = uint8(v)
	case *uint16:
		*p = uint16(v)
	case *time.Duration:
		*p = time.Duration(v) * n.unit
	default:
		panic(fmt.Sprintf("config: number in %T", into))
	}
	return ""
}
func (n number) format(from any) string {
	switch p := from.(type) {
	case *time.Duration:
		return strconv.FormatInt(int64(*p/n.unit), 10)
	case *int:
		return strconv.Itoa(*p)
	case *uint64:
		return strconv.FormatUint(*p, 10)
	case *uint8:
		return strconv.Itoa(int(*p))
	case *uint16:
		return strconv.Itoa(int(*p))
	}
	panic(fmt.Sprintf("config: number in %T", from))
}

// text is a string of at most max bytes; check may refuse it.
type text struct {
	max   int
	what  string // documentation: "an absolute path"; empty: text
	check func(string) string
}

func (t text) allowed() string {
	if t.what != "" {
		return t.what
	}
	return fmt.Sprintf("up to %d bytes of text", t.max)
}
func (t text) parse(words []word, into any) string {
	if msg := single(words); msg != "" {
		return msg
	}
	s := words[0].text
	if len(s) > t.max {
		return fmt.Sprintf("must not be longer than %d bytes (it has %d)", t.max, len(s))
	}
	if !isPrintable(s) {
		return "must be printable text"
	}
	if t.check != nil && s != "" {
		if msg := t.check(s); msg != "" {
			return fmt.Sprintf("(%s) %s", echo(s), msg)
		}
	}
	*into.(*string) = s
	return ""
}
func (t text) format(from any) string {
	if s := *from.(*string); s != "" {
		return quote(s)
	}
	return "''"
}

// names is a list of names, in a []string.
type names struct {
	max  int // of one name, bytes
	most int // how many; 0: any number
	what string
}

func (n names) allowed() string {
	if n.what != "" {
		return n.what
	}
	if n.most == 1 {
		return "a name"
	}
	return "names"
}
func (n names) parse(words []word, into any) string {
	var out []string
	for _, w := range words {
		switch {
		case w.text == "":
			continue
		case len(w.text) > n.max:
			return fmt.Sprintf("(%s) must not be longer than %d bytes", echo(w.text), n.max)
		case !isPrintable(w.text):
			return "must be printable names"
		case slices.Contains(out, w.text):
			continue
		}
		out = append(out, w.text)
	}
	if n.most > 0 && len(out) > n.most {
		return fmt.Sprintf("takes at most %d names (it has %d)", n.most, len(out))
	}
	*into.(*[]string) = out
	return ""
}
func (n names) format(from any) string {
	var out []string
	for _, s := range *from.(*[]string) {
		out = append(out, quote(s))
	}
	if out == nil {
		return "''"
	}
	return strings.Join(out, " ")
}
func (n names) list(from any) (words []word) {
	for _, s := range *from.(*[]string) {
		words = append(words, word{text: s})
	}
	return words
}

// secret is key bytes: text, or hexadecimal digits behind 0x. Nothing that it
// says repeats the value.
type secret struct {
	key string // the keyword, for the advice
	max int
}

func (s secret) allowed() string {
	return fmt.Sprintf("up to %d bytes, plain (\"…\") or hexadecimal (0x…)", s.max)
}
func (s secret) parse(words []word, into any) string {
	if words[0].text == "ENC" && !words[0].quoted {
		if len(words) == 2 && words[1].text == redactedMark {
			return "was left out when this text was shown: write it in plain form, `set " + s.key + " \"…\"`"
		}
		return "is encrypted by the vendor (ENC …) and cannot be read: write it in plain form, `set " + s.key + " \"…\"`"
	}
	if len(words) > 1 {
		return "takes one value; put quotes around a secret that holds spaces"
	}
	t := words[0].text
	b := []byte(t)
	if hexDigits, ok := strings.CutPrefix(t, "0x"); ok {
		var err error
		if b, err = hex.DecodeString(hexDigits); err != nil {
			return "must have an even number of hexadecimal digits behind 0x"
		}
	}
	if len(b) == 0 {
		return "is empty: it takes " + s.allowed()
	}
	if len(b) > s.max {
		return fmt.Sprintf("must not be longer than %d bytes (it has %d)", s.max, len(b))
	}
	*into.(*ipsec.Key) = ipsec.NewKey(b)
	return ""
}
func (s secret) format(from any) string {
	k := from.(*ipsec.Key)
	if k.Len() == 0 {
		return ""
	}
	unprintable := func(r rune) bool { return r < ' ' || r > '~' }
	if bytes.HasPrefix(k.Bytes(), []byte("0x")) || bytes.ContainsFunc(k.Bytes(), unprintable) {
		return "0x" + hex.EncodeToString(k.Bytes())
	}
	return quote(string(k.Bytes()))
}

// redactedMark is what show prints behind ENC in place of a secret.
const redactedMark = "redacted"

// hbdevs is `hbdev "port3" 50 "port4" 50`.
type hbdevs struct{}

func (hbdevs) allowed() string { return "pairs of an interface and its priority 0–512" }
func (hbdevs) parse(words []word, into any) string {
	var out []HBDev
	if len(words) == 1 && words[0].text == "" {
		*into.(*[]HBDev) = nil
		return ""
	}
	if len(words)%2 != 0 {
		return `must be pairs of an interface and its priority, e.g. "port3" 50 "port4" 50`
	}
	for i := 0; i < len(words); i += 2 {
		name, prio := words[i].text, words[i+1].text
		n, err := strconv.Atoi(prio)
		if err != nil || n < 0 || n > 512 {
			return fmt.Sprintf("priority (%s) of %s must be between 0 and 512", echo(prio), echo(name))
		}
		if msg := interfaceName(name); msg != "" {
			return fmt.Sprintf("(%s) %s", echo(name), msg)
		}
		if slices.ContainsFunc(out, func(h HBDev) bool { return h.Name == name }) {
			return fmt.Sprintf("names %s twice", echo(name))
		}
		out = append(out, HBDev{Name: name, Priority: n})
	}
	*into.(*[]HBDev) = out
	return ""
}
func (hbdevs) format(from any) string {
	var out []string
	for _, h := range *from.(*[]HBDev) {
		out = append(out, quote(h.Name), strconv.Itoa(h.Priority))
	}
	if out == nil {
		return "''"
	}
	return strings.Join(out, " ")
}
func (hbdevs) list(from any) (words []word) {
	for _, h := range *from.(*[]HBDev) {
		words = append(words, word{text: h.Name}, word{text: strconv.Itoa(h.Priority)})
	}
	return words
}

// interval is "seconds [milliseconds]", in a time.Duration.
type interval struct{ max int }

func (v interval) allowed() string {
	return fmt.Sprintf("0–%d seconds, optionally followed by 0–999 milliseconds; not 0 altogether", v.max)
}
func (v interval) parse(words []word, into any) string {
	if len(words) > 2 {
		return "takes seconds and optionally milliseconds"
	}
	s, err := strconv.Atoi(words[0].text)
	if err != nil || s < 0 || s > v.max {
		return fmt.Sprintf("(%s) must be between 0 and %d", echo(words[0].text), v.max)
	}
	d := time.Duration(s) * time.Second
	if len(words) == 2 {
		ms, err := strconv.Atoi(words[1].text)
		if err != nil || ms < 0 || ms > 999 {
			return fmt.Sprintf("milliseconds (%s) must be between 0 and 999", echo(words[1].text))
		}
		d += time.Duration(ms) * time.Millisecond
	}
	if d == 0 {
		return fmt.Sprintf("(0) must be between 1 millisecond and %d seconds", v.max)
	}
	*into.(*time.Duration) = d
	return ""
}
func (v interval) format(from any) string {
	d := *from.(*time.Duration)
	if ms := d % time.Second / time.Millisecond; ms != 0 {
		return fmt.Sprintf("%d %d", d/time.Second, ms)
	}
	return strconv.Itoa(int(d / time.Second))
}

// interfaceName says why a name cannot be a Linux network interface, or "".
func interfaceName(s string) string {
	switch {
	case s == "" || s == "." || s == "..":
		return "is no interface name"
	case len(s) > 15:
		return fmt.Sprintf("must not be longer than 15 bytes: it names a Linux network interface (it has %d)", len(s))
	case strings.ContainsAny(s, "/: \t\n%") || !isPrintable(s):
		return "must not hold spaces, slashes, colons or percent signs: it names a Linux network interface"
	}
	return ""
}
