package ike

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/ike/message"
	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// Golden transcripts: two engines, and a third that takes over where a case says so, in a
// conversation whose order of delivery, losses and nonces a script decides. Each message is
// written as its receiver reads it, with names in the place of SPIs, then what the sides do
// and log; at the end stands what both sides hold. `go test ./ike -update` writes them anew.

var update = flag.Bool("update", false, "write the transcripts in testdata anew")

// conversation is one case under way. Messages are numbered as they are sent.
type conversation struct {
	t       *testing.T
	w       *world
	a, b, s *side // s takes over from a, if the case wants it
	swapped bool  // B is the initiator of the IKE SA
	packets bool  // packets cross at every moment; else only their possibility is checked
	quiet   bool  // nothing is written: the setup
	ending  bool  // the script ends SAs: traffic may stop
	showTS  bool
	showV   bool
	loose   bool // the script itself uses message IDs in a wrong order

	lines   []line
	flights map[int]Datagram
	sent    int
	last    time.Time
	names   map[string]string
	count   map[string]int
	rings   map[ipsec.IKESPIs]KeyLog
	older   map[ipsec.IKESPIs][]KeyLog // before an additional key exchange
	linger  map[*side]map[ipsec.ESPSPI]time.Time
	nonces  map[*side]*[]byte // first bytes of the next ones
	drawn   map[string]bool   // those that were made so
}

// line is one event: a message that was sent (n > 0, came false), came, or anything else.
type line struct {
	n    int
	came bool
	from string
	text string
}

type idKey struct {
	spis ipsec.IKESPIs
	i    bool
}

// leading gives nonces their first byte, as long as the script has some. Of what the
// engines draw here nothing else has 32 bytes: the groups are P-384 and P-521.
type leading struct {
	r     io.Reader
	bytes *[]byte
	known map[string]bool
}

func (l leading) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if n == nonceLen && len(*l.bytes) > 0 {
		p[0] = (*l.bytes)[0]
		*l.bytes = (*l.bytes)[1:]
		l.known[string(p)] = true
	}
	return n, err
}

// converse makes two sides with their tunnel standing.
func converse(t *testing.T, change func(a, b *config.Config), standby bool) *conversation {
	t.Helper()
	c := &conversation{t: t, flights: map[int]Datagram{}, names: map[string]string{}, count: map[string]int{}, rings: map[ipsec.IKESPIs]KeyLog{}, older: map[ipsec.IKESPIs][]KeyLog{},
		linger: map[*side]map[ipsec.ESPSPI]time.Time{}, nonces: map[*side]*[]byte{}, drawn: map[string]bool{}, quiet: true}
	c.w = newWorld(t)
	kes := groups(ipsec.KEECP384, ipsec.KEECP521)
	p1 := func(p *config.Phase1) { p.DHGroups = kes }
	p2 := func(p *config.Phase2) { p.DHGroups = kes }
	ca := &config.Config{Phase1: []config.Phase1{phase1To("toB", addrB, p1)}, Phase2: []config.Phase2{phase2For("toB", "net", netA, netB, p2)}}
	cb := &config.Config{Phase1: []config.Phase1{phase1To("toA", addrA, p1)}, Phase2: []config.Phase2{phase2For("toA", "net", netB, netA, p2)}}
	if change != nil {
		change(ca, cb)
	}
	c.a, c.b = c.side("A", addrA, 1, ca), c.side("B", addrB, 2, cb)
	if standby {
		c.s = c.w.standby(c.a, 77)
		c.watch(c.s)
	}
	c.last = c.w.now
	return c
}

// up brings the tunnel up without a word about it.
func (c *conversation) up() {
	c.upOf("")
}

// upOf is up for one phase 2 entry.
func (c *conversation) upOf(phase2 string) {
	c.b.resume()
	c.a.resume()
	if c.swapped {
		c.b.up(phase2)
	} else {
		c.a.up(phase2)
	}
	c.all()
	c.begin()
}

// begin ends the setup: what follows is written.
func (c *conversation) begin() {
	c.quiet, c.sent = false, 0
	c.state("stand")
}

func (c *conversation) side(name, addr string, seed uint64, cfg *config.Config) *side {
	n := &[]byte{}
	s := c.w.side(name, addr, seed, cfg, func(o *Options) { o.Rand = leading{o.Rand, n, c.drawn} })
	c.nonces[s] = n
	c.watch(s)
	return s
}

func (c *conversation) watch(s *side) {
	s.quietSend = true
	c.linger[s] = map[ipsec.ESPSPI]time.Time{}
	s.onEffect = func(x Effect) { c.effect(s, x) }
}

// draw gives the next nonces of a side their first bytes.
func (c *conversation) draw(s *side, first ...byte) { *c.nonces[s] = append(*c.nonces[s], first...) }

// live is the side that has A's address now.
func (c *conversation) live() *side {
	if c.s != nil && c.a.dead {
		return c.s
	}
	return c.a
}

