package lab

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sort"
	"time"
)

// CheckOptions tells the checker what it looks at.
type CheckOptions struct {
	Client string // the port where the peer's view is taken
	// Merged: there is no capture at the peers. Frames of all gateways' ports come in
	// one order of time, and what the gateways send together is what the peers see.
	Merged bool
	IVLen  int       // explicit IV in bytes: 8 for AEAD (the default), 16 for CBC
	ESN    bool      // sequence numbers may wrap in their low 32 bits
	Up     time.Time // the tunnel stood; IKE_SA_INIT and IKE_AUTH later than this are counted
	End    time.Time // a request first sent in the last second before it may stay unanswered
	// Tolerated holds the times in which sequence regressions are counted apart
	// (both gateways own the tunnel because their heartbeats were cut, or a frozen
	// owner has just woken).
	Tolerated []Interval
	// Shared are the addresses that only an owner may speak in the name of.
	Shared []netip.Addr
}

// Interval is [From, To).
type Interval struct{ From, To time.Time }

func (i Interval) holds(t time.Time) bool { return !t.Before(i.From) && t.Before(i.To) }

// CheckReport is what the outer captures say.
type CheckReport struct {
	Frames, ESP, Keepalives int
	IVRepeats               int
	SeqRegressions          int            // outside the tolerated times
	SeqRegressionsTolerated int            // inside them
	SeqRegressionsOwner     int            // at any time, among the packets of one gateway (Merged)
	IKE                     map[string]int // distinct messages by exchange
	IKESAs                  int            // distinct SPI pairs beyond IKE_SA_INIT
	SAInitAfterUp           int            // distinct messages
	AuthAfterUp             int
	CreateChildAnswered     int // exchanges
	CreateChildUnanswered   int
	Oversize                int // frames that no Ethernet could carry: the capture does not show the wire
	SPIs                    []ESPFlow
	Violations              []string // the first maxViolations, in words
}

// ESPFlow is one Child SA's direction as the captures show it.
type ESPFlow struct {
	Dst         netip.Addr
	SPI         uint32
	First, Last time.Time
	Packets     int
}

const (
	maxViolations = 20
	maxFrame      = 1518
)

type saKey struct {
	dst netip.Addr
	spi uint32
}

// saSeen is what was seen of one SA, over all ports.
type saSeen struct {
	flow ESPFlow
	ivs  map[[16]byte][]uint64 // IV → hashes of the distinct packets that carried it
	// As the peer received it, in order of arrival.
	arrived map[uint32]uint64
	highest uint32
	any     bool
	owners  map[string]uint32 // highest number that each gateway sent (Merged)
}

// exchangeKey names one IKE exchange: a message ID counts per IKE SA and per
// requester.
type exchangeKey struct {
	spiI, spiR  uint64
	id          uint32
	byInitiator bool
}

type exchangeSeen struct {
	first     time.Time // zero: only the response was seen
	requested bool
	answered  bool
}

// espPoint is one ESP packet that a gateway sent, or that came to its port.
type espPoint struct {
	at   time.Time
	port string
	mac  [6]byte // to whom
	sa   saKey
	seq  uint32
}

// sentPoint is one packet of an owner's that is no ESP.
type sentPoint struct {
	at   time.Time
	port string
}

// Checker reads outer captures by its own code and knows nothing of the daemon.
// Frames of one port must come in order; ports may be added one after another.
type Checker struct {
	opts     CheckOptions
	seed     maphash.Seed
	rep      CheckReport
	sas      map[saKey]*saSeen
	ikeSAs   map[[2]uint64]bool
	messages map[uint64]bool // hashes of IKE messages counted
	children map[exchangeKey]*exchangeSeen
	sent     []espPoint                  // by gateways
	spoken   []sentPoint                 // by gateways, see AddSpoken
	reached  []espPoint                  // gateways' ports
	macs     map[string]map[[6]byte]bool // of the node at each port, from what it sent
}

// NewChecker returns a checker that has seen nothing.
func NewChecker(opts CheckOptions) *Checker {
	if opts.IVLen == 0 {
		opts.IVLen = 8
	}
	return &Checker{
		opts: opts, seed: maphash.MakeSeed(),
		rep: CheckReport{IKE: map[string]int{}},
		sas: map[saKey]*saSeen{}, ikeSAs: map[[2]uint64]bool{}, messages: map[uint64]bool{}, children: map[exchangeKey]*exchangeSeen{}, macs: map[string]map[[6]byte]bool{},
	}
}

