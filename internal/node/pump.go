package node

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/ipsec"
	statesync "tandem/sync"
	"tandem/xfrm"
)

// errUniting refuses a copy that would replace what the owner has not seen yet.
var errUniting = fmt.Errorf("%w: this node owes its own state first", statesync.ErrGap)

var errStandalone = errors.New("this gateway is standalone: no cluster is configured (config system ha)")

// pump lets the cores talk to each other until none has anything left to say.
func (n *Node) pump(now time.Time) {
	n.framed = false
	for {
		if n.authority != nil {
			if e, ok := n.authority.Poll(); ok {
				n.authorityEffect(now, e)
				continue
			}
		}
		if e, ok := n.ike.Poll(); ok {
			n.ikeEffect(now, e)
			continue
		}
		if e, ok := n.replica.Poll(); ok {
			n.replicaEffect(now, e)
			continue
		}
		if len(n.wanted) > 0 {
			n.journal.SetBounds(now, n.wanted)
			n.wanted = nil
		}
		if e, ok := n.journal.Poll(); ok {
			n.journalEffect(now, e)
			continue
		}
		return
	}
}

func (n *Node) ikeEffect(now time.Time, e ike.Effect) {
	switch e := e.(type) {
	case ike.Persist:
		entries := toSync(e.Record.Entries)
		n.changed(entries)
		n.journal.Append(now, uint64(e.Ticket), entries)
	case ike.Install:
		n.install(e)
	case ike.SetOutbound:
		n.emit(SetOutbound{e.SPIIn, e.Use})
	case ike.SetPeer:
		n.emit(SetPeer{e.SPIIn, e.Local, e.Remote, e.UDPEncap, e.TCP})
	case ike.Remove:
		n.remove(e)
	case ike.Skip:
		n.skip(e)
	case ike.Detach:
		if e.Done {
			n.unroute(e.SPIIn)
		} else {
			n.detach(e.SPIIn)
		}
	case ike.Pointer:
		n.emit(pointed{e})
	case ike.Moved:
		n.emit(movedAway{e.SPIs, cluster.ScopeID(e.To), now})
	case ike.Adopted:
		n.emit(movedHere{e.SPIs, cluster.ScopeID(e.From), e.Children, now})
	case ike.InitialContact:
		n.emit(initialContact{e, now})
	case ike.PeerAddress:
		n.peerReach(reach{AddRoute: AddRoute{e.Phase1, netip.PrefixFrom(e.Addr, e.Addr.BitLen())}}, e.Gone)
	case ike.OwnAddress:
		n.ownAddress(e)
	case ike.Log:
		n.lines.Emit(Log{e.Level, e.Message, e.Attrs})
	default: // Send, SendKeepalive, KeyLog
		n.emit(e)
	}
}

func (n *Node) journalEffect(now time.Time, e statesync.Effect) {
	switch e := e.(type) {
	case statesync.Committed:
		n.ike.Committed(now, ike.Ticket(e.Ticket))
	case statesync.BoundsEffective:
		n.emit(SetBounds{e.Bounds})
		n.answered(now, e.Bounds)
	case statesync.Entered:
		// Whoever copied from us brings nothing back.
		maps.DeleteFunc(n.buried, func(_ ipsec.ESPSPI, b burial) bool { return !b.awaited })
		n.poolFollowed(e.Node)
		n.authority.HandleEntered(now, e.Node)
	case statesync.HandedOver:
		n.handing = nil
		n.authority.HandleHandedOver(now, e.Node, true)
	case statesync.United:
		if n.slot != nil {
			n.slot.HandleUnited(now, e.Node)
		}
	case statesync.Overflow:
		n.log(slog.LevelWarn, "HA member too slow, copying anew", slog.Any("node", e.Node))
		n.authority.HandleLag(now, e.Node, time.Hour)
	case statesync.CopyStalled:
		n.log(slog.LevelWarn, "HA copy not acknowledged, copying anew", slog.Any("node", e.Node))
		n.authority.HandleLag(now, e.Node, time.Hour)
	case statesync.RenewedBy:
		if n.slot != nil { // a pair begins a new sync set instead
			n.slot.HandleRenewed(now, e.Node)
		}
	default: // SendFrame
		n.emit(e)
	}
}

func (n *Node) replicaEffect(now time.Time, e statesync.Effect) {
	switch e := e.(type) {
	case statesync.CopyBegins:
		n.ike.BeginCopy()
		if n.slot != nil {
			n.spare, n.dropAt = false, time.Time{}
			n.slot.HandleCopying(now, e.Epoch)
		}
	case statesync.ApplyRecord:
		n.journal.Bury(now, ended(e.Entries))
		n.ike.Apply(now, ike.Record{Entries: toIKE(e.Entries)})
	case statesync.ApplyBounds:
		n.applyBounds(e.Bounds)
	case statesync.CopyComplete:
		n.poolCopied()
		clear(n.buried) // told, if anybody wanted to know
		n.ike.EndCopy()
		n.authority.HandleCopied(now, e.Epoch)
	case statesync.Renewed:
		n.authority.HandleCopied(now, e.Epoch)
	case statesync.HandoverReceived:
		n.windows = e.Windows
		n.authority.HandleHandover(now, e.Epoch)
	case statesync.UniteReceived:
		n.unite(now, e)
	case statesync.LetterReceived:
		n.emit(letterHere{e, now})
	default: // SendAck
		n.emit(e)
	}
}

