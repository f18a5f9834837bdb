package config

import (
	"fmt"
	"strings"
)

// refBlock and refRow are the reference of docs/configuration.md as data.
type refBlock struct {
	path, entry, help string
	rows              []refRow
	ignored           []ignored
}

type refRow struct {
	key, def, allowed, help string
	local                   bool
}

func refsOf[T any](d *spec[T]) []refBlock {
	b := refBlock{path: d.path, entry: d.entry, help: d.help, ignored: d.ignored}
	for _, r := range d.rows {
		def := r.def
		if def == "" {
			def = "—"
		}
		b.rows = append(b.rows, refRow{r.key, def, r.value.allowed(), r.help, r.local})
	}
	return []refBlock{b}
}

// Reference writes the keyword tables of docs/configuration.md.
func Reference() string {
	var b strings.Builder
	cell := func(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
	for _, bl := range blocks {
		for _, r := range bl.ref() {
			fmt.Fprintf(&b, "### `config %s`\n\n%s\n\n", r.path, r.help)
			if r.entry != "" {
				fmt.Fprintf(&b, "Entries: `edit %s`\n\n", r.entry)
			}
			if len(r.rows) > 0 {
				b.WriteString("| keyword | default | allowed | meaning |\n|---|---|---|---|\n")
				for _, row := range r.rows {
					if row.local {
						row.help += " (*node*)"
					}
					fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", row.key, cell(row.def), cell(row.allowed), cell(row.help))
				}
				b.WriteByte('\n')
			}
			var plainKeys, bound []string
			for _, ig := range r.ignored {
				switch {
				case ig.only == nil:
					plainKeys = append(plainKeys, "`"+ig.key+"`")
				case len(ig.only) == 0:
					bound = append(bound, "`"+ig.key+"` (refused: "+ig.why+")")
				default:
					bound = append(bound, "`"+ig.key+"` (only "+orList(ig.only)+")")
				}
			}
			if len(bound) > 0 {
				fmt.Fprintf(&b, "Read with a warning, other values refused: %s.\n\n", strings.Join(bound, ", "))
			}
			if len(plainKeys) > 0 {
				fmt.Fprintf(&b, "Read with a warning, without effect: %s.\n\n", strings.Join(plainKeys, ", "))
			}
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}
