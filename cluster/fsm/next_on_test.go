//go:build nextproto

package fsm

import (
	"testing"

	"tandem/proto/clusterpb"
)

// The next version's command is refused until every member speaks that version, and
// its effect stands in snapshots.
func TestNextVersionsCommand(t *testing.T) {
	m, seq := New(), uint64(0)
	apply := func(c *clusterpb.Command) Result {
		seq++
		c.Id, c.Version = &clusterpb.CommandID{Node: 1, Life: 1, Seq: seq}, max(c.Version, 1)
		return m.Apply(Encode(c))
	}
	c := joins(1, 100)
	c.GetAddMember().MaxVersion, c.GetAddMember().Features = MaxVersion, 2
	if r := apply(c); r.Code != Done {
		t.Fatalf("%+v", r)
	}
	if r := apply(Announce(5)); r.Code != TooNew {
		t.Errorf("%+v", r)
	}
	if r := apply(&clusterpb.Command{What: &clusterpb.Command_SetVersion{SetVersion: &clusterpb.SetVersion{Version: MaxVersion}}}); r.Code != Done {
		t.Fatalf("%+v", r)
	}
	if r := apply(Announce(5)); r.Code != Done {
		t.Errorf("%+v", r)
	}
	again := New()
	if err := again.Restore(m.Snapshot()); err != nil {
		t.Fatal(err)
	}
	if p, ok := again.Member(1); !ok || p.Features != 7 || again.Version() != MaxVersion {
		t.Errorf("version %d, %+v", again.Version(), p)
	}
}
