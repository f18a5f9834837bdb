package message

// Notify is a notification (RFC 7296 §3.10). SPI is empty, 4 or 8 bytes.
type Notify struct {
	Protocol   uint8
	SPI        []byte
	NotifyType NotifyType
	Data       []byte
}

func (p *Notify) Type() PayloadType { return TypeNotify }

func (p *Notify) encode(w *writer) {
	w.u8(p.Protocol)
	w.count8(len(p.SPI), 8)
	w.u16(uint16(p.NotifyType))
	w.bytes(p.SPI)
	w.bytes(p.Data)
}

func decodeNotify(r *reader) (*Notify, error) {
	p := &Notify{Protocol: r.u8()}
	size := int(r.u8())
	p.NotifyType = NotifyType(r.u16())
	if size != 0 && size != 4 && size != 8 {
		return nil, errorf("SPI size %d", size)
	}
	p.SPI = r.bytes(size)
	p.Data = r.rest()
	return p, r.err
}
