package oetest

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The tests of this file need BitBake's own library and nothing of OE-core: the one that
// Python finds, or that of the checkouts.

// parsed is what scripts/oe-test.d/library prints.
type parsed struct {
	Said    []string
	Error   string
	Skipped string            // why, "" if it was not
	Image   map[string]string `json:"do_image"` // its flags
}

// library is BitBake's, for one recipe.
type library struct {
	python []string // the command and its environment
	work   string
}

// eachLibrary runs a test with each library of BitBake that is on this machine.
func eachLibrary(t *testing.T, test func(t *testing.T, l library)) {
	if testing.Short() {
		t.Skip("runs BitBake; not with -short")
	}
	need(t, "python3")
	dirs := map[string]string{}
	for _, release := range releases {
		out, err := exec.Command(filepath.Join(repository(t), "scripts/oe-test"), "checkouts", "--cached", release).Output()
		if err == nil {
			dirs[release] = filepath.Join(strings.TrimSpace(string(out)), "bitbake/lib")
		}
	}
	if exec.Command("python3", "-c", "import bb.parse").Run() == nil {
		dirs["installed"] = ""
	}
	if len(dirs) == 0 {
		t.Skip("no library of BitBake: neither does Python find bb, nor are there checkouts; scripts/oe-test makes them")
	}
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			work := t.TempDir()
			env := []string{"env", "PATH=" + filepath.Dir(attest(t)) + ":" + os.Getenv("PATH")}
			if dir != "" {
				env = append(env, "PYTHONPATH="+dir)
			}
			test(t, library{append(env, "python3", "-B"), work})
		})
	}
}

// parse reads a recipe, and runs functions of it.
func (l library) parse(t *testing.T, text string, functions ...string) parsed {
	t.Helper()
	recipe := filepath.Join(l.work, "image_1.0.bb")
	if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{}, l.python...), filepath.Join(repository(t), "scripts/oe-test.d/library/library.py"), repository(t), l.work, recipe)
	args = append(args, functions...)
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, &stderr)
	}
	var p parsed
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, out, &stderr)
	}
	return p
}

// settings are those of an image that debug keys sign.
func settings(t *testing.T) string {
	return "ATTEST_KEY_DIR = \"" + filepath.Join(repository(t), "keys-debug") + "\"\nATTEST_ALLOW_DEBUG_KEYS = \"1\"\n"
}

// TestClassesParse has BitBake's parser read each class, in a recipe of the kind that inherits it.
func TestClassesParse(t *testing.T) {
	kinds := map[string]string{"attest-image": "image", "attest-kernel": "kernel", "attest-modsign": "kernel attest-kernel", "attest-package": "package"}
	eachLibrary(t, func(t *testing.T, l library) {
		classes, err := filepath.Glob(filepath.Join(repository(t), "classes/*.bbclass"))
		if err != nil || len(classes) == 0 {
			t.Fatalf("no classes: %v", err)
		}
		for _, path := range classes {
			class := strings.TrimSuffix(filepath.Base(path), ".bbclass")
			if p := l.parse(t, settings(t)+"inherit "+kinds[class]+" "+class+"\n"); p.Error+p.Skipped != "" {
				t.Errorf("%s: %s%s\n%s", class, p.Error, p.Skipped, strings.Join(p.Said, "\n"))
			}
		}
	})
}

// TestSignFunction runs the function that signs an image, as do_image does.
func TestSignFunction(t *testing.T) {
	need(t, "evmctl")
	if os.Getuid() != 0 {
		t.Skip("labels need root here; the images that bitbake builds are signed without")
	}
	eachLibrary(t, func(t *testing.T, l library) {
		root := filepath.Join(l.work, "tmp/work/image/rootfs")
		keys := filepath.Join(repository(t), "keys-debug")
		certificate, err := os.ReadFile(filepath.Join(keys, "ima.der"))
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"etc/keys/x509_ima.der": string(certificate), "bin/true": "#!/bin/sh\n", "var/lib/state": "1", "etc/with space": "x", "etc/empty": ""} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		p := l.parse(t, settings(t)+"inherit image attest-image\n", "attest_sign_image")
		if p.Error+p.Skipped != "" {
			t.Fatalf("%s%s\n%s", p.Error, p.Skipped, strings.Join(p.Said, "\n"))
		}
		if list := checkLabels(t, root, filepath.Join(keys, "ima.der"), everySigned); len(list) != 5 {
			t.Errorf("%d files are labelled, want 5", len(list))
		}
		command(t, attest(t), "verify", root, "--ca", filepath.Join(keys, "root.crt"), "--all", "--manifest", filepath.Join(l.work, "tmp/work/image/deploy/image.attest.json"))

		flags := p.Image
		if words := strings.Fields(flags["postfuncs"]); len(words) == 0 || words[len(words)-1] != "attest_sign_image" {
			t.Errorf("do_image[postfuncs] = %q, want attest_sign_image to be the last", flags["postfuncs"])
		}
		if want := filepath.Join(keys, "ima.crt") + ":True"; !strings.Contains(flags["file-checksums"], want) {
			t.Errorf("do_image[file-checksums] = %q, want %s", flags["file-checksums"], want)
		}
		if !strings.Contains(flags["depends"], "attest-native:do_populate_sysroot") {
			t.Errorf("do_image[depends] = %q, want attest-native", flags["depends"])
		}
	})
}

