package sim

import (
	"fmt"
	"slices"
	"strings"
)

// strayed says that the pair at the other end was split when an SA was installed here: its
// owner may never have heard of it.
func (r *realm) strayed(s *sa) bool {
	for _, t := range r.tunnels() {
		if t.far != nil && (r == t.near && t.far.rule.strays[s.SPIIn] || r == t.far && t.near.rule.strays[s.SPIIn]) {
			return true
		}
	}
	return false
}

// differ says how the two ends of a tunnel do not hold the same one IKE SA. Where both
// ends of it were split at a time, each side of the one may have begun anew with a side of
// the other, and nothing is wrong with either IKE SA: then they hold the same ones.
func (r *realm) differ(t *tunnel, o, c *host) string {
	held := func(h *host) (sas []string) {
		for _, g := range h.gateways(t) {
			for _, k := range g.IKE {
				sas = append(sas, k.SPIs.String()+" "+k.State)
			}
		}
		slices.Sort(sas)
		return sas
	}
	theirs := held(c)
	if len(theirs) == 1 && strings.HasSuffix(theirs[0], " established") {
		return ""
	}
	if t.twice && len(theirs) > 1 && slices.Equal(theirs, held(o)) && !slices.ContainsFunc(theirs, func(s string) bool { return !strings.HasSuffix(s, " established") }) {
		r.w.Result.States["two IKE SAs after both ends were split"]++
		return ""
	}
	return fmt.Sprintf("%s has not one IKE SA but %q", c.name, theirs)
}
