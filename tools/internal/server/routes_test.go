package server

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// TestDocument compares the OpenAPI document with the tables: the same operations, for the
// same callers.
func TestDocument(t *testing.T) {
	t.Parallel()
	var doc struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			Roles      []Role `json:"x-roles"`
			Verifier   []Role `json:"x-verifier-roles"` // where the registrar has the same route for others
			Parameters []struct{ Name, In string }
			Responses  map[string]any
		} `json:"paths"`
	}
	if err := json.Unmarshal(openAPIDocument, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.") {
		t.Errorf("openapi %q", doc.OpenAPI)
	}
	documented := map[string]bool{}
	for path, operations := range doc.Paths {
		for method := range operations {
			documented[strings.ToUpper(method)+" "+path] = true
		}
	}
	for i, r := range slices.Concat(registrarRoutes, verifierRoutes) {
		o, ok := doc.Paths[r.path][strings.ToLower(r.method)]
		if !ok {
			t.Errorf("%s %s is not in the document", r.method, r.path)
			continue
		}
		delete(documented, r.method+" "+r.path)
		if i >= len(registrarRoutes) && o.Verifier != nil {
			o.Roles = o.Verifier
		}
		if !slices.Equal(o.Roles, r.roles) {
			t.Errorf("%s %s: for %v in the document, for %v in the table", r.method, r.path, o.Roles, r.roles)
		}
		for _, part := range strings.Split(r.path, "/") {
			name, wild := strings.CutPrefix(part, "{")
			name = strings.TrimSuffix(name, "}")
			if wild && name != "$" && !slices.ContainsFunc(o.Parameters, func(p struct{ Name, In string }) bool { return p.Name == name && p.In == "path" }) {
				t.Errorf("%s %s: {%s} is not described", r.method, r.path, name)
			}
		}
	}
	for path := range documented {
		t.Errorf("%s is in the document only", path)
	}
}

// credential is one way to call, and what it is good for.
type credential struct {
	name   string
	token  string
	client *http.Client
	may    func(Role) bool
	denied int
}

func (w *world) credentials(device *machine) []credential {
	w.t.Helper()
	operator := w.pki.issue(w.t, pkix.Name{CommonName: "op", OrganizationalUnit: []string{"operator"}}, time.Hour)
	admin := w.pki.issue(w.t, pkix.Name{CommonName: "adm", OrganizationalUnit: []string{"admin"}}, time.Hour)
	expired := w.pki.issue(w.t, pkix.Name{CommonName: "adm", OrganizationalUnit: []string{"admin"}}, -time.Hour)
	nobody := w.pki.issue(w.t, pkix.Name{CommonName: "adm"}, time.Hour)
	foreign := newPKI(w.t).issue(w.t, pkix.Name{CommonName: "adm", OrganizationalUnit: []string{"admin"}}, time.Hour)
	none := func(r Role) bool { return r == Public }
	operators := func(r Role) bool { return r == Public || r == Operator }
	admins := func(r Role) bool { return r == Public || r == Operator || r == Admin }
	tenants := newPKI(w.t)
	w.s.tenants = poolOf([]*x509.Certificate{tenants.ca})
	with := func(c tls.Certificate) *http.Client { return w.pki.client(c) }
	past := w.clock.Now().Add(-48 * time.Hour)
	old, _, err := AddToken(w.t.Context(), w.store, "old", Admin, 1, "test", past)
	if err != nil {
		w.t.Fatal(err)
	}
	return []credential{
		{"none", "", w.client, none, http.StatusUnauthorized},
		{"a wrong token", "attest_" + strings.Repeat("A", 43), w.client, none, http.StatusUnauthorized},
		{"an expired token", old, w.client, none, http.StatusUnauthorized},
		{"device", device.token, w.client, func(r Role) bool { return r == Public || r == Device }, http.StatusForbidden},
		{"token of an operator", w.token("op", Operator), w.client, operators, http.StatusForbidden},
		{"token of an admin", w.token("adm", Admin), w.client, admins, http.StatusForbidden},
		{"certificate of an operator", "", with(operator), operators, http.StatusForbidden},
		{"certificate of an admin", "", with(admin), admins, http.StatusForbidden},
		{"expired certificate", "", with(expired), none, http.StatusUnauthorized},
		{"certificate of a tenant", "", with(tenants.issue(w.t, pkix.Name{CommonName: "tenant"}, time.Hour)),
			func(r Role) bool { return r == Public || r == Tenant }, http.StatusForbidden},
		{"expired certificate of a tenant", "", with(tenants.issue(w.t, pkix.Name{CommonName: "tenant"}, -time.Hour)), none, http.StatusUnauthorized},
		{"certificate without a role", "", with(nobody), none, http.StatusForbidden},
		{"certificate of another CA", "", with(foreign), none, http.StatusUnauthorized},
	}
}

