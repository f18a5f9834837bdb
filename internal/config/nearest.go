package config

import (
	"slices"
	"strconv"
	"strings"
)

// nearest returns the known word that is most likely meant, or "".
func nearest(got string, known []string) string {
	if len(got) > 64 {
		return ""
	}
	best, bestDist := "", min(max(2, len(got)/3)+1, len(got))
	for _, k := range known {
		if strings.EqualFold(k, got) {
			return k
		}
		if d := distance(got, k); d < bestDist {
			best, bestDist = k, d
		}
	}
	if best == "" && len(got) >= 3 {
		for _, k := range known {
			if strings.HasPrefix(k, got) {
				return k
			}
		}
	}
	return best
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that turn a into b.
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// didYouMean is "; did you mean X?" or nothing.
func didYouMean(got string, known []string) string {
	if n := nearest(got, known); n != "" {
		return "; did you mean " + n + "?"
	}
	return ""
}

// orList joins "a, b or c".
func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// echo prints what the user wrote, short and printable.
func echo(s string) string {
	if r := []rune(s); len(r) > 48 {
		s = string(r[:48]) + "…"
	}
	if s == "" || strings.ContainsAny(s, " \t\r\n\"'") || !isPrintable(s) {
		return strconv.Quote(s)
	}
	return s
}

func isPrintable(s string) bool {
	return !slices.ContainsFunc([]rune(s), func(r rune) bool { return !strconv.IsPrint(r) })
}

func texts(words []word) []string {
	var out []string
	for _, w := range words {
		out = append(out, w.text)
	}
	return out
}
