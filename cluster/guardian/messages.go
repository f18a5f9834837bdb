package guardian

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/proto/clusterpb"
)

// File descriptors of the daemon, and the variable that tells it its process ID.
const (
	socketFD   = 3
	progressFD = 4
	processEnv = "TANDEM_PROCESS"

	maxMessage = 64 << 10
)

// ExitConfig is the daemon's exit status when its configuration or its build is wrong: it is
// reported, not retried (sysexits' EX_CONFIG).
const ExitConfig = 78

// Address is a shared address on a device of this node.
type Address struct {
	Device string
	Prefix netip.Prefix
}

// MAC is a device's own MAC address: while the shared addresses are on this node, the
// device may have a virtual one instead.
type MAC struct {
	Device  string
	Address [6]byte
}

// Event is what the guardian tells its daemon: one of cluster.TellPeer, TellLoss,
// TellRemoved, TellEntitled and TellClaimed.
type Event = cluster.GuardEffect

// encodeEvent encodes one message for the daemon; nil if it is none.
func encodeEvent(e cluster.GuardEffect) ([]byte, error) {
	m := &clusterpb.ToDaemon{}
	switch e := e.(type) {
	case cluster.TellPeer:
		p := &clusterpb.Peer{
			Node: uint32(e.Peer.Node), Name: e.Peer.Name, Process: uint64(e.Peer.Process), Running: e.Peer.Running,
			Role: uint32(e.Peer.Role), Epoch: cluster.EpochToProto(e.Peer.Epoch), Entitled: e.Peer.Entitled,
			Coverage: uint32(e.Peer.Coverage), Election: cluster.ElectionToProto(e.Peer.Election),
			StreamPort: uint32(e.Peer.StreamPort), Chosen: uint32(e.Peer.Chosen), Deaf: e.Peer.Deaf,
			Owned: cluster.TenuresToProto(e.Peer.Owned), EntitledTo: cluster.TenuresToProto(e.Peer.EntitledTo),
			Vclusters: cluster.VClustersToProto(e.Peer.VClusters),
		}
		for _, l := range e.Peer.Links {
			p.Links = append(p.Links, &clusterpb.Link{Device: l.Device, Addr: l.Addr})
		}
		m.What = &clusterpb.ToDaemon_Peer{Peer: p}
	case cluster.TellLoss:
		m.What = &clusterpb.ToDaemon_Loss{Loss: &clusterpb.Loss{
			Node: uint32(e.Node), Kind: uint32(e.Kind), Entitled: e.Entitled, DetectedUs: uint64(max(e.Detected, 0) / time.Microsecond),
			Claimed: cluster.TenuresToProto(e.Claimed),
		}}
	case cluster.TellRemoved:
		m.What = &clusterpb.ToDaemon_Removed{Removed: &clusterpb.Removed{Scope: uint32(e.Scope), Node: uint32(e.Node)}}
	case cluster.TellEntitled:
		m.What = &clusterpb.ToDaemon_Entitled{Entitled: tenure(e.Scope, e.Epoch)}
	case cluster.TellClaimed:
		m.What = &clusterpb.ToDaemon_Claimed{Claimed: &clusterpb.Claimed{Scope: uint32(e.Scope), Epoch: cluster.EpochToProto(e.Epoch), Ok: e.OK}}
	default:
		return nil, nil
	}
	return proto.Marshal(m)
}

func tenure(s cluster.ScopeID, e cluster.Epoch) *clusterpb.Tenure {
	return &clusterpb.Tenure{Scope: uint32(s), Epoch: cluster.EpochToProto(e)}
}

func decodeEvent(b []byte) (Event, error) {
	var m clusterpb.ToDaemon
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	switch w := m.GetWhat().(type) {
	case *clusterpb.ToDaemon_Peer:
		p := w.Peer
		a, err := cluster.AnnounceFromProto(&clusterpb.Announce{Role: p.GetRole(), Epoch: p.GetEpoch(), Election: p.GetElection(), Coverage: p.GetCoverage(), Chosen: p.GetChosen(), Owned: p.GetOwned(), Vclusters: p.GetVclusters()})
		entitled, err2 := cluster.TenuresFromProto(p.GetEntitledTo())
		x := cluster.Peer{
			Node: cluster.NodeID(p.GetNode()), Name: p.GetName(), Process: cluster.ProcessID(p.GetProcess()), Running: p.GetRunning(),
			Role: a.Role, Epoch: a.Epoch, Entitled: p.GetEntitled(), Coverage: a.Coverage, Election: a.Election,
			StreamPort: uint16(p.GetStreamPort()), Chosen: a.Chosen, Deaf: p.GetDeaf(),
			Owned: a.Owned, EntitledTo: entitled, VClusters: a.VClusters,
		}
		for _, l := range p.GetLinks() {
			x.Links = append(x.Links, cluster.Link{Device: l.GetDevice(), Addr: l.GetAddr()})
		}
		return cluster.TellPeer{Peer: x}, errors.Join(err, err2)
	case *clusterpb.ToDaemon_Loss:
		claimed, err := cluster.TenuresFromProto(w.Loss.GetClaimed())
		return cluster.TellLoss{
			Node: cluster.NodeID(w.Loss.GetNode()), Kind: cluster.Loss(w.Loss.GetKind()), Entitled: w.Loss.GetEntitled(),
			Claimed: claimed, Detected: time.Duration(w.Loss.GetDetectedUs()) * time.Microsecond,
		}, err
	case *clusterpb.ToDaemon_Removed:
		s, err := cluster.ScopeFromProto(w.Removed.GetScope())
		return cluster.TellRemoved{Scope: s, Node: cluster.NodeID(w.Removed.GetNode())}, err
	case *clusterpb.ToDaemon_Entitled:
		t, err := cluster.TenureFromProto(w.Entitled)
		return cluster.TellEntitled(t), err
	case *clusterpb.ToDaemon_Claimed:
		t, err := cluster.TenureFromProto(&clusterpb.Tenure{Scope: w.Claimed.GetScope(), Epoch: w.Claimed.GetEpoch()})
		return cluster.TellClaimed{Scope: t.Scope, Epoch: t.Epoch, OK: w.Claimed.GetOk()}, err
	}
	return nil, errors.New("unknown message of the guardian")
}

