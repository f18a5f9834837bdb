package sim

import "strings"

// Kind is what a schedule is of.
type Kind string

// The kinds. A seed gives each kind a schedule of its own.
const (
	KindPair     Kind = ""
	KindFarm     Kind = "farm"
	KindVCluster Kind = "vcluster" // a pair with virtual clusters
	KindFacing   Kind = "facing"   // two pairs that face each other
)

// Kinds are all but pairs.
var Kinds = []Kind{KindFarm, KindVCluster, KindFacing}

// Kind of a schedule.
func (s *Schedule) Kind() Kind {
	switch {
	case s.Farm != nil:
		return KindFarm
	case len(s.Setup.VClusters) > 0:
		return KindVCluster
	case s.Setup.Faces != nil:
		return KindFacing
	}
	return KindPair
}

// Schedule is that of a seed; see ForSeed.
func (k Kind) Schedule(seed, realEvery uint64) *Schedule {
	switch k {
	case KindFarm:
		return ForFarmSeed(seed)
	case KindVCluster:
		return ForVClusterSeed(seed, realEvery)
	case KindFacing:
		return ForFacingSeed(seed, realEvery)
	}
	return ForSeed(seed, realEvery)
}

// Plural names several of them.
func (k Kind) Plural() string {
	return map[Kind]string{KindPair: "pairs", KindFarm: "farms", KindVCluster: "virtual clusters", KindFacing: "facing pairs"}[k]
}

// Variable is what stands before SEED and SEEDS on make's command line.
func (k Kind) Variable() string {
	if k == KindPair {
		return ""
	}
	return strings.ToUpper(string(k)) + "_"
}
