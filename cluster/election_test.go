package cluster

import (
	"testing"
	"time"
)

func TestElectionOrder(t *testing.T) {
	const margin = 300 * time.Second
	for _, c := range []struct {
		name     string
		a, b     Election
		override bool
		want     int
		why      string
	}{
		{"monitors first", Election{MonitorsUp: 2}, Election{MonitorsUp: 1, Age: time.Hour, Priority: 255, Serial: "Z"}, false, 1, "monitored interfaces"},
		{"monitors first with override", Election{MonitorsUp: 2}, Election{MonitorsUp: 1, Priority: 255}, true, 1, "monitored interfaces"},
		{"age before priority", Election{Age: time.Hour, Priority: 1}, Election{Priority: 255}, false, 1, "age"},
		{"priority before age with override", Election{Age: time.Hour, Priority: 1}, Election{Priority: 255}, true, -1, "priority"},
		{"age within the margin", Election{Age: margin, Priority: 1}, Election{Priority: 2}, false, -1, "priority"},
		{"age beyond the margin", Election{Age: margin + time.Second, Priority: 1}, Election{Priority: 2}, false, 1, "age"},
		{"age with override and equal priority", Election{Age: margin + time.Second, Serial: "A"}, Election{Serial: "B"}, true, 1, "age"},
		{"serial last", Election{Serial: "TDM2"}, Election{Serial: "TDM1"}, false, 1, "serial number"},
		{"serial last with override", Election{Serial: "TDM1"}, Election{Serial: "TDM2"}, true, -1, "serial number"},
		{"failover set ranks last", Election{MonitorsUp: 2, Failover: true}, Election{}, false, -1, "failover set"},
		{"failover set on both", Election{MonitorsUp: 2, Failover: true}, Election{Failover: true}, false, 1, "monitored interfaces"},
		{"nothing differs", Election{Serial: "X"}, Election{Serial: "X"}, false, 0, "serial number"},
	} {
		r, why := rank(c.a, c.b, c.override, margin)
		if r != c.want || why != c.why {
			t.Errorf("%s: %d by %s, want %d by %s", c.name, r, why, c.want, c.why)
		}
		if back, _ := rank(c.b, c.a, c.override, margin); back != -r {
			t.Errorf("%s: not antisymmetric", c.name)
		}
	}
}
