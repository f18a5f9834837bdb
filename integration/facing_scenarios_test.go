package integration

import (
	"testing"

	"tandem/internal/lab"
)

const exampleFacing = "../examples/site-to-site"

// facingForms are the short forms of the example's scenarios: one of ten rounds, with all
// the spaces between the two faults.
var facingForms = map[string][]string{
	"demo": {"repeat 10", "repeat 1", "fifty times", "five times", "kills = 100", "kills = 10"},
	"lose": {"repeat 10", "repeat 2", "ten times", "twice", "kills = 20", "kills = 4"},
}

// TestFacingPairs: both active gateways of two pairs that face each other die within the
// same moment; neither pair begins anything anew. The scenarios' own bounds judge.
func TestFacingPairs(t *testing.T) {
	needRoot(t)
	names, err := lab.ScenarioNames(exampleFacing)
	if err != nil || len(names) != len(facingForms) {
		t.Fatalf("%d scenarios in the example, %d short forms here: %v", len(names), len(facingForms), err)
	}
	for _, name := range names {
		edits, ok := facingForms[name]
		if !ok {
			t.Errorf("scenario %s has no short form", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			example := exampleFacing
			if testing.Short() {
				example = shortenedOf(t, exampleFacing, name, edits)
			}
			res := runLab(t, example, "--scenario", name)
			if res.Scenario != name || len(res.Takeovers) != res.Kills {
				t.Errorf("the result is of %s, with %d takeovers", res.Scenario, len(res.Takeovers))
			}
		})
	}
}
