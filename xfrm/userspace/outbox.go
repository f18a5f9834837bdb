package userspace

import (
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/mmsg"
)

const (
	arenaLen    = 2 << 16
	maxRun      = 65507 // bytes of UDP payload in an IPv4 packet
	maxSegments = 64    // UDP_SEGMENT's limit before Linux 6.9
)

// outbox collects sealed packets up to the next flush. They lie one behind the other;
// successive ones of one length to one peer are a run, which one message sends.
type outbox struct {
	arena  [arenaLen]byte
	used   int
	runs   [mmsg.Batch]run
	n      int
	vec    mmsg.Vector
	cut    *mmsg.Vector // of a run that has to be sent packet by packet
	prompt bool         // flushed before the lane's lock is released
	hop    hop          // of what is sealed into it
}

// run is arena[start:end]: packets of size bytes, of which the last one may be shorter.
type run struct {
	start, end, size int
	open             bool // another packet may follow
	s                *sa
	to               *peer
	tos              uint8
	df               bool
}

func (r *run) packets() int { return (r.end - r.start + r.size - 1) / r.size }

// room makes place for a packet of n bytes behind what the outbox holds.
func (ss *sockets) room(o *outbox, n int) []byte {
	if o.n == len(o.runs) || o.used+n > len(o.arena) {
		ss.flush(o)
	}
	return o.arena[o.used:]
}

// put takes the n bytes that were written there.
func (ss *sockets) put(o *outbox, n int, s *sa, to *peer, tos uint8, df bool, now time.Time) {
	start := o.used
	o.used += n
	if o.n > 0 {
		r := &o.runs[o.n-1]
		if r.open && r.to == to && r.tos == tos && r.df == df && n <= r.size && o.used-r.start <= maxRun {
			r.end = o.used
			r.open = n == r.size && r.end-r.start < maxSegments*r.size
			return
		}
	}
	o.runs[o.n] = run{start: start, end: o.used, size: n, s: s, to: to, tos: tos, df: df, open: to.udp && !to.tcp && ss.segments(to, n, now)}
	o.n++
}

// segments says whether the kernel cuts a buffer into packets of n bytes for a peer: it
// must not have to fragment them.
func (ss *sockets) segments(to *peer, n int, now time.Time) bool {
	return n+outerLen(to) <= ss.mtu(to, now) && to.gso.Load() == gsoWorks
}

const (
	gsoWorks   = iota
	gsoRefused // as long as the path MTU is what it was
	gsoMissing // on this way
)

// mtu is that of the path to a peer, in bytes of IP; 0: unknown.
func (ss *sockets) mtu(pr *peer, now time.Time) int {
	at := pr.mtuAt.Load()
	if at != 0 && now.UnixNano()-at <= int64(mtuLife) {
		return int(pr.mtu.Load())
	}
	n := ss.pathMTU(pr)
	if old := pr.mtu.Swap(int32(n)); at != 0 || int(old) != n {
		pr.gso.CompareAndSwap(gsoRefused, gsoWorks)
	}
	pr.mtuAt.Store(now.UnixNano())
	return n
}

func (ss *sockets) pathMTU(pr *peer) int {
	i := 0
	if pr.v6() {
		i = 1
	}
	if ss.probe[i] == nil {
		return 0
	}
	return ss.probe[i].MTU(pr.remote.Addr())
}

// flush sends what the outbox holds, in order, one call for each series of runs
// that leave through the same socket.
func (ss *sockets) flush(o *outbox) {
	for i := 0; i < o.n; {
		m := &o.runs[i]
		k := i + 1
		if m.to.tcp {
			if !ss.streams.sendESP(m.to.path(), o.arena[m.start:m.end]) {
				m.s.sendFailed(1)
			}
			i = k
			continue
		}
		for k < o.n && !o.runs[k].to.tcp && o.runs[k].to.udp == m.to.udp && o.runs[k].to.v6() == m.to.v6() && o.runs[k].df == m.df {
			k++
		}
		ss.send(o, i, k)
		i = k
	}
	clear(o.runs[:o.n])
	o.n, o.used = 0, 0
}

func (ss *sockets) send(o *outbox, from, to int) {
	m := &o.runs[from]
	kind := sockESP
	if m.to.udp {
		kind = sockNATT
	}
	s := ss.of(kind, m.to.v6())
	if s == nil {
		for i := from; i < to; i++ {
			o.runs[i].s.sendFailed(o.runs[i].packets())
		}
		return
	}
	for i := from; i < to; i++ {
		m := &o.runs[i]
		o.vec.PrepareSend(i, kind == sockESP, m.to.local.Addr(), m.to.remote, m.tos, o.arena[m.start:m.end], nil)
		if m.end-m.start > m.size {
			o.vec.Segment(i, m.size)
		}
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	_ = s.setDF(m.df) // without it packets are sent all the same
	s.sendAll(&o.vec, from, to, func(i int, e unix.Errno) { ss.refused(s, o, &o.runs[i], e) })
}

// sendAll sends messages in order and tells which ones the kernel refuses.
func (s *sock) sendAll(v *mmsg.Vector, from, to int, refused func(i int, e unix.Errno)) {
	waited := false
	for from < to {
		n, e := mmsg.Send(s.fd, v, from, to-from)
		switch {
		case e == 0:
			from += n
			waited = false
		case e == unix.EINTR:
		case e == unix.EAGAIN && !waited && mmsg.WaitWritable(s.fd):
			waited = true
		default:
			refused(from, e)
			from++
		}
	}
}

// refused deals with a run that was not sent. Where it is the cutting that is refused, the
// packets are sent one by one, as the following ones will be.
func (ss *sockets) refused(s *sock, o *outbox, r *run, e unix.Errno) {
	one := r.end-r.start <= r.size
	switch {
	case e == unix.EMSGSIZE || e == unix.EINVAL && !one:
		r.to.mtuAt.Store(0) // the path shrank: ask again
		r.to.gso.CompareAndSwap(gsoWorks, gsoRefused)
	case (e == unix.EIO || e == unix.EOPNOTSUPP) && !one:
		if r.to.gso.Swap(gsoMissing) != gsoMissing && s.told.CompareAndSwap(false, true) {
			ss.log.Warn("a device does not cut UDP buffers: sending packet by packet", "remote", r.to.remote, "err", e)
		}
	default:
		r.s.sendFailed(r.packets())
		return
	}
	if one {
		r.s.sendFailed(1)
		return
	}
	if o.cut == nil {
		o.cut = new(mmsg.Vector)
	}
	for at := r.start; at < r.end; {
		n := 0
		for ; n < mmsg.Batch && at < r.end; n++ {
			end := min(at+r.size, r.end)
			o.cut.PrepareSend(n, false, r.to.local.Addr(), r.to.remote, r.tos, o.arena[at:end], nil)
			at = end
		}
		s.sendAll(o.cut, 0, n, func(int, unix.Errno) { r.s.sendFailed(1) })
	}
}
