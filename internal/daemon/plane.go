package daemon

import (
	"fmt"
	"log/slog"

	"tandem/internal/config"
	"tandem/internal/node"
	"tandem/xfrm"
	"tandem/xfrm/userspace"
)

// dataPlaneName is the one data plane there is.
const dataPlaneName = "userspace"

// newPlane opens the data plane that the configuration names. auto takes the
// best one that works here; today that is userspace, and the log says so.
func newPlane(c *config.Config, h xfrm.Handler, log *slog.Logger) (xfrm.DataPlane, error) {
	switch c.Tandem.DataPlane {
	case "", "auto":
		log.Info("data plane chosen", "data_plane", dataPlaneName, "configured", "auto")
	case dataPlaneName:
	default:
		return nil, fmt.Errorf("system tandem: data-plane %s is not built yet; userspace and auto are", c.Tandem.DataPlane)
	}
	p, err := userspace.New(userspace.Options{Handler: h, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("data plane %s: %w", dataPlaneName, err)
	}
	return p, nil
}

func newGateway(o node.Options) gateway { return node.Single{Node: node.New(o)} }
