package statesync

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	"tandem/xfrm"
)

// standby is a replica under test.
type standby struct {
	*Replica
	t    *testing.T
	led  *Ledger
	told []Effect
}

func newStandby(t *testing.T) *standby {
	led := NewLedger(chance(2))
	return &standby{Replica: NewReplica(memberProcess, led), t: t, led: led}
}

func (s *standby) drain() {
	for {
		e, ok := s.Poll()
		if !ok {
			return
		}
		s.told = append(s.told, e)
	}
}

func (s *standby) want(why string, want ...Effect) {
	s.t.Helper()
	s.drain()
	if got, want := words(s.told), words(want); got != want {
		s.t.Fatalf("%s: told %s, want %s", why, got, want)
	}
	s.told = nil
}

func (s *standby) take1(why string, f []byte, refused error) {
	s.t.Helper()
	err := s.HandleFrame(t0, 1, ownerProcess, f)
	if !errors.Is(err, refused) {
		s.t.Fatalf("%s: %v, want %v", why, err, refused)
	}
}

func (s *standby) takes(why string, f []byte)              { s.t.Helper(); s.take1(why, f, nil) }
func (s *standby) refuses(why string, f []byte, err error) { s.t.Helper(); s.take1(why, f, err) }

func ack(seq uint64) Effect { return SendAck{Node: 1, Process: ownerProcess, Seq: seq} }

// frame makes a frame of the owner to the standby.
func frame(seq uint64, e cluster.Epoch, events ...*syncpb.Frame_Event) []byte {
	return marshal(&syncpb.Frame{Seq: seq, OriginProcess: uint64(ownerProcess), ToProcess: uint64(memberProcess),
		EpochCounter: e.Counter, EpochNode: uint32(e.Node), Events: events})
}

func marshal(f *syncpb.Frame) []byte {
	b, err := proto.Marshal(f)
	if err != nil {
		panic(err)
	}
	return b
}

func begin() *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_CopyBegin{CopyBegin: &syncpb.Frame_CopyBegin{}}}
}

func entry() *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Entry{Entry: &syncpb.Frame_EntryMark{}}}
}

func record(entries ...*syncpb.Frame_Entry) *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Record{Record: &syncpb.Frame_Record{Entries: entries}}}
}

func bounds(sa, n []uint64) *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Bounds{Bounds: &syncpb.Frame_Bounds{Sa: sa, N: n}}}
}

func unite(u *syncpb.Frame_Unite) *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Unite{Unite: u}}
}

func handover(h *syncpb.Frame_Handover) *syncpb.Frame_Event {
	return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Handover{Handover: h}}
}

func TestReplicaFollows(t *testing.T) {
	s := newStandby(t)
	s.takes("the copy", frame(1, epoch1, begin(), record(&syncpb.Frame_Entry{SpiI: 1, Value: []byte("a"),
		KeyIds: []uint64{5, 6}, ChildSpis: []uint32{300},
		Ranges: []*syncpb.Frame_Range{{KeyId: 5, Lo: 8, Hi: 16}, {KeyId: 7, Lo: 8, Hi: 16}}})))
	s.want("the copy", CopyBegins{epoch1}, ApplyRecord{[]Entry{{SPIs: ipsec.IKESPIs{I: 1}, Value: []byte("a"),
		KeyIDs: []ipsec.KeyID{5, 6}, ChildSPIs: []ipsec.ESPSPI{300}}}}, ack(1))
	if c := s.led.IV(5); c == nil || c.SenderID() != 8 {
		t.Error("the range that came with the key was not adopted")
	}
	if s.led.IV(6) != nil || s.led.IV(7) != nil {
		t.Error("a key without a range, or a range without a key, is held")
	}
	s.takes("entry", frame(2, epoch1, entry()))
	s.want("held until we are entitled", CopyComplete{epoch1})
	s.takes("bounds", frame(3, epoch1, bounds([]uint64{300<<1 | 1, 0xffffffff << 1}, []uint64{7, 1<<64 - 1})))
	s.want("nor what follows is acknowledged", ApplyBounds{[]xfrm.Bound{
		{SPIIn: 300, Dir: xfrm.Inbound, N: 7}, {SPIIn: 0xffffffff, N: 1<<64 - 1}}})
	s.ConfirmEntry()
	s.want("entitled", ack(3))
	s.ConfirmEntry()
	s.want("nothing left to confirm")
	s.takes("gone", frame(4, epoch1, record(&syncpb.Frame_Entry{SpiI: 1, PeerDeleted: true})))
	s.want("gone", ApplyRecord{[]Entry{{SPIs: ipsec.IKESPIs{I: 1}, PeerDeleted: true}}}, ack(4))
}

