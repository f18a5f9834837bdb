package ike

import (
	"net/netip"
	"time"

	"tandem/internal/ipsec"
)

// GatewayStatus is one tunnel (phase 1, or instance of a dialup phase 1) as
// diagnose shows it. Configured static tunnels appear even when down.
type GatewayStatus struct {
	Name, Parent                   string // Parent is the dialup phase 1, else empty
	Index                          int    // dialup index
	Interface                      string
	Local, Remote                  netip.AddrPort
	Created                        time.Time
	PeerAddr                       netip.Addr       // of the peer's tunnel interface, as it told
	PeerID                         string           // as the peer authenticated itself
	Certificate                    *PeerCertificate // nil: a pre-shared key
	NAT                            bool
	TCP                            bool // the IKE SA is in a TCP connection (RFC 9329)
	IKE                            []IKEStatus
	IKECreated, IKEEstablished     int // since Created
	ChildCreated, ChildEstablished int
	IKETime, ChildTime             [3]time.Duration // min, average, max time to establish
	Children                       []ChildStatus
	Failure                        string // reason of the last failure
	Assigned                       Assigned
}

// Assigned is what a configuration payload assigned: to the peer, or to us (Client).
type Assigned struct {
	Client  bool
	Addrs   []netip.Addr
	DNS     []netip.Addr   // of a client
	Subnets []netip.Prefix // of a client
	Domains []string       // of a client
}

// PeerCertificate is the certificate by which a peer authenticated itself.
type PeerCertificate struct {
	Subject     string
	Fingerprint [32]byte // SHA-256
	NotAfter    time.Time
	Signature   string // e.g. "RSASSA-PSS with SHA-256"
	Method      string // of AUTH
}

// IKEStatus is one IKE SA.
type IKEStatus struct {
	ID               uint64 // running number in this process
	SPIs             ipsec.IKESPIs
	Initiator        bool
	State            string // connecting, established, rekeyed, deleting
	Established      time.Time
	Took             time.Duration
	Suite            ipsec.Suite   // with the key exchanges
	Lifetime, Rekey  time.Duration // hard lifetime; time left until the soft one
	SendID, RecvID   uint32        // next request ID we send, next we expect
	DPDSent, DPDRecv uint32
	PPK              bool // a post-quantum pre-shared key is in its keys
	Keys             KeyLog
}

// ChildStatus is one Child SA.
type ChildStatus struct {
	Phase2                string
	SA                    ipsec.ChildSA
	Outbound              bool
	Installed             time.Time
	Lifetime, Left, Rekey time.Duration // hard lifetime, left of it, left until the soft one
}
