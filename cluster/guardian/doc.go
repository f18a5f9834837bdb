// Package guardian is the small parent process of the daemon, and the daemon's
// side of it (Client). The logic is cluster.Guard; here are its sockets, signals
// and clock.
//
// The guardian runs under SCHED_FIFO with locked memory, so that its heartbeats
// leave on time whatever the daemon and the rest of the machine do. One goroutine
// does all its work: it waits for datagrams, the daemon and its next tick, reads
// everything that is pending, and then ticks. A farm's members are heard by unicast;
// their beats do not wake it (peers.go). The daemon is started from a
// second thread that keeps normal scheduling, with a better nice value than others,
// and lives as long as the process: PDEATHSIG is tied to the thread that forks, and
// scheduling is inherited from it.
//
// Invariants: the daemon never outlives its guardian; what the daemon said before
// it ended is read before its end is announced; the shared addresses are gone
// when its end is announced.
package guardian
