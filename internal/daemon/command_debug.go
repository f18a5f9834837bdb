package daemon

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// debugIKE is `diagnose debug application ike N`: the log as it is written, at
// debug level, until the client goes away.
func debugIKE(s *session, args []string) error {
	if len(args) != 1 {
		return usagef("expected a level: -1 shows everything, 0 nothing")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < -1 {
		return usagef("level %q: a number from -1 up is allowed", args[0])
	}
	if n == 0 {
		return nil
	}
	hub := s.d.logs()
	w := hub.watch()
	defer func() {
		if lost := hub.unwatch(w); lost > 0 {
			s.printf("%d lines lost: the reader was too slow\n", lost)
		}
	}()
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case line := <-w.lines:
			if s.json {
				if err := s.printJSON(map[string]string{"line": strings.TrimSuffix(line, "\n")}); err != nil {
					return err
				}
			} else if _, err := fmt.Fprint(s.out, line); err != nil {
				return err
			}
			if len(w.lines) > 0 {
				continue
			}
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
}

// debugTimestamp is `diagnose debug console timestamp enable|disable`.
func debugTimestamp(s *session, args []string) error {
	if len(args) != 1 {
		return usagef("expected: enable or disable")
	}
	name, _, ok := pick(args[0], []string{"enable", "disable"})
	if !ok {
		return usagef("expected: enable or disable, got %q", args[0])
	}
	hub := s.d.logs()
	hub.mu.Lock()
	defer hub.mu.Unlock()
	hub.timestamp = name == "enable"
	return nil
}

// logFilter is `diagnose vpn ike log filter …`.
func logFilter(s *session, args []string) error {
	hub := s.d.logs()
	hub.mu.Lock()
	defer hub.mu.Unlock()
	verb := "list"
	if len(args) > 0 {
		var ok bool
		if verb, _, ok = pick(args[0], []string{"list", "clear", "name", "dst-addr4", "dst-addr6"}); !ok {
			return usagef("expected list, clear, name NAME, dst-addr4 A or dst-addr6 A, got %q", args[0])
		}
	}
	value := ""
	if verb == "list" || verb == "clear" {
		if len(args) > 1 {
			return usagef("%s: nothing may follow", verb)
		}
	} else if len(args) != 2 {
		return usagef("%s wants one value", verb)
	} else {
		value = args[1]
	}
	switch verb {
	case "clear":
		hub.name, hub.dst = "", netip.Addr{}
	case "name":
		hub.name = value
	case "dst-addr4", "dst-addr6":
		a, err := netip.ParseAddr(value)
		if err != nil || a.Is4() != (verb == "dst-addr4") {
			return usagef("%s: %q is no such address", verb, value)
		}
		hub.dst = a
	case "list":
		name, dst := "any", "any"
		if hub.name != "" {
			name = hub.name
		}
		if hub.dst.IsValid() {
			dst = hub.dst.String()
		}
		if s.json {
			return s.printJSON(map[string]string{"name": name, "dst": dst})
		}
		s.printf("vd: any\nname: %s\ninterface: any\nIPv4/IPv6 source: any\nIPv4/IPv6 dest: %s\n", name, dst)
	}
	return nil
}

// statsJSON is `diagnose vpn ike stats --json`.
type statsJSON struct {
	DataPlane      string `json:"data_plane"`
	Role           string `json:"role"`
	Gateways       int    `json:"gateways"`
	IKESAs         int    `json:"ike_sas"`
	ChildSAs       int    `json:"ipsec_sas"`
	IKECreated     int    `json:"ike_created"`
	IKEEstablished int    `json:"ike_established"`
	ChildCreated   int    `json:"ipsec_created"`
	ChildUp        int    `json:"ipsec_established"`
	IKEReceived    uint64 `json:"ike_datagrams"`
	IKEDropped     uint64 `json:"ike_datagrams_dropped"`
	PlaneEvents    uint64 `json:"plane_events"`
	Frames         uint64 `json:"frames"`
	Effects        uint64 `json:"effects"`
	Timeouts       uint64 `json:"timeouts"`
	UnknownSPI     uint64 `json:"unknown_spi_packets"`
	Malformed      uint64 `json:"malformed_packets"`
	Progress       uint64 `json:"progress"`
	Uptime         int64  `json:"uptime_s"`

	IKEMalformed      uint64 `json:"ike_malformed"`
	IKEUnknownSPI     uint64 `json:"ike_unknown_spi"`
	IKEAuthFailed     uint64 `json:"ike_integrity_failed"` // SK payloads that did not open
	IKEOutsideWindow  uint64 `json:"ike_outside_window"`
	IKEDuplicates     uint64 `json:"ike_duplicates"` // answered from the cache
	IKERetransmitted  uint64 `json:"ike_retransmitted"`
	IKEAuthRefused    uint64 `json:"ike_authentication_refused"`
	IKECookies        uint64 `json:"ike_cookies_sent"`
	IKEHalfOpenDenied uint64 `json:"ike_half_open_denied"`
	IKERateLimited    uint64 `json:"ike_errors_suppressed"`
}

func (v *view) statsJSON() statsJSON {
	j := statsJSON{DataPlane: v.DataPlane, Role: v.nodeRole(), Gateways: len(v.Node.Gateways),
		IKEReceived: v.Loop.IKEReceived, IKEDropped: v.Loop.IKEDropped, PlaneEvents: v.Loop.Events,
		Frames: v.Loop.Frames, Effects: v.Loop.Effects, Timeouts: v.Loop.Timeouts,
		UnknownSPI: v.Plane.UnknownSPI, Malformed: v.Plane.Malformed, Progress: v.Progress, Uptime: v.since(v.Started)}
	c := v.Node.IKE
	j.IKEMalformed, j.IKEUnknownSPI, j.IKEAuthFailed, j.IKEOutsideWindow = c.Malformed, c.UnknownSPI, c.AuthFailed, c.OutsideWindow
	j.IKEDuplicates, j.IKERetransmitted, j.IKEAuthRefused = c.Duplicates, c.Retransmitted, c.AuthRefused
	j.IKECookies, j.IKEHalfOpenDenied, j.IKERateLimited = c.CookiesSent, c.HalfOpenDenied, c.RateLimited
	for i := range v.Node.Gateways {
		g := &v.Node.Gateways[i]
		j.IKESAs += len(g.IKE)
		j.ChildSAs += len(g.Children)
		j.IKECreated += g.IKECreated
		j.IKEEstablished += g.IKEEstablished
		j.ChildCreated += g.ChildCreated
		j.ChildUp += g.ChildEstablished
	}
	return j
}

// showStats is `diagnose vpn ike stats`.
func showStats(s *session, _ []string) error {
	v, err := s.d.view(s.ctx, false)
	if err != nil {
		return err
	}
	j := v.statsJSON()
	if s.json {
		return s.printJSON(j)
	}
	s.printf("data plane: %s\nrole: %s\nuptime: %ds\n", j.DataPlane, j.Role, j.Uptime)
	s.printf("gateways: %d\nIKE SA: %d, created %d established %d\nIPsec SA: %d, created %d established %d\n",
		j.Gateways, j.IKESAs, j.IKECreated, j.IKEEstablished, j.ChildSAs, j.ChildCreated, j.ChildUp)
	s.printf("ike datagrams: %d dropped %d\nplane events: %d\nframes: %d\neffects: %d\ntimeouts: %d\nprogress: %d\n",
		j.IKEReceived, j.IKEDropped, j.PlaneEvents, j.Frames, j.Effects, j.Timeouts, j.Progress)
	s.printf("unknown SPI: %d\nmalformed: %d\n", j.UnknownSPI, j.Malformed)
	s.printf("ike malformed: %d\nike unknown SPI: %d\nike integrity failed: %d\nike outside window: %d\n",
		j.IKEMalformed, j.IKEUnknownSPI, j.IKEAuthFailed, j.IKEOutsideWindow)
	s.printf("ike duplicates: %d\nike retransmitted: %d\nike authentication refused: %d\n",
		j.IKEDuplicates, j.IKERetransmitted, j.IKEAuthRefused)
	s.printf("ike cookies sent: %d\nike half-open denied: %d\nike errors suppressed: %d\n",
		j.IKECookies, j.IKEHalfOpenDenied, j.IKERateLimited)
	return nil
}