// addresses and streamPort are the daemon's messages that are no effects of a Pair.
type addresses struct {
	shared []Address
	macs   []MAC
}
type streamPort uint16

func encodeRequest(what any) ([]byte, error) {
	m := &clusterpb.ToGuardian{}
	switch w := what.(type) {
	case cluster.Announce:
		m.What = &clusterpb.ToGuardian_Announce{Announce: cluster.AnnounceToProto(w)}
	case cluster.Entitle:
		m.What = &clusterpb.ToGuardian_Entitle{Entitle: &clusterpb.Entitle{Scope: uint32(w.Scope), Epoch: cluster.EpochToProto(w.Epoch), On: w.On}}
	case cluster.Claim:
		m.What = &clusterpb.ToGuardian_Claim{Claim: tenure(w.Scope, w.Epoch)}
	case cluster.AskRemoval:
		m.What = &clusterpb.ToGuardian_AskRemoval{AskRemoval: &clusterpb.AskRemoval{Scope: uint32(w.Scope), Node: uint32(w.Node)}}
	case addresses:
		a := &clusterpb.Addresses{}
		for _, x := range w.macs {
			a.Mac = append(a.Mac, &clusterpb.MAC{Device: x.Device, Address: x.Address[:]})
		}
		for _, x := range w.shared {
			a.Address = append(a.Address, &clusterpb.Address{Device: x.Device, Prefix: x.Prefix.String()})
		}
		m.What = &clusterpb.ToGuardian_Addresses{Addresses: a}
	case streamPort:
		m.What = &clusterpb.ToGuardian_StreamPort{StreamPort: uint32(w)}
	default:
		return nil, fmt.Errorf("no message for the guardian: %T", what)
	}
	return proto.Marshal(m)
}

func decodeRequest(b []byte) (any, error) {
	var m clusterpb.ToGuardian
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	switch w := m.GetWhat().(type) {
	case *clusterpb.ToGuardian_Announce:
		return cluster.AnnounceFromProto(w.Announce)
	case *clusterpb.ToGuardian_Entitle:
		e, err := cluster.EpochFromProto(w.Entitle.GetEpoch())
		s, err2 := cluster.ScopeFromProto(w.Entitle.GetScope())
		return cluster.Entitle{Scope: s, Epoch: e, On: w.Entitle.GetOn()}, errors.Join(err, err2)
	case *clusterpb.ToGuardian_Claim:
		t, err := cluster.TenureFromProto(w.Claim)
		return cluster.Claim(t), err
	case *clusterpb.ToGuardian_AskRemoval:
		s, err := cluster.ScopeFromProto(w.AskRemoval.GetScope())
		return cluster.AskRemoval{Scope: s, Node: cluster.NodeID(w.AskRemoval.GetNode())}, err
	case *clusterpb.ToGuardian_Addresses:
		var out addresses
		for _, a := range w.Addresses.GetAddress() {
			p, err := netip.ParsePrefix(a.GetPrefix())
			if err != nil {
				return nil, err
			}
			out.shared = append(out.shared, Address{a.GetDevice(), p})
		}
		for _, x := range w.Addresses.GetMac() {
			if len(x.GetAddress()) != 6 {
				return nil, fmt.Errorf("a MAC address of %d bytes", len(x.GetAddress()))
			}
			out.macs = append(out.macs, MAC{x.GetDevice(), [6]byte(x.GetAddress())})
		}
		return out, nil
	case *clusterpb.ToGuardian_StreamPort:
		return streamPort(w.StreamPort), nil
	}
	return nil, errors.New("unknown message of the daemon")
}
