package trace

import (
	"fmt"
	"math"
	"time"
)

func ms(x float64) time.Duration { return time.Duration(math.Round(x*1000)) * time.Microsecond }

// story is a pair of gateways made by hand: gw1 dies in the middle of a Child
// rekey, gw2 takes over and finishes it, and an IV repeats.
func story() []Event {
	var l Log
	msg := func(at, transit float64, from, to, class, text string) {
		l.Add(Event{At: ms(at), From: from, To: to, Until: ms(at + transit), Class: class, Text: text})
	}
	lost := func(at float64, from, to, class, text string) {
		l.Add(Event{At: ms(at), From: from, To: to, Until: -1, Class: class, Text: text})
	}
	add := func(at float64, kind Kind, from, to, text string) {
		l.Add(Event{At: ms(at), Kind: kind, From: from, To: to, Text: text})
	}
	add(0, State, "gw1", "", "owner, epoch (1, gw1)")
	add(0, State, "gw2", "", "standby")
	msg(2, 0.4, "client1", "gw1", ClassIKE, "IKE_SA_INIT request id 0 (SA, KE, Ni)")
	msg(2.9, 0.4, "gw1", "client1", ClassIKE, "IKE_SA_INIT response id 0 (SA, KE, Nr)")
	msg(4, 0.4, "client1", "gw1", ClassIKE, "IKE_AUTH request id 1 (IDi, AUTH, SA, TSi, TSr)")
	msg(4.6, 0.1, "gw1", "gw2", ClassFrame, "record 1: IKE SA 5b01, Child SA 8a00")
	msg(4.8, 0.1, "gw2", "gw1", ClassAck, "acknowledges record 1")
	msg(4.95, 0.4, "gw1", "client1", ClassIKE, "IKE_AUTH response id 1 (IDr, AUTH, SA, TSi, TSr)")
	for i := range 37 {
		msg(10+float64(i), 0.3, "client1", "gw1", ClassESP, fmt.Sprintf("ESP SPI 8a00 sequence %d", i+1))
		msg(10.2+float64(i), 0.1, "gw1", "gw2", ClassHeartbeat, "heartbeat epoch 1")
	}
	add(12345, Note, "client1", "", "Child SA 8a00 has reached its soft lifetime: rekey")
	msg(12345.1, 0.4, "client1", "gw1", ClassIKE, "CREATE_CHILD_SA request id 2 (REKEY_SA 8a00, SA, Ni, TSi, TSr)")
	msg(12345.6, 4, "gw1", "gw2", ClassFrame, "record 2: request id 2 answered, Child SA 8a01 installed, response kept for retransmission")
	add(12346, Fault, "gw1", "", "crash in the middle of the exchange, before the response leaves")
	add(12346, State, "gw1", "", "dead")
	lost(12346.5, "client1", "gw1", ClassESP, "ESP SPI 8a00 sequence 38")
	lost(12347.5, "client1", "gw1", ClassESP, "ESP SPI 8a00 sequence 39")
	add(12376, Note, "gw2", "", "3 heartbeats of gw1 missing: it counts as dead")
	add(12376, State, "gw2", "", "owner, epoch (2, gw2)")
	msg(12376.1, 0.3, "gw2", "client1", ClassFrame, "gratuitous ARP: 203.0.113.1 is at gw2")
	msg(12376.2, 0.3, "gw2", "attacker", ClassFrame, "gratuitous ARP: 203.0.113.1 is at gw2")
	for i := range 3 {
		msg(12377.5+float64(i), 0.3, "client1", "gw2", ClassESP, fmt.Sprintf("ESP SPI 8a00 sequence %d", i+40))
	}
	msg(12845.1, 0.4, "client1", "gw2", ClassIKE, "CREATE_CHILD_SA request id 2, retransmitted")
	msg(12845.6, 0.4, "gw2", "client1", ClassIKE, "CREATE_CHILD_SA response id 2 (SA, Nr, TSi, TSr) from record 2")
	msg(12846.4, 0.4, "client1", "gw2", ClassIKE, "INFORMATIONAL request id 3 (DELETE ESP 8a00)")
	add(12847, Fault, "gw1", "gw2", "the sync link is cut")
	add(12847.2, State, "gw1", "", "frozen: the machine is back, its daemon not yet")
	msg(12848, 2, "attacker", "gw2", ClassESP, "ESP SPI 8a00 sequence 12 (replayed)")
	add(12850, Note, "gw2", "", "replayed packet is beneath the fence: dropped")
	for i := range 5 {
		msg(12851+float64(i)/2, 0.3, "gw2", "client1", ClassESP, fmt.Sprintf("ESP SPI 8a01 sequence %d IV 000001:%010x", 1025+i, i))
	}
	msg(12855, 0.3, "gw2", "client1", ClassESP, "ESP SPI 8a01 sequence 1030 IV 000001:0000000003")
	add(12855, Violation, "gw2", "", "IV 000001:0000000003 was used twice under the key of Child SA 8a01: for the packets with sequence 1028 and 1030")
	msg(12856, 0.3, "client1", "gw2", ClassIKE, "INFORMATIONAL request id 4 (after the violation)")
	return l.Events()
}
