package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

// viciMessage is a decoded message of strongSwan's vici protocol: values are
// string, []string or viciMessage. (README of libcharon's vici plugin, "Message
// format".)
type viciMessage map[string]any

// Element types of a vici message.
const (
	viciSectionStart = 1
	viciSectionEnd   = 2
	viciKeyValue     = 3
	viciListStart    = 4
	viciListItem     = 5
	viciListEnd      = 6
)

// viciDepth bounds the nesting that is accepted; charon uses five levels.
const viciDepth = 16

var errVici = errors.New("vici message is malformed")

// encode writes string, []string and viciMessage values in order of their keys.
func (m viciMessage) encode(b []byte) []byte {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	name := func(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }
	value := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	for _, k := range keys {
		switch v := m[k].(type) {
		case string:
			b = value(name(append(b, viciKeyValue), k), v)
		case []string:
			b = name(append(b, viciListStart), k)
			for _, item := range v {
				b = value(append(b, viciListItem), item)
			}
			b = append(b, viciListEnd)
		case viciMessage:
			b = append(v.encode(name(append(b, viciSectionStart), k)), viciSectionEnd)
		default:
			panic(fmt.Sprintf("vici: value of type %T", v)) // a programming error
		}
	}
	return b
}

type viciReader struct{ b []byte }

func (r *viciReader) take(n int) ([]byte, error) {
	if len(r.b) < n {
		return nil, errVici
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v, nil
}

func (r *viciReader) name() (string, error) {
	n, err := r.take(1)
	if err != nil {
		return "", err
	}
	v, err := r.take(int(n[0]))
	return string(v), err
}

func (r *viciReader) value() (string, error) {
	n, err := r.take(2)
	if err != nil {
		return "", err
	}
	v, err := r.take(int(binary.BigEndian.Uint16(n)))
	return string(v), err
}

func decodeVici(b []byte) (viciMessage, error) {
	r := &viciReader{b}
	return r.section(0)
}

// section reads to the end of the section, or of the message at depth 0.
func (r *viciReader) section(depth int) (viciMessage, error) {
	if depth > viciDepth {
		return nil, errVici
	}
	m := viciMessage{}
	for {
		if len(r.b) == 0 {
			if depth == 0 {
				return m, nil
			}
			return nil, errVici
		}
		kind, _ := r.take(1)
		if kind[0] == viciSectionEnd && depth > 0 {
			return m, nil
		}
		name, err := r.name()
		if err != nil {
			return nil, err
		}
		switch kind[0] {
		case viciSectionStart:
			if m[name], err = r.section(depth + 1); err != nil {
				return nil, err
			}
		case viciKeyValue:
			if m[name], err = r.value(); err != nil {
				return nil, err
			}
		case viciListStart:
			if m[name], err = r.list(); err != nil {
				return nil, err
			}
		default:
			return nil, errVici
		}
	}
}

func (r *viciReader) list() ([]string, error) {
	items := []string{}
	for {
		kind, err := r.take(1)
		if err != nil {
			return nil, err
		}
		switch kind[0] {
		case viciListEnd:
			return items, nil
		case viciListItem:
			v, err := r.value()
			if err != nil {
				return nil, err
			}
			items = append(items, v)
		default:
			return nil, errVici
		}
	}
}

// text returns the string at a path of sections, empty if there is none.
func (m viciMessage) text(path ...string) string {
	for i, k := range path {
		switch v := m[k].(type) {
		case string:
			if i == len(path)-1 {
				return v
			}
			return ""
		case viciMessage:
			m = v
		default:
			return ""
		}
	}
	return ""
}

// list returns the list of a key, empty if there is none.
func (m viciMessage) list(key string) []string {
	l, _ := m[key].([]string)
	return l
}

// walk calls f for each string value under m with the name of its section.
func (m viciMessage) walk(section string, f func(section, key, value string)) {
	for k, v := range m {
		switch v := v.(type) {
		case string:
			f(section, k, v)
		case viciMessage:
			v.walk(k, f)
		}
	}
}
