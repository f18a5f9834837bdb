// Package outbox keeps what a pure core wants done until its shell polls for it.
package outbox

// Box is a queue of effects. Its zero value is empty and ready.
type Box[E any] struct{ list []E }

// Emit adds an effect.
func (b *Box[E]) Emit(e E) { b.list = append(b.list, e) }

// Empty says that nothing is there to be polled.
func (b *Box[E]) Empty() bool { return len(b.list) == 0 }

// Poll takes the oldest effect out; false: there is none. The memory is given back when
// the last one was taken.
func (b *Box[E]) Poll() (e E, ok bool) {
	if len(b.list) == 0 {
		b.list = nil
		return e, false
	}
	e = b.list[0]
	b.list = b.list[1:]
	return e, true
}