// Add looks at one frame. What the lab itself put on the wire towards a gateway
// (replays) has the bytes of the packet it repeats and so is no IV repeat.
func (c *Checker) Add(f Frame) {
	c.rep.Frames++
	if len(f.Data) > maxFrame {
		c.rep.Oversize++
	}
	if f.FromNode && len(f.Data) >= 12 {
		if c.macs[f.Port] == nil {
			c.macs[f.Port] = map[[6]byte]bool{}
		}
		c.macs[f.Port][[6]byte(f.Data[6:12])] = true
	}
	o := decodeOuter(f.Data)
	if o.kind != outerESP {
		c.AddSpoken(f)
	}
	switch o.kind {
	case outerESP:
		c.addESP(f, o)
	case outerIKE:
		c.addIKE(f, o)
	case outerKeepalive:
		c.rep.Keepalives++
	}
}

func (c *Checker) addESP(f Frame, o outer) {
	c.rep.ESP++
	key := saKey{o.dst, o.spi}
	sa := c.sas[key]
	if sa == nil {
		sa = &saSeen{flow: ESPFlow{Dst: o.dst, SPI: o.spi, First: f.Time}, ivs: map[[16]byte][]uint64{}, arrived: map[uint32]uint64{}}
		c.sas[key] = sa
	}
	if f.Time.Before(sa.flow.First) {
		sa.flow.First = f.Time
	}
	if f.Time.After(sa.flow.Last) {
		sa.flow.Last = f.Time
	}
	sa.flow.Packets++
	sum := maphash.Bytes(c.seed, o.payload)
	c.checkIV(f, o, sa, sum)
	switch {
	case c.opts.Merged && f.FromNode:
		c.checkOwner(f, o, sa, sum)
		c.checkOrder(f, o, sa, sum)
	case c.opts.Merged:
	case f.Port == c.opts.Client && !f.FromNode:
		c.checkOrder(f, o, sa, sum)
	case f.Port != c.opts.Client && f.FromNode:
		c.sent = append(c.sent, espPoint{at: f.Time, port: f.Port, sa: key, seq: o.seq})
	case f.Port != c.opts.Client:
		c.reached = append(c.reached, espPoint{at: f.Time, port: f.Port, mac: [6]byte(f.Data[:6]), sa: key, seq: o.seq})
	}
}

// AddSpoken notes what a gateway sends in the name of a shared address: any IP
// packet from it, IKE above all, and what makes neighbours send to the gateway, ARP
// and neighbour advertisements. Add does so for the outer captures; frames of the
// inner side are for this alone.
func (c *Checker) AddSpoken(f Frame) {
	if !f.FromNode || f.Port == c.opts.Client {
		return
	}
	if a := speaksFor(f.Data); a.IsValid() && slices.Contains(c.opts.Shared, a) {
		c.spoken = append(c.spoken, sentPoint{f.Time, f.Port})
	}
}

func (c *Checker) checkIV(f Frame, o outer, sa *saSeen, sum uint64) {
	if len(o.payload) < 8+c.opts.IVLen {
		return
	}
	var iv [16]byte
	copy(iv[:], o.payload[8:8+c.opts.IVLen])
	for _, s := range sa.ivs[iv] {
		if s == sum {
			return // the same packet, on its way past another port or repeated
		}
	}
	if len(sa.ivs[iv]) > 0 {
		c.rep.IVRepeats++
		c.violation("%s: IV %x repeated on SPI %08x with other bytes (sequence %d, port %s)",
			f.Time.UTC().Format(stampLayout), iv[:c.opts.IVLen], o.spi, o.seq, f.Port)
	}
	sa.ivs[iv] = append(sa.ivs[iv], sum)
}

// checkOwner looks at the order in which one gateway sends, whoever else does. A
// number that the same gateway sent before is no regression if the packet is the same.
func (c *Checker) checkOwner(f Frame, o outer, sa *saSeen, sum uint64) {
	if sa.owners == nil {
		sa.owners = map[string]uint32{}
	}
	last, seen := sa.owners[f.Port]
	if !seen || o.seq > last || c.opts.ESN && last > 0xf0000000 && o.seq < 0x10000000 {
		sa.owners[f.Port] = o.seq
		return
	}
	if before, ok := sa.arrived[o.seq]; ok && before == sum {
		return
	}
	c.rep.SeqRegressionsOwner++
	c.violation("%s: %s sends sequence %d after %d on SPI %08x", f.Time.UTC().Format(stampLayout), f.Port, o.seq, last, o.spi)
}

