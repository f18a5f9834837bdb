package revision

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"tandem/proto/syncpb"
)

// FuzzConfigState: whatever a member says of itself, what is taken of it is a state that
// says the same again.
func FuzzConfigState(f *testing.F) {
	good := State{Process: 1, Have: rev(4, 2, 1), Running: digest(1)}
	for _, m := range []*syncpb.ConfigState{good.Message(), {}, {Process: 1}, {Process: 1, Running: make([]byte, DigestLen)},
		{Process: 1, Running: make([]byte, DigestLen), Have: &syncpb.RevisionMark{Number: 1, EpochNode: 99, Digest: make([]byte, DigestLen)}}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m syncpb.ConfigState
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		s, err := OfMessage(&m)
		if err != nil {
			return
		}
		back, err := OfMessage(s.Message())
		if err != nil || back != s {
			t.Errorf("%+v became %+v: %v", s, back, err)
		}
		k := New(1, 9, Revision{}, Digest{}, false)
		k.HandlePresence(start, 2, s.Process)
		k.HandleState(2, s)
		k.HandleRole(start, true, s.Have.Epoch)
		if a, ok := k.Next(start).(Adopt); ok && !s.Aside && !s.Have.Before(a.Revision) {
			t.Errorf("%v follows %v", a.Revision, s.Have)
		}
	})
}