func (c *conversation) other(s *side) *side {
	if s == c.b {
		return c.live()
	}
	return c.b
}

func (c *conversation) write(l line) {
	if c.quiet {
		return
	}
	if c.w.now.Sub(c.last) >= 100*time.Millisecond {
		c.lines = append(c.lines, line{text: "later:"})
	}
	c.last = c.w.now
	c.lines = append(c.lines, l)
}

func (c *conversation) say(format string, args ...any) {
	c.write(line{text: "* " + fmt.Sprintf(format, args...)})
}

func (c *conversation) does(s *side, format string, args ...any) {
	c.write(line{text: "      " + s.name + ": " + fmt.Sprintf(format, args...)})
}

// effect writes what a side does, and takes its messages.
func (c *conversation) effect(s *side, x Effect) {
	switch x := x.(type) {
	case KeyLog:
		x.Ei, x.Er, x.Ai, x.Ar = ipsec.NewKey(x.Ei.Bytes()), ipsec.NewKey(x.Er.Bytes()), ipsec.NewKey(x.Ai.Bytes()), ipsec.NewKey(x.Ar.Bytes())
		c.older[x.SPIs] = append(c.older[x.SPIs], c.rings[x.SPIs])
		c.rings[x.SPIs] = x
	case Remove:
		if x.Linger > 0 {
			c.linger[s][x.SPIIn] = c.w.now.Add(x.Linger)
		}
	}
	if !s.e.active {
		return
	}
	switch x := x.(type) {
	case Send:
		c.send(s, x.Datagram)
	case Install:
		c.does(s, "installs Child SA %s%s", c.child(s, x.SA), c.selectors(x.SA))
	case SetOutbound:
		if sa := s.installed[x.SPIIn]; x.Use && sa != nil {
			c.does(s, "sends on %s", c.child(s, sa.SA))
		}
	case Remove:
		if sa := s.installed[x.SPIIn]; sa != nil {
			also := ""
			if x.Linger > 0 {
				also = ", takes what is under way"
			}
			c.does(s, "removes %s%s", c.child(s, sa.SA), also)
		}
	case Log:
		c.log(s, x)
	}
}

// send takes a message into flight.
func (c *conversation) send(s *side, d Datagram) {
	c.sent++
	c.flights[c.sent] = d
	c.write(line{n: c.sent, from: s.name, text: c.read(s, d)})
}

// pass delivers messages in the order of the script.
func (c *conversation) pass(numbers ...int) {
	c.t.Helper()
	for _, n := range numbers {
		d, ok := c.flights[n]
		if !ok {
			c.t.Fatalf("message %d is not under way:\n%s", n, c.text())
		}
		delete(c.flights, n)
		c.arrive(n, d)
	}
}

func (c *conversation) arrive(n int, d Datagram) {
	for _, s := range c.w.sides {
		if s.addr == d.Remote.Addr() && !s.dead && s.e.active {
			c.write(line{n: n, came: true, text: s.name})
			s.receive(flip(d))
			c.check()
			return
		}
	}
	c.write(line{n: n, came: true, text: "nobody"})
}

// again delivers a copy of a message and leaves the message under way.
func (c *conversation) again(n int) { c.arrive(n, c.flights[n]) }

// lose takes messages off the wire.
func (c *conversation) lose(numbers ...int) {
	c.t.Helper()
	for _, n := range numbers {
		if _, ok := c.flights[n]; !ok {
			c.t.Fatalf("message %d is not under way:\n%s", n, c.text())
		}
		delete(c.flights, n)
		c.write(line{n: n, came: true, text: "lost"})
	}
}

// all delivers what is under way, and what follows from it, in the order of sending.
func (c *conversation) all() {
	for i := 0; len(c.flights) > 0; i++ {
		if i == 10000 {
			c.t.Fatal("messages without end")
		}
		n := c.sent + 1
		for k := range c.flights {
			n = min(n, k)
		}
		c.pass(n)
	}
}

// wait lets time pass; all that is sent meanwhile arrives.
func (c *conversation) wait(d time.Duration) { c.waitBut(d, nil) }

// waitBut is wait, in which stay keeps a message on the wire.
func (c *conversation) waitBut(d time.Duration, stay func(Datagram) bool) {
	end := c.w.now.Add(d)
	for i := 0; ; i++ {
		if i == 10000 {
			c.t.Fatal("timers without end")
		}
		for n := 1; n <= c.sent; n++ {
			if f, ok := c.flights[n]; ok && (stay == nil || !stay(f)) {
				c.pass(n)
			}
		}
		next := end
		for _, s := range c.w.sides {
			if t, ok := s.e.NextTimeout(); ok && !s.dead && t.Before(next) {
				next = t
			}
		}
		if next.After(c.w.now) {
			c.w.now = next
		}
		if !c.w.now.Before(end) {
			return
		}
		for _, s := range c.w.sides {
			if !s.dead {
				s.e.HandleTimeout(c.w.now)
				s.drain()
			}
		}
		c.check()
	}
}

