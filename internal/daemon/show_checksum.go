package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"tandem/cluster"
	"tandem/cluster/revision"
	"tandem/internal/config"
	"tandem/proto/syncpb"
	"tandem/sync/stream"
)

const (
	sumLen      = 16 // bytes of a checksum as it is shown, as FortiOS has it
	maxSums     = 64
	maxSumPath  = 64
	maxNameText = 64
)

// checksums is `diagnose sys ha checksum cluster --json`: every member, this one first.
type checksums struct {
	InSync   bool         `json:"in_sync"`
	Revision uint64       `json:"revision"`
	Members  []memberSums `json:"members"`
}

type memberSums struct {
	Node        uint32    `json:"node"`
	Hostname    string    `json:"hostname"`
	Serial      string    `json:"serial"`
	Primary     bool      `json:"is_manage_primary"`
	State       string    `json:"state"` // in-sync, out-of-sync, aside, old-build, no-answer
	Revision    uint64    `json:"revision"`
	Epoch       uint64    `json:"epoch"`
	EpochNode   uint32    `json:"epoch_node"`
	MadeOn      string    `json:"made_on,omitempty"`
	Fault       string    `json:"fault,omitempty"`
	Running     groupSums `json:"debugzone"`
	File        groupSums `json:"checksum"`
	FileFault   string    `json:"file_fault,omitempty"`
	Differences []string  `json:"differences,omitempty"` // to what the cluster runs
}

// groupSums are FortiOS's three sums, and those that they are made of.
type groupSums struct {
	Global string     `json:"global,omitempty"`
	Root   string     `json:"root,omitempty"`
	All    string     `json:"all,omitempty"`
	Groups []blockSum `json:"groups,omitempty"`
}

type blockSum struct {
	Path string `json:"path"`
	Sum  string `json:"sum"`
}

// sumsOf are the checksums of a configuration for another member to show.
func (r *revisions) sumsOf(c *config.Config) (list []*syncpb.ConfigSum) {
	for _, s := range c.Checksum(r.key) {
		b, err := hex.DecodeString(s.Sum)
		if err != nil || len(b) < sumLen {
			panic("a checksum that is none")
		}
		list = append(list, &syncpb.ConfigSum{Path: s.Path, Sum: b[:sumLen]})
	}
	return list
}

// detail adds what the checksum command shows.
func (r *revisions) detail(m *syncpb.ConfigState) {
	r.mu.Lock()
	running := r.running
	r.mu.Unlock()
	m.Detail = true
	m.Name, m.Serial, m.Owner = r.name(r.c.identity.Node), r.c.identity.Serial, ask(r, (*revision.Keeper).Owns)
	if r.c.farm != nil {
		log := r.c.farm.decider.Load()
		m.Owner = log != nil && log.Leader() == r.c.identity.Node
	}
	m.Sums = r.sumsOf(running)
	if filed, _, err := LoadConfig(r.file); err != nil {
		m.FileFault = revision.Short(err.Error())
	} else {
		m.File = r.sumsOf(filed)
	}
}

var errSums = errors.New("not what a member says of its checksums")

// groupsOf reads checksums from the wire.
func groupsOf(list []*syncpb.ConfigSum) (g groupSums, err error) {
	if len(list) == 0 {
		return g, nil
	}
	if len(list) > maxSums {
		return g, fmt.Errorf("%w: %d blocks", errSums, len(list))
	}
	var all, global, root []byte
	for _, s := range list {
		if len(s.GetPath()) > maxSumPath || len(s.GetSum()) != sumLen || !printable(s.GetPath()) {
			return groupSums{}, errSums
		}
		g.Groups = append(g.Groups, blockSum{s.GetPath(), hexSum(s.GetSum())})
		line := append([]byte(s.GetPath()+"\n"), s.GetSum()...)
		all = append(all, line...)
		if strings.HasPrefix(s.GetPath(), "system ") {
			global = append(global, line...)
		} else {
			root = append(root, line...)
		}
	}
	total := func(b []byte) string {
		h := sha256.Sum256(b) // the parts are keyed
		return hexSum(h[:sumLen])
	}
	g.Global, g.Root, g.All = total(global), total(root), total(all)
	return g, nil
}

func hexSum(b []byte) string { return fmt.Sprintf("% x", b) }

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

// sumsFrom is what a member's answer shows.
func (r *revisions) sumsFrom(n cluster.NodeID, a *syncpb.ConfigState) (m memberSums, d revision.Digest, err error) {
	s, err := revision.OfMessage(a)
	if err != nil {
		return m, d, err
	}
	m = memberSums{Node: uint32(n), Hostname: a.GetName(), Serial: a.GetSerial(), Primary: a.GetOwner(), Fault: s.Fault,
		Revision: s.Have.Number, Epoch: s.Have.Epoch.Counter, EpochNode: uint32(s.Have.Epoch.Node), MadeOn: r.name(s.Have.By), FileFault: revision.Short(a.GetFileFault())}
	if len(m.Hostname) > maxNameText || len(m.Serial) > maxNameText || !printable(m.Hostname+m.Serial) {
		return memberSums{}, d, errSums
	}
	if m.Running, err = groupsOf(a.GetSums()); err == nil {
		m.File, err = groupsOf(a.GetFile())
	}
	if err != nil {
		return memberSums{}, d, err
	}
	if s.Aside {
		m.State = "aside"
	}
	return m, s.Running, nil
}

