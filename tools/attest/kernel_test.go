package main

import (
	"crypto/x509"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/vmlinux"
)

func TestJudgeCertificates(t *testing.T) {
	read := func(name string) *x509.Certificate {
		t.Helper()
		certs, err := keys.ReadCertificates("../../keys-debug/" + name + ".crt")
		if err != nil {
			t.Fatal(err)
		}
		return certs[0]
	}
	type certs []*x509.Certificate
	ca, other, module := read("root"), read("ima"), read("modsign")
	for _, c := range []struct {
		name                    string
		module, trusted, wanted certs
		want                    []string
		bad                     int64
	}{
		{"the CA alone", nil, certs{ca}, certs{ca}, []string{"trusted good"}, 0},
		{"the CA and another", nil, certs{ca, other}, certs{ca}, []string{"trusted good", "trusted unknown"}, 1},
		{"nothing", nil, nil, certs{ca}, []string{"trusted missing"}, 1},
		{"a key that the build made", certs{module}, certs{ca}, certs{ca}, []string{"module unknown", "trusted good"}, 1},
		{"the CA where modules' keys are", certs{ca}, nil, certs{ca}, []string{"module unknown", "trusted missing"}, 2},
	} {
		list, bad := judgeCertificates(&vmlinux.Certificates{Module: c.module, Trusted: c.trusted}, c.wanted)
		var got []string
		for _, l := range list {
			got = append(got, l.Place+" "+l.Verdict)
		}
		if diff := cmp.Diff(c.want, got); diff != "" || bad != c.bad {
			t.Errorf("%s: %d bad, want %d\n%s", c.name, bad, c.bad, diff)
		}
	}
}
