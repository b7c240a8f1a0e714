package keylimetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/server"
)

// attest runs our operator's program to its end, as an admin.
func (o *ours) attest(program string, args ...string) (stdout string, code int) {
	o.t.Helper()
	token, _, err := server.AddToken(o.t.Context(), o.store, fmt.Sprint("test", time.Now().UnixNano()), server.Admin, 0, "test", time.Now())
	if err != nil {
		o.t.Fatal(err)
	}
	cmd := exec.CommandContext(o.t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "ATTEST_FLEET_TOKEN="+token, "ATTEST_FLEET_SERVER="+o.verifierURL(), "ATTEST_FLEET_SERVER_CA="+o.path("cv_ca/cacert.crt"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		o.t.Fatal(err)
	}
	o.t.Logf("attest %s: %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out.String(), errs.String())
	return out.String(), cmd.ProcessState.ExitCode()
}

type imported struct {
	Devices, Policies, Assigned struct {
		Added int `json:"added"`
		There int `json:"there_already"`
		Left  int `json:"not_imported"`
	}
	Left  []struct{ What, Name, Why string } `json:"not_imported"`
	Notes []string                           `json:"notes"`
}

// imports runs attest fleet import and reads its report.
func (o *ours) imports(program string, code int, args ...string) (r imported) {
	o.t.Helper()
	out, got := o.attest(program, append([]string{"fleet", "import", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil || got != code {
		o.t.Fatalf("exit code %d, want %d, %v: %s", got, code, err, out)
	}
	return r
}

// TestImport: the databases that Keylime's own registrar and verifier wrote move to our
// server, and the device attests there with the keys that it has.
func TestImport(t *testing.T) {
	t.Parallel()
	d, other := newDevice(t), newDevice(t)
	program := buildAttest(t)
	for _, d := range []*device{d, other} {
		d.run("/sbin/init")
	}
	k := startKeylime(t, "push", d, other)
	agent := launch(t, "attest-agent", d.agent("run", append(k.flags(), "--verifier-url", k.verifierURL())...))
	agent.await("enrolled ")
	second := launch(t, "attest-agent", other.agent("run", append(k.flags(), "--verifier-url", k.verifierURL())...))
	second.await("enrolled ")
	id := d.id()
	k.mustTenant("-c", "addruntimepolicy", "--runtime-policy", k.policy("/sbin/init", "/bin/sh"), "--runtime-policy-name", "image")
	k.mustTenant("-c", "add", "--push-model", "-u", id, "--runtime-policy-name", "image")
	until(t, "Keylime to attest the device", func() bool { return k.status(id).Count > 0 })
	agent.stop()
	second.stop()
	bulk := k.mustTenant("-c", "bulkinfo")
	k.verifier.stop()
	k.registrar.stop()

	o := startOurs(t).withTenant()
	dbs := []string{"--database", k.path("reg_data.sqlite"), "--database", k.path("cv_data.sqlite")}
	if r := o.imports(program, 0, append(dbs, "--dry-run")...); r.Devices.Added != 2 || r.Policies.Added != 1 || r.Assigned.Added != 1 {
		t.Errorf("dry run: %+v", r)
	}
	o.says([]string{`"uuids": []`}, "-c", "reglist") // nothing was changed
	if r := o.imports(program, 0, dbs...); r.Devices.Added != 2 || r.Policies.Added != 1 || r.Assigned.Added != 1 || len(r.Notes) != 0 {
		t.Errorf("import: %+v", r)
	}
	if r := o.imports(program, 0, dbs...); r.Devices.There != 2 || r.Policies.There != 1 || r.Assigned.There != 1 || r.Devices.Added+r.Policies.Added+r.Assigned.Added != 0 {
		t.Errorf("again: %+v", r)
	}
	if s := o.status(id); s.Attestation != "PENDING" {
		t.Errorf("before the first attestation: %+v", s)
	}
	events, _ := o.attest(program, "fleet", "events", "--json")
	if !strings.Contains(events, "device-imported") {
		t.Errorf("no event device-imported in %s", events)
	}
	launch(t, "attest-agent", d.agent("run", append(o.flags(), "--verifier-url", o.verifierURL())...))
	until(t, "the device to pass", func() bool { return o.status(id).Attestation == "PASS" })
	o.says([]string{`"regcount": 2`}, "-c", "regstatus", "-u", id) // it came as the device that was imported
	answers(t, o, program, bulk)
}

// answers imports what the tenant printed: without the keys it cannot be done.
func answers(t *testing.T, o *ours, program, bulk string) {
	t.Helper()
	_, text, found := strings.Cut(bulk, "Bulk Agent Info:\n")
	line, _, _ := strings.Cut(text, "\n")
	if !found || !json.Valid([]byte(line)) {
		t.Fatalf("bulkinfo printed %s", bulk)
	}
	path := o.path("answers.json")
	odd := `{"results":{"name":"..","runtime_policy":"{\"x\":1}"}} {"results":{"name":".","mb_policy":"{\"x\":1}"}}`
	if err := os.WriteFile(path, []byte(`{"results":`+line+`}`+odd), 0o600); err != nil {
		t.Fatal(err)
	}
	r := o.imports(program, 4, "--answers", path)
	if len(r.Left) != 3 || r.Left[0].Name != ".." || r.Left[1].Name != "." || !strings.Contains(r.Left[2].Why, "keys are not known") {
		t.Errorf("answers without keys: %+v", r)
	}
}
