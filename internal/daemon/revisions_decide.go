package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tandem/cluster"
	"tandem/cluster/revision"
	"tandem/internal/config"
	"tandem/proto/clusterpb"
	"tandem/proto/syncpb"
	"tandem/sync/stream"
)

// reload reads this member's file again. What it changes of the shared part becomes the
// cluster's next revision, if every member that can be asked could run it; else nothing
// changes anywhere.
func (r *revisions) reload(ctx context.Context) (reloaded, error) {
	if err := r.acquire(ctx); err != nil {
		return reloaded{}, err
	}
	release := sync.OnceFunc(r.release)
	defer release()
	next, faults, err := LoadConfig(r.file)
	if err != nil {
		return reloaded{}, err
	}
	mine := ask(r, (*revision.Keeper).Mine)
	shared := next.Shared()
	d := r.digest(shared)
	aside := mine.Aside || !next.SharesConfig()
	late := r.displaced
	r.displaced = nil
	if aside || d == mine.Running {
		if err := r.d.load(ctx, next, faults); err != nil {
			return reloaded{}, err
		}
		r.loaded(next)
		if aside {
			return reloaded{Reloaded: true}, nil
		}
		if late != nil {
			return reloaded{}, r.cameLate(r.firstOf(*late))
		}
		return r.outcome(mine.Have), nil
	}
	if len(shared) > config.MaxSize {
		return reloaded{}, fmt.Errorf("written out, the shared configuration has %d bytes; %d are allowed", len(shared), config.MaxSize)
	}
	if err := r.fits(ctx, next); err != nil {
		return reloaded{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, decideTimeout)
	defer cancel()
	rev, err := r.decide(ctx, change{next: next, faults: faults}, shared, d)
	release() // the others may have changes of their own, and wait for us to hear of them
	if err != nil {
		if first := (firstError{}); errors.As(err, &first) {
			wait, cancel := context.WithTimeout(ctx, otherPatience)
			defer cancel()
			if r.until(wait, func(k *revision.Keeper) bool { _, err := k.Base(); return err == nil }) && r.acquire(wait) == nil {
				r.displaced = nil
				r.release()
				err = r.cameLate(err)
			}
		}
		return reloaded{}, err
	}
	wait, cancel := context.WithTimeout(ctx, otherPatience)
	defer cancel()
	r.until(wait, func(k *revision.Keeper) bool { return len(k.Behind(rev)) == 0 })
	return r.outcome(rev), nil
}

// outcome says who runs a revision.
func (r *revisions) outcome(rev revision.Revision) reloaded {
	out := reloaded{Reloaded: true, Revision: rev.Number, Members: []string{r.name(r.c.identity.Node)}}
	behind := map[cluster.NodeID]bool{}
	for _, n := range ask(r, func(k *revision.Keeper) []cluster.NodeID { return k.Behind(rev) }) {
		behind[n] = true
		out.Behind = append(out.Behind, r.name(n))
	}
	for _, m := range ask(r, (*revision.Keeper).Members) {
		if m.Heard && !m.Old && !m.State.Aside && !behind[m.Node] {
			out.Members = append(out.Members, r.name(m.Node))
		}
	}
	return out
}

// fits says what keeps a configuration from being run here.
func (r *revisions) fits(ctx context.Context, next *config.Config) error {
	var fault error
	if err := r.d.loop.call(ctx, func(time.Time) { fault = r.d.fits(next) }); err != nil {
		return err
	}
	return fault
}

// firstOf says whose change came first.
func (r *revisions) firstOf(rev revision.Revision) error {
	if rev.By == 0 {
		return firstError{fmt.Sprintf("another change came first: revision %s", rev)}
	}
	return firstError{fmt.Sprintf("another change came first: revision %s, made on %s", rev, r.name(rev.By))}
}

func (r *revisions) cameLate(err error) error {
	return fmt.Errorf("%w: this change was not taken, and what the file said is in %s.previous", err, r.file)
}

// firstError: somebody else's change came first.
type firstError struct{ text string }

func (e firstError) Error() string { return e.text }

// decide has a change made here become the next revision, and runs it here.
func (r *revisions) decide(ctx context.Context, c change, shared []byte, d revision.Digest) (revision.Revision, error) {
	base, err := r.base(ctx)
	if err != nil {
		return base, err
	}
	r.mu.Lock()
	r.offer, r.offered = shared, d
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.offer = nil
		r.mu.Unlock()
	}()
	if r.c.farm != nil {
		return r.decideByLog(ctx, c, d)
	}
	patience, cancel := context.WithTimeout(ctx, ownerPatience)
	defer cancel()
	for {
		rev, err := r.decideHere(ctx, r.c.identity.Node, base, d, &c)
		if !errors.As(err, new(revision.NotOwnerError)) {
			return rev, err
		}
		rev, found, err := r.propose(ctx, base, d)
		if found {
			if err != nil {
				return rev, err
			}
			return rev, r.useDecided(ctx, c, rev)
		}
		if patience.Err() != nil {
			if err != nil {
				return rev, fmt.Errorf("no owner answers, so nothing was changed as far as is known: %w", err)
			}
			return rev, errors.New("nobody owns the cluster, so nobody decides: nothing was changed")
		}
		select {
		case <-time.After(tellAgain):
		case <-patience.Done():
		}
	}
}

