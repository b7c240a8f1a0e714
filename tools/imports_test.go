package tools

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/meta-attest/meta-attest/tools/"

// mayImport is the direction of imports between our packages: a line may name only
// packages of earlier lines. Formats stand first, what touches the world later.
var mayImport = []struct {
	pkg     string
	imports string
}{
	{"internal/wire", ""},
	{"internal/config", ""},
	{"internal/cpio", ""},
	{"internal/findexpr", ""},
	{"internal/ima", "internal/wire"},
	{"internal/policy", "internal/ima"},
	{"internal/bootlog", "internal/wire"},
	{"internal/labellist", "internal/ima"},
	{"internal/rpmfile", "internal/wire internal/ima"},
	{"internal/manifest", ""},
	{"internal/kconfig", ""},
	{"internal/modsig", ""},
	{"internal/vmlinux", ""},
	{"internal/keys", "internal/config internal/ima"},
	{"internal/rootfs", "internal/config internal/findexpr internal/ima internal/labellist internal/manifest"},
	{"internal/payload", ""},
	{"internal/tpm", ""},
	{"internal/tpm/tpmtest", "internal/tpm"},
	{"internal/evidence", "internal/wire internal/ima internal/bootlog"},
	{"internal/evidence/evidencetest", "internal/evidence"},
	{"internal/notice", ""},
	{"internal/keylimedb", ""},
	{"internal/store", ""}, // evidence and verdicts are bytes to it
	{"internal/store/storetest", "internal/store"},
	{"internal/appraise", "internal/config internal/ima internal/bootlog internal/manifest internal/evidence"},
	{"internal/release", "internal/manifest internal/appraise"},
	{"internal/server", "internal/payload internal/evidence internal/appraise internal/release internal/store internal/notice"},
	{"attest-verifier", "internal/config internal/keys internal/evidence internal/store internal/server internal/notice"},
	{"attest-bench", "internal/keys"},
	{"attest-init", ""},
	{"attest-labels", "internal/ima internal/labellist"},
	{"attest-agent", "internal/config internal/wire internal/ima internal/manifest internal/rootfs internal/payload internal/tpm internal/evidence internal/notice"},
	{"oemodules", ""},
	{"keylimetest", ""},
	{"boottest/vm", ""},
	{"boottest", "boottest/vm internal/cpio"},
	{"boottest/guest", ""},
	{"oetest", "boottest/vm internal/cpio"},
	{"attest", "internal/config internal/findexpr internal/ima internal/labellist internal/rpmfile internal/policy internal/manifest internal/keys internal/rootfs internal/kconfig internal/modsig internal/vmlinux internal/payload internal/evidence internal/appraise internal/release internal/keylimedb"},
}

// formats only turn bytes into values and back: they open nothing.
var formats = []string{"internal/wire", "internal/findexpr", "internal/ima", "internal/policy", "internal/bootlog", "internal/labellist", "internal/rpmfile"}

// oneHome are imports that one package alone may have, or the programs of the build host.
var oneHome = map[string]string{

	"github.com/ThalesGroup/crypto11":                "internal/keys",
	"github.com/sigstore/sigstore/pkg/signature/kms": "internal/keys",
	"github.com/spf13/cobra":                         "attest attest-verifier",
	"github.com/schollz/progressbar/v3":              "attest",
	"github.com/jackc/pgx/v5":                        "internal/store",
	"github.com/jackc/pgx/v5/stdlib":                 "internal/store internal/keylimedb",
	"modernc.org/sqlite":                             "internal/store internal/keylimedb",
}

func TestImportDirection(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{}
	for i, p := range mayImport {
		known[p.pkg] = strings.Fields(p.imports)
		for _, dep := range known[p.pkg] {
			if !slices.ContainsFunc(mayImport[:i], func(q struct{ pkg, imports string }) bool { return q.pkg == dep }) {
				t.Errorf("%s may import %s, which does not stand before it", p.pkg, dep)
			}
		}
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg, ours := strings.CutPrefix(fields[0], module)
		if !ours {
			continue // the package of this test
		}
		allowed, ok := known[pkg]
		if !ok {
			t.Errorf("%s is not in the table of this test", pkg)
		}
		for _, dep := range fields[1:] {
			if home, ok := oneHome[dep]; ok && !slices.Contains(strings.Fields(home), pkg) {
				t.Errorf("%s imports %s, which only %s may", pkg, dep, home)
			}
			if slices.Contains(formats, pkg) && (dep == "os" || dep == "os/exec" || strings.HasPrefix(dep, "net")) {
				t.Errorf("%s is a format and imports %s", pkg, dep)
			}
			if dep, ours := strings.CutPrefix(dep, module); ours && !slices.Contains(allowed, dep) {
				t.Errorf("%s may not import %s", pkg, dep)
			}
		}
	}
}
