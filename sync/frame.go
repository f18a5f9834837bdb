package statesync

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
	"tandem/xfrm"
)

const (
	// MaxFrame bounds a marshalled frame, in bytes. Frames are filled to frameSize;
	// only a single record that is larger makes a larger one.
	MaxFrame  = 4 << 20
	frameSize = 256 << 10
	copyFrame = 64 << 10 // to which frames of a copy are filled, see copyWindow
	// maxMessages bounds the protobuf messages in a frame: an empty one costs two
	// bytes on the wire and a hundred in memory.
	maxMessages = 65_536

	frameMessages = 8192 // to which frames are filled
	boundsPerItem = 8192
	itemCost      = 16 // bytes of framing around an item or an entry, at most
	keyCost       = 8 + 24
	windowCost    = 32
)

type kind uint8

const (
	kindCopyBegin kind = iota
	kindRecord
	kindBounds
	kindEntry
	kindHandover
	kindUnite
	kindRenew
	kindLetter
)

// item is one event on its way into a frame.
type item struct {
	kind        kind
	live        bool   // counts against the queue's limit
	first, last bool   // of a unite or a handover
	pos         uint64 // its receiver has everything up to this position; 0: says nothing
	size        int    // bytes in a frame, at most
	messages    int
	entries     []Entry
	bounds      []xfrm.Bound
	windows     []xfrm.Window
	tombstones  []ipsec.IKESPIs
	epoch       cluster.Epoch
	letter      Letter // without its entries
}

// fits says whether a frame can hold the item at all.
func (it *item) fits() bool { return it.size+1024 <= MaxFrame && it.messages+16 <= maxMessages }

func entrySize(e *Entry) int {
	return 48 + len(e.Value) + keyCost*len(e.KeyIDs) + 4*len(e.ChildSPIs)
}

func recordItem(entries []Entry, pos uint64) item {
	it := item{kind: kindRecord, pos: pos, size: itemCost, messages: 2, entries: entries}
	for i := range entries {
		it.size += entrySize(&entries[i])
		it.messages += 1 + len(entries[i].KeyIDs)
	}
	return it
}

func boundsItem(bounds []xfrm.Bound, pos uint64) item {
	return item{kind: kindBounds, pos: pos, size: itemCost + 15*len(bounds), messages: 2, bounds: bounds}
}

// chunk cuts entries into runs of limit bytes; a larger entry stands alone.
func chunk(entries []Entry, limit int, each func([]Entry)) {
	for len(entries) > 0 {
		n, size, messages := 0, 0, 0
		for n < len(entries) {
			size += entrySize(&entries[n])
			messages += 1 + len(entries[n].KeyIDs)
			if n > 0 && (size > limit || messages > frameMessages) {
				break
			}
			n++
		}
		each(entries[:n])
		entries = entries[n:]
	}
}

// copyItems makes the parts of a full copy; ok is false when one cannot be sent.
func copyItems(entries []Entry, bounds []xfrm.Bound, push func(item)) (ok bool) {
	ok = true
	add := func(it item) {
		ok = ok && it.fits()
		push(it)
	}
	chunk(entries, copyFrame, func(c []Entry) { add(recordItem(c, 0)) })
	for c := range slices.Chunk(bounds, boundsPerItem) {
		add(boundsItem(c, 0))
	}
	return ok
}

// uniteItems makes the parts of the state sent at healing.
func uniteItems(entries []Entry, bounds []xfrm.Bound, tombstones []ipsec.IKESPIs, push func(item)) (ok bool) {
	ok = true
	add := func(it item) {
		it.kind = kindUnite
		ok = ok && it.fits()
		push(it)
	}
	add(item{first: true, size: itemCost, messages: 2})
	chunk(entries, frameSize, func(c []Entry) { add(recordItem(c, 0)) })
	for c := range slices.Chunk(bounds, boundsPerItem) {
		it := boundsItem(c, 0)
		it.messages++
		add(it)
	}
	for c := range slices.Chunk(tombstones, 4096) {
		add(item{tombstones: c, size: itemCost + 16*len(c), messages: 2})
	}
	add(item{last: true, size: itemCost, messages: 2})
	return ok
}

// handoverItems makes the parts of a handover; the last one stands even without windows.
func handoverItems(e cluster.Epoch, windows []xfrm.Window, push func(item)) {
	for {
		it := item{kind: kindHandover, epoch: e, size: 2 * itemCost, messages: 2}
		n := 0
		for n < len(windows) && it.size < frameSize && it.messages < frameMessages {
			it.size += windowCost + 8*len(windows[n].InAccepted)
			it.messages++
			n++
		}
		it.windows, windows = windows[:n], windows[n:]
		it.last = len(windows) == 0
		push(it)
		if it.last {
			return
		}
	}
}

