// Package pki reads certificates, keys and revocation lists, and says which
// certificates are trusted. It is pure: bytes and the time are handed in. Only
// issue.go, which makes certificates, draws random numbers and writes files.
//
// Certificates come from peers that nobody has authenticated yet, so everything is
// bounded before it is looked at, and no signature is checked on a certificate that
// does not lead to a CA by its names.
package pki
