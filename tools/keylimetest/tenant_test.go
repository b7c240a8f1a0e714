package keylimetest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/server"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// ours is our registrar and verifier, with a CA for their TLS and that of Keylime's tenant.
type ours struct {
	*keylime // the tenant's folder and settings; its servers do not run
	store    *store.Store
	said     tenantTranscript
}

// startOurs starts our server in the place of Keylime's. The tenant's files lie where those
// of its own CA would.
func startOurs(t *testing.T, change ...func(*server.Options)) *ours {
	t.Helper()
	k := &keylime{t: t, dir: t.TempDir(), ports: map[string]int{}}
	o := &ours{keylime: k}
	ca, pair := o.issue()
	url := k.path("attest.db")
	if _, _, err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.store, err = store.Open(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.store.Close() })
	options := server.Options{Store: o.store, TOFU: true, TenantCA: []*x509.Certificate{ca}, Interval: time.Second, Grace: 60,
		Limits: server.Limits{RequestsIP: 100_000, RequestsDevice: 100_000}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&options)
	}
	s, err := server.New(options)
	if err != nil {
		t.Fatal(err)
	}
	conf := server.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair, nil })
	for name, h := range map[string]http.Handler{"registrar_tls": s.Registrar(), "verifier": s.Verifier()} {
		l := &server.Listener{Address: "127.0.0.1:0", Handler: o.said.listen(name, h), TLS: conf}
		if err := l.Open(t.Context(), s.Limits, s.Log); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- l.Serve() }()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			l.Close(ctx)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		at, err := net.ResolveTCPAddr("tcp", l.Address)
		if err != nil {
			t.Fatal(err)
		}
		k.ports[name] = at.Port
	}
	k.configure("push")
	return o
}

// withTenant says where keylime_tenant is; without it the test is skipped.
func (o *ours) withTenant() *ours {
	o.t.Helper()
	o.bin = filepath.Join(installed(o.t, "python"), "bin")
	return o
}

