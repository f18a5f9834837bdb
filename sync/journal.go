package statesync

import (
	"slices"
	"time"

	"tandem/cluster"
	"tandem/internal/ipsec"
	"tandem/xfrm"
)

const (
	// TombstoneAge: after this long no record of the IKE SA can be alive anywhere,
	// for it is the longest configurable lifetime.
	TombstoneAge = 172_800 * time.Second
	// MaxTombstones are kept; the oldest go first.
	MaxTombstones = 65_536

	// copyWindow is the bytes of a copy that may be unacknowledged. A farm's member is
	// copied to for many scopes at once, and the entry of one waits behind what is under
	// way of the others: not so long that it seems to lag.
	copyWindow = 128 << 10
	hopeless   = time.Hour // the lag of a member whose queue overflowed
)

// Journal carries the state of the owner to the members of the sync set. What it
// is given it puts in one order; a ticket or a bound is done when every member that
// counts has acknowledged everything up to it, at once when none counts.
//
// A member goes through a copy (sent in parts, a window at a time, followed by what
// was appended meanwhile), then the entry. From the moment the entry is sent it
// counts, until Leave; Renew takes it along to a later epoch. All methods are called from one goroutine; after each, Poll
// until it has nothing more.
type Journal struct {
	scope cluster.ScopeID
	self  cluster.ProcessID
	led   *Ledger
	limit int

	owner bool
	epoch cluster.Epoch
	now   time.Time // of the last input
	peers []*peer   // by node

	pos       uint64 // of the last thing put in order
	committed uint64
	waiting   fifo[waiting]
	tombs     tombs
	effects   fifo[Effect]
}

// waiting is a ticket, or bounds, that some member has not acknowledged.
type waiting struct {
	pos    uint64
	ticket uint64
	bounds []xfrm.Bound // nil: a ticket
}

// mode of a peer.
type mode uint8

const (
	modeIdle    mode = iota // not of the sync set; only its numbering is kept
	modeCopying             // the entry has not been sent (again)
	modeEntered             // the entry was sent; acknowledged when seq reached entrySeq
	modeUniting             // it receives our state at healing
)

// peer is another node's process, as far as frames to it are concerned.
type peer struct {
	node    cluster.NodeID
	process cluster.ProcessID
	mode    mode
	gates   bool // commits wait for it
	over    bool // its queue overflowed, or Renew left it behind: nothing more is queued until it leaves

	epoch      cluster.Epoch // under which frames to it are made
	seq, acked uint64        // of frames: last made, highest acknowledged
	ackedPos   uint64        // everything up to here is acknowledged, or did not wait for it
	queue      fifo[item]    // not yet in a frame
	sent       fifo[sent]    // in frames, not acknowledged
	live       int           // bytes queued and unacknowledged, the copy apart
	flying     int           // bytes unacknowledged
	copySeq    uint64        // last frame with a part of the copy
	entrySeq   uint64        // frame with the entry
	entered    bool          // Entered was told
	renewSeq   uint64        // frame that moved it to epoch; 0: none that matters
	handSeq    uint64        // last frame of a handover
	handEpoch  cluster.Epoch // that it hands over
	progress   time.Time     // when the copy was begun or last acknowledged further
}

// sent is a frame that is not acknowledged.
type sent struct {
	seq, pos    uint64
	live, bytes int
	at          time.Time
}

// NewJournal makes the journal of scope 0 for a process that owns nothing yet. limit
// bounds the bytes queued for one member, its copy not counted.
func NewJournal(self cluster.ProcessID, l *Ledger, limit int) *Journal {
	return NewScopeJournal(0, self, l, limit)
}

// NewScopeJournal makes the journal of any scope. A process has one for each scope that
// it ever owns or unites, and keeps it: its numbers go on. The Ledger is one for all.
func NewScopeJournal(scope cluster.ScopeID, self cluster.ProcessID, l *Ledger, limit int) *Journal {
	return &Journal{scope: scope, self: self, led: l, limit: limit}
}

// Start begins ownership at the epoch, with an empty sync set. An owner that goes on under
// another epoch counts on nobody any more: what waited is committed.
func (j *Journal) Start(now time.Time, e cluster.Epoch) {
	j.tick(now)
	var open fifo[waiting]
	if j.owner {
		open = j.waiting
		j.waiting = fifo[waiting]{}
	}
	j.reset(func(*peer) bool { return true })
	j.waiting = open
	j.commit()
	j.owner, j.epoch = true, e
}

// Stop ends ownership: what has not been committed never will be. A Unite goes on.
func (j *Journal) Stop() {
	j.reset(func(p *peer) bool { return p.mode != modeUniting })
	j.owner = false
}

