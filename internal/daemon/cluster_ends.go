package daemon

import (
	"errors"

	"tandem/cluster"
	"tandem/internal/node"
	statesync "tandem/sync"
)

type clusterEnds struct{}

func (d *Daemon) openCluster(*node.Options) (*clusterEnds, error) {
	return nil, errors.New("system ha: mode a-p needs the guardian")
}
func (c *clusterEnds) start(*Daemon) error           { return nil }
func (c *clusterEnds) close()                        {}
func (c *clusterEnds) progress()                     {}
func (c *clusterEnds) sendFrame(statesync.SendFrame) {}
func (c *clusterEnds) sendAck(statesync.SendAck)     {}
func (c *clusterEnds) announce(cluster.Announce)     {}
func (c *clusterEnds) entitle(cluster.Entitle)       {}
func (c *clusterEnds) askRemoval(cluster.AskRemoval) {}
func (c *clusterEnds) writeNote(cluster.WriteNote)   {}
func guardianPID() int                               { return 0 }
