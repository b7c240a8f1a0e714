package kconfig

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func parse(t *testing.T, file, text string) []Setting {
	t.Helper()
	settings, err := Parse(file, text)
	if err != nil {
		t.Fatal(err)
	}
	return settings
}

const config = "CONFIG_IMA=y\nCONFIG_DUMMY=m\nCONFIG_PATH=\"/etc/x y\"\nCONFIG_IDX=10\n# CONFIG_OFF is not set\n"

func TestCheck(t *testing.T) {
	for _, c := range []struct{ name, fragment, want string }{
		{"all there", "# comment\n\n" + config, ""},
		{"absent is off", "# CONFIG_UNKNOWN is not set\nCONFIG_EMPTY=\"\"\nCONFIG_OFF=n\n", ""},
		{"dropped", "CONFIG_IMA=y\nCONFIG_EVM=y\n", "CONFIG_EVM=y became n"},
		{"switched off", "CONFIG_OFF=y\n", "CONFIG_OFF=y became n"},
		{"switched on", "# CONFIG_IMA is not set\n", "CONFIG_IMA=n became y"},
		{"a module instead", "CONFIG_DUMMY=y\n", "CONFIG_DUMMY=y became m"},
		{"another number", "CONFIG_IDX=1\n", "CONFIG_IDX=1 became 10"},
		{"another string", "CONFIG_PATH=\"/etc/x z\"\n", "CONFIG_PATH=\"/etc/x z\" became \"/etc/x y\""},
		{"the last line counts", "CONFIG_IMA=n\nCONFIG_IMA=y\n", ""},
		{"a prefix is another symbol", "CONFIG_IM=y\n", "CONFIG_IM=y became n"},
		{"lines end as elsewhere, or not at all", "CONFIG_IMA=y\r\nCONFIG_OFF=y", "CONFIG_OFF=y became n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, f := range Check(parse(t, "fragment", c.fragment), NewConfig(parse(t, "config", config))) {
				got = append(got, f.Want.String()+" became "+f.Got)
			}
			if text := strings.Join(got, "\n"); text != c.want {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"CONFIG_IMA=y\nIMA=y\n", "f:2: not a line of a configuration: IMA=y"},
		{"CONFIG_IMA = y\n", "f:1: not a line of a configuration: CONFIG_IMA = y"},
		{" CONFIG_IMA=y\n", "f:1: not a line of a configuration:  CONFIG_IMA=y"},
		{"", "f: no symbol of Kconfig in it"},
		{"# x\n", "f: no symbol of Kconfig in it"},
	} {
		settings, err := Parse("f", c.text)
		if err == nil || err.Error() != c.want || settings != nil {
			t.Errorf("%q: got %v, %v, want %s", c.text, settings, err, c.want)
		}
	}
	if _, err := Parse("f", ""); !errors.Is(err, ErrEmpty) {
		t.Errorf("got %v, want ErrEmpty", err)
	}
}

func TestContradictions(t *testing.T) {
	fragment := parse(t, "ours", "CONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\nCONFIG_D=y\n# CONFIG_E is not set\n")
	for _, c := range []struct{ lines, want string }{
		{"CONFIG_A=m\n# CONFIG_D is not set\nCONFIG_OTHER=y\n", ""},
		{"CONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\n", ""},
		{"CONFIG_C=y\n", "theirs:1 CONFIG_C=y, ours:3 CONFIG_C=n"},
		{"CONFIG_C=n\nCONFIG_C=m\n", "theirs:2 CONFIG_C=m, ours:3 CONFIG_C=n"},
		{"CONFIG_B=\"y\"\n", "theirs:1 CONFIG_B=\"y\", ours:2 CONFIG_B=\"x\""},
	} {
		var got []string
		for _, x := range Contradictions(fragment, parse(t, "theirs", c.lines)) {
			got = append(got, x.Line.File+":"+string(rune('0'+x.Line.Line))+" "+x.Line.String()+", "+
				x.Fragment.File+":"+string(rune('0'+x.Fragment.Line))+" "+x.Fragment.String())
		}
		if text := strings.Join(got, "; "); text != c.want {
			t.Errorf("%q: got %q, want %q", c.lines, text, c.want)
		}
	}
}

