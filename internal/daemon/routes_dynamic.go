package daemon

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dynamicRoutes keeps the routes that add-route promises, one for each dialup client,
// so tens of thousands. The event loop says what it wants and does not wait: the kernel
// answers every route by itself, and takes milliseconds when its table grows. A
// goroutine carries the wishes out; of those for one route the last counts.
type dynamicRoutes struct {
	log  *slog.Logger
	want map[dynamicRoute]bool // owned by the loop: all that shall stand

	mu      sync.Mutex
	idle    sync.Cond             // of mu: nothing is open and nothing under way
	open    map[dynamicRoute]bool // wishes not carried out: true adds
	busy    bool
	closed  bool
	wake    chan struct{}
	done    chan struct{}
	netlink *netlink.Handle
	batch   *routeBatch    // owned by the goroutine, as what follows
	devices map[string]int // indexes
	looked  time.Time      // when the first of them was looked up
}

type dynamicRoute struct {
	dev    string
	prefix netip.Prefix
}

// newDynamicRoutes speaks with the kernel about the network namespace of the caller's thread.
func newDynamicRoutes(log *slog.Logger) (*dynamicRoutes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	b, err := newRouteBatch()
	if err != nil {
		h.Close()
		return nil, err
	}
	r := &dynamicRoutes{log: log, want: map[dynamicRoute]bool{}, open: map[dynamicRoute]bool{},
		wake: make(chan struct{}, 1), done: make(chan struct{}), netlink: h, batch: b}
	r.idle.L = &r.mu
	go r.run()
	return r, nil
}

// add and remove keep one route.
func (r *dynamicRoutes) add(dev string, p netip.Prefix) {
	d := dynamicRoute{dev, p}
	r.want[d] = true
	r.wish(d, true)
}

func (r *dynamicRoutes) remove(dev string, p netip.Prefix) {
	d := dynamicRoute{dev, p}
	delete(r.want, d)
	r.wish(d, false)
}

// again has all of them installed once more.
func (r *dynamicRoutes) again() {
	for d := range r.want {
		r.wish(d, true)
	}
}

func (r *dynamicRoutes) wish(d dynamicRoute, add bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.open[d] = add
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *dynamicRoutes) run() {
	defer close(r.done)
	for range r.wake {
		for r.turn() {
		}
	}
}

// turn carries out what is open; false when that was nothing.
func (r *dynamicRoutes) turn() bool {
	r.mu.Lock()
	todo := r.open
	r.open, r.busy = map[dynamicRoute]bool{}, len(todo) > 0 && !r.closed
	if !r.busy {
		r.idle.Broadcast()
		r.mu.Unlock()
		return false
	}
	r.mu.Unlock()
	if now := time.Now(); now.Sub(r.looked) > deviceAge {
		r.devices, r.looked = map[string]int{}, now
	}
	for d, add := range todo {
		r.carry(d, add)
	}
	r.told(r.batch.flush(r.refused))
	return true
}

// deviceAge is how long an interface's index is believed. One that came anew is at least as
// long away, or the daemon installs all routes again.
const deviceAge = 500 * time.Millisecond

// carry carries out one wish.
func (r *dynamicRoutes) carry(d dynamicRoute, add bool) {
	index, ok := r.devices[d.dev]
	var err error
	if !ok {
		var link netlink.Link
		if link, err = r.netlink.LinkByName(d.dev); err == nil {
			index = link.Attrs().Index
		}
		r.devices[d.dev] = index
	}
	if index == 0 {
		delete(r.devices, d.dev)
		if add && err != nil {
			r.log.Warn("routes not added", "device", d.dev, "error", err)
		}
		return // removed: the interface is gone, and the route with it
	}
	r.told(r.batch.put(routeChange{add, index, d.prefix}, r.refused))
}

// refused is told of a route that the kernel does not take, or does not know.
func (r *dynamicRoutes) refused(c routeChange, err error) {
	switch {
	case c.add && err == unix.ENODEV && !r.looked.IsZero():
		r.looked = time.Time{} // the interface came anew, with another index
		for dev, index := range r.devices {
			if index == c.index {
				r.wish(dynamicRoute{dev, c.prefix}, true)
			}
		}
	case c.add:
		r.log.Warn("route not added", "dst", c.prefix.String(), "interface", c.index, "error", err)
	case err != unix.ESRCH:
		r.log.Warn("route not removed", "dst", c.prefix.String(), "interface", c.index, "error", err)
	}
}

func (r *dynamicRoutes) told(err error) {
	if err != nil {
		r.log.Error("routes not carried out", "error", err)
	}
}

// settle waits until everything wished for so far is carried out.
func (r *dynamicRoutes) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.busy || len(r.open) > 0 && !r.closed {
		r.idle.Wait()
	}
}

// close ends it; what is under way is finished, what is open is not begun.
func (r *dynamicRoutes) close() {
	r.mu.Lock()
	closed := r.closed
	if r.closed = true; !closed {
		close(r.wake)
	}
	r.mu.Unlock()
	<-r.done
	if closed {
		return
	}
	r.netlink.Close()
	r.batch.close()
}
