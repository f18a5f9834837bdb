package trace

import (
	"bufio"
	"io"
	"strings"
)

const (
	diagramWidth = 140 // columns of a text diagram
	minPitch     = 8   // columns from one lifeline to the next
	maxLadder    = 96  // columns of all lifelines together
)

// WriteDiagram draws the part of events that v names as a text sequence
// diagram: lifelines side by side, time downwards, a legend above. No line is
// longer than 140 columns. At most v.MaxRows rows are drawn; what is left out
// is counted.
func WriteDiagram(w io.Writer, events []Event, v View) error {
	p := newPlan(events, v)
	d := diagram{plan: p, out: bufio.NewWriter(w), timeW: len("time (s)")}
	for _, r := range p.rows {
		d.timeW = max(d.timeW, len(seconds(r.at, p.decimals)))
	}
	d.pitch = 11
	for _, name := range p.lifelines {
		for _, part := range strings.SplitAfter(clean(name), "/") {
			d.pitch = max(d.pitch, width(part)+2)
		}
	}
	if n := len(p.lifelines); n > 0 {
		d.pitch = max(minPitch, min(d.pitch, maxLadder/n))
	}
	d.textW = diagramWidth - d.timeW - 2 - d.pitch*len(p.lifelines) - 1

	if v.Title != "" {
		for _, s := range wrap(clean(v.Title), diagramWidth, 4) {
			d.line(s)
		}
		d.line("")
	}
	for _, s := range p.legend() {
		d.line(s)
	}
	d.line("")
	d.header()
	for _, r := range p.rows {
		d.row(r)
	}
	d.header()
	for _, s := range p.remarks() {
		d.paragraph(s)
	}
	if v.Footer != "" {
		d.line("")
		for _, s := range strings.Split(v.Footer, "\n") {
			d.paragraph(clean(s))
		}
	}
	return d.out.Flush()
}

type diagram struct {
	*plan
	out                 *bufio.Writer
	timeW, pitch, textW int
}

func (d *diagram) line(s string) {
	d.out.WriteString(strings.TrimRight(s, " "))
	d.out.WriteByte('\n')
}

func (d *diagram) paragraph(s string) {
	for _, s := range wrap(s, diagramWidth, 8) {
		d.line(s)
	}
}

// legend explains every sign that this diagram uses.
func (p *plan) legend() []string {
	out := []string{
		"Time runs downwards, in seconds since the simulation began; ⋮ marks time in which nothing is shown. Each column is a machine or a process.",
		"A column is drawn by its state:  ┃ owner: it handles the traffic   │ standby, or no role   ┊ frozen: it stands still   (blank) dead",
		"├────>│ a message, sent at the time on the left (+how long it was on its way)",
	}
	if p.lost {
		out = append(out, "├──×  │ a message that was lost")
	}
	if p.background {
		s := "├┄┄┄┄>│ traffic in ESP, a heartbeat, or an acknowledgement"
		if p.folded {
			s += "; ×37: so many of them, the first one's time on the left"
		}
		out = append(out, s)
	}
	if p.tags {
		out = append(out, "├─┄   │ and ┄─>│ with the same number [1]: the two ends of a message, when other things happened while it was on its way")
	}
	if p.notes {
		out = append(out, "[*] something that happened inside one machine or process")
	}
	return append(out,
		"══[X]══ FAULT: what the simulation did to the machines or to the network     ━━[!]━━ VIOLATION: a rule of the system was broken")
}

func (d *diagram) header() {
	names := make([][]string, len(d.lifelines))
	height := 1
	for i, name := range d.lifelines {
		names[i] = wrapName(name, d.pitch-1, 3)
		height = max(height, len(names[i]))
	}
	for k := range height {
		cells := blank(d.pitch * len(d.lifelines))
		for i, parts := range names {
			if k := k - (height - len(parts)); k >= 0 {
				d.put(cells, i, parts[k])
			}
		}
		time := ""
		if k == height-1 {
			time = "time (s)"
		}
		d.line(strings.Repeat(" ", d.timeW-width(time)) + time + "  " + string(cells))
	}
}

