package trace

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; look at it after go test -update. Got:\n%s", path, got)
	}
}

func drawn(t *testing.T, events []Event, v View) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteDiagram(&b, events, v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func svgOf(t *testing.T, events []Event, v View) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteSVG(&b, events, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func storyView() ([]Event, View) {
	events := story()
	v := Around(events, ms(12855))
	v.Footer = "The schedule: gw1 crashes at 12.346 s; the sync link is cut at 12.847 s.\nThe same seed gives this again."
	return events, v
}

func TestStory(t *testing.T) {
	events, v := storyView()
	var l Log
	for _, e := range events {
		l.Add(e)
	}
	var text bytes.Buffer
	if err := l.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "story.txt", text.Bytes())
	golden(t, "story.diagram", []byte(drawn(t, events, v)))
	golden(t, "story.svg", svgOf(t, events, v))
}

// The order in which events of different times are added plays no part, and
// nothing depends on chance.
func TestSameEventsSameBytes(t *testing.T) {
	events, v := storyView()
	later := append([]Event(nil), events...)
	for i := 0; i+1 < len(later); i += 2 {
		if later[i].At != later[i+1].At {
			later[i], later[i+1] = later[i+1], later[i]
		}
	}
	for range 20 {
		if a, b := drawn(t, events, v), drawn(t, later, v); a != b {
			t.Fatal("two text diagrams of the same events differ")
		}
		if !bytes.Equal(svgOf(t, events, v), svgOf(t, later, v)) {
			t.Fatal("two SVGs of the same events differ")
		}
	}
	if a, b := Around(events, ms(12855)), Around(later, ms(12855)); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("two views of the same events differ: %v and %v", a, b)
	}
}

// The story is told in its order: the record that gw1 sent before its crash
// arrives after it, and the IV that repeats stays apart from its run.
func TestStoryIsTold(t *testing.T) {
	events, v := storyView()
	got := drawn(t, events, v)
	at := 0
	for _, want := range []string{
		"gw1 is now owner", "IKE_SA_INIT request", "×37", "⋮ 12.2 s", "CREATE_CHILD_SA request id 2", "[1] record 2",
		"FAULT gw1: crash", "gw1 is now dead", "LOST", "[1] arrives: record 2", "gw2 is now owner", "retransmitted",
		"FAULT gw1 – gw2", "[frozen]", "sequence 1025 IV 000001:0000000000 … 1029", "sequence 1030 IV 000001:0000000003",
		"VIOLATION gw2: IV 000001:0000000003",
	} {
		i := strings.Index(got[at:], want)
		if i < 0 {
			t.Fatalf("%q is not told, or not in its place:\n%s", want, got)
		}
		at += i
	}
	if strings.Contains(got, "after the violation") {
		t.Error("what came after the violation is shown")
	}
}

func TestLogIsBounded(t *testing.T) {
	l := NewLog(64)
	add := func(i int, kind Kind, class string) {
		l.Add(Event{At: time.Duration(i), Kind: kind, From: "a", To: "b", Class: class, Text: "x"})
	}
	add(0, Violation, "")
	for i := range 20 {
		add(1+i, Message, ClassIKE)
	}
	for i := range 1000 {
		add(100+i, Message, []string{ClassESP, ClassHeartbeat, ClassAck}[i%3])
		if len(l.events) > 64 {
			t.Fatalf("%d events kept, the limit is 64", len(l.events))
		}
	}
	count := map[string]int{}
	for _, e := range l.Events() {
		count[e.Class]++
	}
	if count[ClassIKE] != 20 || count[""] != 1 {
		t.Errorf("events that matter were dropped before background: %v", count)
	}
	lost := 0
	for _, d := range l.Dropped() {
		lost += d.Count
		if d.Class == ClassIKE || d.First < 100 || d.Last <= d.First {
			t.Errorf("wrong account of what was dropped: %+v", d)
		}
	}
	if kept := len(l.Events()); kept+lost != 1021 {
		t.Errorf("%d kept and %d dropped, of 1021", kept, lost)
	}
	if e := l.Events(); e[len(e)-1].At != 1099 {
		t.Error("the latest event is missing")
	}
	for i := range 1000 { // nothing but faults: they go too, the violation stays
		add(2000+i, Fault, "")
	}
	if e := l.Events(); len(e) > 64 || e[0].Kind != Violation {
		t.Errorf("%d events, the first a %v", len(e), e[0].Kind)
	}
	for i := range 500 { // many classes
		add(4000+i, Message, fmt.Sprint("class", i))
		add(4000+i, Fault, "")
	}
	if n := len(l.Dropped()); n > maxClasses+5 {
		t.Errorf("%d lines of account", n)
	}
	l.Add(Event{Text: strings.Repeat("é", 1<<16)})
	e := l.Events()
	if s := e[0].Text; len(s) > maxText || !utf8.ValidString(s) {
		t.Errorf("a text of %d bytes is kept", len(s))
	}
}

