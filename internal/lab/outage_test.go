package lab

import (
	"testing"
	"time"
)

func at(ms float64) time.Time { return wireStart.Add(time.Duration(ms * float64(time.Millisecond))) }

func arrivals(ms ...float64) []Arrival {
	var a []Arrival
	for i, m := range ms {
		a = append(a, Arrival{uint64(i), at(m)})
	}
	return a
}

func TestOutage(t *testing.T) {
	const interval = 5 * time.Millisecond
	for name, test := range map[string]struct {
		arrivals     []Arrival
		fault, until float64
		want         float64
	}{
		"no gap":                          {arrivals(0, 5, 10, 15, 20), 12, 100, 75}, // silence to the end of the window
		"steady":                          {arrivals(0, 5, 10, 15, 20), 7, 20, 0},
		"gap that the fault opens":        {arrivals(0, 5, 50, 55, 60), 7, 60, 40},
		"gap that opens later":            {arrivals(0, 5, 10, 70, 75, 80), 7, 80, 55},
		"gap before the fault":            {arrivals(0, 60, 65, 70, 75), 62, 75, 0},
		"gap across the fault":            {arrivals(0, 60, 65), 30, 65, 55},
		"gap that begins in the window":   {arrivals(0, 5, 10, 95, 100), 4, 20, 80},
		"gap after the window":            {arrivals(0, 5, 10, 15, 20, 95), 4, 20, 0},
		"never comes back":                {arrivals(0, 5), 7, 1000, 990},
		"nothing at all":                  {nil, 7, 1000, 988},
		"two gaps, the larger one counts": {arrivals(0, 30, 35, 90, 95), 2, 95, 50},
	} {
		t.Run(name, func(t *testing.T) {
			if got := milliseconds(Outage(test.arrivals, at(test.fault), at(test.until), interval)); got != test.want {
				t.Errorf("%v ms, want %v", got, test.want)
			}
		})
	}
}

// TestOutageWithPauses: probes that the lab itself paused are no outage.
func TestOutageWithPauses(t *testing.T) {
	r := &run{stage: stage{s: &Scenario{Probe: 5 * time.Millisecond}}, quiet: []Interval{{at(10), at(100)}, {at(130), at(900)}}}
	s := Stream{Arrivals: arrivals(0, 5, 10, 112, 117, 122, 127, 905, 910)}
	if got := milliseconds(r.outage(s, at(50), at(3000))); got != 7 {
		t.Errorf("%v ms, want 7: from the end of one pause to the beginning of the next", got)
	}
}

func TestLostAndDoubled(t *testing.T) {
	a := []Arrival{{0, at(0)}, {1, at(1)}, {3, at(2)}, {3, at(3)}, {2, at(4)}, {3, at(5)}, {99, at(6)}}
	if lost, doubled := lostAndDoubled(6, a); lost != 2 || doubled != 2 {
		t.Errorf("lost %d, doubled %d; want 2, 2", lost, doubled)
	}
}

func TestQuantile(t *testing.T) {
	v := []float64{9, 1, 8, 2, 7, 3, 6, 4, 5, 10}
	for q, want := range map[float64]float64{0.5: 5.5, 0.99: 10, 1: 10, 0.1: 1} {
		if got := quantile(v, q); got != want {
			t.Errorf("quantile %v = %v, want %v", q, got, want)
		}
	}
	if quantile([]float64{3, 1, 2}, 0.5) != 2 || quantile(nil, 0.5) != 0 {
		t.Error("odd or empty median")
	}
}
