require ${@bb.utils.contains('DISTRO_FEATURES', 'integrity', 'base-files-attest.inc', '', d)}
