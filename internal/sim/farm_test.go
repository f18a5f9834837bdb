package sim

import (
	"fmt"
	"sync"
	"testing"
)

// TestFarms runs seeds of farms and fails on any violation. SIM_FARM_SEEDS and
// SIM_FARM_FROM ask for others than usual.
func TestFarms(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 30
	}
	seeds = env(t, "SIM_FARM_SEEDS", seeds)
	from := env(t, "SIM_FARM_FROM", 0)
	var mu sync.Mutex
	sum := NewSummary()
	const chunk = 5
	t.Run("seeds", func(t *testing.T) {
		for begin := from; begin < from+seeds; begin += chunk {
			end := min(begin+chunk, from+seeds)
			t.Run(fmt.Sprintf("%d-%d", begin, end-1), func(t *testing.T) {
				t.Parallel()
				part := NewSummary()
				for seed := begin; seed < end; seed++ {
					s := ForFarmSeed(seed)
					part.Add(s, Run(s))
				}
				for _, v := range part.SortedViolations() {
					t.Errorf("farm seed %d: %s\nreplay it with: make sim FARM_SEED=%d", v.Seed, v.Violation, v.Seed)
				}
				mu.Lock()
				defer mu.Unlock()
				sum.Merge(part)
			})
		}
	})
	t.Log(sum.Line())
	t.Log(sum.States)
}
