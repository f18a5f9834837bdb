package eap

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"layeh.com/radius/rfc2759"
	"layeh.com/radius/rfc3079"
)

// EAP-MSCHAPv2 (draft-kamath-pppext-eap-mschapv2): the packets of RFC 2759 within type 26.

// Codes of its packets.
const (
	MSChallenge = 1
	MSResponse  = 2
	MSSuccess   = 3
	MSFailure   = 4
)

// ChallengeLen is the length of either side's challenge, in bytes.
const ChallengeLen = 16

// MSAuthFailed is ERROR_AUTHENTICATION_FAILURE (RFC 2759 §6).
const MSAuthFailed = 691

const msHeaderLen = 4

var errMS = errors.New("eap: malformed MSCHAPv2 packet")

func msPacket(op, id uint8, body []byte) []byte {
	b := append([]byte{op, id, 0, 0}, body...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// MSCode is the code of a type 26 packet's data; 0: it has none.
func MSCode(data []byte) uint8 {
	if len(data) == 0 {
		return 0
	}
	return data[0]
}

// msBody is what follows the header of a packet; fixed is its shortest length.
func msBody(data []byte, op uint8, fixed int) (id uint8, body []byte, err error) {
	if len(data) < msHeaderLen+fixed || data[0] != op || int(binary.BigEndian.Uint16(data[2:])) != len(data) {
		return 0, nil, errMS
	}
	return data[1], data[msHeaderLen:], nil
}

// EncodeMSChallenge is the data of the server's Challenge; name is the server's.
func EncodeMSChallenge(id uint8, challenge []byte, name string) []byte {
	return msPacket(MSChallenge, id, append(append([]byte{ChallengeLen}, challenge...), name...))
}

// ParseMSChallenge reads the data of a Challenge.
func ParseMSChallenge(data []byte) (id uint8, challenge []byte, name string, err error) {
	id, b, err := msBody(data, MSChallenge, 1+ChallengeLen)
	if err != nil || b[0] != ChallengeLen {
		return 0, nil, "", errMS
	}
	return id, b[1 : 1+ChallengeLen], string(b[1+ChallengeLen:]), nil
}

// MSAnswer is a peer's Response.
type MSAnswer struct {
	ID        uint8
	Challenge []byte // the peer's, 16 bytes
	NT        []byte // NT-Response, 24 bytes
	Name      string // who it says that it is
}

const (
	ntResponseLen = 24
	msValueLen    = ChallengeLen + 8 + ntResponseLen + 1
)

// ParseMSAnswer reads the data of a Response.
func ParseMSAnswer(data []byte) (MSAnswer, error) {
	id, b, err := msBody(data, MSResponse, 1+msValueLen)
	if err != nil || b[0] != msValueLen || len(b) > 1+msValueLen+MaxIdentity {
		return MSAnswer{}, errMS
	}
	return MSAnswer{ID: id, Challenge: b[1 : 1+ChallengeLen], NT: b[1+ChallengeLen+8 : msValueLen], Name: string(b[1+msValueLen:])}, nil
}

// Encode is the data of the Response.
func (a MSAnswer) Encode() []byte {
	b := append([]byte{msValueLen}, a.Challenge...)
	b = append(append(b, make([]byte, 8)...), a.NT...)
	return msPacket(MSResponse, a.ID, append(append(b, 0), a.Name...))
}

// bare is a name without a Windows domain: only that is hashed (RFC 2759 §4).
func bare(name string) []byte { return []byte(name[strings.LastIndexByte(name, '\\')+1:]) }

// User is the name without a Windows domain.
func (a MSAnswer) User() string { return string(bare(a.Name)) }

// AnswerMS is a peer's answer to a challenge; own is its own challenge. password is of at most 256
// characters, in UTF-8.
func AnswerMS(id uint8, challenge, own []byte, name string, password []byte) (MSAnswer, error) {
	nt, err := rfc2759.GenerateNTResponse(challenge, own, bare(name), password)
	return MSAnswer{ID: id, Challenge: own, NT: nt, Name: name}, err
}

// Right says whether the answer was made with a password.
func (a MSAnswer) Right(challenge, password []byte) bool {
	want, err := rfc2759.GenerateNTResponse(challenge, a.Challenge, bare(a.Name), password)
	return err == nil && subtle.ConstantTimeCompare(want, a.NT) == 1
}

// Authenticator is the authenticator response, by which the server proves that it knows the password
// (RFC 2759 §8.7): "S=" and 40 hexadecimal digits.
func (a MSAnswer) Authenticator(challenge, password []byte) (string, error) {
	return rfc2759.GenerateAuthenticatorResponse(challenge, a.Challenge, a.NT, bare(a.Name), password)
}

// Key is the MSK, 64 bytes: what the server receives with, what it sends with (RFC 3079 §3.4), zeros.
func (a MSAnswer) Key(password []byte) ([]byte, error) {
	recv, err := rfc3079.MakeKey(a.NT, password, false)
	if err != nil {
		return nil, err
	}
	send, err := rfc3079.MakeKey(a.NT, password, true)
	if err != nil {
		return nil, err
	}
	return append(append(recv, send...), make([]byte, 32)...), nil
}

// EncodeMSSuccess is the data of the server's Success.
func EncodeMSSuccess(id uint8, authenticator string) []byte {
	return msPacket(MSSuccess, id, []byte(authenticator+" M=OK"))
}

// ProvesMS says whether the data of a Success has the authenticator response that the peer expects.
func ProvesMS(data []byte, want string) bool {
	_, b, err := msBody(data, MSSuccess, len(want))
	if err != nil {
		return false
	}
	got := b[:len(want)]
	if rest := b[len(want):]; len(rest) > 0 && rest[0] != ' ' {
		return false
	}
	return subtle.ConstantTimeCompare(bytes.ToUpper(got), []byte(want)) == 1
}

// EncodeMSFailure is the data of the server's Failure: an error, no retry, a challenge that RFC 2759 §6
// asks for and nobody uses.
func EncodeMSFailure(id uint8, code int, challenge []byte) []byte {
	return msPacket(MSFailure, id, fmt.Appendf(nil, "E=%d R=0 C=%s V=3 M=failed", code, strings.ToUpper(hex.EncodeToString(challenge))))
}

// ParseMSFailure is the text of a Failure, fit for a log line.
func ParseMSFailure(data []byte) string {
	_, b, err := msBody(data, MSFailure, 0)
	if err != nil {
		return "malformed"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, string(b[:min(len(b), 200)]))
}