func (j *Journal) reset(which func(*peer) bool) {
	for _, p := range j.peers {
		if which(p) {
			p.clear()
		}
	}
	j.waiting.clear()
	j.committed = j.pos
	old := j.effects
	j.effects = fifo[Effect]{}
	for old.len() > 0 {
		e := old.pop()
		if f, ok := e.(SendFrame); ok && j.find(f.Node).mode == modeUniting {
			j.effects.push(e)
		}
	}
}

// Append puts one atomic record in order; Committed answers its ticket. Tickets rise.
// The entries are kept until they are sent and must not be changed.
func (j *Journal) Append(now time.Time, ticket uint64, entries []Entry) {
	j.tick(now)
	if !j.owner {
		return
	}
	for _, e := range entries {
		if len(e.Value) == 0 && e.PeerDeleted {
			j.bury(e.SPIs)
		}
	}
	j.pos++
	j.broadcast(recordItem(entries, j.pos))
	j.waiting.push(waiting{pos: j.pos, ticket: ticket})
	j.commit()
}

// SetBounds raises or withdraws bounds, in order with the records; BoundsEffective
// answers.
func (j *Journal) SetBounds(now time.Time, bounds []xfrm.Bound) {
	j.tick(now)
	if !j.owner || len(bounds) == 0 {
		return
	}
	j.pos++
	for rest := bounds; len(rest) > 0; {
		n := min(len(rest), boundsPerItem)
		it := boundsItem(rest[:n], 0)
		if rest = rest[n:]; len(rest) == 0 {
			it.pos = j.pos // the last part completes the whole
		}
		j.broadcast(it)
	}
	j.waiting.push(waiting{pos: j.pos, bounds: bounds})
	j.commit()
}

// broadcast queues for everybody who is being copied to or counts.
func (j *Journal) broadcast(it item) {
	it.live = true
	for _, p := range j.peers {
		if p.mode != modeCopying && p.mode != modeEntered || p.over {
			continue
		}
		p.live += it.size
		if p.live > j.limit || !it.fits() {
			j.overflow(p)
			continue
		}
		p.queue.push(it)
	}
}

// overflow: nothing more can reach the member. It still counts until it leaves,
// because it may be entitled.
func (j *Journal) overflow(p *peer) {
	p.over = true
	p.queue.clear()
	j.effects.push(Overflow{p.node})
}

// Join begins a full copy to a member's process, or begins it again. A member that
// counts already goes on counting. What is appended from now on follows the copy.
func (j *Journal) Join(now time.Time, node cluster.NodeID, process cluster.ProcessID, entries []Entry, bounds []xfrm.Bound) {
	j.tick(now)
	if !j.owner || process == j.self {
		return
	}
	p := j.peer(node, process)
	gates, ackedPos := p.gates, p.ackedPos
	p.clear()
	p.gates, p.ackedPos = gates, ackedPos
	p.mode, p.progress, p.epoch = modeCopying, now, j.epoch
	p.queue.push(item{kind: kindCopyBegin, size: itemCost, messages: 2})
	ok := copyItems(entries, bounds, func(it item) { p.queue.push(it) })
	// Who has the whole copy has everything appended before it.
	p.queue.last().pos = j.pos
	if !ok {
		j.overflow(p)
	}
}

// Leave takes a member out: what waits for it alone is committed.
func (j *Journal) Leave(now time.Time, node cluster.NodeID) {
	j.tick(now)
	if p := j.find(node); p != nil && p.mode != modeUniting {
		p.clear()
		j.commit()
	}
}

// Renew goes on owning under a later epoch. The members in stay that count remain in
// the sync set with what they hold; each gets a frame that says so, in order with the
// records, and RenewedBy tells its acknowledgement. A copy to one of them goes on, and
// RenewedBy comes with its Entered; one that is joined again meanwhile is Entered only.
//
// Everybody else is sent nothing more. Who counted counts on until Leave, because it may
// be entitled under the epoch before: what it did not acknowledge waits. So does what is
// appended, which keeps this order safe: Renew, RenewedBy of all who stay, the epoch is
// announced, Leave of those who do not.
//
// A member that refuses the earlier epoch before the frame has come (Fence) does not
// follow and has to be copied anew: the owner renews before others hear of it. Without
// ownership, or at an epoch that is not later, Renew does nothing.
func (j *Journal) Renew(now time.Time, e cluster.Epoch, stay []cluster.NodeID) {
	j.tick(now)
	if !j.owner || !j.epoch.Less(e) {
		return
	}
	j.epoch = e
	for _, p := range j.peers {
		switch {
		case p.mode == modeUniting:
		case slices.Contains(stay, p.node) && (p.mode == modeCopying || p.mode == modeEntered) && !p.over:
			p.queue.push(item{kind: kindRenew, epoch: e, size: itemCost, messages: 2})
		case p.gates:
			p.mode, p.over, p.renewSeq, p.handSeq = modeIdle, true, 0, 0
			p.queue.clear()
		default:
			p.clear()
		}
	}
}

