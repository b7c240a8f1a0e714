package keylimetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// tenantLoop is testdata/tenant.py, running.
type tenantLoop struct {
	calls   *json.Encoder
	results *os.File
	codes   *bufio.Scanner
}

func (k *keylime) startTenant() *tenantLoop {
	k.t.Helper()
	script, err := os.ReadFile("testdata/tenant.py")
	if err != nil {
		k.t.Fatal(err)
	}
	cmd := k.command("python", "-c", string(script))
	in, err := cmd.StdinPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	results, theirs, err := os.Pipe()
	if err != nil {
		k.t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{theirs}
	launch(k.t, "keylime_tenant", cmd)
	_ = theirs.Close()
	k.t.Cleanup(func() { _ = results.Close() })
	return &tenantLoop{json.NewEncoder(in), results, bufio.NewScanner(results)}
}

// tenant runs keylime_tenant to its end.
func (k *keylime) tenant(args ...string) (string, error) {
	k.t.Helper()
	if k.loop == nil {
		k.loop = k.startTenant()
	}
	args = append([]string{"-v", "127.0.0.1", "-vp", fmt.Sprint(k.ports["verifier"]), "-r", "127.0.0.1", "-rp", fmt.Sprint(k.ports["registrar_tls"])}, args...)
	call := struct {
		Args []string `json:"args"`
		Out  string   `json:"out"`
	}{args, k.path("tenant.out")}
	_ = k.loop.results.SetReadDeadline(time.Now().Add(patience))
	if err := k.loop.calls.Encode(call); err != nil {
		k.t.Fatalf("call keylime_tenant: %v", err)
	}
	if !k.loop.codes.Scan() {
		k.t.Fatalf("keylime_tenant %s: no end: %v", strings.Join(args, " "), k.loop.codes.Err())
	}
	out, err := os.ReadFile(call.Out)
	if err != nil {
		k.t.Fatal(err)
	}
	if code := k.loop.codes.Text(); code != "0" {
		return string(out), fmt.Errorf("exit code %s", code)
	}
	return string(out), nil
}

// mustTenant is tenant, which has to work. An agent that nobody added yet registers again and
// again, and is not active for a moment each time.
func (k *keylime) mustTenant(args ...string) string {
	k.t.Helper()
	out, err := k.tenant(args...)
	for end := time.Now().Add(patience); err != nil && strings.Contains(out, "has not been activated") && time.Now().Before(end); {
		out, err = k.tenant(args...)
	}
	if err != nil {
		k.t.Fatalf("keylime_tenant %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
