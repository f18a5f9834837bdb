package daemon

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tandem/cluster"
	"tandem/ike"
	"tandem/internal/config"
	"tandem/internal/ipsec"
	"tandem/internal/node"
	"tandem/xfrm"
)

// view is one moment of the daemon, taken on the event loop; commands, metrics
// and health checks show nothing else, so that their figures agree.
type view struct {
	Now         time.Time
	Started     time.Time // of this process
	Hostname    string
	GuardianPID int // 0: not under a guardian
	DaemonPID   int
	Config      *config.Config
	Node        node.Status
	Counters    map[ipsec.ESPSPI]xfrm.Counters
	Tunnels     map[string]tunnelView // by interface, i.e. phase 1 name
	Plane       xfrm.PlaneCounters
	IfIndex     map[string]int
	Loop        loopStats
	DataPlane   string // e.g. userspace
	Progress    uint64
	Election    electionView // of a pair
	Farm        farmView     // of a member of a farm, beside Node.Farm
	ConfigAlarm string       // why this member does not run what the cluster does; of a pair
}

// tunnelView is a tunnel interface as the data plane has it.
type tunnelView struct {
	Index, MTU, OuterMTU int
	IP                   netip.Prefix
	RemoteIP             netip.Addr
	Counters             xfrm.TunnelCounters
}

// loopStats count what the loop's queues did.
type loopStats struct {
	IKEReceived, IKEDropped, Events, Frames, Effects, Timeouts uint64
}

// alone: there is nobody to share tunnels with.
func (v *view) alone() bool { return v.Node.HA == nil && v.Node.Farm == nil }

// role is FortiOS's word for what this node is to a tunnel.
func (v *view) role(g *ike.GatewayStatus) string {
	return v.roleWord(v.owner(g))
}

// nodeRole is the same for the node: in a farm, sync-primary if it owns anything.
func (v *view) nodeRole() string { return v.roleWord(v.owning()) }

func (v *view) roleWord(owner bool) string {
	switch {
	case v.alone():
		return "primary"
	case owner:
		return "sync-primary"
	}
	return "standby"
}

// owner says that a tunnel's SAs seal and deliver here. A dialup phase 1 has none of
// its own: it is a farm's member's that owns anything.
func (v *view) owner(g *ike.GatewayStatus) bool {
	if f := v.Node.Farm; f != nil && !v.template(g) {
		return f.Owned[g.Name]
	}
	if id := v.vclusterOf(g); id != 0 {
		return v.ownsVCluster(id)
	}
	return v.owning()
}

// vclusterOf is the number of a gateway's virtual cluster; 0: there are none.
func (v *view) vclusterOf(g *ike.GatewayStatus) int {
	if p := v.phase1(phase1Of(g)); len(v.Node.VClusters) > 0 && p != nil {
		return v.Config.VClusterOf(p)
	}
	return 0
}

// vdomOf is the virtual domain of a gateway's interface.
func (v *view) vdomOf(g *ike.GatewayStatus) string {
	if p := v.phase1(phase1Of(g)); p != nil {
		if in := interfaceOf(v.Config, p.Interface); in != nil {
			return in.VDOM
		}
	}
	return "root"
}

// ownsVCluster says that a virtual cluster is active here.
func (v *view) ownsVCluster(id int) bool {
	return slices.ContainsFunc(v.Node.VClusters, func(x node.VClusterStatus) bool { return x.ID == id && x.HA.Role == cluster.RoleOwner })
}

// owning says that this node owns: in a farm, at least one scope.
func (v *view) owning() bool { return v.alone() || v.Node.Owner }

// template: a dialup phase 1 is no tunnel, its instances are.
func (v *view) template(g *ike.GatewayStatus) bool {
	p := v.phase1(g.Name)
	return g.Parent == "" && p != nil && p.Dialup()
}

func (v *view) phase1(name string) *config.Phase1 { return v.Config.Phase1ByName(name) }

// phase1Of is the configured phase 1 of a gateway, which may be an instance.
func phase1Of(g *ike.GatewayStatus) string {
	if g.Parent != "" {
		return g.Parent
	}
	return g.Name
}

// serial is a phase 1's number in FortiOS's listings: its place in the file, or
// beyond all of them for dialup instances, the same on every member.
func (v *view) serial(g *ike.GatewayStatus) int {
	if g.Parent != "" {
		return len(v.Config.Phase1) + 1 + g.Index
	}
	for i := range v.Config.Phase1 {
		if v.Config.Phase1[i].Name == g.Name {
			return i + 1
		}
	}
	return 0
}

// gateways selects by name: an instance, a gateway, or a dialup phase 1 with all
// of its instances; "" selects everything.
func (v *view) gateways(name string) []ike.GatewayStatus {
	if name == "" {
		return v.Node.Gateways
	}
	var found []ike.GatewayStatus
	for _, g := range v.Node.Gateways {
		if g.Name == name || g.Parent == name {
			found = append(found, g)
		}
	}
	return found
}