// checksums asks every member what it runs, and names what is different line by line.
func (r *revisions) checksums(ctx context.Context) (checksums, error) {
	self := r.c.identity.Node
	newest, run := revision.Revision{}, false
	ask(r, func(k *revision.Keeper) bool { newest, run = k.Newest(); return true })
	mine := ask(r, (*revision.Keeper).Mine)
	own := mine.Message()
	r.detail(own)
	members := ask(r, (*revision.Keeper).Members)
	list := make([]memberSums, 1+len(members))
	digests := make([]revision.Digest, len(list))
	var err error
	if list[0], digests[0], err = r.sumsFrom(self, own); err != nil {
		return checksums{}, err
	}
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
			defer cancel()
			q := mine.Message()
			q.Detail = true
			a, err := r.c.streams.e.ConfigState(ctx, m.Node, q)
			if err == nil {
				list[i+1], digests[i+1], err = r.sumsFrom(m.Node, a)
			}
			switch {
			case errors.Is(err, stream.ErrOld):
				list[i+1] = memberSums{Node: uint32(m.Node), Hostname: r.name(m.Node), State: "old-build"}
			case err != nil:
				list[i+1] = memberSums{Node: uint32(m.Node), Hostname: r.name(m.Node), State: "no-answer", Fault: err.Error()}
			}
		})
	}
	wg.Wait()
	// What the others are compared with: what the cluster should run, if anybody does.
	want := mine.Running
	if run {
		want = newest.Digest
	}
	out := checksums{InSync: true, Revision: newest.Number, Members: list}
	var with *config.Config
	for i := range list {
		m := &list[i]
		if m.State != "" {
			out.InSync = out.InSync && m.State == "aside"
			continue
		}
		if m.State = "in-sync"; digests[i] == want && m.Revision == newest.Number {
			continue
		}
		out.InSync, m.State = false, "out-of-sync"
		if digests[i] == want {
			continue
		}
		if with == nil {
			at := slices.Index(digests, want)
			if at < 0 {
				continue
			}
			if with, err = r.textOf(ctx, cluster.NodeID(list[at].Node), want); err != nil {
				m.Differences = []string{err.Error()}
				continue
			}
		}
		has, err := r.textOf(ctx, cluster.NodeID(m.Node), digests[i])
		if err != nil {
			m.Differences = []string{err.Error()}
			continue
		}
		m.Differences = config.Differences(with, has)
	}
	return out, nil
}

// textOf is what a member runs, with this one's own settings.
func (r *revisions) textOf(ctx context.Context, n cluster.NodeID, d revision.Digest) (*config.Config, error) {
	if n == r.c.identity.Node {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.running, nil
	}
	text, err := r.fetch(ctx, n, d)
	if err != nil {
		return nil, err
	}
	c, _, err := r.join("of "+r.name(n), text)
	return c, err
}

func (d *Daemon) checksums(ctx context.Context) (checksums, error) {
	if d.cluster == nil {
		return checksums{}, errors.New("standalone: there is nobody to share the configuration with")
	}
	return d.cluster.revisions.checksums(ctx)
}

// showChecksums is `diagnose sys ha checksum cluster`.
func showChecksums(s *session, _ []string) error {
	c, err := s.d.checksums(s.ctx)
	if err != nil {
		return err
	}
	if s.json {
		return s.printJSON(c)
	}
	for i := range c.Members {
		s.printSums(&c.Members[i], &c.Members[0])
	}
	return nil
}

// printSums prints one member in FortiOS's layout: debugzone is what runs, checksum what
// its file says. Then what is different from the first member, and from the cluster.
func (s *session) printSums(m, first *memberSums) {
	p := s.printf
	title := m.Serial
	if title == "" {
		title = m.Hostname
	}
	primary := map[bool]int{true: 1}[m.Primary]
	p("\n================== %s ==================\n\n", title)
	if m.State == "no-answer" || m.State == "old-build" {
		p("%s: %s\n", m.Hostname, strings.TrimSuffix(map[string]string{"no-answer": "no answer: ", "old-build": "its build shares no configuration: "}[m.State]+m.Fault, ": "))
		return
	}
	p("is_manage_primary()=%d, is_root_primary()=%d\n", primary, primary)
	for _, part := range []struct {
		name  string
		g     groupSums
		fault string
	}{{"debugzone", m.Running, ""}, {"checksum", m.File, m.FileFault}} {
		p("%s\n", part.name)
		if part.fault != "" {
			p("the file cannot be loaded: %s\n\n", part.fault)
			continue
		}
		p("global: %s\nroot: %s\nall: %s\n\n", part.g.Global, part.g.Root, part.g.All)
	}
	p("%s: %s, revision %d", m.Hostname, m.State, m.Revision)
	if m.EpochNode != 0 {
		p(" (epoch %d.%d)", m.Epoch, m.EpochNode)
	}
	if m.MadeOn != "" {
		p(", made on %s", m.MadeOn)
	}
	p("\n")
	if m.Fault != "" {
		p("    cannot take what is newer: %s\n", m.Fault)
	}
	for _, g := range m.Running.Groups {
		for _, f := range first.Running.Groups {
			if g.Path == f.Path && g.Sum != f.Sum {
				p("    differs from %s: %s\n", first.Hostname, g.Path)
			}
		}
	}
	for _, g := range m.Running.Groups {
		for _, f := range m.File.Groups {
			if g.Path == f.Path && g.Sum != f.Sum {
				p("    not loaded from the file: %s\n", g.Path)
			}
		}
	}
	for _, l := range m.Differences {
		p("    %s\n", l)
	}
}
