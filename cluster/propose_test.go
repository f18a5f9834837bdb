package cluster

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

func takesOver(s ScopeID) *clusterpb.Command {
	return &clusterpb.Command{What: &clusterpb.Command_TakeOver{TakeOver: &clusterpb.TakeOver{
		Scope: uint32(s), Epoch: e(1<<40, 7, 16).Proto(), From: e(1<<40, 0, 15).Proto(), Reason: uint32(fsm.ReasonSilence)}}}
}

// Of what waits, all that may go together does, up to an entry's size; the rest stays in
// its order.
func TestWhatWaitsGoesTogether(t *testing.T) {
	var all []*clusterpb.Command
	for n := NodeID(1); n <= fsm.MaxNodes; n++ {
		for k := range fsm.SlotsPerMember {
			all = append(all, takesOver(fsm.Slot(n, k)))
		}
	}
	c, n := Together(all)
	if n != len(all) || len(Parts(c)) != n || proto.Size(c) > fsm.MaxEntry {
		t.Errorf("%d of %d takeovers go together, in %d bytes", n, len(all), proto.Size(c))
	}
	join := &clusterpb.Command{What: &clusterpb.Command_AddMember{AddMember: &clusterpb.AddMember{Node: 1}}}
	queue := []*clusterpb.Command{all[0], all[1], join, all[2]}
	for _, want := range []int{2, 1, 1} {
		c, n := Together(queue)
		if n != want || len(Parts(c)) != n || Parts(c)[0] != queue[0] {
			t.Fatalf("%d go together, want %d", n, want)
		}
		if n == 1 && c != queue[0] {
			t.Error("one alone is not itself")
		}
		queue[0] = c // whoever proposes may keep it in its queue
		if n > 1 && Parts(c)[0] == c {
			t.Fatal("a batch holds itself")
		}
		queue = queue[n:]
	}
	seen := map[string]bool{}
	for _, c := range all {
		if k := fsm.Subject(c); seen[k] {
			t.Errorf("two ask for %s", k)
		} else {
			seen[k] = true
		}
	}
	if !Urgent(all[0]) || Urgent(join) {
		t.Error("a takeover goes before a member")
	}
}