// frame takes items from the peer's queue and sends them as one frame.
func (j *Journal) frame(p *peer) {
	p.seq++
	s := sent{seq: p.seq, at: j.now}
	f := &syncpb.Frame{
		Seq: p.seq, OriginProcess: uint64(j.self), ToProcess: uint64(p.process),
		Scope: uint32(j.scope),
	}
	restart, limit := false, frameSize
	if p.mode == modeCopying {
		limit = copyFrame
	}
	for size, messages := 0, 0; p.queue.len() > 0; {
		it := p.queue.first()
		if len(f.Events) > 0 && (it.kind == kindLetter) != (f.Events[0].GetLetter() != nil) || it.kind == kindLetter && it.first && len(f.Events) > 0 {
			break
		}
		if it.kind == kindRenew {
			if len(f.Events) > 0 {
				break // what was before it goes under the epoch before
			}
			p.epoch, p.renewSeq = it.epoch, p.seq
		}
		size += it.size
		messages += it.messages
		if len(f.Events) > 0 && (size > limit || messages > frameMessages) {
			break
		}
		restart = restart || it.kind == kindCopyBegin || (it.kind == kindUnite || it.kind == kindLetter) && it.first
		f.Events = append(f.Events, j.event(p, it))
		s.pos = max(s.pos, it.pos)
		if it.live {
			s.live += it.size
		} else if p.mode == modeCopying {
			p.copySeq = p.seq
		}
		if it.kind == kindHandover && it.last {
			p.handSeq, p.handEpoch = p.seq, it.epoch
		}
		p.queue.pop()
	}
	f.EpochCounter, f.EpochNode = p.epoch.Counter, uint32(p.epoch.Node)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(f)
	if err != nil {
		panic("statesync: a frame does not marshal: " + err.Error()) // no strings in it: cannot happen
	}
	s.bytes = len(b)
	p.flying += s.bytes
	p.sent.push(s)
	j.effects.push(SendFrame{Scope: j.scope, Node: p.node, Process: p.process, Seq: p.seq, Restart: restart, Frame: b})
}

func (j *Journal) event(p *peer, it *item) *syncpb.Frame_Event {
	switch it.kind {
	case kindCopyBegin:
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_CopyBegin{CopyBegin: &syncpb.Frame_CopyBegin{}}}
	case kindRecord:
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Record{
			Record: &syncpb.Frame_Record{Entries: j.entries(p, it.entries)}}}
	case kindBounds:
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Bounds{Bounds: boundsToPB(it.bounds)}}
	case kindEntry:
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Entry{Entry: &syncpb.Frame_EntryMark{}}}
	case kindRenew:
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Renew{Renew: &syncpb.Frame_Renew{}}}
	case kindLetter:
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Letter{Letter: &syncpb.Frame_Letter{
			First: it.first, Kind: syncpb.Frame_Letter_Kind(it.letter.Kind), Other: uint32(it.letter.Other), Entries: j.entries(p, it.entries)}}}
	case kindHandover:
		h := &syncpb.Frame_Handover{EpochCounter: it.epoch.Counter, EpochNode: uint32(it.epoch.Node), Last: it.last}
		for _, w := range it.windows {
			h.Windows = append(h.Windows, &syncpb.Frame_Window{
				SpiIn: uint32(w.SPIIn), OutSeq: w.OutSeq, InSeq: w.InSeq, InAccepted: w.InAccepted})
		}
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Handover{Handover: h}}
	default:
		u := &syncpb.Frame_Unite{First: it.first, Last: it.last, Entries: j.entries(p, it.entries)}
		if len(it.bounds) > 0 {
			u.Bounds = boundsToPB(it.bounds)
		}
		for _, t := range it.tombstones {
			u.Tombstones = append(u.Tombstones, uint64(t.I), uint64(t.R))
		}
		return &syncpb.Frame_Event{Kind: &syncpb.Frame_Event_Unite{Unite: u}}
	}
}

// entries converts entries for one process: each key with that process's range,
// given away here and now, before the frame exists.
func (j *Journal) entries(p *peer, in []Entry) []*syncpb.Frame_Entry {
	out := make([]*syncpb.Frame_Entry, len(in))
	for i, e := range in {
		m := &syncpb.Frame_Entry{SpiI: uint64(e.SPIs.I), SpiR: uint64(e.SPIs.R), Value: e.Value, PeerDeleted: e.PeerDeleted}
		for _, k := range e.KeyIDs {
			m.KeyIds = append(m.KeyIds, uint64(k))
			if len(e.Value) == 0 {
				continue // no secret travels
			}
			if r, ok := j.led.Grant(k, p.process); ok {
				m.Ranges = append(m.Ranges, &syncpb.Frame_Range{KeyId: uint64(k), Lo: r.Lo, Hi: r.Hi})
			}
		}
		for _, s := range e.ChildSPIs {
			m.ChildSpis = append(m.ChildSpis, uint32(s))
		}
		out[i] = m
	}
	return out
}

func boundsToPB(bounds []xfrm.Bound) *syncpb.Frame_Bounds {
	m := &syncpb.Frame_Bounds{Sa: make([]uint64, len(bounds)), N: make([]uint64, len(bounds))}
	for i, b := range bounds {
		m.Sa[i], m.N[i] = uint64(b.SPIIn)<<1|uint64(b.Dir), b.N
	}
	return m
}
