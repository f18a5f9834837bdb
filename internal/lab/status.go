package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"
)

// Roles in HAStatus.Role.
const (
	RolePrimary   = "primary"   // this node owns the scope
	RoleSecondary = "secondary" // this node stands by
)

// HAStatus is what `BIN get system ha status --json --socket PATH` prints on
// stdout with exit status 0. The lab polls it to learn who is active and
// whether the pair may be hurt again. Unknown fields are ignored. An exit status
// other than 0 means: not up yet.
type HAStatus struct {
	Hostname     string `json:"hostname"`
	Role         string `json:"role"`             // RolePrimary or RoleSecondary
	Synchronised bool   `json:"synchronised"`     // both ends of the pair live, the standby's copy complete and entitled to succeed
	Epoch        uint64 `json:"epoch"`            // counter of the epoch this node has accepted
	EpochNode    string `json:"epoch_node"`       // node half of that epoch
	Alone        bool   `json:"alone"`            // owner without an entitled standby
	GuardianPID  int    `json:"guardian_pid"`     // process that the lab started
	DaemonPID    int    `json:"daemon_pid"`       // its child
	Tunnels      int    `json:"tunnels"`          // established IKE SAs held, live or as a copy
	Reason       string `json:"reason,omitempty"` // of the last change of role
}

// TakeoverEvent is one line of a daemon's or guardian's JSON log (slog's JSON
// handler, on stdout or stderr) whose msg is TakeoverMessage, written by the node that
// became owner. Ceiling and Jump are totals of the busiest SA; they and Reason
// explain the takeover to the reader of the report.
type TakeoverEvent struct {
	Time     time.Time `json:"time"`
	Msg      string    `json:"msg"`
	Node     string    `json:"node"`      // who took over (hostname)
	From     string    `json:"from"`      // the owner before
	Reason   string    `json:"reason"`    // e.g. "daemon died", "heartbeats lost", "handover"
	Covered  bool      `json:"covered"`   // invariant 2 to 4 of the architecture hold across it
	Epoch    uint64    `json:"epoch"`     // the new epoch's counter
	DetectMS float64   `json:"detect_ms"` // from the last sign of life of the old owner to the decision
	Ceiling  uint64    `json:"ceiling"`   // outbound bound inherited: the first sequence number lies above it
	SAs      int       `json:"sas"`       // Child SAs activated
}

// TakeoverMessage is the msg of a TakeoverEvent.
const TakeoverMessage = "takeover"

// A StatusFunc asks one node for its HAStatus.
type StatusFunc func(ctx context.Context, node string) (HAStatus, error)

// BinaryStatus asks through the command line of bin, at the admin socket that
// socket(node) names.
func BinaryStatus(bin string, socket func(node string) string) StatusFunc {
	return func(ctx context.Context, node string) (HAStatus, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, bin, "get", "system", "ha", "status", "--json", "--socket", socket(node))
		out, err := cmd.Output()
		if err != nil {
			return HAStatus{}, fmt.Errorf("status of %s: %w", node, err)
		}
		return parseStatus(out)
	}
}

func parseStatus(text []byte) (HAStatus, error) {
	var s HAStatus
	if err := json.Unmarshal(text, &s); err != nil {
		return HAStatus{}, fmt.Errorf("HA status is not JSON: %w", err)
	}
	if s.Role != RolePrimary && s.Role != RoleSecondary {
		return HAStatus{}, fmt.Errorf("HA status: role %q is neither %s nor %s", s.Role, RolePrimary, RoleSecondary)
	}
	return s, nil
}

// parseTakeover reads one log line; false when it is not a takeover.
func parseTakeover(line []byte) (TakeoverEvent, bool) {
	var e TakeoverEvent
	if json.Unmarshal(line, &e) != nil || e.Msg != TakeoverMessage {
		return TakeoverEvent{}, false
	}
	return e, true
}
