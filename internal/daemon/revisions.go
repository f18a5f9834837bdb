package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/cluster/revision"
	"tandem/internal/config"
)

const (
	tellEvery     = 2 * time.Second        // how often members tell each other what they have
	tellAgain     = 250 * time.Millisecond // after nobody answered
	tellTimeout   = time.Second
	fetchTimeout  = 5 * time.Second
	checkTimeout  = 5 * time.Second
	decideTimeout = 15 * time.Second // with the checks of all others
	ownerPatience = 3 * time.Second  // for an owner to be there
	otherPatience = 2 * time.Second  // for the others to take what was decided
	settleWithin  = 1500 * time.Millisecond
	logLines      = 20 // of differences
)

// revisions keep this member's configuration the same as the others'. What is decided
// when is cluster/revision's; here are the files, the calls and the loop.
type revisions struct {
	c    *clusterEnds
	d    *Daemon
	key  []byte
	file string
	dir  string
	busy chan struct{} // held by whoever changes the configuration
	wake chan struct{}

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	settling sync.Mutex // held around what is told of streams; before mu
	pending  map[cluster.NodeID]*bool

	mu      sync.Mutex
	keeper  *revision.Keeper
	running *config.Config
	shared  []byte // of running
	offer   []byte // what this member proposes; nil: nothing
	offered revision.Digest
	names   map[cluster.NodeID]string
	callers map[cluster.NodeID]*caller
	news    chan struct{} // closed when the keeper has learnt something
	alarm   string
	closed  bool

	// A revision of another member replaced what this one's file said and had not loaded,
	// and nobody was told yet. Of whoever holds busy.
	displaced *revision.Revision
}

// caller tells one member what this one has.
type caller struct {
	process cluster.ProcessID
	cancel  context.CancelFunc
	wake    chan struct{}
}

// reloaded is what came of a reload.
type reloaded struct {
	Reloaded bool     `json:"reloaded"`
	Revision uint64   `json:"revision,omitempty"` // 0: this node shares nothing
	Members  []string `json:"members,omitempty"`  // that run it
	Behind   []string `json:"behind,omitempty"`   // that do not yet
}

func openRevisions(c *clusterEnds) *revisions {
	d := c.d
	r := &revisions{
		c: c, d: d, key: c.identity.ConfigKey().Bytes(), file: d.o.ConfigFile, dir: d.cfg.Tandem.StateDir,
		busy: make(chan struct{}, 1), wake: make(chan struct{}, 1), pending: map[cluster.NodeID]*bool{},
		running: d.cfg, shared: d.cfg.Shared(), names: map[cluster.NodeID]string{}, callers: map[cluster.NodeID]*caller{},
		news: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	have, err := readMark(r.dir)
	if err != nil {
		d.log.Warn("it is not known which revision of the configuration this node had", "error", err)
	}
	now := r.digest(r.shared)
	if have.Number > 0 && have.Digest != now {
		d.log.Warn("the configuration file is not the revision that this node had; what the cluster runs will count", "file", r.file, "revision", have.Number)
	}
	r.keeper = revision.New(c.identity.Node, uint64(d.process), have, now, d.cfg.Standalone.Farm() || d.cfg.Group())
	r.keeper.HandleAside(!d.cfg.SharesConfig())
	return r
}

func (r *revisions) digest(shared []byte) revision.Digest { return config.Digest(r.key, shared) }

// start begins to act. The streams are open.
func (r *revisions) start() { r.wg.Go(r.run) }

func (r *revisions) close() {
	if r == nil {
		return
	}
	r.cancel()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wg.Wait()
}

// begin starts a goroutine unless this has ended. The lock is held.
func (r *revisions) begin(f func()) {
	if !r.closed {
		r.wg.Go(f)
	}
}

// learn changes what the keeper knows, and has that looked at.
func (r *revisions) learn(f func(k *revision.Keeper)) {
	r.mu.Lock()
	f(r.keeper)
	close(r.news)
	r.news = make(chan struct{})
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// ask returns what f says of the keeper.
func ask[T any](r *revisions, f func(k *revision.Keeper) T) T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f(r.keeper)
}

// until waits until ok holds of the keeper, or ctx ends; the result says which.
func (r *revisions) until(ctx context.Context, ok func(k *revision.Keeper) bool) bool {
	for {
		r.mu.Lock()
		done, news := ok(r.keeper), r.news
		r.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-news:
		case <-ctx.Done():
			return false
		case <-r.ctx.Done():
			return false
		}
	}
}

// take the right to change the configuration.
func (r *revisions) acquire(ctx context.Context) error {
	select {
	case r.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return errStopped
	}
}

func (r *revisions) release() { <-r.busy }

