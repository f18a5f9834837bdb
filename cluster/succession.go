package cluster

import (
	"fmt"
	"time"
)

// Handed is why an owner hands over to a synchronised standby.
type Handed uint8

const (
	HandedNot Handed = iota
	HandedShutdown
	HandedFailover
	HandedMonitors
	HandedPingservers
	HandedPriority
	HandedAge
	HandedSerial
	handedMax = HandedSerial
)

func (h Handed) String() string {
	switch h {
	case HandedShutdown:
		return "shutdown"
	case HandedFailover:
		return "execute ha failover set"
	case HandedMonitors:
		return "monitored interfaces failed"
	case HandedPingservers:
		return "pingservers failed"
	case HandedPriority, HandedAge, HandedSerial:
		return "override: the other member goes first by " + h.key()
	}
	return "no handover"
}

// key is what decided, as rank names it.
func (h Handed) key() string {
	switch h {
	case HandedMonitors:
		return byMonitors
	case HandedPingservers:
		return byPingservers
	case HandedPriority:
		return byPriority
	case HandedAge:
		return byAge
	case HandedSerial:
		return bySerial
	case HandedFailover:
		return byFailover
	}
	return h.String()
}

// evidence words it: the owner that handed over, and its successor.
func (h Handed) evidence(owner, successor Election) string {
	return compared(h.key(), successor, owner)
}

// succession says why another node, which is synchronised since then, should own instead
// of this one, and from when on; HandedNot if it should not. Nothing moves before hold.
// Unlike an election it leaves alone what works: age, priority and serial number move the
// ownership only with override.
func (c *candidate) succession(mine, its Election, name string, hold, since time.Time) (why Handed, text string, from time.Time) {
	switch {
	case mine.Failover && !its.Failover:
		return HandedFailover, "execute ha failover set", from
	case its.Failover && !mine.Failover:
		return HandedNot, "", from
	case its.MonitorsUp > mine.MonitorsUp:
		return HandedMonitors, "monitored interfaces failed", hold
	case its.MonitorsUp == mine.MonitorsUp && its.Penalty < mine.Penalty:
		return HandedPingservers, "pingservers failed", later(hold, c.health.flipUntil)
	case !mine.Override && !its.Override:
		return HandedNot, "", from
	}
	r, key := rank(mine, its, true, c.ha.UptimeDiffMargin)
	if r >= 0 {
		return HandedNot, "", from
	}
	for why = HandedPriority; why < handedMax && why.key() != key; why++ {
	}
	wait := max(mine.OverrideWait, its.OverrideWait)
	return why, fmt.Sprintf("override: %s goes first by %s", name, key), later(hold, since.Add(wait))
}

// succession is the same with the other node.
func (p *Pair) succession(mine, its Election) (why Handed, text string, from time.Time) {
	return p.candidate.succession(mine, its, p.name(), p.hold, p.peer.synced)
}

// compared words what decided between two nodes, for people: the one that goes first,
// then the other one.
func compared(key string, first, second Election) string {
	switch key {
	case byMonitors:
		return fmt.Sprintf("%s: %d work against %d", key, first.MonitorsUp, second.MonitorsUp)
	case byPingservers:
		return fmt.Sprintf("%s: penalty %d against %d", key, first.Penalty, second.Penalty)
	case byPriority:
		return fmt.Sprintf("%s: %d against %d", key, first.Priority, second.Priority)
	case byAge:
		return fmt.Sprintf("%s: %v against %v", key, first.Age.Round(time.Second), second.Age.Round(time.Second))
	case bySerial:
		return fmt.Sprintf("%s: %s against %s", key, first.Serial, second.Serial)
	}
	return key
}
