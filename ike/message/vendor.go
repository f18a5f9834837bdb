package message

// VendorID is opaque (RFC 7296 §3.12).
type VendorID struct{ Data []byte }

func (p *VendorID) Type() PayloadType { return TypeVendorID }
func (p *VendorID) encode(w *writer)  { w.bytes(p.Data) }
