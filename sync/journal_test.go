package statesync

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	"tandem/xfrm"
)

const (
	ownerProcess  = cluster.ProcessID(0xA)
	memberProcess = cluster.ProcessID(0xB)
)

var epoch1 = cluster.Epoch{Counter: 1, Node: 1}

// owner is a journal under test, and the frames that left it.
type owner struct {
	*Journal
	t      *testing.T
	led    *Ledger
	now    time.Time
	frames []SendFrame
	told   []Effect // all others
}

func newOwner(t *testing.T, limit int) *owner {
	led := NewLedger(chance(1))
	o := &owner{Journal: NewJournal(ownerProcess, led, limit), t: t, led: led, now: t0}
	o.Start(o.now, epoch1)
	return o
}

// do runs an input and drains.
func (o *owner) do(f func()) {
	f()
	for {
		e, ok := o.Poll()
		if !ok {
			return
		}
		if f, ok := e.(SendFrame); ok {
			o.frames = append(o.frames, f)
		} else {
			o.told = append(o.told, e)
		}
	}
}

func (o *owner) append(ticket uint64, entries ...Entry) {
	o.do(func() { o.Append(o.now, ticket, entries) })
}
func (o *owner) bounds(b ...xfrm.Bound) { o.do(func() { o.SetBounds(o.now, b) }) }
func (o *owner) leave(n cluster.NodeID) { o.do(func() { o.Leave(o.now, n) }) }
func (o *owner) ack(n cluster.NodeID, p cluster.ProcessID, seq uint64) {
	o.do(func() { o.HandleAck(o.now, n, p, seq) })
}
func (o *owner) join(n cluster.NodeID, p cluster.ProcessID, entries []Entry, b ...xfrm.Bound) {
	o.do(func() { o.Join(o.now, n, p, entries, b) })
}

// entered brings a member into the sync set, and forgets what was said meanwhile.
func (o *owner) entered(n cluster.NodeID, p cluster.ProcessID) {
	o.t.Helper()
	o.join(n, p, nil)
	o.ackAll(n, p)
	o.ackAll(n, p)
	o.want("Entered", Entered{n})
	o.frames = nil
}

func (o *owner) ackAll(n cluster.NodeID, p cluster.ProcessID) {
	var seq uint64
	for _, f := range o.frames {
		if f.Node == n {
			seq = f.Seq
		}
	}
	o.ack(n, p, seq)
}

// want takes what was told and compares it.
func (o *owner) want(why string, want ...Effect) {
	o.t.Helper()
	if got, want := words(o.told), words(want); got != want {
		o.t.Fatalf("%s: told %s, want %s", why, got, want)
	}
	o.told = nil
}

func (o *owner) wantSilence(why string) {
	o.t.Helper()
	if len(o.told) > 0 {
		o.t.Fatalf("%s: told %v, want nothing", why, o.told)
	}
}

// sent takes the frames to a node and describes their events.
func (o *owner) sent(n cluster.NodeID) (out []string) {
	o.t.Helper()
	var rest []SendFrame
	for _, f := range o.frames {
		if f.Node == n {
			out = append(out, describe(o.t, f.Frame))
		} else {
			rest = append(rest, f)
		}
	}
	o.frames = rest
	return out
}

func (o *owner) wantSent(why string, n cluster.NodeID, want ...string) {
	o.t.Helper()
	if got, want := fmt.Sprint(o.sent(n)), fmt.Sprint(want); got != want {
		o.t.Fatalf("%s: sent %s, want %s", why, got, want)
	}
}

// words prints effects with their types.
func words(es []Effect) (s string) {
	for _, e := range es {
		s += strings.TrimPrefix(fmt.Sprintf("%T%v ", e, e), "statesync.")
	}
	return s
}

// describe prints the events of a frame in short words.
func describe(t *testing.T, b []byte) (s string) {
	t.Helper()
	f := new(syncpb.Frame)
	if err := proto.Unmarshal(b, f); err != nil {
		t.Fatal(err)
	}
	for i, e := range f.Events {
		if i > 0 {
			s += "+"
		}
		switch k := e.Kind.(type) {
		case *syncpb.Frame_Event_CopyBegin:
			s += "begin"
		case *syncpb.Frame_Event_Record:
			s += "record("
			for i, x := range k.Record.Entries {
				if i > 0 {
					s += " "
				}
				s += fmt.Sprint(x.SpiI)
				for _, r := range x.Ranges {
					s += fmt.Sprintf("/%x-%x", r.Lo, r.Hi)
				}
			}
			s += ")"
		case *syncpb.Frame_Event_Bounds:
			s += fmt.Sprintf("bounds(%d)", len(k.Bounds.Sa))
		case *syncpb.Frame_Event_Entry:
			s += "entry"
		case *syncpb.Frame_Event_Handover:
			s += fmt.Sprintf("handover(%d %v)", len(k.Handover.Windows), k.Handover.Last)
		case *syncpb.Frame_Event_Unite:
			s += fmt.Sprintf("unite(%d %v %v)", len(k.Unite.Entries), k.Unite.First, k.Unite.Last)
		}
	}
	return s
}

