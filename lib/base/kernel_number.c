/* SPDX-License-Identifier: MIT */
#include "base/kernel_number.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/sys.h"

static bool number_after(const char *text, const char *label, uint64_t *ret)
{
	const char *at = strstr(text, label);

	if (!at)
		return false;
	at += strlen(label);
	at += strspn(at, " \t");
	if (*at < '0' || *at > '9')
		return false;

	*ret = strtoull(at, NULL, 10);
	return true;
}

bool gmem_kernel_number(const char *directory, const char *name, const char *label, uint64_t *ret)
{
	/* A newline in front, so that a label can begin with one. */
	char path[4096 + 64], text[8192] = "\n";

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", directory, name) >= sizeof(path))
		return false;
	return gmem_sys_read_file(path, text + 1, sizeof(text) - 1) > 0 &&
	       number_after(text, label, ret);
}
