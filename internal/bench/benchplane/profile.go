package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// profiles records where both sides' processors spend their time while one TCP stream
// goes each way: DIR/out-pair.pprof, out-peer.pprof, in-pair.pprof, in-peer.pprof. The
// Tandems are then a test build that can record profiles, so no sample is taken of it.
func (r *run) profiles(ctx context.Context) error {
	if r.tandems == nil {
		return nil
	}
	const seconds = 5
	for i, direction := range []string{"out", "in"} {
		failed := make(chan error, 2)
		for node, side := range map[string]string{activeNode: "pair", peerNode: "peer"} {
			file := filepath.Join(r.o.profile, direction+"-"+side+".pprof")
			go func() {
				out, err := exec.CommandContext(ctx, r.o.tandem, "diagnose", "debug", "profile", "cpu", file, strconv.Itoa(seconds),
					"--socket", filepath.Join(r.t.Dir, node, "admin.sock")).CombinedOutput()
				if err != nil {
					err = fmt.Errorf("%s: %w: %s", file, err, out)
				}
				failed <- err
			}()
		}
		p := r.subject()
		t, err := r.tcp(ctx, p.a, p.innerA(), p.b, p.innerB(), 1, seconds, i == 1, 0)
		for range 2 {
			if e := <-failed; e != nil && err == nil {
				err = e
			}
		}
		if err != nil {
			return err
		}
		r.say("profiles of %.2f Gbit/s %s in %s", 8*t.Bytes/t.Seconds/1e9, direction, r.o.profile)
	}
	return nil
}

func (r *run) subject() *program {
	for _, p := range r.programs {
		if p.Name == tandemName {
			return p
		}
	}
	return r.programs[0]
}

// profiled measures nothing: it runs the Tandems alone, of a build that can profile.
func profiled(ctx context.Context, o options) error {
	bin, err := filepath.Abs(filepath.Join("bin", "bench", "tandem-profile"))
	if err != nil {
		return err
	}
	if o.profile, err = filepath.Abs(o.profile); err != nil {
		return err
	}
	if err := os.MkdirAll(o.profile, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "breakpoints", "-o", bin, "./cmd/tandem")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("a build that can profile: %w: %s", err, out)
	}
	o.tandem, o.programs, o.layouts, o.rounds, o.latencySeconds = bin, []string{tandemName}, nil, 0, 0
	_, err = measure(ctx, o)
	return err
}
