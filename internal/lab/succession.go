package lab

import "time"

// Succession is what the wire says about one change of owner.
type Succession struct {
	Seen     bool          // the survivor sent ESP at all
	After    time.Duration // from the fault to its first ESP packet
	Jump     uint32        // first sequence number after, less the highest before; the largest of all SAs
	First    uint32        // that first sequence number
	JumpSeen bool          // some SA was used on both sides of the takeover
}

// Succession looks at what `to` sent from the fault on and before until. Call
// it after Report.
func (c *Checker) Succession(fault, until time.Time, to string) Succession {
	type edge struct {
		first uint32
		found bool
	}
	firsts := map[saKey]edge{}
	highest := map[saKey]uint32{} // before that SA's first packet of the survivor
	var s Succession
	for _, p := range c.sent {
		if p.port == to && !p.at.Before(fault) && p.at.Before(until) {
			if !s.Seen {
				s.Seen, s.After = true, p.at.Sub(fault)
			}
			if !firsts[p.sa].found {
				firsts[p.sa] = edge{p.seq, true}
			}
		}
		if !firsts[p.sa].found && p.at.Before(until) {
			if h, ok := highest[p.sa]; !ok || p.seq > h {
				highest[p.sa] = p.seq
			}
		}
	}
	for sa, e := range firsts {
		h, ok := highest[sa]
		if !ok || e.first < h {
			continue // a new SA, or a regression, which is counted elsewhere
		}
		if jump := e.first - h; !s.JumpSeen || jump > s.Jump || jump == s.Jump && e.first > s.First {
			s.JumpSeen, s.Jump, s.First = true, jump, e.first
		}
	}
	return s
}

// SentBy counts what a gateway sent as an owner within [from, to): ESP, and whatever
// it said in the name of a shared address (AddSpoken).
func (c *Checker) SentBy(port string, from, to time.Time) int {
	n := 0
	for _, p := range c.sent {
		if p.port == port && !p.at.Before(from) && p.at.Before(to) {
			n++
		}
	}
	for _, p := range c.spoken {
		if p.port == port && !p.at.Before(from) && p.at.Before(to) {
			n++
		}
	}
	return n
}
