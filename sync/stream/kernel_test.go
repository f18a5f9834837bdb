package stream

import (
	"context"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"tandem/cluster"
	"tandem/internal/needs"
	"tandem/internal/testkit"
)

// deafen drops everything that enters the namespace of the calling thread.
func deafen(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "silence"})
	chain := c.AddChain(&nftables.Chain{
		Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// A path goes silent under an idle stream: nothing is written, no error comes, and only
// the kernels' keepalives can tell. Both ends are torn down within about two seconds.
// This is the one thing of the streams that a synctest bubble cannot host: the timers
// are the kernel's, and its sockets do not stand still while fake time waits. So it runs
// over real TCP, in a network namespace and in real time.
func TestKernelFindsSilentPath(t *testing.T) {
	needs.Root(t)
	for _, load := range []bool{false, true} {
		t.Run(map[bool]string{false: "idle", true: "with frames unacknowledged"}[load], func(t *testing.T) {
			runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
			ns, err := netns.New()
			if err != nil {
				t.Fatalf("a network namespace is needed (run as root): %v", err)
			}
			t.Cleanup(func() { ns.Close() })
			lo, err := netlink.LinkByName("lo")
			if err == nil {
				err = netlink.LinkSetUp(lo)
			}
			if err != nil {
				t.Fatal(err)
			}
			// The sockets are made on this thread; whoever uses them may be on any.
			listener, err := listen(t.Context(), "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			a, m := newAuthority(t), newMedium()
			one := newDeafHost(t, a, inNamespace(int(ns), m.dial), 1, 0xa1)
			two := newDeafHost(t, a, m.dial, 2, 0xb1)
			two.ack = true
			two.port = uint16(listener.Addr().(*net.TCPAddr).Port)
			if err := two.Serve(listener); err != nil {
				t.Fatal(err)
			}
			one.knows(two, "hb1")
			testkit.Until(t, "the stream is open", func() bool { return two.streams(1) == 1 && one.live(2) == 1 })

			deafen(t)
			began := time.Now()
			if load {
				one.sends(two, 1, 1, 100)
			}
			one.told("up 2 b1", "down 2 b1")
			sender := time.Since(began)
			testkit.Until(t, "the receiver's end is torn down", func() bool { return two.streams(1) == 0 })
			receiver := time.Since(began)
			t.Logf("sender after %v, receiver after %v", sender.Round(time.Millisecond), receiver.Round(time.Millisecond))
			least, most := 900*time.Millisecond, 3500*time.Millisecond // documented: about 2 s, with data about 1 s
			if sender < least || sender > most || receiver < least || receiver > most {
				t.Errorf("the sender's end is torn down after %v, the receiver's after %v; want about 2 s", sender, receiver)
			}
		})
	}
}

// inNamespace dials on a thread of its own in a network namespace.
func inNamespace(ns int, dial dialer) dialer {
	return func(ctx context.Context, l cluster.Link, port uint16) (net.Conn, error) {
		type result struct {
			c   net.Conn
			err error
		}
		done := make(chan result, 1)
		go func() {
			runtime.LockOSThread() // and never unlocked
			if err := netns.Set(netns.NsHandle(ns)); err != nil {
				done <- result{nil, err}
				return
			}
			c, err := dial(ctx, l, port)
			done <- result{c, err}
		}()
		r := <-done
		return r.c, r.err
	}
}

type dialer = func(context.Context, cluster.Link, uint16) (net.Conn, error)