func sa(i int, keys ...ipsec.KeyID) Entry {
	return Entry{SPIs: ipsec.IKESPIs{I: ipsec.IKESPI(i), R: 9}, Value: fmt.Appendf(nil, "state of %d", i), KeyIDs: keys}
}

func big(i, size int) Entry {
	return Entry{SPIs: ipsec.IKESPIs{I: ipsec.IKESPI(i), R: 9}, Value: bytes.Repeat([]byte{1}, size)}
}

func ceiling(spi ipsec.ESPSPI, n uint64) xfrm.Bound { return xfrm.Bound{SPIIn: spi, N: n} }

func TestJournalAlone(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.append(1, sa(1))
	o.want("nobody to wait for", Committed{1})
	o.bounds(ceiling(300, 7))
	o.want("nobody to wait for", BoundsEffective{[]xfrm.Bound{ceiling(300, 7)}})
	if len(o.frames) != 0 {
		t.Errorf("%d frames to nobody", len(o.frames))
	}
}

func TestJournalEnters(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.join(2, memberProcess, []Entry{sa(1), sa(2)}, ceiling(300, 7))
	o.wantSent("the copy", 2, "begin+record(1 2)+bounds(1)")
	o.append(1, sa(2))
	o.want("during the copy the member does not count", Committed{1})
	o.wantSent("what changes the copied state follows it", 2, "record(2)")
	o.ack(2, memberProcess, 1)
	o.wantSent("the copy is there: entry", 2, "entry")
	if got := o.SyncSet(); len(got) != 1 {
		t.Fatal("the member counts from the moment the entry is sent")
	}
	o.append(2, sa(3))
	o.wantSilence("the record waits for the member")
	o.ack(2, memberProcess, 3)
	o.want("the entry is acknowledged, the record is not", Entered{2})
	o.bounds(ceiling(300, 8))
	o.ack(2, memberProcess, 4)
	o.want("the record is", Committed{2})
	o.ack(2, memberProcess, 4)
	o.ack(2, memberProcess, 99)
	o.ack(2, 0xC, 5)
	o.wantSilence("a repeated, an impossible and another process's acknowledgement")
	o.ack(2, memberProcess, 5)
	o.want("the bound is", BoundsEffective{[]xfrm.Bound{ceiling(300, 8)}})
}

func TestJournalKeepsOrder(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.do(func() {
		o.Append(o.now, 1, []Entry{sa(1)})
		o.SetBounds(o.now, []xfrm.Bound{ceiling(300, 1)})
		o.Append(o.now, 2, []Entry{sa(2), sa(3)})
		o.SetBounds(o.now, []xfrm.Bound{ceiling(300, 2), ceiling(400, 1)})
	})
	if n := len(o.frames); n != 1 {
		t.Fatalf("%d frames for what was pending at once, want 1", n)
	}
	o.ackAll(2, memberProcess)
	o.wantSent("one frame, in order", 2, "record(1)+bounds(1)+record(2 3)+bounds(2)")
	o.want("in order", Committed{1}, BoundsEffective{[]xfrm.Bound{ceiling(300, 1)}},
		Committed{2}, BoundsEffective{[]xfrm.Bound{ceiling(300, 2), ceiling(400, 1)}})
}

func TestJournalWaitsForAll(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.entered(3, 0xC)
	o.append(1, sa(1))
	o.append(2, sa(2))
	o.ackAll(2, memberProcess)
	o.wantSilence("node 3 has not acknowledged")
	seq := o.frames[1].Seq
	o.ack(3, 0xC, seq)
	o.want("all have the first", Committed{1})
	o.leave(3)
	o.want("what waited for node 3 alone", Committed{2})
	o.append(3, sa(3))
	o.wantSilence("node 2 goes on counting")
	o.leave(2)
	o.want("alone", Committed{3})
}

