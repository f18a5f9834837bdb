package bench

import (
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Sizes of the chart, in pixels at 100 %.
const (
	chartWidth  = 860.0
	chartLabel  = 210.0 // where bars begin
	chartBar    = 430.0 // the longest bar
	chartRow    = 22.0
	chartMargin = 16.0
)

const chartStyle = `
.page{fill:#ffffff}.fg{fill:#1f2328}.dim{fill:#636c76}.whisker{stroke:#1f2328}.bar{fill:#8b949e}.own{fill:#2f81f7}
@media (prefers-color-scheme:dark){
.page{fill:#0d1117}.fg{fill:#e6edf3}.dim{fill:#9198a1}.whisker{stroke:#e6edf3}}
`

// Chart draws, for each layout and measure, what every program reached as a bar with
// its spread, as one self-contained SVG without scripts.
func (r *Result) Chart() string {
	var b strings.Builder
	y := chartMargin
	line := func(class, weight string, x, size float64, anchor, text string) {
		fmt.Fprintf(&b, `<text class="%s" x="%s" y="%s" font-size="%s" font-weight="%s" text-anchor="%s">%s</text>`+"\n",
			class, pixels(x), pixels(y), pixels(size), weight, anchor, escape(text))
	}
	y += 14
	line("fg", "bold", chartMargin, 15, "start", "The data plane: median of each program, and its spread")
	y += 18
	line("dim", "normal", chartMargin, 12, "start", fmt.Sprintf("%s, commit %s, %d rounds in turn, %s", r.Date, r.Commit, r.Rounds, r.Machine))
	for _, l := range r.Layouts() {
		for _, m := range r.MeasuresOf(l) {
			y += 30
			unit := "Gbit/s"
			if isPackets(m) {
				unit = "kpps"
			}
			line("fg", "bold", chartMargin, 13, "start", l+", "+m+", "+unit)
			y += 6
			most := 0.0
			for _, p := range r.Programs {
				if s := r.Figures(p.Name, l, m, Sample.rate); s.N > 0 {
					most = math.Max(most, s.Max)
				}
			}
			for _, p := range r.Programs {
				s := r.Figures(p.Name, l, m, Sample.rate)
				if s.N == 0 || most == 0 {
					continue
				}
				class := "bar"
				if strings.HasPrefix(p.Name, r.Subject) {
					class = "own"
				}
				fmt.Fprintf(&b, `<rect class="%s" x="%s" y="%s" width="%s" height="14" rx="2"/>`+"\n", class, pixels(chartLabel), pixels(y+4), pixels(chartBar*s.Median/most))
				mid := y + 11
				fmt.Fprintf(&b, `<path class="whisker" fill="none" d="M%[1]s %[3]sH%[2]sM%[1]s %[4]sv6M%[2]s %[4]sv6"/>`+"\n",
					pixels(chartLabel+chartBar*s.Min/most), pixels(chartLabel+chartBar*s.Max/most), pixels(mid), pixels(mid-3))
				y += 15
				line("fg", "normal", chartLabel-8, 12, "end", p.Name)
				text := rateSpread(isPackets(m), s)
				if p.Name != r.Subject {
					if q := r.Ratios(r.Subject, p.Name, l, m, Rate); q.N > 0 {
						text += fmt.Sprintf(", %s × %s", r.Subject, short(q.Median))
					}
				}
				line("dim", "normal", chartLabel+chartBar*s.Max/most+8, 12, "start", text)
				y += chartRow - 15
			}
		}
	}
	y += 26
	line("dim", "normal", chartMargin, 12, "start", fmt.Sprintf("“%s × n”: how many times as much %s carries in the same round.", r.Subject, r.Subject))
	y += chartMargin
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%[1]s" height="%[2]s" viewBox="0 0 %[1]s %[2]s" role="img" font-family="system-ui,'DejaVu Sans',sans-serif">`+"\n<title>Data plane benchmark</title>\n<style>%[3]s</style>\n<rect class=\"page\" width=\"%[1]s\" height=\"%[2]s\"/>\n",
		pixels(chartWidth), pixels(y), chartStyle)
	return head + b.String() + "</svg>\n"
}

func (s Sample) rate() float64 { return s.Rate }

func pixels(f float64) string { return strconv.FormatFloat(math.Round(f*10)/10, 'f', -1, 64) }

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
