package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tandem/internal/bench"
)

// ping takes round-trip times, 1000 a second, in milliseconds.
func (r *run) ping(ctx context.Context, node, local, remote string, seconds int) (rtt []float64, sent int, err error) {
	sent = 1000 * seconds
	ctx, cancel := context.WithTimeout(ctx, time.Duration(2*seconds+10)*time.Second)
	defer cancel()
	out, err := command(ctx, r.t, node, "ping", "-n", "-i", "0.001", "-c", strconv.Itoa(sent), "-W", "1", "-w", strconv.Itoa(2*seconds), "-I", local, remote)
	rtt = roundTrips(out)
	if len(rtt) > 0 { // it fails when any is lost
		err = nil
	}
	return rtt, max(sentOf(out), len(rtt)), err
}

// roundTrips reads the times out of ping's lines.
func roundTrips(out string) (all []float64) {
	for line := range strings.Lines(out) {
		_, rest, ok := strings.Cut(line, " time=")
		if !ok {
			continue
		}
		ms, _, _ := strings.Cut(rest, " ")
		if f, err := strconv.ParseFloat(strings.TrimSpace(ms), 64); err == nil {
			all = append(all, f)
		}
	}
	return all
}

// sentOf reads how many were sent out of ping's summary, 0 if there is none.
func sentOf(out string) int {
	head, _, ok := strings.Cut(out, " packets transmitted")
	if !ok {
		return 0
	}
	n, _ := strconv.Atoi(head[strings.LastIndexByte(head, '\n')+1:])
	return n
}

// latency pings through a program at half of what it can carry, and beside it over its
// bare cable under the same load.
func (r *run) latency(ctx context.Context, p *program, layout string, load float64) (l bench.Latency, err error) {
	l = bench.Latency{Program: p.Name, Layout: layout, Load: load}
	through, sent, err := r.loaded(ctx, p, p.innerA(), p.innerB(), load)
	if err != nil {
		return l, fmt.Errorf("%s: %w", p.Name, err)
	}
	bare, _, err := r.loaded(ctx, p, wanA, wanB, load)
	if err != nil {
		return l, fmt.Errorf("%s, bare cable: %w", p.Name, err)
	}
	l.Probes, l.Lost = sent, sent-len(through)
	l.P50, l.P99 = bench.Percentile(through, 0.5), bench.Percentile(through, 0.99)
	l.BareP50, l.BareP99 = bench.Percentile(bare, 0.5), bench.Percentile(bare, 0.99)
	return l, nil
}

// loaded pings between two addresses while one TCP stream goes the same way.
func (r *run) loaded(ctx context.Context, p *program, local, remote string, load float64) (rtt []float64, sent int, err error) {
	const before = 1 // seconds until the stream is at its rate
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := r.tcp(ctx, p.a, local, p.b, remote, 1, before+r.o.latencySeconds+2, false, load)
		done <- err
	}()
	select {
	case <-ctx.Done():
		<-done
		return nil, 0, ctx.Err()
	case err := <-done:
		return nil, 0, errors.Join(errors.New("the load ended"), err)
	case <-time.After(before * time.Second):
	}
	rtt, sent, err = r.ping(ctx, p.a, local, remote, r.o.latencySeconds)
	return rtt, sent, errors.Join(err, <-done)
}
