package ike

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/ike/keymat"
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
	c := &conversation{t: t, flights: map[int]Datagram{}, names: map[string]string{}, count: map[string]int{}, rings: map[ipsec.IKESPIs]KeyLog{},
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
	c.b.resume()
	c.a.resume()
	c.a.up("")
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

var shownDebug = []string{"simultaneous rekey", "lost the simultaneous rekey", "children inherited by", "request outside the window",
	"peer is there", "request was answered before", "traffic selectors were narrowed"}
var hiddenInfo = []string{"added IPsec SA", "deleted IPsec SA", "authentication succeeded", "created connection"}
var hexRun = regexp.MustCompile(`\b([0-9a-f]{16}|[0-9a-f]{8})\b`)

func (c *conversation) log(s *side, x Log) {
	match := func(all []string) bool {
		return slices.ContainsFunc(all, func(p string) bool { return strings.HasPrefix(x.Message, p) })
	}
	if x.Level < slog.LevelInfo && !match(shownDebug) || match(hiddenInfo) {
		return
	}
	text := x.Message
	for _, a := range x.Attrs {
		if a.Key == "reason" || a.Key == "notify" {
			text += " " + a.Key + "=" + strings.Trim(a.Value.String(), `"`)
		}
	}
	c.does(s, "%q", text)
}

// named puts names in the place of SPIs in a log line: all are known at the end.
func (c *conversation) named(text string) string {
	return hexRun.ReplaceAllStringFunc(text, func(h string) string {
		if n, ok := c.names[h]; ok {
			return n
		}
		return "?"
	})
}

func letter(s *side) string { return s.name[:1] }

// esp names an ESP SPI that a side has chosen, ike an IKE SPI.
func (c *conversation) esp(s *side, spi ipsec.ESPSPI) string {
	return c.name(strings.ToLower(letter(s)), spi.String())
}

func (c *conversation) ike(s *side, spi ipsec.IKESPI) string {
	if spi == 0 {
		return "0"
	}
	return c.name(letter(s), spi.String())
}

func (c *conversation) name(prefix, key string) string {
	if c.names[key] == "" {
		c.count[prefix]++
		c.names[key] = prefix + itoa(c.count[prefix])
	}
	return c.names[key]
}

func (c *conversation) child(s *side, sa ipsec.ChildSA) string {
	return c.esp(s, sa.SPIIn) + "/" + c.esp(c.other(s), sa.SPIOut)
}

func (c *conversation) selectors(sa ipsec.ChildSA) string {
	if !c.showTS {
		return ""
	}
	return fmt.Sprintf(": %v === %v", sa.TSLocal, sa.TSRemote)
}

// spis names an IKE SA by the SPI of A and that of B.
func (c *conversation) spis(s ipsec.IKESPIs, iIsA bool) string {
	if iIsA {
		return c.ike(c.a, s.I) + "/" + c.ike(c.b, s.R)
	}
	return c.ike(c.a, s.R) + "/" + c.ike(c.b, s.I)
}

// send takes a message into flight.
func (c *conversation) send(s *side, d Datagram) {
	c.sent++
	c.flights[c.sent] = d
	c.write(line{n: c.sent, from: s.name, text: c.read(s, d)})
}

// read writes a message as its receiver reads it.
func (c *conversation) read(s *side, d Datagram) string {
	m, err := message.Parse(d.Data)
	if err != nil {
		return "what does not parse: " + err.Error()
	}
	h := m.Header
	kind := "request"
	if h.Response {
		kind = "response"
	}
	on := ""
	if known := c.rings[h.SPIs].Ei.Len() > 0; known {
		if on = c.spis(h.SPIs, h.Initiator == (letter(s) == "A")); on == "A1/B1" {
			on = ""
		} else {
			on = " on " + on
		}
	}
	clear := ""
	if n := len(m.Payloads); n > 0 {
		if _, sk := m.Payloads[n-1].(*message.Encrypted); sk {
			r := c.rings[h.SPIs]
			key, auth := r.Ei, r.Ai
			if !h.Initiator {
				key, auth = r.Er, r.Ar
			}
			o, err := keymat.NewOpener(r.Suite, key, auth)
			if err == nil {
				err = m.Open(d.Data, o)
			}
			var critical *message.Error
			if errors.As(err, &critical) && critical.Notify == message.UnsupportedCriticalPayload {
				return fmt.Sprintf("%s%s %s %d: critical payload of type %d", h.Exchange, on, kind, h.MessageID, critical.Data[0])
			}
			if err != nil {
				return fmt.Sprintf("%s%s %s %d that does not open: %v", h.Exchange, on, kind, h.MessageID, err)
			}
		} else if h.Exchange != message.IKESAInit {
			clear = " unprotected"
		}
	} else {
		clear = " unprotected"
	}
	var ps []string
	for _, p := range m.Payloads {
		if !c.aside(h, p) {
			ps = append(ps, c.payload(s, h, p))
		}
	}
	if len(ps) == 0 {
		ps = []string{"empty"}
	}
	return fmt.Sprintf("%s%s%s %s %d: %s", h.Exchange, on, clear, kind, h.MessageID, strings.Join(ps, ", "))
}

// aside says that a payload is left out: what else a set-up negotiates is not the matter here.
func (c *conversation) aside(h message.Header, p message.Payload) bool {
	if h.Exchange != message.IKESAInit && h.Exchange != message.IKEAuth {
		return false
	}
	n, ok := p.(*message.Notify)
	return p.Type() == message.TypeVendorID && !c.showV || ok && !n.NotifyType.IsError() && !slices.Contains(shownNotifies, n.NotifyType)
}

var shownNotifies = []message.NotifyType{message.InitialContact, message.Cookie, message.UseTransportMode, message.ESPTFCPaddingNotSupported}

func (c *conversation) payload(s *side, h message.Header, p message.Payload) string {
	switch p := p.(type) {
	case *message.SA:
		spi := ""
		for _, x := range p.Proposals {
			switch {
			case len(x.SPI) == 4:
				spi = "ESP " + c.esp(s, espSPI(x.SPI))
			case len(x.SPI) == 8:
				spi = "IKE " + c.ike(s, ipsec.IKESPI(binary.BigEndian.Uint64(x.SPI)))
			default:
				spi = "IKE"
			}
		}
		return "SA(" + spi + ")"
	case *message.KE:
		return fmt.Sprintf("KE(%d)", p.Group)
	case *message.Nonce:
		name := "Ni"
		if h.Response {
			name = "Nr"
		}
		if c.drawn[string(p.Data)] {
			name += fmt.Sprintf("(%02x…)", p.Data[0])
		}
		return name
	case *message.TS:
		if c.showTS {
			return fmt.Sprintf("%s%v", p.Type(), p.Selectors)
		}
	case *message.Delete:
		if p.Protocol == ipsec.ProtocolIKE {
			return "D(IKE)"
		}
		var spis []string
		for _, x := range p.SPIs {
			spis = append(spis, c.esp(s, x))
		}
		return map[bool]string{true: "D(AH ", false: "D(ESP "}[p.Protocol == ipsec.ProtocolAH] + strings.Join(spis, " ") + ")"
	case *message.Notify:
		return "N(" + p.NotifyType.String() + c.notifyData(s, p) + ")"
	case *message.Unknown:
		return fmt.Sprintf("payload of type %d", p.PayloadType)
	}
	return p.Type().String()
}

func (c *conversation) notifyData(s *side, n *message.Notify) string {
	switch {
	case n.NotifyType == message.RekeySA && len(n.SPI) == 4:
		return " " + c.esp(s, espSPI(n.SPI))
	case n.NotifyType == message.ChildSANotFound && len(n.SPI) == 4:
		return " " + c.esp(c.other(s), espSPI(n.SPI)) // copied from the request
	case n.NotifyType == message.InvalidKEPayload && len(n.Data) == 2:
		return fmt.Sprintf(" %d", binary.BigEndian.Uint16(n.Data))
	case n.NotifyType == message.UnsupportedCriticalPayload && len(n.Data) == 1:
		return fmt.Sprintf(" %d", n.Data[0])
	case n.NotifyType == message.InvalidMessageID && len(n.Data) == 4:
		return fmt.Sprintf(" %d", binary.BigEndian.Uint32(n.Data))
	}
	return ""
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

// text is the conversation so far.
func (c *conversation) text() string {
	var b strings.Builder
	direct := map[int]bool{}
	for i, l := range c.lines {
		if l.n > 0 && l.came {
			if direct[l.n] {
				delete(direct, l.n)
				continue
			}
			fmt.Fprintf(&b, "   (%d) -> %s\n", l.n, l.text)
			continue
		}
		if l.n == 0 {
			b.WriteString(c.named(l.text) + "\n")
			continue
		}
		// A message that arrives before anything else happens on the wire is one line.
		to := ""
		for _, f := range c.lines[i+1:] {
			if f.n > 0 {
				if f.n == l.n && f.came {
					to = f.text
				}
				break
			}
		}
		if to != "" {
			direct[l.n] = true
			fmt.Fprintf(&b, "%s -> %s: %s\n", l.from, to, l.text)
		} else {
			fmt.Fprintf(&b, "%s -> (%d): %s\n", l.from, l.n, l.text)
		}
	}
	return b.String()
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
// every moment, which the files do not show.
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
		})
	}
}

// difference shows where two texts part.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	from := max(i-3, 0)
	return fmt.Sprintf("from line %d on, want\n%s\ngot\n%s", i+1, strings.Join(w[from:min(i+8, len(w))], "\n"), strings.Join(g[from:], "\n"))
}

// TestTranscriptsAreAllChecked: no file in testdata is left behind by its case.
func TestTranscriptsAreAllChecked(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	known := map[string]bool{}
	for _, g := range slices.Concat(childRekeys(), childDeletes(), ikeRekeys(), ikeDeletes(), oddities()) {
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
