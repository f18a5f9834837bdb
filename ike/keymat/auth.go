package keymat

import "tandem/internal/ipsec"

// keyPad is the constant of RFC 7296 §2.15.
const keyPad = "Key Pad for IKEv2"

// SignedOctets returns what an AUTH payload covers (RFC 7296 §2.15): the
// sender's IKE_SA_INIT message as sent (without non-ESP marker), the other
// side's nonce, and prf(SK_p, ID body) with the sender's SK_pi or SK_pr and the
// body of its ID payload.
func SignedOctets(prf ipsec.TransformID, message, nonce, skp, idBody []byte) []byte {
	return concat(message, nonce, PRF(prf, skp, idBody))
}

// AuthPSK returns the AUTH data for a pre-shared key (RFC 7296 §2.15); the other
// arguments are those of SignedOctets. Compare it in constant time.
func AuthPSK(prf ipsec.TransformID, psk, message, nonce, skp, idBody []byte) []byte {
	padded := PRF(prf, psk, []byte(keyPad))
	defer clear(padded)
	return PRF(prf, padded, message, nonce, PRF(prf, skp, idBody))
}