// base is the revision on which a change builds, after a while in which there may be one. One
// that is on its way here is not waited for: it cannot be taken while a change is under way.
func (r *revisions) base(ctx context.Context) (base revision.Revision, err error) {
	patience, cancel := context.WithTimeout(ctx, ownerPatience)
	defer cancel()
	r.until(patience, func(k *revision.Keeper) bool {
		base, err = k.Base()
		return err == nil || errors.As(err, new(revision.FirstError))
	})
	switch first := (revision.FirstError{}); {
	case errors.As(err, &first):
		err = r.firstOf(first.Newest)
	case err != nil:
		err = fmt.Errorf("%w; nothing was changed", err)
	}
	return base, err
}

// decideHere judges a change as the owner, has the others look at it, and runs it: with
// that it is decided.
func (r *revisions) decideHere(ctx context.Context, by cluster.NodeID, base revision.Revision, d revision.Digest, c *change) (revision.Revision, error) {
	judge := func() (rev revision.Revision, err error) {
		ask(r, func(k *revision.Keeper) bool { rev, err = k.Decide(by, base, d); return true })
		var first revision.FirstError
		if errors.As(err, &first) {
			err = r.firstOf(first.Newest)
		}
		return rev, err
	}
	if _, err := judge(); err != nil {
		return revision.Revision{}, err
	}
	if err := r.check(ctx, by, d); err != nil {
		return revision.Revision{}, err
	}
	rev, err := judge() // time has passed
	if err != nil {
		return rev, err
	}
	c.rev = rev
	return rev, r.use(ctx, *c)
}

