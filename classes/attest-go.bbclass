# Compiles Go programs of this repository without a network: Go modules come through BitBake's
# fetcher, from DL_DIR, a mirror or a Go module proxy, each with its SHA-256, and go.sum is
# checked after it. Include the list that scripts/oe-modules makes:
#
#   require attest-go-mods.inc
#   inherit attest-go
#
# GO_IMPORT   import path of the repository; its sources are in ${S}/src/${GO_IMPORT}
# GO_TAGS     build tags, as "nodatabases": what they leave out is no part of the list either
#
# wrynose: nothing to set. BitBake has a fetcher for gomod://.
#
# scarthgap: two things.
#
# - OE-core's Go is 1.22, and these programs need the version of go.mod. Take the layer meta-lts-mixins,
#   branch scarthgap/go, which follows the Go releases.
# - BitBake has no fetcher for gomod://: here, each becomes an https:// address. Say whose, in local.conf,
#   the host alone; where there is one, it is the first in what "go env GOPROXY" prints:
#
#       GO_MOD_PROXY = "goproxy.example.com"
#
#   It is not needed where DL_DIR or a mirror has the files; on a machine with Go and a network,
#   "scripts/oe-modules --downloads DIR" fills a DL_DIR. They have the names that BitBake's own fetcher
#   gives them, so that a DL_DIR that wrynose filled will do, too.

inherit go-mod

# Where wrynose has it: scarthgap's is below ${B}, and emptied by do_compile.
GOMODCACHE = "${S}/pkg/mod"
GO_MOD_CACHE_DIR = "${@os.path.relpath(d.getVar('GOMODCACHE'), d.getVar('UNPACKDIR'))}"
do_unpack[cleandirs] += "${GOMODCACHE}"
# Licences of modules are in the cache once the go command has unpacked them. attest-licenses.inc has those
# of programs with cgo, which are of more modules than those of programs without.
addtask do_compile before do_populate_lic
do_compile:prepend() {
    CGO_ENABLED=1 ${GO} list -deps ${GO_INSTALL} > /dev/null
}

# Go fetches nothing: neither modules nor another toolchain.
export GOPROXY = "off"
export GOTOOLCHAIN = "local"
export GOFLAGS = "-mod=readonly -modcacherw -tags=${@','.join(d.getVar('GO_TAGS').split())}"
GO_TAGS ??= ""

attest_go_check_version() {
    need=$(sed -n 's/^go //p' ${S}/src/${GO_IMPORT}/go.mod)
    have=$(${GO} env GOVERSION)
    [ "$(printf '%s\n' "$need" "${have#go}" | sort -V | head -n 1)" = "$need" ] || \
        bbfatal "${PN} needs Go $need, and this build has ${have#go}. For scarthgap there is the layer meta-lts-mixins, branch scarthgap/go."
}
do_configure[prefuncs] += "attest_go_check_version"

# What a BitBake without a fetcher for gomod:// needs. The host is no part of any signature: it matters
# as little as that of a mirror, since the sums are fixed.
GO_MOD_NO_PROXY = "GO_MOD_PROXY-is-not-set.invalid"
SRC_URI[vardepsexclude] += "GO_MOD_PROXY"

def attest_go_modules(d):
    """Yields module, version, name of the file and its path in the proxy for each gomod:// address."""
    import re
    for uri in (d.getVar('GO_MOD_URIS') or '').split():
        _, host, path, _, _, parm = bb.fetch2.decodeurl(uri)
        module, version = (host + path).rstrip('/'), parm['version']
        ext = '.mod' if parm.get('mod') == '1' else '.zip'
        escaped = re.sub('[A-Z]', lambda m: '!' + m.group(0).lower(), '%s/@v/%s%s' % (module, version, ext))
        yield module, version, '%s@%s%s' % (module.replace('/', '.'), version, ext), escaped, parm['sha256sum']

python () {
    try:
        import bb.fetch2.gomod
        return
    except ImportError:
        pass
    uris = d.getVar('SRC_URI').split()
    d.setVar('GO_MOD_URIS', ' '.join(uri for uri in uris if uri.startswith('gomod://')))
    if not d.getVar('GO_MOD_PROXY'):
        d.setVar('GO_MOD_PROXY', d.getVar('GO_MOD_NO_PROXY'))
    uris = [uri for uri in uris if not uri.startswith('gomod://')]
    for _, _, name, path, sha256 in attest_go_modules(d):
        uris.append('https://${GO_MOD_PROXY}/%s;downloadfilename=%s;subdir=${GO_MOD_CACHE_DIR}/fetched;unpack=0;sha256sum=%s' % (path, name, sha256))
    d.setVar('SRC_URI', ' '.join(uris))
    d.appendVarFlag('do_fetch', 'prefuncs', ' attest_go_fetch')
    d.appendVarFlag('do_unpack', 'postfuncs', ' attest_go_unpack')
}

# Fetches the modules before do_fetch does, to say what is wrong.
python attest_go_fetch() {
    proxy = d.getVar('GO_MOD_PROXY')
    uris = [uri for uri in d.getVar('SRC_URI').split() if uri.startswith('https://' + proxy + '/')]
    try:
        bb.fetch2.Fetch(uris, d).download()
    except bb.fetch2.BBFetchException as e:
        if proxy != d.getVar('GO_MOD_NO_PROXY'):
            raise
        bb.fatal('%s: neither DL_DIR nor a mirror has its Go modules, and this release of BitBake knows no proxy. In local.conf: '
            'GO_MOD_PROXY = "HOST", see attest-go.bbclass; or, on a machine with Go: scripts/oe-modules --downloads DL_DIR\n%s' % (d.getVar('PN'), e))
}

# Lays out what was fetched as the go command's module cache wants it, as BitBake's own fetcher does.
python attest_go_unpack() {
    import zipfile
    cache = d.getVar('GOMODCACHE')
    for module, version, name, path, _ in attest_go_modules(d):
        target = os.path.join(cache, 'cache', 'download', path)
        bb.utils.mkdirhier(os.path.dirname(target))
        os.rename(os.path.join(cache, 'fetched', name), target)
        if not target.endswith('.zip'):
            continue
        with zipfile.ZipFile(target) as z, open(target[:-len('zip')] + 'mod', 'wb') as mod:
            try:
                mod.write(z.read('%s@%s/go.mod' % (module, version)))
            except KeyError:
                mod.write(b'module %s\n' % module.encode()) # older than Go modules
    bb.utils.remove(os.path.join(cache, 'fetched'), recurse=True)
}
