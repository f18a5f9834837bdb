package sim

import (
	"slices"
	"testing"
)

// TestCensusIsCurrent: the committed census names crash points that could be, and
// tells the common from the rare as runs of today do.
func TestCensusIsCurrent(t *testing.T) {
	const sample = 40
	listed := map[Cell]int{}
	for _, p := range census {
		c := Cell{p.effect, p.exchange, p.initiator, false}
		if !slices.Contains(cells, c) {
			t.Errorf("%s is no crash point any more", c)
		}
		if p.runs < censusSeeds/50 || p.runs > censusSeeds || listed[c] > 0 {
			t.Errorf("%s: %d runs", c, p.runs)
		}
		listed[c] = p.runs
	}
	now := map[Cell]int{}
	for seed := range uint64(sample) {
		for c := range Run(generate(seed, false, cells)).Moments {
			if !c.After {
				now[c]++
			}
		}
	}
	for _, c := range cells {
		switch {
		case now[c] > sample/2 && listed[c] == 0:
			t.Errorf("%d of %d runs pass %s, which is not in the census: go generate ./internal/sim", now[c], sample, c)
		case now[c] == 0 && listed[c] > censusSeeds/2:
			t.Errorf("none of %d runs passes %s, as %d of %d did: go generate ./internal/sim", sample, c, listed[c], censusSeeds)
		}
	}
}
