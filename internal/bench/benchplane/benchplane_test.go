package main

import (
	"bytes"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandem/internal/config"
)

func TestPing(t *testing.T) {
	out := "PING 10.1.1.1 (10.1.1.1) from 10.2.1.1 : 56(84) bytes of data.\n64 bytes from 10.1.1.1: icmp_seq=1 ttl=64 time=0.250 ms\n" +
		"64 bytes from 10.1.1.1: icmp_seq=3 ttl=64 time=12 ms\n\n--- 10.1.1.1 ping statistics ---\n3 packets transmitted, 2 received, 33% packet loss, time 2ms\n"
	rtt := roundTrips(out)
	if len(rtt) != 2 || rtt[0] != 0.25 || rtt[1] != 12 || sentOf(out) != 3 {
		t.Error(rtt, sentOf(out))
	}
}

// An SA is at fault for each bound that is missing or was passed.
func TestFaults(t *testing.T) {
	good := tandemSA{Outbound: true, ReplayWindow: 2048, Seqno: 100, Ceiling: 130, Fence: 90, LastSeq: 90,
		Src: []string{"0:10.2.1.0-10.2.1.255:0"}, Dst: []string{"0:10.1.1.0-10.1.1.255:0"}}
	if f := good.faults(); len(f) > 0 {
		t.Error(f)
	}
	for name, spoil := range map[string]func(*tandemSA){
		"no ceiling":        func(sa *tandemSA) { sa.Ceiling = 1<<64 - 1 },
		"above the ceiling": func(sa *tandemSA) { sa.Seqno = 132 },
		"no fence":          func(sa *tandemSA) { sa.Fence = 0 },
		"above the fence":   func(sa *tandemSA) { sa.LastSeq = 91 },
		"no window":         func(sa *tandemSA) { sa.ReplayWindow = 0 },
		"open selectors":    func(sa *tandemSA) { sa.Src = []string{"0:0.0.0.0-255.255.255.255:0"} },
	} {
		bad := good
		if spoil(&bad); len(bad.faults()) == 0 {
			t.Errorf("%s: nothing is found", name)
		}
	}
}

// What leaves in flights comes together again.
func TestTrains(t *testing.T) {
	f := &flight{ctl: make([]byte, unix.CmsgSpace(2))}
	var wire [][]byte
	drain := func() {
		for i := range f.n {
			v := f.iovs[2*i+1]
			wire = append(wire, append(bytes.Clone(f.heads[i][:]), unsafe.Slice(v.Base, v.Len)...))
			if i < f.n-1 && len(wire[len(wire)-1]) != f.size {
				t.Error("a datagram in the middle of a flight has another size")
			}
		}
		f.n, f.bytes, f.ended = 0, 0, false
	}
	var sent [][]byte
	for number, n := range []int{74, 74, 20000, chunkRoom, 65000, 1} {
		data := bytes.Repeat([]byte{byte(number)}, n)
		sent = append(sent, data)
		of := (n + chunkRoom - 1) / chunkRoom
		for c := range of {
			chunk := data[c*chunkRoom : min(n, (c+1)*chunkRoom)]
			if !f.add(uint32(number), c, of, chunk) {
				drain()
				if !f.add(uint32(number), c, of, chunk) {
					t.Fatal("an empty flight is full")
				}
			}
		}
	}
	drain()
	s := &siding{}
	var got [][]byte
	for _, d := range wire {
		if train := s.take(d); train != nil {
			got = append(got, bytes.Clone(train))
		}
	}
	if len(got) != len(sent) {
		t.Fatalf("%d of %d trains arrived", len(got), len(sent))
	}
	for i := range got {
		if !bytes.Equal(got[i], sent[i]) {
			t.Errorf("train %d has changed", i)
		}
	}
	s = &siding{}
	for i, d := range wire {
		if i != 5 { // of the third train
			if train := s.take(d); len(train) == 20000 {
				t.Error("a train without one of its chunks arrived")
			}
		}
	}
	if s.take([]byte{1, 2}) != nil {
		t.Error("a stump is a train")
	}
}

func TestConfigurations(t *testing.T) {
	for _, name := range []string{"pair.conf", "peer.conf"} {
		text, err := files.ReadFile("conf/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("@DIR@"), []byte(t.TempDir()))
		text = bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("@PRIORITY@"), []byte("200")), []byte("@NODE@"), []byte("gw"))
		if _, faults := config.Load(name, text); len(faults) > 0 {
			t.Error(faults)
		}
	}
}
