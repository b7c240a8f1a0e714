require ../lab-gcc.inc
EXTRA_OEMAKE:append = " CROSS_COMPILE="
