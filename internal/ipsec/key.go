package ipsec

import (
	"fmt"
	"log/slog"
)

// Key is secret bytes. It prints as "redacted" under every verb, in JSON and in
// slog; only Bytes gives it away.
type Key struct{ b []byte }

// NewKey takes a copy of b.
func NewKey(b []byte) Key {
	if len(b) == 0 {
		return Key{}
	}
	return Key{b: append([]byte(nil), b...)}
}

// Bytes returns the secret itself; the caller must neither log nor keep it.
func (k Key) Bytes() []byte { return k.b }

// Len is the length in bytes.
func (k Key) Len() int { return len(k.b) }

// Wipe overwrites the secret with zeros. Copies of the Key share its bytes and are wiped with it.
func (k Key) Wipe() { clear(k.b) }

const redacted = "redacted"

func (k Key) String() string               { return redacted }
func (k Key) GoString() string             { return redacted }
func (k Key) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (k Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (k Key) LogValue() slog.Value         { return slog.StringValue(redacted) }