// TestRoutes calls each route with each credential: CVE-2026-1709, and every route that
// will be added without a thought.
func TestRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.machine(tpmtest.Start(t))
	m.enrol()
	m.session()
	n := 0
	for _, c := range w.credentials(m) {
		for url, routes := range map[string][]route{w.registrar: registrarRoutes, w.verifier: verifierRoutes} {
			for _, r := range routes {
				may := slices.ContainsFunc(r.roles, c.may)
				version := "v3.0"
				if slices.Contains(r.roles, Tenant) {
					version = "v2.6"
				}
				path := strings.NewReplacer("{$}", "", "{version}", version, "{id}", m.id, "{name}", "x", "{index}", "latest", "{session}", "x",
					"{digest}", strings.Repeat("00", 32), "{policyVersion}", "1").Replace(r.path)
				if may && r.method == "DELETE" && strings.HasSuffix(r.path, "s/{id}") {
					path = strings.Replace(path, m.id, "nobody", 1) // the device is still needed
				}
				a, err := w.try(c.client, r.method, url+path, c.token, []byte("{}"))
				if err != nil {
					t.Fatal(err)
				}
				n++
				refused := a.status == http.StatusUnauthorized || a.status == http.StatusForbidden && denies(a.body)
				if may == refused || !may && a.status != c.denied {
					t.Errorf("%s: %s %s: %d %s", c.name, r.method, r.path, a.status, a.body)
				}
			}
		}
	}
	t.Logf("%d calls", n)
	other := w.verifier + "/v3.0/agents/somebody/attestations"
	if a := w.send("POST", other, m.token, []byte("{}")); a.status != http.StatusForbidden {
		t.Errorf("a device for another: %d %s", a.status, a.body)
	}
}

// denies says whether an answer 403 is about the caller, and not about the request.
func denies(body []byte) bool {
	return slices.ContainsFunc([]string{`"code":"role"`, `"code":"other_device"`, "not for the role", "names no role"},
		func(text string) bool { return strings.Contains(string(body), text) })
}

// TestVersions: Keylime's clients find out by these codes which version to speak.
func TestVersions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for path, want := range map[string]int{
		w.registrar + "/version":                                  200,
		w.verifier + "/version":                                   200,
		w.registrar + "/v2.9/agents/x":                            400,
		w.registrar + "/v4.0/agents/x":                            400,
		w.verifier + "/v3.7/sessions":                             410,
		w.verifier + "/nothing":                                   404,
		w.verifier + "/api/v1/nothing":                            404,
		w.registrar + "/v2.1/agents/a%0Ab":                        400,
		w.registrar + "/v2.1/agents/%1b%5b31mred":                 400,
		w.registrar + "/v2.1/agents/" + strings.Repeat("a", 4000): 400,
	} {
		method := "POST"
		if strings.HasSuffix(path, "version") || strings.HasSuffix(path, "nothing") {
			method = "GET"
		}
		if a := w.send(method, path, "", []byte("{}")); a.status != want {
			t.Errorf("%s: %d, want %d: %s", path, a.status, want, a.body)
		}
	}
	// CVE-2022-23949: an id cannot write lines of the log.
	for line := range strings.Lines(w.log.String()) {
		if !json.Valid([]byte(line)) || strings.ContainsAny(line, "\x1b") {
			t.Errorf("not a line of JSON: %q", line)
		}
	}
	if n := fmt.Sprint(strings.Count(w.log.String(), "\n")); n == "0" {
		t.Error("nothing was logged")
	}
}