func TestJournalBoundsInPartsCommitWhole(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	bounds := make([]xfrm.Bound, 4*boundsPerItem+1)
	for i := range bounds {
		bounds[i] = ceiling(ipsec.ESPSPI(300+i), 1<<63)
	}
	o.bounds(bounds...)
	if len(o.frames) < 2 {
		t.Fatalf("%d frames, the test needs several", len(o.frames))
	}
	for i, f := range o.frames {
		o.wantSilence(fmt.Sprintf("%d of %d parts", i, len(o.frames)))
		o.ack(2, memberProcess, f.Seq)
	}
	o.want("all parts", BoundsEffective{bounds})
}

func TestJournalCopiesInParts(t *testing.T) {
	o := newOwner(t, 1<<20)
	var state []Entry
	for i := range 40 {
		state = append(state, big(i, 100<<10)) // 4 MB
	}
	o.join(2, memberProcess, state)
	o.append(1, sa(7))
	o.want("the copy holds nobody up", Committed{1})
	rounds := 0
	for len(o.SyncSet()) == 0 {
		flying := 0
		for _, f := range o.frames {
			flying += len(f.Frame)
			if len(f.Frame) > 256<<10+1024 {
				t.Errorf("a frame of %d bytes", len(f.Frame))
			}
		}
		if flying > copyWindow+frameSize+1024 {
			t.Fatalf("%d bytes of a copy are unacknowledged", flying)
		}
		last := o.frames[len(o.frames)-1].Seq
		o.frames = nil
		o.ack(2, memberProcess, last)
		if rounds++; rounds > 100 {
			t.Fatal("the copy does not end")
		}
	}
	if rounds < 3 {
		t.Errorf("the copy took %d windows", rounds)
	}
	if got := o.sent(2); got[len(got)-1] != "entry" {
		t.Errorf("last frame %q, want the entry", got[len(got)-1])
	}
}

func TestJournalCopyBegunAgain(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.join(2, memberProcess, []Entry{sa(1)})
	if at, ok := o.NextTimeout(); !ok || !at.Equal(o.now.Add(CopyTimeout)) {
		t.Fatalf("timeout at %v %v", at, ok)
	}
	o.now = o.now.Add(CopyTimeout)
	o.do(func() { o.HandleTimeout(o.now) })
	o.want("nothing moved", CopyStalled{2, memberProcess})
	o.frames = nil
	o.join(2, memberProcess, []Entry{sa(2)})
	if f := o.frames[0]; !f.Restart || f.Seq != 2 {
		t.Errorf("the new copy is frame %d, restart %v; want 2, true", f.Seq, f.Restart)
	}
	o.wantSent("again", 2, "begin+record(2)")
	o.ack(2, memberProcess, 1)
	o.wantSent("an acknowledgement of the first copy is none of the second", 2)
	o.ack(2, memberProcess, 2)
	o.wantSent("complete", 2, "entry")
	o.ack(2, memberProcess, 3)
	o.want("entered", Entered{2})
	if _, ok := o.NextTimeout(); ok {
		t.Error("a timeout after the entry")
	}

	// Begun again although it counts: it goes on counting.
	o.append(1, sa(3))
	o.wantSilence("waits")
	o.frames = nil
	o.join(2, memberProcess, []Entry{sa(2), sa(3)})
	o.wantSilence("still waits: the member may be entitled")
	o.append(2, sa(4))
	o.ack(2, memberProcess, 5)
	o.want("the copy holds the first record", Committed{1})
	o.ack(2, memberProcess, 6)
	o.want("and the second came after", Committed{2})
	o.ackAll(2, memberProcess)
	o.want("entered again", Entered{2})
}

func TestJournalMemberRestarts(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.append(1, sa(1))
	o.join(2, 0xC, []Entry{sa(1)})
	o.wantSilence("the guardian was not asked: it counts until it leaves")
	o.leave(2)
	o.want("left", Committed{1})
	o.frames = nil
	o.join(2, 0xC, []Entry{sa(1)})
	if f := o.frames[0]; f.Process != 0xC || f.Seq != 2 || !f.Restart {
		t.Errorf("frame %d to %x, restart %v", f.Seq, uint64(f.Process), f.Restart)
	}
}

