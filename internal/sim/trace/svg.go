package trace

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// Sizes in the SVG's user units (pixels at 100 %).
const (
	svgChar    = 7.25 // advance of one character of the 12-pixel monospace font, at most
	svgLine    = 16.0 // from one line of text to the next
	svgRow     = 26.0 // least height of a row
	svgMargin  = 16.0
	svgText    = 76  // columns of text beside the lifelines
	svgTitle   = 110 // columns of the title at its larger font
	svgHead    = 9.0 // length of an arrow's head
	svgMaxName = 18  // columns of a lifeline's name in one line
)

const svgStyle = `
.page{fill:#ffffff}.fg{fill:#1f2328}.dim{fill:#636c76}.line{stroke:#636c76}.box{fill:#ffffff;stroke:#636c76}
.band{fill:#808080;fill-opacity:.07}.owner{fill:#1a7f37}.hot{fill:#d1242f;font-weight:bold}.warm{fill:#9a6700;font-weight:bold}
@media (prefers-color-scheme:dark){
.page{fill:#0d1117}.fg{fill:#e6edf3}.dim{fill:#9198a1}.line{stroke:#9198a1}.box{fill:#0d1117;stroke:#9198a1}
.owner{fill:#3fb950}.hot{fill:#ff7b72}.warm{fill:#d29922}}
`

// classColors are read on white and on near-black alike.
var classColors = map[string]string{
	ClassIKE:       "#2f81f7",
	ClassESP:       "#2da44e",
	ClassFrame:     "#a371f7",
	ClassAck:       "#8b949e",
	ClassHeartbeat: "#8b949e",
	ClassDisk:      "#bf8700",
}

func color(class string) string {
	if c, ok := classColors[class]; ok {
		return c
	}
	return "#8b949e"
}

// WriteSVG draws what WriteDiagram draws as one self-contained SVG, without
// scripts and with no fonts but the reader's own. Arrows slant by the time that
// the messages were on their way. Pointing at a row shows its whole text.
func WriteSVG(w io.Writer, events []Event, v View) error {
	s := &svg{plan: newPlan(events, v)}
	s.measure()
	s.title(v.Title)
	s.legend()
	s.names()
	s.place()
	s.draw()
	s.names()
	s.foot(v.Footer)

	out := bufio.NewWriter(w)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]s" height="%[2]s" viewBox="0 0 %[1]s %[2]s" role="img" font-family="ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,'Liberation Mono',monospace" font-size="12">`+"\n",
		num(s.w), num(s.y+svgMargin))
	title := v.Title
	if title == "" {
		title = "Sequence diagram"
	}
	fmt.Fprintf(out, "<title>%s</title>\n<style>%s</style>\n<rect class=\"page\" width=\"%s\" height=\"%s\"/>\n",
		escape(clean(title)), svgStyle, num(s.w), num(s.y+svgMargin))
	out.WriteString(s.body.String())
	out.WriteString("</svg>\n")
	return out.Flush()
}

type svg struct {
	*plan
	body  strings.Builder
	w, y  float64 // width of the whole; how far down it is drawn
	timeX float64 // right end of the times
	left  float64 // where the first lifeline's space begins
	pitch float64
	textX float64
	tops  []float64 // of the rows; one more for the end
	lines [][]string
}

