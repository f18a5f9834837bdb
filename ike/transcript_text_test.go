package ike

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"tandem/ike/keymat"
	"tandem/ike/message"
	"tandem/internal/ipsec"
)

var shownDebug = []string{"simultaneous rekey", "lost the simultaneous rekey", "children inherited by", "request outside the window",
	"peer is there", "request was answered before", "traffic selectors were narrowed"}
var hiddenInfo = []string{"added IPsec SA", "deleted IPsec SA", "authentication succeeded", "created connection"}
var hexRun = regexp.MustCompile(`\b([0-9a-f]{16}|[0-9a-f]{8})\b`)

func (c *conversation) log(s *side, x Log) {
	match := func(all []string) bool {
		return slices.ContainsFunc(all, func(p string) bool { return strings.HasPrefix(x.Message, p) })
	}
	if x.Level < slog.LevelInfo && !match(shownDebug) || match(hiddenInfo) {
		return
	}
	text := x.Message
	for _, a := range x.Attrs {
		if a.Key == "reason" || a.Key == "notify" {
			text += " " + a.Key + "=" + strings.Trim(a.Value.String(), `"`)
		}
	}
	c.does(s, "%q", text)
}

// named puts names in the place of SPIs in a log line: all are known at the end.
func (c *conversation) named(text string) string {
	return hexRun.ReplaceAllStringFunc(text, func(h string) string {
		if n, ok := c.names[h]; ok {
			return n
		}
		return "?"
	})
}

func letter(s *side) string { return s.name[:1] }

// esp names an ESP SPI that a side has chosen, ike an IKE SPI.
func (c *conversation) esp(s *side, spi ipsec.ESPSPI) string {
	return c.name(strings.ToLower(letter(s)), spi.String())
}

func (c *conversation) ike(s *side, spi ipsec.IKESPI) string {
	if spi == 0 {
		return "0"
	}
	return c.name(letter(s), spi.String())
}

func (c *conversation) name(prefix, key string) string {
	if c.names[key] == "" {
		c.count[prefix]++
		c.names[key] = prefix + itoa(c.count[prefix])
	}
	return c.names[key]
}

func (c *conversation) child(s *side, sa ipsec.ChildSA) string {
	return c.esp(s, sa.SPIIn) + "/" + c.esp(c.other(s), sa.SPIOut)
}

func (c *conversation) selectors(sa ipsec.ChildSA) string {
	if !c.showTS {
		return ""
	}
	return fmt.Sprintf(": %v === %v", sa.TSLocal, sa.TSRemote)
}

// spis names an IKE SA by the SPI of A and that of B.
func (c *conversation) spis(s ipsec.IKESPIs, iIsA bool) string {
	if iIsA {
		return c.ike(c.a, s.I) + "/" + c.ike(c.b, s.R)
	}
	return c.ike(c.a, s.R) + "/" + c.ike(c.b, s.I)
}

// read writes a message as its receiver reads it.
func (c *conversation) read(s *side, d Datagram) string {
	m, err := message.Parse(d.Data)
	if err != nil {
		return "what does not parse: " + err.Error()
	}
	h := m.Header
	kind := "request"
	if h.Response {
		kind = "response"
	}
	on := ""
	if known := c.rings[h.SPIs].Ei.Len() > 0; known {
		if on = c.spis(h.SPIs, h.Initiator == (letter(s) == "A")); on == "A1/B1" {
			on = ""
		} else {
			on = " on " + on
		}
	}
	clear := ""
	if n := len(m.Payloads); n > 0 {
		if _, sk := m.Payloads[n-1].(*message.Encrypted); sk {
			r := c.rings[h.SPIs]
			key, auth := r.Ei, r.Ai
			if !h.Initiator {
				key, auth = r.Er, r.Ar
			}
			o, err := keymat.NewOpener(r.Suite, key, auth)
			if err == nil {
				err = m.Open(d.Data, o)
			}
			for _, r := range c.older[h.SPIs] {
				if !errors.Is(err, message.ErrAuthentication) || r.Ei.Len() == 0 {
					continue
				}
				key, auth := r.Ei, r.Ai
				if !h.Initiator {
					key, auth = r.Er, r.Ar
				}
				if o, err = keymat.NewOpener(r.Suite, key, auth); err == nil {
					err = m.Open(d.Data, o)
				}
			}
			var critical *message.Error
			if errors.As(err, &critical) && critical.Notify == message.UnsupportedCriticalPayload {
				return fmt.Sprintf("%s%s %s %d: critical payload of type %d", h.Exchange, on, kind, h.MessageID, critical.Data[0])
			}
			if err != nil {
				return fmt.Sprintf("%s%s %s %d that does not open: %v", h.Exchange, on, kind, h.MessageID, err)
			}
		} else if h.Exchange != message.IKESAInit {
			clear = " unprotected"
		}
	} else {
		clear = " unprotected"
	}
	var ps []string
	for _, p := range m.Payloads {
		if !c.aside(h, p) {
			ps = append(ps, c.payload(s, h, p))
		}
	}
	if len(ps) == 0 {
		ps = []string{"empty"}
	}
	return fmt.Sprintf("%s%s%s %s %d: %s", h.Exchange, on, clear, kind, h.MessageID, strings.Join(ps, ", "))
}

