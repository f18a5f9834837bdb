package config

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the keyword tables of docs/configuration.md")

const (
	referenceFile  = "../../docs/configuration.md"
	referenceBegin = "<!-- reference -->\n"
	referenceEnd   = "<!-- /reference -->\n"
)

// The tables of docs/configuration.md are those of the code.
func TestReference(t *testing.T) {
	text := readFile(t, referenceFile)
	head, rest, ok := strings.Cut(text, referenceBegin)
	old, tail, ok2 := strings.Cut(rest, referenceEnd)
	if !ok || !ok2 {
		t.Fatal("the marks around the tables are gone")
	}
	want := "\n" + Reference() + "\n"
	if *update {
		if err := os.WriteFile(referenceFile, []byte(head+referenceBegin+want+referenceEnd+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, old); d != "" {
		t.Errorf("docs/configuration.md does not say what the code does; run this test with -update (-want +got):\n%s", d)
	}
}

// Every keyword has its line, every default is taken by its own keyword, and no
// keyword is both known and ignored.
func TestKeywordTables(t *testing.T) {
	if len(blocks) == 0 {
		t.Fatal("no blocks")
	}
	for _, b := range blocks {
		for _, r := range b.ref() {
			seen := map[string]bool{}
			if r.help == "" {
				t.Errorf("%s: no line about the block", r.path)
			}
			for _, row := range r.rows {
				if row.help == "" || row.allowed == "" || strings.Contains(row.help, "\n") {
					t.Errorf("%s %s: no line about the keyword", r.path, row.key)
				}
				if seen[row.key] {
					t.Errorf("%s %s: twice", r.path, row.key)
				}
				seen[row.key] = true
			}
			patterns := map[string]bool{}
			for _, ig := range r.ignored {
				if seen[ig.key] || patterns[ig.key] {
					t.Errorf("%s %s: known and ignored, or ignored twice", r.path, ig.key)
				}
				patterns[ig.key] = true
			}
		}
	}
}