func TestReplicaSequence(t *testing.T) {
	s := newStandby(t)
	s.refuses("a record before any copy", frame(1, epoch1, record()), ErrNoCopy)
	s.takes("copy", frame(1, epoch1, begin()))
	s.takes("the other link", frame(1, epoch1, begin()))
	s.want("once", CopyBegins{epoch1}, ack(1))
	s.refuses("gap", frame(3, epoch1, record()), ErrGap)
	s.want("nothing of it")
	s.takes("in order", frame(2, epoch1, record()))
	s.takes("in order", frame(3, epoch1, record()))
	s.want("both, one acknowledgement", ApplyRecord{[]Entry{}}, ApplyRecord{[]Entry{}}, ack(3))
	s.takes("a copy may skip", frame(9, epoch1, begin()))
	s.takes("what it replaced arrives late", frame(4, epoch1, record()))
	s.want("replaced", CopyBegins{epoch1}, ack(9))
	s.takes("late, and its number is not first on the wire", append([]byte{4 << 3, 1}, frame(8, epoch1, begin())...))
	s.want("replaced")
	if st := s.Stats(); st.Duplicates != 3 || st.Gaps != 1 || st.NoCopy != 1 {
		t.Errorf("%+v", st)
	}
}

func TestReplicaEpochs(t *testing.T) {
	s := newStandby(t)
	epoch2, epoch3 := epoch1.Next(2), cluster.Epoch{Counter: 3, Node: 1}
	s.takes("copy", frame(1, epoch1, begin(), entry()))
	s.want("copy", CopyBegins{epoch1}, CopyComplete{epoch1})
	s.refuses("a record of another epoch than the copy", frame(2, epoch2, record()), ErrNoCopy)
	s.Fence(epoch2)
	s.Fence(epoch1) // never lowered
	s.ConfirmEntry()
	s.want("the entitlement of a fenced epoch is worth nothing")
	s.refuses("fenced", frame(2, epoch1, record()), ErrOldEpoch)
	s.refuses("fenced, even a copy", frame(2, epoch1, begin()), ErrOldEpoch)
	s.want("nothing")
	s.takes("a new epoch", frame(3, epoch3, begin()))
	s.want("a new epoch", CopyBegins{epoch3}, ack(3))
	s.refuses("the copy raised the fence", frame(4, epoch2, begin()), ErrOldEpoch)
}

func TestReplicaEntryIsOfItsCopy(t *testing.T) {
	s := newStandby(t)
	s.takes("copy", frame(1, epoch1, begin()))
	s.takes("entry", frame(2, epoch1, entry()))
	s.takes("begun again", frame(3, epoch1, begin()))
	s.want("the first entry is void", CopyBegins{epoch1}, CopyComplete{epoch1}, CopyBegins{epoch1}, ack(3))
	s.ConfirmEntry()
	s.want("late")
	s.takes("entry", frame(4, epoch1, entry()))
	s.ConfirmEntry()
	s.want("the second", CopyComplete{epoch1}, ack(4))
}

func TestReplicaAbandons(t *testing.T) {
	s := newStandby(t)
	s.takes("copy", frame(1, epoch1, begin()))
	s.want("copy", CopyBegins{epoch1}, ack(1))
	s.Abandon()
	s.refuses("its records have nothing to follow", frame(2, epoch1, record()), ErrNoCopy)
	s.refuses("nor is it complete", frame(2, epoch1, entry()), ErrNoCopy)
	s.want("nothing")
	s.takes("begun again", frame(3, epoch1, begin(), entry()))
	s.ConfirmEntry()
	s.want("begun again", CopyBegins{epoch1}, CopyComplete{epoch1}, ack(3))
}

func TestReplicaAddresses(t *testing.T) {
	s := newStandby(t)
	f := &syncpb.Frame{Seq: 1, OriginProcess: uint64(memberProcess), ToProcess: uint64(memberProcess), Events: []*syncpb.Frame_Event{begin()}}
	s.takes("an echo through the peer is inert", marshal(f))
	if err := s.HandleFrame(t0, 1, memberProcess, marshal(f)); err != nil {
		t.Errorf("an echo from ourselves: %v", err)
	}
	f.OriginProcess = 0xC
	s.refuses("of another process than the stream says", marshal(f), ErrAddress)
	f.OriginProcess, f.ToProcess = uint64(ownerProcess), 0xC
	s.refuses("for another process: its ranges are not ours", marshal(f), ErrAddress)
	s.want("nothing")
	if st := s.Stats(); st.Echoes != 2 || st.Misaddressed != 2 {
		t.Errorf("%+v", st)
	}
}

