package raftauth

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

const (
	witnessFile  = "witness-members.json"
	whoTimeout   = time.Second
	whoEvery     = 250 * time.Millisecond // until every member's number is known
	whoAgain     = 30 * time.Second       // a member that was replaced may have another number
	witnessUnfit = "this build does not understand the log that the members have agreed on: upgrade the witness"
)

// WitnessOptions configure RunWitness.
type WitnessOptions struct {
	Identity *cluster.Identity // of cluster.LoadWitness
	StateDir string            // for the log, which holds no key and no tunnel
	Listen   netip.AddrPort    // TCP, where the members' configuration says; port 0: any
	Members  []netip.AddrPort  // where all members' logs listen
	Log      *slog.Logger
	// Listening, if not nil, is told where.
	Listening func(net.Addr)
}

// witnessed is a running witness.
type witnessed struct {
	o       WitnessOptions
	at      sync.Map // fsm.NodeID → netip.AddrPort
	tcp     *StreamLayer
	node    *Node
	unfit   chan error
	decided chan struct{}
	said    map[netip.AddrPort]string // what was wrong with whom, once
}

// RunWitness votes until the context ends. It learns the members' numbers from their
// certificates, and remembers them for a start at which nobody answers.
func RunWitness(ctx context.Context, o WitnessOptions) (err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Members) < 2 || len(o.Members) > fsm.MaxNodes-1 {
		return fmt.Errorf("a witness needs 2 to %d members, not %d", fsm.MaxNodes-1, len(o.Members))
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("state-dir: %w", err)
	}
	l, err := net.Listen("tcp", o.Listen.String())
	if err != nil {
		return fmt.Errorf("the members' log: %w", err)
	}
	if o.Listening != nil {
		o.Listening(l.Addr())
	}
	w := &witnessed{o: o, unfit: make(chan error, 1), decided: make(chan struct{}, 1), said: map[netip.AddrPort]string{}}
	w.tcp = NewStreamLayer(o.Identity, l, w.resolve, o.Log)
	defer func() { err = errors.Join(err, w.tcp.Close()) }()
	w.recall()
	o.Log.Info("witness listens", "node", o.Identity.Node, "name", o.Identity.Name, "group", o.Identity.Group, "address", l.Addr().String())
	if !w.meet(ctx) {
		return nil
	}
	if err := w.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(w.node.Close(), err) }()
	return w.follow(ctx)
}

func (w *witnessed) resolve(n fsm.NodeID) (string, bool) {
	a, ok := w.at.Load(n)
	if !ok {
		return "", false
	}
	return a.(netip.AddrPort).String(), true
}

func (w *witnessed) known() map[fsm.NodeID]netip.AddrPort {
	m := map[fsm.NodeID]netip.AddrPort{}
	w.at.Range(func(n, a any) bool {
		m[n.(fsm.NodeID)] = a.(netip.AddrPort)
		return true
	})
	return m
}

// recall takes up what an earlier life learnt.
func (w *witnessed) recall() {
	var m map[fsm.NodeID]netip.AddrPort
	b, err := os.ReadFile(filepath.Join(w.o.StateDir, witnessFile))
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.o.Log.Warn("the members' numbers are learnt anew", "file", witnessFile, "error", err)
	}
	for n, a := range m {
		if slices.Contains(w.o.Members, a) && n != fsm.NodeID(w.o.Identity.Node) {
			w.at.Store(n, a)
		}
	}
}

// ask learns who listens at an address, and says whether that is news.
func (w *witnessed) ask(ctx context.Context, at netip.AddrPort) (changed bool) {
	ctx, cancel := context.WithTimeout(ctx, whoTimeout)
	defer cancel()
	n, err := w.tcp.Who(ctx, at.String())
	if err != nil {
		var away net.Error
		if text := err.Error(); errors.As(err, &away) || ctx.Err() != nil {
			w.o.Log.Debug("a member does not answer", "address", at.String(), "error", err)
		} else if w.said[at] != text {
			w.said[at] = text
			w.o.Log.Warn("who answers is no member", "address", at.String(), "error", err)
		}
		return false
	}
	if old, ok := w.at.Load(n); ok && old == at {
		return false
	}
	for m, a := range w.known() {
		if a == at {
			w.at.Delete(m)
		}
	}
	w.at.Store(n, at)
	w.o.Log.Info("member met", "node", n, "address", at.String())
	b, err := json.Marshal(w.known())
	if err == nil {
		path := filepath.Join(w.o.StateDir, witnessFile)
		if err = os.WriteFile(path+".new", b, 0o600); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		w.o.Log.Warn("the members' numbers could not be kept", "error", err)
	}
	return true
}

// meet waits until every member's number is known; false: the context has ended.
func (w *witnessed) meet(ctx context.Context) bool {
	said := false
	for len(w.known()) < len(w.o.Members) {
		known := slices.Collect(maps.Values(w.known()))
		for _, a := range w.o.Members {
			if !slices.Contains(known, a) {
				w.ask(ctx, a)
			}
		}
		missing := len(w.o.Members) - len(w.known())
		if missing == 0 {
			break
		}
		if !said {
			said = true
			w.o.Log.Info("waiting for members: nothing is decided before all have been met once", "missing", missing)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(whoEvery):
		}
	}
	return true
}

func (w *witnessed) open() error {
	self := fsm.NodeID(w.o.Identity.Node)
	all := append(slices.Collect(maps.Keys(w.known())), self)
	slices.Sort(all)
	disk, err := OpenDisk(w.o.StateDir, Logger(w.o.Log))
	if err != nil {
		return err
	}
	var process [8]byte
	_, _ = rand.Read(process[:]) // never fails since Go 1.24
	w.node, err = New(Options{
		Self: self, Name: w.o.Identity.Name, Witness: true, Process: binary.BigEndian.Uint64(process[:]) | 1,
		Voters: Voters(all, self), Members: all, Standbys: DefaultStandbys,
		Disk: disk, Transport: w.tcp.Transport(w.o.Log), Peers: w.tcp, Log: w.o.Log, Notify: w.notify,
	})
	if err != nil {
		return errors.Join(err, disk.Close())
	}
	w.tcp.Serve(w.node.Answer)
	w.o.Log.Info("witness votes", "members", all, "voters", Voters(all, self))
	return nil
}

// notify is called by the log, from several goroutines.
func (w *witnessed) notify(e Event) {
	if e.Unfit != nil {
		select {
		case w.unfit <- fmt.Errorf("%s: %w", witnessUnfit, e.Unfit):
		default:
		}
	}
	if e.Changed != nil {
		poke(w.decided)
	}
}

// follow says who leads, and looks now and then whether the members are who they were.
func (w *witnessed) follow(ctx context.Context) error {
	look := time.NewTicker(HeartbeatTimeout)
	defer look.Stop()
	again := time.NewTicker(whoAgain)
	defer again.Stop()
	leader, joined := fsm.NodeID(0), false
	for {
		select {
		case <-ctx.Done():
			w.o.Log.Info("witness stops", "node", w.o.Identity.Node)
			return nil
		case err := <-w.unfit:
			return err
		case <-again.C:
			for _, a := range w.o.Members {
				w.ask(ctx, a)
			}
		case <-w.decided:
		case <-look.C:
		}
		if j := w.node.Joined(); j != joined {
			joined = j
			w.o.Log.Info("witness in the log", "joined", j)
		}
		if l := w.node.Leader(); l != leader {
			leader = l
			w.o.Log.Info("leader of the log", "node", strconv.Itoa(int(l)))
		}
	}
}
