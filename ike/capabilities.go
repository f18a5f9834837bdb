package ike

import (
	"tandem/ike/message"
	"tandem/internal/config"
)

// What both sides said in IKE_SA_INIT that they can, and so do: bits of ikeSA.caps beside
// those of midsync.go. They are in records: append only.
const (
	capFragmentation uint32 = 1 << (8 + iota) // IKEV2_FRAGMENTATION_SUPPORTED (RFC 7383 §2.3)
)

// initNotifies are the capabilities that IKE_SA_INIT negotiates by an empty notification.
var initNotifies = []struct {
	cap    uint32
	notify message.NotifyType
	on     func(*config.Phase1) bool
}{
	{capFragmentation, message.FragmentationSupported, func(p *config.Phase1) bool { return p.Fragmentation }},
}

// initCapabilities are those that a phase 1 entry offers.
func initCapabilities(p1 *config.Phase1) (caps uint32) {
	for _, n := range initNotifies {
		if n.on(p1) {
			caps |= n.cap
		}
	}
	return caps
}

// initCapabilitiesOf are those that an IKE_SA_INIT message says.
func initCapabilitiesOf(m *message.Message) (caps uint32) {
	for _, n := range initNotifies {
		if _, ok := m.Notify(n.notify); ok {
			caps |= n.cap
		}
	}
	return caps
}

// initPayloads say capabilities in IKE_SA_INIT.
func initPayloads(caps uint32) (ps []message.Payload) {
	for _, n := range initNotifies {
		if caps&n.cap != 0 {
			ps = append(ps, notify(n.notify, nil))
		}
	}
	return ps
}
