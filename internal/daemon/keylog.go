package daemon

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"tandem/ike"
	"tandem/internal/ipsec"
)

// keyLog writes keys for tshark, and only when the operator said so: lines of the
// tables ikev2_decryption_table and esp_sa. Into a folder it writes files of
// these names; into a file it writes both kinds (those of esp_sa begin with a
// quotation mark). Files are readable by their owner only.
type keyLog struct {
	ike, esp *os.File
	seen     map[ipsec.ESPSPI]ipsec.ESPSPI
}

func openKeyLog(path string) (*keyLog, error) {
	const flags, mode = os.O_CREATE | os.O_APPEND | os.O_WRONLY, 0o600
	k := &keyLog{seen: map[ipsec.ESPSPI]ipsec.ESPSPI{}}
	var err error
	if st, serr := os.Stat(path); serr != nil || !st.IsDir() {
		if k.ike, err = os.OpenFile(path, flags, mode); err != nil {
			return nil, fmt.Errorf("key log: %w", err)
		}
		k.esp = k.ike
		return k, nil
	}
	k.ike, err = os.OpenFile(filepath.Join(path, "ikev2_decryption_table"), flags, mode)
	if err == nil {
		k.esp, err = os.OpenFile(filepath.Join(path, "esp_sa"), flags, mode)
	}
	if err != nil {
		return nil, fmt.Errorf("key log: %w", err)
	}
	return k, nil
}

func (k *keyLog) close() error {
	if k.esp != k.ike {
		return errors.Join(k.ike.Close(), k.esp.Close())
	}
	return k.ike.Close()
}

var integTable = map[ipsec.TransformID][2]string{ // IKE's name, ESP's name
	ipsec.INTEGHMACSHA1_96:    {"HMAC_SHA1_96 [RFC2404]", "HMAC-SHA-1-96 [RFC2404]"},
	ipsec.INTEGHMACSHA256_128: {"HMAC_SHA2_256_128 [RFC4868]", "HMAC-SHA-256-128 [RFC4868]"},
	ipsec.INTEGHMACSHA384_192: {"HMAC_SHA2_384_192 [RFC4868]", "HMAC-SHA-384-192 [RFC4868]"},
	ipsec.INTEGHMACSHA512_256: {"HMAC_SHA2_512_256 [RFC4868]", "HMAC-SHA-512-256 [RFC4868]"},
}

// ikeLine is one line of ikev2_decryption_table; "" when tshark has no word for
// the suite.
func ikeLine(l ike.KeyLog) string {
	hx := func(k ipsec.Key) string { return hex.EncodeToString(k.Bytes()) }
	var encr string
	switch l.Suite.Encr {
	case ipsec.ENCRAESGCM8, ipsec.ENCRAESGCM12, ipsec.ENCRAESGCM16:
		icv := map[ipsec.TransformID]int{ipsec.ENCRAESGCM8: 8, ipsec.ENCRAESGCM12: 12, ipsec.ENCRAESGCM16: 16}[l.Suite.Encr]
		encr = fmt.Sprintf("AES-GCM-%d with %d octet ICV [RFC5282]", l.Suite.KeyBits, icv)
	case ipsec.ENCRAESCBC:
		encr = fmt.Sprintf("AES-CBC-%d [RFC3602]", l.Suite.KeyBits)
	case ipsec.ENCR3DES:
		encr = "3DES [RFC2451]"
	default:
		return ""
	}
	if l.Suite.Encr.AEAD() {
		return fmt.Sprintf("%s,%s,%s,%s,%q,\"\",\"\",%q\n", l.SPIs.I, l.SPIs.R, hx(l.Ei), hx(l.Er), encr, "NONE [RFC4306]")
	}
	integ := integTable[l.Suite.Integ][0]
	if integ == "" {
		return ""
	}
	return fmt.Sprintf("%s,%s,%s,%s,%q,%s,%s,%q\n", l.SPIs.I, l.SPIs.R, hx(l.Ei), hx(l.Er), encr, hx(l.Ai), hx(l.Ar), integ)
}

// espLines are the two lines of esp_sa for a Child SA, or "".
func espLines(sa *ipsec.ChildSA) string {
	var encr string
	switch sa.Suite.Encr {
	case ipsec.ENCRAESGCM8:
		encr = "AES-GCM with 8 octet ICV [RFC4106]"
	case ipsec.ENCRAESGCM12:
		encr = "AES-GCM with 12 octet ICV [RFC4106]"
	case ipsec.ENCRAESGCM16:
		encr = "AES-GCM with 16 octet ICV [RFC4106]"
	case ipsec.ENCRAESCBC:
		encr = "AES-CBC [RFC3602]"
	case ipsec.ENCR3DES:
		encr = "TripleDES-CBC [RFC2451]"
	case ipsec.ENCRNULL:
		encr = "NULL"
	default:
		return ""
	}
	auth := integTable[sa.Suite.Integ][1]
	if auth == "" {
		auth = "NULL"
	}
	line := func(src, dst netip.Addr, spi ipsec.ESPSPI, key, salt, integ ipsec.Key) string {
		family := "IPv4"
		if dst.Is6() {
			family = "IPv6"
		}
		hx := func(ks ...ipsec.Key) string {
			var b strings.Builder
			for _, k := range ks {
				b.WriteString(hex.EncodeToString(k.Bytes()))
			}
			if b.Len() == 0 {
				return ""
			}
			return "0x" + b.String()
		}
		return fmt.Sprintf("%q,%q,%q,\"0x%s\",%q,%q,%q,%q\n", family, src, dst, spi, encr, hx(key, salt), auth, hx(integ))
	}
	local, remote := sa.Local.Addr(), sa.Remote.Addr()
	return line(remote, local, sa.SPIIn, sa.EncrIn, sa.SaltIn, sa.IntegIn) +
		line(local, remote, sa.SPIOut, sa.EncrOut, sa.SaltOut, sa.IntegOut)
}

func (k *keyLog) writeIKE(l ike.KeyLog) error {
	_, err := k.ike.WriteString(ikeLine(l))
	return err
}

func (k *keyLog) writeESP(sa *ipsec.ChildSA) error {
	if k.seen[sa.SPIIn] == sa.SPIOut && sa.SPIOut != 0 {
		return nil // installed again by a copy
	}
	k.seen[sa.SPIIn] = sa.SPIOut
	_, err := k.esp.WriteString(espLines(sa))
	return err
}
