package guardian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// synchronise makes node 1 owner of epoch 5.1 and node 2 its entitled standby.
func (p *pair) synchronise() {
	p.t.Helper()
	a, b := p.gw[1], p.gw[2]
	a.tell("owner 5.1")
	b.tell("standby 5.1")
	b.want(0, "EVENT TellPeer", `"Role":2`, `"Counter":5`, `"Running":true`, `"Deaf":false`)
	b.tell("entitle 5.1")
	b.want(0, "EVENT TellEntitled", `"Counter":5`)
	a.want(0, "EVENT TellPeer", `"Entitled":true`)
}

func TestPeersHearEachOtherOnBothDevices(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	p.gw[1].want(0, "EVENT TellPeer", "hb0", "hb1", "fe80::", `"Name":"gw2"`)
	p.gw[1].want(0, "EVENT daemon", `"policy":0`) // normal scheduling, though the guardian's is FIFO
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.gw[1].cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fifo, normal := 0, 0
	for _, x := range tasks {
		tid, _ := strconv.Atoi(x.Name())
		if a, err := unix.SchedGetAttr(tid, 0); err == nil && a.Policy == unix.SCHED_FIFO {
			fifo++
		} else if err == nil {
			normal++
		}
	}
	if fifo < 3 || normal != 1 {
		t.Errorf("%d threads under SCHED_FIFO and %d not; only the forking one should not be", fifo, normal)
	}
}

func TestDeathIsAnnouncedAndAddressesAreGone(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	run(t, "ip -n "+p.ns[1]+" addr add 192.0.2.1/24 dev lan")
	a.tell("address lan 192.0.2.1/24 02:00:00:00:00:77")
	pid := a.daemonPID()
	m, n := b.mark(), a.mark()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.want(m, "EVENT TellLoss", `"Kind":1`, `"Entitled":true`)
	if out, _ := exec.Command("ip", "-n", p.ns[1], "addr", "show", "dev", "lan").CombinedOutput(); strings.Contains(string(out), "192.0.2.1") {
		t.Error("the death was announced while the shared address was still there")
	}
	if out, _ := exec.Command("ip", "-n", p.ns[1], "link", "show", "dev", "lan").CombinedOutput(); !strings.Contains(string(out), "02:00:00:00:00:77") {
		t.Errorf("the death was announced while the device still had another MAC address than its own:\n%s", out)
	}
	a.want(n, "EVENT ready") // it is started again
	if a.daemonPID() == pid {
		t.Error("the same process")
	}
}

