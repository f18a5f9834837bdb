package quiet

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	now := time.Unix(1000, 0)
	var said []string
	l := &Lines{Every: 10 * time.Second, Now: func() time.Time { return now }, Say: func(s string, n int) { said = append(said, fmt.Sprint(s, " +", n)) }}
	say := func(s string) {
		if n, err := l.Write([]byte(s + "\n")); n != len(s)+1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	say("vote 1 refused")
	say("vote 2 refused")
	say("no key from=10.0.0.1:7000")
	say("no key from=10.0.0.1:7001")
	say("no key from=10.0.0.2:7001")
	now = now.Add(9 * time.Second)
	say("vote 3 refused")
	now = now.Add(time.Second)
	say("vote 4 refused")
	say("vote 5 refused")
	want := []string{"vote 1 refused +0", "no key from=10.0.0.1:7000 +0", "no key from=10.0.0.2:7001 +0", "vote 4 refused +2"}
	if !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
	said = nil
	flood := func() {
		for i := range 10 * maxKinds {
			say(fmt.Sprintf("no key from=10.1.%d.%d:1", i/256, i%256))
		}
	}
	flood()
	if len(l.said) > maxKinds+1 || len(said) > maxKinds {
		t.Errorf("%d kinds are remembered, %d lines of forged addresses", len(l.said), len(said))
	}
	said = nil
	flood()
	if len(said) != 0 {
		t.Errorf("the same flood is told again with %d lines", len(said))
	}
	now = now.Add(10 * time.Second)
	flood()
	if len(said) == 0 || len(said) > maxKinds+1 || len(l.said) > maxKinds+1 {
		t.Errorf("%d lines, %d kinds", len(said), len(l.said))
	}
}
