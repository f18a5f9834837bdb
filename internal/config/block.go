package config

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// row is one keyword of a block: how it is written, its default, where it lives.
type row[T any] struct {
	key   string
	value value
	def   string       // as it would be written; empty: none
	at    func(*T) any // pointer that value understands
	help  string       // one line of docs/configuration.md
	local bool         // this node's own: members of a cluster may differ in it

	hide  func(*T) bool // where it has no meaning: shown only when it differs from the default
	omit  func(*T) bool // never shown there
	empty string        // says what is wrong with a missing value, instead of the general text
}

// ignored is a keyword (or a pattern of keywords, as path.Match reads it) that
// FortiOS has and that has no effect here. Where only
// lists values, the others would change what the gateway does or lets through,
// so they are refused; why says what to write instead.
type ignored struct {
	key  string
	only []string
	why  string
}

// plain makes rows of keywords that are ignored whatever their value.
func plain(keys string) (rows []ignored) {
	for _, k := range strings.Fields(keys) {
		rows = append(rows, ignored{key: k})
	}
	return rows
}

// child is a nested config block. A nil open skips the block with a warning.
type child[T any] struct {
	path string
	open func(*T, *source) scope
	show func(*T, *printer)
}

// spec describes one block of the language.
type spec[T any] struct {
	path     string
	help     string
	label    string // names an entry in errors together with its name; empty: the name alone
	make     func(name string, line int) (T, string)
	rows     []row[T]
	ignored  []ignored
	children []child[T]
	entry    string // what edit takes; empty for a block without entries
	own      bool   // its entries are this node's own, with all that is in them
}

// source remembers where an object was written, for relations that are checked later.
type source struct {
	object string
	name   string
	line   int
	lines  map[string]int  // keyword → line of the last explicit set
	bad    map[string]bool // keywords with a fault of their own: later checks keep silent
}

// at is the line of a keyword, or of the object when the keyword was not written.
func (s *source) at(keys ...string) int {
	for _, k := range keys {
		if n := s.lines[k]; n != 0 {
			return n
		}
	}
	return s.line
}

// wrote says whether a keyword was set explicitly.
func (s *source) wrote(key string) bool { return s.lines[key] != 0 }

// scope is what config or edit opened.
type scope interface {
	statement(ld *loader, st stmt) // set, unset, append
	config(ld *loader, st stmt, path string) scope
	edit(ld *loader, st stmt, name string) scope
	name() string
}

// object is one set of keywords: a block without entries, or one entry.
type object[T any] struct {
	def *spec[T]
	val *T
	src *source
}

func newObject[T any](def *spec[T], val T, src *source) *object[T] {
	o := &object[T]{def: def, val: &val, src: src}
	for i := range def.rows {
		def.rows[i].reset(o.val)
	}
	return o
}

func newSingle[T any](def *spec[T]) *object[T] {
	var zero T
	return newObject(def, zero, newSource(def.path, "", 0))
}

func newSource(object, name string, line int) *source {
	return &source{object: object, name: name, line: line, lines: map[string]int{}, bad: map[string]bool{}}
}

func (r *row[T]) reset(v *T) {
	p := r.at(v)
	if c, ok := r.value.(clearer); ok {
		c.clear(p)
	} else {
		reflect.ValueOf(p).Elem().SetZero()
	}
	if r.def != "" {
		if msg := r.value.parse(lexWords(r.def), p); msg != "" {
			panic(fmt.Sprintf("config: default of %s: %s", r.key, msg))
		}
	}
}

func (o *object[T]) name() string { return o.def.path }

// from notes where a block without entries begins first.
func (o *object[T]) from(line int) {
	if o.src.line == 0 {
		o.src.line = line
	}
}

func (o *object[T]) row(key string) *row[T] {
	i := slices.IndexFunc(o.def.rows, func(r row[T]) bool { return r.key == key })
	if i < 0 {
		return nil
	}
	return &o.def.rows[i]
}

func (o *object[T]) statement(ld *loader, st stmt) {
	if len(st.words) == 0 {
		ld.fault(st.line, o.src.object, "", st.verb+" needs a keyword; `config "+o.def.path+"` knows "+strings.Join(o.def.keys(), ", "))
		return
	}
	key, words := st.words[0].text, st.words[1:]
	fail := func(msg string) {
		o.src.bad[key] = true
		ld.fault(st.line, o.src.object, key, key+" "+msg)
	}
	r := o.row(key)
	if r == nil {
		o.unknown(ld, st, key, words)
		return
	}
	p := r.at(o.val)
	switch st.verb {
	case "unset":
		if len(words) != 0 {
			fail("takes no value with unset")
			return
		}
		delete(o.src.lines, key)
		delete(o.src.bad, key)
		r.reset(o.val)
		return
	case "append":
		l, ok := r.value.(lister)
		if !ok {
			fail("is not a list: append adds to lists only, use set")
			return
		}
		words = append(l.list(p), words...)
	}
	o.src.lines[key] = st.line
	delete(o.src.bad, key)
	if len(words) == 0 {
		msg := r.empty
		if msg == "" {
			msg = "is empty: it takes " + r.value.allowed()
		}
		fail(msg)
		return
	}
	if msg := r.value.parse(words, p); msg != "" {
		fail(msg)
	}
}

