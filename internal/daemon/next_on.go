//go:build nextproto

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tandem/cluster"
	"tandem/cluster/fsm"
	"tandem/cluster/raftauth"
)

// announced is what a member of this test build says of itself as soon as every member
// understands the command for it: a bit that today's builds carry, and give no meaning.
const announced = 1 << 48

// next says so, in the log's next version.
func (f *farmEnds) next(view *fsm.Machine) {
	self, _ := view.Member(f.c.identity.Node)
	if view.Version() == fsm.MaxVersion && self.Process == uint64(f.c.d.process) && self.Features&announced == 0 {
		f.propose(cluster.Propose{Command: fsm.Announce(announced)})
	}
}

// A test build's `diagnose debug announce` says so whatever the others understand.
func init() {
	extraCommands = append(extraCommands, command{"diagnose debug announce", "", "test build: propose what only the next version understands",
		func(s *session, _ []string) error {
			d, ok := s.d.(*Daemon)
			if !ok {
				return errNoFarm
			}
			var log *raftauth.Node
			if err := d.loop.call(s.ctx, func(time.Time) {
				if d.cluster != nil && d.cluster.farm != nil {
					log = d.cluster.farm.log
				}
			}); err != nil {
				return err
			}
			if log == nil {
				return errors.New("no log yet")
			}
			ctx, cancel := context.WithTimeout(s.ctx, decidePatient)
			defer cancel()
			r, err := log.Propose(ctx, fsm.Announce(announced))
			if err == nil && !r.OK() {
				err = fmt.Errorf("the members refuse: %s", r.Why)
			}
			return err
		}})
}
