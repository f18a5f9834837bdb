// Package daemon is the IO shell around a node: sockets, goroutines, timers,
// addresses, the admin API. It decides nothing that the pure cores decide.
//
// One goroutine, the event loop, owns the node and calls the data plane. Whatever
// happens elsewhere (a datagram, a frame of the other member, a word of the
// guardian, a command) is queued for it; it hands each input to the node and
// carries out the effects that come back, in order, each before the next. The
// loop never waits for anything that packets or people can delay, with one
// exception stated in effects.go.
//
// Queues are bounded. IKE datagrams beyond the bound are dropped and counted, as
// UDP may drop them; events of the data plane are never dropped but merged (the
// last wish about a bound counts); the streams and the admin API wait.
//
// One walk, a command: `tandem diagnose vpn tunnel list` → unix socket → command
// table (command.go) → a view of one moment, taken on the loop → layout or JSON.
package daemon
