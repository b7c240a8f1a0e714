# Of the recipes with such a name, the class leaves alone those that are no kernels.
inherit ${@bb.utils.contains('DISTRO_FEATURES', 'integrity', 'attest-kernel', '', d)}
