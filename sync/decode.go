package statesync

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"tandem/proto/syncpb"
)

var frameDescriptor = (&syncpb.Frame{}).ProtoReflect().Descriptor()

// decodeFrame decodes a frame of at most MaxFrame bytes and maxMessages messages,
// and checks what the conversion relies on.
func decodeFrame(b []byte) (*syncpb.Frame, error) {
	if len(b) > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	budget := maxMessages
	if !withinBudget(b, frameDescriptor, &budget) {
		return nil, fmt.Errorf("%w: not protobuf, or too many messages", ErrMalformed)
	}
	f := new(syncpb.Frame)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if f.Seq == 0 || len(f.Events) == 0 {
		return nil, fmt.Errorf("%w: no number or no events", ErrMalformed)
	}
	for i, e := range f.Events {
		if err := checkEvent(i, e, f.Events[0]); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func checkEvent(i int, e, first *syncpb.Frame_Event) error {
	_, unite := e.Kind.(*syncpb.Frame_Event_Unite)
	_, firstUnite := first.Kind.(*syncpb.Frame_Event_Unite)
	letter := e.GetLetter()
	switch {
	case e.Kind == nil:
		return fmt.Errorf("%w: event of no kind", ErrMalformed)
	case unite != firstUnite:
		return fmt.Errorf("%w: unite beside other events", ErrMalformed)
	case (letter == nil) != (first.GetLetter() == nil):
		return fmt.Errorf("%w: letter beside other events", ErrMalformed)
	case letter != nil && (letter.Kind == syncpb.Frame_Letter_NONE || letter.Kind > syncpb.Frame_Letter_ENDED):
		return fmt.Errorf("%w: letter of kind %d", ErrMalformed, letter.Kind)
	case i > 0 && (letter.GetFirst() || e.GetCopyBegin() != nil || e.GetRenew() != nil || e.GetUnite().GetFirst()):
		return fmt.Errorf("%w: a new beginning within a frame", ErrMalformed)
	case !boundsOK(e.GetBounds()) || !boundsOK(e.GetUnite().GetBounds()):
		return fmt.Errorf("%w: bounds do not pair up", ErrMalformed)
	case len(e.GetUnite().GetTombstones())%2 != 0:
		return fmt.Errorf("%w: half a tombstone", ErrMalformed)
	}
	return nil
}

func boundsOK(b *syncpb.Frame_Bounds) bool {
	for _, sa := range b.GetSa() {
		if sa>>33 != 0 { // an SPI and a direction are 33 bits
			return false
		}
	}
	return len(b.GetSa()) == len(b.GetN())
}

// withinBudget walks the encoding without allocating and counts its messages.
func withinBudget(b []byte, d protoreflect.MessageDescriptor, budget *int) bool {
	if *budget--; *budget < 0 {
		return false
	}
	fields := d.Fields()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		m := protowire.ConsumeFieldValue(num, typ, b)
		if m < 0 {
			return false
		}
		if fd := fields.ByNumber(num); fd != nil && typ == protowire.BytesType && fd.Message() != nil {
			v, _ := protowire.ConsumeBytes(b)
			if !withinBudget(v, fd.Message(), budget) {
				return false
			}
		}
		b = b[m:]
	}
	return true
}
