package ike

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tandem/internal/ipsec"
)

// newIKESPI chooses an SPI that no IKE SA here has.
func (e *Engine) newIKESPI() ipsec.IKESPI {
	for {
		n := binary.BigEndian.Uint64(e.random(8))
		s := ipsec.IKESPI(n - n%uint64(e.o.Share.of()) + uint64(e.o.Share.Part))
		if s != 0 && e.sas[s] == nil && e.shelf[s] == nil {
			return s
		}
	}
}

// newESPSPI chooses an inbound SPI that neither a Child SA nor an exchange in flight has.
func (e *Engine) newESPSPI() ipsec.ESPSPI {
	for {
		n := binary.BigEndian.Uint32(e.random(4))
		s := ipsec.ESPSPI(n - n%uint32(e.o.Share.of()) + uint32(e.o.Share.Part))
		if s > lastReservedSPI && e.children[s] == nil && e.shelfChildren[s] == nil && !e.spiPending(s) {
			return s
		}
	}
}

func (e *Engine) spiPending(s ipsec.ESPSPI) bool {
	pending := false
	for own := range e.asking {
		if sa := e.sas[own]; sa == nil || sa.req == nil && len(sa.half) == 0 {
			delete(e.asking, own)
		} else if sa.req != nil && sa.req.spiIn == s || sa.halfPending(s) {
			pending = true
		}
	}
	return pending
}

// insert makes an IKE SA known under its SPI.
func (e *Engine) insert(sa *ikeSA) {
	e.seq++
	sa.seq = e.seq
	e.sas[sa.ownSPI()] = sa
	e.linkPeer(sa)
	e.holdAddresses(sa)
	if sa.req != nil || len(sa.half) > 0 {
		e.asking[sa.ownSPI()] = struct{}{}
	}
	e.refKey(sa.keyID)
	if sa.tunnel != nil {
		sa.tunnel.sas = append(sa.tunnel.sas, sa)
	}
	if sa.state == stateHalfOpen {
		e.halfOpen++
		sa.source = sourceOf(sa.remote.Addr())
		e.perSource[sa.source]++
	}
}

// closeHalfOpen ends the counting of a half-open responder.
func (e *Engine) closeHalfOpen(sa *ikeSA) {
	if !sa.source.IsValid() {
		return
	}
	e.halfOpen--
	if e.perSource[sa.source]--; e.perSource[sa.source] <= 0 {
		delete(e.perSource, sa.source)
	}
	sa.source = netip.Addr{}
	e.dropFragments(sa)
	if e.inits[sa.initKey] == sa {
		delete(e.inits, sa.initKey)
	}
}

// remove ends an IKE SA and its Child SAs. peer says that the peer authenticated
// the end (a tombstone).
func (e *Engine) remove(sa *ikeSA, peer bool, reason string) {
	if sa.state == stateGone {
		return
	}
	e.touch(sa)
	wasUp := sa.state == stateEstablished || sa.state == stateRekeyed
	sa.state, sa.peerDeleted = stateGone, peer
	for _, c := range slices.Clone(sa.children) {
		linger := time.Duration(0)
		if peer {
			linger = c.linger()
		}
		e.removeChildAfter(c, linger)
	}
	e.closeHalfOpen(sa)
	e.unroute(sa)
	e.dropAddresses(sa, peer)
	e.unlinkPeer(sa)
	if e.sas[sa.ownSPI()] == sa {
		delete(e.sas, sa.ownSPI())
	}
	e.unrefKey(sa.keyID)
	e.unrefPending(sa)
	if wasUp {
		e.info(sa, "deleted IKE SA", slog.String("reason", reason))
	} else {
		e.debug(sa, "deleted IKE SA", slog.String("reason", reason))
	}
	t := sa.tunnel
	if t != nil {
		t.sas = slices.DeleteFunc(t.sas, func(x *ikeSA) bool { return x == sa })
		if !wasUp {
			t.wants = nil // what asked will ask again; auto-negotiate does so by itself
		}
		e.tunnelChanged(t, reason)
	}
	e.arm(sa)
	sa.wipe()
}

// unrefPending lets go of the secrets of what is under way on an IKE SA.
func (e *Engine) unrefPending(sa *ikeSA) {
	if sa.req != nil {
		e.unrefKey(sa.req.keyID)
	}
	for _, h := range sa.half {
		e.unrefKey(h.keyID)
	}
}

