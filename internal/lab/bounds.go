package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Bound is a limit on one figure of a result: `outage_ms.max <= 300`.
type Bound struct {
	Field string // path in the JSON, joined by dots
	Op    string // <=, >=, =
	Want  string // a number, true or false
}

func (b Bound) String() string { return b.Field + " " + b.Op + " " + b.Want }

func parseBound(f []string, model *Result) (Bound, error) {
	if len(f) != 3 {
		return Bound{}, errors.New("expected: bound FIELD <=|>=|= VALUE")
	}
	b := Bound{f[0], f[1], f[2]}
	_, numErr := strconv.ParseFloat(b.Want, 64)
	switch {
	case b.Op != "<=" && b.Op != ">=" && b.Op != "=":
		return b, fmt.Errorf("%q is no comparison; <=, >= and = are", b.Op)
	case numErr != nil && b.Want != "true" && b.Want != "false":
		return b, fmt.Errorf("%q is neither a number nor true nor false", b.Want)
	case numErr != nil && b.Op != "=":
		return b, fmt.Errorf("%s can only be equal to something", b.Want)
	}
	if _, err := model.figure(b.Field); err != nil {
		return b, err
	}
	return b, nil
}

// always holds for every scenario: what would make its figures worthless.
var always = []Bound{
	{"capture_drops", "=", "0"},
	{"oversize_frames", "=", "0"},
	{"clock_step_ms", "<=", "2"},
}

// check returns what is wrong, empty if the bound holds.
func (b Bound) check(r *Result) string {
	v, err := r.figure(b.Field)
	if err != nil {
		return err.Error()
	}
	bad := fmt.Sprintf("%s is %v, bound %s %s", b.Field, v, b.Op, b.Want)
	if flag, ok := v.(bool); ok {
		if strconv.FormatBool(flag) != b.Want {
			return bad
		}
		return ""
	}
	n, isNumber := v.(float64)
	want, err := strconv.ParseFloat(b.Want, 64)
	if !isNumber || err != nil {
		return bad
	}
	if b.Op == "<=" && n <= want || b.Op == ">=" && n >= want || b.Op == "=" && n == want {
		return ""
	}
	return bad
}

// figure finds a number or a truth value by its path in the JSON.
func (r *Result) figure(path string) (any, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	for _, k := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok || m[k] == nil {
			return nil, fmt.Errorf("a result has no figure %q", path)
		}
		v = m[k]
	}
	switch v.(type) {
	case float64, bool:
		return v, nil
	}
	return nil, fmt.Errorf("%q is no figure of a result", path)
}
