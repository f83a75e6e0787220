/* SPDX-License-Identifier: MIT */
/*
 * The library's image module is compiled into gmem-image, too, and says with gmem_fail() what is
 * wrong. Here nobody asks: gmem_image_verify() has told it before.
 */
#include "base/error.h"

int gmem_fail(int err, const char *format, ...)
{
	(void)format;
	return err;
}
