package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
)

// poolLink is one direction in which a member reaches another. Cut, it swallows
// everything; healed, what it swallowed from is closed.
type poolLink struct {
	l     net.Listener
	at    func() int // the other's port at present; 0: nobody listens
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func (k *poolLink) serve() {
	for {
		in, err := k.l.Accept()
		if err != nil {
			return
		}
		go k.carry(in)
	}
}

func (k *poolLink) carry(in net.Conn) {
	var out net.Conn
	if p := k.at(); p != 0 && !k.isCut() {
		out, _ = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p))
	}
	k.mu.Lock()
	if out == nil && !k.cut {
		k.mu.Unlock()
		in.Close()
		return
	}
	k.conns[in] = true
	k.mu.Unlock()
	end := func() {
		k.mu.Lock()
		delete(k.conns, in)
		k.mu.Unlock()
		in.Close()
		if out != nil {
			out.Close()
		}
	}
	if out != nil {
		go func() { k.copy(in, out); end() }()
	}
	k.copy(out, in)
	end()
}

func (k *poolLink) copy(to io.Writer, from io.Reader) {
	b := make([]byte, 32<<10)
	lost := false // what is cut once stays so: bytes are missing
	for {
		n, err := from.Read(b)
		if lost = lost || k.isCut(); !lost && n > 0 && err == nil {
			_, err = to.Write(b[:n])
		}
		if err != nil {
			return
		}
	}
}

func (k *poolLink) isCut() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cut
}

func (k *poolLink) set(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut = cut; cut {
		return
	}
	for c := range k.conns {
		c.Close()
	}
}

// poolLease is a number in use.
type poolLease struct {
	node    fsm.NodeID
	process uint64
	in      fsm.RangeID
}

// poolGroup are three members, each a process of its own with certificate, port and disk.
type poolGroup struct {
	t     *testing.T
	dir   string
	pipe  *os.File
	links map[[2]fsm.NodeID]*poolLink

	mu      sync.Mutex
	procs   map[fsm.NodeID]*exec.Cmd
	stdin   map[fsm.NodeID]io.WriteCloser
	process map[fsm.NodeID]uint64
	ports   map[fsm.NodeID]int
	joined  map[fsm.NodeID]bool
	state   map[fsm.NodeID]*poolState
	answer  map[fsm.NodeID]fsm.Code
	asked   chan struct{} // something was answered
	life    uint64

	leases  map[fsm.Space]map[uint64]poolLease
	gave    map[fsm.NodeID]int                 // by the present process
	alone   map[fsm.NodeID]int                 // of these, before it was synchronised
	from    map[fsm.NodeID]map[fsm.RangeID]int // which range the present process gave how many out of
	given   int
	freed   int
	left    map[fsm.RangeID]uint64 // numbers that are not in use, of ranges with some that are
	marks   chan struct{}          // the pipe has been read up to here
	doubled []string
}

