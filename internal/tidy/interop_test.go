package tidy

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"tandem/internal/interop"
)

// TestInteropNamesTests: every test of a row of docs/interop.md exists, no more than five
// rows have our own engine as their peer, and the file was written from the present rows.
func TestInteropNamesTests(t *testing.T) {
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
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "interop.md"))
	if err != nil {
		t.Fatal(err)
	}
	own := 0
	for _, s := range interop.Sections {
		if !strings.Contains(string(text), "\n## "+s.Title+"\n") {
			t.Errorf("docs/interop.md has no section %s: run make interop", s.Title)
		}
		for _, r := range s.Rows {
			for _, x := range r.List() {
				if !all[x.Package+" "+x.Name] {
					t.Errorf("%s: there is no %s %s", r.Feature, x.Package, x.Name)
				}
			}
			if r.Own != "" {
				own++
			}
			if !strings.Contains(string(text), "\n| "+r.Feature+" | ") {
				t.Errorf("docs/interop.md has no row %q: run make interop", r.Feature)
			}
		}
	}
	if own > 5 {
		t.Errorf("%d rows have our own engine as their peer", own)
	}
}
