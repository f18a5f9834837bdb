// Package xfrmtest is the one conformance suite of data planes. It builds two
// network namespaces with a wire between them, one data plane in each, and looks
// at the wire with a packet socket of its own:
//
//	site A                                            site B
//	10.1.0.1  vpn1 ── plane ── wan ═══════ wan ── plane ── vpn1  10.2.0.1
//	fd01::1                  10.99.0.1   10.99.0.2               fd02::1
//	                         fd99::1     fd99::2
//
// It needs root. Without it the suite is skipped, unless the environment says
// CI=true: then it fails.
package xfrmtest
