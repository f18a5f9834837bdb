//go:build breakpoints

package daemon

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tandem/ike"
	"tandem/internal/node"
	statesync "tandem/sync"
)

// breakpoint ends the daemon by SIGKILL around one effect: a test build's way to
// die in the middle of an exchange. The grammar of TANDEM_BREAK, and of
// `diagnose debug break SPEC`, which arms a running daemon:
//
//	EFFECT [ (EXCHANGE [,request|response]) ] [ :N ] [ :before|:after ]
//
// EFFECT is the type as Go prints it, without package paths: ike.Send,
// node.Install, node.SetBounds, node.Activate, statesync.SendFrame,
// cluster.WriteNote … EXCHANGE (of ike.Send only) is IKE_SA_INIT, IKE_AUTH,
// CREATE_CHILD_SA or INFORMATIONAL; N counts matching effects from 1. Without
// them: any exchange, both directions, the first, after. Example:
//
//	TANDEM_BREAK='ike.Send(IKE_AUTH,response):1:before'
//
// The owner's part of an exchange is: SendFrame (the record leaves for the
// standby), then ike.Send and node.Install once it is acknowledged. So the two
// sides of "persisted" are statesync.SendFrame:N:after and ike.Send(…):N:before.
type breakpoint struct {
	armed            bool
	effect, exchange string
	response         *bool
	n                int
	isBefore         bool

	withhold  bool         // frames are acknowledged here, and never leave
	activated []activation // since they were last asked for
}

var breakSpec = regexp.MustCompile(`^([a-z]+\.[A-Za-z]+)(?:\(([A-Z_]+)(?:,(request|response))?\))?(?::(\d+))?(?::(before|after))?$`)

var exchangeTypes = map[string]byte{"IKE_SA_INIT": 34, "IKE_AUTH": 35, "CREATE_CHILD_SA": 36, "INFORMATIONAL": 37}

func (b *breakpoint) arm(spec string) error {
	if spec == "" {
		return nil
	}
	m := breakSpec.FindStringSubmatch(spec)
	if m == nil {
		return fmt.Errorf("breakpoint %q: expected EFFECT[(EXCHANGE[,request|response])][:N][:before|after]", spec)
	}
	if _, ok := exchangeTypes[m[2]]; m[2] != "" && !ok {
		return fmt.Errorf("breakpoint %q: unknown exchange %s", spec, m[2])
	}
	next := breakpoint{armed: true, effect: m[1], exchange: m[2], n: 1, isBefore: m[5] == "before"}
	if m[3] != "" {
		r := m[3] == "response"
		next.response = &r
	}
	if m[4] != "" {
		next.n, _ = strconv.Atoi(m[4])
	}
	next.withhold = b.withhold
	*b = next
	return nil
}

// withholds makes a lie of what a takeover rests on: the standby misses what it is
// believed to hold.
func (b *breakpoint) withholds(l *loop, e statesync.SendFrame) bool {
	if b.withhold {
		l.offerRemote(func(now time.Time) { l.node.HandleAck(now, e.Node, e.Process, e.Scope, e.Seq) })
	}
	return b.withhold
}

func (b *breakpoint) matches(e node.Effect) bool {
	if !b.armed || strings.TrimPrefix(fmt.Sprintf("%T", e), "*") != b.effect {
		return false
	}
	if b.exchange == "" {
		return true
	}
	s, ok := e.(ike.Send)
	if !ok || len(s.Data) < 28 || s.Data[18] != exchangeTypes[b.exchange] {
		return false
	}
	const flagResponse = 0x20 // RFC 7296 §3.1
	return b.response == nil || *b.response == (s.Data[19]&flagResponse != 0)
}

func (b *breakpoint) before(e node.Effect) { b.hit(e, true) }
func (b *breakpoint) after(e node.Effect)  { b.note(e); b.hit(e, false) }

func (b *breakpoint) hit(e node.Effect, before bool) {
	if before != b.isBefore || !b.matches(e) {
		return
	}
	if b.n--; b.n > 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // nothing of this process goes on
}

func init() {
	extraCommands = append(extraCommands, command{"diagnose debug break", "SPEC", "test build: end this process at an effect",
		func(s *session, args []string) error {
			d, ok := s.d.(*Daemon)
			if !ok || len(args) != 1 {
				return usagef("expected: SPEC")
			}
			var err error
			if cerr := d.loop.call(s.ctx, func(time.Time) { err = d.breaks.arm(args[0]) }); cerr != nil {
				return cerr
			}
			return err
		}}, command{"diagnose debug withhold", "", "test build: nothing is replicated any more, and nobody is told",
		func(s *session, args []string) error {
			d, ok := s.d.(*Daemon)
			if !ok || len(args) != 0 {
				return usagef("expected no argument")
			}
			return d.loop.call(s.ctx, func(time.Time) { d.breaks.withhold = true })
		}})
}
