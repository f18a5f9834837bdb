// Package esp seals and opens ESP packets (RFC 4303) in place and without
// allocation, keeps replay windows, and decides when a ceiling or a fence must
// be raised or withdrawn.
//
// Outbound and Inbound are one direction of one SA each. They know neither
// sockets nor clocks nor owners; whoever holds them serialises their use.
//
// Invariants: an AEAD's explicit IV comes from the ipsec.IVCounter of its key and
// from nowhere else; without ESN no sequence number beyond 2^32-1 is sealed; the
// replay window is read before a packet is opened and written only after its ICV
// has proved genuine; a wrong ICV, wrong padding and a wrong length are one error.
//
// A walk: Outbound.Seal writes SPI, sequence number and IV before the payload and
// padding, trailer and ICV after it. Inbound.Open infers the high half of the
// sequence number, asks the Window, checks the ICV, decrypts, verifies the padding
// and marks the Window. What may then be delivered says the Lease.
package esp
