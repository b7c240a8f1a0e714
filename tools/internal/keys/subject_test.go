package keys

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSubject compares with what openssl writes for an RFC 4514 string.
func TestSubject(t *testing.T) {
	for _, s := range []string{
		`CN=Acme IMA 2026,O=Acme`,
		`CN=x`,
		`CN=Größe\, so\+so,OU=a\=b\;c,O=\#1 \<\>\"\\,L=\ blank\ ,ST=Land,C=DE`,
		`emailAddress=ima@example.com,CN=a=b,serialNumber=0815`,
		`CN=\e2\82\ac 5`,
	} {
		seq, err := parseSubject(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		got := opensslSubject(t, s)
		// openssl's own escapes differ; its DER is read back and compared.
		if !sameSubject(seq, got) {
			t.Errorf("%s: got %v, openssl has %v", s, seq, got)
		}
	}
}

// opensslSubject has openssl read the name that parseSubject made, and write it into a request
// of its own by -subj, which takes the names in the order of the certificate.
func opensslSubject(t *testing.T, s string) pkix.RDNSequence {
	t.Helper()
	seq, err := parseSubject(s)
	if err != nil {
		t.Fatal(err)
	}
	subj := ""
	for _, rdn := range seq {
		i := 0
		for ; !subjectAttributes[i].oid.Equal(rdn[0].Type); i++ {
		}
		subj += "/" + subjectAttributes[i].name + "=" + strings.NewReplacer(`\`, `\\`, `/`, `\/`, `+`, `\+`).Replace(valueText(rdn[0]))
	}
	dir := t.TempDir()
	_, key := newKey(t, "P-256")
	out := filepath.Join(dir, "csr")
	command(t, "openssl", "req", "-new", "-utf8", "-batch", "-key", key, "-subj", subj, "-outform", "DER", "-out", out)
	der, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := parseRequest("csr", der)
	if err != nil {
		t.Fatal(err)
	}
	var got pkix.RDNSequence
	if err := unmarshal(csr.RawSubject, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSubjectRefuses(t *testing.T) {
	for s, want := range map[string]string{
		"":                                "not NAME=VALUE",
		"Acme":                            "not NAME=VALUE",
		"O=Acme":                          "no CN",
		"CN=a,CN=b":                       "stands twice",
		"CN=a, O=b":                       `name " O" is not one of`,
		"cn=a":                            `name "cn" is not one of`,
		"CN=":                             "empty",
		"CN=a,":                           "not NAME=VALUE",
		"CN= a":                           "blank before",
		"CN=a ":                           "blank after",
		"CN=a+O=b":                        `'+' must be written \+`,
		`CN="a"`:                          `'"' must be written \"`,
		"CN=#0403":                        `'#' must be written \#`,
		`CN=a\`:                           "at the end",
		`CN=a\zz`:                         `"\\zz" is no escape`,
		`CN=a\00b`:                        "control character",
		"CN=a\nb":                         "control character",
		`CN=\ff`:                          "not UTF-8",
		"CN=\xff":                         "not UTF-8",
		"CN=a,C=DEU":                      "3 characters, not 2",
		"CN=a,C=ÄÖ":                       "PrintableString",
		"CN=a,emailAddress=ä@b":           "IA5String",
		"CN=" + strings.Repeat("a", 65):   "65 characters, not 64",
		"CN=a" + strings.Repeat(" ", 5e3): "longer than 4096",
	} {
		if seq, err := parseSubject(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %q", s, seq, err, want)
		}
	}
}

// FuzzSubject: a name that is taken can be written in DER and read back, and says the same when
// the standard library writes it as RFC 2253 text.
func FuzzSubject(f *testing.F) {
	f.Add(`CN=Acme IMA 2026,O=Acme`)
	f.Add(`CN=Größe\, so\+so,OU=a\=b\;c,O=\#1 \<\>\"\\,L=\ blank\ ,C=DE`)
	f.Add(`emailAddress=ima@example.com,CN=a=b`)
	f.Fuzz(func(t *testing.T, s string) {
		seq, err := parseSubject(s)
		if err != nil {
			if seq != nil {
				t.Fatalf("%q: %v, with %v", s, err, seq)
			}
			return
		}
		der, err := asn1.Marshal(seq)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		var back pkix.RDNSequence
		if err := unmarshal(der, &back); err != nil || !sameSubject(seq, back) {
			t.Fatalf("%q: wrote %v, read %v, %v", s, seq, back, err)
		}
		if strings.Contains(s, "emailAddress") || strings.Contains(s, "serialNumber") {
			return // the standard library writes these by number or in another way
		}
		again, err := parseSubject(back.String())
		if err != nil || !sameSubject(seq, again) {
			t.Fatalf("%q became %q: %v, %v", s, back.String(), again, err)
		}
	})
}
