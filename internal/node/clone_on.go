//go:build breakpoints

package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/ipsec"
	"tandem/proto/syncpb"
)

// cloneFrom is from where the instances of clones are numbered, above all that peers made.
const cloneFrom = 1 << 20

// cloneLag is how far a sync set may be behind.
const cloneLag = 10 * time.Millisecond

// Clone makes up to n tunnels more in each scope that this member owns, out of records
// of tunnels that stand there: other SPIs, other keys, other addresses, the same in all
// else. They come the way that the other side's state comes at healing, so each is put
// into the journal, is acknowledged by the sync set, and is installed here and there like
// any other. For measurements of many tunnels; nobody is at their other end.
func (f *Farm) Clone(now time.Time, n int) (made int, err error) {
	owner := false
	for _, id := range f.order {
		f.with(id, func(x *Node) {
			if !x.owner || x.handing != nil {
				return
			}
			owner = true
			for _, m := range x.journal.SyncSet() {
				if x.journal.Lag(now, m) > cloneLag {
					return
				}
			}
			var k int
			if k, err = x.clone(now, id, n); err == nil {
				made += k
				x.pump(now)
			}
		})
		if err != nil {
			return made, err
		}
	}
	if !owner {
		return made, errors.New("nothing is owned here")
	}
	return made, nil
}

func (n *Node) clone(now time.Time, id cluster.ScopeID, count int) (int, error) {
	spis := slices.Sorted(maps.Keys(n.sas))
	if len(spis) == 0 {
		return 0, fmt.Errorf("%v: no tunnel to make others of", id)
	}
	if n.models == nil {
		for _, x := range n.ike.Snapshot(now) {
			if p := new(syncpb.IKESA); proto.Unmarshal(x.Value, p) == nil && len(p.Children) == 1 && p.Outstanding == nil && p.Dialup {
				n.models = append(n.models, p)
			}
		}
		if len(n.models) == 0 {
			return 0, fmt.Errorf("%v: no tunnel at rest to make others of", id)
		}
	}
	var entries []ike.Entry
	for range count {
		entries = append(entries, n.vary(proto.Clone(n.models[n.cloned%len(n.models)]).(*syncpb.IKESA), int(id)%shares))
		n.cloned++
	}
	n.resume(now)
	n.ike.Unite(now, entries)
	return count, nil
}

// vary makes another tunnel of a record.
func (n *Node) vary(p *syncpb.IKESA, part int) ike.Entry {
	share := func(v uint64) uint64 { return v - v%shares + uint64(part) }
	again := func(b []byte) { n.random(b) }
	p.Index = uint32(part + shares*(cloneFrom/shares+n.cloned))
	p.Tunnel = p.Phase1 + "_" + strconv.Itoa(int(p.Index))
	p.SpiI, p.SpiR = n.number64(), share(n.number64())
	if p.Initiator {
		p.SpiI, p.SpiR = p.SpiR, p.SpiI
	}
	key := n.ledger.New()
	p.KeyId = uint64(key)
	for _, b := range [][]byte{p.Keys.D, p.Keys.Ai, p.Keys.Ar, p.Keys.Ei, p.Keys.Er, p.Keys.Pi, p.Keys.Pr} {
		again(b)
	}
	outer := number(10<<24|128<<16, n.cloned*shares+part)
	p.Remote.Address = outer
	if len(p.PeerId) == 4 {
		p.PeerId = outer
	}
	inner := number(11<<24, n.cloned*shares+part)
	c := p.Children[0]
	c.SpiIn, c.SpiOut, c.KeyId = uint32(share(n.number64()>>32|256)), uint32(n.number64()>>32|256), uint64(key)
	for _, b := range [][]byte{c.EncrIn, c.SaltIn, c.IntegIn, c.EncrOut, c.SaltOut, c.IntegOut} {
		again(b)
	}
	for _, t := range c.TsRemote {
		t.Start, t.End = inner, inner
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil {
		panic("node: a record does not encode: " + err.Error())
	}
	return ike.Entry{SPIs: ipsec.IKESPIs{I: ipsec.IKESPI(p.SpiI), R: ipsec.IKESPI(p.SpiR)}, Value: b,
		KeyIDs: []ipsec.KeyID{key}, ChildSPIs: []ipsec.ESPSPI{ipsec.ESPSPI(c.SpiIn)}}
}

// number is the k-th address after base.
func number(base uint32, k int) []byte {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], base+uint32(k))
	return netip.AddrFrom4(b).AsSlice()
}

func (n *Node) random(b []byte) {
	if _, err := io.ReadFull(n.opt.Rand, b); err != nil {
		panic("node: no randomness: " + err.Error())
	}
}

func (n *Node) number64() uint64 {
	var b [8]byte
	n.random(b[:])
	return binary.BigEndian.Uint64(b[:]) | 1<<63
}

// testBuild is what a test build's node has beside.
type testBuild struct {
	models []*syncpb.IKESA // of tunnels, to be cloned
	cloned int
}

// Held is what this member holds: Child SAs that it owns and stands by for, and whether
// that is all that it shall: its scopes are stood by for, its copies are whole and count.
func (f *Farm) Held(now time.Time) (owned, standby int, whole bool) {
	whole = len(f.order) > 0
	for _, s := range f.decided.Scopes() {
		n := f.scopes[s.ID]
		if n == nil || !f.concerns(s) {
			whole = whole && !f.concerns(s)
			continue
		}
		st := n.slot.Status(now)
		whole = whole && st.Synchronised
		if n.owner {
			owned += len(n.sas)
		} else {
			standby += len(n.sas)
		}
	}
	return owned, standby, whole
}
