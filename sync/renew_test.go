package statesync

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

const thirdProcess = cluster.ProcessID(0xC)

var epoch2 = epoch1.Next(1)

func renewal() *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Renew{Renew: &syncpb.Frame_Renew{}}}
}

func (o *owner) renew(e cluster.Epoch, stay ...cluster.NodeID) {
	o.do(func() { o.Renew(o.now, e, stay) })
}

func value(s string) Entry { return Entry{SPIs: ipsec.IKESPIs{I: 1}, Value: []byte(s)} }

// epochOf is the epoch that a frame was made under, with the kinds of its events.
func epochOf(t *testing.T, f SendFrame) string {
	t.Helper()
	m := new(syncpb.Frame)
	if err := proto.Unmarshal(f.Frame, m); err != nil {
		t.Fatal(err)
	}
	s := fmt.Sprintf("%d.%d", m.EpochCounter, m.EpochNode)
	for _, e := range m.Events {
		s += fmt.Sprintf(" %T", e.Kind)[len(" *syncpb.Frame_Event_"):]
	}
	return s
}

func (o *owner) wantFrames(why string, n cluster.NodeID, want ...string) {
	o.t.Helper()
	var got []string
	var rest []SendFrame
	for _, f := range o.frames {
		if f.Node == n {
			got = append(got, epochOf(o.t, f))
		} else {
			rest = append(rest, f)
		}
	}
	o.frames = rest
	if fmt.Sprint(got) != fmt.Sprint(want) {
		o.t.Fatalf("%s: sent %v, want %v", why, got, want)
	}
}

// The order that keeps it safe: the one who stays has followed before the one who does
// not is let go, and what either of them has not acknowledged waits.
func TestRenewWithOneWhoStays(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.entered(3, thirdProcess)
	o.append(1, value("in flight"))
	o.wantFrames("a record", 2, "1.1Record")
	o.wantFrames("a record", 3, "1.1Record")
	o.renew(epoch2, 2)
	o.wantFrames("who stays is told, without a copy", 2, "2.1Renew")
	o.wantFrames("who does not is told nothing", 3)
	o.append(2, value("after"))
	o.wantFrames("records go on under the later epoch", 2, "2.1Record")
	o.wantFrames("to those who stay", 3)

	seq := o.find(2).seq
	o.ack(2, memberProcess, seq-2)
	o.wantSilence("node 3 has not acknowledged the first record")
	o.ack(3, thirdProcess, o.find(3).seq)
	o.want("both hold it, before either has left or followed", Committed{1})
	o.ack(2, memberProcess, seq-1)
	o.want("followed", RenewedBy{2})
	o.ack(2, memberProcess, seq)
	o.wantSilence("node 3 may still succeed without the second record")
	if s := fmt.Sprint(o.SyncSet()); s != "[2 3]" {
		t.Errorf("sync set %s", s)
	}
	if o.Lag(o.now, 3) != hopeless || !o.Pending() {
		t.Error("the one left behind does not show as such")
	}
	o.leave(3)
	o.want("it has left", Committed{2})
	if s := fmt.Sprint(o.SyncSet()); s != "[2]" {
		t.Errorf("sync set %s", s)
	}
	o.join(3, thirdProcess, nil)
	o.wantFrames("it can come again", 3, "2.1CopyBegin")
}

// One that is left behind and joined again counts all the time.
func TestRenewAndJoinAgain(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.entered(2, memberProcess)
	o.renew(epoch2)
	o.append(1, value("a"))
	o.wantFrames("left behind", 2)
	o.join(2, memberProcess, []Entry{value("a")})
	o.wantSilence("it counts on")
	o.ackAll(2, memberProcess)
	o.want("what the copy holds is held", Committed{1})
	o.ackAll(2, memberProcess)
	o.want("and enters", Entered{2})
	o.wantFrames("under the later epoch", 2, "2.1CopyBeginRecord", "2.1Entry")
}

