package outbox

import "testing"

func TestBox(t *testing.T) {
	var b Box[string]
	for range 2 {
		if e, ok := b.Poll(); ok || !b.Empty() {
			t.Fatalf("%q from an empty box", e)
		}
		b.Emit("install")
		b.Emit("send")
		for _, want := range []string{"install", "send"} {
			if e, ok := b.Poll(); !ok || e != want {
				t.Fatalf("%q, %v; want %q", e, ok, want)
			}
		}
	}
}
