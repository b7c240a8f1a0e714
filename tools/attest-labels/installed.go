package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meta-attest/meta-attest/tools/internal/labellist"
)

// database is where a package manager keeps control files, as PACKAGE.NAME.
type database struct {
	info  string // below the root
	admin string // of dpkg, for its diversions; "" for opkg
}

var databases = []database{{"var/lib/dpkg/info", "var/lib/dpkg"}, {opkgInfo, ""}}

const usage = `usage: attest-labels check [--root DIR] [--json] [PACKAGE...]
       attest-labels apply [--root DIR] [--json] [PACKAGE...]

check compares the labels of installed files with those that their packages brought;
apply also sets those that are missing. Without PACKAGE: of all packages. It does not touch
a file that is not what was signed. Exit codes: 0 good, 1 usage or I/O, 4 findings.

  attest-labels check
  attest-labels apply libc6
`

// finding is something wrong with a package.
type finding struct {
	Package string `json:"package"`
	Message string `json:"message"`
}

// document is what --json prints.
type document struct {
	Schema   string    `json:"schema"`
	Packages int       `json:"packages"`
	Findings []finding `json:"findings"`
}

// command is check or apply.
func command(args []string) error {
	f := flag.NewFlagSet("attest-labels", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	root := f.String("root", "/", "")
	asJSON := f.Bool("json", false, "")
	if len(args) == 0 {
		args = []string{"--help"}
	}
	verb := args[0]
	if verb == "check" || verb == "apply" {
		args = args[1:]
	} else if !strings.HasPrefix(verb, "-") {
		return fmt.Errorf("verb %q is unknown: use check or apply", verb)
	}
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return nil
	} else if err != nil {
		return err
	}
	installed, err := findPackages(*root, f.Args())
	if err != nil {
		return err
	}
	d := document{"attest.labels/v1", len(installed), []finding{}}
	for _, p := range installed {
		messages, err := p.inspect(*root, verb == "apply")
		if err != nil {
			return err
		}
		for _, text := range messages {
			d.Findings = append(d.Findings, finding{p.name, text})
		}
	}
	return d.print(*asJSON)
}

// print ends a command.
func (d document) print(asJSON bool) error {
	if asJSON {
		if err := json.NewEncoder(os.Stdout).Encode(d); err != nil {
			return err
		}
	} else {
		for _, f := range d.Findings {
			fmt.Printf("%s: %s\n", f.Package, f.Message)
		}
		fmt.Printf("%d packages, %d findings\n", d.Packages, len(d.Findings))
	}
	if len(d.Findings) > 0 {
		return errFindings
	}
	return nil
}

// installedPackage is one that a package manager knows.
type installedPackage struct {
	database
	name string // with ":ARCH", where dpkg has several
}

// findPackages looks packages up, or returns all, sorted.
func findPackages(root string, names []string) ([]installedPackage, error) {
	var found []installedPackage
	for _, db := range databases {
		// Each installed package has a list of its files.
		lists, err := filepath.Glob(filepath.Join(root, db.info, "*.list"))
		if err != nil {
			return nil, err
		}
		for _, list := range lists {
			name := strings.TrimSuffix(filepath.Base(list), ".list")
			bare, _, _ := strings.Cut(name, ":")
			if len(names) == 0 || slices.Contains(names, name) || slices.Contains(names, bare) {
				found = append(found, installedPackage{db, name})
			}
		}
	}
	if len(found)+len(names) == 0 {
		return nil, fmt.Errorf("neither dpkg nor opkg has installed anything in %s", root)
	}
	for _, name := range names {
		if !slices.ContainsFunc(found, func(p installedPackage) bool { return p.name == name || strings.HasPrefix(p.name, name+":") }) {
			return nil, fmt.Errorf("package %s is not installed", name)
		}
	}
	return found, nil
}

// maxConffiles bounds a list of conffiles in bytes.
const maxConffiles = 1 << 20

// conffiles are those that an administrator may change, with their paths from the root. The list
// has to have them as they are: with a file of the package's among them nobody would miss it.
func (p installedPackage) conffiles(t *tree, control map[string]labellist.Entry) (map[string]bool, error) {
	path := p.info + "/" + p.name + "." + labellist.Conffiles
	f, err := t.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := readAll(f, maxConffiles)
	if err != nil {
		return nil, err
	}
	if err := t.verifyContent(bytes.NewReader(text), control[labellist.Conffiles].IMA); err != nil {
		return nil, fmt.Errorf("%q: %w: %w", path, errNotAuthentic, err)
	}
	files := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		files[strings.TrimPrefix(strings.TrimSpace(line), "/")] = true
	}
	return files, nil
}

// targets are the maintainer scripts and the files of an installed package that its list has
// labels for. Conffiles that were changed are none.
func (p installedPackage) targets(t *tree, root string) (scripts, files []target, err error) {
	text, err := readFile(filepath.Join(root, p.info, p.name+"."+labellist.ControlFile), labellist.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s: %w", p.name, errUnsigned)
	}
	if err != nil {
		return nil, nil, err
	}
	entries, err := t.trust.open(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p.name, err)
	}
	control, ofFiles := split(entries)
	scripts, err = t.scriptTargets(p.info+"/"+p.name+".", control)
	if err != nil {
		return nil, nil, err
	}
	var d diversions
	if p.admin != "" {
		text, err := readFile(filepath.Join(root, p.admin, "diversions"), maxDiversions)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		bare, _, _ := strings.Cut(p.name, ":")
		if d, err = parseDiversions(text, bare); err != nil {
			return nil, nil, err
		}
	}
	conffiles, err := p.conffiles(t, control)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries { // in their order
		if _, ok := ofFiles[e.Path]; !ok || e.IMA == nil {
			continue
		}
		g := target{d.name(e.Path), e}
		if conffiles[e.Path] {
			if _, err := t.verify(g); errors.Is(err, errNotAuthentic) || errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		files = append(files, g)
	}
	return scripts, files, nil
}

// inspect says what is wrong with the labels of an installed package, and sets those that are
// missing where told to.
func (p installedPackage) inspect(root string, apply bool) (findings []string, err error) {
	trust, err := loadTrust(filepath.Join(root, keysDir))
	if err != nil {
		return nil, err
	}
	t, err := openTree(root, trust)
	if err != nil {
		return nil, err
	}
	defer t.close()
	scripts, files, err := p.targets(t, root)
	if errors.Is(err, errUnsigned) || errors.Is(err, errNotAuthentic) {
		return []string{err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, g := range append(scripts, files...) {
		state, err := t.verify(g)
		switch {
		case errors.Is(err, errNotAuthentic):
			findings = append(findings, fmt.Sprintf("%v: it is not the file that was signed", err))
		case errors.Is(err, fs.ErrNotExist):
			findings = append(findings, fmt.Sprintf("%q: missing", g.path))
		case err != nil:
			return findings, err
		case state == right:
		case apply:
			if err := t.set(g); err != nil {
				return findings, err
			}
		default:
			findings = append(findings, fmt.Sprintf("%q: has not its label", g.path))
		}
	}
	return findings, nil
}

// labelPackage labels all files of an installed package, or none. Its maintainer scripts get
// theirs in any case: they are what replaces a package whose files do not hold.
func labelPackage(root string, db database, name string) error {
	trust, err := loadTrust(keysDir)
	if err != nil {
		return err
	}
	t, err := openTree(root, trust)
	if err != nil {
		return err
	}
	defer t.close()
	scripts, files, err := installedPackage{db, name}.targets(t, root)
	if err == nil {
		err = t.label(scripts)
	}
	if err == nil {
		err = t.label(files)
	}
	return err
}
