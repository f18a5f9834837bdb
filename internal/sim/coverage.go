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
	seen    map[Cell]uint64 // the lowest seed that passed the cell
}

func newCoverage() *Coverage {
	return &Coverage{map[Cell]int{}, map[Cell]int{}, map[Cell]uint64{}}
}

func (c *Coverage) add(seed uint64, r *Result) {
	addTo(c.Moments, r.Moments)
	addTo(c.Crashes, r.Crashes)
	for k := range r.Moments {
		if old, ok := c.seen[k]; !ok || seed < old {
			c.seen[k] = seed
		}
	}
}

func (c *Coverage) merge(o *Coverage) {
	addTo(c.Moments, o.Moments)
	addTo(c.Crashes, o.Crashes)
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

// Line is the coverage in a few words.
func (c *Coverage) Line() string {
	return fmt.Sprintf("crash points: %d of %d reached, %d of %d effect types seen",
		len(c.Moments)-len(c.Missing()), len(c.Moments), len(effectTypes)-len(c.Unseen()), len(effectTypes))
}

// Write tells the coverage to people: for each effect type how many cells exist
// (exchange × role, before and after), how often a daemon was killed there, and
// what was missed.
func (c *Coverage) Write(w io.Writer) {
	fmt.Fprintf(w, "%s\n", c.Line())
	fmt.Fprintf(w, "    %-24s %10s %7s %8s %8s\n", "effect", "carried", "points", "reached", "crashes")
	for _, e := range effectTypes {
		carried, points, reached, crashes := 0, 0, 0, 0
		for k, n := range c.Moments {
			if k.Effect != e {
				continue
			}
			if !k.After {
				carried += n
			}
			points++
			crashes += c.Crashes[k]
			reached += count(c.Crashes[k] > 0)
		}
		fmt.Fprintf(w, "    %-24s %10d %7d %8d %8d\n", e, carried, points, reached, crashes)
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
