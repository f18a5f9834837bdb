// Package raftauth agrees on a farm's state with hashicorp/raft: one group, three
// or five voters, everybody else a non-voter that only learns. A witness is a voter
// that holds no tunnel. See cluster/fsm for what is decided, and DESIGN.md.
package raftauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"tandem/cluster/fsm"
	"tandem/internal/quiet"
	"tandem/proto/clusterpb"
)

const (
	// HeartbeatTimeout is Raft's, for heartbeats and elections; a leader's lease is half of it.
	HeartbeatTimeout = 100 * time.Millisecond

	diskPatience  = 300 * time.Millisecond // how long a leader's disk may take
	watchEvery    = 50 * time.Millisecond
	quorumGrace   = 500 * time.Millisecond // without a leader: longer than two elections
	callTimeout   = 250 * time.Millisecond // of one attempt to reach the leader
	commitTimeout = 500 * time.Millisecond
	snapshotEvery = 30 * time.Second
	snapshotAfter = 1024 // entries
	trailing      = 1024
	keepEvery     = 200 * time.Millisecond
	// commitSpread is how soon a follower learns, at the latest at twice that, that what
	// it holds is committed. Raft asks each that often even while nothing happens.
	commitSpread  = 20 * time.Millisecond
	sayAgain      = 10 * time.Second
	witnessLeads  = 2 * time.Second       // between attempts of a witness to hand over
	maxPatience   = 10 * time.Second      // between attempts to join that are refused
	campaignAfter = 60 * time.Millisecond // each candidate after the one before, when a leader is lost
)

const (
	// DefaultPort is the TCP port of the members' log.
	DefaultPort = 709
	// DefaultStandbys is how many stand by for each slot, where there are so many.
	DefaultStandbys = 2
)

// Options configure a Node.
type Options struct {
	Self    fsm.NodeID
	Name    string
	Witness bool
	Aside   bool   // a member that synchronises no tunnel: it owns nothing and stands by for nothing
	Process uint64 // of the daemon, as in its heartbeats
	Floor   uint64 // the highest epoch counter that this node ever made or saw
	Site    fsm.Site
	// Voters are the three or five that should vote, the same list on every member.
	Voters []fsm.NodeID
	// Members are all that may be asked for the leader, voters or not.
	Members []fsm.NodeID
	// Standbys for each slot; 0: this is no FGSP farm and the leader plans nothing.
	Standbys  int
	Disk      *Disk
	Transport raft.Transport
	Peers     Peers
	Log       *slog.Logger
	// Notify is called from several goroutines and must not block.
	Notify func(Event)
	// MinVersion and MaxVersion of the log; 0: those of this build.
	MinVersion, MaxVersion uint32
	DiskPatience           time.Duration // 0: the default
}

// Voters chooses who votes: three, or five of five and more, the lowest numbers. A
// witness (0: none) always does: that is what it is for. Every member comes to the
// same list.
func Voters(all []fsm.NodeID, witness fsm.NodeID) []fsm.NodeID {
	list := slices.Sorted(slices.Values(all))
	count := 3
	if len(list) >= 5 {
		count = 5
	}
	voters := list[:min(count, len(list))]
	if witness != 0 && !slices.Contains(voters, witness) {
		voters[len(voters)-1] = witness
	}
	return voters
}

// Peers reaches other members beside Raft; StreamLayer is one.
type Peers interface {
	Call(ctx context.Context, to fsm.NodeID, c *clusterpb.RaftCall) (*clusterpb.RaftAnswer, error)
}

// Event tells of a change; exactly one of the fields is set.
type Event struct {
	Changed *Changed
	Quorum  *Quorum
	Disk    *DiskState
	// Unfit: this build does not understand the log that the others have agreed on; it must stop.
	Unfit error
}

// Changed: the state has changed; Scopes are those that did (nil with a restored snapshot: any).
type Changed struct {
	Index  uint64
	Scopes []fsm.ScopeID
}

// Quorum was lost (no leader for half a second) or is there again. With Stop, the
// member should stop what it owns.
type Quorum struct{ Has, Stop bool }

