/* SPDX-License-Identifier: MIT */
#include "base/limit.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/error.h"
#include "base/kernel_number.h"
#include "base/macros.h"
#include "os/sys.h"

/* One more mapping, inside another one, makes three of one. */
#define MAPPINGS_OF_ONE_CALL 2

/* Each returns whether the limit is reached, and then writes which, and its number. */
typedef bool (*limit_fn)(uint64_t mapped, char *text, size_t size);

static bool exceeds(uint64_t used, uint64_t more, uint64_t limit)
{
	return used > limit || more > limit - used;
}

static bool is_nofile(uint64_t mapped, char *text, size_t size)
{
	uint64_t limit = gmem_sys_limit(RLIMIT_NOFILE);

	(void)mapped;
	if (limit == UINT64_MAX)
		return false;
	snprintf(text, size, "RLIMIT_NOFILE is %" PRIu64, limit);
	return true;
}

static bool is_file_max(uint64_t mapped, char *text, size_t size)
{
	uint64_t limit;

	(void)mapped;
	if (!gmem_kernel_number("/proc/sys/fs", "file-max", "\n", &limit))
		return false;
	snprintf(text, size, "fs.file-max, for the whole machine, is %" PRIu64, limit);
	return true;
}

static bool is_address_space(uint64_t mapped, char *text, size_t size)
{
	uint64_t limit = gmem_sys_limit(RLIMIT_AS), used = 0;

	if (!gmem_kernel_number("/proc/self", "statm", "\n", &used))
		used = 0;
	used *= gmem_sys_page_size();
	if (limit == UINT64_MAX || !exceeds(used, mapped, limit))
		return false;
	snprintf(text, size, "RLIMIT_AS is 0x%" PRIx64 ", 0x%" PRIx64 " are mapped", limit, used);
	return true;
}

static bool is_map_count(uint64_t mapped, char *text, size_t size)
{
	uint64_t limit;
	int64_t count;

	(void)mapped;
	if (!gmem_kernel_number("/proc/sys/vm", "max_map_count", "\n", &limit))
		return false;
	count = gmem_sys_count_lines("/proc/self/maps");
	if (count < 0 || !exceeds((uint64_t)count, MAPPINGS_OF_ONE_CALL, limit))
		return false;
	snprintf(text, size, "vm.max_map_count is %" PRIu64 ", there are %" PRId64 " mappings", limit,
		 count);
	return true;
}

static bool is_commit(uint64_t mapped, char *text, size_t size)
{
	uint64_t mode, limit, used;

	if (!gmem_kernel_number("/proc/sys/vm", "overcommit_memory", "\n", &mode) || mode != 2 ||
	    !gmem_kernel_number("/proc", "meminfo", "\nCommitLimit:", &limit) ||
	    !gmem_kernel_number("/proc", "meminfo", "\nCommitted_AS:", &used) ||
	    !exceeds(used * 1024, mapped, limit * 1024))
		return false;
	snprintf(text, size, "vm.overcommit_memory is 2, CommitLimit 0x%" PRIx64 ", 0x%" PRIx64
		 " are committed", limit * 1024, used * 1024);
	return true;
}

static bool is_data(uint64_t mapped, char *text, size_t size)
{
	uint64_t limit = gmem_sys_limit(RLIMIT_DATA), used;

	/* The number in statm has the stack, too, which does not count here. */
	if (!gmem_kernel_number("/proc/self", "status", "\nVmData:", &used) ||
	    !exceeds(used * 1024, mapped, limit))
		return false;
	snprintf(text, size, "RLIMIT_DATA is 0x%" PRIx64 ", 0x%" PRIx64 " are mapped as data", limit,
		 used * 1024);
	return true;
}

static bool is_file_size(uint64_t bytes, char *text, size_t size)
{
	uint64_t limit = gmem_sys_limit(RLIMIT_FSIZE);

	if (!exceeds(0, bytes, limit))
		return false;
	snprintf(text, size, "RLIMIT_FSIZE is 0x%" PRIx64, limit);
	return true;
}

/* Of a process that called mlockall() for mappings to come */
static bool is_memlock(uint64_t mapped, char *text, size_t size)
{
	uint64_t limit = gmem_sys_limit(RLIMIT_MEMLOCK), used = 0;

	if (!gmem_kernel_number("/proc/self", "status", "\nVmLck:", &used) ||
	    !exceeds(used * 1024, mapped, limit))
		return false;
	snprintf(text, size, "RLIMIT_MEMLOCK is 0x%" PRIx64 ", 0x%" PRIx64 " are locked", limit,
		 used * 1024);
	return true;
}

static const struct {
	int err;
	bool is_mapping, is_private;	/* of what it is a limit */
	limit_fn is_reached;
} limits[] = {
	{ -EMFILE, false, false, is_nofile },
	{ -ENFILE, false, false, is_file_max },
	{ -ENOMEM, true, false, is_address_space },
	{ -ENOMEM, true, false, is_map_count },
	{ -ENOMEM, true, true, is_commit },
	{ -ENOMEM, true, true, is_data },
	{ -EFBIG, true, false, is_file_size },
	{ -EAGAIN, true, false, is_memlock },
};

static void describe(int err, uint64_t mapped, bool is_shared, char text[GMEM_LIMIT_TEXT])
{
	size_t length = (size_t)snprintf(text, GMEM_LIMIT_TEXT, "%s: ", gmem_errno_name(err)), i;

	for (i = 0; i < GMEM_ARRAY_SIZE(limits); i++)
		if (limits[i].err == err && limits[i].is_mapping == (mapped > 0) &&
		    !(limits[i].is_private && is_shared) &&
		    limits[i].is_reached(mapped, text + length, GMEM_LIMIT_TEXT - length))
			return;
	text[length - 2] = '\0';
}

void gmem_limit_describe(int err, uint64_t mapped, char text[GMEM_LIMIT_TEXT])
{
	describe(err, mapped, false, text);
}

bool gmem_is_about_limit(int err)
{
	return err == -EMFILE || err == -ENFILE || err == -ENOMEM;
}

__attribute__((format(printf, 4, 0)))
static void fail(int err, uint64_t mapped, bool is_shared, const char *format, va_list args)
{
	char what[GMEM_SENTENCE_SIZE - GMEM_LIMIT_TEXT], limit[GMEM_LIMIT_TEXT];

	vsnprintf(what, sizeof(what), format, args);
	describe(err, mapped, is_shared, limit);
	gmem_fail(err, "%s: %s", what, limit);
}

int gmem_fail_by_limit(int err, uint64_t mapped, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fail(err, mapped, false, format, args);
	va_end(args);
	return err;
}

int gmem_fail_to_map(int err, uint64_t mapped, bool is_shared, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fail(err, mapped, is_shared, format, args);
	va_end(args);
	return err;
}
