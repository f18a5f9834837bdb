package ike

import "time"

// Rekey rekeys the Child SAs of a tunnel now, or its IKE SAs if ike; these are authenticated
// anew where phase 1 says so. name is as in Clear. It returns how many. An SA whose rekey is under way is not counted twice.
func (e *Engine) Rekey(now time.Time, name string, ike bool) int {
	defer e.begin(now)()
	if !e.active {
		return 0
	}
	n := 0
	for _, sa := range e.sorted() {
		if name != "" && sa.name() != name && sa.phase1 != name || !sa.lives() {
			continue
		}
		if ike {
			sa.rekeyAt = time.Time{}
			if sa.reauthenticates() {
				sa.reauthNow = true
			} else {
				sa.rekeyNow = true
			}
			n++
		}
		for _, c := range sa.children {
			if !ike && c.state == childInstalled && c.outbound {
				c.rekeyNow, c.rekeyAt = true, time.Time{}
				n++
			}
		}
		e.proceed(sa)
		e.arm(sa)
	}
	return n
}
