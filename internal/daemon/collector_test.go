package daemon

import (
	"testing"
	"time"
)

func TestPaces(t *testing.T) {
	const much = 1 << 40
	now := time.Unix(1000, 0)
	var s paces
	for i, c := range []struct {
		allocated uint64
		want      pace
	}{
		{0, fillPace}, {0, fillPace}, {2 << 20, fillPace}, {2 << 20, fillPace}, {2 << 20, fillPace}, // it has just begun
		{2 << 20, setUpPace}, {120 << 20, fillPace}, {0, fillPace}, {0, fillPace}, {0, fillPace}, {3 << 20, fillPace},
		{0, setUpPace}, {0, setUpPace}, {0, setUpPace}, {0, setUpPace}, {0, calmPace}, {1 << 10, calmPace}, {5 << 20, setUpPace},
	} {
		if got := s.at(now, c.allocated); got != c.want {
			t.Errorf("second %d: %+v, want %+v", i, got, c.want)
		}
		now = now.Add(time.Second)
	}
	for _, c := range []struct {
		p          pace
		live, most int64
		want       int
	}{
		{setUpPace, 16 << 20, much, 200}, {setUpPace, 1 << 30, much, 50}, {fillPace, 1 << 30, much, 200}, {fillPace, 64 << 20, much, 300},
		{setUpPace, 16 << 20, 4 << 20, 50}, {calmPace, 16 << 20, much, 50}, {setUpPace, 0, much, 50},
	} {
		if got := c.p.wants(c.live, c.most); got != c.want {
			t.Errorf("%+v with %d bytes: %d %%, want %d", c.p, c.live, got, c.want)
		}
	}
}
