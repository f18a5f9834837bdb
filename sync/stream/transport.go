package stream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"tandem/cluster"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
)

const (
	window      = 8 << 20 // flow control, bytes: more than a copy's burst
	pingAfter   = time.Second
	pingTimeout = time.Second
	// maxPeers bounds what authenticated nodes can make us remember.
	maxPeers = 16
)

// Handler is told what arrives, from several goroutines at once. It must not block.
type Handler struct {
	// Frame has arrived from a process of a node; it may be a second arrival.
	Frame func(from cluster.NodeID, process cluster.ProcessID, frame []byte)
	// Ack: the member's process holds every frame up to seq.
	Ack func(from cluster.NodeID, process cluster.ProcessID, seq uint64)
	// Up: the first stream towards the process stands, or the last one has gone.
	Up func(node cluster.NodeID, process cluster.ProcessID, up bool)
}

// Options configure a Transport.
type Options struct {
	Self    cluster.NodeID
	Process cluster.ProcessID
	TLS     *tls.Config // both ends: mTLS against the cluster's CA
	// PeerNode is who stands at the other end of a verified connection.
	PeerNode func(tls.ConnectionState) (cluster.NodeID, error)
	// Address to listen on; "" is any address, any port.
	Address string
	Handler Handler
	Log     *slog.Logger
}

// Transport is a node's end of all streams.
type Transport struct {
	o        Options
	server   *grpc.Server
	listener net.Listener
	done     chan struct{}
	wg       sync.WaitGroup

	mu    sync.Mutex
	peers map[cluster.NodeID]*member
}

// member is another node; guarded by Transport.mu.
type member struct {
	node    cluster.NodeID
	process cluster.ProcessID // its daemon as heartbeats name it; 0: none
	out     *outbox           // towards that process
	links   map[cluster.Link]*link
	port    uint16
	up      int // streams towards it that stand

	from map[*inbound]bool // streams on which it sends to us
	held map[cluster.ProcessID]uint64
}

// Listen starts the server; streams to others begin with SetPeer.
func Listen(o Options) (*Transport, error) {
	if o.Address == "" {
		o.Address = "[::]:0"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	t := &Transport{o: o, listener: l, done: make(chan struct{}), peers: map[cluster.NodeID]*member{}}
	t.server = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(o.TLS)),
		grpc.MaxRecvMsgSize(statesync.MaxFrame+1024), grpc.MaxConcurrentStreams(4),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter / 2, PermitWithoutStream: true}),
	)
	syncpb.RegisterStateSyncServer(t.server, &service{t: t})
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		if err := t.server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			o.Log.Error("streams: server ended", "error", err)
		}
	}()
	return t, nil
}

// Port is where the server listens.
func (t *Transport) Port() uint16 { return uint16(t.listener.Addr().(*net.TCPAddr).Port) }

// Close ends all streams and waits for their goroutines.
func (t *Transport) Close() {
	t.mu.Lock()
	select {
	case <-t.done:
		t.mu.Unlock()
		return
	default:
	}
	close(t.done)
	for _, p := range t.peers {
		p.setLinks(t, nil)
	}
	t.mu.Unlock()
	t.server.Stop()
	t.wg.Wait()
}

func (t *Transport) member(id cluster.NodeID) *member {
	p := t.peers[id]
	if p == nil {
		if len(t.peers) >= maxPeers {
			return nil
		}
		p = &member{node: id, links: map[cluster.Link]*link{}, from: map[*inbound]bool{}, held: map[cluster.ProcessID]uint64{}}
		t.peers[id] = p
	}
	return p
}

// SetPeer says where a node's daemon is heard; process 0 or no links: nowhere.
func (t *Transport) SetPeer(id cluster.NodeID, process cluster.ProcessID, links []cluster.Link, port uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed() {
		return
	}
	p := t.member(id)
	if p == nil {
		return
	}
	if p.process != process || p.port != port {
		p.setLinks(t, nil)
		p.process, p.port = process, port
		p.out = newOutbox()
	}
	if process == 0 || port == 0 {
		links = nil
	}
	p.setLinks(t, links)
}

func (t *Transport) closed() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// setLinks starts and stops links so that exactly the named ones run.
func (p *member) setLinks(t *Transport, want []cluster.Link) {
	keep := map[cluster.Link]bool{}
	for _, l := range want {
		keep[l] = true
		if p.links[l] == nil {
			p.links[l] = t.startLink(p, l)
		}
	}
	for l, running := range p.links {
		if !keep[l] {
			running.cancel()
			delete(p.links, l)
		}
	}
}

// Send puts a frame on every link to the process. It never blocks.
func (t *Transport) Send(f statesync.SendFrame) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[f.Node]; p != nil && p.process == f.Process && p.out != nil {
		p.out.add(f.Seq, f.Frame)
	}
}

// SendAck acknowledges frames of a process; later ones include earlier ones.
func (t *Transport) SendAck(a statesync.SendAck) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[a.Node]
	if p == nil {
		return
	}
	if len(p.held) > 64 { // processes of its past
		clear(p.held)
	}
	p.held[a.Process] = a.Seq
	for in := range p.from {
		if in.process == a.Process {
			in.ack.set(a.Seq)
		}
	}
}

// Reset ends the streams on which a node sends to us; it begins again from what
// we acknowledged. For frames that did not fit.
func (t *Transport) Reset(id cluster.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[id]; p != nil {
		for in := range p.from {
			in.end()
		}
	}
}

// stood counts the streams towards a process and reports the first and the last.
// The report is made under the lock, so that reports keep their order.
func (t *Transport) stood(p *member, process cluster.ProcessID, up bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if up {
		p.up++
		if p.up == 1 {
			t.o.Handler.Up(p.node, process, true)
		}
	} else {
		p.up--
		if p.up == 0 {
			t.o.Handler.Up(p.node, process, false)
		}
	}
}
