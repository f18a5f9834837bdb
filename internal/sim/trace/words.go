package trace

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// clean makes s one line of characters that take one column each: what is
// invisible, turns the writing direction, combines, or takes two columns, is
// written as an escape.
func clean(s string) string {
	plain := true
	for i := 0; i < len(s); i++ {
		plain = plain && s[i] >= ' ' && s[i] <= '~'
	}
	if plain {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		narrow := r < 0x1100 || r >= 0x1e00 && r < 0x2e80
		if r == unicode.ReplacementChar || !narrow || !unicode.IsPrint(r) || unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Me, r) {
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func width(s string) int { return len([]rune(s)) }

func pad(s string, n int) string { return s + strings.Repeat(" ", max(0, n-width(s))) }

// short is s in at most n columns.
func short(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	if n < 1 {
		return ""
	}
	return string(r[:n-1]) + "…"
}

// wrap breaks s at spaces into at most lines lines of at most n columns; what
// does not fit ends in "…".
func wrap(s string, n, lines int) []string {
	var out []string
	rest := []rune(strings.TrimSpace(s))
	for len(rest) > n && len(out) < lines-1 {
		at := n
		for i := n; i > n/2; i-- {
			if rest[i] == ' ' {
				at = i
				break
			}
		}
		out = append(out, strings.TrimSpace(string(rest[:at])))
		rest = []rune(strings.TrimSpace(string(rest[at:])))
	}
	return append(out, short(string(rest), n))
}

// wrapName breaks the name of a lifeline after its separators.
func wrapName(s string, n, lines int) []string {
	var out []string
	for _, part := range strings.SplitAfter(clean(s), "/") {
		if k := len(out); part == "" {
			continue
		} else if k > 0 && width(out[k-1])+width(part) <= n {
			out[k-1] += part
		} else {
			out = append(out, part)
		}
	}
	if len(out) > lines {
		out = append(out[:lines-1], strings.Join(out[lines-1:], ""))
	}
	for i := range out {
		out[i] = short(out[i], n)
	}
	return out
}

// seconds writes d in seconds with so many decimals (0 to 9), cutting the rest.
func seconds(d time.Duration, decimals int) string {
	sign, u := "", uint64(d)
	if d < 0 {
		sign, u = "-", -u
	}
	s := fmt.Sprintf("%s%d.%09d", sign, u/1e9, u%1e9)
	return strings.TrimSuffix(s[:len(s)-9+decimals], ".")
}

// span writes a length of time for reading: three digits and a unit.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-max(d, -1<<62))
	case d < time.Microsecond:
		return strconv.Itoa(int(d)) + " ns"
	case d < time.Millisecond:
		return three(d, time.Microsecond) + " µs"
	case d < time.Second:
		return three(d, time.Millisecond) + " ms"
	case d < 10*time.Minute:
		return three(d, time.Second) + " s"
	case d < 10*time.Hour:
		return three(d, time.Minute) + " min"
	}
	return three(d, time.Hour) + " h"
}

func three(d, unit time.Duration) string {
	whole, frac := int64(d/unit), int64(d%unit*100/unit)
	s := fmt.Sprintf("%d.%02d", whole, frac)
	switch {
	case whole >= 100:
		return s[:len(s)-3]
	case whole >= 10:
		s = s[:len(s)-1]
	}
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// decimals is how many decimals tell the times apart: 6, or 9 when one is not a
// whole number of microseconds.
func decimals(events []Event) int {
	for _, e := range events {
		if e.At%time.Microsecond != 0 || e.Kind == Message && e.Until > 0 && e.Until%time.Microsecond != 0 {
			return 9
		}
	}
	return 6
}

// before orders names with the numbers in them as numbers: gw2 before gw10.
func before(a, b string) bool {
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		if digit(a[i]) && digit(b[j]) {
			si, sj := i, j
			for i < len(a) && digit(a[i]) {
				i++
			}
			for j < len(b) && digit(b[j]) {
				j++
			}
			x, y := strings.TrimLeft(a[si:i], "0"), strings.TrimLeft(b[sj:j], "0")
			if len(x) != len(y) {
				return len(x) < len(y)
			}
			if x != y {
				return x < y
			}
			continue
		}
		if a[i] != b[j] {
			return a[i] < b[j]
		}
		i++
		j++
	}
	if len(a)-i != len(b)-j {
		return len(a)-i < len(b)-j
	}
	return a < b
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func (k Kind) String() string {
	switch k {
	case Message:
		return "message"
	case Note:
		return "note"
	case Fault:
		return "FAULT"
	case State:
		return "state"
	case Violation:
		return "VIOLATION"
	}
	return "kind" + strconv.Itoa(int(k))
}
