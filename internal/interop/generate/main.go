// Command generate runs the tests of internal/interop's rows and writes docs/interop.md.
// It ends with status 1 when one of them fails. With files as arguments it takes what
// `go test -json` wrote into them and runs nothing.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"tandem/internal/interop"
)

func main() {
	out := flag.String("o", "docs/interop.md", "the file to write")
	short := flag.Bool("short", true, "tests in their short form")
	flag.Parse()
	if err := run(*out, *short, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(out string, short bool, files []string) error {
	o := interop.NewOutcome()
	var failed error
	if len(files) > 0 {
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			err = read(f, o)
			f.Close()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	} else {
		failed = test(o, short)
	}
	if err := os.WriteFile(out, []byte(interop.Render(interop.Sections, o)), 0o644); err != nil {
		return err
	}
	return failed
}

// test runs the rows' tests, package by package.
func test(o *interop.Outcome, short bool) (failed error) {
	names := map[string][]string{}
	for _, s := range interop.Sections {
		for _, r := range s.Rows {
			for _, t := range r.List() {
				if !slices.Contains(names[t.Package], t.Name) {
					names[t.Package] = append(names[t.Package], t.Name)
				}
			}
		}
	}
	var packages []string
	for p := range names {
		packages = append(packages, p)
	}
	slices.Sort(packages)
	for _, p := range packages {
		args := []string{"test", "-json", "-count", "1", "-timeout", "60m", "-run", "^(" + strings.Join(names[p], "|") + ")$"}
		if short {
			args = append(args, "-short")
		}
		cmd := exec.Command("go", append(args, "./"+p)...)
		cmd.Stderr = os.Stderr
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: %d tests\n", p, len(names[p]))
		if err := cmd.Start(); err != nil {
			return err
		}
		err = read(pipe, o)
		if wait := cmd.Wait(); wait != nil {
			failed = fmt.Errorf("%s: tests failed", p)
		}
		if err != nil {
			return err
		}
	}
	return failed
}

// read takes the events of `go test -json`; other lines come from the build.
func read(r io.Reader, o *interop.Outcome) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e struct{ Action, Package, Test, Output string }
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			continue
		}
		o.Add(e.Package, e.Test, e.Action, e.Output)
		if e.Action == "fail" && e.Test != "" {
			fmt.Fprintf(os.Stderr, "fails: %s %s\n", e.Package, e.Test)
		}
	}
	return sc.Err()
}
