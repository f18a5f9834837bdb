package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"tandem/cluster"
	"tandem/internal/quiet"
	"tandem/proto/syncpb"
	statesync "tandem/sync"
)

const (
	minBackoff  = 50 * time.Millisecond // before dialling again, doubled each time
	maxBackoff  = time.Second
	openTimeout = 2 * time.Second // from dialling to the end of the hellos
	// connectTimeout is for TCP alone. A cut link swallows the SYN, and the kernel sends
	// the next after a second: too late for a cluster that must have one owner again by then.
	connectTimeout = 250 * time.Millisecond

	window      = 1 << 20                    // bytes of flow control for a stream
	maxMessage  = statesync.MaxFrame + 1<<10 // of a client's message
	maxAnswer   = 4 << 10                    // of a server's message: a hello of all scopes
	maxInflight = 1 << 20                    // bytes of frames with the handler, from one node
	maxStreams  = 8                          // from one node
	maxConns    = 64                         // accepted for each listener
	maxScopes   = 128                        // between two processes, in each direction
	textPart    = 64 << 10                   // bytes of a configuration's text in one message
)

// Version of the streams that this build speaks, beside all before it. Two members
// speak the lower of theirs: each says its own in the hello.
const Version = 1 + raised

const defaultStall = 2 * time.Second

// Handler receives what arrives. Its functions run on the goroutines of streams,
// several at once, and must not wait for the Endpoint.
type Handler struct {
	// Up: the first stream towards the member's process is open. Down: the last
	// one is gone. They alternate; a new process is Down, then Up.
	Up   func(cluster.NodeID, cluster.ProcessID)
	Down func(cluster.NodeID, cluster.ProcessID)
	// Frame: a frame arrived for the first time; or again after Resync, or after
	// another process spoke for the node in between. It may wait for the node, which
	// holds up what comes from that member. Done must be called when the frame has
	// been dealt with: at most 1 MiB from one member, of all scopes, is handed up
	// before. A member that has to wait longer than its Stall begins its streams again.
	Frame func(Received)
	// Ack: the member's process acknowledged every frame of the scope up to the number.
	Ack func(cluster.NodeID, cluster.ProcessID, cluster.ScopeID, uint64)
}

// Options of an Endpoint.
type Options struct {
	Self    cluster.NodeID
	Process cluster.ProcessID
	// TLS holds our certificate and, as RootCAs, the cluster's CA: both sides of
	// every connection must show a certificate of it. PeerNode says who a
	// certificate belongs to; names are compared only if ServerName is set.
	TLS      *tls.Config
	PeerNode func(tls.ConnectionState) (cluster.NodeID, error)
	Handler  Handler
	Log      *slog.Logger // nil: the default logger
	// Dial opens a connection on a link; nil: TCP to the link's address, in the
	// zone of its device if it is link-local.
	Dial func(context.Context, cluster.Link, uint16) (net.Conn, error)
	// Backlog is what the unacknowledged frames for one node may amount to, in
	// bytes; 0: 256 MiB. What is beyond is not carried, nor what follows it in its
	// scope: the member's copy must be begun again. A 128th of it is each scope's
	// own, whatever the others have filled.
	Backlog int
	// Stall is how long a link may refuse to take a frame before it is torn
	// down; 0: 2 s.
	Stall time.Duration
	// Config answers for the configuration that members share; nil: nobody does, and
	// members are told so.
	Config ConfigHandler
}

// Endpoint is this node's end of all streams. Its methods may be called from any
// goroutine and do not wait for the network, Close apart.
type Endpoint struct {
	syncpb.UnimplementedStateSyncServer
	opt    Options
	log    *slog.Logger
	refuse *quiet.Refusals
	ctx    context.Context
	cancel context.CancelFunc
	server *grpc.Server
	client *tls.Config
	wg     sync.WaitGroup // every goroutine of ours

	mu     sync.Mutex
	closed bool
	out    map[cluster.NodeID]*sender
	in     map[cluster.NodeID]*receiver
	calls  map[cluster.NodeID]*grpc.ClientConn
}

