// Package ipsec holds the vocabulary that IKE, ESP and the cluster share: SPIs,
// traffic selectors, transforms, proposals, Child SA descriptors, key bytes that
// never print, and the ranges from which AEAD nonces are taken.
//
// It is pure: no clock, no goroutine, no IO, no randomness of its own.
package ipsec
