package tidy

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "tandem"

// order lists the packages as the architecture's table does: a package imports
// only what stands above it. A package covers those below its path that are not
// listed themselves.
var order = []string{
	"internal/needs",
	"internal/testkit",
	"internal/outbox",
	"internal/ipsec",
	"internal/pki",
	"internal/mmsg",
	"internal/quiet",
	"internal/logqueue",
	"internal/timerslack",
	"internal/linkhealth",
	"internal/interop",
	"internal/config",
	"proto",
	"ike/message",
	"ike/keymat",
	"ike",
	"xfrm",
	"xfrm/esp",
	"xfrm/userspace",
	"xfrm/kernel",
	"xfrm/xfrmtest",
	"cluster/fsm",
	"cluster/revision",
	"cluster",
	"cluster/guardian",
	"cluster/raftauth",
	"cluster/gossip",
	"sync",
	"sync/stream",
	"internal/forward",
	"internal/bfd",
	"internal/bfd/bfdnet",
	"internal/routehealth",
	"internal/node",
	"internal/daemon",
	"internal/sim",
	"internal/lab",
	"cmd/tandem",
	"integration",
	"internal/tidy",
}

// pure packages take the time and bytes and return effects.
var pure = map[string]bool{
	"internal/ipsec": true, "internal/pki": true, "internal/config": true, "ike/message": true, "ike/keymat": true, "ike": true,
	"xfrm": true, "xfrm/esp": true, "cluster/fsm": true, "cluster/revision": true, "cluster": true, "sync": true, "internal/node": true,
	"internal/bfd": true, "internal/outbox": true, "internal/linkhealth": true,
}

// impure files of pure packages, each with its reason.
var impure = map[string]string{
	"internal/pki/issue.go": "makes certificates: files and fresh keys",
	"cluster/pki.go":        "makes and reads the cluster's certificates: files and fresh keys",
	"cluster/statedir.go":   "the note and the epochs on disk",
}

// banned in pure packages: what reads a clock, chance or the machine. An empty
// list of names bans the whole import.
var banned = map[string][]string{
	"time":          {"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker"},
	"math/rand":     {},
	"math/rand/v2":  {},
	"crypto/rand":   {},
	"os":            {},
	"os/exec":       {},
	"syscall":       {},
	"log":           {},
	"net":           {"Dial", "DialTimeout", "DialUDP", "DialTCP", "DialIP", "DialUnix", "Listen", "ListenUDP", "ListenTCP", "ListenIP", "ListenUnix", "ListenPacket", "Interfaces", "LookupHost", "LookupIP", "LookupAddr"},
	"net/http":      {},
	"log/slog":      {"Default", "SetDefault", "Debug", "Info", "Warn", "Error", "Log"},
	"path/filepath": {},
}

// longest is how many lines a file may have without a reason on its first line
// ("// Long because …").
const longest = 600

