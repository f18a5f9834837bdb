package interop

import (
	"strings"
	"testing"
)

func TestRender(t *testing.T) {
	o := NewOutcome()
	for _, e := range [][4]string{
		{"tandem/x", "TestA/one part", "pass", ""}, {"tandem/x", "TestA/one_part", "output", "    a_test.go:1: peer: strongSwan: 5.9, kernel\n"},
		{"tandem/x", "TestA/one_part", "pass", ""}, {"tandem/x", "TestB/far/away", "output", "peer: libreswan: 4\n"},
		{"tandem/x", "TestB/far/away", "pass", ""}, {"tandem/x", "TestB/far/wrong", "fail", ""}, {"tandem/x", "TestC", "skip", ""},
	} {
		o.Add(e[0], e[1], e[2], e[3])
	}
	got := Render([]Section{{"S", []Row{{Feature: "a", Tests: "x TestA/one part"}, {Feature: "b", Tests: "x TestB/far"}, {Feature: "c", Tests: "x TestC", Own: "why"},
		{Feature: "d"}, {Feature: "e", Tests: "x TestA/one part; y TestE", Peer: "scripted"}}}}, o)
	for _, want := range []string{
		"| a | strongSwan | 5.9, kernel | passes | `x TestA/one_part` |",
		"| b | libreswan | 4 | fails | `x TestB/far` |",
		"| c | our own engine: why | – | skipped | `x TestC` |",
		"| d | – | – | no test | no test |",
		"| e | strongSwan; scripted | 5.9, kernel | not run | `x TestA/one_part`, `y TestE` |",
		"5 rows; 1 without a test; 1 with our own engine as the peer.",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in:\n%s", want, got)
		}
	}
}
