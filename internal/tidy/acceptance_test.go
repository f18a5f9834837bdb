package tidy

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// named is how docs/acceptance.md names a test: package, then function.
var named = regexp.MustCompile("`([a-z/]+) ((?:Test|Fuzz|Benchmark)[A-Za-z0-9]*)`")

// TestAcceptanceNamesTests: every test that docs/acceptance.md names exists, and
// every row that claims something names one.
func TestAcceptanceNamesTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "acceptance.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, s := range sources(t) {
		if !strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				all[path.Dir(s.path)+" "+f.Name.Name] = true
			}
		}
	}
	rows, faults := acceptanceFaults(string(text), all)
	for _, f := range faults {
		t.Error(f)
	}
	if rows < 40 {
		t.Errorf("only %d rows were read", rows)
	}
}

// acceptanceFaults reads the tables' rows and says what is wrong with them.
func acceptanceFaults(text string, exists map[string]bool) (rows int, faults []string) {
	header, columns := true, ""
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "|") {
			header = true
			continue
		}
		if header || strings.HasPrefix(line, "|---") {
			if header {
				columns = line
			}
			header = false
			continue
		}
		if !strings.Contains(columns, "| Test |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		tests := named.FindAllStringSubmatch(line, -1)
		if result := cells[len(cells)-1]; len(tests) == 0 != strings.HasPrefix(result, "not yet") {
			faults = append(faults, "names no test and claims something, or the reverse: "+line)
		}
		for _, m := range tests {
			if !exists[m[1]+" "+m[2]] {
				faults = append(faults, "there is no "+m[1]+" "+m[2]+": "+line)
			}
		}
	}
	return rows, faults
}

func TestAcceptanceFaultsAreSeen(t *testing.T) {
	text := "| Case | Test | Result |\n|---|---|---|\n| a | `x TestA` | passes |\n| b | `x TestB` | passes |\n| c | – | passes |\n| d | – | not yet |\n\n| Figure | Value |\n|---|---|\n| e | 1 |\n"
	rows, faults := acceptanceFaults(text, map[string]bool{"x TestA": true})
	if rows != 4 || len(faults) != 2 {
		t.Errorf("%d rows, %q", rows, faults)
	}
}
