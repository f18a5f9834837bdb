package userspace

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tandem/internal/ipsec"
	"tandem/xfrm"
	"tandem/xfrm/esp"
)

// Options of a Plane. Handler is required, the rest has defaults.
type Options struct {
	Handler xfrm.Handler
	Clock   func() time.Time // default time.Now
	Rand    io.Reader        // unpredictable IVs for CBC; default crypto/rand
	Logger  *slog.Logger     // default slog.Default
	// PortIKE and PortNATT are the UDP ports, by default 500 and 4500.
	PortIKE, PortNATT uint16
}

// Plane is the data plane. Sockets and tunnel interfaces belong to the network
// namespace of the thread that calls New and AddTunnel.
type Plane struct {
	o     Options
	clock func() time.Time
	ivs   *esp.IVSource
	log   *slog.Logger

	socks   *sockets
	sas     spiTable
	workers sync.WaitGroup
	ticks   ticker
	evs     events
	inject  injector
	warm    warm

	// Guards what follows; packets do not take it.
	mu      sync.Mutex
	closed  bool
	tunnels map[string]*tunnel // written with tunnelsMu, too
	scopes  map[xfrm.Scope]*scope
	epochs  []*epoch
	order   uint64 // of SetOutbound calls
	late    map[*sa]struct{}
	out     *batch // of the control methods

	// Lets Inject look for tunnels without mu, which whoever waits for its epoch holds.
	tunnelsMu sync.RWMutex

	unknownSPI, malformed, noTunnel, strays atomic.Uint64
}

var _ xfrm.DataPlane = (*Plane)(nil)

// New opens the sockets and begins to receive.
func New(o Options) (*Plane, error) {
	if o.Handler.IKE == nil || o.Handler.Events == nil {
		return nil, errors.New("userspace: no handler")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.PortIKE == 0 {
		o.PortIKE = 500
	}
	if o.PortNATT == 0 {
		o.PortNATT = 4500
	}
	p := &Plane{
		o: o, clock: o.Clock, log: o.Logger, ivs: esp.NewIVSource(o.Rand),
		tunnels: map[string]*tunnel{}, scopes: map[xfrm.Scope]*scope{}, late: map[*sa]struct{}{},
	}
	p.evs.deliver = o.Handler.Events
	p.ticks.wake = make(chan struct{}, 1)
	p.ticks.stop = make(chan struct{})
	var err error
	if p.socks, err = openSockets(o.PortIKE, o.PortNATT, o.Logger); err != nil {
		return nil, err
	}
	p.socks.streams = newStreams(p)
	p.out = newBatch()
	p.out.prompt = true
	p.inject.epoch = p.newEpoch()
	for _, s := range p.socks.all() {
		e := p.newEpoch()
		p.workers.Add(1)
		go func() { defer p.workers.Done(); p.receive(s, e) }()
	}
	p.workers.Add(1)
	go func() { defer p.workers.Done(); p.ticks.run(p) }()
	return p, nil
}

// AddTunnel makes the interface and sets it up, without addresses.
func (p *Plane) AddTunnel(t xfrm.Tunnel) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	if p.tunnels[t.Name] != nil {
		return fmt.Errorf("userspace: tunnel %s exists", t.Name)
	}
	if t.MTU < minMTU || t.MTU > maxMTU {
		return fmt.Errorf("userspace: tunnel %s: MTU (%d) must be between %d and %d", t.Name, t.MTU, minMTU, maxMTU)
	}
	f, err := openTUN(t.Name, t.MTU)
	if err != nil {
		return err
	}
	tn := &tunnel{Tunnel: t, scope: p.scope(t.Scope), epoch: p.newEpoch(), done: make(chan struct{})}
	if err := tn.attach(f); err != nil {
		f.Close()
		return err
	}
	p.setTunnel(t.Name, tn)
	go func() { defer close(tn.done); p.transmit(tn) }()
	return nil
}

// RemoveTunnel removes the interface and the SAs that use it.
func (p *Plane) RemoveTunnel(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	tn := p.tunnels[name]
	if tn == nil {
		return fmt.Errorf("userspace: no tunnel %s", name)
	}
	p.removeTunnel(tn)
	return nil
}

func (p *Plane) removeTunnel(tn *tunnel) {
	p.setTunnel(tn.Name, nil)
	tn.closing.Store(true)
	for _, s := range p.sas.list() {
		if s.tun == tn {
			p.remove(s)
		}
	}
	p.quiesce() // nobody writes to the interface any more
	if err := removeTUN(tn.fd); err != nil {
		p.log.Warn("tunnel interface stays", "tunnel", tn.Name, "error", err)
	}
	tn.file.Close()
	<-tn.done
	p.dropEpoch(tn.epoch)
}

// Close removes all interfaces and closes the sockets.
func (p *Plane) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.inject.close()
	p.warm.end()
	for _, tn := range p.tunnels {
		p.removeTunnel(tn)
	}
	close(p.ticks.stop)
	p.socks.close()
	p.mu.Unlock()
	p.socks.streams.close()
	p.workers.Wait()
	return nil
}

var errClosed = errors.New("userspace: data plane is closed")

// PlaneCounters counts what belongs to no tunnel.
func (p *Plane) PlaneCounters() xfrm.PlaneCounters {
	return xfrm.PlaneCounters{UnknownSPI: p.unknownSPI.Load(), Malformed: p.malformed.Load(), NoTunnel: p.noTunnel.Load(), Strays: p.strays.Load()}
}

// TunnelCounters is zero for a tunnel that does not exist.
func (p *Plane) TunnelCounters(name string) xfrm.TunnelCounters {
	p.mu.Lock()
	defer p.mu.Unlock()
	tn := p.tunnels[name]
	if tn == nil {
		return xfrm.TunnelCounters{}
	}
	return xfrm.TunnelCounters{
		NoSA: tn.noSA.Load(), Inactive: tn.inactive.Load(), TooBig: tn.tooBig.Load(),
		Strays: tn.strays.Load(), Injected: tn.injected.Load(),
	}
}

// Counters of the SA pair.
func (p *Plane) Counters(spi ipsec.ESPSPI) (xfrm.Counters, bool) {
	s := p.find(spi)
	if s == nil {
		return xfrm.Counters{}, false
	}
	return s.counters(), true
}
