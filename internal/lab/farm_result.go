package lab

import (
	"fmt"
	"io"
)

// FarmFigures are the figures of a farm's run that a pair's has not.
type FarmFigures struct {
	Clients          int     `json:"clients"`             // tunnels
	Members          int     `json:"members"`             // that synchronise
	OutageFromKillMS Spread  `json:"outage_from_kill_ms"` // per tunnel that used the victim, from the fault itself; outage_ms is from the moment the routers left the victim
	Forwarded        int     `json:"forwarded"`           // packets that a member handed to a tunnel's owner, as the members say
	OwnerMoves       int     `json:"owner_moves"`         // times that another member went on sending a tunnel's ESP, by the captures
	DoubleOwnerMS    float64 `json:"double_owner_ms"`     // in which two members sent a tunnel's ESP, summed over tunnels, by the captures

	OwnerMovesTold      int          `json:"owner_moves_told"`      // planned ones, as the members say
	DoubleOwnerSplitMS  float64      `json:"double_owner_split_ms"` // while that was tolerated
	TunnelsHit          int          `json:"tunnels_hit"`           // tunnels that used the victim of a fault within a second before it: what the outages rest on
	BystanderMS         float64      `json:"bystander_ms"`          // the largest gap around a fault of a tunnel that did not
	MovedAfterMS        Middle       `json:"moved_after_ms"`        // from the fault until the routers left the victim
	SeqRegressionsOwner int          `json:"seq_regressions_owner"` // among the packets of one member, at any time
	UninvolvedPackets   int          `json:"uninvolved_packets"`    // ESP and IKE of members without fgsp-sync
	Rehashes            int          `json:"rehashes"`              // changes of routes while everybody lived
	RehashLostPercent   float64      `json:"rehash_lost_percent"`   // the most probes lost in the two seconds after one
	RehashMoves         int          `json:"rehash_moves"`          // the most moves of one tunnel after one
	RehashSettledMS     float64      `json:"rehash_settled_ms"`     // until the last tunnel had moved
	RehashAstray        int          `json:"rehash_astray"`         // tunnels whose owner was not, in the end, the member that its client's packets reached
	Faults              []FarmFault  `json:"faults"`
	Changes             []FarmChange `json:"changes"`
	LostProbes          []string     `json:"lost_probes"` // that no kill excuses, in words: the first of each tunnel and direction, not more than 20
}

// FarmFault is one fault and what came of it.
type FarmFault struct {
	Fault            string  `json:"fault"`
	Victim           string  `json:"victim"`
	Tunnels          int     `json:"tunnels"` // that used the victim
	MovedAfterMS     float64 `json:"moved_after_ms"`
	DetectMS         float64 `json:"detect_ms"` // as the survivors say; 0: they did not
	OutageMS         Spread  `json:"outage_ms"`
	OutageFromKillMS Spread  `json:"outage_from_kill_ms"`
	Lost             int     `json:"lost_pings"`
	Worst            string  `json:"worst"` // of all tunnels, in words
}

// FarmChange is one change of routes while everybody lived, or with a member that
// came back.
type FarmChange struct {
	Why         string  `json:"why"` // rehash, rejoin
	Member      string  `json:"member"`
	LostPercent float64 `json:"lost_percent"`
	Moved       int     `json:"moved"`      // tunnels
	Moves       int     `json:"moves"`      // the most of one tunnel
	SettledMS   float64 `json:"settled_ms"` // until the last one
	Astray      int     `json:"astray"`
}

// report writes the farm's part for people.
func (f *FarmFigures) report(w io.Writer, r *Result) {
	fmt.Fprintf(w, "\n%s, %d clients (%s), %d members: %d faults, %d changes of routes in %.0f s\n",
		r.Scenario, f.Clients, r.Client, f.Members, len(f.Faults), len(f.Changes), r.Seconds)
	for i, x := range f.Faults {
		fmt.Fprintf(w, "%3d. %s of %s, %d tunnels; the routers moved after %.0f ms; outage from there median %.1f, p99 %.1f, max %.1f ms; from the fault %.1f, %.1f, %.1f ms; %d probes lost\n",
			i+1, x.Fault, x.Victim, x.Tunnels, x.MovedAfterMS, x.OutageMS.Median, x.OutageMS.P99, x.OutageMS.Max,
			x.OutageFromKillMS.Median, x.OutageFromKillMS.P99, x.OutageFromKillMS.Max, x.Lost)
		fmt.Fprintf(w, "     worst: %s\n", x.Worst)
	}
	for _, x := range f.Changes {
		fmt.Fprintf(w, "  %s (%s): %.2f %% lost, %d tunnels moved, at most %d times, within %.0f ms; %d astray\n",
			x.Why, x.Member, x.LostPercent, x.Moved, x.Moves, x.SettledMS, x.Astray)
	}
	for _, x := range f.LostProbes {
		fmt.Fprintf(w, "  lost: %s\n", x)
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-22s "+format+"\n", append([]any{name}, args...)...)
	}
	row("outage", "median %.1f ms, p99 %.1f ms, max %.1f ms from the routers' move, of %d", r.OutageMS.Median, r.OutageMS.P99, r.OutageMS.Max, f.TunnelsHit)
	row("outage from the fault", "median %.1f ms, p99 %.1f ms, max %.1f ms", f.OutageFromKillMS.Median, f.OutageFromKillMS.P99, f.OutageFromKillMS.Max)
	row("others", "%.1f ms around faults, %.1f ms in quiet times", f.BystanderMS, r.OtherGapMS)
	row("owners", "%d moves, two at once for %.1f ms; %d packets forwarded", f.OwnerMoves, f.DoubleOwnerMS, f.Forwarded)
	row("sequence", "%d regressions, %d of one member", r.SeqRegressions, f.SeqRegressionsOwner)
}
