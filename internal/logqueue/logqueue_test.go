package logqueue

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// TestNobodyReads: a pipe that is full holds nobody up; what was lost is said when it is
// read again, and the rest is in order.
func TestNobodyReads(t *testing.T) {
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := New(out, 8, func(n uint64) { fmt.Fprintf(out, "lost %d\n", n) })
	line := strings.Repeat("x", 4095)
	const lines = 100 // of 4 KB; a pipe holds 64 KB
	for i := range lines {
		if n, err := fmt.Fprintf(w, "%04d%s\n", i, line); n != len(line)+5 || err != nil {
			t.Fatal(n, err)
		}
	}
	go func() {
		w.Close()
		out.Close()
	}()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	written, lost, last := 0, 0, -1
	for l := range strings.Lines(string(all)) {
		var n int
		if _, err := fmt.Sscanf(l, "lost %d", &n); err == nil {
			lost += n
			continue
		}
		if _, err := fmt.Sscanf(l[:4], "%d", &n); err != nil || n <= last {
			t.Fatalf("line %.10q after %d", l, last)
		}
		written, last = written+1, n
	}
	if lost == 0 || written+lost != lines {
		t.Errorf("%d lines written, %d said to be lost, of %d", written, lost, lines)
	}
	if _, err := w.Write([]byte("after the end\n")); err == nil {
		t.Error("a line after Close was not written at once")
	}
}
