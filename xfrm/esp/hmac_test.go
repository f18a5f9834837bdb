package esp

import (
	"bytes"
	"fmt"
	"testing"

	"tandem/internal/ipsec"
)

// Truncated authenticators: RFC 2202 §3 (those with keys as ESP has them), cut to
// 96 bits as RFC 2404 says, and RFC 4868 §2.7.2, cut to half. The data takes the
// place of a packet, which an SA without encryption authenticates as it stands.
func TestHMACVectors(t *testing.T) {
	rep := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	upTo := func(n int) (b []byte) {
		for i := range n {
			b = append(b, byte(i+1))
		}
		return b
	}
	jefe := func(n int) []byte { return bytes.Repeat([]byte("Jefe"), n/4) }
	hi, want := []byte("Hi There"), []byte("what do ya want for nothing?")
	for _, v := range []struct {
		integ     ipsec.TransformID
		key, data []byte
		icv       string
	}{
		{ipsec.INTEGHMACSHA1_96, rep(0x0b, 20), hi, "b617318655057264e28bc0b6"},
		{ipsec.INTEGHMACSHA1_96, rep(0xaa, 20), rep(0xdd, 50), "125d7342b9ac11cd91a39af4"},
		{ipsec.INTEGHMACSHA1_96, rep(0x0c, 20), []byte("Test With Truncation"), "4c1a03424b55e07fe7f27be1"},

		{ipsec.INTEGHMACSHA256_128, rep(0x0b, 32), hi, "198a607eb44bfbc69903a0f1cf2bbdc5"},
		{ipsec.INTEGHMACSHA256_128, jefe(32), want, "167f928588c5cc2eef8e3093caa0e87c"},
		{ipsec.INTEGHMACSHA256_128, rep(0xaa, 32), rep(0xdd, 50), "cdcb1220d1ecccea91e53aba3092f962"},
		{ipsec.INTEGHMACSHA256_128, upTo(32), rep(0xcd, 50), "372efcf9b40b35c2115b1346903d2ef4"},

		{ipsec.INTEGHMACSHA384_192, rep(0x0b, 48), hi, "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973"},
		{ipsec.INTEGHMACSHA384_192, jefe(48), want, "2c7353974f1842fd66d53c452ca42122b28c0b594cfb184d"},
		{ipsec.INTEGHMACSHA384_192, rep(0xaa, 48), rep(0xdd, 50), "809f439be00274321d4a538652164b53554a508184a0c316"},
		{ipsec.INTEGHMACSHA384_192, append(upTo(32), upTo(25)[9:]...), rep(0xcd, 50), "5b540085c6e6358096532b2493609ed1cb298f774f87bb5c"},

		{ipsec.INTEGHMACSHA512_256, rep(0x0b, 64), hi, "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8"},
		{ipsec.INTEGHMACSHA512_256, jefe(64), want, "cb370917ae8a7ce28cfd1d8f4705d6141c173b2a9362c15df235dfb251b15454"},
		{ipsec.INTEGHMACSHA512_256, rep(0xaa, 64), rep(0xdd, 50), "2ee7acd783624ca9398710f3ee05ae41b9f9b0510c87e49e586cc9bf961733d8"},
		{ipsec.INTEGHMACSHA512_256, upTo(64), rep(0xcd, 50), "5e6688e5a3daec826ca32eaea224eff5e700628947470e13ad01302561bab108"},
	} {
		s := ipsec.Suite{Encr: ipsec.ENCRNULL, Integ: v.integ}
		t.Run(fmt.Sprintf("%v %d bytes of %02x", s, len(v.data), v.data[0]), func(t *testing.T) {
			l, err := LayoutOf(s)
			if err != nil {
				t.Fatal(err)
			}
			tr, err := newTransform(s, l, nil, nil, v.key, false)
			if err != nil {
				t.Fatal(err)
			}
			pkt := append(bytes.Clone(v.data), make([]byte, TrailerRoom)...)
			pkt = pkt[:tr.seal(pkt, pkt[espHeaderLen:len(v.data)], 1)]
			if icv := unhex(t, v.icv); !bytes.Equal(pkt[len(v.data):], icv) {
				t.Fatalf("authenticator %x, want %x", pkt[len(v.data):], icv)
			}
			if len(v.data) < espHeaderLen+l.Align {
				return // too short for a packet
			}
			if got, ok := tr.open(bytes.Clone(pkt), 1); !ok || !bytes.Equal(got, v.data[espHeaderLen:]) {
				t.Fatal("not opened")
			}
			for i := range len(pkt) * 8 {
				bad := bytes.Clone(pkt)
				bad[i/8] ^= 1 << (i % 8)
				if _, ok := tr.open(bad, 1); ok {
					t.Fatalf("opened with bit %d flipped", i)
				}
			}
		})
	}
}
