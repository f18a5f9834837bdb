package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// A capture file is pcapng with two interfaces, so that tshark shows the
// direction too: "PORT from" (the node sent it) and "PORT to".
const (
	fromSuffix = " from"
	toSuffix   = " to"
)

// pcapWriter writes the frames of one port.
type pcapWriter struct {
	f *os.File
	w *pcapgo.NgWriter
}

func newPcapWriter(path, port string) (*pcapWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	intf := pcapgo.NgInterface{Name: port + fromSuffix, LinkType: layers.LinkTypeEthernet, OS: "linux"}
	w, err := pcapgo.NewNgWriterInterface(f, intf, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "tandem lab"}})
	if err == nil {
		intf.Name = port + toSuffix
		_, err = w.AddInterface(intf)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &pcapWriter{f, w}, nil
}

func (p *pcapWriter) write(f Frame) error {
	ci := gopacket.CaptureInfo{Timestamp: f.Time, CaptureLength: len(f.Data), Length: len(f.Data)}
	if !f.FromNode {
		ci.InterfaceIndex = 1
	}
	return p.w.WritePacket(ci, f.Data)
}

func (p *pcapWriter) flush() error { return p.w.Flush() }

func (p *pcapWriter) close() error { return errors.Join(p.w.Flush(), p.f.Close()) }

// ReadCapture hands each frame of a capture file to each. The frame's bytes
// are valid only during the call. A file that ends within a packet (the lab was
// killed) gives an error after its last whole one.
func ReadCapture(path string, each func(Frame) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for {
		data, ci, err := r.ZeroCopyReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		intf, err := r.Interface(ci.InterfaceIndex)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		port, from := strings.CutSuffix(intf.Name, fromSuffix)
		if !from {
			port = strings.TrimSuffix(intf.Name, toSuffix)
		}
		if err := each(Frame{Time: ci.Timestamp, Port: port, FromNode: from, Data: data}); err != nil {
			return err
		}
	}
}

// readFlushed is ReadCapture for a file that is still being written: the packet
// at its end may be half there.
func readFlushed(path string, each func(Frame) error) error {
	err := ReadCapture(path, each)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
