SUMMARY = "The host's master lists of users and groups, for recipes that inherit useradd"
LICENSE = "PD"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/PD;md5=b3597d12946881e13cb3b548d1173851"
INHIBIT_DEFAULT_DEPS = "1"

# OE-core's has a program beside them, which needs a compiler.
LAB_MASTERS ?= "/usr/share/base-passwd"

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install() {
    install -d ${D}${datadir}/base-passwd
    for i in passwd group; do
        sed 's/^\([^:]*\):\*:/\1:x:/' ${LAB_MASTERS}/$i.master > ${D}${datadir}/base-passwd/$i
    done
}
do_install[file-checksums] += "${LAB_MASTERS}/passwd.master:True ${LAB_MASTERS}/group.master:True"

# In the sysroot of a recipe, lists of its own, to which its users and those of its dependencies are added.
SYSROOT_PREPROCESS_FUNCS += "lab_passwd_sysroot"
lab_passwd_sysroot() {
    install -d ${SYSROOT_DESTDIR}${bindir}
    cat > ${SYSROOT_DESTDIR}${bindir}/postinst-${PN} <<'END'
#!/bin/sh -e
install -d -m 755 ${STAGING_DIR_TARGET}${sysconfdir}
for name in passwd group; do
    install -m 644 ${STAGING_DIR_TARGET}${datadir}/base-passwd/$name ${STAGING_DIR_TARGET}${sysconfdir}/$name
done
for script in ${STAGING_DIR_TARGET}${bindir}/postinst-useradd-*; do
    if [ -f $script ]; then
        $script
    fi
done
END
    chmod 0755 ${SYSROOT_DESTDIR}${bindir}/postinst-${PN}
}

PACKAGES = "${PN}"
FILES:${PN} = "${datadir}"

# What this package has is not unpacked when the first useradd of others runs.
python populate_packages:prepend() {
    script = '#!/bin/sh\nmkdir -p $D${sysconfdir}\n'
    for name in ('passwd', 'group'):
        with open(d.expand('${D}${datadir}/base-passwd/') + name) as f:
            script += "[ -e $D${sysconfdir}/%s ] || cat > $D${sysconfdir}/%s <<'EOF'\n%sEOF\n" % (name, name, f.read())
    d.setVar('pkg_preinst:' + d.getVar('PN'), script)
}