// source has what Kconfig files of Linux have.
var source = fstest.MapFS{
	"Kconfig":          {Data: []byte("mainmenu \"Linux\"\n\nsource \"security/Kconfig\"\nsource \"arch/$(SRCARCH)/Kconfig\"\nsource \"$(OBJ)/generated\"\n")},
	"arch/x86/Kconfig": {Data: []byte("config X86\n\tdef_bool y\n\tselect FORCED if ASKED\n\nconfig FORCED\n\tbool\n\nconfig ASKED\n\tbool \"asked\"\n")},
	"security/Kconfig": {Data: []byte(`menu "Security"
	depends on NET

config SECURITY
	bool "Security"
	help
	  config HELP
	    bool "this is no symbol"
	# CONFIG in a help text

	  depends on NOTHING

if SECURITY

config IMA
	bool "IMA"	# a comment
	depends on KEYS && \
		(TPM || !HARDWARE)
	default y

config STRING
	string "text" if IMA
	default "a # b" if IMA

config DERIVED
	string
	default "x"

config COMPUTED
	bool "computed"
	depends on $(cc-option,-mfoo)

choice
	prompt "hash"
	depends on IMA

config SHA1
	bool "SHA-1"

config SHA256
	bool "SHA-256"
endchoice

comment "a comment"
	depends on NOTHING

endif # SECURITY

config TWICE
	bool "twice"
	depends on KEYS

endmenu

config TWICE
	bool "twice"
	depends on ARM = y
`)},
}

