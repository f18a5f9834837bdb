package ipsec

import "net/netip"

// ChildSA describes a pair of ESP SAs as a data plane needs it. SPIIn is chosen
// by this cluster and is unique in it: it names the pair.
type ChildSA struct {
	Tunnel string // tunnel instance: the phase 1 name, or name_index for dialup
	Phase1 string // configured phase 1 name; also the name of the tunnel interface
	Phase2 string // configured phase 2 name

	SPIIn, SPIOut ESPSPI
	Suite         Suite
	KeyID         KeyID // of the outbound AEAD key
	EncrIn        Key   // without salt
	SaltIn        Key
	IntegIn       Key
	EncrOut       Key
	SaltOut       Key
	IntegOut      Key

	Local, Remote netip.AddrPort // outer addresses; ports are those of IKE, used by UDP encapsulation
	UDPEncap      bool           // ESP in UDP (RFC 3948), or in TCP
	TCP           bool           // in TCP (RFC 9329); port 0 of Local: the connection is ours to open
	ReplayWindow  uint32         // packets, a multiple of 64; 0 switches replay detection off
	TSLocal       []TrafficSelector
	TSRemote      []TrafficSelector
}

// Window is the exact state of a Child SA's two directions.
type Window struct {
	SPIIn      ESPSPI
	OutSeq     uint64   // last sequence number sent
	InSeq      uint64   // highest sequence number accepted
	InAccepted []uint64 // bit i of word j: InSeq-(64*j+i) was accepted
}
