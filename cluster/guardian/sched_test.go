package guardian

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// collectorMain is what a guardian does with its garbage, without the rest.
func collectorMain() int {
	c := newCollector()
	if err := setFIFO(0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var kept [][]byte
	for range 400 {
		for i := range 4000 {
			if b := make([]byte, 64+i%512); i%64 == 0 {
				kept = append(kept, b)
			}
		}
		kept = kept[max(0, len(kept)-1000):]
		sleep(nil, 100*time.Microsecond)
		c.due()
		c.run()
	}
	return 0
}

// As many guardians as there are processors collect garbage at once, and none waits for good
// for a thread that another one keeps from running.
func TestCollectorsOnEveryProcessor(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n := runtime.NumCPU()
	all, out := make([]*exec.Cmd, n), make([]bytes.Buffer, n)
	for i := range all {
		all[i] = exec.CommandContext(ctx, "/proc/self/exe")
		all[i].Env = append(os.Environ(), roleEnv+"=collector")
		all[i].Stdout, all[i].Stderr = &out[i], &out[i]
		if err := all[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range all {
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %s", err, out[i].String())
		}
	}
}

// A loop that always finds something to read sleeps nevertheless, long before fifoMost.
func TestWakefulness(t *testing.T) {
	now := time.Unix(1000, 0)
	w := wakefulness{slept: now}
	rests := 0
	for range 300 { // 3 s
		now = now.Add(10 * time.Millisecond)
		if w.tooLong(now, true) {
			rests++
		}
	}
	if rests != 30 {
		t.Errorf("%d rests in 3 s of events", rests)
	}
	for i := range 300 {
		now = now.Add(10 * time.Millisecond)
		if w.tooLong(now, i%2 == 0) {
			t.Fatal("a rest although it sleeps")
		}
	}
}
