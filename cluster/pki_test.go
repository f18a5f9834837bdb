package cluster

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newCluster(t *testing.T, group string, nodes ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "cluster")
	if err := InitCluster(dir, group, nodes, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func identity(t *testing.T, dir string) *Identity {
	t.Helper()
	i, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestInitCluster(t *testing.T) {
	dir := newCluster(t, "north", "gw1", "gw2")
	if err := AddNode(dir, "north", "gw3", 3, time.Now()); err != nil {
		t.Fatal(err)
	}
	serials := map[string]bool{}
	for n, name := range []string{"gw1", "gw2", "gw3"} {
		i := identity(t, filepath.Join(dir, name))
		if i.Node != NodeID(n+1) || i.Name != name || i.Group != "north" || !strings.HasPrefix(i.Serial, "TDM") || len(i.Serial) != 16 {
			t.Errorf("%+v", i)
		}
		if serials[i.Serial] {
			t.Error("serial number twice")
		}
		serials[i.Serial] = true
		if i.ExpiresSoon(time.Now()) || !i.ExpiresSoon(i.NotAfter.Add(-29*24*time.Hour)) {
			t.Error("expiry")
		}
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		i, err := e.Info()
		if err == nil && strings.HasSuffix(path, ".key") && i.Mode().Perm() != 0o600 {
			err = fmt.Errorf("%s has mode %o", path, i.Mode().Perm())
		}
		if err == nil && strings.HasSuffix(path, "ca.key") && filepath.Base(filepath.Dir(path)) != "ca" {
			err = fmt.Errorf("%s: the CA's key is no node's business", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInitClusterRefuses(t *testing.T) {
	dir := newCluster(t, "north", "gw1", "gw2")
	before, err := os.ReadFile(filepath.Join(dir, "gw1", keyFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, nodes := range map[string][]string{
		"overwrite": {"gw1", "gw9"}, "none": {}, "twice": {"a", "a"}, "slash": {"../a"}, "ca": {"ca"}, "empty": {""}, "dot": {".."}, "long": {strings.Repeat("x", 65)},
		"too many": strings.Split("a b c d e f g h i j k l m n o p q", " "),
	} {
		if err := InitCluster(dir, "north", nodes, time.Now()); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "gw1", keyFile)); string(after) != string(before) {
		t.Error("a key was overwritten")
	}
	if err := AddNode(dir, "north", "gw1", 3, time.Now()); err == nil {
		t.Error("a node was overwritten")
	}
	for _, group := range []string{"", "a/b", strings.Repeat("x", 65), "a\nb"} {
		if err := InitCluster(filepath.Join(t.TempDir(), "x"), group, []string{"gw1"}, time.Now()); err == nil {
			t.Errorf("group %q: not refused", group)
		}
	}
}

func TestLoadIdentityErrors(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"no certificate", func(d string) error { return os.Remove(filepath.Join(d, certFile)) }, "tandem cluster init"},
		{"no CA", func(d string) error { return os.Remove(filepath.Join(d, caFile)) }, caFile},
		{"CA is no certificate", func(d string) error { return os.WriteFile(filepath.Join(d, caFile), []byte("x"), 0o600) }, "no certificate"},
		{"no secret", func(d string) error { return os.Remove(filepath.Join(d, secretFile)) }, secretFile},
		{"short secret", func(d string) error { return os.WriteFile(filepath.Join(d, secretFile), []byte("abcd"), 0o600) }, "64 hexadecimal"},
		{"another node's key", func(d string) error {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(d), "gw2", keyFile))
			return errors.Join(err, os.WriteFile(filepath.Join(d, keyFile), b, 0o600))
		}, "does not match"},
		{"another cluster's CA", func(d string) error {
			b, err := os.ReadFile(filepath.Join(newCluster(t, "south", "gw1"), "ca", caFile))
			return errors.Join(err, os.WriteFile(filepath.Join(d, caFile), b, 0o600))
		}, "unknown authority"},
		{"key that others can read", func(d string) error { return os.Chmod(filepath.Join(d, keyFile), 0o644) }, "0600"},
	} {
		dir := filepath.Join(newCluster(t, "north", "gw1", "gw2"), "gw1")
		if err := c.spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadIdentity(dir); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "cluster-dir") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestDerivedSecrets(t *testing.T) {
	dir := newCluster(t, "north", "gw1", "gw2")
	a, b := identity(t, filepath.Join(dir, "gw1")), identity(t, filepath.Join(dir, "gw2"))
	if string(a.HeartbeatKey().Bytes()) != string(b.HeartbeatKey().Bytes()) || a.HeartbeatKey().Len() != 32 {
		t.Error("nodes derive different heartbeat keys")
	}
	if string(a.HeartbeatKey().Bytes()) == string(a.CookieSecret().Bytes()) {
		t.Error("one key for two purposes")
	}
	other := identity(t, filepath.Join(newCluster(t, "north", "gw1"), "gw1"))
	if string(a.HeartbeatKey().Bytes()) == string(other.HeartbeatKey().Bytes()) {
		t.Error("two clusters share a key")
	}
	if text := fmt.Sprintf("%v %+v %#v", a, *a, a); strings.Contains(text, fmt.Sprintf("%x", a.secret.Bytes())) {
		t.Error("the secret prints")
	}
}

// handshake lets two nodes meet and returns each side's error.
func handshake(server, client *tls.Config) (serverErr, clientErr error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1)) // with TLS 1.3 the server's refusal comes after
	}
	b.Close()
	return <-done, clientErr
}

func TestNodesVerifyEachOther(t *testing.T) {
	dir := newCluster(t, "north", "gw1", "gw2")
	a, b := identity(t, filepath.Join(dir, "gw1")), identity(t, filepath.Join(dir, "gw2"))
	if s, c := handshake(a.TLS(), b.TLS()); s != nil || c != nil {
		t.Fatalf("%v, %v", s, c)
	}
	fails := func(what string, server, client *tls.Config) {
		t.Helper()
		if s, c := handshake(server, client); s == nil || c == nil {
			t.Errorf("%s: %v, %v", what, s, c)
		}
	}
	stranger := identity(t, filepath.Join(newCluster(t, "north", "gw1", "gw2"), "gw2"))
	fails("another CA", a.TLS(), stranger.TLS())
	fails("another CA's server", stranger.TLS(), a.TLS())
	if err := AddNode(dir, "south", "odd", 4, time.Now()); err != nil {
		t.Fatal(err)
	}
	fails("another group of the same CA", a.TLS(), identity(t, filepath.Join(dir, "odd")).TLS())
	fails("ourselves", a.TLS(), a.TLS())
	bare := b.TLS()
	bare.Certificates = nil
	fails("no certificate", a.TLS(), bare)
	old := b.TLS()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	fails("TLS 1.2", a.TLS(), old)
}

// A witness has no cluster key; its certificate opens the members' log and nothing else.
func TestWitnessIdentity(t *testing.T) {
	dir := newCluster(t, "north", "gw1", "gw2")
	if err := AddWitness(dir, "north", "witness", 3, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "ca", "../w", "w"} {
		if err := AddWitness(dir, "north", bad, 4, time.Now()); (err == nil) != (bad == "w") {
			t.Errorf("name %q: %v", bad, err)
		}
	}
	home := filepath.Join(dir, "witness")
	if _, err := os.Stat(filepath.Join(home, secretFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the cluster's key lies with the witness: %v", err)
	}
	w, err := LoadWitness(home)
	if err != nil || w.Node != 3 || !w.Witness || w.Name != "witness" {
		t.Fatalf("%+v, %v", w, err)
	}
	if _, err := LoadIdentity(home); err == nil || !strings.Contains(err.Error(), "cannot be a gateway") {
		t.Errorf("as a gateway: %v", err)
	}
	if _, err := LoadWitness(filepath.Join(dir, "gw1")); err == nil || !strings.Contains(err.Error(), "member's folder") {
		t.Errorf("a member's folder: %v", err)
	}
	gw := identity(t, filepath.Join(dir, "gw1"))
	if gw.GossipKey().Len() != 32 || string(gw.GossipKey().Bytes()) == string(gw.HeartbeatKey().Bytes()) {
		t.Error("the key of gossip is not one of its own")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a witness derives keys from nothing")
			}
		}()
		w.HeartbeatKey()
	}()
	shake := func(server, client *tls.Config) error {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		end := make(chan error, 1)
		go func() {
			err := tls.Client(b, client).Handshake()
			_ = b.Close()
			end <- err
		}()
		err := tls.Server(a, server).Handshake()
		_ = a.Close()
		return errors.Join(err, <-end)
	}
	if err := shake(gw.VoterTLS(), w.VoterTLS()); err != nil {
		t.Errorf("the log refuses its witness: %v", err)
	}
	if err := shake(gw.TLS(), w.VoterTLS()); err == nil || !strings.Contains(err.Error(), "witness 3") {
		t.Errorf("a member's streams take a witness: %v", err)
	}
	if err := shake(w.VoterTLS(), gw.TLS()); err == nil || !strings.Contains(err.Error(), "witness 3") {
		t.Errorf("a member streams to a witness: %v", err)
	}
}
