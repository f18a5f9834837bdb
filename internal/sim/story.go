package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tandem/internal/sim/trace"
)

// traceLimit is how many events the trace of one run keeps; background is forgotten
// first.
const traceLimit = 1 << 18

// Story is what WriteStory wrote.
type Story struct {
	Dir    string
	Files  []string // names in Dir
	Result *Result
}

// WriteStory repeats a run and writes into dir, which it makes: the schedule for
// people (schedule.txt) and for ReadSchedule (schedule.json), what happened line by
// line (trace.txt), and the sequence diagram of what led to the violation, or to the
// moment at when there is none (diagram.txt, diagram.svg). At 0 means the last
// fault of the schedule.
func WriteStory(dir string, s *Schedule, at time.Duration) (*Story, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	log := trace.NewLog(traceLimit)
	st := &Story{Dir: dir, Result: RunTraced(s, log)}
	if v := st.Result.Violations; len(v) > 0 {
		at = v[0].At
	} else if at == 0 {
		at = s.lastFault() + 2*time.Second
	}
	events := log.Events()
	view := trace.Around(events, at)
	js, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name  string
		write func(w io.Writer) error
	}{
		{"schedule.txt", func(w io.Writer) error { _, err := io.WriteString(w, s.String()); return err }},
		{"schedule.json", func(w io.Writer) error { _, err := w.Write(append(js, '\n')); return err }},
		{"trace.txt", log.WriteText},
		{"diagram.txt", func(w io.Writer) error { return trace.WriteDiagram(w, events, view) }},
		{"diagram.svg", func(w io.Writer) error { return trace.WriteSVG(w, events, view) }},
	} {
		var b bytes.Buffer
		if err := f.write(&b); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, f.name), b.Bytes(), 0o666); err != nil {
			return nil, err
		}
		st.Files = append(st.Files, f.name)
	}
	return st, nil
}

// lastFault is when the schedule breaks something last.
func (s *Schedule) lastFault() (at time.Duration) {
	for _, a := range s.Actions {
		if a.Verb.Fault() {
			at = max(at, a.At)
		}
	}
	return at
}

// ReadSchedule reads what WriteStory wrote to schedule.json.
func ReadSchedule(file string) (*Schedule, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	s := &Schedule{}
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("%s is not a schedule: %w", file, err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	s.order()
	return s, nil
}

// check refuses what no run can make sense of.
func (s *Schedule) check() error {
	switch n := len(s.Setup.Clients); {
	case n < 1 || n > 100:
		return fmt.Errorf("a schedule needs 1 to 100 clients, not %d", n)
	case s.Length <= 0:
		return fmt.Errorf("its length %v is not positive", s.Length)
	case s.Setup.HBInterval < 10*time.Millisecond || s.Setup.Threshold < 1 || s.Setup.MTU < 576:
		return fmt.Errorf("heartbeats every %v with threshold %d, or MTU %d, are out of range", s.Setup.HBInterval, s.Setup.Threshold, s.Setup.MTU)
	case s.Farm != nil:
		return s.checkFarm()
	case len(s.Setup.VClusters) > 30 || s.Setup.Faces != nil && len(s.Setup.VClusters) > 0:
		return fmt.Errorf("a pair has up to 30 virtual clusters, or faces another one")
	case s.Setup.Faces != nil && slices.ContainsFunc(s.Setup.Clients, func(c Client) bool { return c.Dialup || c.NAT }):
		return fmt.Errorf("pairs that face each other have static tunnels without NAT")
	}
	return nil
}