func num(f float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0")
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

func (s *svg) printf(format string, args ...any) { fmt.Fprintf(&s.body, format+"\n", args...) }

// text writes t with its baseline at y; anchor is start, middle or end.
func (s *svg) text(class, anchor string, x, y float64, t string) {
	if t != "" {
		s.printf(`<text class="%s" x="%s" y="%s" text-anchor="%s" xml:space="preserve">%s</text>`, class, num(x), num(y), anchor, escape(t))
	}
}

func (s *svg) x(i int) float64 { return s.left + s.pitch*(float64(i)+0.5) }

func (s *svg) measure() {
	timeW := len("time (s)")
	for _, r := range s.rows {
		timeW = max(timeW, len(seconds(r.at, s.decimals)))
	}
	s.timeX = svgMargin + float64(timeW)*svgChar
	s.left = s.timeX + 10
	longest := 10
	for _, name := range s.lifelines {
		for _, part := range wrapName(name, svgMaxName, 3) {
			longest = max(longest, width(part))
		}
	}
	s.pitch = float64(longest)*svgChar + 26
	s.textX = s.left + s.pitch*float64(len(s.lifelines)) + 8
	s.w = max(s.textX+svgText*svgChar, svgMargin+svgTitle*8.5) + svgMargin
	s.y = svgMargin
}

func (s *svg) title(t string) {
	if t == "" {
		return
	}
	for _, line := range wrap(clean(t), svgTitle, 4) {
		s.y += 20
		s.printf(`<text class="fg" x="%s" y="%s" font-size="14" font-weight="bold" xml:space="preserve">%s</text>`, num(svgMargin), num(s.y), escape(line))
	}
	s.y += 10
}

// legend explains every sign that this diagram uses.
func (s *svg) legend() {
	x := svgMargin
	item := func(sample func(x, y float64), sampleW float64, t string) {
		w := sampleW + 8 + float64(width(t))*svgChar + 24
		if x > svgMargin && x+w > s.w-svgMargin {
			x = svgMargin
			s.y += svgLine + 4
		}
		sample(x, s.y+svgLine-4)
		s.text("fg", "start", x+sampleW+8, s.y+svgLine, t)
		x += w
	}
	next := func() { x = svgMargin; s.y += svgLine + 4 }
	none := func(x, y float64) {}
	item(none, -8, "Time runs downwards, in seconds since the simulation began; where it is dotted, nothing is shown.")
	next()
	item(none, -8, "Each line downwards is a machine or a process, drawn by its state:")
	for _, state := range [4][2]string{{StateOwner, "owner: it handles the traffic"}, {StateStandby, "standby, or no role"}, {StateFrozen, "frozen: it stands still"}, {StateDead, "dead: no line"}} {
		item(func(x, y float64) { s.life(x+5, y-8, y+8, state[0]) }, 10, state[1])
	}
	next()
	shown := map[string]bool{}
	for _, r := range s.rows {
		shown[r.e.Class] = shown[r.e.Class] || r.kind != rowGap && r.e.Kind == Message
	}
	for _, class := range [6][2]string{{ClassIKE, "IKE message"}, {ClassESP, "traffic in ESP"}, {ClassFrame, "between the gateways, or another frame"}, {ClassAck, "acknowledgement"}, {ClassHeartbeat, "heartbeat"}, {ClassDisk, "disk"}} {
		if shown[class[0]] {
			e := Event{Kind: Message, Class: class[0]}
			item(func(x, y float64) { s.arrow(x, y-3, x+44, y+3, e) }, 44, class[1])
		}
	}
	if s.lost {
		item(func(x, y float64) { s.arrow(x, y-3, x+44, y+3, Event{Until: -1}) }, 44, "lost on the way")
	}
	item(none, -8, "(+1 ms) the time on the way: arrows slant by it")
	if s.folded {
		item(none, -8, "×37 so many of them, the time is the first one's")
	}
	if s.tags {
		item(none, -8, "[1] a message that arrives in a later row, with the same number")
	}
	next()
	if s.notes {
		item(func(x, y float64) { s.note(x+6, y) }, 12, "something that happened inside")
	}
	item(func(x, y float64) { s.mark(x+7, y, false) }, 14, "FAULT: what the simulation did to the machines or the network")
	item(func(x, y float64) { s.mark(x+7, y, true) }, 14, "VIOLATION: a rule of the system was broken")
	next()
	s.y += 10
}

// names draws the boxes at the ends of the lifelines.
func (s *svg) names() {
	height := 1
	for _, name := range s.lifelines {
		height = max(height, len(wrapName(name, svgMaxName, 3)))
	}
	h := float64(height)*svgLine + 8
	for i, name := range s.lifelines {
		s.printf(`<rect class="box" x="%s" y="%s" width="%s" height="%s" rx="3"/>`, num(s.x(i)-s.pitch/2+5), num(s.y), num(s.pitch-10), num(h))
		parts := wrapName(name, svgMaxName, 3)
		y := s.y + (h-float64(len(parts))*svgLine)/2
		for k, part := range parts {
			s.text("fg", "middle", s.x(i), y+float64(k)*svgLine+12, part)
		}
	}
	s.text("dim", "end", s.timeX, s.y+h/2+4, "time (s)")
	s.y += h
}

// place decides how high each row is.
func (s *svg) place() {
	y := s.y + 4
	for _, r := range s.rows {
		limit := 3
		if r.kind == rowFault || r.kind == rowViolation {
			limit = 8
		}
		label := s.label(r)
		if r.kind == rowGap { // few fonts have the sign; the dots are drawn
			label = strings.TrimPrefix(label, "⋮ ")
		}
		lines := wrap(label, svgText, limit)
		s.lines = append(s.lines, lines)
		s.tops = append(s.tops, y)
		y += max(svgRow, float64(len(lines))*svgLine+10)
	}
	s.tops = append(s.tops, y)
}

// center is where the row i happens.
func (s *svg) center(i int) float64 { return s.tops[i] + svgRow/2 }

// height is where the time t lies, seen from row i, which is not after it.
func (s *svg) height(i int, t time.Duration) float64 {
	from, y := s.rows[i].at, s.center(i)
	for k := i + 1; k < len(s.rows); k++ {
		r := s.rows[k]
		if r.kind == rowGap { // stands for the time up to the next row
			continue
		}
		if r.at >= t {
			if r.at == from {
				return y
			}
			return y + (s.center(k)-y)*(float64(t-from)/float64(r.at-from))
		}
		from, y = r.at, s.center(k)
	}
	return min(y+svgRow/4, s.tops[len(s.rows)])
}

func (s *svg) draw() {
	end := s.tops[len(s.rows)] + 4
	for i, r := range s.rows {
		top, h := s.tops[i], s.tops[i+1]-s.tops[i]
		switch {
		case r.kind == rowFault || r.kind == rowViolation:
			fill := "#bf8700"
			if r.kind == rowViolation {
				fill = "#e5534b"
			}
			s.printf(`<rect x="4" y="%s" width="%s" height="%s" rx="3" fill="%s" fill-opacity="0.2" stroke="%s"/>`, num(top+1), num(s.w-8), num(h-2), fill, fill)
		case i%2 == 1:
			s.printf(`<rect class="band" x="4" y="%s" width="%s" height="%s"/>`, num(top), num(s.w-8), num(h))
		}
	}
	for i := range s.lifelines {
		from, state := s.y, s.initial[i]
		for k, r := range s.rows {
			if r.states[i] != state {
				s.life(s.x(i), from, s.center(k), state)
				from, state = s.center(k), r.states[i]
			}
		}
		s.life(s.x(i), from, end, state)
	}
	for i, r := range s.rows {
		s.row(i, r)
	}
	s.y = end
}

func (s *svg) row(i int, r row) {
	y := s.center(i)
	whole := s.label(r)
	if r.kind != rowGap {
		whole = seconds(r.at, s.decimals) + " s  " + whole
		if r.e.Class != "" {
			whole += "  (" + clean(r.e.Class) + ")"
		}
	}
	s.printf(`<g><title>%s</title><rect x="4" y="%s" width="%s" height="%s" fill-opacity="0"/>`,
		escape(whole), num(s.tops[i]), num(s.w-8), num(s.tops[i+1]-s.tops[i]))
	class := "fg"
	switch r.kind {
	case rowGap:
		class = "dim"
		dots := func(x float64) {
			s.printf(`<rect class="page" x="%s" y="%s" width="10" height="14"/>`, num(x-5), num(y-7))
			for d := -4.0; d <= 4; d += 4 {
				s.printf(`<circle class="dim" cx="%s" cy="%s" r="1.2"/>`, num(x), num(y+d))
			}
		}
		dots(s.timeX - 4)
		for k, state := range r.states {
			if state != StateDead {
				dots(s.x(k))
			}
		}
	case rowNote:
		s.note(s.x(r.from), y)
	case rowState:
		word := short(clean(r.states[r.from]), 10)
		w := float64(width(word))*svgChar + 12
		s.printf(`<rect class="box" x="%s" y="%s" width="%s" height="18" rx="9"/>`, num(s.x(r.from)-w/2), num(y-9), num(w))
		s.text("fg", "middle", s.x(r.from), y+4, word)
	case rowFault, rowViolation:
		class = "warm"
		if r.kind == rowViolation {
			class = "hot"
		}
		for _, k := range [2]int{r.from, r.to} {
			if k >= 0 {
				s.mark(s.x(k), y, r.kind == rowViolation)
			}
		}
	default:
		s.message(i, r)
	}
	if r.kind != rowGap {
		s.text("dim", "end", s.timeX, y+4, seconds(r.at, s.decimals))
	}
	for k, t := range s.lines[i] {
		s.text(class, "start", s.textX, y+4+float64(k)*svgLine, t)
	}
	s.printf("</g>")
}

// message draws the arrow that begins in row i; one that arrives in a row of
// its own was drawn at its sending, if that is shown.
func (s *svg) message(i int, r row) {
	y := s.center(i)
	x1, x2 := s.x(r.from), s.x(r.to)
	switch {
	case r.from == r.to:
		s.printf(`<path d="M%s %sh16v8h-12" fill="none" stroke="%s" stroke-width="1.6"/>`, num(x1), num(y-4), color(r.e.Class))
	case r.kind == rowDepart && r.other >= 0:
		s.arrow(x1, y, x2, s.center(r.other), r.e)
	case r.kind == rowDepart: // still on its way at the end
		s.stroke(x1, y, (x1+x2)/2, y+6, r.e)
	case r.kind == rowArrive:
		if r.other < 0 {
			s.arrow((x1+x2)/2, y-6, x2, y, r.e)
		}
	case r.count > 1 || r.e.Lost():
		s.arrow(x1, y, x2, y, r.e)
	default:
		s.arrow(x1, y, x2, s.height(i, r.e.arrival()), r.e)
	}
}

// arrow draws e from the first point to the second, or two thirds of the way
// and a cross.
func (s *svg) arrow(x1, y1, x2, y2 float64, e Event) {
	if e.Until < 0 {
		x2, y2 = x1+(x2-x1)*2/3, y1+(y2-y1)*2/3
		s.stroke(x1, y1, x2, y2, e)
		s.printf(`<path d="M%s %sl10 10m0 -10l-10 10" fill="none" stroke="#e5534b" stroke-width="2.2"/>`, num(x2-5), num(y2-5))
		return
	}
	n := math.Hypot(x2-x1, y2-y1)
	if n < 1 {
		return
	}
	dx, dy := (x2-x1)/n, (y2-y1)/n
	bx, by := x2-dx*svgHead, y2-dy*svgHead
	s.stroke(x1, y1, bx, by, e)
	s.printf(`<path d="M%s %sL%s %sL%s %sz" fill="%s"/>`, num(x2), num(y2),
		num(bx-dy*4), num(by+dx*4), num(bx+dy*4), num(by-dx*4), color(e.Class))
}

func (s *svg) stroke(x1, y1, x2, y2 float64, e Event) {
	dash := ""
	if e.background() {
		dash = ` stroke-dasharray="5 3"`
	}
	s.printf(`<path d="M%s %sL%s %s" fill="none" stroke="%s" stroke-width="1.6"%s/>`, num(x1), num(y1), num(x2), num(y2), color(e.Class), dash)
}

// life draws a piece of a lifeline.
func (s *svg) life(x, y1, y2 float64, state string) {
	switch state {
	case StateDead:
	case StateOwner:
		s.printf(`<rect class="owner" x="%s" y="%s" width="6" height="%s"/>`, num(x-3), num(y1), num(y2-y1))
	case StateFrozen:
		s.printf(`<path class="line" d="M%s %sV%s" stroke-width="2" stroke-dasharray="2 5"/>`, num(x), num(y1), num(y2))
	default:
		s.printf(`<path class="line" d="M%s %sV%s" stroke-width="1.2"/>`, num(x), num(y1), num(y2))
	}
}

func (s *svg) note(x, y float64) {
	s.printf(`<rect class="box" x="%s" y="%s" width="12" height="12" rx="2" stroke-width="2"/>`, num(x-6), num(y-6))
}

func (s *svg) mark(x, y float64, violation bool) {
	if violation {
		s.printf(`<path d="M%s %sl8 14h-16z" fill="#e5534b"/><path d="M%s %sv5m0 2v2" stroke="#ffffff" stroke-width="1.6"/>`, num(x), num(y-8), num(x), num(y-4))
		return
	}
	s.printf(`<path d="M%s %sl12 12m0 -12l-12 12" stroke="#bf8700" stroke-width="3.2"/>`, num(x-6), num(y-6))
}

func (s *svg) foot(footer string) {
	s.y += 6
	columns := int((s.w - 2*svgMargin) / svgChar)
	lines := s.remarks()
	if footer != "" {
		for _, f := range strings.Split(footer, "\n") {
			lines = append(lines, clean(f))
		}
	}
	for _, f := range lines {
		for _, t := range wrap(f, columns, 8) {
			s.y += svgLine
			s.text("dim", "start", svgMargin, s.y, t)
		}
	}
}
