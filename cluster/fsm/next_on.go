//go:build nextproto

package fsm

import (
	"google.golang.org/protobuf/encoding/protowire"

	"tandem/proto/clusterpb"
)

// raised is how many log versions this test build is ahead of today's. It stands for
// the release after this one, so that an upgrade to it can be tried out.
const raised = 1

// announceField of a Command is a kind of command that only this build knows.
const announceField = 1000

// Announce is that command: its proposer has these features, too. It needs the next version
// of the log, so today's build refuses it, and every build alike as long as a member
// of today's build is there.
func Announce(features uint64) *clusterpb.Command {
	c := &clusterpb.Command{Version: 1 + raised}
	c.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, announceField, protowire.VarintType), features))
	return c
}

// next carries it out.
func (m *Machine) next(by NodeID, c *clusterpb.Command) (Result, bool) {
	b := []byte(c.ProtoReflect().GetUnknown())
	field, kind, n := protowire.ConsumeTag(b)
	if c.GetVersion() < 1+raised || n < 0 || field != announceField || kind != protowire.VarintType {
		return Result{}, false
	}
	features, k := protowire.ConsumeVarint(b[n:])
	if k < 0 || n+k != len(b) {
		return Result{}, false
	}
	p := m.member(by)
	if p.Features&features == features {
		return Result{Code: Unchanged}, true
	}
	p.Features |= features
	return Result{Code: Done}, true
}