func blank(n int) []rune {
	return []rune(strings.Repeat(" ", n))
}

// column is where the lifeline i is drawn.
func (d *diagram) column(i int) int { return d.pitch*i + d.pitch/2 }

// put writes s around the lifeline i.
func (d *diagram) put(cells []rune, i int, s string) {
	r := []rune(s)
	at := max(0, d.column(i)-len(r)/2)
	copy(cells[at:], r)
}

// lifelinesOnly is a row on which nothing happens.
func (d *diagram) lifelinesOnly(states []string) []rune {
	cells := blank(d.pitch * len(d.lifelines))
	for i, state := range states {
		cells[d.column(i)] = lifeline(state)
	}
	return cells
}

func lifeline(state string) rune {
	switch state {
	case StateOwner:
		return '┃'
	case StateDead:
		return ' '
	case StateFrozen:
		return '┊'
	}
	return '│'
}

func (d *diagram) row(r row) {
	cells := d.lifelinesOnly(r.states)
	time, lines := seconds(r.at, d.decimals), 3
	switch r.kind {
	case rowGap:
		time = "⋮"
		for i, state := range r.states {
			if state != StateDead {
				cells[d.column(i)] = '⋮'
			}
		}
	case rowNote:
		d.put(cells, r.from, "[*]")
	case rowState:
		d.put(cells, r.from, "["+short(clean(r.states[r.from]), d.pitch-3)+"]")
	case rowFault, rowViolation:
		lines = 8
		fill, mark := '═', "[X]"
		if r.kind == rowViolation {
			fill, mark = '━', "[!]"
		}
		for i := range cells {
			if cells[i] == ' ' {
				cells[i] = fill
			}
		}
		for _, i := range [2]int{r.from, r.to} {
			if i >= 0 {
				d.put(cells, i, mark)
			}
		}
	default:
		d.arrow(cells, r)
	}
	for i, s := range wrap(d.label(r), d.textW, lines) {
		if i > 0 {
			time = ""
			cells = d.lifelinesOnly(r.states)
		}
		d.line(strings.Repeat(" ", d.timeW-width(time)) + time + "  " + string(cells) + " " + s)
	}
}

// arrow draws the message of r from its sender's column to its receiver's.
func (d *diagram) arrow(cells []rune, r row) {
	if r.from == r.to {
		d.put(cells, r.from, "[*]")
		return
	}
	a, b, step := d.column(r.from), d.column(r.to), 1
	if a > b {
		step = -1
	}
	line := '─'
	if r.e.background() {
		line = '┄'
	}
	n := (b - a) * step // columns from end to end
	for k := 1; k < n; k++ {
		c := line
		switch r.kind {
		case rowDepart:
			if k > n*2/3 {
				continue
			}
			if k > n/3 {
				c = '┄'
			}
		case rowArrive:
			if k < n/3 {
				continue
			}
			if k < n*2/3 {
				c = '┄'
			}
		}
		if r.e.Lost() && k > n*2/3 {
			continue
		}
		at := a + k*step
		switch cells[at] {
		case '┃':
			c = '╂'
		case '│', '┊':
			c = '┼'
		}
		cells[at] = c
	}
	switch {
	case r.e.Lost():
		cells[a+step*(n*2/3)] = '×'
	case r.kind != rowDepart:
		head := '>'
		if step < 0 {
			head = '<'
		}
		cells[b-step] = head
	}
	if r.kind == rowArrive {
		return
	}
	start := map[rune][2]rune{'┃': {'┠', '┨'}, '│': {'├', '┤'}, '┊': {'├', '┤'}, ' ': {'╶', '╴'}}[cells[a]]
	cells[a] = start[0]
	if step < 0 {
		cells[a] = start[1]
	}
}