func TestReplicaSenderRestarts(t *testing.T) {
	s := newStandby(t)
	s.takes("copy", frame(1, epoch1, begin()))
	s.takes("record", frame(2, epoch1, record()))
	f := &syncpb.Frame{Seq: 1, OriginProcess: 0xC, ToProcess: uint64(memberProcess), EpochCounter: 2, EpochNode: 1, Events: []*syncpb.Frame_Event{begin()}}
	if err := s.HandleFrame(t0, 1, 0xC, marshal(f)); err != nil {
		t.Fatal(err)
	}
	s.want("only the living are answered", CopyBegins{epoch1}, ApplyRecord{[]Entry{}}, CopyBegins{cluster.Epoch{Counter: 2, Node: 1}}, SendAck{Node: 1, Process: 0xC, Seq: 1})
	s.refuses("the dead process", frame(9, cluster.Epoch{Counter: 9, Node: 1}, begin()), ErrAddress)
}

func TestReplicaHandover(t *testing.T) {
	s := newStandby(t)
	s.takes("copy", frame(1, epoch1, begin(), entry()))
	s.ConfirmEntry()
	s.want("copy", CopyBegins{epoch1}, CopyComplete{epoch1}, ack(1))
	s.takes("first part", frame(2, epoch1, handover(&syncpb.Frame_Handover{EpochCounter: 2, EpochNode: 2,
		Windows: []*syncpb.Frame_Window{{SpiIn: 300, OutSeq: 1, InSeq: 2, InAccepted: []uint64{3}}}})))
	s.want("only whole", ack(2))
	s.takes("last part", frame(3, epoch1, handover(&syncpb.Frame_Handover{EpochCounter: 2, EpochNode: 2, Last: true,
		Windows: []*syncpb.Frame_Window{{SpiIn: 301}}})))
	s.want("whole", HandoverReceived{Epoch: epoch1.Next(2), Windows: []xfrm.Window{
		{SPIIn: 300, OutSeq: 1, InSeq: 2, InAccepted: []uint64{3}}, {SPIIn: 301}}}, ack(3))
}

func TestReplicaUnites(t *testing.T) {
	s := newStandby(t)
	s.Fence(cluster.Epoch{Counter: 9, Node: 2})
	s.refuses("the middle of a unite", frame(1, epoch1, unite(&syncpb.Frame_Unite{})), ErrNoCopy)
	s.RefuseUnites(true)
	s.refuses("no owner", frame(4, epoch1, unite(&syncpb.Frame_Unite{First: true})), ErrNotOwner)
	s.refuses("no owner, in the middle", frame(5, epoch1, unite(&syncpb.Frame_Unite{})), ErrNotOwner)
	s.refuses("after it: sending all again would change nothing", frame(6, epoch1, &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Letter{Letter: &syncpb.Frame_Letter{Kind: syncpb.Frame_Letter_ENDED}}}), ErrNotOwner)
	s.RefuseUnites(false)
	s.takes("first", frame(4, epoch1, unite(&syncpb.Frame_Unite{First: true,
		Entries: []*syncpb.Frame_Entry{{SpiI: 1, Value: []byte("a"), KeyIds: []uint64{5}, Ranges: []*syncpb.Frame_Range{{KeyId: 5, Lo: 8, Hi: 16}}}}})))
	s.want("only whole", ack(4))
	s.takes("last", frame(5, epoch1, unite(&syncpb.Frame_Unite{Last: true,
		Bounds: &syncpb.Frame_Bounds{Sa: []uint64{600}, N: []uint64{1}}, Tombstones: []uint64{1, 2}})))
	s.want("an older epoch is its nature", UniteReceived{From: 1,
		Entries: []Entry{{SPIs: ipsec.IKESPIs{I: 1}, Value: []byte("a"), KeyIDs: []ipsec.KeyID{5}}},
		Bounds:  []xfrm.Bound{ceiling(300, 1)}, Tombstones: []ipsec.IKESPIs{{I: 1, R: 2}}}, ack(5))
	if s.led.IV(5) == nil {
		t.Error("the range was not adopted")
	}
}

