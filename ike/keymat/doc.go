// Package keymat derives and applies the keys of IKEv2: prf and prf+, SKEYSEED
// and its seven keys (RFC 7296 §2.14), Child SA keying material (§2.17), IKE
// rekeying (§2.18), AUTH with a shared key (§2.15), Diffie-Hellman groups with the
// checks of RFC 6989, and the SK payload's protection (§3.14, RFC 5282).
//
// Everything is pure; randomness comes from readers that the caller injects.
package keymat
