package statesync

import (
	"testing"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

func letter(l *syncpb.Frame_Letter) *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Letter{Letter: l}}
}

// A letter goes to the owner of a scope from a process that does not own it: whatever
// epochs both know, once and in order, with a range of each key for the receiver.
func TestLetters(t *testing.T) {
	w := newOwner(t, 1<<20)
	w.Stop()
	write := func(k LetterKind, es ...Entry) {
		t.Helper()
		w.do(func() { w.Write(w.now, 2, memberProcess, Letter{Kind: k, Other: 7, Entries: es}) })
	}
	s := newStandby(t)
	s.Fence(epoch2)
	key := w.led.New()
	offered := Entry{SPIs: ipsec.IKESPIs{I: 1, R: 2}, Value: []byte("all of it"), KeyIDs: []ipsec.KeyID{key}, ChildSPIs: []ipsec.ESPSPI{300}}
	write(LetterOffer, offered)
	write(LetterAdopted, Entry{SPIs: ipsec.IKESPIs{I: 3}})
	if len(w.frames) != 2 {
		t.Fatalf("%d frames", len(w.frames))
	}
	s.takes("an offer", w.frames[0].Frame)
	s.want("an offer", LetterReceived{From: 1, Letter: Letter{Kind: LetterOffer, Other: 7, Entries: []Entry{offered}}}, ack(1))
	if s.led.IV(key) == nil {
		t.Error("no range came with the key")
	}
	s.takes("a second arrival", w.frames[0].Frame)
	s.want("a second arrival")
	s.takes("an answer", w.frames[1].Frame)
	s.want("an answer", LetterReceived{From: 1, Letter: Letter{Kind: LetterAdopted, Other: 7, Entries: []Entry{{SPIs: ipsec.IKESPIs{I: 3}}}}}, ack(2))
	w.ack(2, memberProcess, 2)

	// An ownership in between: what was under way of it need not arrive, and the next
	// letter says so; the one after that does not.
	w.do(func() { w.Start(w.now, epoch2.Next(1)) })
	w.join(2, memberProcess, []Entry{sa(1)})
	write(LetterOffer, offered) // an owner writes none
	w.do(func() { w.Stop() })
	n := len(w.frames)
	write(LetterOffer, offered)
	write(LetterOffer, offered)
	if got := w.frames[n:]; len(got) != 2 || !got[0].Restart || got[1].Restart {
		t.Fatalf("%d frames: %+v", len(got), got)
	}
	for _, f := range w.frames[n:] {
		s.takes("after a gap", f.Frame)
	}

	// A letter larger than what may be queued is lost; it would be written again.
	w.do(func() { w.Write(w.now, 3, memberProcess+1, Letter{Kind: LetterOffer, Entries: []Entry{big(1, 2<<20)}}) })
	if f := w.frames[len(w.frames)-1]; f.Node == 3 {
		t.Error("a letter beyond the limit was sent")
	}
}

func TestLettersRefused(t *testing.T) {
	for why, f := range map[string][]byte{
		"of no kind":          frame(1, epoch1, letter(&syncpb.Frame_Letter{})),
		"of an unknown kind":  frame(1, epoch1, letter(&syncpb.Frame_Letter{Kind: 9})),
		"beside other events": frame(1, epoch1, letter(&syncpb.Frame_Letter{Kind: 1}), record()),
		"after other events":  frame(1, epoch1, begin(), letter(&syncpb.Frame_Letter{Kind: 1})),
		"first, as second":    frame(1, epoch1, letter(&syncpb.Frame_Letter{Kind: 1}), letter(&syncpb.Frame_Letter{Kind: 1, First: true})),
	} {
		newStandby(t).refuses(why, f, ErrMalformed)
	}
	newStandby(t).refuses("with letters missing before it", frame(3, epoch1, letter(&syncpb.Frame_Letter{Kind: 1})), ErrGap)
	s := newStandby(t)
	s.takes("a new beginning", frame(3, cluster.Epoch{}, letter(&syncpb.Frame_Letter{Kind: 1, First: true})))
}
