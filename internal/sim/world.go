package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/internal/sim/trace"
)

// world is one run.
type world struct {
	s     *Schedule
	now   time.Duration
	queue queue
	steps int

	gw      [2]*host
	clients []*host
	links   [2]hbLink // heartbeat links
	net     network
	streams [2][2]*pipe // from, to
	flows   []*flow
	ledger  ledger
	wire    observer
	rule    rules
	people  attacker

	chance  *rand.Rand // of what is outside the network
	armed   []Action   // CrashAt that wait for their moment
	quiet   time.Duration
	echo    time.Duration // until when frames come back to who sent them
	healing bool          // the schedule is over; everything works again
	done    bool
	Result  *Result
	digest  uint64
	log     *trace.Log // nil: nobody looks
	serial  uint64
}

func newWorld(s *Schedule, log *trace.Log) *world {
	w := &world{s: s, log: log, chance: stream(s.Seed, "chance"), Result: newResult()}
	w.net = network{w: w, r: stream(s.Seed, "network")}
	w.ledger.init()
	w.wire.init(w)
	w.rule.init(w)
	w.people = attacker{w: w, r: stream(s.Seed, "attacker")}
	for g := range w.gw {
		w.gw[g] = &host{
			w: w, name: fmt.Sprintf("gw%d", g+1), id: cluster.NodeID(g + 1), addr: clusterAddr,
			clock: clock{ppm: s.drift(g)}, conf: load("gw.conf", s.Setup.gatewayConfig(g, false)), monitors: 1,
			disk: disk{lost: true},
		}
	}
	for i := range s.Setup.Clients {
		w.clients = append(w.clients, &host{
			w: w, name: fmt.Sprintf("client%d", i+1), index: i, addr: clientAddr(i),
			clock: clock{ppm: s.drift(2 + i)}, conf: load("client.conf", s.Setup.clientConfig(i)),
		})
		w.net.outside = append(w.net.outside, natState{addr: natAddr(i), port: 4500})
		for n := range s.Setup.Clients[i].Networks {
			w.flows = append(w.flows, &flow{w: w, client: i, network: n, r: stream(s.Seed, fmt.Sprintf("flow %d %d", i, n))})
		}
	}
	return w
}

func (s *Schedule) drift(i int) int64 {
	if i < len(s.Setup.Drift) {
		return s.Setup.Drift[i]
	}
	return 0
}

// after plans something.
func (w *world) after(d time.Duration, do func()) { w.queue.push(w.now+max(0, d), do) }

// mix makes the digest of what happens: equal runs have equal digests.
func (w *world) mix(what string, a, b uint64) {
	d := w.digest ^ uint64(w.now)
	for i := range len(what) {
		d = (d ^ uint64(what[i])) * 0x100000001b3
	}
	d = (d ^ a) * 0x100000001b3
	w.digest = (d^b)*0x100000001b3 ^ d>>29
}

// run is the whole of it.
func (w *world) run() *Result {
	for g, h := range w.gw {
		w.after(time.Duration(g)*between(w.chance, 0, 400*time.Millisecond), h.boot)
	}
	for _, c := range w.clients {
		w.after(between(w.chance, 0, 3*time.Second), c.boot)
	}
	for i := range w.s.Actions {
		a := w.s.Actions[i]
		w.queue.push(a.At, func() { w.act(a) })
	}
	for _, f := range w.flows {
		w.after(between(w.chance, 2*time.Second, 4*time.Second), f.background)
	}
	w.queue.push(w.s.Length, w.heal)
	for !w.done && len(w.Result.Violations) == 0 && len(w.queue.heap) > 0 {
		e := w.queue.pop()
		if e.at > w.now {
			w.now = e.at
		}
		e.do()
		if w.steps++; w.steps > maxSteps {
			w.violate(RuleBounded, "the run does not come to an end: %d events in %v", w.steps, w.now)
		}
	}
	w.Result.Virtual, w.Result.Digest, w.Result.Steps = w.now, w.digest, w.steps
	return w.Result
}

// maxSteps bounds a run; an ordinary one has some ten thousand.
const maxSteps = 5_000_000

// hosts are all of them, gateways first.
func (w *world) hosts() []*host { return append([]*host{w.gw[0], w.gw[1]}, w.clients...) }

// owner is the gateway that owns, the later epoch if both believe they do; nil if none.
func (w *world) owner() *host {
	var o *host
	for _, h := range w.gw {
		if h.d != nil && h.d.p.active && (o == nil || o.said.Epoch.Less(h.said.Epoch)) {
			o = h
		}
	}
	return o
}

// node finds a host by its name or role.
func (w *world) node(name string) *host {
	switch name {
	case "owner":
		if o := w.owner(); o != nil {
			return o
		}
		return w.gw[0]
	case "standby":
		if o := w.owner(); o != nil {
			return o.other()
		}
		return w.gw[1]
	}
	for _, h := range w.hosts() {
		if h.name == name {
			return h
		}
	}
	return nil
}

// violate ends the run.
func (w *world) violate(rule Rule, format string, args ...any) {
	if len(w.Result.Violations) > 0 {
		return
	}
	v := Violation{Rule: rule, At: w.now, Text: fmt.Sprintf(format, args...)}
	w.Result.Violations = append(w.Result.Violations, v)
	w.trace(trace.Event{Kind: trace.Violation, Text: string(rule) + ": " + v.Text})
}

// trace adds to the log, if there is one. Whoever makes texts asks w.log first.
func (w *world) trace(e trace.Event) {
	if w.log != nil {
		if e.At == 0 {
			e.At = w.now
		}
		w.log.Add(e)
	}
}

func (w *world) note(who, class, format string, args ...any) {
	if w.log != nil {
		w.trace(trace.Event{Kind: trace.Note, From: who, Class: class, Text: fmt.Sprintf(format, args...)})
	}
}

func (w *world) state(who, text string) {
	if w.log != nil {
		w.trace(trace.Event{Kind: trace.State, From: who, Text: text})
	}
}

func (w *world) fault(who, format string, args ...any) {
	if w.log != nil {
		w.trace(trace.Event{Kind: trace.Fault, From: who, Text: fmt.Sprintf(format, args...)})
	}
}

// clientOf is which client has an outer address; -1: none.
func (w *world) clientOf(a netip.Addr) int {
	for i := range w.clients {
		if a == clientAddr(i) || a == w.net.outside[i].addr {
			return i
		}
	}
	return -1
}
