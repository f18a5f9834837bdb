package gossip

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

const (
	// MaxRecord is the most that fits one packet of 1,400 bytes beside memberlist's and
	// the seal's own bytes.
	MaxRecord = 1350
	// DigestLen is the length of a configuration's digest.
	DigestLen = 16

	maxName    = 64
	maxBuild   = 64
	maxScopes  = fsm.MaxNodes * fsm.SlotsPerMember
	maxState   = fsm.MaxNodes * (MaxRecord + 8)
	maxVersion = 1 << 62 // above it nobody could go
	format     = 1
)

// ErrTooLarge says that a record would never be sent.
var ErrTooLarge = errors.New("gossip: larger than a packet takes")

// Meta is what a member says of itself.
type Meta struct {
	Name           string // of the host, up to 64 bytes
	Build          string // up to 64 bytes
	LogMin, LogMax uint32 // versions of the members' log that the build understands
	Features       uint64
	// Config is the keyed digest of the configuration that members share: 16 bytes, or
	// none while there is none.
	Config  []byte
	Owned   int    // scopes
	Tunnels int    // established
	Packets uint64 // a second, both directions
	// Scopes are digests of the replicated state, by scope, at most 128.
	Scopes map[cluster.ScopeID]uint64

	leaving bool // memberlist does not say of whom it lost whether that was meant
}

// encode makes the record of a node.
func encode(node cluster.NodeID, version uint64, m *Meta) ([]byte, error) {
	r := &clusterpb.GossipRecord{
		Format: format, Node: uint32(node), Version: version, Name: m.Name, Build: m.Build, LogMin: m.LogMin, LogMax: m.LogMax,
		Features: m.Features, Config: m.Config, Owned: uint32(max(m.Owned, 0)), Tunnels: uint32(max(m.Tunnels, 0)), Packets: m.Packets, Leaving: m.leaving,
	}
	scopes := make([]cluster.ScopeID, 0, len(m.Scopes))
	for s := range m.Scopes {
		scopes = append(scopes, s)
	}
	slices.Sort(scopes)
	last := cluster.ScopeID(0)
	for _, s := range scopes {
		r.Scopes, r.Digests = append(r.Scopes, uint32(s-last)), append(r.Digests, m.Scopes[s])
		last = s
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), MaxRecord)
	}
	if _, _, _, err := decode(b); err != nil {
		return nil, err
	}
	return b, nil
}

// decode reads a record. Fields that it does not know are of a newer build.
func decode(b []byte) (cluster.NodeID, uint64, *Meta, error) {
	if len(b) > MaxRecord {
		return 0, 0, nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(b))
	}
	var r clusterpb.GossipRecord
	if err := proto.Unmarshal(b, &r); err != nil {
		return 0, 0, nil, fmt.Errorf("gossip: %w", err)
	}
	switch {
	case r.GetFormat() != format:
		return 0, 0, nil, fmt.Errorf("gossip: a record of format %d", r.GetFormat())
	case r.GetNode() < 1 || r.GetNode() > fsm.MaxNodes:
		return 0, 0, nil, fmt.Errorf("gossip: a record of node %d", r.GetNode())
	case r.GetVersion() > maxVersion:
		return 0, 0, nil, fmt.Errorf("gossip: a record of version %d", r.GetVersion())
	case len(r.GetName()) > maxName || len(r.GetBuild()) > maxBuild || !utf8.ValidString(r.GetName()+r.GetBuild()):
		return 0, 0, nil, fmt.Errorf("gossip: a name of %d bytes, a build of %d", len(r.GetName()), len(r.GetBuild()))
	case len(r.GetConfig()) != 0 && len(r.GetConfig()) != DigestLen:
		return 0, 0, nil, fmt.Errorf("gossip: a configuration's digest of %d bytes", len(r.GetConfig()))
	case len(r.GetScopes()) > maxScopes || len(r.GetScopes()) != len(r.GetDigests()):
		return 0, 0, nil, fmt.Errorf("gossip: %d scopes, %d digests", len(r.GetScopes()), len(r.GetDigests()))
	}
	m := &Meta{
		Name: r.GetName(), Build: r.GetBuild(), LogMin: r.GetLogMin(), LogMax: r.GetLogMax(), Features: r.GetFeatures(), Config: r.GetConfig(),
		Owned: int(r.GetOwned()), Tunnels: int(r.GetTunnels()), Packets: r.GetPackets(), leaving: r.GetLeaving(),
	}
	at := uint64(0)
	for i, d := range r.GetScopes() {
		if at += uint64(d); d == 0 && i > 0 || at > 0xffff {
			return 0, 0, nil, fmt.Errorf("gossip: scope %d out of order", at)
		}
		if m.Scopes == nil {
			m.Scopes = map[cluster.ScopeID]uint64{}
		}
		m.Scopes[cluster.ScopeID(at)] = r.GetDigests()[i]
	}
	return cluster.NodeID(r.GetNode()), r.GetVersion(), m, nil
}
