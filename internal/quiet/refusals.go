package quiet

import (
	"log/slog"
	"net"
	"time"
)

// sayRefused is how long the same refusal of the same address is not repeated.
const sayRefused = 10 * time.Minute

// Refusals writes a warning for whoever is refused: one for each address and reason in
// ten minutes, and a bounded number of them in all.
type Refusals struct {
	lines Lines
	log   *slog.Logger
	what  string
}

// NewRefusals makes them; what is the message of each line.
func NewRefusals(log *slog.Logger, what string) *Refusals {
	return &Refusals{lines: Lines{Every: sayRefused}, log: log, what: what}
}

// Add says that somebody was refused. from may have a port, which tells no kinds apart.
func (r *Refusals) Add(from string, err error) {
	host, _, e := net.SplitHostPort(from)
	if e != nil {
		host = from
	}
	if before, ok := r.lines.may(kindOf(err.Error(), host), time.Now()); ok {
		r.log.Warn(r.what, "from", from, "error", err, "like_it_before", before)
	}
}
