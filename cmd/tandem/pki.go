package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tandem/internal/pki"
)

func pkiCommand() *cobra.Command {
	c := &cobra.Command{Use: "pki", Short: "Make certificates for IKE: a CA, gateways, clients", Args: cobra.NoArgs,
		Long: `Makes the certificates with which gateways and clients prove who they are in IKEv2
(set authmethod signature). It has nothing to do with the cluster's own certificates,
which ` + "`tandem cluster init`" + ` makes.

    tandem pki ca     --dir /etc/tandem/pki --name "Example VPN CA"
    tandem pki node   --dir /etc/tandem/pki gw.example.com --ip 192.0.2.1
    tandem pki client --dir /etc/tandem/pki alice@example.com
    tandem pki revoke --dir /etc/tandem/pki alice@example.com

A gateway then says

    config vpn certificate ca
        edit "ca"
            set ca "/etc/tandem/pki/ca.crt"
        next
    end
    config vpn certificate local
        edit "gw"
            set certificate "/etc/tandem/pki/gw.example.com.crt"
            set private-key "/etc/tandem/pki/gw.example.com.key"
        next
    end
    config vpn certificate crl
        edit "ca"
            set crl "/etc/tandem/pki/ca.crl"
        next
    end
    config vpn ipsec phase1-interface
        edit "vpn1"
            set authmethod signature
            set certificate "gw"
            …

and a peer needs ca.crt with its own certificate and key. The members of a cluster are
one gateway: all of them get the same certificate and key, at the same paths. Keep
ca.key where no gateway is. Nothing is ever overwritten but the CRL.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(pkiCA(), pkiIssue(false), pkiIssue(true), pkiRevoke())
	return c
}

// issuedJSON is what `tandem pki … --json` prints of a certificate.
type issuedJSON struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	DNS         []string  `json:"dns,omitempty"`
	Emails      []string  `json:"emails,omitempty"`
	IPs         []string  `json:"ips,omitempty"`
	KeyType     string    `json:"key_type"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Fingerprint string    `json:"sha256"`
	Certificate string    `json:"certificate_file"`
	Key         string    `json:"key_file"`
}

func printIssued(out io.Writer, i *pki.Issued, asJSON bool) error {
	c := i.Certificate
	f := pki.Fingerprint(c)
	j := issuedJSON{Subject: pki.DNString(c.RawSubject), Issuer: pki.DNString(c.RawIssuer), DNS: c.DNSNames, Emails: c.EmailAddresses, KeyType: i.Key,
		Serial: hex.EncodeToString(c.SerialNumber.Bytes()), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
		Fingerprint: hex.EncodeToString(f[:]), Certificate: i.CertificateFile, Key: i.KeyFile}
	for _, ip := range c.IPAddresses {
		j.IPs = append(j.IPs, ip.String())
	}
	if asJSON {
		return encodeJSON(out, j)
	}
	fmt.Fprintf(out, "certificate: %s\nprivate key: %s\nsubject:     %s\n", j.Certificate, j.Key, j.Subject)
	if names := append(append(append([]string{}, j.DNS...), j.Emails...), j.IPs...); len(names) > 0 {
		fmt.Fprintf(out, "names:       %s\n", strings.Join(names, ", "))
	}
	_, err := fmt.Fprintf(out, "valid until: %s\n", j.NotAfter.Format(time.RFC3339))
	return err
}

func encodeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type pkiFlags struct {
	dir, key string
	days     int
	json     bool
}

func (f *pkiFlags) add(c *cobra.Command, days int, what string) {
	c.Flags().StringVar(&f.dir, "dir", "/etc/tandem/pki", "the CA's folder")
	c.Flags().StringVar(&f.key, "key-type", "ecdsa256", "one of "+strings.Join(pki.KeyTypes, ", "))
	c.Flags().IntVar(&f.days, "days", days, "how long "+what+" is valid, 1 to 36500")
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
}

func (f *pkiFlags) validity() (time.Duration, error) {
	if f.days < 1 || f.days > 36500 {
		return 0, exitError{exitUsage, "--days must be between 1 and 36500"}
	}
	return time.Duration(f.days) * 24 * time.Hour, nil
}

func pkiCA() *cobra.Command {
	var f pkiFlags
	var name, organization string
	c := &cobra.Command{
		Use: "ca [flags]", Short: "Make a CA: ca.crt, ca.key and an empty ca.crl", Args: cobra.NoArgs,
		Long: `Makes a CA in DIR: its certificate ca.crt, which everybody who is to trust it gets;
its key ca.key, which nobody else gets; and ca.crl, the list of revoked certificates,
empty so far. Peers that cannot use ECDSA need --key-type rsa3072.`,
		RunE: func(c *cobra.Command, _ []string) error {
			d, err := f.validity()
			if err != nil {
				return err
			}
			i, err := pki.CreateCA(f.dir, name, organization, f.key, d, time.Now())
			if err != nil {
				return exitError{exitFailed, err.Error()}
			}
			return printIssued(c.OutOrStdout(), i, f.json)
		},
	}
	f.add(c, 3650, "the CA")
	c.Flags().StringVar(&name, "name", "Tandem VPN CA", "the CA's common name")
	c.Flags().StringVar(&organization, "organization", "", "the CA's organization, and so that of all that it issues")
	return c
}

func pkiIssue(client bool) *cobra.Command {
	var f pkiFlags
	var dns, emails, ips, ocsp []string
	var organization string
	use, short, days := "node [flags] NAME", "Make a gateway's certificate: NAME.crt and NAME.key", 825
	long := `Makes DIR/NAME.crt and DIR/NAME.key for a gateway, by the CA in DIR. NAME becomes the
common name, and a name that peers may be told as identity: a host name, an address, or,
with an @ in it, a mail address. Peers that check the gateway's address or another name
need that in the certificate, too: --ip, --dns, --email.`
	if client {
		use, short, days = "client [flags] NAME", "Make a client's certificate: NAME.crt and NAME.key", 397
		long = `Makes DIR/NAME.crt and DIR/NAME.key for a dialup client, by the CA in DIR. NAME becomes the
common name, and the identity that the client may send: a host name, or, with an @ in it,
a mail address. The client gets both files and ca.crt.`
	}
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := f.validity()
			if err != nil {
				return err
			}
			r := pki.Request{Name: args[0], Organization: organization, DNS: dns, Emails: emails, Key: f.key, Validity: d, Client: client, OCSP: ocsp}
			for _, s := range ips {
				a, err := netip.ParseAddr(s)
				if err != nil {
					return exitError{exitUsage, fmt.Sprintf("--ip %q is no address", s)}
				}
				r.IPs = append(r.IPs, a)
			}
			if a, err := netip.ParseAddr(args[0]); err == nil {
				r.IPs = append(r.IPs, a)
			} else if strings.Contains(args[0], "@") {
				r.Emails = append(r.Emails, args[0])
			} else {
				r.DNS = append(r.DNS, args[0])
			}
			i, err := pki.Issue(f.dir, r, time.Now())
			if err != nil {
				return exitError{exitFailed, err.Error()}
			}
			return printIssued(c.OutOrStdout(), i, f.json)
		},
	}
	f.add(c, days, "the certificate")
	c.Flags().StringSliceVar(&dns, "dns", nil, "a further host name; may be repeated")
	c.Flags().StringSliceVar(&emails, "email", nil, "a further mail address; may be repeated")
	c.Flags().StringSliceVar(&ips, "ip", nil, "an address; may be repeated")
	c.Flags().StringSliceVar(&ocsp, "ocsp", nil, "URL (http://…) of an OCSP responder that the certificate names; may be repeated")
	c.Flags().StringVar(&organization, "organization", "", "another organization than the CA's")
	return c
}

func pkiRevoke() *cobra.Command {
	var dir string
	var asJSON bool
	c := &cobra.Command{
		Use: "revoke [flags] [NAME…]", Short: "Revoke certificates: write a new ca.crl",
		Long: `Adds the certificates DIR/NAME.crt to the list of revoked certificates DIR/ca.crl, which
is valid for 30 days; without a NAME the list is only renewed. Gateways take a new list
when their configuration is loaded again: tandem execute reload.`,
		RunE: func(c *cobra.Command, names []string) error {
			file, serials, err := pki.Revoke(dir, names, time.Now())
			if err != nil {
				return exitError{exitFailed, err.Error()}
			}
			if asJSON {
				return encodeJSON(c.OutOrStdout(), struct {
					File    string   `json:"file"`
					Serials []string `json:"revoked_serials"`
				}{file, append([]string{}, serials...)})
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d certificates are revoked\n", file, len(serials))
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "/etc/tandem/pki", "the CA's folder")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
