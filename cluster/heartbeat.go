package cluster

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/internal/ipsec"
	"tandem/proto/clusterpb"
)

// Heartbeat is what a guardian says on every heartbeat device and to every peer.
type Heartbeat struct {
	Node         NodeID
	Name         string
	Incarnation  uint64 // of the guardian; rises with each start
	Seq          uint64 // rises with each heartbeat of the incarnation
	Process      ProcessID
	Running      bool     // the daemon lives and has announced itself
	Unresponsive bool     // it was killed and did not end
	Stalled      bool     // it has made no progress for a while: it could not take anything over now
	Entitled     Epoch    // of scope 0
	EntitledTo   []Tenure // of the other scopes, by number, with the owners' epochs
	Announce     Announce // Election.Age is as of sending; Owned is by number
	StreamPort   uint16
	Heard        []Heard
	Requests     []Removal // what is too much for a datagram is left out at the end
	Answers      []Removal
}

// Heard says that the sender hears this incarnation of a node's guardian.
type Heard struct {
	Node        NodeID
	Incarnation uint64
}

// Removal asks Node to give up its entitlement for epochs up to Epoch; as an
// answer, says that what Node asked for is done. Of a scope other than 0, Epoch is
// the asker's own.
type Removal struct {
	Scope ScopeID
	Node  NodeID
	Nonce uint64
	Epoch Epoch
}

// On the wire: version (1 byte), HMAC-SHA256 over version and message (32), message.
const (
	heartbeatVersion = 1
	heartbeatHeader  = 1 + sha256.Size
	// HeartbeatNews may be set in the first byte on the way: a hint that the heartbeat
	// is worth waking up for. It is not authenticated.
	HeartbeatNews = 0x80
	// MaxHeartbeat is the longest datagram, in bytes: it fits the MTU of Ethernet.
	// That of a pair fits IPv6's minimum MTU.
	MaxHeartbeat = 1400

	maxNode   = 16 // nodes of a cluster, hence entries of each list
	maxString = 64
	maxAge    = 100 * 365 * 24 * time.Hour

	maxPenalty = 1 << 20 // of all link monitors of a configuration
)

// Errors of DecodeHeartbeat that are told apart: strangers' datagrams are counted
// only, those of our own key that make no sense are worth a log line.
var (
	ErrNotHeartbeat  = errors.New("not a heartbeat")
	ErrHeartbeatAuth = errors.New("heartbeat of another cluster, or forged")
)

// Marshal encodes and authenticates the heartbeat. Where it is too long for a
// datagram, removals of listed scopes are left out first (the Guard repeats them in
// turn), then entitlements, which the others use to judge and never to grant.
func (h *Heartbeat) Marshal(key ipsec.Key) ([]byte, error) {
	b, err := h.marshal(key)
	for x := *h; errors.Is(err, errTooLong); b, err = x.marshal(key) {
		switch {
		case len(x.Requests) > sureRemovals || len(x.Answers) > sureRemovals:
			x.Requests = x.Requests[:min(len(x.Requests), max(sureRemovals, len(x.Requests)/2))]
			x.Answers = x.Answers[:min(len(x.Answers), max(sureRemovals, len(x.Answers)/2))]
		case len(x.EntitledTo) > 0:
			x.EntitledTo = x.EntitledTo[:len(x.EntitledTo)*3/4]
		default:
			return nil, err
		}
	}
	return b, err
}

var errTooLong = errors.New("heartbeat too long")

func (h *Heartbeat) marshal(key ipsec.Key) ([]byte, error) {
	m := &clusterpb.Heartbeat{
		Node: uint32(h.Node), Name: h.Name, Incarnation: h.Incarnation, Seq: h.Seq, Process: uint64(h.Process),
		Running: h.Running, Unresponsive: h.Unresponsive, Stalled: h.Stalled, Entitled: EpochToProto(h.Entitled),
		Role: uint32(h.Announce.Role), Epoch: EpochToProto(h.Announce.Epoch), Coverage: uint32(h.Announce.Coverage),
		Election: ElectionToProto(h.Announce.Election), Chosen: uint32(h.Announce.Chosen), StreamPort: uint32(h.StreamPort),
		Requests: removalsToProto(h.Requests), Answers: removalsToProto(h.Answers),
		Owned: packOwned(h.Announce.Owned), EntitledTo: packEntitled(h.EntitledTo),
		ScopeRequests: packRequests(h.Requests), ScopeAnswers: packAnswers(h.Answers),
		Vclusters: packVClusters(h.Announce.VClusters),
	}
	for _, x := range h.Heard {
		m.Heard = append(m.Heard, &clusterpb.Heard{Node: uint32(x.Node), Incarnation: x.Incarnation})
	}
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, heartbeatHeader, 512), m)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxHeartbeat {
		return nil, fmt.Errorf("%w: %d bytes", errTooLong, len(b))
	}
	b[0] = heartbeatVersion
	copy(b[1:], heartbeatMAC(key, b))
	return b, nil
}