func TestReplicaRefusesNonsense(t *testing.T) {
	s := newStandby(t)
	empty := make([]byte, 0, 3*maxMessages)
	for range maxMessages {
		empty = append(empty, 6<<3|2, 0)
	}
	for why, f := range map[string][]byte{
		"nothing":                 nil,
		"no protobuf":             {0xff, 0xff},
		"too long":                make([]byte, MaxFrame+1),
		"too many messages":       append(frame(1, epoch1, begin()), empty...),
		"number 0":                frame(0, epoch1, begin()),
		"no events":               frame(1, epoch1),
		"an event of no kind":     frame(1, epoch1, &syncpb.Frame_Event{}),
		"bounds without numbers":  frame(1, epoch1, begin(), bounds([]uint64{2}, nil)),
		"a bound of no SPI":       frame(1, epoch1, begin(), bounds([]uint64{1 << 33}, []uint64{1})),
		"half a tombstone":        frame(1, epoch1, unite(&syncpb.Frame_Unite{First: true, Tombstones: []uint64{1}})),
		"a copy within a frame":   frame(1, epoch1, begin(), begin()),
		"unite beside a copy":     frame(1, epoch1, begin(), unite(&syncpb.Frame_Unite{First: true})),
		"unite begins in between": frame(1, epoch1, unite(&syncpb.Frame_Unite{First: true}), unite(&syncpb.Frame_Unite{First: true})),
	} {
		s.refuses(why, f, ErrMalformed)
	}
	s.want("nothing of it")
	s.takes("and goes on", frame(1, epoch1, begin()))
}

// FuzzHandleFrame: whatever arrives, the replica neither panics nor acknowledges what
// it refused, and what it acknowledges only rises.
func FuzzHandleFrame(f *testing.F) {
	o := &owner{Journal: NewJournal(ownerProcess, NewLedger(chance(1)), 1<<20), now: t0}
	o.Start(o.now, epoch1)
	o.join(2, memberProcess, []Entry{sa(1, 5, 6), sa(2)}, ceiling(300, 1))
	o.ackAll(2, memberProcess)
	o.append(1, sa(1), Entry{SPIs: ipsec.IKESPIs{I: 1}, PeerDeleted: true})
	o.do(func() { o.HandOver(o.now, 2, epoch1.Next(2), []xfrm.Window{{SPIIn: 300, InAccepted: []uint64{1, 2}}}) })
	o.do(func() {
		o.Unite(o.now, 2, memberProcess, []Entry{sa(1)}, []xfrm.Bound{ceiling(300, 1)}, []ipsec.IKESPIs{{I: 1}})
	})
	for _, x := range o.frames {
		f.Add(x.Frame, x.Frame)
	}
	f.Add(o.frames[0].Frame, o.frames[1].Frame)
	f.Add(frame(1, epoch1, begin(), entry()), frame(2, epoch2, renewal(), record()))
	f.Add(frame(1, epoch2, begin()), frame(2, epoch1, renewal()))
	f.Add(frame(1, epoch1, letter(&syncpb.Frame_Letter{Kind: 1, Other: 7})), frame(3, epoch2, letter(&syncpb.Frame_Letter{Kind: 4, First: true})))
	f.Add([]byte{}, []byte{6<<3 | 2, 0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := newStandby(t)
		var acked uint64
		for _, x := range [][]byte{a, b, a} {
			err := s.HandleFrame(t0, 1, ownerProcess, x)
			s.told = nil
			s.drain()
			for _, e := range s.told {
				if err != nil {
					t.Fatalf("%v after %v", e, err)
				}
				if k, ok := e.(SendAck); ok {
					if k.Seq <= acked {
						t.Fatalf("acknowledged %d after %d", k.Seq, acked)
					}
					acked = k.Seq
				}
			}
		}
		s.ConfirmEntry()
		s.drain()
	})
}

// The sender waits for the acknowledgement, and may have it first: once, of all that was
// taken over, and never of an entry that is not confirmed.
func TestReplicaAcknowledgesFirstIfAsked(t *testing.T) {
	s := newStandby(t)
	s.takes("copy", frame(1, epoch1, begin()))
	s.takes("entry", frame(2, epoch1, entry()))
	if a, ok := s.PollAck(); !ok || Effect(a) != ack(1) {
		t.Fatalf("%v, %v", a, ok)
	}
	if a, ok := s.PollAck(); ok {
		t.Fatalf("then %v", a)
	}
	s.want("what was acknowledged, without another acknowledgement", CopyBegins{epoch1}, CopyComplete{epoch1})
	s.ConfirmEntry()
	s.want("entitled", ack(2))
}