func TestJournalOverflow(t *testing.T) {
	o := newOwner(t, 10_000)
	o.entered(2, memberProcess)
	o.append(1, big(1, 6000))
	o.wantSilence("it fits")
	o.append(2, big(2, 6000))
	o.want("it does not", Overflow{2})
	o.append(3, big(3, 6000))
	o.wantSilence("told once")
	if len(o.frames) != 1 {
		t.Errorf("%d frames, want only the first record", len(o.frames))
	}
	o.ackAll(2, memberProcess)
	o.want("the first", Committed{1})
	if d := o.Lag(o.now, 2); d < time.Second || !o.Pending() {
		t.Errorf("lag %v, pending %v: it counts and will never catch up", d, o.Pending())
	}
	o.leave(2)
	o.want("left", Committed{2}, Committed{3})

	o = newOwner(t, 10_000)
	o.join(2, memberProcess, []Entry{big(1, 100_000)})
	o.wantSilence("the copy does not count against the limit")
	o.append(1, big(1, MaxFrame))
	o.want("no frame holds this", Overflow{2}, Committed{1})
}

func TestJournalLag(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.join(2, memberProcess, nil)
	o.now = o.now.Add(time.Second)
	if d := o.Lag(o.now, 2); d != 0 {
		t.Errorf("lag %v of a member that does not count", d)
	}
	o.ackAll(2, memberProcess)
	o.now = o.now.Add(100 * time.Millisecond)
	if d := o.Lag(o.now, 2); d != 100*time.Millisecond {
		t.Errorf("lag %v, want that of the entry", d)
	}
	o.ackAll(2, memberProcess)
	if d := o.Lag(o.now, 2); d != 0 || o.Pending() {
		t.Errorf("lag %v when all is acknowledged", d)
	}
	o.append(1, sa(1))
	o.now = o.now.Add(30 * time.Millisecond)
	o.append(2, sa(1))
	o.now = o.now.Add(30 * time.Millisecond)
	if d := o.Lag(o.now, 2); d != 60*time.Millisecond || !o.Pending() {
		t.Errorf("lag %v, want that of the oldest", d)
	}
}

func TestJournalGrants(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.entered(3, 0xC)
	k := o.led.New()
	o.append(1, sa(1, k))
	o.append(2, sa(1, k))
	o.append(3, sa(1, 77)) // a key without a range here
	o.append(4, Entry{SPIs: ipsec.IKESPIs{I: 1}, KeyIDs: []ipsec.KeyID{o.led.New()}})
	o.wantSent("half, the same again, nothing, nothing for what is gone", 2,
		"record(1/800000-1000000)", "record(1/800000-1000000)", "record(1)", "record(1)")
	o.wantSent("a quarter", 3, "record(1/400000-800000)", "record(1/400000-800000)", "record(1)", "record(1)")
}

func TestJournalStops(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.append(1, sa(1))
	o.do(o.Stop)
	o.ackAll(2, memberProcess)
	o.leave(2)
	o.append(2, sa(2))
	o.join(2, memberProcess, nil)
	o.wantSilence("nothing is committed after the end")
	o.frames = nil
	o.do(func() { o.Start(o.now, cluster.Epoch{Counter: 3, Node: 1}) })
	o.append(3, sa(3))
	o.want("alone again", Committed{3})
	o.join(2, memberProcess, nil)
	if f := o.frames[0]; f.Seq != 4 || !f.Restart {
		t.Errorf("frame %d, restart %v: the numbering goes on", f.Seq, f.Restart)
	}
}

// An owner that goes on under an epoch that was decided above a rival's counts on nobody:
// what waited for the members of the epoch before waits for nobody, and is not forgotten.
func TestJournalBegunAnewByItsOwnerCommits(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.append(1, sa(1))
	o.bounds(ceiling(7, 64))
	o.wantSilence("not acknowledged")
	o.do(func() { o.Start(o.now, cluster.Epoch{Counter: 2, Node: 1}) })
	o.want("begun anew", Committed{1}, BoundsEffective{[]xfrm.Bound{ceiling(7, 64)}})
	o.append(2, sa(2))
	o.want("alone", Committed{2})
	// Who gave way in between has nothing to wait for.
	o.entered(2, memberProcess)
	o.append(3, sa(3))
	o.do(func() { o.Stop() })
	o.do(func() { o.Start(o.now, cluster.Epoch{Counter: 4, Node: 1}) })
	o.wantSilence("of an ownership that ended")
}

