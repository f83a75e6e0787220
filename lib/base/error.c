/* SPDX-License-Identifier: MIT */
#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gmem.h"
#include "base/macros.h"
#include "base/utf8.h"

static __thread char sentence[GMEM_SENTENCE_SIZE];
static __thread int sentence_err;

/* What gmem_fail_at() was told last, unless before is NULL: then the sentence is written. */
static __thread struct {
	const char *before;
	const char *after;
	uint64_t number;
} unwritten;

int gmem_fail(int err, const char *format, ...)
{
	va_list args;

	sentence_err = err;
	unwritten.before = NULL;
	va_start(args, format);
	vsnprintf(sentence, sizeof(sentence), format, args);
	va_end(args);
	/* Names in it come from the caller, who may have them from anywhere. */
	gmem_utf8_clean(sentence);
	return err;
}

int gmem_fail_at(int err, const char *before, uint64_t number, const char *after)
{
	sentence_err = err;
	unwritten.before = before;
	unwritten.after = after;
	unwritten.number = number;
	return err;
}

static const char *written_sentence(void)
{
	if (unwritten.before)
		gmem_fail(sentence_err, "%s0x%" PRIx64 "%s", unwritten.before, unwritten.number,
			  unwritten.after);
	return sentence;
}

int gmem_error_of_sentence(void)
{
	return sentence_err;
}

#ifdef GMEM_LOCK_CHECKS

void gmem_error_check(int err)
{
	if (err == sentence_err)
		return;
	fprintf(stderr, "libgmem: %s is returned with the sentence of %s: %s\n",
		gmem_errno_name(err), gmem_errno_name(sentence_err), written_sentence());
	abort();
}

#endif

void gmem_failure_keep(struct gmem_failure *failure, int err)
{
	failure->err = err;
	memcpy(failure->sentence, written_sentence(), sizeof(sentence));
}

int gmem_failure_restore(const struct gmem_failure *failure)
{
	return failure->err ? gmem_fail(failure->err, "%s", failure->sentence) : 0;
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
	return written_sentence();
}

#define STRING(x) #x
#define VERSION(major, minor, patch) STRING(major) "." STRING(minor) "." STRING(patch)

GMEM_API const char *gmem_version(void)
{
	return VERSION(GMEM_VERSION_MAJOR, GMEM_VERSION_MINOR, GMEM_VERSION_PATCH);
}

void gmem_size_text(uint64_t bytes, char text[GMEM_SIZE_TEXT])
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB" };
	size_t unit = 0;

	for (; unit + 1 < GMEM_ARRAY_SIZE(units) && bytes && bytes % 1024 == 0; unit++)
		bytes /= 1024;
	snprintf(text, GMEM_SIZE_TEXT, "%" PRIu64 " %s", bytes, units[unit]);
}
