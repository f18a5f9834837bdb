// Package ike is the IKEv2 engine (RFC 7296): both roles, all exchanges, as a pure
// state machine. It takes the time and what arrived, and returns effects.
//
// Replication is visible in one place only: whatever changes an IKE SA ends in a
// Persist effect, and everything that rests on it (messages, installed SAs) is
// held until Committed names its ticket. What a node needs to go on with an IKE
// SA that another node began is in its Entry, nothing else.
package ike

import (
	"io"
	"log/slog"
	"net/netip"
	"time"

	"tandem/internal/config"
	"tandem/internal/ipsec"
)

// Ticket numbers Persist effects, rising by one.
type Ticket uint64

// Datagram is one IKE message; NonESP says that it travels on a socket where the
// non-ESP marker is used (RFC 3948 §2.2). Data is without the marker.
// With TCP it travels in a connection (RFC 9329), which is ours to open where the local
// port is 0.
type Datagram struct {
	Local, Remote netip.AddrPort
	NonESP, TCP   bool
	Data          []byte
}

// Nonces hands out the explicit IVs of AEAD keys (the ranges of sender IDs live
// behind it). A secret gets its KeyID when it is made, including the secrets of
// an exchange in flight; keys derived from it inherit the ID.
type Nonces interface {
	// New registers a secret that this process just made, with the full range.
	New() ipsec.KeyID
	// IV is this process's counter under the key; nil when no range is held.
	IV(ipsec.KeyID) *ipsec.IVCounter
	// Small says that the range has become small: rekey early.
	Small(ipsec.KeyID) bool
	// Forget says that the key is gone here. Its range stays reserved.
	Forget(ipsec.KeyID)
}

// Traffic is when a Child SA last carried authenticated inbound and any outbound
// packets here; zero times when never.
type Traffic func(spiIn ipsec.ESPSPI) (lastIn, lastOut time.Time)

// Numbers are up to where the sequence numbers of a Child SA may be used: those that this
// cluster may have sent, and those that it may have delivered. 0, 0: it is not installed.
type Numbers func(spiIn ipsec.ESPSPI) (out, in uint64)

// Options are what an Engine needs from outside.
type Options struct {
	Config       *config.Config
	Rand         io.Reader
	Nonces       Nonces
	Traffic      Traffic
	Numbers      Numbers
	Revocation   Revocation                                     // nil: nobody asks OCSP responders
	RADIUS       func(key [32]byte) (RADIUSAnswer, bool)        // nil: nobody asks RADIUS servers; see AskRADIUS
	LocalAddr    func(iface string, v6 bool) (netip.Addr, bool) // address of a phase 1's interface
	CookieSecret ipsec.Key                                      // shared by the cluster; 32 bytes
	// TokenSecret makes the tokens of quick crash detection: 32 bytes that all members of a
	// cluster have, and that outlive them all. Empty: none are made.
	TokenSecret ipsec.Key
	// Sole says that no other member can have an IKE SA that is unknown here; nil: none can.
	Sole func() bool
	// HalfOpenLimit is the number of half-open IKE SAs from which on cookies are
	// demanded (RFC 7296 §2.6).
	HalfOpenLimit int
	// RetransmitFirst and RetransmitTries shape the back-off (RFC 7296 §2.4):
	// the first interval, doubled each time; zero values mean 1 s and what
	// fits into a phase 1's dpd settings.
	RetransmitFirst time.Duration
	RetransmitTries int
	// Share is this engine's part of the numbers that all engines of a farm choose
	// from without asking each other: SPIs of both kinds and indexes of dialup instances.
	Share Share
	// Logs says whether lines of a level are wanted. A set-up has some twenty of debug
	// level, which cost a tenth of its memory where nobody reads them. nil: all are.
	Logs func(slog.Level) bool
}

// Share is the Part-th of Of equal parts: those numbers n with n mod Of = Part. The
// zero value is all of them.
type Share struct{ Part, Of int }

func (s Share) of() int { return max(s.Of, 1) }

// Entry is the replicated state of one IKE SA with its Child SAs. Value is nil
// for an IKE SA that is gone; PeerDeleted then says that the peer authenticated
// the deletion (DELETE, INITIAL_CONTACT, a completed rekey), which makes a
// tombstone that beats live records at healing. Ages inside Value are relative
// to the time of encoding.
type Entry struct {
	SPIs        ipsec.IKESPIs
	Value       []byte
	PeerDeleted bool
	KeyIDs      []ipsec.KeyID  // the secrets inside Value
	ChildSPIs   []ipsec.ESPSPI // its Child SAs by SPIIn
}

// Record is one event: its entries are applied together or not at all.
type Record struct{ Entries []Entry }

// Effect is what the engine wants done. Concrete types are below.
type Effect interface{ effect() }

// Persist asks that the record reach the whole sync set; Committed answers.
type Persist struct {
	Ticket Ticket
	Record Record
}