func newPoolGroup(t *testing.T) *poolGroup {
	t.Helper()
	g := &poolGroup{t: t, dir: t.TempDir(), links: map[[2]fsm.NodeID]*poolLink{}, procs: map[fsm.NodeID]*exec.Cmd{}, stdin: map[fsm.NodeID]io.WriteCloser{},
		process: map[fsm.NodeID]uint64{}, ports: map[fsm.NodeID]int{}, joined: map[fsm.NodeID]bool{}, state: map[fsm.NodeID]*poolState{}, answer: map[fsm.NodeID]fsm.Code{},
		asked: make(chan struct{}, 1), marks: make(chan struct{}), left: map[fsm.RangeID]uint64{}, leases: map[fsm.Space]map[uint64]poolLease{}, gave: map[fsm.NodeID]int{}, alone: map[fsm.NodeID]int{}, from: map[fsm.NodeID]map[fsm.RangeID]int{}}
	for _, s := range poolSpaces {
		g.leases[s.space] = map[uint64]poolLease{}
	}
	if err := cluster.InitCluster(filepath.Join(g.dir, "cluster"), "pool", []string{"gw1", "gw2", "gw3"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	g.pipe = w
	read := make(chan struct{})
	go func() { defer close(read); g.listen(r) }()
	t.Cleanup(func() {
		for n := range g.procs {
			g.kill(n)
		}
		w.Close()
		<-read
		for _, k := range g.links {
			k.l.Close()
			k.set(false)
		}
		if t.Failed() {
			for n := 1; n <= 3; n++ {
				text, _ := os.ReadFile(g.logOf(fsm.NodeID(n)))
				t.Logf("gw%d:\n%s", n, text[max(0, len(text)-6000):])
			}
		}
	})
	for a := fsm.NodeID(1); a <= 3; a++ {
		for b := fsm.NodeID(1); b <= 3; b++ {
			if a == b {
				continue
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			k := &poolLink{l: l, conns: map[net.Conn]bool{}, at: func() int {
				g.mu.Lock()
				defer g.mu.Unlock()
				return g.ports[b]
			}}
			g.links[[2]fsm.NodeID{a, b}] = k
			go k.serve()
		}
	}
	return g
}

func (g *poolGroup) logOf(n fsm.NodeID) string {
	return filepath.Join(g.dir, fmt.Sprintf("gw%d.log", n))
}
func (g *poolGroup) diskOf(n fsm.NodeID) string {
	return filepath.Join(g.dir, fmt.Sprintf("state-gw%d", n))
}

func (g *poolGroup) start(n fsm.NodeID) {
	g.t.Helper()
	g.mu.Lock()
	g.life++
	c := poolConfig{Self: n, Process: g.life, Identity: filepath.Join(g.dir, "cluster", fmt.Sprintf("gw%d", n)), State: g.diskOf(n), Peers: map[fsm.NodeID]string{}}
	for k, l := range g.links {
		if k[0] == n {
			c.Peers[k[1]] = l.l.Addr().String()
		}
	}
	g.process[n], g.joined[n], g.gave[n], g.alone[n], g.from[n] = g.life, false, 0, 0, map[fsm.RangeID]int{}
	g.mu.Unlock()
	text, err := json.Marshal(c)
	if err != nil {
		g.t.Fatal(err)
	}
	log, err := os.OpenFile(g.logOf(n), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		g.t.Fatal(err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		g.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), poolMemberEnv+"="+string(text))
	cmd.Stderr, cmd.ExtraFiles = log, []*os.File{g.pipe}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.procs[n], g.stdin[n] = cmd, in
	g.mu.Unlock()
}

// kill ends a member with SIGKILL.
func (g *poolGroup) kill(n fsm.NodeID) {
	g.t.Helper()
	g.mu.Lock()
	cmd := g.procs[n]
	delete(g.procs, n)
	g.ports[n], g.joined[n] = 0, false
	g.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil {
		g.t.Errorf("gw%d ended by itself: %v", n, err)
	}
	var e *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &e) || e.ExitCode() != -1 {
		g.t.Errorf("gw%d ended by itself: %v", n, err)
	}
}

// heard returns when all that was said until now has been taken in.
func (g *poolGroup) heard() {
	g.t.Helper()
	if _, err := g.pipe.WriteString(`{"What":"mark"}` + "\n"); err != nil {
		g.t.Fatal(err)
	}
	<-g.marks
}

func (g *poolGroup) loseDisk(n fsm.NodeID) {
	g.t.Helper()
	if err := os.RemoveAll(g.diskOf(n)); err != nil {
		g.t.Fatal(err)
	}
}

// cut parts a member from the others, or undoes that.
func (g *poolGroup) cut(n fsm.NodeID, cut bool) {
	for k, l := range g.links {
		if k[0] == n || k[1] == n {
			l.set(cut)
		}
	}
}

func (g *poolGroup) tell(n fsm.NodeID, o poolOrder) {
	b, err := json.Marshal(o)
	if err != nil {
		g.t.Error(err)
	}
	g.mu.Lock()
	in := g.stdin[n]
	g.mu.Unlock()
	_, _ = in.Write(append(b, '\n')) // it may have been killed
}

// listen takes what the members say, in the order in which they said it.
func (g *poolGroup) listen(r *os.File) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e poolEvent
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			g.t.Errorf("%s: %v", in.Bytes(), err)
			continue
		}
		if e.What == "mark" {
			g.marks <- struct{}{}
		}
		if known := g.event(e); known != nil {
			go g.tell(e.Node, *known)
		}
	}
}

