package sim

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// Coverage adds up which crash points runs passed, and at which of them a daemon
// was killed.
type Coverage struct {
	Moments map[Cell]int
	Crashes map[Cell]int
	Aimed   map[Cell]int    // of Crashes, those of Schedule.Crash
	seen    map[Cell]uint64 // the lowest seed that passed the cell
}

func newCoverage() *Coverage {
	return &Coverage{map[Cell]int{}, map[Cell]int{}, map[Cell]int{}, map[Cell]uint64{}}
}

// add counts a run. What a run with a crash of its own passed after it is not
// counted: no seed leads there.
func (c *Coverage) add(s *Schedule, r *Result) {
	addTo(c.Crashes, r.Crashes)
	if s.Crash.Nth > 0 {
		if n := r.Crashes[s.Crash.Cell]; n > 0 {
			c.Aimed[s.Crash.Cell]++
		}
		return
	}
	seed := s.Seed
	addTo(c.Moments, r.Moments)
	for k := range r.Moments {
		if old, ok := c.seen[k]; !ok || seed < old {
			c.seen[k] = seed
		}
	}
}

func (c *Coverage) merge(o *Coverage) {
	addTo(c.Moments, o.Moments)
	addTo(c.Crashes, o.Crashes)
	addTo(c.Aimed, o.Aimed)
	for k, seed := range o.seen {
		if old, ok := c.seen[k]; !ok || seed < old {
			c.seen[k] = seed
		}
	}
}

func (c Cell) compare(o Cell) int {
	return cmp.Or(cmp.Compare(c.Effect, o.Effect), cmp.Compare(slices.Index(Exchanges, c.Exchange), slices.Index(Exchanges, o.Exchange)),
		cmp.Compare(count(c.Initiator), count(o.Initiator)), cmp.Compare(count(c.After), count(o.After)))
}

// Missing are the crash points that runs passed and at which no daemon was ever
// killed, in order.
func (c *Coverage) Missing() (out []Cell) {
	for k := range c.Moments {
		if c.Crashes[k] == 0 {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, Cell.compare)
	return out
}

// Seed is the lowest seed that passed a crash point.
func (c *Coverage) Seed(k Cell) (uint64, bool) {
	s, ok := c.seen[k]
	return s, ok
}

// Unseen are the effect types that no gateway ever carried out.
func (c *Coverage) Unseen() (out []string) {
	for _, e := range effectTypes {
		if !slices.ContainsFunc(Exchanges, func(x Exchange) bool {
			return c.Moments[Cell{e, x, false, false}]+c.Moments[Cell{e, x, true, false}] > 0
		}) && c.Moments[Cell{e, None, false, false}] == 0 {
			out = append(out, e)
		}
	}
	return out
}

// byAim is how many crash points only a Schedule.Crash reached.
func (c *Coverage) byAim() (n int) {
	for k := range c.Moments {
		n += count(c.Crashes[k] > 0 && c.Crashes[k] == c.Aimed[k])
	}
	return n
}

// Line is the coverage in a few words.
func (c *Coverage) Line() string {
	aim := ""
	if n := c.byAim(); n > 0 {
		aim = fmt.Sprintf(" (%d by runs aimed at them)", n)
	}
	return fmt.Sprintf("crash points: %d of %d reached%s, %d of %d effect types seen",
		len(c.Moments)-len(c.Missing()), len(c.Moments), aim, len(effectTypes)-len(c.Unseen()), len(effectTypes))
}

// Write tells the coverage to people: for each effect type how many crash points
// exist (exchange × role, before and after), at how many of them a daemon was
// killed, how often, and what was missed.
func (c *Coverage) Write(w io.Writer) {
	fmt.Fprintf(w, "%s\n", c.Line())
	fmt.Fprintf(w, "    %-24s %10s %7s %8s %8s %6s\n", "effect", "carried", "points", "reached", "crashes", "aimed")
	for _, e := range effectTypes {
		carried, points, reached, crashes, aimed := 0, 0, 0, 0, 0
		for k, n := range c.Moments {
			if k.Effect != e {
				continue
			}
			if !k.After {
				carried += n
			}
			points++
			crashes += c.Crashes[k]
			aimed += c.Aimed[k]
			reached += count(c.Crashes[k] > 0)
		}
		fmt.Fprintf(w, "    %-24s %10d %7d %8d %8d %6d\n", e, carried, points, reached, crashes, aimed)
	}
	for _, e := range c.Unseen() {
		fmt.Fprintf(w, "    no gateway ever carried out %s\n", e)
	}
	missing := c.Missing()
	for i, k := range missing {
		if i == 40 {
			fmt.Fprintf(w, "    and %d more\n", len(missing)-i)
			break
		}
		fmt.Fprintf(w, "    never killed %s (%d moments, first in seed %d)\n", k, c.Moments[k], c.seen[k])
	}
}