// Closing a dead daemon's interfaces may take the kernel a second; its death is
// announced before that, and it is started again after.
func TestDeathIsAnnouncedBeforeEverythingIsClosed(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	pid, m, n := a.daemonPID(), b.mark(), a.mark()
	a.tell("mute")
	b.want(m, "EVENT TellLoss", `"Kind":1`, `"Entitled":true`)
	if a.daemonPID() != pid {
		t.Error("a second daemon was started while the first was still being taken apart")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.want(n, "EVENT ready")
}

func TestStoppedDaemonIsKilledAndAnnounced(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	pid, m := a.daemonPID(), b.mark()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.want(m, "EVENT TellLoss", `"Kind":1`, `"Entitled":true`)
	a.want(0, "killing the daemon", "no progress")
}

func TestStoppedDaemonWithoutSuccessorIsLeftAlone(t *testing.T) {
	p := newPair(t)
	a, b := p.gw[1], p.gw[2]
	a.tell("owner 5.1")
	b.tell("standby 5.1")
	a.want(0, "EVENT TellPeer", `"Role":1`)
	pid, m := a.daemonPID(), a.mark()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The other daemon's restart takes longer than the watchdog would.
	for range 2 {
		k := b.mark()
		b.tell("exit 1")
		b.want(k, "EVENT ready")
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	a.tell("standby 5.1")
	a.wantNone(m, "killing")
}

func TestDaemonDiesWithItsGuardian(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m := b.mark()
	fd, err := unix.PidfdOpen(a.daemonPID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.want(m, "EVENT TellLoss", `"Kind":0`, `"Entitled":true`)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 5000); n != 1 {
		t.Errorf("the daemon outlives its guardian: %v", err)
	}
}

func TestBothStoppedLoseNothing(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	ma, mb := a.mark(), b.mark()
	pids := []int{a.cmd.Process.Pid, b.cmd.Process.Pid, a.daemonPID(), b.daemonPID()}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	<-time.After(600 * time.Millisecond)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	a.want(ma, "this process was stopped")
	b.want(mb, "this process was stopped")
	// Both still work together: a whole exchange passes.
	a.tell("ask 2")
	a.want(ma, "EVENT TellRemoved", `"Node":2`)
	a.wantNone(ma, "TellLoss")
	b.wantNone(mb, "TellLoss")
	a.wantNone(ma, "killing")
}

func TestRemovalAndClaim(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m, n := a.mark(), b.mark()
	a.tell("ask 2")
	a.want(m, "EVENT TellRemoved", `"Node":2`)
	b.want(n, "EVENT TellRemoved", `"Node":2`)
	n = b.mark()
	b.tell("entitle 5.1") // that epoch has gone on without it
	b.want(n, "EVENT TellRemoved", `"Node":2`)
	b.tell("claim 6.2")
	b.want(n, "EVENT TellClaimed", `"OK":false`)
	a.tell("owner 6.1")
	b.want(n, "EVENT TellPeer", `"Counter":6`)
	b.tell("entitle 6.1")
	b.want(n, "EVENT TellEntitled", `"Counter":6`)
	b.tell("claim 7.2")
	b.want(n, "EVENT TellClaimed", `"OK":true`)
}

func TestOneLinkLivesOn(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m, n := a.mark(), b.mark()
	run(t, "ip -n "+p.ns[1]+" link set hb0 down")
	b.want(n, "EVENT TellPeer", `"Links":[{"Device":"hb1"`)
	run(t, "ip -n "+p.ns[1]+" link set hb0 up")
	b.want(b.mark(), "EVENT TellPeer", `"Device":"hb0"`, `"Device":"hb1"`)
	// A device that is taken away and made anew is found again.
	run(t, "ip -n "+p.ns[1]+" link del hb1")
	a.want(m, "heartbeat device went away", "hb1")
	run(t, fmt.Sprintf("ip -n %s link add hb1 type veth peer name hb1 netns %s", p.ns[1], p.ns[2]))
	k := b.mark()
	for i := 1; i <= 2; i++ {
		run(t, "ip -n "+p.ns[i]+" link set hb1 up")
	}
	b.want(k, "EVENT TellPeer", `"Device":"hb0"`, `"Device":"hb1"`)
	a.wantNone(m, "TellLoss")
	b.wantNone(n, "TellLoss")
}

// TestNoFalseAlarmUnderLoad: what is stolen from the whole machine meanwhile, by its own
// host, is no load that a guardian could outdo; then it is tried again.
func TestNoFalseAlarmUnderLoad(t *testing.T) {
	for i := 1; ; i++ {
		p := newPair(t)
		p.synchronise()
		m, n := p.gw[1].mark(), p.gw[2].mark()
		before := stolen(t)
		load(8, 2*time.Second)
		took := stolen(t) - before
		alarms := p.gw[1].said(m, "TellLoss") + p.gw[2].said(n, "TellLoss")
		if alarms == "" {
			return
		}
		if took < 20*time.Millisecond || i == 3 {
			t.Fatalf("attempt %d, %v stolen from the machine: %s", i, took, alarms)
		}
		t.Logf("attempt %d: the machine stood still (%v)", i, took)
	}
}

// load keeps so many processes busy for a while.
func load(processes int, d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() { _ = exec.CommandContext(ctx, "sh", "-c", "while :; do :; done").Run() })
	}
	wg.Wait()
}

func TestBadConfigurationIsNotRetried(t *testing.T) {
	p := newPair(t)
	a := p.gw[1]
	a.tell("exit " + strconv.Itoa(ExitConfig))
	a.until("guardian ends", func() bool { return a.ended })
	if a.status != ExitConfig {
		t.Errorf("status %d, want %d", a.status, ExitConfig)
	}
}

func TestTermEndsBoth(t *testing.T) {
	p := newPair(t)
	p.synchronise()
	a, b := p.gw[1], p.gw[2]
	m := b.mark()
	pid := a.daemonPID()
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	b.want(m, "EVENT TellLoss", `"Kind":1`)
	a.until("guardian ends", func() bool { return a.ended })
	if a.status != 0 {
		t.Errorf("status %d", a.status)
	}
	if syscall.Kill(pid, 0) == nil {
		t.Error("the daemon lives on")
	}
}
