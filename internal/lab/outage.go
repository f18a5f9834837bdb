package lab

import (
	"math"
	"sort"
	"time"
)

// Arrival is one probe as the receiver got it.
type Arrival struct {
	Seq uint64
	At  time.Time // the kernel's receive stamp
}

// Outage is the largest gap between arrivals around a fault, less the probe
// interval: a gap counts when some of it lies within [fault, until). Silence to
// the end of the window counts up to there. Arrivals must be in order of time.
func Outage(arrivals []Arrival, fault, until time.Time, interval time.Duration) time.Duration {
	var worst time.Duration
	last := fault // without any arrival before it the fault itself begins the gap
	i := sort.Search(len(arrivals), func(i int) bool { return !arrivals[i].At.Before(fault) })
	if i > 0 {
		last = arrivals[i-1].At
	}
	for ; i < len(arrivals) && last.Before(until); i++ {
		worst = max(worst, arrivals[i].At.Sub(last))
		last = arrivals[i].At
	}
	if i == len(arrivals) && last.Before(until) {
		worst = max(worst, until.Sub(last))
	}
	return max(0, worst-interval)
}

// lostAndDoubled compares the numbers 0…sent-1 with what arrived: how many
// never came, how many came more than once (extra deliveries).
func lostAndDoubled(sent uint64, arrivals []Arrival) (lost, doubled int) {
	seen := make(map[uint64]bool, len(arrivals))
	for _, a := range arrivals {
		if a.Seq >= sent {
			continue
		}
		if seen[a.Seq] {
			doubled++
		}
		seen[a.Seq] = true
	}
	return int(sent) - len(seen), doubled
}

// lostAround counts the probes that never came and whose last forerunner came
// within [from, until).
func lostAround(s Stream, from, until time.Time) int {
	came := make(map[uint64]time.Time, len(s.Arrivals))
	for _, a := range s.Arrivals {
		if _, ok := came[a.Seq]; !ok {
			came[a.Seq] = a.At
		}
	}
	lost := 0
	var last time.Time
	for n := range s.Sent {
		at, ok := came[n]
		if ok {
			last = at
		} else if !last.Before(from) && last.Before(until) {
			lost++
		}
	}
	return lost
}

// quantile is the nearest-rank quantile (0 < q ≤ 1) of values; 0 without any.
// The median of an even number of values is the mean of the middle two.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := append([]float64(nil), values...)
	sort.Float64s(v)
	if q == 0.5 && len(v)%2 == 0 {
		return (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return v[int(math.Ceil(q*float64(len(v))))-1]
}

// milliseconds with three decimals.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}