// DiskState: the disk of the log hangs, or answers again.
type DiskState struct{ Stalled bool }

// Node is one member of the group.
type Node struct {
	opt  Options
	r    *raft.Raft
	gate *gate
	m    *machine
	disk diskWatch

	holdings *Holdings
	store    uint64
	fresh    bool // the disk was blank when this process began
	admitted atomic.Bool
	unfit    atomic.Bool

	proposing sync.Mutex // one at a time, so that they are decided in the order of their numbers
	life, seq uint64     // guarded by proposing

	refused bool // something that serve proposed; only serve looks at it

	kick   chan struct{} // the state has changed
	keepCh chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// ErrNoLeader: nothing was decided as far as is known; the command may yet be.
var ErrNoLeader = errors.New("no leader answers")

func serverID(n fsm.NodeID) raft.ServerID { return raft.ServerID(strconv.Itoa(int(n))) }

// Address is a member's address in Raft's eyes: its number. Where it really is, the
// transport knows from the configuration; so a new address needs no decision.
func Address(n fsm.NodeID) raft.ServerAddress {
	return raft.ServerAddress(strconv.Itoa(int(n)))
}

func nodeOf[T ~string](s T) fsm.NodeID {
	n, err := strconv.Atoi(string(s))
	if err != nil || n < 1 || n > fsm.MaxNodes {
		return 0
	}
	return fsm.NodeID(n)
}

// New starts the member. It takes part at once; the first group is formed when all
// voters have met and none of their disks knows of a log. The error is fsm.ErrUnfit if
// the disk has a state that this build does not understand.
func New(o Options) (*Node, error) {
	if len(o.Voters) != 1 && len(o.Voters) != 3 && len(o.Voters) != 5 {
		return nil, fmt.Errorf("a group has 3 or 5 voters, not %d", len(o.Voters))
	}
	if o.Witness && !slices.Contains(o.Voters, o.Self) {
		return nil, fmt.Errorf("node %d is a witness and no voter: it would be of no use", o.Self)
	}
	if o.MaxVersion == 0 {
		o.MinVersion, o.MaxVersion = fsm.MinVersion, fsm.MaxVersion
	}
	if o.DiskPatience == 0 {
		o.DiskPatience = diskPatience
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Notify == nil {
		o.Notify = func(Event) {}
	}
	n := &Node{opt: o, kick: make(chan struct{}, 1), keepCh: make(chan struct{}, 1)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	var err error
	if n.store, n.life, err = o.Disk.identity(); err != nil {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	if n.holdings, err = openHoldings(o.Disk.Stable, o.Self, n.store); err != nil {
		return nil, err
	}
	n.m = newMachine(o.MinVersion, o.MaxVersion, n.stateChanged)
	n.m.unfit = n.sayUnfit
	kept, err := stable(o.Disk.Stable, keyState)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	if kept != nil {
		if err := n.m.restore(kept); err != nil {
			return nil, fmt.Errorf("state-dir: %w", err)
		}
	}
	known, err := raft.HasExistingState(o.Disk.Log, o.Disk.Stable, o.Disk.Snapshots)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	n.fresh = !known
	n.admitted.Store(known)

	n.gate = newGate(o.Transport, &n.disk, o.DiskPatience, n.admitted.Load)
	if n.r, err = raft.NewRaft(config(o), n.m, &watchedLog{o.Disk.Log, &n.disk}, o.Disk.Stable, o.Disk.Snapshots, n.gate); err != nil {
		return nil, errors.Join(err, n.gate.Close())
	}
	n.wg.Add(3)
	go n.watch()
	go n.serve()
	go n.keep()
	return n, nil
}

func config(o Options) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = serverID(o.Self)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = HeartbeatTimeout, HeartbeatTimeout, HeartbeatTimeout/2
	c.CommitTimeout = commitSpread
	c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = snapshotEvery, snapshotAfter, trailing
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = Logger(o.Log)
	return c
}

// Logger is a logger for Raft's own words, of which only warnings are kept. Without a
// majority it would say the same some ten times a second; each kind is said every ten.
func Logger(l *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Warn, DisableTime: true, Output: &quiet.Lines{
		Every: sayAgain, Say: func(line string, before int) { l.Info("HA raft", "line", line, "like_it_before", before) },
	}})
}

// Close ends the member. A leader hands over first, so that nobody waits for an election.
func (n *Node) Close() error {
	if n.r.State() == raft.Leader && len(n.View().Voters()) > 1 {
		wait(n.r.LeadershipTransfer(), commitTimeout) // best effort: without it there is an election
	}
	n.cancel()
	err := n.r.Shutdown().Error()
	n.wg.Wait()
	return errors.Join(err, n.gate.Close(), n.opt.Disk.Close())
}

// View is a copy of the state as far as it is known here.
func (n *Node) View() *fsm.Machine {
	_, b := n.m.marshal()
	m := fsm.NewBuild(n.opt.MinVersion, n.opt.MaxVersion)
	// A build that does not understand the log has said so, and knows nothing else to say.
	if err := m.Restore(b[8:]); err != nil && !errors.Is(err, fsm.ErrUnfit) {
		n.opt.Log.Error("the farm's state cannot be read", "error", err)
	}
	return m
}

// Holdings are the marks of this member's ranges.
func (n *Node) Holdings() *Holdings { return n.holdings }

// Usable are the ranges that this process may give out numbers from.
func (n *Node) Usable(s fsm.Space, synchronised bool) []fsm.Range {
	n.holdings.mu.Lock()
	defer n.holdings.mu.Unlock()
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	return n.holdings.h.Usable(n.m.m, s, n.opt.Process, synchronised)
}

// Leader is the present one, 0 if none is known.
func (n *Node) Leader() fsm.NodeID {
	_, id := n.r.LeaderWithID()
	return nodeOf(id)
}

// Joined says whether the state, as far as it is known here, counts this process as a member.
func (n *Node) Joined() bool {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	p, ok := n.m.m.Member(n.opt.Self)
	return ok && p.Process == n.opt.Process && p.State != fsm.Left && !p.Lost
}

func (n *Node) stateChanged(index uint64, scopes []fsm.ScopeID) {
	// The member's own word has been decided after this process began: its log
	// holds all that was decided before.
	if !n.admitted.Load() {
		n.m.mu.Lock()
		p, _ := n.m.m.Member(n.opt.Self)
		n.m.mu.Unlock()
		if p.Process == n.opt.Process && p.Store == n.store {
			n.admitted.Store(true)
		}
	}
	n.m.mu.Lock()
	unfit := n.m.m.Unfit()
	n.m.mu.Unlock()
	if unfit != nil {
		n.sayUnfit(unfit)
		poke(n.keepCh)
		return
	}
	poke(n.kick)
	poke(n.keepCh)
	n.opt.Notify(Event{Changed: &Changed{Index: index, Scopes: scopes}})
}

// sayUnfit tells it once: every entry that follows would tell it again.
func (n *Node) sayUnfit(why error) {
	if !n.unfit.Swap(true) {
		n.opt.Notify(Event{Unfit: why})
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// keep writes the state beside the log, for a start with nobody to ask. It may lag,
// and does not write often: the log waits for the same disk.
func (n *Node) keep() {
	defer n.wg.Done()
	var last uint64
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.keepCh:
		}
		index, b := n.m.marshal()
		if index == last {
			continue
		}
		if err := n.opt.Disk.Stable.Set(keyState, b); err != nil {
			n.opt.Log.Warn("the farm's state cannot be kept", "error", err)
			continue
		}
		last = index
		onDisk := fsm.NewBuild(n.opt.MinVersion, n.opt.MaxVersion)
		if onDisk.Restore(b[8:]) == nil {
			if err := n.holdings.forget(onDisk); err != nil {
				n.opt.Log.Warn("the marks of ranges cannot be written", "error", err)
			}
		}
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(keepEvery):
		}
	}
}