func TestRowsAreLimited(t *testing.T) {
	var events []Event
	for i := range 5000 {
		at := time.Duration(i) * time.Millisecond
		events = append(events, Event{At: at, From: "a", To: "b", Until: at + 2500*time.Microsecond, Class: ClassIKE, Text: fmt.Sprint("request ", i)},
			Event{At: at, From: "b", To: "a", Until: at + 1500*time.Microsecond, Class: ClassIKE, Text: fmt.Sprint("response ", i)},
			Event{At: at, From: "b", To: "a", Until: at, Class: ClassESP, Text: fmt.Sprint("packet ", i)})
	}
	events = append(events, Event{At: 5 * time.Second, Kind: Violation, Text: "end"})
	for _, limit := range []int{0, 1, 7, 40} {
		p := newPlan(events, View{MaxRows: limit})
		n, left := 0, 0
		for _, r := range p.rows {
			left += r.left
			if r.kind != rowGap {
				n++
			}
		}
		if limit == 0 {
			limit = DefaultRows
		}
		if n > limit {
			t.Errorf("%d rows, the limit is %d", n, limit)
		}
		if p.rows[len(p.rows)-1].kind != rowViolation || left < len(events)-2*limit {
			t.Errorf("the last row is %+v, %d left out", p.rows[len(p.rows)-1], left)
		}
	}
	v := Around(events, 5*time.Second)
	if n := len(newPlan(events, v).rows); n < DefaultRows/4 || n > DefaultRows*3/2 {
		t.Errorf("the default view has %d rows", n)
	}
}

// chaos makes events of every kind with hostile names and texts.
func chaos(seed uint64, n int) []Event {
	r := rand.New(rand.NewPCG(seed, 1))
	texts := []string{"", "plain", hostile, strings.Repeat("long words ", 60), strings.Repeat("x", 700), "owner", "dead", "frozen", "日本語 é́ \u202e\x00\xff"}
	names := []string{"", "gw1", "gw2", "gw10", "gw1/guardian", "client1", hostile, strings.Repeat("name/", 12), "attacker"}
	classes := []string{"", ClassIKE, ClassESP, ClassAck, ClassHeartbeat, ClassFrame, ClassDisk, hostile}
	var out []Event
	for range n {
		e := Event{At: time.Duration(r.IntN(3000)) * 100 * time.Microsecond, Kind: Kind(r.IntN(6)), From: names[r.IntN(len(names))], To: names[r.IntN(len(names))],
			Class: classes[r.IntN(len(classes))], Text: texts[r.IntN(len(texts))]}
		switch r.IntN(4) {
		case 0:
			e.Until = -1
		case 1:
			e.Until = e.At + time.Duration(r.IntN(200))*time.Millisecond
		case 2:
			e.Until = e.At + time.Duration(r.IntN(1000))
		}
		if r.IntN(10) == 0 {
			e.At *= 100000
		}
		out = append(out, e)
	}
	return out
}

const hostile = "</text><script>alert('1')</script>\"&<!--]]>\x00\x1b[31m\u202e\nnew line"

func TestDiagramKeepsItsWidth(t *testing.T) {
	check := func(s string) {
		t.Helper()
		for _, line := range strings.Split(s, "\n") {
			if n := utf8.RuneCountInString(line); n > diagramWidth {
				t.Fatalf("%d columns: %s", n, line)
			}
			if strings.ContainsFunc(line, func(r rune) bool { return clean(string(r)) != string(r) }) {
				t.Fatalf("unprintable: %q", line)
			}
		}
	}
	events, v := storyView()
	check(drawn(t, events, v))
	for seed := range uint64(30) {
		events := chaos(seed, 120)
		v := Around(events, events[50].At)
		v.Footer, v.Title = hostile, hostile
		check(drawn(t, events, v))
		check(drawn(t, events, View{}))
		var l Log
		for _, e := range events {
			l.Add(e)
		}
		var b bytes.Buffer
		if err := l.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(b.String(), "\n") {
			if clean(line) != line {
				t.Fatalf("unprintable: %q", line)
			}
		}
	}
	check(drawn(t, nil, View{}))
	check(drawn(t, nil, Around(nil, time.Second)))
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ns", 999: "999 ns", 1500: "1.5 µs", 100 * time.Microsecond: "100 µs", 12300 * time.Millisecond: "12.3 s",
		90 * time.Minute: "90 min", 48 * time.Hour: "48 h", 1010 * time.Millisecond: "1.01 s", -time.Second: "-1 s",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%d) = %q, not %q", d, got, want)
		}
	}
	if got := seconds(-1500*time.Millisecond, 3); got != "-1.500" {
		t.Error(got)
	}
	names := []string{"attacker", "client2", "client10", "gw1", "gw1/guardian", "gw2", "gw10"}
	for i := range names {
		for j := range names {
			if before(names[i], names[j]) != (i < j) {
				t.Errorf("before(%q, %q) is wrong", names[i], names[j])
			}
		}
	}
	if got := fmt.Sprintf("%q", wrap("one two three four", 8, 2)); got != `["one two" "three f…"]` {
		t.Error(got)
	}
}
