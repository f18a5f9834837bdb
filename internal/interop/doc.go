// Package interop is the record of what was proved against which peer: Rows says which
// tests prove what, and its program (internal/interop/generate, `make interop`) runs them
// and writes docs/interop.md, with the versions that the peers told at run time. A test
// names its peer by a line "peer: NAME: VERSION" in its log.
package interop

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Row is one feature.
type Row struct {
	Feature string
	// Peer is who the other side is where it tells no version: a peer of the test's own
	// that sends exactly what the case says, or our own engine. A test that names its
	// peers overrides it.
	Peer string
	// Tests are "PACKAGE TEST" or "PACKAGE TEST/PART", separated by "; ". Empty: no test.
	Tests string
	// Own says why our own engine is the peer. Empty where it is not.
	Own string
}

// Section is a table of the record.
type Section struct {
	Title string
	Rows  []Row
}

// Test is one test of a row.
type Test struct{ Package, Name, Part string }

// List are the tests of a row. Go writes spaces in the name of a part as underscores.
func (r Row) List() (all []Test) {
	if r.Tests == "" {
		return nil
	}
	for t := range strings.SplitSeq(r.Tests, "; ") {
		pkg, name, _ := strings.Cut(t, " ")
		name, part, _ := strings.Cut(name, "/")
		all = append(all, Test{pkg, name, strings.ReplaceAll(part, " ", "_")})
	}
	return all
}

// String is how the record names it.
func (t Test) String() string {
	if t.Part != "" {
		return "`" + t.Package + " " + t.Name + "/" + t.Part + "`"
	}
	return "`" + t.Package + " " + t.Name + "`"
}

// Outcome is what a run said of the tests: by package and name of test or part.
type Outcome struct {
	results map[[2]string]string // pass, fail, skip
	peers   map[[2]string][]string
}

// NewOutcome is one without results.
func NewOutcome() *Outcome {
	return &Outcome{map[[2]string]string{}, map[[2]string][]string{}}
}

var saysPeer = regexp.MustCompile(`\bpeer: ([^:]+): (\S.*?)\s*$`)

// Add takes one event of `go test -json`, by its fields.
func (o *Outcome) Add(pkg, test, action, output string) {
	pkg = strings.TrimPrefix(pkg, "tandem/")
	key := [2]string{pkg, test}
	switch action {
	case "pass", "fail", "skip":
		o.results[key] = action
	case "output":
		if m := saysPeer.FindStringSubmatch(output); m != nil && test != "" {
			if p := m[1] + " " + m[2]; !slices.Contains(o.peers[key], p) {
				o.peers[key] = append(o.peers[key], p)
			}
		}
	}
}

// of finds a test's result and the peers that it or its parts named. A part has the peers
// of the test that it is in where it named none.
func (o *Outcome) of(t Test) (result string, peers []string) {
	name := t.Name
	if t.Part != "" {
		name += "/" + t.Part
	}
	result = o.results[[2]string{t.Package, name}]
	if result == "" { // a part with a slash in its own name has no result but its parts'
		result = "not run"
		rank := map[string]int{"not run": 0, "pass": 1, "skip": 2, "fail": 3}
		for key, r := range o.results {
			if key[0] == t.Package && strings.HasPrefix(key[1], name+"/") && rank[r] > rank[result] {
				result = r
			}
		}
	}
	for key, all := range o.peers {
		if key[0] == t.Package && (key[1] == name || strings.HasPrefix(key[1], name+"/")) {
			peers = append(peers, all...)
		}
	}
	if len(peers) == 0 && t.Part != "" {
		peers = append(peers, o.peers[[2]string{t.Package, t.Name}]...)
	}
	slices.Sort(peers)
	return result, slices.Compact(peers)
}

// Render is docs/interop.md.
func Render(sections []Section, o *Outcome) string {
	var b strings.Builder
	rows, without, own := 0, 0, 0
	var tables strings.Builder
	for _, s := range sections {
		fmt.Fprintf(&tables, "\n## %s\n\n| Feature | Peer | Version | Result | Test |\n|---|---|---|---|---|\n", s.Title)
		for _, r := range s.Rows {
			rows++
			if r.Tests == "" {
				without++
				fmt.Fprintf(&tables, "| %s | – | – | no test | no test |\n", r.Feature)
				continue
			}
			if r.Own != "" {
				own++
			}
			peer, version, result, tests := o.row(r)
			fmt.Fprintf(&tables, "| %s | %s | %s | %s | %s |\n", r.Feature, peer, version, result, tests)
		}
	}
	fmt.Fprintf(&b, `# Interoperability: what was proved against whom

Written by %[1]smake interop%[1]s, which runs the tests named here; a peer's version is what it
said of itself in that run. "Scripted" is a peer of the test's own that sends exactly what
the case says, by our message codec but without our engine. Rows of which our own engine is the
peer say why. Which test shows what apart from peers stands in docs/acceptance.md.

%[2]d rows; %[3]d without a test; %[4]d with our own engine as the peer.
`, "`", rows, without, own)
	return b.String() + tables.String()
}

// row are the cells of a row that depend on the run.
func (o *Outcome) row(r Row) (peer, version, result, tests string) {
	var names, versions, cells []string
	counts := map[string]int{}
	for _, t := range r.List() {
		res, peers := o.of(t)
		counts[res]++
		cells = append(cells, t.String())
		for _, p := range peers {
			name, v, _ := strings.Cut(p, " ")
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			if !slices.Contains(versions, v) {
				versions = append(versions, v)
			}
		}
	}
	if r.Peer != "" {
		names = append(names, r.Peer)
	}
	if r.Own != "" {
		names = append(names, "our own engine: "+r.Own)
	}
	switch {
	case counts["fail"] > 0:
		result = "fails"
	case counts["not run"] > 0:
		result = "not run"
	case counts["skip"] > 0:
		result = "skipped"
	default:
		result = "passes"
	}
	dash := func(all []string) string {
		if len(all) == 0 {
			return "–"
		}
		return strings.Join(all, "; ")
	}
	return dash(names), dash(versions), result, strings.Join(cells, ", ")
}
