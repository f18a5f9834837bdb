// Package config is the FortiOS configuration language: parse → model with
// defaults → validate, all faults at once with file and line. It is pure; it
// reads bytes and never the machine.
package config

import (
	"net/netip"
	"slices"
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
	HasPolicy  bool    // a `config firewall policy` block exists, even an empty one
	Routes     []Route // router static, then router static6
	BGP        BGP
	BFD        BFD
	TCPPort    uint16 // of IKE and ESP in TCP
	// QuickCrashDetect is `config system settings`' ike-quick-crash-detect (RFC 6290).
	QuickCrashDetect bool

	LinkMonitors []LinkMonitor

	Certificates   Certificates
	UserPeers      []UserPeer
	UserPeerGroups []UserPeerGroup
	Users          []User
	UserGroups     []UserPeerGroup
	RADIUS         []RADIUSServer
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
	Pingserver            Pingserver
	FailoverHoldTime      time.Duration // 0–300 s
	FlapDamping           bool
	VirtualMAC            []string // interfaces that have a virtual MAC address
	SyncConfig            bool     // this node shares its configuration with the rest of its pair; default true
	StandaloneConfigSync  bool     // the same in a farm; default false
	UnicastStatus         bool
	UnicastPeers          []UnicastPeer // see Config.Group
}

// HBDev is one heartbeat interface with its priority (0–512).
type HBDev struct {
	Name     string
	Priority int
}

