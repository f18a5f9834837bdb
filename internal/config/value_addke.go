package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tandem/internal/ipsec"
)

// addKE is a list of methods of one additional key exchange (RFC 9370), best first, in a
// []ipsec.TransformID. A list of 0 alone is the same as none.
type addKE struct{}

// addKEMethods are FortiOS's names, in its newer releases and by number.
var addKEMethods = []struct {
	id   ipsec.TransformID
	name string
	why  string // it is refused
}{
	{ipsec.KENone, "none", ""},
	{ipsec.KEMLKEM768, "ml-kem-768", ""},
	{ipsec.KEMLKEM1024, "ml-kem-1024", ""},
	{35, "ml-kem-512", "ML-KEM-512 is not offered here"},
	{1080, "kyber512", "a draft that ML-KEM has replaced"},
	{1081, "kyber768", "a draft that ML-KEM has replaced"},
	{1082, "kyber1024", "a draft that ML-KEM has replaced"},
	{1083, "frodo-l1", "not standardised for IKEv2"},
	{1084, "frodo-l3", "not standardised for IKEv2"},
	{1085, "frodo-l5", "not standardised for IKEv2"},
	{1089, "bike-l1", "not standardised for IKEv2"},
	{1090, "bike-l3", "not standardised for IKEv2"},
	{1091, "bike-l5", "not standardised for IKEv2"},
	{1092, "hqc128", "not standardised for IKEv2"},
	{1093, "hqc192", "not standardised for IKEv2"},
	{1094, "hqc256", "not standardised for IKEv2"},
}

func (addKE) allowed() string {
	return "36 (ml-kem-768), 37 (ml-kem-1024) or 0 (none: may be left out)"
}
func (a addKE) parse(words []word, into any) string {
	var out []ipsec.TransformID
	for _, w := range words {
		i := slices.IndexFunc(addKEMethods, func(m struct {
			id   ipsec.TransformID
			name string
			why  string
		}) bool {
			return w.text == m.name || w.text == strconv.Itoa(int(m.id))
		})
		switch {
		case i < 0:
			return fmt.Sprintf("(%s) must be %s", echo(w.text), a.allowed())
		case addKEMethods[i].why != "":
			return fmt.Sprintf("(%s) is refused: %s; allowed: %s", w.text, addKEMethods[i].why, a.allowed())
		case !slices.Contains(out, addKEMethods[i].id):
			out = append(out, addKEMethods[i].id)
		}
	}
	if len(out) == 1 && out[0] == ipsec.KENone {
		out = nil
	}
	*into.(*[]ipsec.TransformID) = out
	return ""
}
func (addKE) format(from any) string       { return groups{}.format(from) }
func (addKE) list(from any) (words []word) { return groups{}.list(from) }

func addKEKey(i int) string { return "addke" + strconv.Itoa(i+1) }

// addKERows are addke1 to addke7.
func addKERows[T any](at func(*T, int) *[]ipsec.TransformID, help string) []row[T] {
	var out []row[T]
	for i := range ipsec.MaxAddKE {
		h := "the same, number " + strconv.Itoa(i+1)
		if i == 0 {
			h = help
		}
		out = append(out, row[T]{key: addKEKey(i), value: addKE{}, at: func(p *T) any { return at(p, i) },
			hide: func(p *T) bool { return len(*at(p, i)) == 0 }, help: h})
	}
	return out
}

// checkAddKE says what is wrong with additional key exchanges, and where: all methods of
// one negotiation must differ (RFC 9370 §2.2.1), so those that are required must be able to.
func checkAddKE(all [ipsec.MaxAddKE][]ipsec.TransformID) (key, fault string) {
	var fits func(i int, used []ipsec.TransformID) bool
	fits = func(i int, used []ipsec.TransformID) bool {
		if i == len(all) {
			return true
		}
		if len(all[i]) == 0 {
			return fits(i+1, used)
		}
		return slices.ContainsFunc(all[i], func(id ipsec.TransformID) bool {
			return id == ipsec.KENone && fits(i+1, used) || id != ipsec.KENone && !slices.Contains(used, id) && fits(i+1, append(used[:len(used):len(used)], id))
		})
	}
	if fits(0, nil) {
		return "", ""
	}
	for i := len(all) - 1; i >= 0; i-- {
		if len(all[i]) > 0 {
			return addKEKey(i), fmt.Sprintf("%s (%s) cannot be met: every additional key exchange of one negotiation needs a method of its own, or 0 beside it",
				addKEKey(i), strings.Join(strings.Fields(groups{}.format(&all[i])), " "))
		}
	}
	return "", ""
}