// A renewal beside a copy, an entry under way, a second renewal, and what is none.
func TestRenewAtAnyMoment(t *testing.T) {
	epoch3 := epoch2.Next(1)
	t.Run("copying", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.join(2, memberProcess, nil)
		o.renew(epoch2, 2)
		o.append(1, value("a"))
		o.wantFrames("the copy goes on", 2, "1.1CopyBegin", "2.1Renew", "2.1Record")
		o.want("nobody counts yet", Committed{1})
		o.ack(2, memberProcess, 3)
		o.wantSilence("it has acknowledged the renewal, but nothing entitles it")
		o.wantFrames("entry", 2, "2.1Entry")
		o.ack(2, memberProcess, 4)
		o.want("now it does", Entered{2}, RenewedBy{2})
	})
	t.Run("copying, not to stay", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.join(2, memberProcess, nil)
		o.renew(epoch2)
		o.ack(2, memberProcess, 1)
		o.wantFrames("the copy is given up", 2, "1.1CopyBegin")
		o.wantSilence("and nothing comes of it")
		if _, ok := o.NextTimeout(); ok {
			t.Error("it is still waited for")
		}
	})
	t.Run("entry under way", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.join(2, memberProcess, nil)
		o.ack(2, memberProcess, 1)
		o.renew(epoch2, 2)
		o.wantFrames("in order", 2, "1.1CopyBegin", "1.1Entry", "2.1Renew")
		o.ack(2, memberProcess, 2)
		o.want("the entry alone", Entered{2})
		o.ack(2, memberProcess, 3)
		o.want("then the renewal", RenewedBy{2})
	})
	t.Run("left behind before its entry is acknowledged", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.join(2, memberProcess, nil)
		o.ack(2, memberProcess, 1)
		o.renew(epoch2)
		o.append(1, value("a"))
		o.ack(2, memberProcess, 2)
		o.wantSilence("it may be entitled under the epoch before, and is no member of this one")
		o.leave(2)
		o.want("left", Committed{1})
	})
	t.Run("twice", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.entered(2, memberProcess)
		o.renew(epoch2, 2)
		o.renew(epoch3, 2)
		o.wantFrames("both", 2, "2.1Renew", "3.1Renew")
		seq := o.find(2).seq
		o.ack(2, memberProcess, seq-1)
		o.wantSilence("only the latest epoch counts")
		o.ack(2, memberProcess, seq)
		o.want("followed", RenewedBy{2})
		o.ack(2, memberProcess, seq)
		o.wantSilence("once")
	})
	t.Run("in one go", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.entered(2, memberProcess)
		o.do(func() {
			o.Append(o.now, 1, []Entry{value("before")})
			o.Renew(o.now, epoch2, []cluster.NodeID{2})
			o.Append(o.now, 2, []Entry{value("after")})
		})
		o.wantFrames("what came before goes under the epoch before", 2, "1.1Record", "2.1RenewRecord")
		seq := o.find(2).seq
		o.do(func() {
			o.Renew(o.now, epoch3, []cluster.NodeID{2})
			o.HandleAck(o.now, 2, memberProcess, seq)
		})
		o.want("of the second epoch nothing was sent yet", Committed{1}, Committed{2})
		o.ack(2, memberProcess, seq+1)
		o.want("followed", RenewedBy{2})
	})
	t.Run("none", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.entered(2, memberProcess)
		o.renew(epoch1, 2)
		o.renew(cluster.Epoch{}, 2)
		o.renew(epoch2, 4) // no member; and 2 is left behind
		o.wantFrames("nothing", 2)
		o.do(o.Stop)
		o.renew(epoch3, 2)
		o.wantFrames("without ownership", 2)
	})
	t.Run("overflowed", func(t *testing.T) {
		o := newOwner(t, 100)
		o.entered(2, memberProcess)
		o.append(1, value(string(make([]byte, 200))))
		o.want("too much", Overflow{2})
		o.renew(epoch2, 2)
		o.wantFrames("it cannot stay", 2)
		o.leave(2)
		o.want("left", Committed{1})
	})
	t.Run("uniting", func(t *testing.T) {
		o := newOwner(t, 1<<20)
		o.do(func() { o.Unite(o.now, 3, thirdProcess, nil, nil, nil) })
		o.renew(epoch2, 3)
		o.wantFrames("goes on", 3, "1.1UniteUnite")
	})
}