// aside says that a payload is left out: what else a set-up negotiates is not the matter here.
func (c *conversation) aside(h message.Header, p message.Payload) bool {
	if h.Exchange != message.IKESAInit && h.Exchange != message.IKEAuth {
		return false
	}
	n, ok := p.(*message.Notify)
	return p.Type() == message.TypeVendorID && !c.showV || ok && !n.NotifyType.IsError() && !slices.Contains(shownNotifies, n.NotifyType)
}

var shownNotifies = []message.NotifyType{message.InitialContact, message.Cookie, message.UseTransportMode, message.ESPTFCPaddingNotSupported}

func (c *conversation) payload(s *side, h message.Header, p message.Payload) string {
	switch p := p.(type) {
	case *message.SA:
		spi := ""
		for _, x := range p.Proposals {
			switch {
			case len(x.SPI) == 4:
				spi = "ESP " + c.esp(s, espSPI(x.SPI))
			case len(x.SPI) == 8:
				spi = "IKE " + c.ike(s, ipsec.IKESPI(binary.BigEndian.Uint64(x.SPI)))
			default:
				spi = "IKE"
			}
		}
		return "SA(" + spi + ")"
	case *message.KE:
		return fmt.Sprintf("KE(%d)", p.Group)
	case *message.Nonce:
		name := "Ni"
		if h.Response {
			name = "Nr"
		}
		if c.drawn[string(p.Data)] {
			name += fmt.Sprintf("(%02x…)", p.Data[0])
		}
		return name
	case *message.TS:
		if c.showTS {
			return fmt.Sprintf("%s%v", p.Type(), p.Selectors)
		}
	case *message.Delete:
		if p.Protocol == ipsec.ProtocolIKE {
			return "D(IKE)"
		}
		var spis []string
		for _, x := range p.SPIs {
			spis = append(spis, c.esp(s, x))
		}
		return map[bool]string{true: "D(AH ", false: "D(ESP "}[p.Protocol == ipsec.ProtocolAH] + strings.Join(spis, " ") + ")"
	case *message.Notify:
		return "N(" + p.NotifyType.String() + c.notifyData(s, p) + ")"
	case *message.Unknown:
		return fmt.Sprintf("payload of type %d", p.PayloadType)
	}
	return p.Type().String()
}

func (c *conversation) notifyData(s *side, n *message.Notify) string {
	switch {
	case n.NotifyType == message.RekeySA && len(n.SPI) == 4:
		return " " + c.esp(s, espSPI(n.SPI))
	case n.NotifyType == message.ChildSANotFound && len(n.SPI) == 4:
		return " " + c.esp(c.other(s), espSPI(n.SPI)) // copied from the request
	case n.NotifyType == message.InvalidKEPayload && len(n.Data) == 2:
		return fmt.Sprintf(" %d", binary.BigEndian.Uint16(n.Data))
	case n.NotifyType == message.UnsupportedCriticalPayload && len(n.Data) == 1:
		return fmt.Sprintf(" %d", n.Data[0])
	case n.NotifyType == message.InvalidMessageID && len(n.Data) == 4:
		return fmt.Sprintf(" %d", binary.BigEndian.Uint32(n.Data))
	}
	return ""
}

// text is the conversation so far.
func (c *conversation) text() string {
	var b strings.Builder
	direct := map[int]bool{}
	for i, l := range c.lines {
		if l.n > 0 && l.came {
			if direct[l.n] {
				delete(direct, l.n)
				continue
			}
			fmt.Fprintf(&b, "   (%d) -> %s\n", l.n, l.text)
			continue
		}
		if l.n == 0 {
			b.WriteString(c.named(l.text) + "\n")
			continue
		}
		// A message that arrives before anything else happens on the wire is one line.
		to := ""
		for _, f := range c.lines[i+1:] {
			if f.n > 0 {
				if f.n == l.n && f.came {
					to = f.text
				}
				break
			}
		}
		if to != "" {
			direct[l.n] = true
			fmt.Fprintf(&b, "%s -> %s: %s\n", l.from, to, l.text)
		} else {
			fmt.Fprintf(&b, "%s -> (%d): %s\n", l.from, l.n, l.text)
		}
	}
	return b.String()
}

// difference shows where two texts part.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	from := max(i-3, 0)
	return fmt.Sprintf("from line %d on, want\n%s\ngot\n%s", i+1, strings.Join(w[from:min(i+8, len(w))], "\n"), strings.Join(g[from:], "\n"))
}