func TestJournalHandsOver(t *testing.T) {
	o := newOwner(t, 1<<20)
	next := epoch1.Next(2)
	o.do(func() { o.HandOver(o.now, 2, next, nil) })
	if len(o.frames) != 0 {
		t.Fatal("handed over to no member")
	}
	o.entered(2, memberProcess)
	windows := make([]xfrm.Window, frameMessages+10)
	o.append(1, sa(1))
	o.do(func() { o.HandOver(o.now, 2, next, windows) })
	last := o.frames[len(o.frames)-1].Seq
	o.wantSent("after everything before", 2, "record(1)", fmt.Sprintf("handover(%d false)", frameMessages-2), "handover(12 true)")
	o.ack(2, memberProcess, last-1)
	o.want("not yet", Committed{1})
	o.ack(2, memberProcess, last)
	o.want("handed over", HandedOver{2, next})
}

func TestJournalUnites(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	dead := ipsec.IKESPIs{I: 5, R: 6}
	o.append(1, Entry{SPIs: dead, PeerDeleted: true})
	o.append(2, Entry{SPIs: ipsec.IKESPIs{I: 7, R: 8}}) // not by the peer's word
	if got := o.Tombstones(); len(got) != 1 || got[0] != dead {
		t.Fatalf("tombstones %v, want %v", got, dead)
	}
	o.do(o.Stop)
	o.frames = nil
	o.do(func() {
		o.Unite(o.now, 2, memberProcess, []Entry{sa(1)}, []xfrm.Bound{ceiling(300, 1)}, o.Tombstones())
	})
	if !o.frames[0].Restart {
		t.Error("a unite need not wait for what was sent before")
	}
	last := o.frames[len(o.frames)-1].Seq
	o.wantSent("whole", 2, "unite(0 true false)+unite(1 false false)+unite(0 false false)+unite(0 false false)+unite(0 false true)")
	o.wantSilence("uniting commits nothing")
	o.ack(2, memberProcess, last)
	o.want("taken", United{2})
}

// An owner that has given way does not take what it is sent: when it owns again, it is not
// told what was true before.
func TestJournalWithdrawsWhatWasNotTaken(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.do(o.Stop)
	unite := func(n cluster.NodeID, p cluster.ProcessID) {
		o.do(func() { o.Unite(o.now, n, p, []Entry{sa(1)}, nil, nil) })
	}
	unite(2, memberProcess)
	o.frames = nil
	unite(3, memberProcess+1)
	if f := o.frames[0]; f.Node != 2 || !f.Restart {
		t.Errorf("frame %d to node %d, which drops those before: %v", f.Seq, f.Node, f.Restart)
	}
	o.ack(2, memberProcess, o.frames[0].Seq)
	o.wantSilence("of the former owner")
	o.ackAll(3, memberProcess+1)
	o.want("taken", United{3})
}

func TestTombstonesAreBounded(t *testing.T) {
	o := newOwner(t, 1<<20)
	for i := range MaxTombstones + 10 {
		o.append(uint64(i), Entry{SPIs: ipsec.IKESPIs{I: ipsec.IKESPI(i)}, PeerDeleted: true})
	}
	if got := o.Tombstones(); len(got) != MaxTombstones || got[0].I != 10 {
		t.Errorf("%d tombstones from %v", len(got), got[0])
	}
	o.now = o.now.Add(TombstoneAge)
	o.do(func() { o.HandleTimeout(o.now) })
	if got := o.Tombstones(); len(got) != 0 {
		t.Errorf("%d tombstones outlived every record", len(got))
	}
}

// What came from elsewhere is told to whoever is copied to, once, and waits for nobody.
func TestTombstonesFromElsewhereGoOn(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	dead := []ipsec.IKESPIs{{I: 5, R: 6}, {I: 7, R: 8}}
	o.do(func() { o.Bury(o.now, dead[:1]) })
	o.do(func() { o.Bury(o.now, dead) })
	o.do(func() { o.Bury(o.now, dead) })
	if got := o.Tombstones(); !slices.Equal(got, dead) {
		t.Errorf("tombstones %v, want %v", got, dead)
	}
	o.wantSent("each once", 2, "record(5)", "record(7)")
	o.wantSilence("nothing waited")
	o.do(o.Stop)
	o.do(func() { o.Bury(o.now, []ipsec.IKESPIs{{I: 9, R: 9}}) })
	if got := o.Tombstones(); len(got) != 3 || len(o.frames) != 0 {
		t.Errorf("%d tombstones and %d frames of who does not own", len(got), len(o.frames))
	}
}