// TestSettings has the parser refuse what no build can be made of, and name what mends it.
func TestSettings(t *testing.T) {
	keys := filepath.Join(repository(t), "keys-debug")
	agent := settings(t) + "ATTEST_VERIFIER_URL = \"https://attest.example.com:8881\"\nATTEST_VERIFIER_CA = \"" + keys + "/root.crt\"\n"
	notices := agent + "ATTEST_NOTICE_CA = \"" + keys + "/root.crt\"\n"
	cases := []struct{ name, conf, want string }{
		{"no key", ``, `ATTEST_KEY_DIR = "`},
		{"no folder", `ATTEST_KEY_DIR = "/nowhere/keys"`, `there is no file /nowhere/keys/ima.key`},
		{"relative path", `ATTEST_KEY_DIR = "keys"`, `ATTEST_KEY_DIR = "keys": give a whole path`},
		{"relative key", settings(t) + `ATTEST_KEY = "ima.key"`, `ATTEST_KEY = "ima.key": give a whole path`},
		{"a letter too few", `ATTEST_KEYDIR = "` + keys + `"`, `there is no variable ATTEST_KEYDIR; did you mean ATTEST_KEY_DIR`},
		{"true for 1", settings(t) + `ATTEST_ALLOW_DEBUG_KEYS = "yes"`, `ATTEST_ALLOW_DEBUG_KEYS = "yes": use "1" or "0"`},
		{"no distro feature", settings(t) + `DISTRO_FEATURES = ""`, `DISTRO_FEATURES:append = " integrity"`},
		{"policy misspelt", settings(t) + `ATTEST_POLICY = "appraise-executable"`, `did you mean ATTEST_POLICY = "appraise-executables"`},
		{"relative path in the image", settings(t) + `ATTEST_MANIFEST = "image.attest.json"`, `ATTEST_MANIFEST = "image.attest.json": give a whole path in the image`},
		{"no rules", settings(t) + `ATTEST_CONFIG = "/nowhere/attest.toml"`, `ATTEST_CONFIG: there is no file /nowhere/attest.toml`},
		{"class of meta-integrity", settings(t) + `inherit ima-evm-rootfs`, `ima-evm-rootfs of meta-integrity is inherited, too`},
		{"verifier without TLS", agent + `ATTEST_VERIFIER_URL = "http://attest.example.com"`, `ATTEST_VERIFIER_URL = "http://attest.example.com": give https://HOST:PORT`},
		{"verifier whom nobody vouches for", agent + `ATTEST_VERIFIER_CA = ""`, `ATTEST_VERIFIER_CA is not set: the CA of the certificate of https://attest.example.com:8881`},
		{"CA of the verifier that is not there", agent + `ATTEST_VERIFIER_CA = "/nowhere/ca.crt"`, `ATTEST_VERIFIER_CA: there is no file /nowhere/ca.crt`},
		{"registrar that is none", agent + `ATTEST_REGISTRAR_URL = "registrar:8891"`, `ATTEST_REGISTRAR_URL = "registrar:8891": give https://HOST:PORT`},
		{"registrar alone", agent + "ATTEST_REGISTRAR_URL = \"https://r:8891\"\n" + `ATTEST_VERIFIER_URL = ""`, `ATTEST_REGISTRAR_URL alone is for devices that are polled`},
		{"actions without an agent", settings(t) + `ATTEST_ACTIONS = "isolate-peer"`, `ATTEST_ACTIONS: no verifier is named`},
		{"secrets without an agent", settings(t) + `ATTEST_SECRETS_EXECUTE = "1"`, `ATTEST_SECRETS_EXECUTE: no verifier is named`},
		{"certificate of notices that is not there", agent + `ATTEST_NOTICE_CA = "/nowhere/notices.crt"`, `ATTEST_NOTICE_CA: there is no file /nowhere/notices.crt`},
		{"actions and nobody who signs notices", agent + `ATTEST_ACTIONS = "isolate-peer"`, `ATTEST_NOTICE_CA is not set, without which ATTEST_ACTIONS = "isolate-peer" has no effect`},
		{"action misspelt", notices + `ATTEST_ACTIONS = "isolate-peers"`, `there is no action isolate-peers; did you mean isolate-peer? (actions: isolate-peer remove-ssh-keys; others by their whole path)`},
		{"action that is not there", notices + `ATTEST_ACTIONS = "/nowhere/stop-pump"`, `ATTEST_ACTIONS: there is no file /nowhere/stop-pump`},
		{"action by a relative path", notices + `ATTEST_ACTIONS = "actions/stop-pump"`, `ATTEST_ACTIONS = "actions/stop-pump": give a whole path`},
		{"two actions of one name", notices + `ATTEST_ACTIONS = "isolate-peer ` + filepath.Join(repository(t), "tools/attest-agent/actions/isolate-peer") + `"`, `each needs a name of its own`},
		{"true for 1 of secrets", agent + `ATTEST_SECRETS_EXECUTE = "true"`, `ATTEST_SECRETS_EXECUTE = "true": use "1" or "0"`},
		{"port without an address", agent + "ATTEST_LISTEN_CA = \"" + keys + "/root.crt\"\n" + `ATTEST_LISTEN = ":9002"`, `ATTEST_LISTEN = ":9002": give IP:PORT, as 0.0.0.0:9002`},
		{"port for anybody", agent + `ATTEST_LISTEN = "0.0.0.0:9002"`, `ATTEST_LISTEN_CA is not set, without which ATTEST_LISTEN = "0.0.0.0:9002" has no effect`},
		{"squashfs without labels", settings(t) + "IMAGE_FSTYPES = \"squashfs\"\n" + `EXTRA_IMAGECMD = "-no-xattrs"`, `-no-xattrs`},
	}
	eachLibrary(t, func(t *testing.T, l library) {
		for _, c := range cases {
			if p := l.parse(t, c.conf+"\ninherit image attest-image\n"); p.Error != "" || !strings.Contains(p.Skipped, c.want) {
				t.Errorf("%s: got %q %q, want a recipe that is skipped: %q", c.name, p.Error, p.Skipped, c.want)
			}
		}
	})
}
