// Package sim runs whole clusters in virtual time from one seed: the production
// internal/node on every gateway and client, the production cluster.Guard as their
// guardians, the production esp.Sender and esp.Receiver in the data planes; models
// only of what is outside: hosts, disks, clocks, heartbeat links, replication
// streams, the outer network, and people who attack it.
//
// A seed makes a Schedule (configuration, traffic, faults); a Schedule makes one
// run, always the same. Checkers watch the run from outside: they know what every
// process sealed, delivered, said on the wire and held, and nothing of why.
//
// A world is one pair with its clients, a pair with virtual clusters, or two pairs that
// face each other; a farm is a world of its own. What of a pair moves as one is a realm.
//
// A walk: Generate(seed) → Run → a Violation → Shrink drops actions of the schedule
// as long as the same rule is violated → the shrunk run is repeated with a trace.
package sim
