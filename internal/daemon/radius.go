package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"tandem/ike"
	"tandem/internal/ipsec"
)

// Bounds on RADIUS.
const (
	radiusAtOnce = 256              // questions under way; beyond it peers try again
	radiusKept   = 1024             // answers
	radiusHeld   = 30 * time.Second // that an answer is kept: as long as its message may come again
	radiusFirst  = time.Second      // before a question is sent again, doubled each time
	radiusPort   = 1812
)

// radiusAsker asks RADIUS servers (RFC 2865, RFC 3579), outside of the loop, and keeps what they said
// until the message that waits for it has been handed in again.
type radiusAsker struct {
	log   *slog.Logger
	again func(ike.Datagram)
	now   func() time.Time
	host  string
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex
	known  map[[sha256.Size]byte]radiusAnswer
	asking map[[sha256.Size]byte]bool
}

type radiusAnswer struct {
	ike.RADIUSAnswer
	until time.Time
}

func newRADIUS(log *slog.Logger, host string, again func(ike.Datagram)) *radiusAsker {
	ctx, stop := context.WithCancel(context.Background())
	if host == "" {
		host, _ = os.Hostname()
	}
	return &radiusAsker{log: log, again: again, now: time.Now, host: cmp.Or(host, "gateway"), ctx: ctx, stop: stop,
		known: map[[sha256.Size]byte]radiusAnswer{}, asking: map[[sha256.Size]byte]bool{}}
}

// close ends what is under way.
func (r *radiusAsker) close() {
	r.stop()
	r.wg.Wait()
}

// answer is ike.Options.RADIUS.
func (r *radiusAsker) answer(key [sha256.Size]byte) (ike.RADIUSAnswer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.known[key]
	if !ok || !r.now().Before(a.until) {
		return ike.RADIUSAnswer{}, false
	}
	a.Key = ipsec.NewKey(a.Key.Bytes()) // keep wipes the other
	return a.RADIUSAnswer, true
}

// ask begins to ask and returns at once. What is asked already, or too much at once, waits for the peer to
// send its message again.
func (r *radiusAsker) ask(q ike.AskRADIUS) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asking[q.Key] || len(r.asking) >= radiusAtOnce || r.ctx.Err() != nil {
		return
	}
	r.asking[q.Key] = true
	r.wg.Go(func() {
		a, err := r.conversation(q)
		if err != nil {
			r.log.Warn("no answer of a RADIUS server", "server", q.Server.Name, "error", err.Error())
		}
		r.keep(q.Key, a)
		r.again(q.Datagram)
	})
}

func (r *radiusAsker) keep(key [sha256.Size]byte, a ike.RADIUSAnswer) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.asking, key)
	for k, x := range r.known {
		if now.After(x.until) || len(r.known) >= radiusKept {
			x.Key.Wipe()
			delete(r.known, k)
		}
	}
	r.known[key] = radiusAnswer{a, now.Add(radiusHeld)}
}

// conversation asks the hosts of a server one after the other; where one has begun, that one only: the
// other does not know the conversation.
func (r *radiusAsker) conversation(q ike.AskRADIUS) (ike.RADIUSAnswer, error) {
	hosts := []int{1}
	switch {
	case q.Which != 0:
		hosts = []int{q.Which}
	case q.Server.Servers[1] != "":
		hosts = append(hosts, 2)
	}
	var faults []error
	for _, n := range hosts {
		a, err := r.exchange(q, n, q.Server.Timeout/time.Duration(len(hosts)))
		if err == nil {
			a.Which = n
			return a, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", q.Server.Servers[n-1], err))
	}
	return ike.RADIUSAnswer{}, errors.Join(faults...)
}

// exchange asks one host for so long.
func (r *radiusAsker) exchange(q ike.AskRADIUS, n int, patience time.Duration) (ike.RADIUSAnswer, error) {
	server, secret := q.Server.Servers[n-1], q.Server.Secrets[n-1].Bytes()
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	d := net.Dialer{}
	if q.Server.SourceIP4.IsValid() {
		d.LocalAddr = &net.UDPAddr{IP: q.Server.SourceIP4.AsSlice()}
	}
	c, err := d.DialContext(ctx, "udp", net.JoinHostPort(server, strconv.Itoa(cmp.Or(q.Server.Port, radiusPort))))
	if err != nil {
		return ike.RADIUSAnswer{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	request, err := radiusRequest(q, cmp.Or(q.Server.NASID, r.host), secret)
	if err != nil {
		return ike.RADIUSAnswer{}, err
	}
	b := make([]byte, 4096)
	fault := errors.New("it says nothing")
	for wait := radiusFirst; ; wait *= 2 {
		if _, err := c.Write(request); err != nil && ctx.Err() == nil {
			fault = err // a closed port, perhaps: it may open yet
		}
		c.SetReadDeadline(time.Now().Add(wait))
		for {
			size, err := c.Read(b)
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					fault = err
					select { // refused at once
					case <-ctx.Done():
					case <-time.After(radiusFirst / 4):
					}
				}
				break
			}
			a, err := radiusResponse(b[:size], request, secret)
			if err == nil {
				return a, nil
			}
			fault = err // somebody else's, or of a server that has another secret
		}
		if ctx.Err() != nil {
			return ike.RADIUSAnswer{}, fault
		}
	}
}
