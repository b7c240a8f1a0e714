package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/keylimedb"
	"github.com/meta-attest/meta-attest/tools/internal/release"
)

var errNothingToImport = errors.New("nothing to import from")

// importFlags are the flags of attest fleet import.
type importFlags struct {
	databases, answers []string
	policy, group      string
	dryRun, json       bool
}

func newFleetImport(o *fleetFlags) *cobra.Command {
	var f importFlags
	c := &cobra.Command{
		Use:   "import {--database FILE|URL... | --answers FILE...}",
		Short: "Take over the devices and policies of a Keylime installation",
		Long: `import reads the databases of Keylime's registrar and verifier (reg_data.sqlite and
cv_data.sqlite, or PostgreSQL), or answers of its management API, and brings to the verifier:

  devices     that Keylime's registrar had activated, with endorsement and attestation key,
              certificate and contact. They need not enrol again. Each is unverified until it
              sends a quote that its attestation key signed.
  policies    runtime and measured boot policies, under their names
  assignment  of devices that Keylime's verifier had: their policies and tpm_policy

A device that is there with the same keys, and a policy that is there, stay as they are, so
that import can be run again; each device and each policy is taken as a whole or not at
all. What was not taken is listed with the reason, and the exit code is 4 then. Secrets
(key shares, revocation keys) are not read. This needs the role admin.

--answers reads JSON objects as Keylime's servers answer, one after another: of
/v2.6/agents/ID at the registrar, /v2.6/agents/?bulk=true, /v2.6/allowlists/NAME and
/v2.6/mbpolicies/NAME at the verifier, or what keylime_tenant makes of them. They do not say
which device has which runtime policy: --policy names one for all.`,
		Example: `  attest fleet import --database reg_data.sqlite --database cv_data.sqlite --dry-run
  attest fleet import --database postgres://keylime@db/registrar --database postgres://keylime@db/verifier
  curl --cert client.crt --key client.key --cacert ca.crt https://registrar:8891/v2.6/agents/ID | attest fleet import --answers - --policy image`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if (len(f.databases) == 0) == (len(f.answers) == 0) {
				return errNothingToImport
			}
			return f.run(c, o)
		},
	}
	fs := c.Flags()
	fs.StringArrayVar(&f.databases, "database", nil, "SQLite `FILE` or postgres:// URL of Keylime's registrar or verifier; may be repeated")
	fs.StringArrayVar(&f.answers, "answers", nil, "`FILE` with answers of Keylime, or - for standard input; may be repeated")
	fs.StringVar(&f.policy, "policy", "", "runtime policy `NAME` of devices of which it is not known")
	fs.StringVar(&f.group, "group", "", "group `NAME` of the devices")
	fs.BoolVar(&f.dryRun, "dry-run", false, "say what would be done, and change nothing")
	fs.BoolVar(&f.json, "json", false, "print one JSON document (schema attest.fleet.import/v1)")
	return c
}

// importReport is the document of attest fleet import.
type importReport struct {
	Schema   string       `json:"schema"`
	DryRun   bool         `json:"dry_run"`
	Devices  importCounts `json:"devices"`
	Policies importCounts `json:"policies"`
	Assigned importCounts `json:"assigned"`
	Left     []importLeft `json:"not_imported"`
	Notes    []string     `json:"notes"`
}

// importCounts say what became of what there was.
type importCounts struct {
	Added int `json:"added"`
	There int `json:"there_already"`
	Left  int `json:"not_imported"`
}

// importLeft is what was not taken.
type importLeft struct {
	What string `json:"what"` // device, runtime policy, measured boot policy, assignment
	Name string `json:"name"`
	Why  string `json:"why"`
}

// importer brings a snapshot to a verifier.
type importer struct {
	*importFlags
	client *fleetClient
	have   *keylimedb.Snapshot
	report importReport
	usable map[string]bool // "runtime NAME", "mb NAME": what the verifier has now

	notPolled string // why the verifier cannot poll the device that came last
}

func (f *importFlags) run(c *cobra.Command, o *fleetFlags) error {
	have, err := f.read(c.Context(), c.InOrStdin())
	if err != nil {
		return err
	}
	client, err := o.dial(c.Context())
	if err != nil {
		return err
	}
	defer client.close()
	i := &importer{importFlags: f, client: client, have: have, usable: map[string]bool{},
		report: importReport{Schema: "attest.fleet.import/v1", DryRun: f.dryRun, Left: []importLeft{}, Notes: append([]string{}, have.Notes...)}}
	failed := i.all(c.Context()) // what was done before is reported all the same
	if err := i.report.print(c.OutOrStdout(), f.json); err != nil || failed != nil {
		return errors.Join(failed, err)
	}
	if n := len(i.report.Left); n > 0 {
		return &exitError{exitFindings, fmt.Errorf("%d of what Keylime has was not taken", n)}
	}
	return nil
}

