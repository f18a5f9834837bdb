// Package testkit is what tests of several packages do alike: read a log that is still
// written, wait for a condition, call as a stranger does.
package testkit

import (
	"bytes"
	"crypto/tls"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log is output that may be read while it is written.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// With are the lines that have all these words.
func (l *Log) With(words ...string) (list []string) {
next:
	for line := range strings.Lines(l.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		list = append(list, line)
	}
	return list
}

// Until waits until ok holds, for half a minute: a loaded machine is no fault.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Within(t, 30*time.Second, what, ok)
}

// Within waits until ok holds. In vain it ends the test, with what all goroutines do.
func Within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			buf := make([]byte, 1<<16)
			t.Fatalf("not within %v: %s\n%s", limit, what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// Shows is a client that shows a certificate, whatever the server says it accepts, and
// believes every server.
func Shows(cert tls.Certificate, protocols ...string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: protocols,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
}

// ShowsNode is the same with the certificate in the folder of a cluster's node.
func ShowsNode(t testing.TB, dir string, protocols ...string) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	return Shows(cert, protocols...)
}
