package cluster

import "time"

// The model of journal and replica, and the checks.

// work is the traffic of the owner: one write every 3 ms; every 50 ms it looks at its lag.
func (n *wnode) work(p ProcessID) {
	n.w.after(3*time.Millisecond, func() {
		if n.pair == nil || n.process != p {
			return
		}
		n.daemon(p, func() {
			if n.owner && !n.handing {
				n.w.writes++
				n.state = n.w.writes
				if n.gates {
					n.frame("record", n.state)
				} else {
					n.commit(n.state)
				}
			}
			if n.owner && n.gates && n.acked < n.sent && n.w.now.Sub(n.unacked) > 50*time.Millisecond {
				n.pair.HandleLag(n.w.now, n.other().id, n.w.now.Sub(n.unacked))
			}
		})
		n.work(p)
	})
}

// commit: a write may be seen by the outside.
func (n *wnode) commit(k int) {
	// Once the other process is known to have ended, its note on disk decides.
	asks := n.pair.tookFrom != 0 && n.pair.peer.Process != n.pair.tookProc
	if n.run.succeeded && !n.diskNote && k > n.run.limit && !asks {
		n.w.fail("node %d commits after a covered takeover from it, without having noted that it is alone", n.id)
	}
	n.run.committed = max(n.run.committed, k)
}

func (n *wnode) frame(kind string, k int) {
	if n.acked == n.sent {
		n.unacked = n.w.now
	}
	if kind == "record" {
		n.sent = k
	}
	n.out = append(n.out, frame{n.member, n.epoch, kind, k})
	n.pump()
}

func (n *wnode) pump() {
	if n.busy || len(n.out) == 0 {
		return
	}
	n.busy = true
	p := n.process
	n.w.after(150*time.Microsecond, func() {
		if n.pair == nil || n.process != p {
			return
		}
		n.busy = false
		o := n.other()
		switch {
		case !n.reach() || n.slow:
			n.w.after(5*time.Millisecond, func() {
				if n.process == p {
					n.pump()
				}
			})
		case len(n.out) > 0:
			f := n.out[0]
			n.out = n.out[1:]
			o.daemon(f.to, func() { o.receive(f, p) })
			n.pump()
		}
	})
}

// receive is the replica.
func (n *wnode) receive(f frame, from ProcessID) {
	if n.owner || f.epoch.Less(n.fence) {
		return
	}
	n.fence = f.epoch
	o := n.other()
	switch f.kind {
	case "copy":
		n.state, n.entry, n.lastAck = f.n, true, 0
		n.pair.HandleCopied(n.w.now, f.epoch)
	case "record":
		n.state, n.lastAck = f.n, f.n
		if !n.entry {
			n.ack(from, f.n)
		}
	case "handover":
		n.state = f.n
		n.pair.HandleHandover(n.w.now, f.epoch)
		n.w.after(150*time.Microsecond, func() {
			o.daemon(from, func() { o.pair.HandleHandedOver(n.w.now, n.id, true) })
		})
	}
}

func (n *wnode) ack(to ProcessID, k int) {
	o, me := n.other(), n.process
	n.w.after(150*time.Microsecond, func() {
		o.daemon(to, func() {
			if o.member != me || !o.gates {
				return
			}
			o.acked, o.unacked = max(o.acked, k), n.w.now
			if o.owner && !o.handing {
				o.commit(o.acked)
			}
		})
	})
}

func (n *wnode) own(o Own) {
	w := n.w
	if was, ok := w.owned[o.Epoch]; ok {
		w.fail("epoch %v made twice, by %x and %x", o.Epoch, was, n.process)
	}
	w.owned[o.Epoch] = n.process
	if o.Epoch.Node != n.id {
		w.fail("node %d owns epoch %v", n.id, o.Epoch)
	}
	if o.Epoch.Less(n.fence) {
		w.fail("node %d owns epoch %v beneath %v", n.id, o.Epoch, n.fence)
	}
	if o.Renewal && (!n.owner || n.gates) {
		w.fail("node %d renews without owning, or with a member", n.id)
	}
	if !o.Renewal && n.owner && !n.handing {
		w.fail("node %d owns already", n.id)
	}
	if o.Covered && !o.Renewal && !n.handing {
		last := w.lastRun(n.other())
		if last == nil {
			w.fail("node %d takes over as covered from nobody", n.id)
		}
		if n.state < last.committed && !last.node.diskNote {
			w.fail("node %d takes over as covered with %d, but %d was committed", n.id, n.state, last.committed)
		}
		if o.Handover && last.node.owner && !last.node.handing {
			w.fail("handed over by an owner that goes on")
		}
		last.succeeded, last.limit = true, n.state
	}
	if o.Renewal && !o.Covered {
		n.run.succeeded = false // healed: it goes on with the state of both
	}
	n.owner, n.handing, n.epoch, n.gates, n.member, n.fence = true, false, o.Epoch, false, 0, o.Epoch
	if !o.Renewal {
		if !o.Trusted {
			w.writes++
			n.state = w.writes
		}
		n.run = &ownership{node: n, process: n.process, committed: n.state}
		w.runs = append(w.runs, n.run)
	}
}

// lastRun is the last ownership of a node.
func (w *world) lastRun(n *wnode) *ownership {
	for i := len(w.runs) - 1; i >= 0; i-- {
		if w.runs[i].node == n {
			return w.runs[i]
		}
	}
	return nil
}

// count counts the effects of one type.
func count[E Effect](n *wnode) (k int) {
	for _, e := range n.effects {
		if _, ok := e.(E); ok {
			k++
		}
	}
	return k
}

// lastOwn is the node's last Own.
func (n *wnode) lastOwn() (o Own) {
	for _, e := range n.effects {
		if x, ok := e.(Own); ok {
			o = x
		}
	}
	return o
}
