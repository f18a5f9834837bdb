package lab

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"sort"
	"time"
)

// flipTime is the longest time in which packets of two members, one between those of
// the other, mean that both owned the tunnel, and not that it moved there and back.
const flipTime = 200 * time.Millisecond

// presence is how long before a fault a tunnel's packets must have used the victim
// for the fault to concern it.
const presence = time.Second

// stretch is a time in which one member alone sent (or received) a tunnel's ESP.
type stretch struct {
	member   string
	from, to time.Time
	packets  int
}

type stretches []stretch

func (s *stretches) add(member string, at time.Time) {
	if n := len(*s); n > 0 && (*s)[n-1].member == member {
		(*s)[n-1].to, (*s)[n-1].packets = at, (*s)[n-1].packets+1
		return
	}
	*s = append(*s, stretch{member, at, at, 1})
}

// at is the member of the last packet before t; empty if there is none.
func (s stretches) at(t time.Time) string {
	i := sort.Search(len(s), func(i int) bool { return !s[i].from.Before(t) })
	if i == 0 {
		return ""
	}
	return s[i-1].member
}

// settled joins what two members sent through each other, and returns what is left
// and the times in which both sent: from the other's first packet to the last return of
// the one.
func (s stretches) settled() (out stretches, double []Interval) {
	joined := false // the last of out was joined, and nothing has come between since
	for i := 0; i < len(s); i++ {
		n := len(out)
		if n >= 1 && i+1 < len(s) && s[i+1].member == out[n-1].member && s[i+1].from.Sub(out[n-1].to) < flipTime {
			if k := len(double); joined && s[i].from.Sub(double[k-1].To) < flipTime {
				double[k-1].To = s[i+1].from
			} else {
				double = append(double, Interval{s[i].from, s[i+1].from})
			}
			out[n-1].to, out[n-1].packets = s[i+1].to, out[n-1].packets+s[i+1].packets
			joined = true
			i++
			continue
		}
		out = append(out, s[i])
		joined = false
	}
	return out, double
}

// mark asks which tunnels used a member at a time.
type mark struct {
	at     time.Time
	member string
}

// tunnelWire is what captures say of one tunnel.
type tunnelWire struct {
	sent    stretches // ESP of members to the client
	reached stretches // ESP of the client at members
	last    map[string]time.Time
}

// farmWire reads the captures at the routers' ports towards the members, outer and
// inner, each set in one order of time.
type farmWire struct {
	outer, inner map[netip.Addr]int // client address, host behind it → tunnel
	tunnels      []tunnelWire
	marks        []mark
	next         int            // mark that is due
	hit          []map[int]bool // by mark
	delivered    []map[uint64]bool
	replays      int            // probes that members delivered twice
	protocol     map[string]int // ESP and IKE packets by member that sent them
	silences     []silence
}

// silence is a time in which a member must not send ESP.
type silence struct {
	Interval
	member string
	broken int
}

func newFarmWire(tunnels []Tunnel, marks []mark, silences []silence) *farmWire {
	w := &farmWire{outer: map[netip.Addr]int{}, inner: map[netip.Addr]int{}, tunnels: make([]tunnelWire, len(tunnels)),
		marks: marks, hit: make([]map[int]bool, len(marks)), delivered: make([]map[uint64]bool, len(tunnels)),
		protocol: map[string]int{}, silences: silences}
	for i, x := range tunnels {
		w.outer[x.Outer], w.inner[x.Host] = i, i
		w.delivered[i] = map[uint64]bool{}
	}
	for i := range marks {
		w.hit[i] = map[int]bool{}
	}
	return w
}

// begin is called before each set of captures.
func (w *farmWire) begin() {
	w.next = 0
	for i := range w.tunnels {
		w.tunnels[i].last = map[string]time.Time{}
	}
}

// pass answers the marks before a time.
func (w *farmWire) pass(t time.Time) {
	for ; w.next < len(w.marks) && !w.marks[w.next].at.After(t); w.next++ {
		m := w.marks[w.next]
		for i := range w.tunnels {
			if last, ok := w.tunnels[i].last[m.member]; ok && m.at.Sub(last) < presence {
				w.hit[w.next][i] = true
			}
		}
	}
}

func (w *farmWire) addOuter(f Frame) {
	w.pass(f.Time)
	o := decodeOuter(f.Data)
	if o.kind != outerESP && o.kind != outerIKE {
		return
	}
	client := o.src
	if f.FromNode {
		client = o.dst
		w.protocol[f.Port]++
	}
	if o.kind != outerESP {
		return
	}
	i, ok := w.outer[client]
	if !ok {
		return
	}
	t := &w.tunnels[i]
	t.last[f.Port] = f.Time
	if !f.FromNode {
		t.reached.add(f.Port, f.Time)
		return
	}
	t.sent.add(f.Port, f.Time)
	for k := range w.silences {
		if s := &w.silences[k]; s.member == f.Port && s.holds(f.Time) {
			s.broken++
		}
	}
}

func (w *farmWire) addInner(f Frame) {
	w.pass(f.Time)
	o, body, ok := decodeIP(f.Data)
	if !ok || o.proto != protoUDP || len(body) < 8 {
		return
	}
	host := o.dst
	if f.FromNode {
		host = o.src
	}
	i, ok := w.inner[host]
	if !ok {
		return
	}
	w.tunnels[i].last[f.Port] = f.Time
	length := int(binary.BigEndian.Uint16(body[4:]))
	if !f.FromNode || length < 8 || length > len(body) {
		return
	}
	flow, seq, ok := parseFlow(body[8:length])
	if !ok || int(flow) != i {
		return
	}
	if w.delivered[i][seq] {
		w.replays++
	}
	w.delivered[i][seq] = true
}

// forget ends the warming up, after which the probes' numbers begin anew.
func (w *farmWire) forget() {
	for i := range w.delivered {
		clear(w.delivered[i])
	}
}

// end answers the marks after the last frame.
func (w *farmWire) end() { w.pass(time.Unix(1<<40, 0)) }

// inOrder reads capture files together, in order of time. A file that cannot be read
// ends the sequence with its error.
func inOrder(paths []string) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		type head struct {
			f    Frame
			err  error
			next func() (Frame, error, bool)
		}
		var heads []*head
		for _, p := range paths {
			next, stop := iter.Pull2(frames(p))
			defer stop()
			h := &head{next: next}
			ok := false
			if h.f, h.err, ok = next(); ok {
				heads = append(heads, h)
			}
		}
		for len(heads) > 0 {
			first := 0
			for i, h := range heads {
				if h.err != nil {
					yield(Frame{}, h.err)
					return
				}
				if h.f.Time.Before(heads[first].f.Time) {
					first = i
				}
			}
			h := heads[first]
			if !yield(h.f, nil) {
				return
			}
			ok := false
			if h.f, h.err, ok = h.next(); !ok {
				heads = append(heads[:first], heads[first+1:]...)
			}
		}
	}
}

// errEnough ends the reading of a capture early.
type errEnough struct{ error }

// frames is ReadCapture as a sequence.
func frames(path string) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		err := ReadCapture(path, func(f Frame) error {
			if !yield(f, nil) {
				return errEnough{}
			}
			return nil
		})
		if err != nil && err != (errEnough{}) {
			yield(Frame{}, err)
		}
	}
}
