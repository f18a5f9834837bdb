//go:build nextproto

package stream

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"

	"tandem/cluster"
	"tandem/proto/syncpb"
)

// raised is how many versions this test build is ahead of today's: see the log's
// (cluster/fsm).
const raised = 1

// greeting is a message without a frame, which ends a stream towards today's build.
var greeting = protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1)

// next begins a stream with it where both speak the next version.
func next(stream syncpb.StateSync_ReplicateClient, version uint32) error {
	if version < 1+raised {
		return nil
	}
	m := &syncpb.StreamUp{}
	m.ProtoReflect().SetUnknown(greeting)
	return stream.Send(m)
}

// nextCame takes it, if it may come.
func (e *Endpoint) nextCame(s *incoming, m *syncpb.StreamUp, node cluster.NodeID) bool {
	if s.version < 1+raised || !bytes.Equal(m.ProtoReflect().GetUnknown(), greeting) {
		return false
	}
	e.log.Info("replication stream: greeted", "node", node, "version", s.version)
	return true
}
