// SPDX-License-Identifier: GPL-2.0-only
#include <linux/module.h>

static int __init lab_init(void)
{
	return 0;
}

static void __exit lab_exit(void)
{
}

module_init(lab_init);
module_exit(lab_exit);
MODULE_DESCRIPTION("Does nothing, for tests of signatures");
MODULE_LICENSE("GPL");
