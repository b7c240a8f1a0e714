package oetest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMistakes has a user make one mistake at a time. The build must stop and say which one
// it is, and nothing else. Those that the variables alone tell are in TestSettings, too.
func TestMistakes(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		b := newBuild(t, release)
		dir := t.TempDir()
		keys, other := filepath.Join(dir, "keys"), filepath.Join(dir, "other")
		makeKeys(t, keys)
		makeKeys(t, other)
		write := func(name, text string, mode os.FileMode) string {
			t.Helper()
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
			return path
		}
		ours := threeLines(keys)
		for i, c := range []struct{ name, conf, want string }{
			{"no key", threeLines(""), "ATTEST_KEY_DIR = \""},
			{"variable misspelt", ours + set("ATTEST_POLICIES", "measure-only"), "did you mean ATTEST_POLICY"},
			{"debug key without consent", threeLines(filepath.Join(b.repo, "keys-debug")), "ATTEST_ALLOW_DEBUG_KEYS = \"1\""},
			{"unreadable key", ours + set("ATTEST_KEY", write("unreadable.key", "x", 0)), "unreadable.key: permission denied"},
			{"no such file", threeLines("/nowhere"), "there is no file /nowhere/ima.key"},
			{"not a key", ours + set("ATTEST_KEY", write("garbage.key", "x\n", 0o600)), "garbage.key"},
			{"key of another pair", ours + set("ATTEST_KEY", other+"/ima.key"), "keys/ima.crt: private key does not belong to the certificate"},
			{"certificate of another CA", ours + set("ATTEST_CA", other+"/root.crt"), "keys/ima.crt: a kernel with this CA does not load the certificate"},
			{"expired certificate", ours + expired(t, keys, dir), "expired.crt: certificate has expired"},
			{"rules that are none", ours + set("ATTEST_CONFIG", write("rules.toml", "[[rule]]\npath = \"/var/**\"\naktion = \"skip\"\n", 0o644)), "rules.toml:3"},
		} {
			// The first ones with what a user types, in either release; the rest with the task that finds them.
			args := []string{"bitbake", "lab-image"}
			if i > 3 && release == "scarthgap" {
				continue
			} else if i > 3 {
				args = append(args, "-c", "attest_check")
			}
			t.Run(c.name, func(t *testing.T) {
				b.configure(t, c.conf+labImage)
				r := b.shell(t, args...)
				// do_attest_check looks before hours of building; where do_image has nothing to wait for,
				// it says the same at the same time.
				others := slices.DeleteFunc(r.errors(), func(e string) bool { return strings.Contains(e, c.want) })
				t.Log(strings.Join(r.errors(), "\n"))
				if r.code == 0 || len(r.errors()) == 0 || len(others) > 0 {
					t.Errorf("exit code %d, want each error to say %q, others are %q\n%s", r.code, c.want, others, r.out)
				}
			})
		}
		t.Run("no room in ext4", func(t *testing.T) {
			b.configure(t, ours+set("IMAGE_FSTYPES", "ext4")+set("IMAGE_OVERHEAD_FACTOR", "0.5")+set("IMAGE_ROOTFS_SIZE", "1000"))
			r := b.shell(t, "bitbake", "lab-image")
			if errs := r.errors(); r.code == 0 || len(errs) != 1 || !strings.Contains(errs[0], "raise IMAGE_OVERHEAD_FACTOR") {
				t.Errorf("exit code %d, errors %q\n%s", r.code, errs, r.out)
			}
		})
		t.Run("cpio keeps no labels", func(t *testing.T) {
			b.configure(t, ours+set("IMAGE_FSTYPES", "ext4 cpio.gz"))
			if r := b.bitbake(t, "lab-image", "-c", "attest_check"); !strings.Contains(r.out, "lab-image-qemux86-64.rootfs.cpio.gz holds no labels") {
				t.Errorf("no warning:\n%s", r.out)
			}
		})
	})
}

// set is a line of local.conf.
func set(name, value string) string { return name + " = \"" + value + "\"\n" }

// expired issues a certificate whose time is over to a key in keys.
func expired(t *testing.T, keys, dir string) string {
	t.Helper()
	crt := filepath.Join(dir, "expired.crt")
	csr := filepath.Join(dir, "expired.csr")
	extensions := filepath.Join(dir, "extensions")
	text := "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
	if err := os.WriteFile(extensions, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "openssl", "req", "-new", "-key", filepath.Join(keys, "ima.key"), "-subj", "/CN=expired", "-out", csr)
	command(t, "openssl", "x509", "-req", "-in", csr, "-CA", filepath.Join(keys, "root.crt"), "-CAkey", filepath.Join(keys, "root.key"),
		"-CAcreateserial", "-days", "-1", "-extfile", extensions, "-out", crt)
	return set("ATTEST_CERT", crt)
}
