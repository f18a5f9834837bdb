package config

import (
	"slices"
	"strconv"
)

// Op says what happened to an entry.
type Op string

const (
	Added   Op = "added"
	Removed Op = "removed"
	Changed Op = "changed"
)

// Change is one entry that differs. Keys names the keywords that differ; it is
// empty for entries that were added or removed.
type Change struct {
	Name string
	Op   Op
	Keys []string
}

// Delta is what differs between two configurations, in the order of the newer
// one, removed entries last.
type Delta struct {
	System     []Change // blocks without entries; Name is the path, e.g. "system ha"
	Interfaces []Change
	Addresses  []Change // addresses and groups of both families
	Phase1     []Change
	Phase2     []Change // also when only what its address names or its phase 1's esn come to has changed
	Policies   []Change // also when only the addresses behind its names have changed
	Routes     []Change
	Monitors   []Change // link monitors
	// Certificates, lists, users and user peers, as they are written: a file may say something else though its path is the same.
	Certificates []Change
	// PolicyOrder: the policies that both have stand in another order, or
	// HasPolicy differs.
	PolicyOrder bool
}

// Empty says that nothing differs.
func (d *Delta) Empty() bool {
	return len(d.System)+len(d.Interfaces)+len(d.Addresses)+len(d.Phase1)+len(d.Phase2)+len(d.Policies)+len(d.Routes)+len(d.Monitors)+len(d.Certificates) == 0 && !d.PolicyOrder
}

// Diff compares two configurations, secrets included; nil stands for one with nothing in it.
func Diff(from, to *Config) *Delta {
	if from == nil {
		from = newLoader("").build()
	}
	if to == nil {
		to = newLoader("").build()
	}
	d := &Delta{}
	for _, b := range blocks {
		before, after := b.view(from), b.view(to)
		a, isObject := after.(fielder)
		if isObject {
			if keys := changedFields(before.(fielder).fields(), a.fields()); len(keys) > 0 {
				d.System = append(d.System, Change{Name: b.path, Op: Changed, Keys: keys})
			}
			continue
		}
		changes := diffEntries(before.(entryLister), after.(entryLister))
		switch b.path {
		case interfaceSpec.path:
			d.Interfaces = changes
		case phase1Spec.path:
			d.Phase1 = changes
		case phase2Spec.path:
			d.Phase2 = changes
		case policySpec.path:
			d.Policies = changes
		case linkMonitorSpec.path:
			d.Monitors = changes
		case caCertSpec.path, localCertSpec.path, crlSpec.path, remoteCertSpec.path, userPeerSpec.path, userPeerGroupSpec.path, userSpec.path, userGroupSpec.path, radiusSpec.path:
			d.Certificates = append(d.Certificates, changes...)
		case staticRoute.path, staticRoute6.path:
			d.Routes = append(d.Routes, changes...)
		default:
			d.Addresses = append(d.Addresses, changes...)
		}
	}
	d.meanings(from, to)
	return d
}

// field is one keyword as it is written, or one nested block.
type field struct{ key, text string }

type fielder interface{ fields() []field }

type entryLister interface{ all() []entryFields }

type entryFields struct {
	name   string
	fields []field
}

func (o *object[T]) fields() (out []field) {
	for i := range o.def.rows {
		r := &o.def.rows[i]
		if r.omit != nil && r.omit(o.val) {
			continue
		}
		out = append(out, field{r.key, r.value.format(r.at(o.val))})
	}
	for _, c := range o.def.children {
		if c.show != nil {
			p := &printer{full: true, secrets: true}
			c.show(o.val, p)
			out = append(out, field{c.path, p.b.String()})
		}
	}
	return out
}

func (t *table[T]) all() (out []entryFields) {
	for _, o := range t.entries {
		out = append(out, entryFields{o.src.name, o.fields()})
	}
	return out
}

func changedFields(a, b []field) (keys []string) {
	was := map[string]string{}
	for _, f := range a {
		was[f.key] = f.text
	}
	for _, f := range b {
		if text, ok := was[f.key]; !ok || text != f.text {
			keys = append(keys, f.key)
		}
		delete(was, f.key)
	}
	for _, f := range a {
		if _, gone := was[f.key]; gone {
			keys = append(keys, f.key)
		}
	}
	return keys
}

func diffEntries(before, after entryLister) (out []Change) {
	was := map[string][]field{}
	for _, e := range before.all() {
		was[e.name] = e.fields
	}
	for _, e := range after.all() {
		old, ok := was[e.name]
		delete(was, e.name)
		if !ok {
			out = append(out, Change{Name: e.name, Op: Added})
		} else if keys := changedFields(old, e.fields); len(keys) > 0 {
			out = append(out, Change{Name: e.name, Op: Changed, Keys: keys})
		}
	}
	for _, e := range before.all() {
		if _, gone := was[e.name]; gone {
			out = append(out, Change{Name: e.name, Op: Removed})
		}
	}
	return out
}

// meanings adds entries whose text is the same and whose meaning is not.
func (d *Delta) meanings(from, to *Config) {
	old := map[string]*Phase2{}
	for i := range from.Phase2 {
		old[from.Phase2[i].Name] = &from.Phase2[i]
	}
	for i := range to.Phase2 {
		p, o := &to.Phase2[i], old[to.Phase2[i].Name]
		if o == nil {
			continue
		}
		var keys []string
		if !slices.Equal(o.Src, p.Src) {
			keys = append(keys, "src-name")
		}
		if !slices.Equal(o.Dst, p.Dst) {
			keys = append(keys, "dst-name")
		}
		if !slices.Equal(o.Proposals, p.Proposals) {
			keys = append(keys, "esn")
		}
		d.Phase2 = addMeaning(d.Phase2, p.Name, keys)
	}
	idSet := func(c *Config) map[int]bool {
		set := map[int]bool{}
		for _, p := range c.Policies {
			set[p.ID] = true
		}
		return set
	}
	fromIDs, toIDs := idSet(from), idSet(to)
	ids := func(c *Config) (out []int) {
		for _, p := range c.Policies {
			if fromIDs[p.ID] && toIDs[p.ID] {
				out = append(out, p.ID)
			}
		}
		return out
	}
	d.PolicyOrder = from.HasPolicy != to.HasPolicy || !slices.Equal(ids(from), ids(to))
	if len(d.Addresses) == 0 {
		return
	}
	was, is := from.index(), to.index()
	moved := func(names []string, v6 bool) bool {
		return slices.ContainsFunc(names, func(n string) bool {
			a, _ := was.resolve(n, v6, nil, 0)
			b, _ := is.resolve(n, v6, nil, 0)
			return !slices.Equal(a, b)
		})
	}
	for _, p := range to.Policies {
		var keys []string
		for _, side := range []struct {
			key   string
			names []string
			v6    bool
		}{{"srcaddr", p.SrcAddr, false}, {"dstaddr", p.DstAddr, false}, {"srcaddr6", p.SrcAddr6, true}, {"dstaddr6", p.DstAddr6, true}} {
			if moved(side.names, side.v6) {
				keys = append(keys, side.key)
			}
		}
		if fromIDs[p.ID] {
			d.Policies = addMeaning(d.Policies, strconv.Itoa(p.ID), keys)
		}
	}
}

func addMeaning(l []Change, name string, keys []string) []Change {
	if len(keys) == 0 || slices.ContainsFunc(l, func(c Change) bool { return c.Name == name }) {
		return l
	}
	return append(l, Change{Name: name, Op: Changed, Keys: keys})
}
