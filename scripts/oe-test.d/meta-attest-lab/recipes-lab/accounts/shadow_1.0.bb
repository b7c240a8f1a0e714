SUMMARY = "What OE-core's shadow has for useradd.bbclass: /etc/login.defs. The programs are the host's"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install() {
    install -d ${D}${sysconfdir}
    printf '%s\n' 'UID_MIN 1000' 'SYS_UID_MIN 101' 'SYS_UID_MAX 999' 'GID_MIN 1000' 'SYS_GID_MIN 101' 'SYS_GID_MAX 999' \
        'MAIL_DIR /var/mail' 'UMASK 022' 'CREATE_HOME no' 'USERGROUPS_ENAB yes' 'ENCRYPT_METHOD SHA512' > ${D}${sysconfdir}/login.defs
}

PACKAGES = "${PN}"
FILES:${PN} = "${sysconfdir}"
CONFFILES:${PN} = "${sysconfdir}/login.defs"