func TestReplicaRenews(t *testing.T) {
	s := newStandby(t)
	epoch3 := epoch2.Next(1)
	s.refuses("without a copy", frame(1, epoch2, renewal()), ErrNoCopy)
	s.takes("copy", frame(1, epoch1, begin(), record(), entry()))
	s.want("copy", CopyBegins{epoch1}, ApplyRecord{[]Entry{}}, CopyComplete{epoch1})
	s.ConfirmEntryAt(epoch1)
	s.want("entitled", ack(1))
	s.refuses("no later epoch", frame(2, epoch1, renewal()), ErrNoCopy)
	s.refuses("not first", frame(2, epoch2, record(), renewal()), ErrMalformed)
	s.refuses("a record of the later epoch before it", frame(2, epoch2, record()), ErrNoCopy)
	s.refuses("gap", frame(3, epoch2, renewal()), ErrGap)
	s.want("nothing of it")
	s.takes("renewal", frame(2, epoch2, renewal(), record(&syncpb.Frame_Entry{SpiI: 1, Value: []byte("a")})))
	s.want("applied, and held until we are entitled again", Renewed{epoch2}, ApplyRecord{[]Entry{value("a")}})
	s.refuses("the epoch before", frame(3, epoch1, record()), ErrOldEpoch)
	s.takes("record", frame(3, epoch2, record()))
	s.want("nor what follows is acknowledged", ApplyRecord{[]Entry{}})
	s.ConfirmEntryAt(epoch1)
	s.want("an answer about the epoch before says nothing of this one")
	s.ConfirmEntryAt(epoch2)
	s.want("entitled", ack(3))
	s.takes("again", frame(4, epoch3, renewal()))
	s.want("again", Renewed{epoch3})
	s.Fence(epoch3.Next(2))
	s.ConfirmEntryAt(epoch3)
	s.want("somebody else owns: nothing is acknowledged any more")
	s.refuses("fenced", frame(5, epoch3.Next(1), renewal()), ErrOldEpoch)
}

// A renewal that comes before the entry, or before its confirmation.
func TestReplicaRenewsBesideItsEntry(t *testing.T) {
	s := newStandby(t)
	s.takes("copy", frame(1, epoch1, begin()))
	s.takes("renewal", frame(2, epoch2, renewal(), record()))
	s.want("nothing to be entitled to yet", CopyBegins{epoch1}, ApplyRecord{[]Entry{}}, ack(2))
	s.takes("entry", frame(3, epoch2, entry()))
	s.want("one question", CopyComplete{epoch2})
	s.takes("renewal", frame(4, epoch2.Next(1), renewal()))
	s.want("and another", Renewed{epoch2.Next(1)})
	s.ConfirmEntryAt(epoch2)
	s.want("the first answer comes too late")
	s.ConfirmEntryAt(epoch2.Next(1))
	s.want("the second covers both", ack(4))
}

// A node that hears of the epoch before the frame comes must be copied anew.
func TestReplicaFencedBeforeTheRenewal(t *testing.T) {
	s := newStandby(t)
	s.takes("copy", frame(1, epoch1, begin(), entry()))
	s.ConfirmEntry()
	s.want("copy", CopyBegins{epoch1}, CopyComplete{epoch1}, ack(1))
	s.Fence(epoch2)
	s.refuses("in flight", frame(2, epoch1, record()), ErrOldEpoch)
	s.refuses("after it", frame(3, epoch2, renewal()), ErrGap)
	s.refuses("or at once", frame(2, epoch2, renewal()), ErrNoCopy)
	s.takes("the copy", frame(4, epoch2, begin(), entry()))
	s.want("in; what the copy replaces is owed no more", CopyBegins{epoch2}, CopyComplete{epoch2}, ack(3))
	s.ConfirmEntryAt(epoch2)
	s.want("entitled", ack(4))
}

// What waited for longer than CopyTimeout during a renewed copy is still told.
func TestRenewedCopyStalls(t *testing.T) {
	o := newOwner(t, 1<<20)
	o.join(2, memberProcess, nil)
	o.now = o.now.Add(time.Second)
	o.renew(epoch2, 2)
	o.now = o.now.Add(CopyTimeout)
	o.do(func() { o.HandleTimeout(o.now) })
	o.want("stalled", CopyStalled{2, memberProcess})
}
