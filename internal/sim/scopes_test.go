package sim

import "testing"

// kinds runs seeds of a kind and fails on any violation and on what never happened.
func kinds(t *testing.T, k Kind, seeds, from uint64, verbs []Verb, states []string) {
	sum := simulate(t, seeds, from, 5, func(seed uint64) *Schedule { return k.Schedule(seed, RealEvery) },
		func(t *testing.T, part *Summary, _, _ uint64) {
			for _, v := range part.SortedViolations() {
				t.Errorf("%s seed %d: %s\nreplay it with: make sim %sSEED=%d", k, v.Seed, v.Violation, k.Variable(), v.Seed)
			}
		})
	if seeds < 20 {
		return
	}
	for _, v := range verbs {
		if sum.Faults[v] == 0 {
			t.Errorf("%s never happened", v)
		}
	}
	for _, s := range states {
		if sum.States[s] == 0 {
			t.Errorf("never happened: %s", s)
		}
	}
	if sum.ChildRekeys == 0 || sum.IKERekeys == 0 || sum.Handovers == 0 || sum.Takeovers <= sum.Handovers {
		t.Errorf("%d and %d rekeys, %d takeovers, %d handovers", sum.ChildRekeys, sum.IKERekeys, sum.Takeovers, sum.Handovers)
	}
}

func scopeSeeds() uint64 {
	if testing.Short() {
		return 20
	}
	return 100
}

// TestVirtualClusters runs seeds of pairs with virtual clusters. SIM_VCLUSTER_SEEDS and
// SIM_VCLUSTER_FROM ask for others than usual.
func TestVirtualClusters(t *testing.T) {
	kinds(t, KindVCluster, env(t, "SIM_VCLUSTER_SEEDS", scopeSeeds()), env(t, "SIM_VCLUSTER_FROM", 0),
		[]Verb{Prefer, Handover, Monitor}, []string{"virtual cluster moved", "covered takeover", "takeover from the dead"})
}

// TestFacingPairs runs seeds of two pairs that face each other. SIM_FACING_SEEDS and
// SIM_FACING_FROM ask for others than usual.
func TestFacingPairs(t *testing.T) {
	kinds(t, KindFacing, env(t, "SIM_FACING_SEEDS", scopeSeeds()), env(t, "SIM_FACING_FROM", 0),
		[]Verb{KillBoth, LoseSync, ReplaySync, CutHB}, []string{"message ID sync asked", "message ID sync answered", "replay counters synchronised", "split", "covered takeover", "uncovered takeover"})
}

// TestSchedulesOfScopes: a file may ask for no more than the model has.
func TestSchedulesOfScopes(t *testing.T) {
	for name, spoil := range map[string]func(s *Schedule){
		"too many virtual clusters": func(s *Schedule) { s.Setup.Faces, s.Setup.VClusters = nil, make([]VCluster, 31) },
		"both":                      func(s *Schedule) { s.Setup.VClusters = make([]VCluster, 2) },
		"a dialup tunnel":           func(s *Schedule) { s.Setup.Clients[0].Dialup = true },
		"NAT":                       func(s *Schedule) { s.Setup.Clients[0].NAT = true },
	} {
		s := ForFacingSeed(1, 0)
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		if spoil(s); s.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
