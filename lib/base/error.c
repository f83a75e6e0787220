/* SPDX-License-Identifier: MIT */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gmem.h"

static __thread char sentence[GMEM_SENTENCE_SIZE];

int gmem_fail(int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(sentence, sizeof(sentence), format, args);
	va_end(args);
	return err;
}

void gmem_error_keep(char ret[GMEM_SENTENCE_SIZE])
{
	memcpy(ret, sentence, sizeof(sentence));
}

const char *gmem_errno_name(int err)
{
#ifdef HAVE_STRERRORNAME_NP
	const char *name = strerrorname_np(-err);

	return name ? name : "unknown errno";
#else
	return strerror(-err);
#endif
}

GMEM_API const char *gmem_last_error(void)
{
	return sentence;
}

#define STRING(x) #x
#define VERSION(major, minor, patch) STRING(major) "." STRING(minor) "." STRING(patch)

GMEM_API const char *gmem_version(void)
{
	return VERSION(GMEM_VERSION_MAJOR, GMEM_VERSION_MINOR, GMEM_VERSION_PATCH);
}
