package config

import (
	"slices"
	"strings"
)

// printer writes the language.
type printer struct {
	b       strings.Builder
	indent  int
	full    bool // defaults too
	secrets bool
	shared  bool // without what belongs to this node alone
	own     bool // only what belongs to this node alone
	only    string
	lines   []string // as they were written, a value of several lines in one
}

type printable interface {
	print(*printer)
	empty(*printer) bool // nothing to print in this form
}

func (p *printer) line(s string) {
	p.lines = append(p.lines, s)
	p.b.WriteString(strings.Repeat("    ", p.indent))
	p.b.WriteString(s)
	p.b.WriteByte('\n')
}

// optional prints a nested block that has entries.
func (p *printer) optional(x printable) {
	if !x.empty(p) {
		x.print(p)
	}
}

func (o *object[T]) empty(p *printer) bool {
	if p.full {
		return false
	}
	return p.tries(o.body)
}

// tries says that a part would print nothing.
func (p *printer) tries(part func(*printer)) bool {
	try := *p
	try.b, try.lines = strings.Builder{}, nil
	part(&try)
	return try.b.Len() == 0
}

func (o *object[T]) print(p *printer) {
	p.line("config " + o.def.path)
	p.indent++
	o.body(p)
	p.indent--
	p.line("end")
}

// body prints the keywords: in full form all that are meant, else those that differ from the default.
func (o *object[T]) body(p *printer) {
	var zero T
	def := newObject(o.def, zero, nil)
	for i := range o.def.rows {
		r := &o.def.rows[i]
		if r.omit != nil && r.omit(o.val) || p.shared && r.local || p.own && !r.local {
			continue
		}
		text := r.value.format(r.at(o.val))
		hidden := !p.full || r.hide != nil && r.hide(o.val)
		if text == "" || hidden && text == r.value.format(r.at(def.val)) {
			continue
		}
		if h, ok := r.value.(hider); ok && !p.secrets && h.hides(r.at(o.val)) {
			text = "ENC " + redactedMark
		}
		p.line("set " + r.key + " " + text)
	}
	for _, c := range o.def.children {
		if c.show != nil {
			c.show(o.val, p)
		}
	}
}

func (t *table[T]) empty(p *printer) bool {
	if p.shared && t.def.own {
		return true
	}
	if p.own {
		return !slices.ContainsFunc(t.entries, func(o *object[T]) bool { return !p.tries(o.body) })
	}
	return len(t.entries) == 0 && !t.opened
}

func (t *table[T]) print(p *printer) {
	p.line("config " + t.def.path)
	p.indent++
	for _, o := range t.entries {
		if p.only != "" && p.indent == 1 && o.src.name != p.only || p.own && p.tries(o.body) {
			continue
		}
		name := o.src.name
		if t.def.label == "" {
			name = quote(name)
		}
		p.line("edit " + name)
		p.indent++
		o.body(p)
		p.indent--
		p.line("next")
	}
	p.indent--
	p.line("end")
}
