// Package config is the FortiOS configuration language: parse → model with
// defaults → validate, all faults at once with file and line. It is pure; it
// reads bytes and never the machine.
package config

import (
	"net/netip"
	"time"

	"tandem/internal/ipsec"
)

// Config is a whole validated configuration. Slices keep the order of the file.
type Config struct {
	Hostname   string // system global hostname
	HA         HA
	Standalone StandaloneCluster
	Tandem     Tandem
	Interfaces []Interface
	Phase1     []Phase1
	Phase2     []Phase2
	Addresses  []Address
	AddrGroups []AddrGroup
	Policies   []Policy
	HasPolicy  bool // a `config firewall policy` block exists, even an empty one
	Routes     []Route
}

// HA is `config system ha`.
type HA struct {
	Mode                  string // standalone, a-p
	GroupID               int    // 0–1023
	GroupName             string
	Password              ipsec.Key
	HBDev                 []HBDev
	HBInterval            time.Duration // hb-interval × hb-interval-in-milliseconds; 10 ms–2 s, default 200 ms
	HBLostThreshold       int           // 1–60, default 20
	Priority              int           // 0–255, default 128
	Override              bool
	OverrideWaitTime      time.Duration // 0–3600 s
	UptimeDiffMargin      time.Duration // default 300 s
	Monitor               []string
	ARPs                  int           // 1–60, default 5
	ARPsInterval          time.Duration // 1–20 s, default 8
	SessionPickup         bool
	VClusterStatus        bool
	VClusters             []VCluster
	EncryptionEnabled     bool
	AuthenticationEnabled bool
}

// HBDev is one heartbeat interface with its priority (0–512).
type HBDev struct {
	Name     string
	Priority int
}

// VCluster is one virtual cluster.
type VCluster struct {
	ID       int // 1–30
	Priority int
	Override bool
	Monitor  []string
	VDOM     []string
	Phase1   []string
}

// StandaloneCluster is `config system standalone-cluster` (FGSP).
type StandaloneCluster struct {
	GroupID, MemberID        int
	Encryption               bool
	PSK                      ipsec.Key
	AsymmetricTrafficControl string
	MonitorInterface         []string
	Peers                    []ClusterPeer
}

// ClusterPeer is one `config cluster-peer` entry.
type ClusterPeer struct {
	ID              int
	PeerIP          netip.Addr
	HBInterval      time.Duration
	HBLostThreshold int
	IPsecTunnelSync bool
}

// Tandem is `config system tandem`: what FortiOS has no word for.
type Tandem struct {
	DataPlane   string // auto, userspace, kernel
	QuorumLoss  string // continue, stop
	ClusterDir  string // certificates and keys made by `tandem cluster init`
	StateDir    string // the note of an owner that went on alone, node identity
	AdminSocket string // unix socket of the admin API
	MetricsAddr string // Prometheus and health checks; empty: none
	LogLevel    string // debug, info, warning, error
	KeyLog      string // debug only: file that receives keys for tshark; empty: never
}

// Interface is one `config system interface` entry.
type Interface struct {
	Name         string
	IP           []netip.Prefix // shared address of the cluster (it moves), or the tunnel interface's own
	ManagementIP []netip.Prefix // stays on this node
	RemoteIP     netip.Prefix   // tunnel interfaces
	MTU          int            // 0: the device's own
	VDOM         string
}

// Phase1 is one `config vpn ipsec phase1-interface` entry.
type Phase1 struct {
	Name                string
	Line                int
	Type                string // static, dynamic, ddns
	Interface           string
	LocalGW             netip.Addr // invalid: the interface's address
	RemoteGW            netip.Addr // invalid for dynamic
	KeyLife             time.Duration
	AuthMethod          string // psk, signature
	PeerType            string // any, one, peer…
	PeerID              string
	LocalID             string
	LocalIDType         string // auto, fqdn, user-fqdn, keyid, address, asn1dn
	PSK                 ipsec.Key
	Certificate         []string
	Proposals           []ipsec.Suite // KE unset; see DHGroups
	DHGroups            []ipsec.TransformID
	NetDevice           bool
	PassiveMode         bool
	AutoNegotiate       bool
	NegotiateTimeout    time.Duration
	DPD                 string // on-demand, on-idle, disable
	DPDRetryCount       int
	DPDRetryInterval    time.Duration
	NATTraversal        string        // enable, disable, forced
	Keepalive           time.Duration // NAT keepalive
	Fragmentation       bool
	FragmentationMTU    int
	IPFragmentation     string // post-encapsulation, pre-encapsulation
	HASyncESPSeqno      bool
	FGSPSync            bool
	AddRoute            bool
	Rekey               bool
	Reauth              bool
	IdleTimeout         time.Duration // 0: disabled
	ExchangeInterfaceIP bool
	ExchangeIPAddr4     netip.Addr
	NetworkOverlay      bool
	NetworkID           int
	ChildlessIKE        bool
	ModeCfg             bool
	LoopbackAsymroute   bool
	Monitor             []string
}

// Dialup says whether clients make instances of it.
func (p *Phase1) Dialup() bool { return p.Type == "dynamic" }

// Phase2 is one `config vpn ipsec phase2-interface` entry.
type Phase2 struct {
	Name          string
	Line          int
	Phase1        string
	Proposals     []ipsec.Suite // KE unset; ESN as offered
	PFS           bool
	DHGroups      []ipsec.TransformID
	KeyLifeType   string        // seconds, kbs, both
	KeyLife       time.Duration // default 43200 s
	KeyLifeKB     uint64
	Replay        bool
	AutoNegotiate bool
	Keepalive     bool                    // implied by AutoNegotiate
	Src, Dst      []ipsec.TrafficSelector // resolved from subnets, ranges, names; protocol and ports applied
}

// Address is a named subnet or range; AddrGroup names several.
type Address struct {
	Name   string
	Ranges []ipsec.TrafficSelector // protocol 0, all ports
}
type AddrGroup struct {
	Name    string
	Members []string
}

// Policy is one `config firewall policy` entry.
type Policy struct {
	ID               int
	Name             string
	SrcIntf, DstIntf []string
	SrcAddr, DstAddr []string
	Accept           bool
	Status           bool
}

// Route is one `config router static` entry.
type Route struct {
	ID      int
	Dst     netip.Prefix
	Device  string
	Gateway netip.Addr
}

// Fault is one thing wrong with a configuration. Key is empty where a whole
// block is at fault. Warning marks what loads but has no effect here.
type Fault struct {
	File    string
	Line    int
	Object  string // e.g. vpn1
	Key     string
	Message string // what is wrong and what is allowed
	Warning bool
}

// The functions of this package:
//
//	Load(file string, text []byte) (*Config, []Fault)   // nil Config when any fault is not a warning
//	(Fault).Error() string                              // `FILE:14: vpn1: keylife (100) must be between 120 and 172800`
//	(*Config).Show(w io.Writer, path string, full bool) // FortiOS's `show` / `show full-configuration`; secrets print as `ENC redacted` unless asked
//	(*Config).Phase2Of(phase1 string) []*Phase2
//	(*Config).Checksum() …                              // per block, over the canonical show output
