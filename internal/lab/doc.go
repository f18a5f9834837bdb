// Package lab builds networks of namespaces on this machine, runs real daemons
// and real peers in them, breaks them, and measures what came of it. It knows the
// daemons only as binaries, their admin API and what they put on the wire: it
// shares no code with the ESP path, so that its checker is an independent eye.
package lab
