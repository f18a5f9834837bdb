// Package esp seals and opens ESP packets (RFC 4303) in place and without
// allocation, keeps replay windows, decides when a ceiling or a fence must be
// raised or withdrawn, and how the numbers of an SA go on with another owner.
//
// Outbound and Inbound are the cryptography of one direction of one SA each;
// Sender and Receiver are its numbers, across owners. None knows sockets or
// clocks; whoever holds them serialises their use.
//
// Invariants: an AEAD's explicit IV comes from the ipsec.IVCounter of its key and
// from nowhere else; without ESN no sequence number beyond 2^32-1 is sealed; the
// replay window is read before a packet is opened and written only after its ICV
// has proved genuine; a wrong ICV, wrong padding and a wrong length are one error.
//
// A walk: Sender.Offer gives the next number or makes the packet wait;
// Outbound.Seal writes SPI, sequence number and IV before the payload and
// padding, trailer and ICV after it. Inbound.Open infers the high half of the
// sequence number, asks the Window, checks the ICV, decrypts, verifies the padding
// and marks the Window. What may then be delivered says Receiver.Offer. Both ask a
// Lease, which knows the bound in force and when to ask for another.
package esp