// unknown handles what is not in the keyword table.
func (o *object[T]) unknown(ld *loader, st stmt, key string, words []word) {
	for _, ig := range o.def.ignored {
		if ok, _ := path.Match(ig.key, key); !ok {
			continue
		}
		if ig.only != nil && st.verb != "unset" {
			for _, w := range words {
				if !slices.Contains(ig.only, strings.ToLower(w.text)) && w.text != "" {
					msg := fmt.Sprintf("%s (%s) is not supported here; allowed: %s", key, echo(w.text), orList(ig.only))
					if ig.why != "" {
						msg = fmt.Sprintf("%s (%s) is not supported here: %s", key, echo(w.text), ig.why)
					}
					ld.fault(st.line, o.src.object, key, msg)
					return
				}
			}
		}
		ld.ignoredKey(st.line, o.src.object, o.def.path, key)
		return
	}
	if ld.cut {
		return
	}
	known := o.def.keys()
	for _, ig := range o.def.ignored {
		if !strings.Contains(ig.key, "*") {
			known = append(known, ig.key)
		}
	}
	if n := nearest(key, known); n != "" {
		ld.fault(st.line, o.src.object, key, fmt.Sprintf("unknown keyword %s in `config %s`; did you mean %s?", echo(key), o.def.path, n))
		return
	}
	ld.fault(st.line, o.src.object, key, fmt.Sprintf("unknown keyword %s in `config %s`; it knows %s", echo(key), o.def.path, strings.Join(o.def.keys(), ", ")))
}

func (d *spec[T]) keys() (keys []string) {
	for _, r := range d.rows {
		keys = append(keys, r.key)
	}
	return keys
}

func (o *object[T]) config(ld *loader, st stmt, path string) scope {
	var known []string
	for _, c := range o.def.children {
		if c.path == path {
			if c.open == nil {
				ld.ignoredKey(st.line, o.src.object, o.def.path, "config "+path)
				return skip{}
			}
			return c.open(o.val, o.src)
		}
		known = append(known, c.path)
	}
	msg := fmt.Sprintf("`config %s` holds no block %s", o.def.path, echo(path))
	if len(known) > 0 {
		msg += "; it knows " + orList(known)
	}
	ld.fault(st.line, o.src.object, "", msg)
	return skip{}
}

func (o *object[T]) edit(ld *loader, st stmt, name string) scope {
	ld.fault(st.line, o.src.object, "", fmt.Sprintf("`config %s` has no entries: edit has no place here", o.def.path))
	return skip{}
}

// table is a block with entries. Editing an existing entry continues it.
type table[T any] struct {
	def     *spec[T]
	within  string // the object that holds it, "" at the top
	entries []*object[T]
	byName  map[string]*object[T]
	opened  bool
}

func newTable[T any](def *spec[T], within string) *table[T] {
	return &table[T]{def: def, within: within, byName: map[string]*object[T]{}}
}

func (t *table[T]) name() string { return t.def.path }

func (t *table[T]) statement(ld *loader, st stmt) {
	ld.fault(st.line, t.def.path, "", fmt.Sprintf("%s stands outside of an entry: write edit %s first", st.verb, t.def.entry))
}

func (t *table[T]) config(ld *loader, st stmt, path string) scope {
	ld.fault(st.line, t.def.path, "", fmt.Sprintf("config %s stands outside of an entry: write edit %s first, or end", echo(path), t.def.entry))
	return skip{}
}

func (t *table[T]) edit(ld *loader, st stmt, name string) scope {
	if o := t.byName[name]; o != nil {
		return o
	}
	if ld.known && !t.def.own { // what belonged to the entry went with it
		return skip{}
	}
	if ld.entries++; ld.entries > maxEntries {
		ld.fault(st.line, t.def.path, "", fmt.Sprintf("more than %d entries", maxEntries))
		return skip{}
	}
	val, msg := t.def.make(name, st.line)
	obj := t.label(name)
	if msg != "" {
		ld.fault(st.line, obj, "", msg)
		return skip{}
	}
	o := newObject(t.def, val, newSource(obj, name, st.line))
	t.entries = append(t.entries, o)
	t.byName[name] = o
	return o
}

func (t *table[T]) label(name string) string {
	s := echo(name)
	if t.def.label != "" {
		s = t.def.label + " " + s
	}
	if t.within != "" {
		s = t.within + ": " + s
	}
	return s
}

func (t *table[T]) values() (out []T) {
	for _, o := range t.entries {
		out = append(out, *o.val)
	}
	return out
}

// fill puts existing values into a table, for printing.
func (t *table[T]) fill(vals []T, name func(*T) string) *table[T] {
	for i := range vals {
		n := name(&vals[i])
		t.entries = append(t.entries, &object[T]{def: t.def, val: &vals[i], src: newSource(t.label(n), n, 0)})
	}
	return t
}

// skip swallows a block that is not known or has no meaning here.
type skip struct{}

func (skip) statement(*loader, stmt)                  {}
func (skip) config(_ *loader, _ stmt, _ string) scope { return skip{} }
func (skip) edit(_ *loader, _ stmt, _ string) scope   { return skip{} }
func (skip) name() string                             { return "" }

// numbered makes entries whose name is a number between min and max.
func numbered[T any](what string, min, max int, make func(id int) T) func(string, int) (T, string) {
	return func(name string, _ int) (T, string) {
		id, err := strconv.Atoi(name)
		if err != nil || id < min || id > max || strconv.Itoa(id) != name {
			var zero T
			return zero, fmt.Sprintf("%s (%s) must be a number between %d and %d", what, echo(name), min, max)
		}
		return make(id), ""
	}
}

// nameFault says what is wrong with the name of an entry, or "".
func nameFault(what, name string, max int) string {
	switch {
	case name == "":
		return what + " needs a name"
	case len(name) > max:
		return fmt.Sprintf("%s name must not be longer than %d bytes (it has %d)", what, max, len(name))
	case !isPrintable(name):
		return what + " name must be printable"
	}
	return ""
}
