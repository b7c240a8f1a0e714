package main

import (
	"crypto/md5"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// licenseFile is what the text of a licence is usually called. LICENSE.docs is of documents.
var licenseFile = regexp.MustCompile(`(?i)^(licen[sc]e|copying)(\.txt|\.md)?$`)

// licensesInclude lists the licences of packages whose modules are unpacked in cache. Of a package
// counts the nearest text: in its folder, or else in one above it, up to its module's.
func licensesInclude(cache string, packages []goPackage) ([]byte, error) {
	var names, files []string
	seen := map[string]bool{}
	for _, p := range packages {
		if p.Module == nil || p.Module.Main || seen[p.Dir] {
			continue
		}
		seen[p.Dir] = true
		path, err := nearestLicense(p.Dir, p.Module.Dir)
		if err != nil {
			return nil, err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		name, err := licenseName(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		rel, err := filepath.Rel(cache, path)
		if err != nil {
			return nil, err
		}
		names = append(names, strings.Split(name, " & ")...)
		files = append(files, fmt.Sprintf("file://pkg/mod/%s;md5=%x;spdx=%s", filepath.ToSlash(rel), md5.Sum(text), url.QueryEscape(name)))
	}
	slices.Sort(names)
	license := "LICENSE += \"& " + strings.Join(slices.Compact(names), " & ") + "\"\n\n"
	sums := strings.TrimPrefix(string(list("LIC_FILES_CHKSUM", files)), notice)
	return []byte(notice + license + sums), nil
}

func nearestLicense(dir, top string) (string, error) {
	for at := dir; ; at = filepath.Dir(at) {
		entries, err := os.ReadDir(at)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			if licenseFile.MatchString(e.Name()) {
				return filepath.Join(at, e.Name()), nil
			}
		}
		if at == top {
			return "", fmt.Errorf("%s: no licence, up to %s", dir, top)
		}
	}
}

// minCoverage is how much of a text must be of known licences, in percent: the rest is names.
const minCoverage = 75

// licenseName returns the SPDX identifiers of a text's licences: "MIT", "Apache-2.0 & MIT".
func licenseName(text []byte) (string, error) {
	cover := licensecheck.Scan(text)
	var names []string
	for _, m := range cover.Match {
		if !m.IsURL {
			names = append(names, m.ID)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 || cover.Percent < minCoverage {
		return "", fmt.Errorf("not a known licence: %.0f %% are of %q", cover.Percent, names)
	}
	return strings.Join(names, " & "), nil
}
