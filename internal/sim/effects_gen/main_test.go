package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCurrent: the committed file is what the source gives.
func TestCurrent(t *testing.T) {
	want, err := generate(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(filepath.Join("..", "effects_gen.go"))
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != string(want) {
		t.Errorf("effects_gen.go is not what internal/node emits; run go generate ./internal/sim\nhave\n%s\nwant\n%s", have, want)
	}
}

// module writes a module with one core of two effects and the node given.
func module(t *testing.T, node string) string {
	root := t.TempDir()
	core := "package %s\ntype Effect interface{ effect() }\ntype Kept struct{}\ntype Passed struct{}\nfunc (Kept) effect() {}\nfunc (*Passed) effect() {}\n"
	for dir, text := range map[string]string{
		"cluster": strings.Replace(core, "%s", "cluster", 1), "ike": strings.Replace(core, "%s", "ike", 1),
		"sync": strings.Replace(core, "%s", "statesync", 1), nodeFolder: node, "internal/sim": simulation,
	} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "x.go"), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const simulation = `package sim
func f(p *pair, r *Result) {
	p.alarm("fire", "it burns", true)
	p.alarm("fire", "", false)
	r.States["calm"]++
	r.States["calm"]++
	_ = r.States["never counted"]
}
`

const before = `package node
import ("tandem/cluster"; "tandem/ike"; statesync "tandem/sync")
type Own struct{}
type Two struct{}
type Never struct{}
type Node struct{ list []Two }
func (n *Node) emit(e any) {}
`

func TestDerivation(t *testing.T) {
	text, err := generate(module(t, before+`
func (n *Node) f(e ike.Effect) {
	switch e := e.(type) {
	case ike.Kept:
		n.emit(Own{})
	default:
		n.emit(e)
	}
}
func (n *Node) g(e statesync.Effect) {
	switch e.(type) {
	case statesync.Passed:
	}
	for _, x := range n.list {
		n.emit(x)
	}
	n.emit(cluster.Kept{})
}
`))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "stateNames = []string{\n\t\"calm\",\n}") || strings.Contains(string(text), "never counted") {
		t.Errorf("the states are not the ones counted:\n%s", text)
	}
	text, _, _ = bytes.Cut(text, []byte("var alarmNames"))
	var got []string
	for _, l := range strings.Split(string(text), "\n") {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, `"`) {
			got = append(got, strings.Trim(l, `",`))
		}
	}
	if want := []string{"cluster.Kept", "ike.Passed", "node.Own", "node.Two"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestDoubtIsAnError: what the source does not tell is not left out in silence.
func TestDoubtIsAnError(t *testing.T) {
	_, err := generate(module(t, before+"func (n *Node) f(x any) { n.emit(x) }\n"))
	if err == nil || !strings.Contains(err.Error(), "cannot tell") {
		t.Errorf("got %v", err)
	}
}
