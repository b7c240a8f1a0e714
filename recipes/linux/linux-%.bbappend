# Of the recipes with such a name, the class leaves alone those that are no kernels.
# nooelint: oelint.var.inherit.inherit_defer - no recipe changes DISTRO_FEATURES
inherit ${@bb.utils.contains('DISTRO_FEATURES', 'integrity', 'attest-kernel', '', d)}