func (g *poolGroup) event(e poolEvent) (tell *poolOrder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	present := g.process[e.Node] == e.Process && g.procs[e.Node] != nil
	switch e.What {
	case "gave":
		g.given++
		if l, ok := g.leases[e.Space][e.Number]; ok {
			g.doubled = append(g.doubled, fmt.Sprintf("gw%d (process %d, alone %v) gives out number %d of space %d from range %d, which gw%d (process %d) gave out of range %d",
				e.Node, e.Process, e.Alone, e.Number, e.Space, e.Range, l.node, l.process, l.in))
		}
		g.leases[e.Space][e.Number] = poolLease{e.Node, e.Process, e.Range}
		g.left[e.Range] = e.Left
		if present {
			g.gave[e.Node]++
			g.from[e.Node][e.Range]++
			if e.Alone {
				g.alone[e.Node]++
			}
		}
	case "frees":
		g.free(e.Range)
		g.freed++
	case "listens":
		if present {
			g.ports[e.Node] = e.Port
		}
	case "joined": // whoever stood by for its tunnels tells it what is in use
		if present {
			g.joined[e.Node] = true
			tell = &poolOrder{What: "know", Used: map[fsm.Space][]uint64{}}
			for space, list := range g.leases {
				for n, l := range list {
					if l.node == e.Node {
						tell.Used[space] = append(tell.Used[space], n)
					}
				}
			}
		}
	case "answer", "state":
		if present {
			g.answer[e.Node], g.state[e.Node] = e.Code, e.State
			select {
			case g.asked <- struct{}{}:
			default:
			}
		}
	}
	return tell
}

// free ends the tunnels with numbers of a range; g.mu is held.
func (g *poolGroup) free(r fsm.RangeID) {
	delete(g.left, r)
	for _, list := range g.leases {
		for n, l := range list {
			if l.in == r {
				delete(list, n)
			}
		}
	}
}

// ask gives an order and waits for the answer.
func (g *poolGroup) ask(n fsm.NodeID, o poolOrder) (fsm.Code, *poolState) {
	g.t.Helper()
	select {
	case <-g.asked:
	default:
	}
	g.tell(n, o)
	select {
	case <-g.asked:
	case <-time.After(10 * time.Second):
		g.t.Fatalf("gw%d does not answer: %+v", n, o)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answer[n], g.state[n]
}

func (g *poolGroup) view(n fsm.NodeID) poolState {
	g.t.Helper()
	_, s := g.ask(n, poolOrder{What: "state"})
	return *s
}

func (g *poolGroup) holds(f func() bool) func() bool {
	return func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return f()
	}
}

// goesOn waits until members have joined and each has given out so many numbers more.
func (g *poolGroup) goesOn(what string, members ...fsm.NodeID) {
	g.t.Helper()
	g.mu.Lock()
	before := map[fsm.NodeID]int{}
	for _, n := range members {
		before[n] = g.gave[n]
	}
	g.mu.Unlock()
	eventually(g.t, 20*time.Second, what+": all give out numbers", g.holds(func() bool {
		for _, n := range members {
			if !g.joined[n] || g.gave[n] < before[n]+40 {
				return false
			}
		}
		return true
	}))
	g.sound(what)
}

// sound wants that no number was given out twice.
func (g *poolGroup) sound(what string) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.doubled) > 0 {
		g.t.Fatalf("%s: %d numbers were given out twice: %s", what, len(g.doubled), g.doubled[0])
	}
}