func toIKE(in []statesync.Entry) []ike.Entry {
	out := make([]ike.Entry, len(in))
	for i, x := range in {
		out[i] = ike.Entry(x)
	}
	return out
}

func (n *Node) authorityEffect(now time.Time, e cluster.Effect) {
	switch e := e.(type) {
	case cluster.Own:
		n.own(now, e)
	case cluster.Disown:
		n.disown(now, e)
	case cluster.Reassert:
		n.emit(Reassert{n.scope})
	case cluster.Join:
		n.join(now, e)
	case cluster.Leave:
		delete(n.lagging, e.Node)
		n.stopCopy(e.Node)
		n.poolUnfollowed()
		n.journal.Leave(now, e.Node)
	case cluster.Renew:
		n.stopCopies() // whoever was joining is taken in anew
		if len(e.Stay) == 0 {
			n.poolUnfollowed()
		}
		n.journal.Renew(now, e.Epoch, e.Stay)
	case cluster.HandOver:
		n.handOver(now, e)
	case cluster.Unite:
		n.journal.Unite(now, e.Owner, n.peers[e.Owner], toSync(n.ike.Snapshot(now)), append(n.bounds(), n.buriedBounds()...), n.journal.Tombstones())
	case cluster.RekeyEarly:
		n.log(slog.LevelWarn, "rekeying early", slog.String("reason", e.Reason))
		n.resume(now)
		n.ike.RekeyAll(now, e.Reason)
	default: // Announce, Entitle, Claim, AskRemoval, WriteNote, Alarm, Propose, Stopped
		n.emit(e)
	}
}

// ended are the IKE SAs of a record whose deletion the peer authenticated.
func ended(in []statesync.Entry) (out []ipsec.IKESPIs) {
	for _, x := range in {
		if len(x.Value) == 0 && x.PeerDeleted {
			out = append(out, x.SPIs)
		}
	}
	return out
}

// living leaves out what the peer has ended here, also where the other side still awaits
// the SPI of that peer.
func living(in []statesync.Entry, tombstones []ipsec.IKESPIs) (out []ike.Entry) {
	dead := map[ipsec.IKESPIs]bool{}
	for _, s := range tombstones {
		dead[s], dead[ipsec.IKESPIs{I: s.I}] = true, true
	}
	for _, x := range in {
		if !dead[x.SPIs] {
			out = append(out, ike.Entry(x))
		}
	}
	return out
}

// unite takes over the state of the other side of a split. Bounds start above
// both sides' maxima, which one silent moment makes true for every SA at once.
func (n *Node) unite(now time.Time, u statesync.UniteReceived) {
	if !n.owner {
		return
	}
	entries := living(u.Entries, n.journal.Tombstones())
	for _, s := range u.Tombstones {
		entries = append(entries, ike.Entry{SPIs: s, PeerDeleted: true})
	}
	n.journal.Bury(now, u.Tombstones)
	n.resume(now)
	n.emit(Deactivate{n.scope})
	var raised []xfrm.Bound
	for _, b := range u.Bounds {
		sa := n.sas[b.SPIIn]
		if sa == nil { // it is about to come, or to come back
			was := n.buried[b.SPIIn]
			if p := was.bound(b.Dir); b.N > *p {
				*p, was.awaited = b.N, true
				n.buried[b.SPIIn] = was
			}
			continue
		}
		// One that was asked for here, and is not effective yet, says nothing of what lies below.
		if p := sa.bound(b.Dir); b.N > *p || sa.asked > 0 {
			b.N = max(b.N, *p)
			*p = b.N
			raised = append(raised, b)
		}
	}
	if len(raised) > 0 {
		// Skipping numbers is always safe, and need not wait for anybody.
		n.emit(SetBounds{raised})
	}
	n.ike.Unite(now, entries)
	n.drain(now)
	n.wanted = append(n.wanted, raised...)
	n.journal.SetBounds(now, n.wanted)
	n.wanted = nil
	n.told = n.journal.Mark()
	n.drain(now)
	n.emit(Activate{n.scope})
	n.emit(Claim{n.scope}) // once more, now that the other owner has surely released the addresses
	if n.coverage() != cluster.CoverageProven {
		// The other side may have succeeded the life of this node that left the note.
		n.ike.RekeyAll(now, "an earlier life of this node may have gone on alone with these SAs")
	}
}