// role: this member owns what the pair's members share, or the farm's log has a leader. Called on the loop, and
// by the farm's follower.
func (r *revisions) role(owns bool, e cluster.Epoch) {
	r.learn(func(k *revision.Keeper) { k.HandleRole(time.Now(), owns, e) })
}

// decided: the farm's log has a revision.
func (r *revisions) decided(c fsm.ConfigRevision) {
	r.learn(func(k *revision.Keeper) {
		k.HandleLog(time.Now(), revision.Revision{Number: c.Number, Digest: c.Digest})
	})
}

// run does what the keeper says is to be done.
func (r *revisions) run() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		if act := ask(r, func(k *revision.Keeper) revision.Action { return k.Next(time.Now()) }); act != nil {
			r.act()
		} else if ask(r, (*revision.Keeper).Mine).Fault == "" {
			r.raise("")
		}
		now, wait := time.Now(), time.Hour
		if at, ok := r.timeout(now); ok {
			wait = at.Sub(now)
		}
		t.Reset(wait)
		select {
		case <-r.ctx.Done():
			return
		case <-r.wake:
		case <-t.C:
		}
	}
}

func (r *revisions) timeout(now time.Time) (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keeper.NextTimeout(now)
}

func (r *revisions) act() {
	if r.acquire(r.ctx) != nil {
		return
	}
	defer r.release()
	// What was to be done may have been done meanwhile.
	switch a := ask(r, func(k *revision.Keeper) revision.Action { return k.Next(time.Now()) }).(type) {
	case revision.Take:
		ctx, cancel := context.WithTimeout(r.ctx, decideTimeout)
		defer cancel()
		if err := r.take(ctx, a); err != nil {
			r.failed(a.Revision, err)
		}
	case revision.Adopt:
		ctx, cancel := context.WithTimeout(r.ctx, decideTimeout)
		defer cancel()
		if err := r.adopt(ctx, a); err != nil {
			r.failed(a.Revision, err)
		}
	}
}

// failed remembers why a revision could not be taken, and raises the alarm.
func (r *revisions) failed(rev revision.Revision, err error) {
	if r.ctx.Err() != nil {
		return
	}
	var restart restartError
	if errors.As(err, &restart) {
		why := restart.what + " cannot change while running: the file has it; restart tandem"
		r.learn(func(k *revision.Keeper) { k.Kept(time.Now(), rev, why) })
		r.raise(fmt.Sprintf("revision %s of the configuration does not run here: %s", rev, why))
	} else {
		r.learn(func(k *revision.Keeper) { k.Failed(time.Now(), err.Error()) })
		r.raise(fmt.Sprintf("revision %s of the configuration is refused here: %s", rev, err))
	}
	r.tell()
}

// raise sets the alarm, or clears it.
func (r *revisions) raise(text string) {
	r.mu.Lock()
	same := r.alarm == text
	r.alarm = text
	r.mu.Unlock()
	if !same {
		_ = r.d.loop.post(func(time.Time) {
			r.d.alarm(cluster.Alarm{Name: "configuration", Text: text, On: text != ""})
		})
	}
}

// adopt makes a revision of what this member runs.
func (r *revisions) adopt(ctx context.Context, a revision.Adopt) error {
	rev := a.Revision
	if r.c.farm != nil {
		if err := r.c.farm.setRevision(ctx, rev); err != nil {
			return fmt.Errorf("not decided: %w", err)
		}
	}
	mark, err := stage(r.markPath(), markText(rev))
	if err == nil {
		err = mark.commit(false)
	}
	if err != nil {
		return err
	}
	r.d.log.Info("what this member runs is the cluster's configuration", "revision", rev.Number, "before", a.Base.Number)
	r.applied(rev, nil)
	return nil
}

func (r *revisions) markPath() string { return filepath.Join(r.dir, revisionFile) }

// take fetches a revision and runs it.
func (r *revisions) take(ctx context.Context, t revision.Take) error {
	rev, was := t.Revision, ask(r, (*revision.Keeper).Mine)
	if was.Running == rev.Digest {
		mark, err := stage(r.markPath(), markText(rev))
		if err == nil {
			err = mark.commit(false)
		}
		if err != nil {
			return err
		}
		r.applied(rev, nil)
		return nil
	}
	filed, faults, ferr := LoadConfig(r.file)
	if ferr == nil && r.digest(filed.Shared()) == rev.Digest {
		if err := r.fits(ctx, filed); was.Have.Same(rev) && was.Fault != "" && errors.As(err, new(restartError)) {
			r.learn(func(k *revision.Keeper) { k.Failed(time.Now(), was.Fault) }) // and was said
			return nil
		}
		return r.use(ctx, change{next: filed, faults: faults, rev: rev, decided: true})
	}
	var errs error
	for _, n := range t.From {
		text, err := r.fetch(ctx, n, rev.Digest)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", r.name(n), err))
			continue
		}
		next, faults, err := r.join(rev.String(), text)
		if err != nil {
			return err
		}
		if ferr != nil || r.digest(filed.Shared()) != was.Running {
			r.d.log.Warn("the configuration file says something that was never loaded; it is kept", "file", r.file+".previous")
			if was.Have.Digest == was.Running { // and not since it started
				r.displaced = &rev
			}
		}
		return r.use(ctx, change{next: next, faults: faults, rev: rev, decided: true, write: true, shared: text})
	}
	return errs
}