// takeover ends A and lets its standby go on.
func (c *conversation) takeover() {
	c.say("A dies; A' goes on with its records")
	c.a.dead = true
	c.s.resume()
	c.check()
}

// check looks whether traffic is possible now: what a side may send the other takes.
func (c *conversation) check() {
	c.t.Helper()
	if c.quiet || c.ending {
		return
	}
	for _, x := range []*side{c.live(), c.b} {
		y := c.other(x)
		out := x.outbound()
		if len(out) == 0 {
			c.t.Errorf("%s has no Child SA to send on; so far:\n%s", x.name, c.text())
			c.ending = true
			return
		}
		for _, spi := range out {
			to := x.installed[spi].SA.SPIOut
			if y.installed[to] == nil && c.w.now.After(c.linger[y][to]) {
				c.t.Errorf("%s may send on %s, which %s does not take; so far:\n%s", x.name, c.child(x, x.installed[spi].SA), y.name, c.text())
				c.ending = true
				return
			}
		}
		if c.packets {
			x.esp(y)
		}
	}
}

// state writes what both sides hold, which has to be the same.
func (c *conversation) state(verb string) {
	var ikes, children []string
	a := c.live()
	for _, sa := range a.ike() {
		ikes = append(ikes, c.spis(sa.spis, sa.initiator))
	}
	for _, spi := range a.order {
		children = append(children, c.child(a, a.installed[spi].SA))
	}
	list := func(what string, in []string) string {
		if len(in) == 0 {
			return "no " + what
		}
		return what + " " + strings.Join(in, ", ")
	}
	c.write(line{text: fmt.Sprintf("* %s and %s %s", list("IKE SA", ikes), list("Child SA", children), verb)})
}

// end lets all come to rest and checks what is left.
func (c *conversation) end(ikes, children int) {
	c.t.Helper()
	c.all()
	c.wait(3 * time.Second)
	c.state("are left")
	defer func() {
		if c.t.Failed() {
			c.t.Log(c.text())
		}
	}()
	a := c.live()
	was := c.quiet
	c.quiet = true // the packets that show it
	defer func() { c.quiet = was }()
	agree(c.t, a, c.b, ikes, children)
	sameBits(c.t, c.w)
	if children > 0 && (len(a.outbound()) != children || len(c.b.outbound()) != children) {
		c.t.Errorf("A sends on %d, B on %d Child SAs", len(a.outbound()), len(c.b.outbound()))
	}
	if children > 0 && (!a.esp(c.b) || !c.b.esp(a)) {
		c.t.Error("traffic does not pass")
	}
	if !c.loose {
		c.windows()
	}
}

// windows checks that message IDs rise by one and no request leaves before the answer to the
// one before it, in what was seen of each IKE SA.
func (c *conversation) windows() {
	next := map[idKey]uint32{}
	for _, d := range c.w.seen {
		h, err := message.ParseHeader(d.Data)
		if err != nil || h.Response || h.NextPayload != message.TypeSK {
			continue
		}
		k := idKey{h.SPIs, h.Initiator}
		if want, known := next[k]; known && h.MessageID != want && h.MessageID != want-1 {
			c.t.Errorf("request %d of IKE SA %s, expected %d", h.MessageID, h.SPIs, want)
		}
		next[k] = h.MessageID + 1
	}
}

// golden is one case: its name is that of its file.
type golden struct {
	name    string
	why     string // the first line of the file
	change  func(a, b *config.Config)
	standby bool
	talk    func(c *conversation)
}

// transcribe runs cases and compares them with their files; once more with packets at
// every moment, and with the roles in the IKE SA exchanged, which the files do not show.
func transcribe(t *testing.T, cases []golden) {
	for _, g := range cases {
		t.Run(g.name, func(t *testing.T) {
			c := converse(t, g.change, g.standby)
			g.talk(c)
			got := "# " + g.why + "\n\n" + c.text()
			path := filepath.Join("testdata", g.name+".txt")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v; `go test ./ike -update` writes it:\n%s", err, got)
			}
			if got != string(want) {
				t.Errorf("the conversation is another than in %s:\n%s", path, difference(string(want), got))
			}
			c = converse(t, g.change, g.standby)
			c.packets = true
			g.talk(c)
			c = converse(t, g.change, g.standby)
			c.swapped = true
			g.talk(c)
		})
	}
}

// TestTranscriptsAreAllChecked: no file in testdata is left behind by its case.
func TestTranscriptsAreAllChecked(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	known := map[string]bool{}
	for _, g := range slices.Concat(childRekeys(), childDeletes(), ikeRekeys(), ikeDeletes(), setUps(), oddities(), followUps(), reauthentications()) {
		if known[g.name] {
			t.Errorf("two cases %s", g.name)
		}
		known[g.name] = true
	}
	for _, f := range files {
		if !known[strings.TrimSuffix(filepath.Base(f), ".txt")] {
			t.Errorf("%s belongs to no case", f)
		}
	}
}
