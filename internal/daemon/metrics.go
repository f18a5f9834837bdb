package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// viewTimeout bounds how long a scrape or a health check waits for the loop; a
// loop that does not answer is not healthy.
const viewTimeout = 2 * time.Second

// serveMetrics answers /metrics, /healthz and /readyz at addr, an empty one: nowhere.
func serveMetrics(addr string, d backend) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("metrics-address: %w", err)
	}
	s := &http.Server{Handler: metricsHandler(d), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = s.Serve(l) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
	}, nil
}

func metricsHandler(d backend) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{d: d}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { answerHealth(w, r, d, false) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { answerHealth(w, r, d, true) })
	return mux
}

// healthJSON is the body of /healthz and /readyz: the figures of
// `get system ha status` and `diagnose vpn ike stats`.
type healthJSON struct {
	Healthy bool      `json:"healthy"`
	Ready   bool      `json:"ready"`
	Reason  string    `json:"reason,omitempty"`
	HA      *haJSON   `json:"ha,omitempty"`
	Farm    *farmJSON `json:"farm,omitempty"` // instead of HA: a member of a farm
	Stats   statsJSON `json:"stats"`
}

// answerHealth: healthy means that the event loop answers; ready means that this
// node carries traffic, or could take it over with everything it needs.
func answerHealth(w http.ResponseWriter, r *http.Request, d backend, ready bool) {
	ctx, cancel := context.WithTimeout(r.Context(), viewTimeout)
	defer cancel()
	v, err := d.view(ctx, false)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("the event loop does not answer")
		}
		writeHealth(w, http.StatusServiceUnavailable, healthJSON{Reason: err.Error()})
		return
	}
	h := healthJSON{Healthy: true, Stats: v.statsJSON()}
	if v.Node.Farm != nil {
		j := v.farmJSON()
		h.Farm = &j
	} else {
		j := v.haJSON()
		h.HA = &j
	}
	h.Ready = v.owning() || v.synchronised()
	code := http.StatusOK
	if !h.Ready {
		h.Reason = "standby without a complete copy"
		if ready {
			code = http.StatusServiceUnavailable
		}
	}
	writeHealth(w, code, h)
}

func writeHealth(w http.ResponseWriter, code int, h healthJSON) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(h)
}

// collector turns a view into metrics at each scrape.
type collector struct{ d backend }