type source struct {
	path, pkg string // relative to the module; the listed package it belongs to
	ast       *ast.File
	set       *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	root := filepath.Join("..", "..")
	var all []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (strings.HasPrefix(name, ".") && name != ".." || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		all = append(all, source{path: filepath.ToSlash(rel), pkg: listed(filepath.ToSlash(filepath.Dir(rel))), ast: f, set: set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d Go files found: the walk went wrong", len(all))
	}
	return all
}

// listed is the entry of order that a folder belongs to, or "".
func listed(dir string) string {
	best := ""
	for _, p := range order {
		if (dir == p || strings.HasPrefix(dir, p+"/")) && len(p) > len(best) {
			best = p
		}
	}
	return best
}

func rank(pkg string) int {
	for i, p := range order {
		if p == pkg {
			return i
		}
	}
	return -1
}

func imports(f *ast.File) map[string]string { // path → local name
	out := map[string]string{}
	for _, i := range f.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		name := path[strings.LastIndex(path, "/")+1:]
		if strings.HasPrefix(name, "v") && len(name) == 2 {
			name = "rand"
		}
		if i.Name != nil {
			name = i.Name.Name
		}
		out[path] = name
	}
	return out
}

func TestImportOrder(t *testing.T) {
	for _, s := range sources(t) {
		if s.pkg == "" {
			t.Errorf("%s: its package stands in no row of the table (internal/tidy)", s.path)
			continue
		}
		if strings.HasSuffix(s.path, "_test.go") {
			continue // tests may look down: a core's test may use the lab
		}
		for path := range imports(s.ast) {
			if !strings.HasPrefix(path, module+"/") {
				continue
			}
			to := listed(strings.TrimPrefix(path, module+"/"))
			switch {
			case to == "":
				t.Errorf("%s imports %s, which stands in no row of the table", s.path, path)
			case to != s.pkg && rank(to) > rank(s.pkg):
				t.Errorf("%s: %s stands above %s and may not import it", s.path, s.pkg, to)
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, s := range sources(t) {
		if _, ok := impure[s.path]; ok {
			continue
		}
		if !pure[s.pkg] || strings.HasSuffix(s.path, "_test.go") || strings.HasSuffix(s.path, ".pb.go") {
			continue
		}
		for _, fault := range impurities(s.ast, s.set) {
			t.Errorf("%s: %s", s.path, fault)
		}
	}
}

// impurities lists what a file of a pure package may not do.
func impurities(f *ast.File, set *token.FileSet) (faults []string) {
	local := map[string][]string{} // local name → banned names
	for path, name := range imports(f) {
		if strings.HasPrefix(path, module+"/") {
			continue
		}
		if names, ok := banned[path]; ok {
			if len(names) == 0 {
				faults = append(faults, "imports "+path+", which a pure package may not")
				continue
			}
			local[name] = names
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			faults = append(faults, "line "+strconv.Itoa(set.Position(n.Pos()).Line)+": starts a goroutine")
		case *ast.SelectStmt:
			faults = append(faults, "line "+strconv.Itoa(set.Position(n.Pos()).Line)+": waits on channels")
		case *ast.SelectorExpr:
			if id, ok := n.X.(*ast.Ident); ok {
				for _, bad := range local[id.Name] {
					if n.Sel.Name == bad {
						faults = append(faults, "line "+strconv.Itoa(set.Position(n.Pos()).Line)+": uses "+id.Name+"."+bad)
					}
				}
			}
		}
		return true
	})
	return faults
}

func TestFileLength(t *testing.T) {
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, ".pb.go") {
			continue
		}
		f, err := os.Open(filepath.Join("..", "..", filepath.FromSlash(s.path)))
		if err != nil {
			t.Fatal(err)
		}
		lines, first := 0, ""
		for sc := bufio.NewScanner(f); sc.Scan(); lines++ {
			if lines == 0 {
				first = sc.Text()
			}
		}
		f.Close()
		if lines > longest && !strings.HasPrefix(first, "// Long because ") {
			t.Errorf("%s has %d lines, more than %d: split it, or say why on its first line (// Long because …)", s.path, lines, longest)
		}
	}
}

// The checks see what they are meant to see.
func TestChecksSeeFaults(t *testing.T) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "x.go", `package x
import (
	"math/rand/v2"
	"net"
	clock "time"
)
func f() { go g(); _ = clock.Now(); _, _ = net.Dial("udp", "x"); _ = rand.Int(); _ = clock.Second; select {} }
`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := impurities(f, set); len(got) != 5 {
		t.Errorf("found %d of 5 faults: %v", len(got), got)
	}
	if listed("ike/message/sub") != "ike/message" || listed("ike") != "ike" || listed("elsewhere") != "" {
		t.Error("packages are not found in the table")
	}
	if rank("ike") < rank("internal/config") || rank("cmd/tandem") < rank("internal/daemon") {
		t.Error("the table is upside down")
	}
}
