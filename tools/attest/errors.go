package main

import (
	"errors"
	"net/http"

	"github.com/meta-attest/meta-attest/tools/internal/appraise"
	"github.com/meta-attest/meta-attest/tools/internal/keylimedb"
	"github.com/meta-attest/meta-attest/tools/internal/keys"
	"github.com/meta-attest/meta-attest/tools/internal/manifest"
	"github.com/meta-attest/meta-attest/tools/internal/release"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// Errors that end a run which went through.
var (
	errInterrupted = errors.New("each file has its old or its new label")
	errIncomplete  = errors.New("the tree is not signed")
	errFindings    = errors.New("the tree is not what was signed")
	errIsImage     = errors.New("is a file, not a directory")
	errEmpty       = errors.New("no regular file in it")
	errNoTrust     = errors.New("no certificate to check signatures with")
)

// hints maps the errors that a person can mend to what mends them. They stand here and
// not beside the errors because they speak of the command line.
var hints = []struct {
	err  error
	hint string
}{
	{errInterrupted, "run the same command again: it completes what is missing"},
	{errIsImage, "verify the tree before the image is made, or mount the image read-only and verify that"},
	{errNoTrust, "give --cert FILE, or put the certificate into etc/keys of the tree and give --ca FILE"},
	{errEmpty, "give the folder that holds the root filesystem"},
	{rootfs.ErrNoTarget, "say for which kernel EVM signatures are: --target x86_64"},
	{rootfs.ErrBusy, "wait until it has ended"},
	{rootfs.ErrUntrusted, "see what is wrong with it: attest keys inspect --ca CA FILE"},
	{rootfs.ErrNotPermitted, "run as root, under pseudo, or write a file for setfattr: --labels dump --output FILE"},
	{rootfs.ErrUnsupported, "move the tree to ext4, xfs or btrfs, or write a file for setfattr: --labels dump --output FILE"},
	{rootfs.ErrTooLarge, "look at df; labels of ECDSA P-256 keys are the smallest, and mke2fs -I 512 makes room for them"},
	{errNoCeremony, "make one to start from: attest keys init --print-ceremony > ceremony.toml"},
	{errKeysExist, "name another --out, name the keys that are still to be made, or renew certificates: attest keys renew"},
	{keys.ErrDebugKey, "make keys of your own, attest keys init --print-ceremony > ceremony.toml; for tests there is --allow-debug-keys"},
	{keys.ErrNoPassphrase, "put it into a file and give --passphrase-file FILE, or set $" + passphraseEnv},
	{keys.ErrPassphrase, "see --passphrase-file and $" + passphraseEnv + "; a token locks itself after some wrong PINs"},
	{keys.ErrExpired, "make a new certificate for the same key, attest keys renew; to rebuild an old image there is --allow-expired"},
	{keys.ErrMismatch, "give the certificate of this key: attest keys inspect shows the key id of either"},
	{errNotLoaded, "issue the certificate with that CA, attest keys issue --ceremony FILE --out DIR, or give the CA that signed it"},
	{errNoPolicy, "attest policy list"},
	{errNoServer, "give --server https://HOST:8881, or set $" + fleetEnv + "SERVER, or write fleet.toml: attest fleet --help"},
	{errNoIdentity, "give --token-file FILE, or --client-cert FILE and --client-key URI; attest-verifier token create NAME makes a token"},
	{errHalfIdentity, "give both --client-cert FILE and --client-key URI"},
	{errTokenLeaked, "chmod 600 it"},
	{errServerCA, "give the CA of the verifier, which attest-verifier certificate init wrote: --server-ca ca.crt"},
	{errServerDate, "look at the clock of this machine (date), and let the verifier have a new certificate: [tls] cert and key of its configuration"},
	{errServerName, "give --server with a name or address of the certificate, or make one for this name: attest-verifier certificate init --host NAME"},
	{errUnreached, "look at the address and the port (8881 unless the verifier's configuration says another), and whether attest-verifier serve runs"},
	{errNoHost, "look at --server, or server in fleet.toml, and at the name servers of this machine"},
	{errRefusedWho, "make a token, attest-verifier token create NAME, or a certificate, attest-verifier certificate client NAME"},
	{appraise.ErrUnsigned, "give the certificate that signed the runtime policy: --cert FILE"},
	{errNothingToImport, "attest fleet import --database reg_data.sqlite --database cv_data.sqlite, or --answers FILE"},
	{keylimedb.ErrNoDrivers, "take one built from its sources, go build ./tools/attest, or give answers of Keylime's API: --answers FILE"},
	{errRole, "this needs the role admin: attest-verifier token create NAME --role admin"},
	{errDowngrade, "if that is meant: attest fleet policy activate NAME VERSION --downgrade"},
	{errInUse, "assign other policies to its devices first: attest fleet change DEVICE --policy NAME"},
	{manifest.ErrNotAuthentic, "give the certificate of the key that signed the manifest: attest keys inspect FILE shows what one is good for"},
	{errNoDevice, "attest fleet list names devices, attest fleet policy list policies, and attest fleet explain DEVICE the digest of its evidence"},
	{errNoPath, "look at the port of the verifier: 8881 unless its configuration says another"},
	{http.ErrSchemeMismatch, "look at the port of the verifier: 8881 unless its configuration says another"},
	{release.ErrNoCertificates, "give the certificate of the key that signed the manifest: --cert FILE"},
	{errLossy, "to leave it out all the same: --lossy"},
	{errNoRelease, "give --manifest FILE and --cert FILE, or --runtime-policy FILE"},
	{errNotCA, "name the CA that issued it, or issue one for its key: attest keys issue"},
	{errModuleChain, "attest keys issue makes one with role = \"modsign\" under your CA; attest keys inspect --ca CA FILE says more"},
	{errCompressed, "sign before they are compressed: no CONFIG_MODULE_COMPRESS_GZIP, _XZ or _ZSTD"},
	{errNoControl, "put the command that builds the package behind --, with ROOT and DESTINATION as its last arguments"},
	{rootfs.ErrNoLibc, "build with CGO_ENABLED=1"},
}

// hintFor returns the hint for the first known error in err's tree, or "".
func hintFor(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}
