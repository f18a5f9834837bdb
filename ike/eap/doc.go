// Package eap is the Extensible Authentication Protocol as IKEv2 carries it (RFC 3748, RFC 7296
// §2.16): packets, and the methods MSCHAPv2 and TLS for both sides. It holds no state of a
// conversation but that of TLS, which no record can carry: package ike has the rest.
package eap