// fetch gets the text that has a digest from a member.
func (r *revisions) fetch(ctx context.Context, n cluster.NodeID, d revision.Digest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	text, err := r.c.streams.e.ConfigText(ctx, n, d[:], config.MaxSize)
	if err != nil {
		return nil, err
	}
	if r.digest(text) != d {
		return nil, errors.New("it sent another configuration than it had named")
	}
	return text, nil
}

// join is another member's shared part with this one's own.
func (r *revisions) join(name string, text []byte) (*config.Config, []config.Fault, error) {
	r.mu.Lock()
	running := r.running
	r.mu.Unlock()
	next, faults := running.Join("revision "+name, text)
	if next, faults = readCertificates("revision "+name, next, faults, false); next == nil {
		return nil, nil, faultsError(faults)
	}
	if n := len(next.Text()); n > config.MaxSize {
		return nil, nil, fmt.Errorf("with this node's own settings the configuration would have %d bytes; %d are allowed", n, config.MaxSize)
	}
	return next, faults, nil
}

// faultsError joins what is no warning.
func faultsError(faults []config.Fault) error {
	var lines []string
	for _, f := range faults {
		if !f.Warning {
			lines = append(lines, f.Error())
		}
	}
	return errors.New(strings.Join(lines, "\n"))
}

// change is a revision that this member is to run.
type change struct {
	next    *config.Config
	faults  []config.Fault // warnings
	rev     revision.Revision
	shared  []byte // as the revision has it; nil: as next does
	write   bool   // the file does not say it yet
	decided bool   // it counts already: the file gets it even if a restart is needed
}

// use runs a revision: what can fail is tried before anything changes. The error is a
// restartError if a restart is needed.
func (r *revisions) use(ctx context.Context, c change) (err error) {
	var file, mark *staged
	defer func() {
		file.discard()
		mark.discard()
	}()
	if c.write {
		if file, err = stage(r.file, c.next.Text()); err != nil {
			return err
		}
	}
	if mark, err = stage(r.markPath(), markText(c.rev)); err != nil {
		return err
	}
	r.mu.Lock()
	before := r.running
	r.mu.Unlock()
	lines := config.Differences(before, c.next)
	err = r.d.load(ctx, c.next, c.faults)
	if err != nil && !(c.decided && errors.As(err, new(restartError))) {
		return err
	}
	// The file first: one that is newer than the mark counts as an edited one, and is
	// found to be what the cluster runs.
	if cerr := errors.Join(file.commit(true), mark.commit(false)); cerr != nil {
		if err == nil {
			cerr = errors.Join(cerr, r.d.load(ctx, before, nil))
		}
		return cerr
	}
	if err != nil {
		r.sayLines("the file has another revision of the configuration, which needs a restart", c.rev, lines)
		return err
	}
	r.sayLines("configuration taken", c.rev, lines)
	r.applied(c.rev, &c)
	return nil
}

// sayLines logs what changes. Secrets are not in it.
func (r *revisions) sayLines(what string, rev revision.Revision, lines []string) {
	said := lines[:min(len(lines), logLines)]
	r.d.log.Info(what, "revision", rev.Number, "epoch", rev.Epoch.String(), "made_on", r.name(rev.By), "lines", len(lines), "changes", said)
}

// applied: a revision runs; c is nil if that is what ran before.
func (r *revisions) applied(rev revision.Revision, c *change) {
	if c != nil {
		r.loaded(c.next)
		if c.shared != nil {
			r.mu.Lock()
			r.shared = c.shared
			r.mu.Unlock()
		}
	}
	r.learn(func(k *revision.Keeper) { k.Applied(rev) })
	r.raise("")
	r.tell()
}

// loaded: this member runs a configuration.
func (r *revisions) loaded(c *config.Config) {
	shared := c.Shared()
	d := r.digest(shared)
	r.mu.Lock()
	r.running, r.shared = c, shared
	r.mu.Unlock()
	r.learn(func(k *revision.Keeper) {
		k.HandleRunning(d)
		k.HandleAside(!c.SharesConfig())
	})
}