// issue makes a CA, the tenant's certificate as Keylime's CA makes it, and the server's.
func (o *ours) issue() (ca *x509.Certificate, server *tls.Certificate) {
	o.t.Helper()
	if err := os.Mkdir(o.path("cv_ca"), 0o700); err != nil {
		o.t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		o.t.Fatal(err)
	}
	sign := func(serial int64, template, parent *x509.Certificate) []byte {
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(serial), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			o.t.Fatal(err)
		}
		return der
	}
	root := &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true}
	der := sign(1, root, root)
	if ca, err = x509.ParseCertificate(der); err != nil {
		o.t.Fatal(err)
	}
	client := sign(2, &x509.Certificate{Subject: pkix.Name{CommonName: "client"}}, ca)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		o.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cacert.crt": {Type: "CERTIFICATE", Bytes: der}, "client-cert.crt": {Type: "CERTIFICATE", Bytes: client},
		"client-private.pem": {Type: "PRIVATE KEY", Bytes: pkcs8}, "client-public.pem": {Type: "PUBLIC KEY", Bytes: mustSPKI(o.t, key)}} {
		if err := os.WriteFile(o.path("cv_ca/"+name), pem.EncodeToMemory(block), 0o600); err != nil {
			o.t.Fatal(err)
		}
	}
	own := sign(3, &x509.Certificate{Subject: pkix.Name{CommonName: "verifier"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca)
	return ca, &tls.Certificate{Certificate: [][]byte{own}, PrivateKey: key}
}

func mustSPKI(t *testing.T, key *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// write puts a file beside the tenant's.
func (o *ours) write(name string, v any) string {
	o.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := os.WriteFile(o.path(name), b, 0o600); err != nil {
		o.t.Fatal(err)
	}
	return o.path(name)
}

// runtime writes a runtime policy of Keylime that allows these files.
func (o *ours) runtime(name string, paths ...string) string {
	digests := map[string][]string{}
	for _, p := range paths {
		digests[p] = []string{fmt.Sprintf("%x", digest(p))}
	}
	return o.write(name, map[string]any{"meta": map[string]any{"version": 1, "generator": 3}, "release": 0, "digests": digests,
		"excludes": []string{}, "keyrings": map[string]any{}, "ima": map[string]any{"ignored_keyrings": []string{}, "log_hash_alg": "sha1", "dm_policy": nil},
		"ima-buf": map[string]any{}, "verification-keys": ""})
}

// says runs the tenant, which has to print all of want.
func (o *ours) says(want []string, args ...string) string {
	o.t.Helper()
	out := o.mustTenant(args...)
	for _, w := range want {
		if !strings.Contains(out, w) {
			o.t.Errorf("keylime_tenant %s: no %q in\n%s", strings.Join(args, " "), w, out)
		}
	}
	return out
}

// refused runs the tenant, which has to fail with all of want.
func (o *ours) refused(want string, args ...string) {
	o.t.Helper()
	out, err := o.tenant(args...)
	if err == nil || !strings.Contains(out, want) {
		o.t.Errorf("keylime_tenant %s: %v, no %q in\n%s", strings.Join(args, " "), err, want, out)
	}
}

// TestTenantPush: keylime_tenant before our registrar and verifier, with our agent.
func TestTenantPush(t *testing.T) {
	t.Parallel()
	o := startOurs(t).withTenant()
	defer o.said.write(t, "tenant.json")
	d := newDevice(t)
	d.run("/sbin/init")
	agent := launch(t, "attest-agent", d.agent("run", append(o.flags(), "--verifier-url", o.verifierURL())...))
	agent.await("enrolled ")
	id := d.id()
	o.says([]string{`"uuids": ["` + id + `"]`}, "-c", "reglist")
	o.says([]string{`"aik_tpm"`, `"regcount": 1`, "Registered"}, "-c", "regstatus", "-u", id)
	o.says([]string{`"uuids": []`}, "-c", "cvlist")
	o.refused("does not exist", "-c", "cvstatus", "-u", id)

	good := o.runtime("good.json", "/sbin/init", "/bin/sh")
	o.says([]string{"added to"}, "-c", "add", "--push-model", "-u", id, "--runtime-policy", good)
	o.refused("conflict", "-c", "add", "--push-model", "-u", id, "--runtime-policy", good)
	until(t, "the device to pass", func() bool { return o.status(id).Attestation == "PASS" })
	o.says([]string{id}, "-c", "cvlist")
	status := o.says([]string{`"attestation_status": "PASS"`, `"has_runtime_policy": 1`, `"v": null`}, "-c", "cvstatus", "-u", id)
	o.says([]string{`"operational_state": "Get Quote"`}, "-c", "status", "-u", id)
	o.says([]string{`"attestation_status": "PASS"`, id}, "-c", "bulkinfo")
	if strings.Contains(status, `"hash_alg": ""`) {
		t.Errorf("no algorithms in\n%s", status)
	}

	d.run("/tmp/evil")
	until(t, "the device to fail", func() bool { return o.status(id).Attestation == "FAIL" })
	o.says([]string{`"last_event_id": "ima.validation.ima-ng.not_in_allowlist"`, "Invalid Quote", `"severity_level": 6`}, "-c", "cvstatus", "-u", id)
	o.says([]string{"re-activated"}, "-c", "reactivate", "-u", id)
	o.says([]string{"deleted", "added to"}, "-c", "update", "--push-model", "-u", id, "--runtime-policy", o.runtime("evil.json", "/sbin/init", "/bin/sh", "/tmp/evil"))
	until(t, "the device to pass by its new policy", func() bool { return o.status(id).Attestation == "PASS" })

	o.mustTenant("-c", "regdelete", "-u", id)
	o.says([]string{id}, "-c", "reglist") // it is on the verifier
	o.says([]string{"deleted"}, "-c", "delete", "-u", id)
	o.says([]string{`"uuids": []`}, "-c", "cvlist")
	o.says([]string{id}, "-c", "reglist")
	agent.stop() // it would enrol again
	o.mustTenant("-c", "regdelete", "-u", id)
	o.says([]string{`"uuids": []`}, "-c", "reglist")
}

// TestTenantPolicies: named policies, of both sorts, and what is refused.
func TestTenantPolicies(t *testing.T) {
	t.Parallel()
	o := startOurs(t).withTenant()
	defer o.said.write(t, "tenant-policies.json")
	d := newDevice(t)
	d.run("/sbin/init")
	launch(t, "attest-agent", d.agent("run", append(o.flags(), "--verifier-url", o.verifierURL())...)).await("enrolled ")
	id := d.id()
	o.mustTenant("-c", "regstatus", "-u", id)
	v1, v2 := o.runtime("v1.json", "/sbin/init"), o.runtime("v2.json", "/sbin/init", "/bin/sh")
	o.says([]string{"201"}, "-c", "addruntimepolicy", "--runtime-policy", v1, "--runtime-policy-name", "image")
	o.refused("exists", "-c", "addruntimepolicy", "--runtime-policy", v1, "--runtime-policy-name", "image")
	o.says([]string{"'runtimepolicy names': ['image']"}, "-c", "listruntimepolicy")
	o.says([]string{"/sbin/init", "'name': 'image'"}, "-c", "showruntimepolicy", "--runtime-policy-name", "image")
	o.refused("404", "-c", "updateruntimepolicy", "--runtime-policy", v1, "--runtime-policy-name", "other")

	zero := strings.Repeat("0", 64)
	o.says([]string{"added to"}, "-c", "add", "--push-model", "-u", id, "--runtime-policy-name", "image", "--tpm_policy", `{"7":["`+zero+`"]}`)
	until(t, "the device to pass", func() bool { return o.status(id).Attestation == "PASS" })
	o.refused("still assigned", "-c", "deleteruntimepolicy", "--runtime-policy-name", "image")
	d.run("/bin/sh")
	until(t, "the device to fail", func() bool { return o.status(id).Attestation == "FAIL" })
	// What was derived from the policy follows it.
	o.says([]string{"201"}, "-c", "updateruntimepolicy", "--runtime-policy", v2, "--runtime-policy-name", "image")
	until(t, "the device to pass by the new version", func() bool { return o.status(id).Attestation == "PASS" })
	o.refused("older", "-c", "updateruntimepolicy", "--runtime-policy", v1, "--runtime-policy-name", "image")
	o.says([]string{"deleted"}, "-c", "delete", "-u", id)
	o.mustTenant("-c", "deleteruntimepolicy", "--runtime-policy-name", "image")

	o.says([]string{"added to"}, "-c", "add", "--push-model", "-u", id, "--runtime-policy", v2, "--tpm_policy", `{"7":["`+strings.Repeat("1", 64)+`"]}`)
	until(t, "the device to fail for its PCR 7", func() bool { return o.status(id).LastEvent == "pcr_validation.invalid_pcr_7" })
	o.mustTenant("-c", "delete", "-u", id)

	boot := o.write("boot.json", refstate("/vmlinuz ro"))
	o.says([]string{"201"}, "-c", "addmbpolicy", "--mb-policy", boot, "--mb-policy-name", "grub")
	o.refused("exists", "-c", "addmbpolicy", "--mb-policy", boot, "--mb-policy-name", "grub")
	o.refused("allows any command line", "-c", "updatembpolicy", "--mb-policy", o.write("any.json", refstate(".*")), "--mb-policy-name", "grub")
	o.says([]string{"201"}, "-c", "updatembpolicy", "--mb-policy", o.write("quiet.json", refstate("/vmlinuz quiet")), "--mb-policy-name", "grub")
	o.says([]string{"'mbpolicy names': ['grub']"}, "-c", "listmbpolicy")
	o.says([]string{"/vmlinuz quiet", "'name': 'grub'"}, "-c", "showmbpolicy", "--mb-policy-name", "grub")
	o.says([]string{"added to", `"has_mb_refstate": 1`}, "-c", "add", "--push-model", "-u", id, "--runtime-policy", v2, "--mb-policy-name", "grub")
	// The device has no firmware log, so that nothing is known of its boot.
	until(t, "the device to lack a firmware log", func() bool { return o.status(id).Count > 0 && o.status(id).Attestation == "PENDING" })
	o.refused("still assigned", "-c", "deletembpolicy", "--mb-policy-name", "grub")
	o.mustTenant("-c", "delete", "-u", id)
	o.mustTenant("-c", "deletembpolicy", "--mb-policy-name", "grub")
	o.says([]string{"'mbpolicy names': []"}, "-c", "listmbpolicy")

	for _, bad := range []struct {
		why  string
		args []string
	}{
		{"exclude", []string{"--runtime-policy", o.write("excludes.json", changed(t, v2, "excludes", []string{"/tmp("}))}},
		{"no digest", []string{"--runtime-policy", o.write("empty.json", changed(t, v2, "digests", map[string]any{}))}},
		{"needs a runtime policy", []string{"--tpm_policy", `{"7":["` + zero + `"]}`}},
		{"mb_policy", []string{"--runtime-policy", v2, "--mb-policy", o.write("nothing.json", map[string]any{})}},
		{"404", []string{"--runtime-policy-name", "nobody"}},
	} {
		o.refused(bad.why, append([]string{"-c", "add", "--push-model", "-u", id}, bad.args...)...)
	}
	o.says([]string{"added to"}, "-c", "add", "--push-model", "-u", id) // watched, never green
	until(t, "an attestation without a policy", func() bool { return o.status(id).Count > 0 && o.status(id).Attestation == "PENDING" })
}

// refstate is a measured boot policy of a made-up boot.
func refstate(cmdline string) map[string]any {
	sum := "0x" + strings.Repeat("11", 32)
	one := map[string]any{"sha256": sum}
	keys := []any{map[string]any{"SignatureOwner": "77fa9abd-0359-4d32-bd60-28f4e78f784b", "SignatureData": "0x30"}}
	return map[string]any{"has_secureboot": true, "scrtm_and_bios": []any{map[string]any{"scrtm": one, "platform_firmware": []any{one}}},
		"pk": keys, "kek": keys, "db": keys, "dbx": []any{}, "vendor_db": []any{}, "mokdig": []any{}, "mokxdig": []any{},
		"kernels": []any{map[string]any{"shim_authcode_sha256": sum, "grub_authcode_sha256": sum, "kernel_authcode_sha256": sum,
			"initrd_plain_sha256": sum, "kernel_cmdline": cmdline}}}
}

// changed is the policy of a file with another member.
func changed(t *testing.T, path, member string, value any) map[string]any {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var p map[string]any
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	p[member] = value
	return p
}
