// Package needs says what a test needs of the machine. Where that is missing the test
// is skipped with the reason; in CI (CI=true), where all of it must be there, it fails.
package needs

import (
	"os"
	"os/exec"
	"testing"
)

// Root: the test makes network namespaces or interfaces.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "network namespaces need root")
	}
}

// Program: the test runs these.
func Program(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			Missing(t, n+" is not installed")
		}
	}
}

// File: the test opens these, devices most likely.
func File(t testing.TB, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			Missing(t, err.Error())
		}
	}
}

// Missing ends a test for want of something.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal("required in CI: " + what)
	}
	t.Skip(what)
}
