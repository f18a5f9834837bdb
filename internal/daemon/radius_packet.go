package daemon

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"errors"
	"net"

	"layeh.com/radius"
	"layeh.com/radius/rfc2865"
	"layeh.com/radius/rfc2869"
	"layeh.com/radius/vendors/microsoft"

	"tandem/ike"
	"tandem/internal/ipsec"
)

// radiusMTU is told to servers, in bytes: how large their EAP packets may be, so that one fits into an IKE
// message.
const radiusMTU = 1024

// mskLen is the length of an MSK, in bytes (RFC 5247 §1.2).
const mskLen = 64

// radiusRequest is an Access-Request with an EAP packet (RFC 3579 §3). Message-Authenticator comes first.
func radiusRequest(q ike.AskRADIUS, nas string, secret []byte) ([]byte, error) {
	p := &radius.Packet{Code: radius.CodeAccessRequest, Secret: secret}
	var chance [17]byte
	if _, err := rand.Read(chance[:]); err != nil {
		return nil, err
	}
	p.Identifier = chance[0]
	copy(p.Authenticator[:], chance[1:])
	err := errors.Join(
		rfc2869.MessageAuthenticator_Set(p, make([]byte, md5.Size)),
		rfc2865.UserName_SetString(p, q.User),
		rfc2865.NASIdentifier_SetString(p, nas),
		rfc2865.NASPortType_Set(p, rfc2865.NASPortType_Value_Virtual),
		rfc2865.ServiceType_Set(p, rfc2865.ServiceType_Value_FramedUser),
		rfc2865.FramedMTU_Set(p, radiusMTU),
		rfc2865.CallingStationID_SetString(p, q.Client.String()),
		rfc2865.CalledStationID_SetString(p, q.Gateway.String()),
		rfc2869.EAPMessage_Set(p, q.EAP))
	if q.Server.NASIP.IsValid() {
		err = errors.Join(err, rfc2865.NASIPAddress_Set(p, net.IP(q.Server.NASIP.AsSlice())))
	}
	if len(q.State) > 0 {
		err = errors.Join(err, rfc2865.State_Set(p, q.State))
	}
	if err != nil {
		return nil, err
	}
	b, err := p.Encode()
	if err != nil {
		return nil, err
	}
	h := hmac.New(md5.New, secret)
	h.Write(b)
	copy(b[22:22+md5.Size], h.Sum(nil)) // behind the header, type and length
	return b, nil
}

var (
	errNotAuthentic = errors.New("an answer that does not prove the secret")
	errRADIUSCode   = errors.New("an answer of another kind")
)

// radiusResponse reads the answer to a request. Both of its proofs must be right: Message-Authenticator
// always has to be there (RFC 3579 §3.2).
func radiusResponse(b, request, secret []byte) (ike.RADIUSAnswer, error) {
	p, err := radius.Parse(b, secret)
	if err != nil {
		return ike.RADIUSAnswer{}, err
	}
	b = b[:int(b[2])<<8|int(b[3])]
	if p.Identifier != request[1] || !radius.IsAuthenticResponse(b, request, secret) || !authenticates(b, request[4:20], secret) {
		return ike.RADIUSAnswer{}, errNotAuthentic
	}
	q, err := radius.Parse(request, secret)
	if err != nil {
		return ike.RADIUSAnswer{}, err
	}
	a := ike.RADIUSAnswer{State: rfc2865.State_Get(p), EAP: rfc2869.EAPMessage_Get(p)}
	switch p.Code {
	case radius.CodeAccessAccept:
		a.Code, a.User = ike.RADIUSAccept, rfc2865.UserName_GetString(p)
		recv, send := microsoft.MSMPPERecvKey_Get(p, q), microsoft.MSMPPESendKey_Get(p, q)
		if len(recv) >= mskLen/4 && len(send) >= mskLen/4 && len(recv)+len(send) <= mskLen {
			msk := append(append(make([]byte, 0, mskLen), recv...), send...)
			a.Key = ipsec.NewKey(msk[:mskLen])
			clear(msk[:mskLen])
		}
	case radius.CodeAccessChallenge:
		a.Code = ike.RADIUSChallenge
	case radius.CodeAccessReject:
		a.Code = ike.RADIUSReject
	default:
		return ike.RADIUSAnswer{}, errRADIUSCode
	}
	return a, nil
}

// authenticates says whether an answer has a Message-Authenticator, and a right one: it is made with the
// request's authenticator, and with zeros in its own place.
func authenticates(b, authenticator, secret []byte) bool {
	if len(b) < 20 {
		return false
	}
	c := bytes.Clone(b)
	copy(c[4:20], authenticator)
	for at := 20; at+2 <= len(c); {
		kind, size := c[at], int(c[at+1])
		if size < 2 || at+size > len(c) {
			return false
		}
		if kind == byte(rfc2869.MessageAuthenticator_Type) {
			if size != 2+md5.Size {
				return false
			}
			got := bytes.Clone(c[at+2 : at+size])
			clear(c[at+2 : at+size])
			h := hmac.New(md5.New, secret)
			h.Write(c)
			return hmac.Equal(got, h.Sum(nil))
		}
		at += size
	}
	return false
}
