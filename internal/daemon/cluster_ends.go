package daemon

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tandem/cluster"
	"tandem/cluster/guardian"
	"tandem/internal/node"
	statesync "tandem/sync"
)

// clusterEnds are a member's ends towards the rest of its pair: the guardian, the
// streams and the state on disk.
type clusterEnds struct {
	d        *Daemon
	identity *cluster.Identity
	state    *cluster.StateDir
	streams  *streams
	farm     *farmEnds // what decides by a log has; nil: a pair
	gossip   *gossipEnds
	// What the members share of their configuration.
	revisions *revisions
	wg        sync.WaitGroup
	done      chan struct{}

	mu       sync.Mutex
	notes    []cluster.WriteNote // every one is answered, in order
	noteWake chan struct{}
}

// openCluster prepares the ends and makes the node that they serve.
func (d *Daemon) openCluster(o node.Options) (*clusterEnds, gateway, error) {
	if d.guardian == nil {
		return nil, nil, errors.New("a member of a cluster needs the guardian: start the gateway with tandem run")
	}
	id, err := cluster.LoadIdentity(d.cfg.Tandem.ClusterDir)
	if err != nil {
		return nil, nil, fmt.Errorf("system tandem: cluster-dir: %w (tandem cluster init makes it)", err)
	}
	if id.ExpiresSoon(time.Now()) {
		d.log.Warn("this node's certificate ends soon", "not_after", id.NotAfter.Format(time.DateOnly))
	}
	state, err := cluster.OpenStateDir(d.cfg.Tandem.StateDir, id.Node)
	if err != nil {
		return nil, nil, err
	}
	o.CookieSecret, o.TokenSecret = id.CookieSecret(), id.TokenSecret()
	c := &clusterEnds{d: d, identity: id, state: state, done: make(chan struct{}), noteWake: make(chan struct{}, 1)}
	c.revisions = openRevisions(c)
	if d.cfg.Standalone.Farm() {
		n, err := c.openFarm(o)
		return c, n, err
	}
	if d.cfg.Group() {
		return c, c.openGroup(o), nil
	}
	o.Pair = &cluster.PairOptions{
		Self: id.Node, Name: d.hostname(), Serial: id.Serial, HA: d.cfg.HA,
		Coverage: state.Coverage(), Epoch: state.Epoch(), Floor: uint64(max(time.Now().UnixMilli(), 0)),
	}
	if d.cfg.Virtual() {
		return c, node.NewVClusters(o), nil
	}
	return c, newGateway(o), nil
}

// start begins to hear the guardian and the other member.
func (c *clusterEnds) start() (err error) {
	if c.streams, err = openStreams(c); err != nil {
		return err
	}
	c.revisions.start()
	if c.farm != nil {
		if err := c.farm.start(); err != nil {
			return err
		}
	}
	c.gossip = openGossip(c)
	c.wg.Go(c.writeNotes)
	c.wg.Go(c.hear)
	return nil
}

func (c *clusterEnds) close() {
	close(c.done)
	c.gossip.close()
	c.farm.close()
	c.revisions.close()
	if c.streams != nil {
		c.streams.close()
	}
	c.wg.Wait()
	_ = c.state.Close()
}

// hear hands the guardian's events to the loop.
func (c *clusterEnds) hear() {
	for {
		select {
		case <-c.done:
			return
		case e := <-c.d.guardian.Events():
			if c.d.loop.post(func(now time.Time) { c.handle(now, e) }) != nil {
				return
			}
		}
	}
}

func (c *clusterEnds) handle(now time.Time, e guardian.Event) {
	n := c.d.loop.node
	switch e := e.(type) {
	case cluster.TellPeer:
		c.streams.setPeer(e.Peer)
		n.HandlePeer(now, e.Peer)
		c.revisions.heard(e.Peer)
		c.farm.heard(now, e.Peer)
		c.gossip.heard(e.Peer)
	case cluster.TellLoss:
		// When it is heard again its streams are dialled at once, without what is
		// left of a back-off: healing waits for them.
		c.streams.setPeer(cluster.Peer{Node: e.Node})
		n.HandleLoss(now, e)
		c.revisions.lost(e.Node)
		c.farm.lost()
	case cluster.TellRemoved:
		n.HandleRemoved(now, e.Scope, e.Node)
	case cluster.TellEntitled:
		n.HandleEntitled(now, e.Scope, e.Epoch)
	case cluster.TellClaimed:
		n.HandleClaimed(now, e.Scope, e.Epoch, e.OK)
	}
}

// writeNotes writes to disk beside the loop, which goes on meanwhile; the node
// holds back what depends on a note.
func (c *clusterEnds) writeNotes() {
	for {
		select {
		case <-c.done:
			return
		case <-c.noteWake:
		}
		for {
			c.mu.Lock()
			if len(c.notes) == 0 {
				c.mu.Unlock()
				break
			}
			// One write serves all that wait: the last says what the disk shall say then.
			all := c.notes
			c.notes = nil
			c.mu.Unlock()
			w := all[len(all)-1]
			for _, x := range all {
				if w.Epoch.Less(x.Epoch) {
					w.Epoch = x.Epoch
				}
			}
			err := c.state.WriteNote(w.On, w.Epoch)
			if err != nil {
				c.d.log.Error("note not written", "error", err)
			}
			if c.d.loop.post(func(now time.Time) {
				for range all {
					c.d.loop.node.HandleNote(now, err)
				}
			}) != nil {
				return
			}
		}
	}
}

func (c *clusterEnds) writeNote(e cluster.WriteNote) {
	c.mu.Lock()
	c.notes = append(c.notes, e)
	c.mu.Unlock()
	select {
	case c.noteWake <- struct{}{}:
	default:
	}
}

// said reports a message that the guardian could not be given: this process is
// about to end with it.
func (c *clusterEnds) said(err error) {
	if err != nil {
		c.d.log.Error("guardian does not listen", "error", err)
	}
}

func (c *clusterEnds) announce(e cluster.Announce) {
	c.said(c.d.guardian.Announce(e))
	if c.farm == nil {
		c.revisions.role(decides(e))
	}
}

// decides says whether a pair's member decides on what both share, and under which epoch:
// it owns the one scope, or the first of the virtual clusters.
func decides(e cluster.Announce) (bool, cluster.Epoch) {
	role, epoch := e.Role, e.Epoch
	if len(e.VClusters) > 0 {
		v := slices.MinFunc(e.VClusters, func(a, b cluster.VCluster) int { return int(a.Scope) - int(b.Scope) })
		role, epoch = v.Role, v.Epoch
	}
	return role == cluster.RoleOwner, epoch
}
func (c *clusterEnds) entitle(e cluster.Entitle)       { c.said(c.d.guardian.Entitle(e)) }
func (c *clusterEnds) claim(e cluster.Claim)           { c.said(c.d.guardian.Claim(e)) }
func (c *clusterEnds) askRemoval(e cluster.AskRemoval) { c.said(c.d.guardian.AskRemoval(e)) }

func (c *clusterEnds) sendFrame(e statesync.SendFrame) { c.streams.sendFrame(e) }
func (c *clusterEnds) sendAck(e statesync.SendAck)     { c.streams.sendAck(e) }