func (f *importFlags) read(ctx context.Context, stdin io.Reader) (*keylimedb.Snapshot, error) {
	if len(f.databases) > 0 {
		return keylimedb.Read(ctx, f.databases...)
	}
	var files []io.Reader
	for _, path := range f.answers {
		if path == "-" {
			files = append(files, stdin)
			continue
		}
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		files = append(files, file)
	}
	return keylimedb.ReadAnswers(files...)
}

// all goes from what others need to what needs others. An error ends it: of the connection,
// or of who we are.
func (i *importer) all(ctx context.Context) error {
	for _, p := range i.have.Runtime {
		there, why := i.runtime(ctx, p)
		taken, err := i.count(&i.report.Policies, "runtime policy", p.Name, there, why)
		if err != nil {
			return err
		}
		i.usable["runtime "+p.Name] = taken
	}
	for _, p := range i.have.MB {
		there, why := i.boot(ctx, p)
		taken, err := i.count(&i.report.Policies, "measured boot policy", p.Name, there, why)
		if err != nil {
			return err
		}
		i.usable["mb "+p.Name] = taken
	}
	for n := range i.have.Agents {
		a := &i.have.Agents[n]
		there, why := i.device(ctx, a)
		taken, err := i.count(&i.report.Devices, "device", a.ID, there, why)
		if err == nil && taken && a.Verified {
			there, why = i.assign(ctx, a)
			_, err = i.count(&i.report.Assigned, "assignment", a.ID, there, why)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// count notes what became of one thing: it is there already, it was added, or it was not
// taken, for the reason why. A reason that is not its own is returned.
func (i *importer) count(counts *importCounts, what, name string, there bool, why error) (taken bool, err error) {
	var refused *refusedError
	var own *ownFault
	switch {
	case why == nil && there:
		counts.There++
	case why == nil:
		counts.Added++
	case !errors.As(why, &own) && (!errors.As(why, &refused) || refused.status >= 500 || errors.Is(why, errRole) || errors.Is(why, errRefusedWho)):
		return false, why
	default:
		counts.Left++
		i.report.Left = append(i.report.Left, importLeft{what, name, strings.TrimPrefix(why.Error(), "the verifier refuses: ")})
	}
	return why == nil, nil
}

// note adds a remark that is no reason to leave anything out.
func (i *importer) note(format string, args ...any) {
	i.report.Notes = append(i.report.Notes, fmt.Sprintf(format, args...))
}

// ownFault is a reason that lies in what is imported.
type ownFault struct{ why string }

func (e *ownFault) Error() string { return e.why }

// nameFault refuses a name that would lead a path elsewhere. Of others the verifier says what
// is wrong with them.
func nameFault(name string) error {
	if name == "" || name == "." || name == ".." {
		return &ownFault{"no policy can have this name here"}
	}
	return nil
}

// runtime puts a runtime policy, and makes it active. One of the name that is there stays.
func (i *importer) runtime(ctx context.Context, p keylimedb.Policy) (there bool, err error) {
	if err := nameFault(p.Name); err != nil {
		return false, err
	}
	if pinsPCRs(p.TPM) {
		i.note("runtime policy %s: Keylime enforces no tpm_policy beside it, and it was not taken", showText(p.Name))
	}
	var have fleetPolicies
	err = i.client.get(ctx, apiPath("policies", p.Name), nil, &have)
	if err == nil {
		sum := sha256.Sum256([]byte(p.Text))
		if !slices.ContainsFunc(have.Policies, func(v fleetPolicy) bool { return v.Digest == hex.EncodeToString(sum[:]) }) {
			i.note("runtime policy %s: the verifier has another one of this name, which stays", showText(p.Name))
		}
		return true, nil
	}
	if !errors.Is(err, errNoDevice) {
		return false, err
	}
	if !i.dryRun {
		_, err = i.client.do(ctx, http.MethodPost, apiPath("policies", p.Name)+"?activate=true", []byte(p.Text))
		return false, err
	}
	if !release.IsEnvelope([]byte(p.Text)) { // who signed it the verifier will say
		if _, err := appraise.Compile(appraise.Rules{}, appraise.Release{Name: "import", Keylime: []byte(p.Text)}); err != nil {
			return false, &ownFault{err.Error()}
		}
	}
	return false, nil
}

// pinsPCRs says whether a tpm_policy holds more than the mask that Keylime computes.
func pinsPCRs(text string) bool {
	var members map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &members) != nil {
		return text != ""
	}
	delete(members, "mask")
	return len(members) > 0
}

// keylime is the same verifier at its API of Keylime's shape.
func (i *importer) keylime() *fleetClient {
	c := *i.client
	c.base = strings.TrimSuffix(c.base, "/api/v1") + "/v2.6"
	return &c
}

// onVerifier says whether there is something at a path of that API.
func (i *importer) onVerifier(ctx context.Context, path string) (bool, error) {
	_, err := i.keylime().do(ctx, http.MethodGet, path, nil)
	var refused *refusedError
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// boot puts a measured boot policy. One of the name that is there stays.
func (i *importer) boot(ctx context.Context, p keylimedb.Policy) (there bool, err error) {
	if err := nameFault(p.Name); err != nil {
		return false, err
	}
	path := apiPath("mbpolicies", p.Name)
	if there, err := i.onVerifier(ctx, path); there || err != nil {
		return there, err
	}
	if !i.dryRun {
		return false, i.keylime().send(ctx, http.MethodPost, path, map[string]string{"mb_policy": p.Text}, nil)
	}
	if err := appraise.CheckRefstate([]byte(p.Text)); err != nil {
		return false, &ownFault{err.Error()}
	}
	return false, nil
}

// device enrols a device with the keys that Keylime's registrar proved.
func (i *importer) device(ctx context.Context, a *keylimedb.Agent) (there bool, err error) {
	switch {
	case evidence.CheckID(a.ID) != nil:
		return false, &ownFault{"this is no id of a device here: 1 to 80 letters, digits, points, dashes or underscores"}
	case a.AK == "" || a.EK == "":
		return false, &ownFault{"its keys are not known: give the registrar's database or answer too"}
	case !a.Active:
		return false, &ownFault{"Keylime's registrar has not activated it: it has to enrol"}
	}
	body := map[string]any{"source": "Keylime", "aik_tpm": a.AK, "ek_tpm": a.EK, "group": i.group, "dry_run": i.dryRun}
	for name, text := range map[string]string{"ekcert": a.EKCert, "ip": a.IP, "mtls_cert": a.TLSCert} {
		if text != "" {
			body[name] = text
		}
	}
	if a.Port != 0 {
		body["port"] = a.Port
	}
	var answer struct {
		Added     bool   `json:"added"`
		NotPolled string `json:"not_polled"`
	}
	err = i.client.send(ctx, http.MethodPost, apiPath("devices", a.ID, "import"), body, &answer)
	i.notPolled = answer.NotPolled
	return !answer.Added, err
}

// assign puts a device under judgement, as keylime_tenant -c add does.
func (i *importer) assign(ctx context.Context, a *keylimedb.Agent) (there bool, err error) {
	path := apiPath("agents", a.ID)
	if there, err := i.onVerifier(ctx, path); there || err != nil {
		return there, err
	}
	runtime := a.Runtime
	if runtime == "" {
		runtime = i.policy
	} else if !i.usable["runtime "+runtime] {
		return false, &ownFault{"its runtime policy " + runtime + " was not taken"}
	}
	if a.MB != "" && !i.usable["mb "+a.MB] {
		return false, &ownFault{"its measured boot policy " + a.MB + " was not taken"}
	}
	if runtime == "" {
		i.note("device %s: it has no runtime policy, and is watched and never trusted", showText(a.ID))
	}
	if i.dryRun && i.notPolled != "" {
		return false, &ownFault{i.notPolled}
	}
	if i.dryRun {
		return false, nil
	}
	body := map[string]any{"ak_tpm": a.AK, "tpm_policy": a.TPM, "metadata": a.Metadata, "runtime_policy_name": runtime, "mb_policy_name": a.MB,
		"accept_tpm_hash_algs":       otherwise(a.Hashes, "sha256", "sha384", "sha512"),
		"accept_tpm_encryption_algs": otherwise(a.Encs, "rsa", "ecc"), "accept_tpm_signing_algs": otherwise(a.Signs, "rsassa", "rsapss", "ecdsa")}
	if a.IP != "" && a.Port != 0 {
		body["cloudagent_ip"], body["cloudagent_port"] = a.IP, a.Port
	}
	if a.TLSCert != "" {
		body["mtls_cert"] = a.TLSCert
	}
	return false, i.keylime().send(ctx, http.MethodPost, path, body, nil)
}

func otherwise(list []string, all ...string) []string {
	if len(list) == 0 {
		return all
	}
	return list
}

func (r *importReport) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	verb := "added"
	if r.DryRun {
		verb = "to add"
	}
	for _, line := range []struct {
		what string
		importCounts
	}{{"policies", r.Policies}, {"devices", r.Devices}, {"assignments", r.Assigned}} {
		fmt.Fprintf(w, "%-12s %d %s, %d there already, %d not imported\n", line.what, line.Added, verb, line.There, line.Left)
	}
	for _, l := range r.Left {
		fmt.Fprintf(w, "not imported: %s %s: %s\n", l.What, showText(l.Name), showText(l.Why))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", showText(n))
	}
	return nil
}