// HandleAck takes a member's acknowledgement of every frame up to seq. Those of
// another process, or of frames never sent, are ignored.
func (j *Journal) HandleAck(now time.Time, node cluster.NodeID, process cluster.ProcessID, seq uint64) {
	j.tick(now)
	p := j.find(node)
	if p == nil || p.process != process || seq > p.seq || seq <= p.acked {
		return
	}
	p.acked, p.progress = seq, now
	for p.sent.len() > 0 && p.sent.first().seq <= seq {
		s := p.sent.pop()
		p.live -= s.live
		p.flying -= s.bytes
		p.ackedPos = max(p.ackedPos, s.pos)
	}
	if p.mode == modeEntered && !p.entered && seq >= p.entrySeq {
		p.entered = true
		j.effects.push(Entered{node})
	}
	if p.mode == modeEntered && p.renewSeq != 0 && p.epoch == j.epoch && seq >= max(p.renewSeq, p.entrySeq) {
		p.renewSeq = 0
		j.effects.push(RenewedBy{node})
	}
	if p.mode == modeUniting && p.queue.len() == 0 && p.sent.len() == 0 {
		p.mode = modeIdle
		j.effects.push(United{node})
	}
	j.commit()
	if p.handSeq != 0 && seq >= p.handSeq {
		p.handSeq = 0
		j.effects.push(HandedOver{node, p.handEpoch})
	}
}

// commit tells what every member that counts has acknowledged.
func (j *Journal) commit() {
	pos := j.pos
	for _, p := range j.peers {
		if p.gates {
			pos = min(pos, p.ackedPos)
		}
	}
	j.committed = max(j.committed, pos)
	for j.waiting.len() > 0 && j.waiting.first().pos <= j.committed {
		w := j.waiting.pop()
		if w.bounds != nil {
			j.effects.push(BoundsEffective{w.bounds})
		} else {
			j.effects.push(Committed{w.ticket})
		}
	}
}

// Lag is the age of the oldest frame that a member which counts has not
// acknowledged; 0 when there is none, an hour once its queue overflowed.
func (j *Journal) Lag(now time.Time, node cluster.NodeID) time.Duration {
	p := j.find(node)
	switch {
	case p == nil || !p.gates:
		return 0
	case p.over:
		return hopeless
	case p.sent.len() == 0:
		return 0
	}
	return max(now.Sub(p.sent.first().at), 0)
}

// Mark names everything that was put in order by now; Done says whether all that counted
// have acknowledged what a mark names, or are waited for no longer.
func (j *Journal) Mark() uint64 { return j.pos }

// Done is described with Mark.
func (j *Journal) Done(mark uint64) bool { return mark <= j.committed }

// Pending says whether a member that counts has unacknowledged frames.
func (j *Journal) Pending() bool {
	return slices.ContainsFunc(j.peers, func(p *peer) bool { return p.gates && (p.over || p.sent.len() > 0) })
}

// Copying says that a copy for the member is under way: its entry has not been sent.
func (j *Journal) Copying(node cluster.NodeID) bool {
	p := j.find(node)
	return p != nil && p.mode == modeCopying && !p.over
}

// SyncSet lists the members that count.
func (j *Journal) SyncSet() (nodes []cluster.NodeID) {
	for _, p := range j.peers {
		if p.gates {
			nodes = append(nodes, p.node)
		}
	}
	return nodes
}

// HandOver sends a member the exact windows and the epoch at which it shall own the
// scope, after everything before; HandedOver tells its acknowledgement. A node that
// is no member is ignored.
func (j *Journal) HandOver(now time.Time, node cluster.NodeID, e cluster.Epoch, windows []xfrm.Window) {
	j.tick(now)
	p := j.find(node)
	if !j.owner || p == nil || p.mode != modeEntered || p.over {
		return
	}
	handoverItems(e, windows, func(it item) { p.queue.push(it) })
}