// established counts the IKE SAs that stand here, live or as a copy.
func (v *view) established() int {
	n := 0
	for _, g := range v.Node.Gateways {
		for _, s := range g.IKE {
			if s.State == "established" {
				n++
			}
		}
	}
	return n
}

// totals sums the counters of a gateway's Child SAs.
func (v *view) totals(g *ike.GatewayStatus) (t xfrm.Counters) {
	for _, c := range g.Children {
		n := v.Counters[c.SA.SPIIn]
		t.InPackets += n.InPackets
		t.InBytes += n.InBytes
		t.OutPackets += n.OutPackets
		t.OutBytes += n.OutBytes
		t.InErrors += n.InErrors + n.InAuthFailed + n.InReplayed + n.InSelector
		t.OutErrors += n.OutErrors + n.OutSelector
		if n.LastIn.After(t.LastIn) {
			t.LastIn = n.LastIn
		}
		if n.LastOut.After(t.LastOut) {
			t.LastOut = n.LastOut
		}
	}
	return t
}

// nextSeq is what diagnose prints as seqno: the next number to send where the SA
// is live, the leased bound where it stands by.
func (v *view) nextSeq(g *ike.GatewayStatus, spi ipsec.ESPSPI) uint64 {
	c := v.Counters[spi]
	if v.owner(g) {
		return c.OutSeq + 1
	}
	return c.Ceiling
}

// seconds rounds down, never below zero.
func seconds(d time.Duration) int64 { return max(0, int64(d/time.Second)) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// since is the age in whole seconds; zero times have none.
func (v *view) since(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return seconds(v.Now.Sub(t))
}

// keyText prints a secret only when asked to.
func keyText(k ipsec.Key, show bool) string {
	if k.Len() == 0 {
		return ""
	}
	if !show {
		return k.String()
	}
	return hex.EncodeToString(k.Bytes())
}

// groupedKey is keyText in groups of eight bytes, as gateway listings have it.
func groupedKey(k ipsec.Key, show bool) string {
	s := keyText(k, show)
	if !show || k.Len() == 0 {
		return s
	}
	var groups []string
	for len(s) > 16 {
		groups = append(groups, s[:16])
		s = s[16:]
	}
	return strings.Join(append(groups, s), "-")
}

// subnetText prints a selector as FortiOS prints configured ones,
// "proto:subnet/mask:port", or "proto:first-last:port" where it is no subnet.
func subnetText(t ipsec.TrafficSelector) string {
	port := 0
	if t.StartPort == t.EndPort {
		port = int(t.StartPort)
	}
	addr := t.Start.String() + "-" + t.End.String()
	if p, ok := prefixOf(t); ok {
		addr = p.Addr().String() + "/" + maskText(p)
	}
	return fmt.Sprintf("%d:%s:%d", t.Protocol, addr, port)
}

// prefixOf is the subnet that a selector covers exactly.
func prefixOf(t ipsec.TrafficSelector) (netip.Prefix, bool) {
	if !t.Start.IsValid() {
		return netip.Prefix{}, false
	}
	for bits := 0; bits <= t.Start.BitLen(); bits++ {
		p := netip.PrefixFrom(t.Start, bits)
		if p.Masked().Addr() == t.Start && ipsec.SelectorFromPrefix(p).End == t.End {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func maskText(p netip.Prefix) string {
	if p.Addr().Is6() {
		return fmt.Sprint(p.Bits())
	}
	m := ^uint32(0)
	m <<= 32 - p.Bits()
	if p.Bits() == 0 {
		m = 0
	}
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}

// encrName is FortiOS's name of an ESP cipher in tunnel listings.
func encrName(s ipsec.Suite) string {
	switch s.Encr {
	case ipsec.ENCRAESCBC:
		return "aes"
	case ipsec.ENCRAESGCM8, ipsec.ENCRAESGCM12, ipsec.ENCRAESGCM16:
		return "aes-gcm"
	case ipsec.ENCRChaCha20Poly1305:
		return "chacha20poly1305"
	case ipsec.ENCR3DES:
		return "3des"
	case ipsec.ENCRNULL:
		return "null"
	}
	return fmt.Sprintf("encr%d", s.Encr)
}

func integName(s ipsec.Suite) string {
	switch s.Integ {
	case ipsec.INTEGHMACSHA1_96:
		return "sha1"
	case ipsec.INTEGHMACSHA256_128:
		return "sha256"
	case ipsec.INTEGHMACSHA384_192:
		return "sha384"
	case ipsec.INTEGHMACSHA512_256:
		return "sha512"
	}
	return "null"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func enabled(b bool) string {
	if b {
		return "enable"
	}
	return "disable"
}

func roleName(r cluster.Role) string {
	switch r {
	case cluster.RoleOwner:
		return "primary"
	case cluster.RoleStandby:
		return "secondary"
	}
	return "starting"
}
