package keymat

import (
	"encoding/binary"

	"tandem/internal/ipsec"
)

// keyPad is the constant of RFC 7296 §2.15.
const keyPad = "Key Pad for IKEv2"

// SignedOctets returns what an AUTH payload covers (RFC 7296 §2.15): the
// sender's IKE_SA_INIT message as sent (without non-ESP marker), the other
// side's nonce, and prf(SK_p, ID body) with the sender's SK_pi or SK_pr and the
// body of its ID payload; then intAuth, of IntAuth, where IKE_INTERMEDIATE took
// place (RFC 9242 §3.3.2).
func SignedOctets(prf ipsec.TransformID, message, nonce, skp, idBody []byte, intAuth ...byte) []byte {
	return concat(message, nonce, PRF(prf, skp, idBody), intAuth)
}

// AuthPSK returns the AUTH data for a pre-shared key (RFC 7296 §2.15); the other
// arguments are those of SignedOctets. Compare it in constant time.
func AuthPSK(prf ipsec.TransformID, psk, message, nonce, skp, idBody []byte, intAuth ...byte) []byte {
	padded := PRF(prf, psk, []byte(keyPad))
	defer clear(padded)
	return PRF(prf, padded, message, nonce, PRF(prf, skp, idBody), intAuth)
}

// IntAuthNext goes on with IntAuth_i or IntAuth_r (RFC 9242 §3.3.2): so is what it was, empty
// before the first IKE_INTERMEDIATE; octets are what it covers of that side's next message;
// skp is its SK_pi or SK_pr that is in force in this exchange.
func IntAuthNext(prf ipsec.TransformID, skp, so, octets []byte) []byte {
	return PRF(prf, skp, so, octets)
}

// IntAuth is what AUTH covers of all IKE_INTERMEDIATE exchanges: IntAuth_iN | IntAuth_rN |
// IKE_AUTH_MID, the message ID of the first IKE_AUTH exchange.
func IntAuth(i, r []byte, authID uint32) []byte {
	return binary.BigEndian.AppendUint32(concat(i, r), authID)
}
