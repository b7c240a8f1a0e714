package keys

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
)

// tokenURI is a PKCS#11 URI of RFC 7512: what it says of the token, the key and the module.
// An attribute that is not set matches anything.
type tokenURI struct {
	token, serial, model, manufacturer string
	slot                               *uint
	object                             string
	id                                 []byte

	module               string // path of the shared library
	pinValue, pinSource  string
	hasValue, hasPINFile bool
}

// moduleDirs is where Linux distributions install PKCS#11 modules.
var moduleDirs = []string{
	"/usr/lib64/pkcs11", "/usr/lib/*/pkcs11", "/usr/lib/pkcs11",
	"/usr/lib64", "/usr/lib/*-linux-gnu*", "/usr/lib/*/softhsm", "/usr/lib/softhsm", "/usr/lib",
}

// parseTokenURI reads a URI such as
//
//	pkcs11:token=build;object=ima?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin
//
// Without module-path and module-name it takes p11-kit's. An attribute that it does not know
// is an error: to pass it over could choose another key.
func parseTokenURI(uri string) (*tokenURI, error) {
	u, err := splitURI(uri)
	if err != nil {
		return nil, err
	}
	t := &tokenURI{
		token: u.path["token"], serial: u.path["serial"], model: u.path["model"],
		manufacturer: u.path["manufacturer"], object: u.path["object"],
		module: u.query["module-path"],
	}
	if id, ok := u.path["id"]; ok {
		t.id = []byte(id)
	}
	if kind, ok := u.path["type"]; ok && kind != "private" {
		return nil, fmt.Errorf("type=%s: a private key is needed", kind)
	}
	if slot, ok := u.path["slot-id"]; ok {
		n, err := strconv.ParseUint(slot, 10, strconv.IntSize-1)
		if err != nil {
			return nil, fmt.Errorf("slot-id=%s: not a number", slot)
		}
		id := uint(n)
		t.slot = &id
	}
	t.pinValue, t.hasValue = u.query["pin-value"]
	t.pinSource, t.hasPINFile = u.query["pin-source"]
	if t.hasValue && t.hasPINFile {
		return nil, errors.New("both pin-value and pin-source")
	}
	if t.module == "" {
		t.module, err = findModule(u.query["module-name"])
	}
	return t, err
}

type attributes struct{ path, query map[string]string }

// splitURI takes a URI apart and undoes its percent-encoding.
func splitURI(uri string) (*attributes, error) {
	lib := pkcs11uri.New()
	if err := lib.Parse(uri); err != nil {
		return nil, errors.New(strings.ToLower(err.Error()))
	}
	known := &attributes{map[string]string{}, map[string]string{}}
	for _, name := range []string{"token", "serial", "model", "manufacturer", "slot-id", "object", "id", "type"} {
		if v, ok := lib.GetPathAttribute(name, false); ok {
			known.path[name] = v
			lib.RemovePathAttribute(name)
		}
	}
	for _, name := range []string{"module-path", "module-name", "pin-value", "pin-source"} {
		if v, ok := lib.GetQueryAttribute(name, false); ok {
			known.query[name] = v
			lib.RemoveQueryAttribute(name)
		}
	}
	if rest, err := lib.Format(); err != nil || rest != "pkcs11:" {
		return nil, fmt.Errorf("unknown attribute in %s", strings.TrimPrefix(rest, "pkcs11:"))
	}
	for _, v := range slices.Concat(slices.Collect(maps.Values(known.path)), slices.Collect(maps.Values(known.query))) {
		if v == "" {
			return nil, errors.New("attribute without a value")
		}
	}
	return known, nil
}

// p11Kit is the module of p11-kit, which offers the tokens of all modules that are configured
// on the machine. libp11, through which evmctl signs, takes it by default, too.
const p11Kit = "p11-kit-proxy"

// findModule finds a module by the name that RFC 7512 section 2.3 gives it: without path,
// "lib" or suffix.
func findModule(name string) (string, error) {
	wanted := name
	if wanted == "" {
		wanted = p11Kit
	}
	for _, pattern := range moduleDirs {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("find module: %w", err)
		}
		for _, dir := range dirs {
			for _, file := range []string{"lib" + wanted + ".so", wanted + ".so"} {
				if path := filepath.Join(dir, filepath.Base(file)); isFile(path) {
					return path, nil
				}
			}
		}
	}
	if name == "" {
		return "", errors.New("which PKCS#11 module? " + p11Kit + ".so is not installed: add ?module-path=/path/of/module.so to the URI")
	}
	return "", fmt.Errorf("module-name=%s: no such module in %s; use module-path", name, strings.Join(moduleDirs, " "))
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// pin returns the PIN: from the URI, from the file that it names, or from o.
func (t *tokenURI) pin(uri string, o Options) (string, error) {
	switch {
	case t.hasValue:
		return t.pinValue, nil
	case t.hasPINFile:
		path, err := pinFile(t.pinSource)
		if err != nil {
			return "", err
		}
		text, _, err := readFile(path, 4<<10)
		if err != nil {
			return "", fmt.Errorf("read PIN: %w", err)
		}
		return string(bytes.TrimRight(text, "\r\n")), nil
	default:
		pin, err := o.passphrase(uri)
		return string(pin), err
	}
}

// pinFile takes file:/path, file:///path or /path. RFC 7512 also allows |program, which
// would let a build's configuration run commands.
func pinFile(source string) (string, error) {
	if filepath.IsAbs(source) {
		return source, nil
	}
	u, err := url.Parse(source)
	if err != nil || u.Scheme != "file" || (u.Host != "" && u.Host != "localhost") || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("pin-source=%s: not a file with an absolute path", source)
	}
	return u.Path, nil
}

// withoutPIN is uri for people to read.
func withoutPIN(uri string) string {
	path, query, ok := strings.Cut(uri, "?")
	if !ok {
		return uri
	}
	kept := slices.DeleteFunc(strings.Split(query, "&"), func(a string) bool {
		return strings.HasPrefix(a, "pin-value=")
	})
	if len(kept) == 0 {
		return path
	}
	return path + "?" + strings.Join(kept, "&")
}
