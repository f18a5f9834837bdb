package eap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"runtime"
	"testing"
	"time"
)

// ends are both sides of EAP-TLS under one version.
func ends(t *testing.T, version uint16) (client, server *Session) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	config := func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MaxVersion: version,
			ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true}
	}
	return NewClient(config()), NewServer(config())
}

func TestTLS(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client, server := ends(t, version)
		var flight []byte
		done, rounds := [2]bool{}, 0
		for ; !done[0] || !done[1]; rounds++ {
			var err error
			at := rounds % 2
			if flight, done[at], err = []*Session{client, server}[at].Step(flight); err != nil || rounds > 9 {
				t.Fatalf("round %d: %v", rounds, err)
			}
		}
		a, err := client.Key()
		b, err2 := server.Key()
		if err != nil || err2 != nil || len(a) != 64 || !bytes.Equal(a, b) || client.State().Version != version {
			t.Errorf("keys %x, %x: %v, %v", a, b, err, err2)
		}
		client.Close()
		server.Close()
	}
}

// What is closed amid a handshake leaves no goroutine.
func TestTLSCloses(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		client, server := ends(t, tls.VersionTLS13)
		hello, _, _ := client.Step(nil)
		server.Step(hello)
		client.Close()
		server.Close()
		server.Close()
		if _, err := server.Key(); err == nil {
			t.Fatal("a key without a handshake")
		}
	}
	if n := runtime.NumGoroutine(); n > before+2 {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

// FuzzTLS: nothing that a stranger writes is a handshake, nor keeps Step from returning.
func FuzzTLS(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewServer(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
		defer s.Close()
		if _, done, _ := s.Step(b[:len(b)/2]); done {
			t.Error("done")
		}
		if _, done, _ := s.Step(b[len(b)/2:]); done {
			t.Error("done")
		}
	})
}
