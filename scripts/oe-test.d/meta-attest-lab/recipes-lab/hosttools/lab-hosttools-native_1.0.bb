SUMMARY = "Stands for every native tool that the build host provides"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"
INHIBIT_DEFAULT_DEPS = "1"
inherit native

PROVIDES += " \
    apt-native attr-native base-passwd-native cpio-native dpkg-native e2fsprogs-native erofs-utils-native \
    ldconfig-native libcap-native lz4-native makedevs-native openssl-native opkg-utils-native pbzip2-native pigz-native \
    pseudo-native shadow-native squashfs-tools-native systemd-systemctl-native tar-replacement-native update-rc.d-native \
    virtual/fakeroot-native virtual/update-alternatives-native xz-native zstd-native \
    "

do_configure[noexec] = "1"
do_compile[noexec] = "1"

# rootfs_deb takes its configuration of apt from the sysroot, and OE's dpkg, other than Debian's,
# runs maintainer scripts without chroot and with $D set. It finds the line of the architecture by
# its two spaces.
do_install() {
    # Empty folders do not reach a recipe's sysroot.
    for i in cache/apt/archives/partial lib/apt/lists/partial lib/dpkg log/apt; do
        install -d ${D}${localstatedir}/$i
        touch ${D}${localstatedir}/$i/.keep
    done
    install -d ${D}${bindir} ${D}${sysconfdir}/apt
    cat > ${D}${bindir}/dpkg <<'END'
#!/bin/sh
for a; do
    case $a in --root=* | --instdir=*) D=${a#*=}; export D ;; esac
done
exec /usr/bin/dpkg --force-script-chrootless "$@"
END
    chmod 0755 ${D}${bindir}/dpkg
    # The host's pseudo has no chroot in a folder that it ignores, as it does sysroots: without it they
    # would read the host's /etc/passwd.
    for i in useradd groupadd; do
        cat > ${D}${bindir}/$i <<END
#!/bin/sh
[ "\$1" != --root ] || { shift; set -- --prefix "\$@"; }
exec /usr/sbin/$i "\$@"
END
        chmod 0755 ${D}${bindir}/$i
    done
    # Called with --root=ROOTFS enable UNIT, or with nothing. The host's own does what its pseudo aborts at.
    cat > ${D}${bindir}/systemctl <<'END'
#!/bin/sh -e
[ $# -gt 0 ] || exit 0
root=${1#--root=}
[ "$1 $2 $#" = "--root=$root enable 3" ] || { echo "systemctl of the lab: $*: not known" >&2; exit 1; }
unit=/usr/lib/systemd/system/$3
[ -e "$root$unit" ] || unit=/lib/systemd/system/$3
for target in $(sed -n 's/^WantedBy=//p' "$root$unit"); do
    mkdir -p "$root/etc/systemd/system/$target.wants"
    ln -sf "$unit" "$root/etc/systemd/system/$target.wants/$3"
done
END
    chmod 0755 ${D}${bindir}/systemctl
    # Called with -a -b ROOTFS VERSION PACKAGE.
    cat > ${D}${bindir}/depmodwrapper <<'END'
#!/bin/sh
exec depmod -a -b "$3" "$4"
END
    chmod 0755 ${D}${bindir}/depmodwrapper
    cat > ${D}${sysconfdir}/apt/apt.conf.sample <<'END'
Dir "${STAGING_DIR_NATIVE}/"
{
   State "var/lib/apt/" { Lists "#APTCONF#/lists/"; status "#ROOTFS#/var/lib/dpkg/status"; };
   Cache "var/cache/apt/" { Archives "archives/"; pkgcache ""; srcpkgcache ""; };
   Bin "/usr/bin/" { methods "/usr/lib/apt/methods/"; gzip "/bin/gzip"; dpkg "${STAGING_BINDIR_NATIVE}/dpkg"; apt-get "apt-get"; apt-cache "apt-cache"; };
   Etc "#APTCONF#" { Preferences "preferences"; };
   Log "var/log/apt";
};
APT
{
  Install-Recommends "true";
  Immediate-Configure "false";
  Architecture "i586";
  Get { Assume-Yes "true"; };
};
Acquire { AllowInsecureRepositories "true"; };
DPkg::Options {"--root=#ROOTFS#";"--admindir=#ROOTFS#/var/lib/dpkg";"--force-all";"--no-force-overwrite";"--no-debsig"};
DPkg::Path "";
END
}