func (c *Checker) checkOrder(f Frame, o outer, sa *saSeen, sum uint64) {
	before, seen := sa.arrived[o.seq]
	rises := !sa.any || o.seq > sa.highest ||
		c.opts.ESN && sa.highest > 0xf0000000 && o.seq < 0x10000000
	switch {
	case rises:
		sa.any, sa.highest = true, o.seq
	case seen && before == sum:
		return // a duplicate made on the way
	default:
		tolerated := false
		for _, t := range c.opts.Tolerated {
			tolerated = tolerated || t.holds(f.Time)
		}
		if tolerated {
			c.rep.SeqRegressionsTolerated++
			break
		}
		c.rep.SeqRegressions++
		c.violation("%s: sequence %d after %d on SPI %08x", f.Time.UTC().Format(stampLayout), o.seq, sa.highest, o.spi)
	}
	sa.arrived[o.seq] = sum
}

func (c *Checker) addIKE(f Frame, o outer) {
	sum := maphash.Bytes(c.seed, o.payload)
	if !c.messages[sum] {
		c.messages[sum] = true
		name := exchangeName(o.exchange)
		c.rep.IKE[name]++
		if !c.opts.Up.IsZero() && f.Time.After(c.opts.Up) {
			switch o.exchange {
			case exchangeSAInit:
				c.rep.SAInitAfterUp++
				c.violation("%s: IKE_SA_INIT although the tunnel stood (port %s)", f.Time.UTC().Format(stampLayout), f.Port)
			case exchangeAuth:
				c.rep.AuthAfterUp++
				c.violation("%s: IKE_AUTH although the tunnel stood (port %s)", f.Time.UTC().Format(stampLayout), f.Port)
			}
		}
	}
	if o.exchange != exchangeSAInit {
		c.ikeSAs[[2]uint64{o.spiI, o.spiR}] = true
	}
	if o.exchange != exchangeCreateChildSA {
		return
	}
	key := exchangeKey{o.spiI, o.spiR, o.messageID, o.initiator != o.response}
	x := c.children[key]
	if x == nil {
		x = &exchangeSeen{}
		c.children[key] = x
	}
	if !o.response {
		if !x.requested || f.Time.Before(x.first) {
			x.first = f.Time
		}
		x.requested = true
	} else if c.opts.Merged || f.Port == c.opts.Client {
		// An answer counts where the peer sends or receives it, not where a
		// gateway's answer was lost before the peer.
		x.answered = true
	}
}

func exchangeName(x uint8) string {
	switch x {
	case exchangeSAInit:
		return "IKE_SA_INIT"
	case exchangeAuth:
		return "IKE_AUTH"
	case exchangeCreateChildSA:
		return "CREATE_CHILD_SA"
	case exchangeInformational:
		return "INFORMATIONAL"
	}
	return fmt.Sprintf("exchange %d", x)
}

const stampLayout = "15:04:05.000000"

func (c *Checker) violation(format string, args ...any) {
	if len(c.rep.Violations) < maxViolations {
		c.rep.Violations = append(c.rep.Violations, fmt.Sprintf(format, args...))
	}
}

// Report sums up. More frames may be added after it.
func (c *Checker) Report() CheckReport {
	r := c.rep
	r.Violations = append([]string(nil), c.rep.Violations...)
	for _, x := range c.children {
		switch {
		case x.requested && x.answered:
			r.CreateChildAnswered++
		case x.requested && (c.opts.End.IsZero() || x.first.Before(c.opts.End.Add(-time.Second))):
			r.CreateChildUnanswered++
		}
	}
	r.IKESAs = len(c.ikeSAs)
	r.SPIs = nil
	for _, sa := range c.sas {
		r.SPIs = append(r.SPIs, sa.flow)
	}
	sort.Slice(r.SPIs, func(i, j int) bool {
		a, b := r.SPIs[i], r.SPIs[j]
		if !a.First.Equal(b.First) {
			return a.First.Before(b.First)
		}
		return a.SPI < b.SPI
	})
	sort.SliceStable(c.sent, func(i, j int) bool { return c.sent[i].at.Before(c.sent[j].at) })
	return r
}
