package sim

import "testing"

// openDefects are seeds that show a defect which is known and not mended, with the rule
// that they break. One that does not break it any more fails the test, too: it is
// mended, or hidden, and the entry goes.
var openDefects = map[uint64]Rule{}

// TestFarms runs seeds of farms and fails on any violation. SIM_FARM_SEEDS and
// SIM_FARM_FROM ask for others than usual.
func TestFarms(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 30
	}
	seeds = env(t, "SIM_FARM_SEEDS", seeds)
	sum := simulate(t, seeds, env(t, "SIM_FARM_FROM", 0), 5, ForFarmSeed, func(t *testing.T, part *Summary, begin, end uint64) {
		shown := map[uint64]bool{}
		for _, v := range part.SortedViolations() {
			if rule := openDefects[v.Seed]; rule != "" && v.Violation.Rule == rule {
				t.Logf("farm seed %d: %s: known, and open", v.Seed, v.Violation)
				shown[v.Seed] = true
				continue
			}
			t.Errorf("farm seed %d: %s\nreplay it with: make sim FARM_SEED=%d", v.Seed, v.Violation, v.Seed)
		}
		for seed := range openDefects {
			if begin <= seed && seed < end && !shown[seed] {
				t.Errorf("farm seed %d no longer shows the defect that openDefects names", seed)
			}
		}
	})
	if seeds < 30 {
		return
	}
	for _, v := range []Verb{Kill, LoseHost, FreezeHost, Partition, Depose, SlowLog, LoseMany, Rehash, Drain, Join} {
		if sum.Faults[v] == 0 {
			t.Errorf("%s never happened", v)
		}
	}
	for _, s := range []string{"IKE message forwarded", "packet forwarded", "owner without quorum", "split of a slot", "number given out of a range"} {
		if sum.States[s] == 0 {
			t.Errorf("never happened: %s", s)
		}
	}
	if sum.Handovers == 0 || sum.Takeovers == 0 {
		t.Errorf("%d handovers, %d takeovers", sum.Handovers, sum.Takeovers)
	}
}
