package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Roles in HAStatus.Role.
const (
	RolePrimary   = "primary"   // this node owns the scope
	RoleSecondary = "secondary" // this node stands by
	RoleStarting  = "starting"  // this node knows nothing yet
)

// HAStatus is what `BIN get system ha status --json --socket PATH` prints on
// stdout with exit status 0. The lab polls it to learn who is active and
// whether the pair may be hurt again. Unknown fields are ignored. An exit status
// other than 0 means: not up yet.
type HAStatus struct {
	Hostname     string `json:"hostname"`
	Role         string `json:"role"`         // one of the roles above
	Synchronised bool   `json:"synchronised"` // both ends of the pair live, the standby's copy complete and entitled to succeed
	Epoch        uint64 `json:"epoch"`        // counter of the epoch this node has accepted
	EpochNode    string `json:"epoch_node"`   // node half of that epoch
	Alone        bool   `json:"alone"`        // owner without an entitled standby
	GuardianPID  int    `json:"guardian_pid"` // process that the lab started
	DaemonPID    int    `json:"daemon_pid"`   // its child
	Tunnels      int    `json:"tunnels"`      // established IKE SAs held, live or as a copy

	// Of the last change of role.
	Reason   string  `json:"reason,omitempty"`
	Covered  bool    `json:"covered"`
	DetectMS float64 `json:"detect_ms"`
}

// TakeoverEvent is one line of a daemon's or guardian's log whose msg is
// TakeoverMessage, written by the node that became owner: slog's JSON or text
// handler, on stdout or stderr. They explain a takeover to the reader of the
// report.
type TakeoverEvent struct {
	Reason   string  // e.g. "daemon died", "heartbeats lost", "handover"
	Covered  bool    // invariants 2 to 4 of the architecture hold across it
	Epoch    string  // the new epoch
	DetectMS float64 // from the last sign of life of the old owner to the decision
	Ceiling  uint64  // outbound bound inherited by the busiest SA; 0: not told
	SAs      int     // Child SAs activated
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
	switch s.Role {
	case RolePrimary, RoleSecondary, RoleStarting:
		return s, nil
	}
	return HAStatus{}, fmt.Errorf("HA status: role %q is unknown", s.Role)
}

// parseTakeover reads one log line; false when it is not a takeover.
func parseTakeover(line string) (TakeoverEvent, bool) {
	fields := map[string]string{}
	if strings.HasPrefix(line, "{") {
		var raw map[string]any
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber() // an epoch has ten digits
		if d.Decode(&raw) != nil {
			return TakeoverEvent{}, false
		}
		for k, v := range raw {
			fields[k] = fmt.Sprint(v)
		}
	} else {
		textFields(line, fields)
	}
	if fields["msg"] != TakeoverMessage {
		return TakeoverEvent{}, false
	}
	e := TakeoverEvent{Reason: fields["reason"], Covered: fields["covered"] == "true", Epoch: fields["epoch"]}
	e.DetectMS, _ = strconv.ParseFloat(fields["detect_ms"], 64)
	e.Ceiling, _ = strconv.ParseUint(fields["ceiling"], 10, 64)
	e.SAs, _ = strconv.Atoi(fields["sas"])
	return e, true
}

// textFields reads the key=value pairs of slog's text handler.
func textFields(line string, into map[string]string) {
	for line != "" {
		key, rest, ok := strings.Cut(line, "=")
		if !ok {
			return
		}
		value := rest
		if q, err := strconv.QuotedPrefix(rest); err == nil {
			value, _ = strconv.Unquote(q)
			line = rest[len(q):]
		} else {
			value, line, _ = strings.Cut(rest, " ")
		}
		into[strings.TrimSpace(key)] = value
	}
}