// addChild makes a Child SA known and installs it once the record is committed.
func (e *Engine) addChild(sa *ikeSA, c *childSA) {
	e.touch(sa)
	sa.childrenSeq++
	c.seq, c.ike = sa.childrenSeq, sa
	c.installed = e.now
	sa.children = append(sa.children, c)
	e.children[c.SPIIn] = c
	e.refKey(c.KeyID)
	e.debugChild(c, "add IPsec SA: SPIs="+c.SPIIn.String()+"/"+c.SPIOut.String())
	e.hold(sa, Install{SA: c.ChildSA, SoftBytes: c.softBytes, HardBytes: c.hardBytes})
	if c.outbound {
		e.hold(sa, SetOutbound{SPIIn: c.SPIIn, Use: true})
		e.supersede(c)
	}
	if sa.tunnel != nil {
		sa.tunnel.childCreated++
		sa.tunnel.childEstablished++
		e.settled(sa.tunnel)
	}
	e.infoChild(c, "added IPsec SA: SPIs="+c.SPIIn.String()+"/"+c.SPIOut.String())
}

// removeChild ends a Child SA here.
func (e *Engine) removeChild(c *childSA) { e.removeChildAfter(c, 0) }

// removeChildAfter ends it, and lets it take for a while what is under way.
func (e *Engine) removeChildAfter(c *childSA, linger time.Duration) {
	sa := c.ike
	if e.children[c.SPIIn] != c {
		return
	}
	e.touch(sa)
	delete(e.children, c.SPIIn)
	sa.children = slices.DeleteFunc(sa.children, func(x *childSA) bool { return x == c })
	e.unrefKey(c.KeyID)
	e.infoChild(c, "deleted IPsec SA with SPI "+c.SPIOut.String(), slog.Int("sa_count", len(sa.children)))
	e.tx.held = append(e.tx.held, Remove{SPIIn: c.SPIIn, Linger: linger})
	if t := sa.tunnel; t != nil && e.tunnels[t.name] == t {
		if twin := t.twin(c); c.outbound && twin != nil {
			e.useOutbound(twin)
		}
		e.scheduleNegotiation(t)
	}
}

// twin is the newest other Child SA that can carry c's traffic, if possible one that the
// peer is known to have.
func (t *tunnel) twin(c *childSA) (twin *childSA) {
	for _, sa := range slices.Backward(t.sas) {
		if !sa.lives() {
			continue
		}
		for _, o := range slices.Backward(sa.children) {
			if o == c || o.state != childInstalled || !sameSelectors(o, c) {
				continue
			}
			if o.useAt.IsZero() {
				return o
			}
			if twin == nil {
				twin = o
			}
		}
	}
	return twin
}

// useOutbound switches outbound traffic to a Child SA.
func (e *Engine) useOutbound(c *childSA) {
	if c.outbound {
		return
	}
	e.touch(c.ike)
	c.outbound = true
	e.hold(c.ike, SetOutbound{SPIIn: c.SPIIn, Use: true})
	e.supersede(c)
}

// supersede stops the other Child SAs with c's selectors from sending; they go on
// receiving until they are deleted.
func (e *Engine) supersede(c *childSA) {
	sas := []*ikeSA{c.ike}
	if c.ike.tunnel != nil {
		sas = c.ike.tunnel.sas
	}
	for _, sa := range sas {
		for _, old := range sa.children {
			if old != c && old.outbound && (old.SPIIn == c.replaces || sameSelectors(old, c)) {
				e.touch(sa)
				old.outbound = false
				e.hold(sa, SetOutbound{SPIIn: old.SPIIn, Use: false})
			}
		}
	}
}

func sameSelectors(a, b *childSA) bool {
	return a.Phase2 == b.Phase2 && slices.Equal(a.TSLocal, b.TSLocal) && slices.Equal(a.TSRemote, b.TSRemote)
}

func (e *Engine) infoChild(c *childSA, msg string, more ...slog.Attr) {
	e.info(c.ike, msg, c.attrs(more...)...)
}

func (e *Engine) debugChild(c *childSA, msg string, more ...slog.Attr) {
	if e.logs(slog.LevelDebug) {
		e.debug(c.ike, msg, c.attrs(more...)...)
	}
}

// childOut finds a Child SA of an IKE SA by the SPI that the peer chose.
func (sa *ikeSA) childOut(spi ipsec.ESPSPI) *childSA {
	for _, c := range sa.children {
		if c.SPIOut == spi {
			return c
		}
	}
	return nil
}

// successorOf finds the newest Child SA that replaces c, if any.
func (c *childSA) successorOf() *childSA {
	for _, n := range slices.Backward(c.ike.children) {
		if n.replaces == c.SPIIn && n != c {
			return n
		}
	}
	return nil
}

// adopt moves the Child SAs of old to its successor (RFC 7296 §2.8).
func (e *Engine) adopt(old, to *ikeSA) {
	e.touch(old)
	e.touch(to)
	for _, c := range old.children {
		to.childrenSeq++
		c.seq, c.ike = to.childrenSeq, to
		to.children = append(to.children, c)
	}
	old.children = nil
	to.owed = append(to.owed, old.owed...)
	old.owed = nil
	to.deletedChildren = old.deletedChildren
	for _, name := range old.wants {
		to.want(name)
	}
	to.wantsAt, old.wants = time.Time{}, nil
}
