package daemon

// extraCommands are added by test builds.
var extraCommands []command

// allCommands is the whole table, in the order in which help lists it.
func allCommands() []command {
	return append([]command{
		{"get system ha status", "", "role, epoch, peers and the reason of the last change", showHAStatus},
		{"diagnose sys ha status", "", "the same", showHAStatus},
		{"diagnose sys ha checksum cluster", "", "each member's configuration: checksums, revision, and what is different line by line", showChecksums},
		{"diagnose sys ha standalone-peers", "", "the other members of a farm, and what was forwarded to and from them", showStandalonePeers},
		{"get router info bgp summary", "", "the routers that are told of this gateway, and whether its routes are announced", showBGP},
		{"get router info bfd neighbor", "", "the BFD sessions with them", showBFD},
		{"get vpn ipsec tunnel summary", "", "one line a tunnel: selectors and packets", showSummary},
		{"get vpn ipsec tunnel name", "NAME", "one tunnel with its SAs", showTunnelName},
		{"get vpn ike gateway", "[NAME]", "IKE SAs", showGateways},
		{"diagnose vpn ike gateway list", "[name NAME]", "IKE SAs", listGateways},
		{"diagnose vpn ike gateway clear", "[name NAME]", "delete IKE SAs (DELETE is sent) and negotiate again as configured", clearGateways},
		{"diagnose vpn ike gateway flush", "[name NAME]", "the same", clearGateways},
		{"diagnose vpn ike rekey", "child|ike [name NAME]", "rekey Child SAs, or IKE SAs, now", rekeyNow},
		{"diagnose vpn ike config list", "[summary]", "phase 1 and phase 2 as configured, with their state", listConfig},
		{"diagnose vpn ike stats", "", "counters of IKE and of the data plane", showStats},
		{"diagnose vpn ike log filter", "[list | clear | name NAME | dst-addr4 A | dst-addr6 A]", "which lines the live log shows", logFilter},
		{"diagnose vpn ike log-filter", "[list | clear | name NAME | dst-addr4 A | dst-addr6 A]", "the same", logFilter},
		{"diagnose vpn tunnel list", "[name NAME]", "Child SAs with sequence numbers and counters", listTunnels},
		{"diagnose vpn tunnel up", "PHASE2 [PHASE1]", "negotiate a Child SA", tunnelUp},
		{"diagnose vpn tunnel down", "PHASE2 [PHASE1]", "delete a Child SA", tunnelDown},
		{"diagnose vpn tunnel flush", "[NAME]", "delete the SAs of a tunnel, or of all", clearGateways},
		{"diagnose debug application ike", "LEVEL", "live log until interrupted; -1 shows everything, 63 all but packets, 0 nothing", debugIKE},
		{"diagnose debug console timestamp", "enable|disable", "time before each line of the live log", debugTimestamp},
		{"execute vpn ipsec tunnel up", "PHASE2 [PHASE1]", "negotiate a Child SA", tunnelUp},
		{"execute vpn ipsec tunnel down", "PHASE2 [PHASE1]", "delete a Child SA", tunnelDown},
		{"execute ha failover set", "[CLUSTER]", "hand ownership over to the other member", failoverSet},
		{"execute ha failover unset", "[CLUSTER]", "end a failover that was set", failoverUnset},
		{"execute ha failover status", "[CLUSTER]", "whether a failover is set here", failoverStatus},
		{"execute ha drain", "[on|off]", "move all tunnels to the other members of a farm, wait for that, and keep them away; off ends it", drain},
		{"execute reload", "", "read the configuration file again; in a cluster all members take what they share of it, or none does", reload},
		{"show", "[full-configuration] [PATH]", "the configuration; secrets do not print", showConfig},
	}, extraCommands...)
}
