// Package bench judges benchmarks that compare programs: figures of programs that run
// in turn become medians, ratios within a round with their spread, a table, a chart
// and verdicts against floors. It also reads what processes have computed.
//
// benchplane below is the benchmark of the data plane (make bench, make bench-quick):
// it builds the network, starts the programs, offers the load, and hands samples over.
package bench
