SUMMARY = "Signs the files of an image for Linux IMA and EVM, and proves it"
SUMMARY:${PN}-bash-completion = "Bash completion of attest"
SUMMARY:${PN}-init = "Loads certificates and an IMA policy at boot"
SUMMARY:${PN}-init-link = "Makes attest-init the /init of an initramfs"
SUMMARY:${PN}-labels = "Gives the files of packages their labels while they are installed"
DESCRIPTION = "attest signs and verifies root filesystems, makes keys and knows IMA policies; attest-init is the /init of an initramfs that loads certificates and a policy."
HOMEPAGE = "https://github.com/meta-attest/meta-attest"
SECTION = "security"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://src/${GO_IMPORT}/COPYING.MIT;md5=fff198021500c834bee15c1eb026ecf5"

require attest-go-mods.inc
require attest-licenses.inc

# The manual pages and the completion are what the program prints.
DEPENDS:append:class-target = " attest-native"

# The sources lie beside the recipe: it cannot be of another version than they are, and what changes
# in them changes the signature of do_unpack.
# nooelint: oelint.vars.fileextrapaths oelint.vars.outofcontext
FILESEXTRAPATHS:prepend := "${ATTEST_BASE}:"
IN_SOURCE = "subdir=${BP}/src/${GO_IMPORT}"
SRC_URI += "\
    file://COPYING.MIT;${IN_SOURCE} \
    file://go.mod;${IN_SOURCE} \
    file://go.sum;${IN_SOURCE} \
    file://policies;${IN_SOURCE} \
    file://tools/attest;${IN_SOURCE} \
    file://tools/attest-init;${IN_SOURCE} \
    file://tools/attest-labels;${IN_SOURCE} \
    file://tools/internal;${IN_SOURCE} \
    "
S = "${UNPACKDIR}/${BP}"

GO_IMPORT = "github.com/meta-attest/meta-attest"
GO_INSTALL = "\
    ${GO_IMPORT}/tools/attest \
    ${GO_IMPORT}/tools/attest-init \
    ${GO_IMPORT}/tools/attest-labels \
    "

# Not "attest fleet import --database", and so no SQLite, which is not for every architecture.
GO_TAGS = "nodatabases"

inherit attest-go

# Native: signing runs under pseudo, which lies between a program and libc. Go's own system calls pass
# it by: setxattr of security.* fails, and lstat shows the builder's uid. Through cgo it works.
CGO_ENABLED:class-native = "1"

# Target: static programs that need nothing of the image, as attest-init in an initramfs has to. A
# static program is position-independent only by means of a C toolchain, and pie without one
# makes a dynamic one; go.bbclass asks for pie because of textrel, which a static one has not.
CGO_ENABLED = "0"
GOBUILDFLAGS:remove:class-target = "-buildmode=pie"
GO_LINKSHARED = ""
GO_RPATH = ""
GO_LINUXLOADER = ""
# Go's build id has a digest of the linker's flags, and so of paths of the build; OE-core's patches of Go
# cure that for some.
GO_EXTRA_LDFLAGS += "-buildid= -X main.packaged=${PV}"

# Not go.bbclass's, which installs sources, too: nobody imports these.
do_install() {
    install -d ${D}${bindir}
    install -m 0755 ${B}/${GO_BUILD_BINDIR}/attest ${D}${bindir}/
}

do_install:append:class-target() {
    install -d ${D}${sbindir} ${D}${mandir}/man1 ${D}${datadir}/bash-completion/completions
    install -m 0755 ${B}/${GO_BUILD_BINDIR}/attest-init ${D}${sbindir}/
    install -m 0755 ${B}/${GO_BUILD_BINDIR}/attest-labels ${D}${bindir}/
    ln -s attest-init ${D}${sbindir}/attest-switch-root
    ln -s ${sbindir}/attest-init ${D}/init
    attest man ${D}${mandir}/man1
    attest completion bash > ${D}${datadir}/bash-completion/completions/attest
}

PACKAGES =+ "${PN}-bash-completion ${PN}-init ${PN}-init-link ${PN}-labels"
# Not bash-completion.bbclass: in order to install one file it builds bash-completion.
FILES:${PN}-bash-completion += "${datadir}/bash-completion"
FILES:${PN}-init += "${sbindir}"
FILES:${PN}-init-link += "/init"
FILES:${PN}-labels += "${bindir}/attest-labels"
RDEPENDS:${PN}-init-link = "${PN}-init"

BBCLASSEXTEND = "native"
