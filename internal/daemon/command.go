package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"tandem/cluster"
)

// Exit codes of commands, the same ones the binary has.
const (
	exitOK     = 0
	exitFailed = 1 // the command was understood and did not succeed
	exitUsage  = 2 // the command was not understood
)

// command is one row of the table: FortiOS's words for it, what follows them,
// one line of help, and the function.
type command struct {
	path string
	args string // as shown to people, e.g. "[name NAME]"; empty: nothing may follow
	help string
	run  func(*session, []string) error
}

// session is one call of one command.
type session struct {
	ctx      context.Context
	d        backend
	out      io.Writer
	json     bool
	showKeys bool
}

// backend is what commands need of the daemon.
type backend interface {
	view(ctx context.Context, counters bool) (*view, error) // without counters it costs the loop less
	up(ctx context.Context, phase1, phase2 string) error
	down(ctx context.Context, phase1, phase2 string) error
	clear(ctx context.Context, name string) (int, error)
	rekey(ctx context.Context, name string, ike bool) (int, error)
	failover(ctx context.Context, s cluster.ScopeID, set bool) error
	drain(ctx context.Context, on bool) error // returns when it was decided
	redirect(ctx context.Context, on bool) (told int, known bool, err error)
	redirectable(ctx context.Context) (left int, err error)
	announced() (routesView, error) // what routers are told
	reload(ctx context.Context) (reloaded, error)
	checksums(ctx context.Context) (checksums, error) // of all members
	logs() *logHub
}

// usageError is answered with exitUsage.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

func exitCode(err error) int {
	var u usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &u):
		return exitUsage
	}
	return exitFailed
}

// printJSON writes v indented; every --json output goes through here.
func (s *session) printJSON(v any) error {
	e := json.NewEncoder(s.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (s *session) printf(format string, args ...any) { fmt.Fprintf(s.out, format, args...) }

// word is a node of the tree that the rows span.
type word struct {
	next map[string]*word
	row  *command
}

func tree(rows []command) *word {
	root := &word{next: map[string]*word{}}
	for i := range rows {
		at := root
		for _, w := range strings.Fields(rows[i].path) {
			if at.next[w] == nil {
				at.next[w] = &word{next: map[string]*word{}}
			}
			at = at.next[w]
		}
		at.row = &rows[i]
	}
	return root
}

func (w *word) names() []string {
	var names []string
	for n := range w.next {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// pick finds the one candidate that typed abbreviates; an exact match wins over
// longer words. ok is false when none or several fit; those are in matches.
func pick(typed string, candidates []string) (name string, matches []string, ok bool) {
	for _, c := range candidates {
		if c == typed {
			return c, nil, true
		}
		if strings.HasPrefix(c, typed) {
			matches = append(matches, c)
		}
	}
	if len(matches) == 1 {
		return matches[0], nil, true
	}
	return "", matches, false
}

// resolve finds the row that words name, abbreviated or not, and what follows.
// Help asked for ("?", "help", "--help") comes back as text with a nil row.
func resolve(rows []command, words []string) (row *command, rest []string, help string, err error) {
	at := tree(rows)
	var said []string
	for i, w := range words {
		if w == "?" || w == "--help" || w == "-h" {
			return nil, nil, helpText(rows, at, said), nil
		}
		name, matches, ok := pick(w, at.names())
		if ok {
			at = at.next[name]
			said = append(said, name)
			continue
		}
		if at.row != nil && (len(matches) == 0 || len(at.next) == 0) {
			for _, later := range words[i:] {
				if later == "?" || later == "--help" || later == "-h" {
					return nil, nil, helpText(rows, at, said), nil
				}
			}
			if at.row.args == "" {
				return nil, nil, "", usagef("%s: nothing may follow, but %q does", strings.Join(said, " "), w)
			}
			return at.row, words[i:], "", nil
		}
		before := strings.Join(said, " ")
		if before != "" {
			before = " after " + before
		}
		if len(matches) > 1 {
			return nil, nil, "", usagef("ambiguous word %q%s: it could be %s", w, before, strings.Join(matches, ", "))
		}
		text := fmt.Sprintf("unknown word %q%s", w, before)
		if near := nearest(w, at.names()); near != "" {
			text += fmt.Sprintf("; did you mean %q?", near)
		}
		return nil, nil, "", usageError{text + "\npossible: " + strings.Join(at.names(), ", ")}
	}
	if at.row == nil {
		if len(said) == 0 {
			return nil, nil, helpText(rows, at, said), nil
		}
		return nil, nil, "", usagef("incomplete command: %s is followed by one of: %s",
			strings.Join(said, " "), strings.Join(at.names(), ", "))
	}
	return at.row, nil, "", nil
}

// helpText lists every command below a point of the tree.
func helpText(rows []command, at *word, said []string) string {
	under := map[*command]bool{}
	var collect func(*word)
	collect = func(w *word) {
		if w.row != nil {
			under[w.row] = true
		}
		for _, n := range w.next {
			collect(n)
		}
	}
	collect(at)
	var b strings.Builder
	if len(said) > 0 {
		fmt.Fprintf(&b, "%s:\n", strings.Join(said, " "))
	}
	for i := range rows {
		if r := &rows[i]; under[r] {
			fmt.Fprintf(&b, "  %-58s %s\n", strings.TrimSpace(r.path+" "+r.args), r.help)
		}
	}
	b.WriteString("Any unambiguous prefix of a word works; --json prints stable JSON; keys print only with --show-keys.\n")
	return b.String()
}

// nearest is the candidate within two edits of typed, or "".
func nearest(typed string, candidates []string) string {
	best, name := 3, ""
	for _, c := range candidates {
		if d := distance(typed, c); d < best {
			best, name = d, c
		}
	}
	return name
}

// distance is the number of single-letter edits between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// Bounds of a request; the socket is root's, but a slip must not cost memory.
const (
	maxWords  = 64
	maxLetter = 256
)

// execute runs words as one command.
func (s *session) execute(words []string) error {
	if len(words) > maxWords {
		return usagef("a command has at most %d words", maxWords)
	}
	for _, w := range words {
		if len(w) > maxLetter {
			return usagef("a word has at most %d bytes", maxLetter)
		}
	}
	row, rest, help, err := resolve(allCommands(), words)
	if err != nil {
		return err
	}
	if row == nil {
		s.printf("%s", help)
		return nil
	}
	return row.run(s, rest)
}

// nameArg reads "[name] X" or nothing.
func nameArg(args []string) (string, error) {
	switch len(args) {
	case 0:
		return "", nil
	case 1:
		if args[0] != "name" {
			return args[0], nil
		}
	case 2:
		if strings.HasPrefix("name", args[0]) && args[0] != "" {
			return args[1], nil
		}
	}
	return "", usagef("expected: [name NAME], got %q", strings.Join(args, " "))
}

// Help is what "?" and --help say about words, without a running daemon.
func Help(words []string) (string, error) {
	_, _, help, err := resolve(allCommands(), append(append([]string(nil), words...), "?"))
	return help, err
}
