package statesync

import (
	"time"

	"tandem/internal/ipsec"
)

// tombs are the IKE SAs whose deletion the peer authenticated, oldest first, each once.
type tombs struct {
	list  fifo[tombstone]
	known map[ipsec.IKESPIs]struct{}
}

type tombstone struct {
	spis ipsec.IKESPIs
	at   time.Time
}

// add says whether it is new.
func (t *tombs) add(s ipsec.IKESPIs, now time.Time) bool {
	if _, ok := t.known[s]; ok {
		return false
	}
	if t.list.len() == MaxTombstones {
		t.pop()
	}
	if t.known == nil {
		t.known = map[ipsec.IKESPIs]struct{}{}
	}
	t.known[s] = struct{}{}
	t.list.push(tombstone{s, now})
	return true
}

func (t *tombs) pop() { delete(t.known, t.list.pop().spis) }

func (t *tombs) expire(now time.Time) {
	for t.list.len() > 0 && now.Sub(t.list.first().at) >= TombstoneAge {
		t.pop()
	}
}

// Tombstones are the IKE SAs whose deletion the peer authenticated, oldest first.
func (j *Journal) Tombstones() []ipsec.IKESPIs {
	out := make([]ipsec.IKESPIs, 0, j.tombs.list.len())
	for _, t := range j.tombs.list.items[j.tombs.list.head:] {
		out = append(out, t.spis)
	}
	return out
}

func (j *Journal) bury(s ipsec.IKESPIs) bool { return j.tombs.add(s, j.now) }

// Bury takes tombstones that came from elsewhere: with an owner's records, or at healing.
// An owner tells those that are new to whoever is copied to or counts; nothing waits for
// that. In a farm whoever owns later needs them: a member that comes back from the other
// side of a split may still have what the peer ended here.
func (j *Journal) Bury(now time.Time, spis []ipsec.IKESPIs) {
	j.tick(now)
	var fresh []Entry
	for _, s := range spis {
		if j.bury(s) {
			fresh = append(fresh, Entry{SPIs: s, PeerDeleted: true})
		}
	}
	if j.owner {
		chunk(fresh, frameSize, func(c []Entry) { j.broadcast(recordItem(c, 0)) })
	}
}
