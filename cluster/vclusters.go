package cluster

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tandem/cluster/fsm"
)

// VCluster is what a node's heartbeats say of one virtual cluster: of its scope what
// role, epoch, election, coverage and choice of an Announce say of a pair's one scope.
type VCluster struct {
	Scope    ScopeID
	Role     Role
	Epoch    Epoch
	Election Election // without Serial, which is the node's
	Coverage Coverage
	Chosen   NodeID
}

// maxVClusters bounds the virtual clusters of a node: 1 to 30.
const maxVClusters = fsm.MaxVClusters - 1

// ofScope is an Announce of scope 0 as one of another scope.
func (a Announce) ofScope(s ScopeID) Announce {
	if s == 0 {
		return a
	}
	v := VCluster{Scope: s, Role: a.Role, Epoch: a.Epoch, Election: a.Election, Coverage: a.Coverage, Chosen: a.Chosen}
	v.Election.Serial = ""
	out := Announce{Election: Election{Serial: a.Election.Serial}, VClusters: []VCluster{v}}
	if a.Role == RoleOwner {
		out.Owned = []Tenure{{s, a.Epoch}}
	}
	return out
}

// AnnounceTogether is what a node says that has several virtual clusters, from what each says;
// by scope.
func AnnounceTogether(all []Announce) (a Announce) {
	for _, x := range all {
		a.Election.Serial = x.Election.Serial
		a.VClusters = append(a.VClusters, x.VClusters...)
		a.Owned = append(a.Owned, x.Owned...)
	}
	for _, v := range a.VClusters {
		a.Coverage = max(a.Coverage, v.Coverage)
	}
	return a
}

// Of is what a peer's heartbeats say of one virtual cluster, as of a pair's one scope.
// Where the peer does not have it, Role is RoleNone and Epoch zero, and ok is false.
func (x Peer) Of(s ScopeID) (p Peer, ok bool) {
	p = x
	p.Role, p.Epoch, p.Entitled, p.Chosen = RoleNone, Epoch{}, false, 0
	p.Election = Election{Serial: x.Election.Serial}
	p.Owned, p.EntitledTo, p.VClusters = nil, nil, nil
	for _, v := range x.VClusters {
		if v.Scope == s {
			p.Role, p.Epoch, p.Chosen, p.Coverage, p.Election = v.Role, v.Epoch, v.Chosen, v.Coverage, v.Election
			p.Election.Serial = x.Election.Serial
			ok = true
		}
	}
	p.Entitled = epochIn(x.EntitledTo, s) != Epoch{}
	return p, ok
}

// aged are the virtual clusters with their ages carried forward.
func aged(vs []VCluster, by time.Duration) []VCluster {
	out := slices.Clone(vs)
	for i := range out {
		out[i].Election.Age += by
	}
	return out
}

// sameVClusters compares all but the ages, which only tell what is known.
func sameVClusters(a, b []VCluster) bool {
	return slices.EqualFunc(a, b, func(a, b VCluster) bool {
		a.Election.Age = b.Election.Age
		return a == b
	})
}

const (
	vclusterNumbers = 8
	flagBits        = 6 // role 2, coverage 2, override, failover
	epochNodeBits   = 5
	handedBits      = 4
	waitBits        = 12 // override-wait-time, seconds
)

// packVClusters writes virtual clusters in the order of their scopes; with thirty of
// them all has to fit a heartbeat.
func packVClusters(vs []VCluster) []uint64 {
	var p packer
	var age uint64
	for _, v := range vs {
		flags := uint64(v.Role) | uint64(v.Coverage)<<2
		if v.Election.Override {
			flags |= 1 << 4
		}
		if v.Election.Failover {
			flags |= 1 << 5
		}
		p.rising(uint64(v.Scope), flagBits, flags)
		p.put(uint64(v.Epoch.Node) | uint64(v.Chosen)<<epochNodeBits)
		p.counter(v.Epoch.Counter)
		p.put(uint64(v.Election.MonitorsUp))
		p.put(uint64(v.Election.Priority))
		ms := uint64(min(max(v.Election.Age, 0), maxAge) / time.Millisecond)
		p.put(zigzag(ms - age))
		age = ms
		penalty := uint64(min(max(v.Election.Penalty, 0), maxPenalty))
		p.put((penalty<<waitBits|uint64(v.Election.OverrideWait/time.Second))<<handedBits | uint64(v.Election.Handed))
	}
	return p.out
}

// unpackVClusters reads what packVClusters wrote, and checks every range.
func unpackVClusters(list []uint64) (out []VCluster, err error) {
	if len(list)%vclusterNumbers != 0 || len(list)/vclusterNumbers > maxVClusters {
		return nil, fmt.Errorf("virtual clusters: list of %d numbers", len(list))
	}
	u := unpacker{in: list}
	var age uint64
	for u.next() {
		place, flags := u.rising(flagBits)
		who := u.take()
		v := VCluster{Role: Role(flags & 3), Coverage: Coverage(flags >> 2 & 3)}
		if place > maxVClusters {
			u.fail("there is no virtual cluster %d", place)
		} else {
			v.Scope = ScopeID(place)
		}
		if who>>(2*epochNodeBits) != 0 {
			u.fail("node out of range")
		}
		node, chosen := NodeID(who&(1<<epochNodeBits-1)), NodeID(who>>epochNodeBits)
		v.Epoch, v.Chosen = u.epochOrNone(node), chosen
		monitors, priority := u.take(), u.take()
		age += unzigzag(u.take())
		rest := u.take()
		handed, wait, penalty := Handed(rest&(1<<handedBits-1)), rest>>handedBits&(1<<waitBits-1), rest>>(handedBits+waitBits)
		if handed > handedMax { // a newer build may know more reasons
			handed = HandedNot
		}
		if v.Role > RoleOwner || v.Coverage > CoverageLost || chosen > maxNode || monitors > 1<<16 || priority > 255 ||
			age > uint64(maxAge/time.Millisecond) || wait > 3600 || penalty > maxPenalty || v.Role == RoleOwner && v.Epoch == (Epoch{}) {
			u.fail("virtual cluster %d: values out of range", place)
		} else {
			v.Election = Election{
				MonitorsUp: int(monitors), Age: time.Duration(age) * time.Millisecond, Priority: int(priority),
				Override: flags>>4&1 != 0, Failover: flags>>5 != 0,
				Penalty: int(penalty), Handed: handed, OverrideWait: time.Duration(wait) * time.Second,
			}
		}
		out = append(out, v)
	}
	if u.err != nil {
		return nil, u.err
	}
	return out, nil
}

// epochOrNone reads an epoch that may be zero.
func (u *unpacker) epochOrNone(n NodeID) Epoch {
	if n == 0 {
		u.term += unzigzag(u.take())
		if local := u.take(); u.term != 0 || local != 0 {
			u.fail("an epoch of nobody")
		}
		return Epoch{}
	}
	return u.epoch(n)
}

// VClustersToProto encodes virtual clusters for a message between guardian and daemon.
func VClustersToProto(vs []VCluster) []uint64 { return packVClusters(vs) }

// errNotOwned is a virtual cluster whose sender says that it owns it, and does not list it.
var errNotOwned = errors.New("a virtual cluster is owned and not listed")

// checkVClusters compares what is said twice.
func checkVClusters(owned []Tenure, vs []VCluster) error {
	for _, v := range vs {
		if at := epochIn(owned, v.Scope); v.Role == RoleOwner && at != v.Epoch || v.Role != RoleOwner && at != (Epoch{}) {
			return errNotOwned
		}
	}
	return nil
}