func TestExplain(t *testing.T) {
	tree, err := ReadTree(source, "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	const on = "CONFIG_NET=y\nCONFIG_SECURITY=y\nCONFIG_KEYS=y\nCONFIG_TPM=y\nCONFIG_IMA=y\nCONFIG_SHA256=y\nCONFIG_X86=y\n"
	for _, c := range []struct{ symbol, want, config, reason string }{
		{"NONE", "y", on, "this Linux has no such symbol"},
		{"HELP", "y", on, "this Linux has no such symbol"},
		{"IMA", "y", "CONFIG_NET=y\nCONFIG_SECURITY=y\nCONFIG_HARDWARE=y\n",
			"depends on (TPM || !HARDWARE) (TPM is n, HARDWARE is y), and on KEYS (KEYS is n)"},
		{"IMA", "y", "CONFIG_NET=y\nCONFIG_SECURITY=y\nCONFIG_KEYS=m\n", "depends on KEYS (KEYS is m)"},
		{"IMA", "y", "CONFIG_KEYS=y\n", "depends on NET (NET is n), and on SECURITY (SECURITY is n)"},
		{"STRING", `"x"`, "CONFIG_NET=y\nCONFIG_SECURITY=y\nCONFIG_KEYS=y\n", "can be set only if IMA (IMA is n)"},
		{"STRING", `"x"`, on, ""},
		{"DERIVED", `"y"`, on, "cannot be set: it has no prompt, other symbols decide"},
		{"COMPUTED", "y", on, ""},
		{"SHA1", "y", on, "of this choice CONFIG_SHA256 was taken"},
		{"FORCED", "n", on + "CONFIG_ASKED=y\nCONFIG_FORCED=y\n", "selected by CONFIG_X86"},
		{"FORCED", "n", on, "cannot be set: it has no prompt, other symbols decide"},
		{"TWICE", "y", "CONFIG_NET=y\nCONFIG_ARM=n\n", "depends on KEYS (KEYS is n); or depends on ARM = y (ARM is n)"},
	} {
		cfg := NewConfig(parse(t, "config", c.config))
		got := tree.Explain(Finding{Setting{Symbol: c.symbol, Value: c.want}, cfg.Get(c.symbol)}, cfg)
		if got != c.reason {
			t.Errorf("%s=%s with %q: got %q, want %q", c.symbol, c.want, c.config, got, c.reason)
		}
	}
}

func TestReadTreeRefuses(t *testing.T) {
	if _, err := ReadTree(source, "arm64"); err == nil || !strings.Contains(err.Error(), "arch/arm64/Kconfig") {
		t.Errorf("an architecture that is not there: %v", err)
	}
	loop := fstest.MapFS{"Kconfig": {Data: []byte("source \"Kconfig\"\n")}}
	if _, err := ReadTree(loop, "x86"); err == nil || !strings.Contains(err.Error(), "below each other") {
		t.Errorf("a file that has itself in it: %v", err)
	}
}

// TestLinux reads the real files, where there are some.
func TestLinux(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	trees, _ := filepath.Glob(filepath.Join(cache, "meta-attest/kernel/source-*"))
	if len(trees) == 0 {
		t.Skip("no Linux source in the cache; scripts/kernel unpacks one")
	}
	tree, err := ReadTree(os.DirFS(trees[0]), "x86")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tree.defined); n < 10000 {
		t.Errorf("%d symbols", n)
	}
	for _, c := range []struct{ symbol, config, reason string }{
		{"IMA_TRUSTED_KEYRING", "", "this Linux has no such symbol"},
		{"MODULE_SIG_FORCE", "CONFIG_MODULES=y\n", "depends on MODULE_SIG (MODULE_SIG is n)"},
		{"IMA_DEFAULT_HASH_SHA1", "CONFIG_INTEGRITY=y\nCONFIG_IMA=y\nCONFIG_CRYPTO_SHA1=y\nCONFIG_IMA_DEFAULT_HASH_SHA256=y\n",
			"of this choice CONFIG_IMA_DEFAULT_HASH_SHA256 was taken"},
		{"INTEGRITY_PLATFORM_KEYRING", "CONFIG_INTEGRITY=y\nCONFIG_INTEGRITY_ASYMMETRIC_KEYS=y\nCONFIG_INTEGRITY_TRUSTED_KEYRING=y\n",
			"depends on SYSTEM_BLACKLIST_KEYRING (SYSTEM_BLACKLIST_KEYRING is n)"},
	} {
		cfg := NewConfig(parse(t, "config", "CONFIG_X=y\n"+c.config))
		if got := tree.Explain(Finding{Setting{Symbol: c.symbol, Value: "y"}, "n"}, cfg); got != c.reason {
			t.Errorf("%s: got %q, want %q", c.symbol, got, c.reason)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(config)
	f.Fuzz(func(t *testing.T, text string) {
		settings, err := Parse("f", text)
		if err != nil {
			if settings != nil {
				t.Fatalf("kept %v with %v", settings, err)
			}
			return
		}
		var b strings.Builder
		for _, s := range settings {
			b.WriteString(s.String() + "\n")
		}
		again, err := Parse("f", b.String())
		if err != nil {
			t.Fatalf("does not read what it wrote: %v", err)
		}
		same := func(x, y Setting) bool { return x.Symbol == y.Symbol && x.Value == y.Value }
		if !slices.EqualFunc(settings, again, same) {
			t.Fatalf("wrote %v, read %v", settings, again)
		}
	})
}

func FuzzReadTree(f *testing.F) {
	f.Add(string(source["security/Kconfig"].Data))
	f.Fuzz(func(t *testing.T, text string) {
		tree, err := ReadTree(fstest.MapFS{"Kconfig": {Data: []byte(text)}}, "x86")
		if err != nil {
			return
		}
		for symbol := range tree.defined {
			for _, want := range []string{"y", "m", "n"} {
				tree.Explain(Finding{Setting{Symbol: symbol, Value: want}, "n"}, Config{})
			}
		}
	})
}
