package message

import (
	"errors"
	"fmt"
)

// ErrAuthentication is every failure to open a protected payload: too short, a
// wrong ICV or a wrong key look alike.
var ErrAuthentication = errors.New("message authentication failed")

// Error is what the codec found wrong. Notify is what the peer may be told
// (INVALID_SYNTAX, UNSUPPORTED_CRITICAL_PAYLOAD with the payload type as its one
// byte of Data, INVALID_MAJOR_VERSION), 0 to stay silent. Err is for our log.
type Error struct {
	Notify NotifyType
	Data   []byte
	Err    error
}

func (e *Error) Error() string {
	if e.Notify == 0 {
		return e.Err.Error()
	}
	return e.Notify.String() + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

func silent(format string, args ...any) error { return &Error{Err: fmt.Errorf(format, args...)} }

func invalid(format string, args ...any) error {
	return &Error{Notify: InvalidSyntax, Err: fmt.Errorf(format, args...)}
}