// Send sends a message. The engine reuses nothing of Data.
type Send struct{ Datagram }

// Install installs a Child SA, inbound live at once.
// Known: it comes from a record and may have carried packets elsewhere.
type Install struct {
	SA                   ipsec.ChildSA
	SoftBytes, HardBytes uint64
	Known                bool
	// OutSeq and InSeq are what was used or skipped (Skip) at least. Of a tunnel that was
	// moved: Moves is how often. Window is set where it goes on right there.
	OutSeq, InSeq uint64
	Moves         uint32
	Window        *ipsec.Window
}

// SetOutbound makes a Child SA the one to send through, or stops it.
type SetOutbound struct {
	SPIIn ipsec.ESPSPI
	Use   bool
}

// SetPeer moves a Child SA's outer addresses.
type SetPeer struct {
	SPIIn         ipsec.ESPSPI
	Local, Remote netip.AddrPort
	UDPEncap, TCP bool
}

// Remove removes a Child SA. Linger is how long its inbound direction still takes what is
// under way (RFC 7296 §2.8), where nobody else can take it: another Child SA has taken its
// place, and the peer has sent on this one until it heard so. 0: it ends at once.
type Remove struct {
	SPIIn  ipsec.ESPSPI
	Linger time.Duration
}

// SendKeepalive sends a NAT keepalive.
type SendKeepalive struct{ Local, Remote netip.AddrPort }

// Log is one structured line; Message keeps the vocabulary that people grep for.
// Attributes always name the tunnel, the peer and the SPIs where they are known.
type Log struct {
	Level   slog.Level
	Message string
	Attrs   []slog.Attr
}

// KeyLog names the keys of a new IKE SA, for a debug key log; emitted always,
// written by nobody unless the operator told the daemon to.
type KeyLog struct {
	SPIs           ipsec.IKESPIs
	Suite          ipsec.Suite
	Ei, Er, Ai, Ar ipsec.Key
}

func (Persist) effect()       {}
func (Send) effect()          {}
func (Install) effect()       {}
func (SetOutbound) effect()   {}
func (SetPeer) effect()       {}
func (Remove) effect()        {}
func (SendKeepalive) effect() {}
func (Log) effect()           {}
func (KeyLog) effect()        {}

// The engine's methods. An engine is suspended when new: it only applies records.
//
//	New(Options) *Engine
//	HandleDatagram(now, Datagram)                 // when resumed
//	HandleAcquire(now, tunnel string, Acquire)    // Acquire of the data plane: negotiate for traffic
//	HandleFirstInbound(now, spiIn)                // the peer uses this SA; also: authenticated traffic after a takeover
//	HandlePeerMoved(now, spiIn, from)             // NAT rebinding
//	HandleStreamMoved(now, spiIn, from)           // the peer opened another TCP connection
//	HandleStreamLost(now, spiIn)                  // ours is gone
//	HandleAddresses(now, has)                     // our own addresses have changed (MOBIKE)
//	HandleExpiring(now, spiIn, hard)              // rekey for other reasons than time
//	HandleTimeout(now); NextTimeout() (time.Time, bool)
//	Committed(now, Ticket)                        // in order; all tickets up to it
//	Poll() (Effect, bool)                         // drained before the next input
//
//	Apply(now, Record)                            // standby: take over the state; emits Install/SetOutbound/SetPeer/Remove ungated
//	BeginCopy(); EndCopy()                        // a full copy: what Apply did not name in between is removed
//	Snapshot(now) []Entry                         // full copy for a member that enters
//	SPIs() []ipsec.IKESPIs; SnapshotOf(now, []ipsec.IKESPIs) []Entry // the same in parts
//	Resume(now)                                   // ownership begins: arm timers, retransmit outstanding requests,
//	                                              // nothing new on an IKE SA before the peer's authenticated traffic; its last
//	                                              // request once more (or an empty one, if there was none) invites that
//	Behind()                                      // before Resume: message IDs may be behind; synchronise where the peer can
//	OwnerDied()                                   // before Resume: have peers raise their sequence numbers where they can
//	Suspend(now)                                  // ownership ends: held effects are dropped, nothing leaves any more
//	Unite(now, []Entry)                           // healing: the other side's entries, by SPI (see architecture, Healing)
//	RekeyAll(now, reason string)                  // early rekey of everything, paced
//
//	Reconfigure(now, *config.Config)              // only what changed: passive-mode enabled → DELETE its SAs, removed → DELETE
//	Up(now, phase1, phase2 string) error; Down(now, phase1, phase2 string) error
//	Clear(now, name string) int                   // gateway clear/flush: DELETE, then renegotiate as configured; "" for all
//	Rekey(now, name string, ike bool) int         // Child SAs, or IKE SAs, now
//	Status(now) []GatewayStatus
//	Counters() Counters
