package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"tandem/internal/bench"
	"tandem/internal/lab"
)

const iperfPort = 5201

// servers are the iperf3 servers that run, by the address at which they listen.
type servers struct {
	t   *lab.Topology
	all map[string]*lab.Process
}

// ensure starts an iperf3 server at an address of a node, unless one runs there.
func (s *servers) ensure(ctx context.Context, node, addr string) error {
	if p := s.all[node+addr]; p != nil && p.Running() {
		return nil
	}
	p, err := s.t.Start(node, "iperf3-"+node+"-"+addr, []string{"iperf3", "-s", "-B", addr, "-p", strconv.Itoa(iperfPort)}, nil)
	if err != nil {
		return err
	}
	s.all[node+addr] = p
	return poll(ctx, pollShort, func() error { return listening(p.PID, iperfPort) })
}

// listening says whether a TCP port is listened at in the namespace of a process.
func listening(pid, port int) error {
	want := fmt.Sprintf(":%04X", port)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], want) && f[3] == "0A" {
			return nil
		}
	}
	return fmt.Errorf("nobody listens at port %d", port)
}

var errNothing = errors.New("nothing came through")

// transfer is what an iperf3 client tells.
type transfer struct{ Bytes, Seconds float64 }

type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bytes   float64 `json:"bytes"`
			Seconds float64 `json:"seconds"`
		} `json:"sum_received"`
	} `json:"end"`
}

// tcp sends for some seconds over parallel streams; reverse: from b to a. limit bounds
// all streams together in bits per second; 0: no limit.
func (r *run) tcp(ctx context.Context, from, local, to, remote string, streams, seconds int, reverse bool, limit float64) (transfer, error) {
	if err := r.servers.ensure(ctx, to, remote); err != nil {
		return transfer{}, err
	}
	argv := []string{"iperf3", "-c", remote, "-B", local, "-p", strconv.Itoa(iperfPort), "-t", strconv.Itoa(seconds), "-P", strconv.Itoa(streams), "-J"}
	if reverse {
		argv = append(argv, "-R")
	}
	if limit > 0 {
		argv = append(argv, "-b", strconv.FormatFloat(limit/float64(streams), 'f', 0, 64))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+30*time.Second)
	defer cancel()
	for try := 0; ; try++ {
		out, err := command(ctx, r.t, from, argv...)
		var j iperfReport
		if e := json.Unmarshal([]byte(out), &j); err == nil {
			err = e
		}
		if err == nil && j.Error == "" && j.End.Received.Bytes > 0 {
			return transfer{j.End.Received.Bytes, j.End.Received.Seconds}, nil
		}
		if try == 5 || ctx.Err() != nil {
			return transfer{}, fmt.Errorf("iperf3 from %s to %s received %.0f bytes: %s: %w", local, remote, j.End.Received.Bytes, j.Error, cmp.Or(err, ctx.Err(), errNothing))
		}
		// The server ends a session a moment after its client.
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tcpSample measures both directions, one after the other.
func (r *run) tcpSample(ctx context.Context, p *program, streams int) (s bench.Sample, err error) {
	m, err := begin(p)
	if err != nil {
		return s, err
	}
	var both transfer
	for _, reverse := range []bool{false, true} {
		t, err := r.tcp(ctx, p.a, p.innerA(), p.b, p.innerB(), streams, r.o.seconds, reverse, 0)
		if err != nil {
			return s, fmt.Errorf("%s: %w", p.Name, err)
		}
		both.Bytes += t.Bytes
		both.Seconds += t.Seconds
		if rate := 8 * t.Bytes / t.Seconds; reverse {
			s.In = rate
		} else {
			s.Out = rate
		}
	}
	s.Rate = 8 * both.Bytes / both.Seconds
	s.CPU, s.Total, err = m.per(both.Bytes / 1e9)
	return s, err
}

// meter takes the processors' time between two moments.
type meter struct {
	p               *program
	gateways, total time.Duration
}

func begin(p *program) (m meter, err error) {
	m.p = p
	if m.gateways, err = p.computed(); err != nil {
		return m, err
	}
	m.total, err = bench.MachineTime()
	return m, err
}

// per divides what was computed since by units of work.
func (m meter) per(units float64) (gateways, total float64, err error) {
	now, err := begin(m.p)
	if err != nil || units <= 0 {
		return 0, 0, cmp.Or(err, errNothing)
	}
	return (now.gateways - m.gateways).Seconds() / units, (now.total - m.total).Seconds() / units, nil
}

// The sender offers packets at each of these rates in the first round, and at the best of
// them from then on: a program that drops its own work under overload is not judged by
// that alone.
var offered = []int{50_000, 150_000, 400_000}

const (
	packetBytes = 64 // of UDP payload
	packetsPort = 7007
	packetsFor  = 600 * time.Millisecond // at each rate and in each direction
)

// packetsSample measures packets of 64 bytes delivered, both directions.
func (r *run) packetsSample(ctx context.Context, p *program, layout string) (best bench.Sample, err error) {
	key := p.Name + layout
	rates := offered
	if rate := r.bestRate[key]; rate > 0 {
		rates = []int{rate}
	}
	for _, rate := range rates {
		m, err := begin(p)
		if err != nil {
			return best, err
		}
		var s bench.Sample
		if s.Out, err = r.packets(ctx, p.a, p.innerA(), p.b, p.innerB(), rate); err != nil {
			return best, err
		}
		if s.In, err = r.packets(ctx, p.b, p.innerB(), p.a, p.innerA(), rate); err != nil {
			return best, err
		}
		s.Rate = (s.Out + s.In) / 2
		if s.CPU, s.Total, err = m.per((s.Out + s.In) * packetsFor.Seconds() / 1e6); err != nil {
			return best, fmt.Errorf("%s: %w", p.Name, err)
		}
		if s.Rate > best.Rate {
			best, r.bestRate[key] = s, rate
		}
	}
	return best, nil
}

// packets returns how many packets a second were delivered of those offered.
func (r *run) packets(ctx context.Context, from, local, to, remote string, rate int) (float64, error) {
	r.stream++
	id := strconv.Itoa(r.stream)
	at := fmt.Sprintf("%s:%d", remote, packetsPort)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	type count struct {
		text string
		err  error
	}
	counted := make(chan count, 1)
	ready, err := os.CreateTemp(r.t.Dir, "ready")
	if err != nil {
		return 0, err
	}
	ready.Close()
	go func() {
		text, err := command(ctx, r.t, to, r.self, "count", at, id, ready.Name())
		counted <- count{text, err}
	}()
	// The receiver removes the file once it listens.
	if err := poll(ctx, pollShort, func() error {
		if _, err := os.Stat(ready.Name()); err == nil {
			return errors.New("the receiver does not listen")
		}
		return nil
	}); err != nil {
		return 0, err
	}
	if _, err := command(ctx, r.t, from, r.self, "offer", local, at, id, strconv.Itoa(rate), packetsFor.String()); err != nil {
		return 0, err
	}
	c := <-counted
	if c.err != nil {
		return 0, c.err
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(c.text), 64)
	return n / packetsFor.Seconds(), err
}
