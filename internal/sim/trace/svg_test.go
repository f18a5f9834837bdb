package trace

import (
	"bytes"
	"encoding/xml"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

type label struct {
	x1, y1, x2, y2 float64
	text           string
}

var number = regexp.MustCompile(`-?\d+(\.\d+)?`)

// readSVG parses an SVG strictly and returns its labels, its size and the names
// of its elements. It fails on a coordinate that is no number.
func readSVG(t *testing.T, doc []byte) (labels []label, w, h float64, elements map[string]int, words string) {
	t.Helper()
	elements = map[string]int{}
	d := xml.NewDecoder(bytes.NewReader(doc))
	d.Strict = true
	var open []xml.StartElement
	var all strings.Builder
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return labels, w, h, elements, all.String()
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			tok = tok.Copy()
			open = append(open, tok)
			elements[tok.Name.Local]++
			for _, a := range tok.Attr {
				switch a.Name.Local {
				case "x", "y", "width", "height", "cx", "cy", "r":
					if _, err := strconv.ParseFloat(a.Value, 64); err != nil || !number.MatchString(a.Value) {
						t.Errorf("<%s %s=%q>", tok.Name.Local, a.Name.Local, a.Value)
					}
				case "d":
					if rest := strings.Trim(number.ReplaceAllString(a.Value, ""), " MLVhvlmz"); strings.Trim(rest, " MLVhvlmz") != "" {
						t.Errorf("path %q", a.Value)
					}
				}
				if strings.HasPrefix(a.Name.Local, "on") || a.Name.Local == "href" {
					t.Errorf("<%s %s=%q>", tok.Name.Local, a.Name.Local, a.Value)
				}
			}
			if tok.Name.Local == "svg" {
				w, h = attr(tok, "width"), attr(tok, "height")
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			e := open[max(0, len(open)-1):]
			if len(e) == 0 || e[0].Name.Local != "text" {
				continue
			}
			all.Write(tok)
			all.WriteByte('\n')
			size := 12.0
			if v := attr(e[0], "font-size"); v > 0 {
				size = v
			}
			// 0.602 em is the advance of the widest of the fonts named.
			l := label{x1: attr(e[0], "x"), y2: attr(e[0], "y") + size*0.2, y1: attr(e[0], "y") - size*0.8, text: string(tok)}
			long := float64(width(string(tok))) * size * 0.602
			switch {
			case bytes.Contains([]byte(attrText(e[0], "text-anchor")), []byte("middle")):
				l.x1 -= long / 2
			case attrText(e[0], "text-anchor") == "end":
				l.x1 -= long
			}
			l.x2 = l.x1 + long
			labels = append(labels, l)
		}
	}
}

func attrText(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

func attr(e xml.StartElement, name string) float64 {
	f, _ := strconv.ParseFloat(attrText(e, name), 64)
	return f
}

func checkSVG(t *testing.T, doc []byte) string {
	t.Helper()
	labels, w, h, elements, words := readSVG(t, doc)
	for name := range elements {
		switch name {
		case "svg", "title", "style", "rect", "text", "path", "circle", "g":
		default:
			t.Errorf("an element <%s>", name)
		}
	}
	if bytes.Contains(doc, []byte("NaN")) || bytes.Contains(doc, []byte("Inf")) {
		t.Error("NaN or Inf")
	}
	for i, a := range labels {
		if a.x1 < 0 || a.y1 < 0 || a.x2 > w || a.y2 > h {
			t.Errorf("%q stands outside of the page of %v × %v: %+v", a.text, w, h, a)
		}
		for _, b := range labels[:i] {
			if a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2 {
				t.Errorf("%q and %q overlap: %+v %+v", a.text, b.text, a, b)
			}
		}
	}
	return words
}

func TestSVG(t *testing.T) {
	events, v := storyView()
	doc := svgOf(t, events, v)
	words := checkSVG(t, doc)
	for _, want := range []string{"FAULT gw1: crash", "VIOLATION gw2", "lost on the way", "12.2 s", "[1] arrives", "×37"} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if !strings.Contains(string(doc), "<title>12.346000 s  FAULT gw1: crash in the middle") {
		t.Error("no tooltip for the crash")
	}
}

func TestSVGOfHostileEvents(t *testing.T) {
	checkSVG(t, svgOf(t, nil, View{}))
	for seed := range uint64(30) {
		events := chaos(seed, 120)
		checkSVG(t, svgOf(t, events, View{Title: hostile, Footer: hostile}))
		v := Around(events, events[60].At)
		v.Title = strings.Repeat(hostile, 9)
		checkSVG(t, svgOf(t, events, v))
		if t.Failed() {
			t.Fatal("seed ", seed)
		}
	}
}

// The check of the coordinates sees what it is meant to see.
func TestOverlapIsSeen(t *testing.T) {
	labels, _, _, _, _ := readSVG(t, []byte(`<svg width="100" height="100"><text x="10" y="20">abc</text><text x="20" y="24" text-anchor="end">de</text></svg>`))
	if a, b := labels[0], labels[1]; !(a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2) {
		t.Errorf("%+v and %+v", a, b)
	}
}

// An arrow slants by its message's time on the way.
func TestSlant(t *testing.T) {
	events := []Event{
		{At: ms(1), From: "a", To: "b", Until: ms(3), Class: ClassIKE, Text: "slow"},
		{At: ms(1), From: "c", To: "b", Until: ms(1), Class: ClassIKE, Text: "at once"},
		{At: ms(2), From: "c", To: "d", Until: ms(2), Class: ClassIKE, Text: "elsewhere"},
		{At: ms(4), Kind: Note, From: "b", Text: "end"},
	}
	s := &svg{plan: newPlan(events, View{})}
	s.measure()
	s.place()
	if len(s.rows) != 4 {
		t.Fatalf("%d rows", len(s.rows))
	}
	if got, want := s.height(0, ms(3)), (s.center(2)+s.center(3))/2; got != want {
		t.Errorf("the slow message arrives at height %v, not %v", got, want)
	}
	if got := s.height(1, ms(1)); got != s.center(1) {
		t.Errorf("the quick message arrives at height %v, not %v", got, s.center(1))
	}
}
