// Package gossip tells members of each other what may be late: who is there, builds and
// versions, load, and digests that show where copies differ. It is hashicorp/memberlist
// with the cluster's keys, and takes seconds to notice a death: nothing here ever leads
// to a takeover.
//
// Invariants:
//
//  1. Only members of the cluster are heard: packets are sealed with AES-256-GCM under
//     a key that follows from the cluster's, streams are TLS 1.3 with both certificates.
//     A stranger is refused with one log line, not one for each packet.
//  2. A record is at most MaxRecord bytes. memberlist would keep a larger one for ever
//     and never send it, without a word: SetMeta refuses it.
//  3. Of two records of a node the one with the higher version counts. A node that
//     hears a record of itself that it did not write goes above it.
//
// A walk: SetMeta makes a record; memberlist asks for broadcasts every 200 ms and puts
// it into packets to three members; each that did not know it passes it on. A member
// that joins, and each pair of members now and then, exchange all records over a stream.
package gossip
