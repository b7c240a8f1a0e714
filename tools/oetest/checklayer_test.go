package oetest

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// checkLayerTests are those of yocto-check-layer that a layer of software without patches has
// to pass. test_security is of wrynose.
var checkLayerTests = []string{
	"test_layerseries_compat", "test_parse", "test_readme", "test_security", "test_show_environment", "test_signatures",
	"test_world", "test_world_inherit_class",
}

var checkLayerResult = regexp.MustCompile(`(?m)^INFO: (test_\w+) .*\n(?:[^I].*\n)*INFO:  \.\.\. (.*)$`)

// TestCheckLayer runs the program that decides what is Yocto Project Compatible.
func TestCheckLayer(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		b := newBuild(t, release, "--no-layer")
		r := b.shell(t, "yocto-check-layer", "--no-auto-dependency", filepath.Join(b.repo, "meta-attest"))
		if r.code != 0 {
			t.Errorf("exit code %d\n%s", r.code, r.out)
		}
		var passed []string
		for _, m := range checkLayerResult.FindAllStringSubmatch(r.out, -1) {
			t.Logf("%s: %s", m[1], m[2])
			if m[2] == "ok" {
				passed = append(passed, m[1])
			}
		}
		for _, name := range checkLayerTests {
			if !slices.Contains(passed, name) && (name != "test_security" || release != "scarthgap") {
				t.Errorf("%s has not passed", name)
			}
		}
		if t.Failed() {
			t.Log(r.out)
		}
	})
}

// TestInert has the layer added and "integrity" left out: nothing of the layer runs, and
// nothing is labelled.
func TestInert(t *testing.T) {
	need(t, "tar")
	b := newBuild(t, "scarthgap")
	b.configure(t, "IMAGE_FSTYPES = \"tar.gz\"\n")
	for _, task := range b.bitbake(t, "lab-image").tasks() {
		if strings.Contains(task, "attest") {
			t.Errorf("%s ran", task)
		}
	}
	for path, l := range labels(t, open(t, b.image("lab-image", ".tar.gz"))) {
		if l != nil {
			t.Errorf("%s has a label: %x", path, []byte(l))
		}
	}
}
