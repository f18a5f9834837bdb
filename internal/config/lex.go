package config

import (
	"strings"
	"unicode/utf8"
)

// Bounds on what is read. A configuration of 10,000 tunnels is about 8 MiB in
// FortiOS's full form and well under 4 MiB in the form people write.
const (
	MaxSize    = 4 << 20 // bytes of one configuration
	maxDepth   = 8       // nested config and edit levels
	maxWords   = 1024    // words of one statement
	maxFaults  = 1000    // faults reported of one configuration
	maxEntries = 200_000 // entries of all tables together
)

// word is one value of a statement; quoted tells "ENC" the value from ENC the mark.
type word struct {
	text   string
	quoted bool
}

// stmt is one line of the language: a verb and its words.
type stmt struct {
	line  int
	verb  string
	words []word
}

// lexer splits a configuration into statements. Only whole lines are comments;
// a quoted value may run over several lines, as FortiOS writes certificates.
type lexer struct {
	text  string
	pos   int
	line  int
	fault func(line int, msg string)
}

// next returns the next statement; ok is false at the end of the text.
func (l *lexer) next() (st stmt, ok bool) {
	for l.pos < len(l.text) {
		start := l.line
		words, bad := l.statement()
		if bad || len(words) == 0 {
			continue
		}
		if words[0].quoted {
			l.fault(start, "a line must begin with config, edit, set, unset, append, next or end, not with a quoted value")
			continue
		}
		return stmt{line: start, verb: words[0].text, words: words[1:]}, true
	}
	return stmt{}, false
}

// statement reads one logical line. bad means that a fault was reported and the
// rest of the line skipped.
func (l *lexer) statement() (words []word, bad bool) {
	for l.pos < len(l.text) {
		switch c := l.text[l.pos]; {
		case c == '\n':
			l.pos++
			l.line++
			return words, false
		case c == ' ' || c == '\t' || c == '\r':
			l.pos++
		case c == '#' && len(words) == 0:
			l.skipLine()
			return nil, false
		default:
			w, msg := l.word()
			if msg == "" && len(words) == maxWords {
				msg = "more values on one line than can be read"
			}
			if msg != "" {
				l.fault(l.line, msg)
				l.skipLine()
				return nil, true
			}
			words = append(words, w)
		}
	}
	return words, false
}

func (l *lexer) skipLine() {
	if i := strings.IndexByte(l.text[l.pos:], '\n'); i >= 0 {
		l.pos += i + 1
		l.line++
		return
	}
	l.pos = len(l.text)
}

func (l *lexer) word() (word, string) {
	if q := l.text[l.pos]; q == '"' || q == '\'' {
		return l.quoted(q)
	}
	var b strings.Builder
	for l.pos < len(l.text) {
		c := l.text[l.pos]
		if c == ' ' || c == '\t' || c == '\r' || c == '\n' {
			break
		}
		if c == '\\' && l.pos+1 < len(l.text) && l.text[l.pos+1] != '\n' && l.text[l.pos+1] != '\r' {
			l.pos++
			c = l.text[l.pos]
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			return word{}, "an unprintable character in a value"
		}
		b.WriteByte(c)
		l.pos++
	}
	if !utf8.ValidString(b.String()) {
		return word{}, "a value that is not UTF-8"
	}
	return word{text: b.String()}, ""
}

// quoted reads a value in quotes. \" and \\ are escapes between double quotes;
// single quotes take everything literally. The messages never repeat the value:
// it may be a secret.
func (l *lexer) quoted(q byte) (word, string) {
	open, line := l.pos, l.line
	// A quote that is never closed swallows what follows up to somebody else's
	// quote. Reading goes on behind the line that opened it.
	unclosed := func() (word, string) {
		l.pos, l.line = open, line
		return word{}, "the quote that opens here is not closed"
	}
	var b strings.Builder
	for l.pos++; l.pos < len(l.text); l.pos++ {
		c := l.text[l.pos]
		switch {
		case c == q:
			l.pos++
			if l.pos < len(l.text) && !strings.ContainsRune(" \t\r\n", rune(l.text[l.pos])) {
				if l.line != line {
					return unclosed()
				}
				return word{}, "a quoted value must be followed by a space"
			}
			if !utf8.ValidString(b.String()) {
				return word{}, "a value that is not UTF-8"
			}
			return word{text: b.String(), quoted: true}, ""
		case c == '\\' && q == '"' && l.pos+1 < len(l.text) && strings.IndexByte(`"\'`, l.text[l.pos+1]) >= 0:
			l.pos++
			c = l.text[l.pos]
		case c == '\r' && l.pos+1 < len(l.text) && l.text[l.pos+1] == '\n':
			continue
		case c == '\n':
			l.line++
		case c < ' ' && c != '\t' || c == 0x7f:
			l.pos, l.line = open, line
			return word{}, "an unprintable character in a value"
		}
		b.WriteByte(c)
	}
	return unclosed()
}

// lexWords splits a default value of a keyword table.
func lexWords(s string) []word {
	l := lexer{text: s, fault: func(int, string) { panic("config: bad default " + s) }}
	w, _ := l.statement()
	return w
}

// quote writes a value between double quotes so that the lexer reads it back.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