// New makes an endpoint that neither listens nor dials yet.
func New(o Options) (*Endpoint, error) {
	if o.TLS == nil || o.TLS.RootCAs == nil || o.PeerNode == nil {
		return nil, errors.New("stream: TLS with RootCAs and PeerNode are needed")
	}
	if o.Handler.Up == nil || o.Handler.Down == nil || o.Handler.Frame == nil || o.Handler.Ack == nil {
		return nil, errors.New("stream: the handler is not complete")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Dial == nil {
		o.Dial = dial
	}
	if o.Backlog == 0 {
		o.Backlog = 256 << 20
	}
	if o.Stall == 0 {
		o.Stall = defaultStall
	}
	e := &Endpoint{
		opt: o, log: o.Log, client: clientTLS(o.TLS), refuse: quiet.NewRefusals(o.Log, "replication stream refused"),
		out: make(map[cluster.NodeID]*sender), in: make(map[cluster.NodeID]*receiver),
		calls: make(map[cluster.NodeID]*grpc.ClientConn),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.server = grpc.NewServer(
		grpc.Creds(&toldCreds{credentials.NewTLS(serverTLS(o.TLS)), e.refused}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(textPart+1<<10),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.MaxConcurrentStreams(1), grpc.MaxHeaderListSize(8<<10),
		grpc.ConnectionTimeout(openTimeout), grpc.WaitForHandlers(true),
	)
	syncpb.RegisterStateSyncServer(e.server, e)
	if o.Config != nil {
		syncpb.RegisterConfigurationServer(e.server, &configServer{e: e})
	}
	return e, nil
}

// refused says that somebody was.
func (e *Endpoint) refused(from net.Addr, err error) {
	if e.ctx.Err() == nil {
		e.refuse.Add(from.String(), err)
	}
}

// toldCreds tell of failed handshakes, which gRPC keeps to itself.
type toldCreds struct {
	credentials.TransportCredentials
	failed func(net.Addr, error)
}

func (t *toldCreds) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(c)
	if err != nil {
		t.failed(c.RemoteAddr(), err)
	}
	return conn, info, err
}

func (t *toldCreds) Clone() credentials.TransportCredentials {
	return &toldCreds{t.TransportCredentials.Clone(), t.failed}
}

// Listen accepts streams on a TCP address, such as "[fe80::1%hb1]:7001" or "[::]:0",
// and returns it with the port that was chosen. It may be called for several.
func (e *Endpoint) Listen(address string) (net.Addr, error) {
	l, err := listen(e.ctx, address)
	if err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	if err := e.Serve(l); err != nil {
		return nil, err
	}
	return l.Addr(), nil
}

// Serve accepts streams from a listener, at most 64 connections at a time, and closes
// it in the end. It does not wait.
func (e *Endpoint) Serve(l net.Listener) error {
	l = netutil.LimitListener(opaqueListener{l}, maxConns)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		l.Close()
		return net.ErrClosed
	}
	e.wg.Go(func() {
		if err := e.server.Serve(l); err != nil && e.ctx.Err() == nil {
			e.log.Error("replication stream: listener failed", "address", l.Addr().String(), "error", err)
		}
	})
	return nil
}

// SetPeers says where a node can be reached: on which links, at which port, and which
// process its heartbeats name (0: not known). Links not named are given up; none at
// all means that the node is gone. It is told whenever heartbeats tell something new.
func (e *Endpoint) SetPeers(node cluster.NodeID, process cluster.ProcessID, links []cluster.Link, port uint16) {
	if node == e.opt.Self {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	s := e.out[node]
	if s == nil {
		s = &sender{e: e, node: node, links: make(map[place]*link)}
		e.out[node] = s
	}
	s.set(process, links, port)
	if cc := e.calls[node]; cc != nil && len(links) == 0 {
		// When it is heard again it is called at once, without what is left of a back-off.
		delete(e.calls, node)
		cc.Close()
	}
}

// Send sends a frame on every link, and again on those that come until it is
// acknowledged. Frames for a process that is not the node's present one are dropped;
// so are those of a 129th scope, and those of any scope but 0 for a process of an
// earlier build, which knows of none.
func (e *Endpoint) Send(f statesync.SendFrame) {
	if s := e.toward(f.Node); s != nil {
		s.send(f)
	}
}

// toward is what sends to a node; nil: nobody named it.
func (e *Endpoint) toward(node cluster.NodeID) *sender {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.out[node]
}

// Ack acknowledges frames of a scope of a node's process, on every link from it.
func (e *Endpoint) Ack(a statesync.SendAck) {
	e.mu.Lock()
	r := e.in[a.Node]
	e.mu.Unlock()
	if r != nil {
		r.ack(a.Process, a.Scope, a.Seq)
	}
}

// Resync makes a node begin a scope again from what was acknowledged: the answer to a
// frame that the Replica refused. Other scopes go on, unless the node's build knows of
// none: then its streams end, and begin again.
func (e *Endpoint) Resync(node cluster.NodeID, scope cluster.ScopeID) {
	e.mu.Lock()
	r := e.in[node]
	e.mu.Unlock()
	if r != nil {
		r.resync(scope)
	}
}

// Version is what is spoken with a node's present process; 0: no stream towards it is open.
func (e *Endpoint) Version(node cluster.NodeID) uint32 {
	s := e.toward(node)
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == 0 {
		return 0
	}
	return s.version
}

// common is the version to speak with the speaker of a hello.
func common(h *syncpb.Hello) uint32 { return min(max(h.GetVersion(), 1), Version) }

// Close ends everything. After it no function of the handler runs.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	e.closed = true
	calls := e.calls
	e.calls = nil
	e.mu.Unlock()
	e.cancel()
	for _, c := range calls {
		c.Close()
	}
	e.server.Stop()
	e.wg.Wait()
	return nil
}
