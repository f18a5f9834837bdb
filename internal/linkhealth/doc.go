// Package linkhealth judges links: whether the servers behind one answer (Monitor), and
// whether an interface that comes and goes can be relied on (Damper). It is pure; the
// daemon sends the probes and hears the answers.
package linkhealth