type metric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*view) float64
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var metrics = []metric{
	{"tandem_ike_sas", "IKE SAs held, live or as a copy.", prometheus.GaugeValue, func(v *view) float64 { return float64(v.statsJSON().IKESAs) }},
	{"tandem_child_sas", "Child SAs held, live or as a copy.", prometheus.GaugeValue, func(v *view) float64 { return float64(v.statsJSON().ChildSAs) }},
	{"tandem_owner", "1 while this node owns its scope, or any of a farm's.", prometheus.GaugeValue, func(v *view) float64 { return boolValue(v.owning()) }},
	{"tandem_synchronised", "1 while a loss of the owner would be covered.", prometheus.GaugeValue, func(v *view) float64 { return boolValue(v.synchronised()) }},
	{"tandem_alone", "1 while the owner has no entitled standby, in a farm for any of its scopes.", prometheus.GaugeValue, func(v *view) float64 { return boolValue(v.uncovered()) }},
	{"tandem_epoch", "Counter of the epoch that this node has accepted, in a farm the highest of all scopes.", prometheus.GaugeValue, func(v *view) float64 { return float64(v.epoch()) }},
	{"tandem_takeovers_total", "Changes of owner to this node.", prometheus.CounterValue, func(v *view) float64 { return float64(v.takeovers()) }},
	{"tandem_alarms", "Alarms that stand.", prometheus.GaugeValue, func(v *view) float64 { return float64(len(v.alarms())) }},
	{"tandem_ike_datagrams_total", "IKE datagrams received.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Loop.IKEReceived) }},
	{"tandem_ike_datagrams_dropped_total", "IKE datagrams dropped because the queue was full.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Loop.IKEDropped) }},
	{"tandem_ike_authentication_refused_total", "Peers that failed authentication.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Node.IKE.AuthRefused) }},
	{"tandem_ike_cookies_sent_total", "Cookies demanded above the half-open threshold.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Node.IKE.CookiesSent) }},
	{"tandem_ike_fragments_dropped_total", "Fragments of IKE messages dropped beyond the limits of reassembly.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Node.IKE.FragmentsDropped) }},
	{"tandem_ike_crash_tokens_sent_total", "Messages for unknown IKE SAs answered with a token of quick crash detection.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Node.IKE.TokensSent) }},
	{"tandem_ike_crash_tokens_taken_total", "IKE SAs ended because the peer showed its token.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Node.IKE.TokensTaken) }},
	{"tandem_ike_crash_tokens_wrong_total", "Wrong tokens.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Node.IKE.TokensWrong) }},
	{"tandem_ike_half_open_denied_total", "IKE_SA_INIT requests dropped beyond the limits of half-open IKE SAs.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Node.IKE.HalfOpenDenied) }},
	{"tandem_unknown_spi_packets_total", "ESP packets of an unknown SPI.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Plane.UnknownSPI) }},
	{"tandem_malformed_packets_total", "Outer packets that are no ESP and no IKE.", prometheus.CounterValue, func(v *view) float64 { return float64(v.Plane.Malformed) }},
}

// farmMetrics are a farm's member's alone.
var farmMetrics = []struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*farmJSON) float64
}{
	{"tandem_scopes_owned", "Scopes that this member owns.", prometheus.GaugeValue, func(j *farmJSON) float64 { return float64(j.ScopesOwned) }},
	{"tandem_tunnels_owned", "Tunnels whose sync-primary this member is.", prometheus.GaugeValue, func(j *farmJSON) float64 { return float64(j.Owned) }},
	{"tandem_tunnels_standby", "Tunnels that this member stands by for.", prometheus.GaugeValue, func(j *farmJSON) float64 { return float64(j.Standby) }},
	{"tandem_quorum", "1 while a majority of the voters decides.", prometheus.GaugeValue, func(j *farmJSON) float64 { return boolValue(j.Quorum) }},
	{"tandem_draining", "1 while this member is drained.", prometheus.GaugeValue, func(j *farmJSON) float64 { return boolValue(j.Draining) }},
	{"tandem_forwarded_packets_total", "Packets and IKE messages handed to the members that own their tunnels.", prometheus.CounterValue, func(j *farmJSON) float64 { return float64(j.Forwarded) }},
	{"tandem_owner_moves_total", "Tunnels that came to this member by a planned handover.", prometheus.CounterValue, func(j *farmJSON) float64 { return float64(j.OwnerMoves) }},
}

// tunnelMetrics have a label tunnel; they sum over the Child SAs that stand, so
// they may fall when an SA ends.
var tunnelMetrics = []struct {
	name, help string
	value      func(*tunnelJSON) float64
}{
	{"tandem_tunnel_in_packets", "Inner packets received.", func(t *tunnelJSON) float64 { return float64(t.InPackets) }},
	{"tandem_tunnel_in_bytes", "Inner bytes received.", func(t *tunnelJSON) float64 { return float64(t.InBytes) }},
	{"tandem_tunnel_in_errors", "Packets rejected: replayed, below the fence, not authentic, outside the selectors.", func(t *tunnelJSON) float64 { return float64(t.InErrors) }},
	{"tandem_tunnel_out_packets", "Inner packets sent.", func(t *tunnelJSON) float64 { return float64(t.OutPackets) }},
	{"tandem_tunnel_out_bytes", "Inner bytes sent.", func(t *tunnelJSON) float64 { return float64(t.OutBytes) }},
	{"tandem_tunnel_out_errors", "Packets that could not be sent.", func(t *tunnelJSON) float64 { return float64(t.OutErrors) }},
	{"tandem_tunnel_fence_widened", "Largest factor on the lead of a fence, because the standby answers late; 1: none.", func(t *tunnelJSON) float64 {
		n := uint64(1)
		for i := range t.Selectors {
			for k := range t.Selectors[i].SAs {
				n = max(n, t.Selectors[i].SAs[k].FenceWidened)
			}
		}
		return float64(n)
	}},
	{"tandem_tunnel_child_sas", "Child SAs.", func(t *tunnelJSON) float64 {
		n := 0
		for i := range t.Selectors {
			n += len(t.Selectors[i].SAs)
		}
		return float64(n)
	}},
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- prometheus.NewDesc(m.name, m.help, nil, nil)
	}
	for _, m := range farmMetrics {
		ch <- prometheus.NewDesc(m.name, m.help, nil, nil)
	}
	for _, m := range tunnelMetrics {
		ch <- prometheus.NewDesc(m.name, m.help, []string{"tunnel"}, nil)
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), viewTimeout)
	defer cancel()
	v, err := c.d.view(ctx, true)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
		return
	}
	for _, m := range metrics {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(m.name, m.help, nil, nil), m.kind, m.value(v))
	}
	if v.Node.Farm != nil {
		j := v.farmJSON()
		for _, m := range farmMetrics {
			ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(m.name, m.help, nil, nil), m.kind, m.value(&j))
		}
	}
	for i := range v.Node.Gateways {
		t := v.tunnelJSON(&v.Node.Gateways[i], false)
		for _, m := range tunnelMetrics {
			ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(m.name, m.help, []string{"tunnel"}, nil), prometheus.GaugeValue, m.value(&t), t.Name)
		}
	}
}