func heartbeatMAC(key ipsec.Key, b []byte) []byte {
	mac := hmac.New(sha256.New, key.Bytes())
	mac.Write([]byte{b[0] &^ HeartbeatNews})
	mac.Write(b[heartbeatHeader:])
	return mac.Sum(nil)
}

// DecodeHeartbeat checks and decodes a datagram. Nothing of it is looked into
// before its authentication.
func DecodeHeartbeat(key ipsec.Key, b []byte) (*Heartbeat, error) {
	if len(b) <= heartbeatHeader || len(b) > MaxHeartbeat || b[0]&^HeartbeatNews != heartbeatVersion {
		return nil, ErrNotHeartbeat
	}
	if !hmac.Equal(b[1:heartbeatHeader], heartbeatMAC(key, b)) {
		return nil, ErrHeartbeatAuth
	}
	return parseHeartbeat(b[heartbeatHeader:])
}

func parseHeartbeat(b []byte) (*Heartbeat, error) {
	var m clusterpb.Heartbeat
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("heartbeat: %w", err)
	}
	h := &Heartbeat{
		Node: NodeID(m.GetNode()), Name: m.GetName(), Incarnation: m.GetIncarnation(), Seq: m.GetSeq(),
		Process: ProcessID(m.GetProcess()), Running: m.GetRunning(), Unresponsive: m.GetUnresponsive(), Stalled: m.GetStalled(),
	}
	var err error
	fail := func(e error) { err = errors.Join(err, e) }
	h.Entitled, err = EpochFromProto(m.GetEntitled())
	h.Announce, h.StreamPort = Announce{}, uint16(m.GetStreamPort())
	if e := checkNode(m.GetNode()); e != nil {
		fail(e)
	}
	if m.GetIncarnation() == 0 || m.GetSeq() == 0 {
		fail(errors.New("without incarnation or number"))
	}
	if len(m.GetName()) > maxString || m.GetStreamPort() > 65535 {
		fail(errors.New("name or port out of range"))
	}
	a, e := AnnounceFromProto(&clusterpb.Announce{Role: m.GetRole(), Epoch: m.GetEpoch(), Election: m.GetElection(), Coverage: m.GetCoverage(), Chosen: m.GetChosen()})
	fail(e)
	h.Announce = a
	if max(len(m.GetHeard()), len(m.GetRequests()), len(m.GetAnswers())) > maxNode {
		fail(errors.New("lists too long"))
		return nil, fmt.Errorf("heartbeat: %w", err)
	}
	for _, x := range m.GetHeard() {
		fail(checkNode(x.GetNode()))
		h.Heard = append(h.Heard, Heard{NodeID(x.GetNode()), x.GetIncarnation()})
	}
	h.Requests, e = removalsFromProto(m.GetRequests())
	fail(e)
	h.Answers, e = removalsFromProto(m.GetAnswers())
	fail(e)
	fail(h.unpackScopes(&m))
	if err != nil {
		return nil, fmt.Errorf("heartbeat: %w", err)
	}
	return h, nil
}

func checkNode(n uint32) error {
	if n < 1 || n > maxNode {
		return fmt.Errorf("node %d is not 1 to %d", n, maxNode)
	}
	return nil
}

// removalsToProto encodes those of scope 0.
func removalsToProto(in []Removal) (out []*clusterpb.Removal) {
	for _, r := range in {
		if r.Scope != 0 {
			continue
		}
		out = append(out, &clusterpb.Removal{Node: uint32(r.Node), Nonce: r.Nonce, Epoch: EpochToProto(r.Epoch)})
	}
	return out
}

func removalsFromProto(in []*clusterpb.Removal) (out []Removal, err error) {
	for _, r := range in {
		e, err := EpochFromProto(r.GetEpoch())
		if err := errors.Join(err, checkNode(r.GetNode())); err != nil {
			return nil, err
		}
		out = append(out, Removal{Node: NodeID(r.GetNode()), Nonce: r.GetNonce(), Epoch: e})
	}
	return out, nil
}

// EpochToProto encodes an epoch; zero is absent.
func EpochToProto(e Epoch) *clusterpb.Epoch {
	if e == (Epoch{}) {
		return nil
	}
	return &clusterpb.Epoch{Counter: e.Counter, Node: uint32(e.Node)}
}

// EpochFromProto decodes an epoch and checks its node.
func EpochFromProto(m *clusterpb.Epoch) (Epoch, error) {
	e := Epoch{Counter: m.GetCounter(), Node: NodeID(m.GetNode())}
	if e == (Epoch{}) {
		return e, nil
	}
	if err := checkEpoch(e); err != nil {
		return Epoch{}, err
	}
	return e, nil
}

// checkEpoch says whether somebody can own under the epoch.
func checkEpoch(e Epoch) error {
	if e.Counter == 0 || e.Counter >= 1<<62 || e.Node < 1 || e.Node > maxNode {
		return fmt.Errorf("impossible epoch %s", e)
	}
	return nil
}

