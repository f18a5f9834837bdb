package daemon

import (
	"errors"
	"fmt"
	"net"
	"time"

	"tandem/cluster"
	"tandem/internal/quiet"
	statesync "tandem/sync"
	"tandem/sync/stream"
)

// streams carry the journal's frames to the other member and its acknowledgements
// back. What arrives is queued for the loop without waiting: a stream's goroutine
// must not wait for the loop, which waits for the endpoint when it sends.
type streams struct {
	c       *clusterEnds
	e       *stream.Endpoint
	refused *quiet.Refusals
}

func openStreams(c *clusterEnds) (*streams, error) {
	s := &streams{c: c, refused: quiet.NewRefusals(c.d.log, "frame refused")}
	l := c.d.loop
	report := func(id cluster.NodeID, process cluster.ProcessID, up bool) {
		l.offerRemote(func(now time.Time) {
			c.d.log.Info("stream towards the member", "node", id, "up", up)
			l.node.HandleStream(now, id, process, up)
		})
	}
	var err error
	s.e, err = stream.New(stream.Options{
		Self: c.identity.Node, Process: c.d.process, TLS: c.identity.TLS(), PeerNode: c.identity.PeerNode, Log: c.d.log,
		Config: c.revisions,
		Handler: stream.Handler{
			Up: func(id cluster.NodeID, process cluster.ProcessID) {
				c.revisions.settle(id, func() { report(id, process, true) })
			},
			Down: func(id cluster.NodeID, process cluster.ProcessID) {
				c.revisions.down(id, func() { report(id, process, false) })
			},
			Frame: s.frame,
			// A pair has scope 0 alone; the Replica refuses frames of another.
			Ack: func(from cluster.NodeID, process cluster.ProcessID, scope cluster.ScopeID, seq uint64) {
				l.offerRemote(func(now time.Time) { l.node.HandleAck(now, from, process, scope, seq) })
			},
		},
	})
	if err != nil {
		return nil, err
	}
	addr, err := s.e.Listen("[::]:0")
	if err != nil {
		return nil, err
	}
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("streams: %v is no TCP address", addr)
	}
	return s, c.d.guardian.StreamPort(uint16(tcp.Port))
}

func (s *streams) frame(r stream.Received) {
	l := s.c.d.loop
	l.offerRemote(func(now time.Time) {
		l.stats.Frames++
		err := l.node.HandleFrame(now, r.Node, r.Process, r.Scope, r.Frame)
		r.Done()
		switch {
		case errors.Is(err, statesync.ErrGap):
			s.c.d.log.Warn("frame refused, the stream begins again", "node", r.Node, "scope", r.Scope.String(), "error", err)
			s.e.Resync(r.Node, r.Scope)
		case err != nil: // sending it again would change nothing
			frameRefused(s.refused, r, err)
		}
	})
}

// frameRefused says of an older epoch, or of a former process, that it still sends: once,
// though there may be thousands of frames on their way.
func frameRefused(to *quiet.Refusals, r stream.Received, err error) {
	to.Add(fmt.Sprintf("node %d", r.Node), err)
}

func (s *streams) setPeer(p cluster.Peer) {
	if !p.Running {
		p.Links = nil
	}
	s.e.SetPeers(p.Node, p.Process, p.Links, p.StreamPort)
}

func (s *streams) close() { _ = s.e.Close() }

func (s *streams) sendFrame(e statesync.SendFrame) { s.e.Send(e) }
func (s *streams) sendAck(e statesync.SendAck)     { s.e.Ack(e) }
