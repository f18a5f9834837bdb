// Package lab builds networks of namespaces on this machine, runs real daemons
// and real peers in them, breaks them, and measures what came of it. It knows the
// daemons only as binaries, their admin API and what they put on the wire: it
// shares no code with the ESP path, so that its checker is an independent eye.
//
// One walk, a run: scenario (scenario.go) and example folder → network
// (topology.go) → captures at the switch ports (capture.go), gateways (gateway.go),
// client (charon.go) → probes and one TCP transfer (probe.go, transfer.go) → steps
// (steps.go), each fault noted with its time → captures read by the checker
// (check.go, succession.go), gaps of the probes (outage.go), the survivors' own words
// (status.go) → settle.go puts them together → result.go judges and reports.
//
// A farm's run has the same shape in files of its own: who takes part
// (farm_setup.go), network (farm_topology.go), the routers' ECMP (farm_router.go),
// clients (farm_clients.go), probes of all tunnels (farm_probe.go), steps (farm_run.go,
// farm_steps.go), what members say (farm_status.go) → captures of all members read in
// one order of time by the checker and for each tunnel (farm_wire.go) →
// farm_settle.go, farm_result.go. Which members have traffic is decided behind an
// interface (routing): the lab's own routes, or a routing protocol.
//
// Two pairs that face each other have a run of the same shape as well (facing_topology.go,
// facing_run.go, facing_settle.go): each is judged as a pair whose client is the other.
//
// What a lab makes is written down before it is made (state.go), so that whatever
// a killed lab leaves is found and removed by the next one, or by `tandem lab down`.
package lab