// check asks all other members that share the configuration whether they could run what
// this one offers, but the one that made it. One that does not answer is not waited for:
// it takes the revision when it can, or says why not.
func (r *revisions) check(ctx context.Context, by cluster.NodeID, d revision.Digest) error {
	members := ask(r, (*revision.Keeper).Members)
	refused := make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		if m.Node == by || !m.Heard || m.Old || m.State.Aside {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			v, err := r.c.streams.e.ConfigCheck(ctx, m.Node, &syncpb.ConfigProposal{Digest: d[:]})
			switch {
			case err != nil:
				r.d.log.Warn("a member was not asked about a change of the configuration", "node", m.Node, "error", err)
			case v.GetRefused() != "":
				refused[i] = fmt.Errorf("%s: %s", r.name(m.Node), revision.Short(v.GetRefused()))
			}
		})
	}
	wg.Wait()
	for _, err := range refused {
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// useDecided runs here what has become a revision.
func (r *revisions) useDecided(ctx context.Context, c change, rev revision.Revision) error {
	c.rev, c.decided = rev, true
	if err := r.use(ctx, c); err != nil {
		r.failed(rev, err)
		return fmt.Errorf("revision %s was decided and cannot be run here: %w", rev, err)
	}
	return nil
}

// propose finds the owner among the others, and proposes the change to it. found is
// false if nobody owns.
func (r *revisions) propose(ctx context.Context, base revision.Revision, d revision.Digest) (rev revision.Revision, found bool, err error) {
	for _, m := range ask(r, (*revision.Keeper).Members) {
		if !m.Heard || m.Old || m.State.Aside {
			continue
		}
		v, perr := r.c.streams.e.ConfigPropose(ctx, m.Node, &syncpb.ConfigProposal{Base: base.Mark(), Digest: d[:]})
		switch {
		case perr != nil:
			err = errors.Join(err, fmt.Errorf("%s: %w", r.name(m.Node), perr))
			continue
		case v.GetNotOwner():
			continue
		case v.GetFirst():
			return rev, true, firstError{revision.Short(v.GetRefused())}
		case v.GetRefused() != "":
			return rev, true, fmt.Errorf("%s: %s", r.name(m.Node), revision.Short(v.GetRefused()))
		}
		rev, err := revision.OfMark(v.GetDecided())
		if err == nil && rev.Digest != d {
			err = fmt.Errorf("%s decided something else than was proposed", r.name(m.Node))
		}
		return rev, true, err
	}
	return rev, false, err
}

// decideByLog has a farm's log decide.
func (r *revisions) decideByLog(ctx context.Context, c change, d revision.Digest) (rev revision.Revision, err error) {
	ask(r, func(k *revision.Keeper) bool { rev, err = k.Follow(d); return true })
	if err == nil {
		err = r.check(ctx, r.c.identity.Node, d)
	}
	if err != nil {
		return rev, err
	}
	if err := r.c.farm.setRevision(ctx, rev); err != nil {
		return rev, err
	}
	return rev, r.useDecided(ctx, c, rev)
}

// setRevision has the farm's log decide on the next revision of the configuration.
func (f *farmEnds) setRevision(ctx context.Context, rev revision.Revision) error {
	log := f.decider.Load()
	if log == nil {
		return errors.New("the members' log has not begun")
	}
	ctx, cancel := context.WithTimeout(ctx, proposePatient)
	defer cancel()
	res, err := log.Propose(ctx, &clusterpb.Command{What: &clusterpb.Command_SetConfigRevision{
		SetConfigRevision: &clusterpb.SetConfigRevision{Number: rev.Number, Digest: rev.Digest[:]}}})
	switch {
	case err != nil:
		return err
	case !res.OK():
		return firstError{"another change came first: " + res.Why}
	}
	return nil
}

// Check answers whether this member could run what another one has.
func (r *revisions) Check(ctx context.Context, from cluster.NodeID, m *syncpb.ConfigProposal) *syncpb.ConfigVerdict {
	if _, err := r.look(ctx, from, m); err != nil {
		return &syncpb.ConfigVerdict{Refused: revision.Short(err.Error())}
	}
	return &syncpb.ConfigVerdict{}
}

// look fetches what a member proposes, and says whether it could be run here.
func (r *revisions) look(ctx context.Context, from cluster.NodeID, m *syncpb.ConfigProposal) (c change, err error) {
	d, err := revision.OfBytes(m.GetDigest())
	if err != nil {
		return c, err
	}
	if c.shared, err = r.fetch(ctx, from, d); err != nil {
		return c, err
	}
	if c.next, c.faults, err = r.join("of "+r.name(from), c.shared); err != nil {
		return c, err
	}
	return c, r.fits(ctx, c.next)
}

// Propose decides, as the owner, on a change that another member makes.
func (r *revisions) Propose(ctx context.Context, from cluster.NodeID, m *syncpb.ConfigProposal) *syncpb.ConfigVerdict {
	refuse := func(err error) *syncpb.ConfigVerdict {
		return &syncpb.ConfigVerdict{Refused: revision.Short(err.Error()), First: errors.As(err, new(firstError)), NotOwner: errors.As(err, new(revision.NotOwnerError))}
	}
	base, err := revision.OfMark(m.GetBase())
	if err != nil {
		return refuse(err)
	}
	if r.c.farm != nil || !ask(r, (*revision.Keeper).Owns) {
		return refuse(revision.NotOwnerError{})
	}
	if err := r.acquire(ctx); err != nil {
		return refuse(err)
	}
	defer r.release()
	d, err := revision.OfBytes(m.GetDigest())
	if err != nil {
		return refuse(err)
	}
	c, err := r.look(ctx, from, m)
	if err != nil {
		return refuse(err)
	}
	c.write = true
	r.mu.Lock()
	r.offer, r.offered = c.shared, d // for others to look at
	r.mu.Unlock()
	rev, err := r.decideHere(ctx, from, base, d, &c)
	r.mu.Lock()
	r.offer = nil
	r.mu.Unlock()
	if err != nil {
		return refuse(err)
	}
	return &syncpb.ConfigVerdict{Decided: rev.Mark()}
}

var _ stream.ConfigHandler = (*revisions)(nil)
