// Package keymat derives and applies the keys of IKEv2: prf and prf+, SKEYSEED
// and its seven keys (RFC 7296 §2.14), Child SA keying material (§2.17), IKE
// rekeying (§2.18), AUTH with a shared key (§2.15), Diffie-Hellman groups with the
// checks of RFC 6989, and the SK payload's protection (§3.14, RFC 5282).
//
// Its functions, with their contracts (all pure; r is the injected randomness):
//
//	PRF(id ipsec.TransformID, key []byte, data ...[]byte) []byte
//	PRFPlus(id, key, seed []byte, n int) []byte
//	PRFKeyLen(id) int                                        // preferred key length, bytes
//
//	type KeyExchange interface { Group() ipsec.TransformID; Public() []byte;
//	    Shared(peer []byte) (ipsec.Key, error)                // errors wrap ErrKEData
//	    Private() ipsec.Key }                                 // for records: RestoreKeyExchange rebuilds it
//	NewKeyExchange(group, r io.Reader) (KeyExchange, error)   // ErrUnsupportedGroup
//	RestoreKeyExchange(group, private ipsec.Key) (KeyExchange, error)
//	CheckPublic(group, data []byte) error                     // length and cheap checks before any work
//
//	type IKEKeys struct { D, Ai, Ar, Ei, Er, Pi, Pr ipsec.Key }   // SK_*; Ei/Er with their salts
//	DeriveIKE(s ipsec.Suite, ni, nr []byte, shared ipsec.Key, spis ipsec.IKESPIs) (IKEKeys, error)
//	DeriveIKERekey(old ipsec.TransformID /*PRF*/, oldSKd ipsec.Key, s ipsec.Suite, ni, nr []byte, shared ipsec.Key, spis) (IKEKeys, error)
//	type ChildKeys struct { EncrI, SaltI, IntegI, EncrR, SaltR, IntegR ipsec.Key }  // I: initiator of the exchange → responder
//	DeriveChild(prf ipsec.TransformID, skd ipsec.Key, s ipsec.Suite, ni, nr []byte, shared ipsec.Key) (ChildKeys, error)
//	AuthPSK(prf, psk []byte, message, nonce, skp, idBody []byte) []byte // RFC 7296 §2.15: signed octets built inside
//
//	NewSealer(s ipsec.Suite, encr, integ ipsec.Key, iv *ipsec.IVCounter, r io.Reader) (message.Sealer, error) // iv for AEADs, r for CBC
//	NewOpener(s ipsec.Suite, encr, integ ipsec.Key) (message.Opener, error)
package keymat
