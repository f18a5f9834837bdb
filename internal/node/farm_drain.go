package node

import (
	"errors"
	"slices"

	"tandem/cluster/fsm"
	"tandem/proto/clusterpb"
)

// ErrNobodyElse: a member is not drained when no other could own what it owns.
var ErrNobodyElse = errors.New("no other member could own the tunnels: this one is not drained")

// Drain is the command to have decided so that every scope leaves this member, and
// none comes to it until the same with on=false was decided. The handovers follow by
// themselves, one at a time.
func (f *Farm) Drain(on bool) (*clusterpb.Command, error) {
	able := slices.ContainsFunc(f.decided.Members(), func(m fsm.Member) bool { return m.Node != f.opt.Self && m.Able() })
	if on && !able {
		return nil, ErrNobodyElse
	}
	return &clusterpb.Command{What: &clusterpb.Command_Drain{Drain: &clusterpb.Drain{Node: uint32(f.opt.Self), On: on}}}, nil
}

// Draining says that this member is drained, or being drained.
func (s *FarmStatus) Draining() bool {
	return slices.ContainsFunc(s.Members, func(m fsm.Member) bool { return m.Node == s.Self && m.State == fsm.Draining })
}

// ScopesOwned are how many scopes this member owns, or was decided to own.
func (s *FarmStatus) ScopesOwned() (n int) {
	for i := range s.Scopes {
		if s.Scopes[i].Heard == s.Self || s.Scopes[i].Owner == s.Self {
			n++
		}
	}
	return n
}