// TenuresToProto encodes a list by scope.
func TenuresToProto(in []Tenure) (out []*clusterpb.Tenure) {
	for _, t := range in {
		out = append(out, &clusterpb.Tenure{Scope: uint32(t.Scope), Epoch: EpochToProto(t.Epoch)})
	}
	return out
}

// TenuresFromProto decodes it and checks bounds and order.
func TenuresFromProto(in []*clusterpb.Tenure) (out []Tenure, err error) {
	if len(in) > maxTenures {
		return nil, fmt.Errorf("%d scopes are too many", len(in))
	}
	for _, m := range in {
		t, err := TenureFromProto(m)
		if err != nil {
			return nil, err
		}
		if t.Scope == 0 || len(out) > 0 && t.Scope <= out[len(out)-1].Scope {
			return nil, fmt.Errorf("scope %d is not in its place", t.Scope)
		}
		out = append(out, t)
	}
	return out, nil
}

// TenureFromProto decodes one scope, which may be 0, with its epoch.
func TenureFromProto(m *clusterpb.Tenure) (Tenure, error) {
	s, err := ScopeFromProto(m.GetScope())
	if err != nil {
		return Tenure{}, err
	}
	e, err := EpochFromProto(m.GetEpoch())
	if err == nil && e == (Epoch{}) {
		err = errors.New("a scope without epoch")
	}
	return Tenure{s, e}, err
}

// ScopeFromProto checks the number of a scope.
func ScopeFromProto(n uint32) (ScopeID, error) {
	if s := ScopeID(n); n == 0 || n < 1<<16 && listable(s) {
		return s, nil
	}
	return 0, fmt.Errorf("there is no scope %d", n)
}

// ElectionToProto encodes what an election compares.
func ElectionToProto(e Election) *clusterpb.Election {
	return &clusterpb.Election{
		MonitorsUp: int32(e.MonitorsUp), AgeMs: uint64(min(max(e.Age, 0), maxAge) / time.Millisecond), Priority: uint32(e.Priority),
		Override: e.Override, Serial: e.Serial, Failover: e.Failover,
		Penalty: uint32(min(max(e.Penalty, 0), maxPenalty)), Handed: uint32(e.Handed), OverrideWaitS: uint32(e.OverrideWait / time.Second),
	}
}

// ElectionFromProto decodes it and checks ranges.
func ElectionFromProto(m *clusterpb.Election) (Election, error) {
	if len(m.GetSerial()) > maxString || m.GetPriority() > 255 || m.GetMonitorsUp() < 0 || m.GetMonitorsUp() > 1<<16 ||
		m.GetAgeMs() > uint64(maxAge/time.Millisecond) || m.GetPenalty() > maxPenalty || m.GetOverrideWaitS() > 3600 {
		return Election{}, errors.New("election values out of range")
	}
	handed := HandedNot
	if m.GetHanded() <= uint32(handedMax) { // a newer build may know more reasons
		handed = Handed(m.GetHanded())
	}
	return Election{
		Penalty: int(m.GetPenalty()), Handed: handed, OverrideWait: time.Duration(m.GetOverrideWaitS()) * time.Second,
		MonitorsUp: int(m.GetMonitorsUp()), Age: time.Duration(m.GetAgeMs()) * time.Millisecond, Priority: int(m.GetPriority()),
		Override: m.GetOverride(), Serial: m.GetSerial(), Failover: m.GetFailover(),
	}, nil
}

// AnnounceToProto encodes an Announce.
func AnnounceToProto(a Announce) *clusterpb.Announce {
	return &clusterpb.Announce{
		Role: uint32(a.Role), Epoch: EpochToProto(a.Epoch), Election: ElectionToProto(a.Election),
		Coverage: uint32(a.Coverage), Chosen: uint32(a.Chosen), Owned: TenuresToProto(a.Owned), Vclusters: packVClusters(a.VClusters),
	}
}

// AnnounceFromProto decodes it and checks ranges.
func AnnounceFromProto(m *clusterpb.Announce) (Announce, error) {
	e, err := EpochFromProto(m.GetEpoch())
	el, err2 := ElectionFromProto(m.GetElection())
	owned, err3 := TenuresFromProto(m.GetOwned())
	vclusters, err4 := unpackVClusters(m.GetVclusters())
	if err := errors.Join(err, err2, err3, err4); err != nil {
		return Announce{}, err
	}
	if m.GetRole() > uint32(RoleOwner) || m.GetCoverage() > uint32(CoverageLost) || m.GetChosen() > maxNode {
		return Announce{}, errors.New("role, coverage or choice out of range")
	}
	return Announce{Role: Role(m.GetRole()), Epoch: e, Election: el, Coverage: Coverage(m.GetCoverage()), Chosen: NodeID(m.GetChosen()), Owned: owned, VClusters: vclusters}, nil
}