// Unite sends our whole state to the owner that healing chose, under the last epoch
// we owned; United tells its acknowledgement. It needs no ownership, and takes the place
// of whatever was under way to that node. What another one has not taken of an earlier Unite
// is withdrawn: it may own again when that is not true any more.
func (j *Journal) Unite(now time.Time, node cluster.NodeID, process cluster.ProcessID, entries []Entry, bounds []xfrm.Bound, tombstones []ipsec.IKESPIs) {
	j.tick(now)
	if process == j.self {
		return
	}
	p := j.peer(node, process)
	for _, o := range j.peers {
		if o != p && o.mode == modeUniting {
			o.clear()
			it := recordItem(nil, 0)
			it.kind, it.letter, it.first = kindLetter, Letter{Kind: LetterEnded, Other: j.scope}, true // says nothing
			o.queue.push(it)
		}
	}
	p.clear()
	p.mode, p.epoch = modeUniting, j.epoch
	if !uniteItems(entries, bounds, tombstones, func(it item) { p.queue.push(it) }) {
		j.overflow(p)
		j.effects.push(United{node})
	}
	j.commit()
}

// Write sends a letter to the owner of this scope, which this process does not own. It is
// lost with the stream, or when there is too much of it.
func (j *Journal) Write(now time.Time, node cluster.NodeID, process cluster.ProcessID, l Letter) {
	j.tick(now)
	if j.owner || process == j.self {
		return
	}
	p := j.peer(node, process)
	chunk(l.Entries, frameSize, func(c []Entry) {
		it := recordItem(c, 0)
		it.kind, it.letter, it.live = kindLetter, Letter{Kind: l.Kind, Other: l.Other}, true
		if p.live += it.size; p.live > j.limit || !it.fits() {
			p.live -= it.size
			return
		}
		// What was under way when an ownership ended is not waited for.
		it.first = p.mode == modeIdle && p.acked < p.seq && p.sent.len() == 0 && p.queue.len() == 0
		p.queue.push(it)
	})
}

// HandleTimeout tells of copies that have not moved for CopyTimeout.
func (j *Journal) HandleTimeout(now time.Time) {
	j.tick(now)
	for _, p := range j.peers {
		if p.mode == modeCopying && now.Sub(p.progress) >= CopyTimeout {
			p.progress = now
			j.effects.push(CopyStalled{p.node, p.process})
		}
	}
}

// NextTimeout is when HandleTimeout is due.
func (j *Journal) NextTimeout() (t time.Time, ok bool) {
	for _, p := range j.peers {
		if p.mode == modeCopying {
			if d := p.progress.Add(CopyTimeout); !ok || d.Before(t) {
				t, ok = d, true
			}
		}
	}
	return t, ok
}

// Poll returns the next effect; everything that is ready goes into frames first.
func (j *Journal) Poll() (Effect, bool) {
	if j.effects.len() == 0 {
		for _, p := range j.peers {
			j.flush(p)
		}
	}
	if j.effects.len() == 0 {
		return nil, false
	}
	return j.effects.pop(), true
}

// flush puts what is queued for a peer into frames, as many items into one as fit.
func (j *Journal) flush(p *peer) {
	for p.queue.len() > 0 {
		if (p.mode == modeCopying || p.mode == modeUniting) && p.flying >= copyWindow {
			return
		}
		j.frame(p)
	}
	if p.mode != modeCopying || p.over || p.acked < p.copySeq {
		return
	}
	// The copy is acknowledged and everything since is on its way.
	p.mode = modeEntered
	p.queue.push(item{kind: kindEntry, size: itemCost, messages: 2})
	j.frame(p)
	p.entrySeq, p.entered = p.seq, false
	p.gates = true
}

func (j *Journal) tick(now time.Time) {
	j.now = now
	j.led.Expire(now)
	j.tombs.expire(now)
}

func (j *Journal) find(node cluster.NodeID) *peer {
	for _, p := range j.peers {
		if p.node == node {
			return p
		}
	}
	return nil
}

// peer finds or makes the peer. Another process begins at number 1 and knows nothing.
func (j *Journal) peer(node cluster.NodeID, process cluster.ProcessID) *peer {
	p := j.find(node)
	if p == nil {
		p = &peer{node: node, process: process}
		j.peers = append(j.peers, p)
		slices.SortFunc(j.peers, func(a, b *peer) int { return int(a.node) - int(b.node) })
	}
	if p.process != process {
		// A member that counts goes on counting until it leaves, whatever its
		// process: its guardian was not asked yet.
		*p = peer{node: node, process: process, gates: p.gates, ackedPos: p.ackedPos}
	}
	return p
}

// clear forgets everything but the numbering. What was sent need not arrive any more.
func (p *peer) clear() {
	*p = peer{node: p.node, process: p.process, seq: p.seq, acked: p.acked}
}
