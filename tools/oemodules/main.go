// Oemodules writes the includes of recipes that say which Go modules the programs of the
// recipe are made of, in the form that OE-core's go-mod-update-modules.bbclass gives them,
// and without a build. In recipes/NAME:
//
//	NAME-go-mods.inc   SRC_URI: gomod://MODULE;version=VERSION;sha256sum=SUM of the zip
//	NAME-licenses.inc  LICENSE and LIC_FILES_CHKSUM
//
// Which modules those are is what the go command asks for when it lists the programs'
// packages with an empty cache. With --check nothing is written, and an include that
// is not what would be written is an error. --downloads DIR fills DIR, the DL_DIR of a build
// that is to have no network or knows no module proxy.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	check := flag.Bool("check", false, "write nothing; fail if an include is out of date")
	downloads := flag.String("downloads", "", "copy the modules to `DIR`, as BitBake's DL_DIR has them, and check the includes")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: scripts/oe-modules [--check | --downloads DIR]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(1)
	}
	if err := run(".", *downloads, *check || *downloads != ""); err != nil {
		fmt.Fprintf(os.Stderr, "oe-modules: error: %v\n", err)
		os.Exit(1)
	}
}

// recipes are the folders below recipes/ of those that compile Go programs.
var recipes = []string{"attest", "attest-agent"}

// run makes or checks the includes of the repository at root.
func run(root, downloads string, check bool) error {
	for _, recipe := range recipes {
		includes, err := generate(root, recipe, downloads)
		if err != nil {
			return err
		}
		for name, want := range includes {
			if err := put(filepath.Join(root, "recipes", recipe, name), want, check); err != nil {
				return err
			}
		}
	}
	return nil
}

// put writes an include, or only checks it.
func put(path string, want []byte, check bool) error {
	if !check {
		return os.WriteFile(path, want, 0o644)
	}
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		return fmt.Errorf("%s is not what go.mod, go.sum and the imports make it: run scripts/oe-modules", path)
	}
	return nil
}

// generate returns the text of each include by its name, and fills downloads, unless that is "".
func generate(root, recipe, downloads string) (map[string][]byte, error) {
	programs, tags, err := programsOf(filepath.Join(root, "recipes", recipe))
	if err != nil {
		return nil, err
	}
	cache, err := os.MkdirTemp("", "oe-modules-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	packages, err := listPackages(root, cache, tags, programs)
	if err != nil {
		return nil, err
	}
	sources, err := findSources(filepath.Join(cache, "cache", "download"))
	if err != nil {
		return nil, err
	}
	if downloads != "" {
		if err := copySources(sources, downloads); err != nil {
			return nil, err
		}
	}
	mods, err := sourcesInclude(sources)
	if err != nil {
		return nil, err
	}
	licenses, err := licensesInclude(cache, packages)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{recipe + "-go-mods.inc": mods, recipe + "-licenses.inc": licenses}, nil
}

var (
	program = regexp.MustCompile(`\$\{GO_IMPORT\}/(tools/[a-z-]+)`)
	goTags  = regexp.MustCompile(`(?m)^GO_TAGS = "([a-z0-9 ]*)"$`)
)

// programsOf reads from the recipes in a folder which packages they install, and with which
// build tags at least: those that depend on settings are left out, and may need less.
func programsOf(dir string) (programs, tags []string, err error) {
	recipes, err := filepath.Glob(filepath.Join(dir, "*.bb"))
	if err != nil {
		return nil, nil, err
	}
	for _, recipe := range recipes {
		text, err := os.ReadFile(recipe)
		if err != nil {
			return nil, nil, err
		}
		for _, m := range program.FindAllSubmatch(text, -1) {
			programs = append(programs, "./"+string(m[1]))
		}
		for _, m := range goTags.FindAllSubmatch(text, -1) {
			tags = append(tags, strings.Fields(string(m[1]))...)
		}
	}
	if len(programs) == 0 {
		return nil, nil, fmt.Errorf("no ${GO_IMPORT}/tools/NAME in %s/*.bb", dir)
	}
	return programs, tags, nil
}

const notice = "# Made by scripts/oe-modules: it is made again, not edited.\n\n"