// VCluster is one virtual cluster.
type VCluster struct {
	ID               int // 1–30
	Priority         int // 0–255, default 128
	Override         bool
	OverrideWaitTime time.Duration // 0–3600 s
	Monitor          []string
	VDOM             []string
	Phase1           []string
	Pingserver       Pingserver
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

// Farm says that this gateway is a member of a farm (FGSP).
func (c *StandaloneCluster) Farm() bool { return len(c.Peers) > 0 }

// Member is this gateway's number in the cluster, 1 to 16: its group-member-id,
// where 0 stands for 16.
func (c *StandaloneCluster) Member() int {
	if c.MemberID == 0 {
		return 16
	}
	return c.MemberID
}

// Site is the number, 1 to 16, of the site that this gateway is a node of: a pair (FGCP)
// that is one member of a farm (FGSP). 0: it is none.
func (c *Config) Site() int {
	if c.HA.Mode != "a-p" || !c.Standalone.Farm() {
		return 0
	}
	return c.Standalone.Member()
}

// SharesConfig says that this gateway shares its configuration with the others of its
// cluster: a pair does unless told otherwise, a farm's member if told to, a site never.
func (c *Config) SharesConfig() bool {
	switch farm := c.Standalone.Farm(); {
	case c.Site() != 0:
		return false
	case farm:
		return c.HA.StandaloneConfigSync
	}
	return c.HA.Mode == "a-p" && c.HA.SyncConfig
}

// Heartbeats are the shortest interval and the lowest threshold of all peers.
func (c *StandaloneCluster) Heartbeats() (interval time.Duration, threshold int) {
	for i := range c.Peers {
		p := &c.Peers[i]
		if interval == 0 || p.HBInterval < interval {
			interval = p.HBInterval
		}
		if threshold == 0 || p.HBLostThreshold < threshold {
			threshold = p.HBLostThreshold
		}
	}
	return interval, threshold
}

// ClusterPeer is one `config cluster-peer` entry.
type ClusterPeer struct {
	ID              int
	PeerIP          netip.Addr
	HBInterval      time.Duration
	HBLostThreshold int
	IPsecTunnelSync bool
	DownIntfs       []string // interfaces kept down until synchronised
}

// Tandem is `config system tandem`: what FortiOS has no word for.
type Tandem struct {
	DataPlane   string // auto, userspace, kernel
	QuorumLoss  string // continue, stop
	Witness     Witness
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
	Type         string // physical, tunnel, loopback, …; informative
}

// Phase1 is one `config vpn ipsec phase1-interface` entry.
type Phase1 struct {
	Name            string
	Line            int
	Type            string // static, dynamic, ddns
	Interface       string
	IPVersion       int        // 4 or 6, of the outer addresses
	LocalGW         netip.Addr // invalid: the interface's address
	RemoteGW        netip.Addr // invalid for dynamic and ddns
	RemoteGWDDNS    string     // ddns: the peer's host name
	KeyLife         time.Duration
	AuthMethod      string // psk, signature
	PeerType        string // any, one, peer, peergrp, dialup
	PeerID          string
	LocalID         string
	LocalIDType     string // auto, fqdn, user-fqdn, keyid, address, asn1dn
	PSK             ipsec.Key
	Certificate     []string
	Peer, PeerGroup string // names of a user peer, of a group of them
	UserGroup       string // of peertype dialup
	// EAP: clients of a dialup phase 1 prove themselves so, as users of AuthUserGroup; a static one is such a client.
	EAP              bool
	EAPIdentity      string // use-id-payload, send-request
	EAPOnly          bool   // RFC 5998: without AUTH of the responder, where the method is mutual
	AuthUserGroup    string
	AuthUser         string // of a client
	AuthPassword     ipsec.Key
	CertIDValidation bool
	// How signatures are made and which are taken: see docs/configuration.md.
	DigitalSignatureAuth, RSAHashOverride bool
	SignatureHash                         []string      // sha1, sha2-256, sha2-384, sha2-512; best first
	RSASignatureFormat                    string        // pkcs1, pss
	Proposals                             []ipsec.Suite // KE unset; see DHGroups
	ESN                                   string        // disable, allow, require: for phase 2 entries that do not say
	DHGroups                              []ipsec.TransformID
	AddKE                                 [ipsec.MaxAddKE][]ipsec.TransformID // addke1 to addke7, best first; ipsec.KENone: may be left out
	NetDevice                             bool
	PassiveMode                           bool
	AutoNegotiate                         bool
	NegotiateTimeout                      time.Duration
	DPD                                   string // on-demand, on-idle, disable
	DPDRetryCount                         int
	DPDRetryInterval                      time.Duration
	NATTraversal                          string        // enable, disable, forced
	Keepalive                             time.Duration // NAT keepalive
	Transport                             string        // udp, auto, tcp (RFC 9329)
	FallbackTCP                           time.Duration // transport auto: without an answer in UDP
	Mobike                                bool          // RFC 4555
	Fragmentation                         bool
	FragmentationMTU                      int
	IPFragmentation                       string // post-encapsulation, pre-encapsulation
	HASyncESPSeqno                        bool
	FGSPSync                              bool
	AddRoute                              bool
	Rekey                                 bool
	Reauth                                bool
	Redirect                              bool          // as initiator: follow (RFC 5685)
	RedirectGateways                      []netip.Addr  // where peers are sent while this gateway is drained
	IdleTimeout                           time.Duration // 0: disabled
	ExchangeInterfaceIP                   bool
	ExchangeIPAddr4                       netip.Addr
	NetworkOverlay                        bool
	NetworkID                             int
	ChildlessIKE                          bool
	PPK                                   string // disable, allow, require
	PPKSecret                             ipsec.Key
	PPKIdentity                           string
	ModeCfg                               bool
	Pool                                  Pool // meant when ModeCfg is set
	LoopbackAsymroute                     bool
	Monitor                               []string
}

// Pool is what mode-cfg hands to the clients of a dialup phase 1. Unset addresses are
// invalid. A static phase 1 with mode-cfg is a client itself: it has no pool.
type Pool struct {
	AssignIP             bool
	Start4, End4         netip.Addr
	Netmask4             netip.Addr
	DNS4                 [3]netip.Addr
	Start6, End6         netip.Addr
	Prefix6              int // 1–128
	DNS6                 [3]netip.Addr
	Domain               string
	SplitInclude4        string // name of an address or group
	SplitInclude4Subnets []ipsec.TrafficSelector
	SplitInclude6        string
	SplitInclude6Subnets []ipsec.TrafficSelector
}

// ListensTCP says whether any phase 1 takes IKE SAs in TCP.
func (c *Config) ListensTCP() bool {
	return slices.ContainsFunc(c.Phase1, func(p Phase1) bool { return p.Takes(true) })
}

// Takes says whether IKE SAs in TCP, or in UDP, belong to it.
func (p *Phase1) Takes(tcp bool) bool {
	if tcp {
		return p.Transport == "tcp" || p.Transport == "auto"
	}
	return p.Transport != "tcp"
}

// Dialup says whether clients make instances of it.
func (p *Phase1) Dialup() bool { return p.Type == "dynamic" }

// Phase2 is one `config vpn ipsec phase2-interface` entry.
type Phase2 struct {
	Name          string
	Line          int
	Phase1        string
	Proposals     []ipsec.Suite // KE unset; ESN as offered: with esn allow, each suite appears with and without
	ESN           string        // phase1, disable, allow, require
	PFS           bool
	DHGroups      []ipsec.TransformID
	AddKE         [ipsec.MaxAddKE][]ipsec.TransformID // as of Phase1; none without PFS
	KeyLifeType   string                              // seconds, kbs, both
	KeyLife       time.Duration                       // default 43200 s
	KeyLifeKB     uint64
	Replay        bool
	AutoNegotiate bool
	Keepalive     bool                    // implied by AutoNegotiate
	Src, Dst      []ipsec.TrafficSelector // resolved from subnets, ranges, names; protocol and ports applied
	RouteOverlap  string                  // use-new, use-old, allow
	AddRoute      string                  // phase1, enable, disable

	// As written; Src and Dst are what they come to.
	SrcSpec, DstSpec SelectorSpec
	Protocol         uint8  // 0: any
	SrcPort, DstPort uint16 // 0: any
}

// SelectorSpec is one side of a phase 2 selector as it was written. Only the
// fields that Type names are meant.
type SelectorSpec struct {
	Type    string // subnet, range, ip, name, subnet6, range6, ip6, name6
	Subnet  netip.Prefix
	Start   netip.Addr // also of ip
	End     netip.Addr
	Name    string
	Subnet6 netip.Prefix
	Start6  netip.Addr // also of ip6
	End6    netip.Addr
	Name6   string
}

// Address is a named subnet or range; AddrGroup names several.
type Address struct {
	Name   string
	Ranges []ipsec.TrafficSelector // protocol 0, all ports
}
type AddrGroup struct {
	Name    string
	Members []string
	V6      bool // of `config firewall addrgrp6`
}

// Policy is one `config firewall policy` entry.
type Policy struct {
	ID               int
	Name             string
	SrcIntf, DstIntf []string
	SrcAddr, DstAddr []string // IPv4 names; see Config.Resolve
	Accept           bool
	Status           bool

	SrcAddr6, DstAddr6 []string // IPv6 names
}

// Route is one `config router static` entry.
type Route struct {
	ID      int
	Dst     netip.Prefix
	Device  string
	Gateway netip.Addr

	Distance  int  // 1–255, default 10; the metric of the kernel's route
	Blackhole bool // discards instead of forwarding
	Disabled  bool // status disable
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
