package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Scenario is a file of steps and bounds; examples/pair/README.md describes the
// language.
type Scenario struct {
	Name, About string

	// What the client does by itself; 0: it never rekeys.
	ClientChildRekey, ClientIKERekey time.Duration
	// What the lab tells the active gateway to do; 0: nothing.
	GatewayChildRekey, GatewayIKERekey time.Duration

	Probe time.Duration // interval of the probes
	// Sparse of a farm: only each Sparse-th tunnel is probed that often, and judged by it;
	// the others so many times less. 0: all alike.
	Sparse int
	TCP    int // rate of the transfer, bytes a second

	Farm FarmSetup // of a farm's scenario

	// RekeyStep of virtual clusters: how often each tunnel is rekeyed, of everything in turn.
	RekeyStep time.Duration

	Steps  []Step
	Bounds []Bound
}

// Step is one line of a scenario's steps; repeat has a body.
type Step struct {
	Line int
	Verb string
	Args []string
	Body []Step
}

// LoadScenario reads dir/scenarios/NAME.lab.
func LoadScenario(dir, name string) (*Scenario, error) { return loadScenario(dir, name, ParseScenario) }

func loadScenario(dir, name string, parse func(name, file, text string) (*Scenario, error)) (*Scenario, error) {
	path := filepath.Join(dir, "scenarios", name+".lab")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		names, _ := ScenarioNames(dir)
		if len(names) == 0 {
			return nil, fmt.Errorf("%w: %s is no folder of an example: it has no scenarios (scenarios/NAME.lab)", ErrUsage, dir)
		}
		return nil, fmt.Errorf("%w: %s has no scenario %q; it has: %s", ErrUsage, dir, name, strings.Join(names, ", "))
	}
	if err != nil {
		return nil, err
	}
	return parse(name, path, string(text))
}

// ScenarioNames lists an example's scenarios.
func ScenarioNames(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "scenarios", "*.lab"))
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".lab"))
	}
	sort.Strings(names)
	return names, err
}

type scenarioParser struct {
	file  string
	s     *Scenario
	errs  []error
	words map[string]grammar // of steps
	heads string             // of lines outside the steps
	model *Result            // has every figure that a bound may name
}

func (p *scenarioParser) fault(line int, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s:%d: %s", p.file, line, fmt.Sprintf(format, args...)))
}

// grammar says how a step is written.
type grammar struct {
	usage string
	check func(args []string) error
}

// ParseScenario reads a scenario of the pair. It returns all faults of the text at
// once.
func ParseScenario(name, file, text string) (*Scenario, error) {
	return (&scenarioParser{
		file: file, s: &Scenario{Name: name, Probe: 5 * time.Millisecond, TCP: 250_000},
		words: grammarOf(verbs), heads: "about, client, gateway, traffic, steps, bound", model: &Result{},
	}).parse(text)
}

func (p *scenarioParser) parse(text string) (*Scenario, error) {
	var steps [][]Step // open blocks, outermost first
	var opened []int
	sc := bufio.NewScanner(strings.NewReader(text))
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch {
		case f[0] == "end":
			if len(steps) == 0 || len(f) > 1 {
				p.fault(n, "end closes steps or repeat and stands alone")
				continue
			}
			body := steps[len(steps)-1]
			steps, opened = steps[:len(steps)-1], opened[:len(opened)-1]
			if len(steps) == 0 {
				p.s.Steps = append(p.s.Steps, body...)
				continue
			}
			outer := steps[len(steps)-1]
			outer[len(outer)-1].Body = body
		case len(steps) > 0:
			if len(steps) > 4 {
				p.fault(n, "repeat is nested too deeply")
				continue
			}
			p.step(n, f)
			last := len(steps) - 1
			steps[last] = append(steps[last], Step{Line: n, Verb: f[0], Args: f[1:]})
			if f[0] == "repeat" {
				steps, opened = append(steps, nil), append(opened, n)
			}
		case f[0] == "steps":
			steps, opened = append(steps, nil), append(opened, n)
		default:
			p.head(n, f, strings.TrimSpace(line))
		}
	}
	for _, n := range opened {
		p.fault(n, "this block has no end")
	}
	if len(p.s.Steps) == 0 && len(p.errs) == 0 {
		p.fault(1, "there are no steps")
	}
	return p.s, errors.Join(p.errs...)
}

// step checks a step's words, so that a long run does not fail at its last line.
func (p *scenarioParser) step(n int, f []string) {
	v, ok := p.words[f[0]]
	if !ok {
		known := make([]string, 0, len(p.words))
		for k := range p.words {
			known = append(known, k)
		}
		sort.Strings(known)
		p.fault(n, "unknown step %q; known are %s", f[0], strings.Join(known, ", "))
		return
	}
	if err := v.check(f[1:]); err != nil {
		p.fault(n, "%s: %v (expected: %s %s)", f[0], err, f[0], v.usage)
	}
}

func (p *scenarioParser) head(n int, f []string, line string) {
	if !slices.Contains(strings.Split(p.heads, ", "), f[0]) {
		p.fault(n, "unknown word %q; known are %s", f[0], p.heads)
		return
	}
	switch f[0] {
	case "about":
		p.s.About = strings.TrimSpace(strings.TrimPrefix(line, "about"))
	case "bound":
		b, err := parseBound(f[1:], p.model)
		if err != nil {
			p.fault(n, "%v", err)
			return
		}
		p.s.Bounds = append(p.s.Bounds, b)
	default:
		for _, w := range f[1:] {
			key, value, _ := strings.Cut(w, "=")
			if err := p.set(f[0]+" "+key, value); err != nil {
				p.fault(n, "%s: %v", w, err)
			}
		}
	}
}

func (p *scenarioParser) set(key, value string) error {
	durations := map[string]*time.Duration{
		"client child-rekey": &p.s.ClientChildRekey, "client ike-rekey": &p.s.ClientIKERekey,
		"gateway child-rekey": &p.s.GatewayChildRekey, "gateway ike-rekey": &p.s.GatewayIKERekey,
		"traffic probe": &p.s.Probe, "rekeys every": &p.s.RekeyStep,
	}
	if d, ok := durations[key]; ok {
		if value == "never" && key != "traffic probe" && key != "rekeys every" {
			*d = 0
			return nil
		}
		v, err := positive(value)
		*d = v
		return err
	}
	if strings.HasPrefix(key, "farm ") {
		return p.s.Farm.set(strings.TrimPrefix(key, "farm "), value)
	}
	if key == "traffic sparse" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 2 || n > 20 {
			return errors.New("sparse is a number from 2 to 20")
		}
		p.s.Sparse = n
		return nil
	}
	if key == "traffic tcp" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > 100_000_000 {
			return errors.New("expected bytes a second, 0 to 100000000")
		}
		p.s.TCP = n
		return nil
	}
	return errors.New("unknown setting")
}

// positive is a duration above zero, up to an hour.
func positive(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 || d > time.Hour {
		return 0, fmt.Errorf("%q is no duration between 1ns and 1h", s)
	}
	return d, nil
}
