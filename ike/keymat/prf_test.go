package keymat

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"tandem/internal/ipsec"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantHex(t testing.TB, what string, got []byte, want string) {
	t.Helper()
	if w := unhex(t, want); !bytes.Equal(got, w) {
		t.Errorf("%s:\n got %x\nwant %x", what, got, w)
	}
}

// The vectors of RFC 2202 §3 (SHA-1), RFC 4231 §4 and RFC 4868 §2.7.1 (SHA-2).
func TestPRFVectors(t *testing.T) {
	rep := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	count := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i + 1)
		}
		return b
	}
	const (
		big1 = "Test Using Larger Than Block-Size Key - Hash Key First"
		big2 = "This is a test using a larger than block-size key and a larger than block-size data. " +
			"The key needs to be hashed before being used by the HMAC algorithm."
	)
	for _, c := range []struct {
		prf  ipsec.TransformID
		key  []byte
		data string
		want string
	}{
		{ipsec.PRFHMACSHA1, rep(0x0b, 20), "Hi There", "b617318655057264e28bc0b6fb378c8ef146be00"},
		{ipsec.PRFHMACSHA1, []byte("Jefe"), "what do ya want for nothing?", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"},
		{ipsec.PRFHMACSHA1, rep(0xaa, 20), strings.Repeat("\xdd", 50), "125d7342b9ac11cd91a39af48aa17b4f63f175d3"},
		{ipsec.PRFHMACSHA1, count(25), strings.Repeat("\xcd", 50), "4c9007f4026250c6bc8414f9bf50c86c2d7235da"},
		{ipsec.PRFHMACSHA1, rep(0xaa, 80), big1, "aa4ae5e15272d00e95705637ce8a3b55ed402112"},
		{
			ipsec.PRFHMACSHA1, rep(0xaa, 80),
			"Test Using Larger Than Block-Size Key and Larger Than One Block-Size Data",
			"e8e99d0f45237d786d6bbaa7965c7808bbff1a91",
		},

		{ipsec.PRFHMACSHA256, rep(0x0b, 20), "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
		{ipsec.PRFHMACSHA256, rep(0xaa, 20), strings.Repeat("\xdd", 50), "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
		{ipsec.PRFHMACSHA256, count(25), strings.Repeat("\xcd", 50), "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"},
		{ipsec.PRFHMACSHA256, rep(0xaa, 131), big1, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
		{ipsec.PRFHMACSHA256, rep(0xaa, 131), big2, "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"},

		{ipsec.PRFHMACSHA384, rep(0x0b, 20), "Hi There", "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c faea9ea9076ede7f4af152e8b2fa9cb6"},
		{ipsec.PRFHMACSHA384, rep(0xaa, 20), strings.Repeat("\xdd", 50), "88062608d3e6ad8a0aa2ace014c8a86f0aa635d947ac9febe83ef4e55966144b 2a5ab39dc13814b94e3ab6e101a34f27"},
		{ipsec.PRFHMACSHA384, count(25), strings.Repeat("\xcd", 50), "3e8a69b7783c25851933ab6290af6ca77a9981480850009cc5577c6e1f573b4e 6801dd23c4a7d679ccf8a386c674cffb"},
		{ipsec.PRFHMACSHA384, rep(0xaa, 131), big1, "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c6 0c2ef6ab4030fe8296248df163f44952"},
		{ipsec.PRFHMACSHA384, rep(0xaa, 131), big2, "6617178e941f020d351e2f254e8fd32c602420feb0b8fb9adccebb82461e99c5 a678cc31e799176d3860e6110c46523e"},

		{ipsec.PRFHMACSHA512, rep(0x0b, 20), "Hi There", "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854"},
		{ipsec.PRFHMACSHA512, rep(0xaa, 20), strings.Repeat("\xdd", 50), "fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39 bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb"},
		{ipsec.PRFHMACSHA512, count(25), strings.Repeat("\xcd", 50), "b0ba465637458c6990e5a8c5f61d4af7e576d97ff94b872de76f8050361ee3db a91ca5c11aa25eb4d679275cc5788063a5f19741120c4f2de2adebeb10a298dd"},
		{ipsec.PRFHMACSHA512, rep(0xaa, 131), big1, "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f352 6b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598"},
		{ipsec.PRFHMACSHA512, rep(0xaa, 131), big2, "e37b6a775dc87dbaa4dfa9f96e5e3ffddebd71f8867289865df5a32d20cdc944 b6022cac3c4982b10d5eeb55c3e4de15134676fb6de0446065c97440fa8c6a58"},
	} {
		got := PRF(c.prf, c.key, []byte(c.data))
		wantHex(t, c.data, got, c.want)
		if PRFKeyLen(c.prf) != len(got) {
			t.Errorf("PRF %d: key length %d, output %d", c.prf, PRFKeyLen(c.prf), len(got))
		}
		if split := PRF(c.prf, c.key, []byte(c.data[:3]), nil, []byte(c.data[3:])); !bytes.Equal(split, got) {
			t.Errorf("PRF %d: data in pieces gives another result", c.prf)
		}
	}
}

// prf+ over the key and data of RFC 4868 §2.7.2, six blocks long and a bit.
func TestPRFPlusVector(t *testing.T) {
	want := `b9bdc08988b4c2b75aa93e596ac84205fa2ddde1bf7a2572067b00e14b237732
		83050998 1ad2f94a8c32a47daa2255b660c436347ae756a6edc023477d809590
		e682f61d9c04b06b4ad971a34c8147fa66792ff1434b93c722b32e12f48832eb
		c15ce2369ce71fe9b7b81e5704c14d0f5280a6ec626e992d7a9f`
	all := unhex(t, want)
	for _, n := range []int{0, 1, 31, 32, 33, 64, len(all)} {
		got := PRFPlus(ipsec.PRFHMACSHA256, bytes.Repeat([]byte{0x0b}, 20), []byte("Hi There"), n)
		if !bytes.Equal(got, all[:n]) {
			t.Errorf("%d bytes:\n got %x\nwant %x", n, got, all[:n])
		}
	}
}

func TestPRFLimits(t *testing.T) {
	if PRF(1, nil, nil) != nil || PRFPlus(1, nil, nil, 1) != nil || PRFKeyLen(1) != 0 {
		t.Error("PRF_HMAC_MD5 is accepted")
	}
	if n := len(PRFPlus(ipsec.PRFHMACSHA1, nil, nil, 255*20)); n != 255*20 {
		t.Errorf("255 blocks of prf+ give %d bytes", n)
	}
	if PRFPlus(ipsec.PRFHMACSHA1, nil, nil, 255*20+1) != nil || PRFPlus(ipsec.PRFHMACSHA1, nil, nil, -1) != nil {
		t.Error("prf+ gives more than 255 blocks, or less than none")
	}
}
