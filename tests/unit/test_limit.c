/* SPDX-License-Identifier: MIT */
/* limit: which limit is behind a refusal */
#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "base/limit.h"
#include "os/sys.h"
#include "unit.h"

static void begin(void)
{
	fake_boot("6.18");
}

static void end(void)
{
	assert_int_equal(fake_halt(), 0);
}

static void assert_limit(const char *expected, int err, uint64_t mapped)
{
	char text[GMEM_LIMIT_TEXT];

	gmem_limit_describe(err, mapped, text);
	assert_string_equal(text, expected);
}

static void file_descriptors_have_two_limits(void **state)
{
	(void)state;
	begin();
	fake_set_limit(RLIMIT_NOFILE, 64);
	fake_set_file("/proc/sys/fs/file-max", "1000\n");
	assert_limit("EMFILE: RLIMIT_NOFILE is 64", -EMFILE, 0);
	assert_limit("ENFILE: fs.file-max, for the whole machine, is 1000", -ENFILE, 0);
	end();
}

static void address_space_is_named_if_it_is_used_up(void **state)
{
	(void)state;
	begin();
	fake_set_file("/proc/self/statm", "16 9 9 9 0 9 0\n");
	fake_set_limit(RLIMIT_AS, 17 * gmem_sys_page_size());
	assert_limit("ENOMEM", -ENOMEM, gmem_sys_page_size());
	fake_set_limit(RLIMIT_AS, 0x20000);
	fake_set_file("/proc/self/statm", "0 9 9 9 0 9 0\n");
	assert_limit("ENOMEM: RLIMIT_AS is 0x20000, 0x0 are mapped", -ENOMEM, 0x20001);
	/* It is no limit of file descriptors. */
	assert_limit("ENOMEM", -ENOMEM, 0);
	end();
}

static void mappings_are_counted(void **state)
{
	(void)state;
	begin();
	fake_set_file("/proc/sys/vm/max_map_count", "5\n");
	fake_set_file("/proc/self/maps", "a\nb\nc\n");
	assert_limit("ENOMEM", -ENOMEM, 4096);
	fake_set_file("/proc/self/maps", "a\nb\nc\nd\n");
	assert_limit("ENOMEM: vm.max_map_count is 5, there are 4 mappings", -ENOMEM, 4096);
	fake_set_file("/proc/self/maps", NULL);
	assert_limit("ENOMEM", -ENOMEM, 4096);
	end();
}

static void commit_limit_counts_only_where_it_is_kept(void **state)
{
	(void)state;
	begin();
	fake_set_file("/proc/meminfo", "MemTotal: 9 kB\nCommitLimit:  64 kB\nCommitted_AS:  32 kB\n");
	fake_set_file("/proc/sys/vm/overcommit_memory", "0\n");
	assert_limit("ENOMEM", -ENOMEM, 0x8001);
	fake_set_file("/proc/sys/vm/overcommit_memory", "2\n");
	assert_limit("ENOMEM", -ENOMEM, 0x8000);
	assert_limit("ENOMEM: vm.overcommit_memory is 2, CommitLimit 0x10000, 0x8000 are committed",
		     -ENOMEM, 0x8001);
	end();
}

static void locked_memory_is_named_where_mappings_are_locked(void **state)
{
	(void)state;
	begin();
	fake_set_file("/proc/self/status", "Name: x\nVmLck:	       4 kB\n");
	assert_limit("EAGAIN", -EAGAIN, 4096);
	fake_set_limit(RLIMIT_MEMLOCK, 8192);
	assert_limit("EAGAIN", -EAGAIN, 4096);
	assert_limit("EAGAIN: RLIMIT_MEMLOCK is 0x2000, 0x1000 are locked", -EAGAIN, 8192);
	end();
}

static void data_is_counted_without_the_stack(void **state)
{
	(void)state;
	begin();
	fake_set_limit(RLIMIT_DATA, 0x3000);
	assert_limit("ENOMEM", -ENOMEM, 0x3001);
	fake_set_file("/proc/self/status", "Name: x\nVmData:	       4 kB\nVmStk:	     132 kB\n");
	assert_limit("ENOMEM", -ENOMEM, 0x2000);
	assert_limit("ENOMEM: RLIMIT_DATA is 0x3000, 0x1000 are mapped as data", -ENOMEM, 0x2001);
	end();
}

static void what_is_shared_with_a_file_is_no_data(void **state)
{
	(void)state;
	begin();
	fake_set_limit(RLIMIT_DATA, 0x3000);
	fake_set_file("/proc/self/status", "Name: x\nVmData:	       4 kB\n");
	fake_set_file("/proc/meminfo", "MemTotal: 9 kB\nCommitLimit:  4 kB\nCommitted_AS:  4 kB\n");
	fake_set_file("/proc/sys/vm/overcommit_memory", "2\n");
	assert_refused(-ENOMEM, "a file: ENOMEM", gmem_fail_to_map(-ENOMEM, 0x9000, true, "a file"));
	assert_null(strchr(gmem_last_error(), '0'));
	assert_refused(-ENOMEM, "memory: ENOMEM: vm.overcommit_memory is 2",
		       gmem_fail_to_map(-ENOMEM, 0x9000, false, "memory"));
	fake_set_file("/proc/sys/vm/overcommit_memory", "0\n");
	assert_refused(-ENOMEM, "memory: ENOMEM: RLIMIT_DATA is 0x3000",
		       gmem_fail_to_map(-ENOMEM, 0x9000, false, "memory"));
	end();
}

static void file_size_is_named_if_the_file_would_be_larger(void **state)
{
	(void)state;
	begin();
	assert_limit("EFBIG", -EFBIG, UINT64_MAX);
	fake_set_limit(RLIMIT_FSIZE, 0x1000);
	assert_limit("EFBIG", -EFBIG, 0x1000);
	assert_limit("EFBIG: RLIMIT_FSIZE is 0x1000", -EFBIG, 0x1001);
	end();
}

static void nothing_is_claimed_without_the_numbers(void **state)
{
	static const int errors[] = { -ENFILE, -ENOMEM, -EAGAIN, -EINVAL };
	static const char *const names[] = { "ENFILE", "ENOMEM", "EAGAIN", "EINVAL" };

	(void)state;
	begin();
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		assert_limit(names[i], errors[i], 0);
		assert_limit(names[i], errors[i], UINT64_MAX);
	}
	end();
}

static void sentence_says_what_was_refused_and_by_which_limit(void **state)
{
	(void)state;
	begin();
	fake_set_limit(RLIMIT_NOFILE, 7);
	assert_refused(-EMFILE, "fd 3 cannot be duplicated: EMFILE: RLIMIT_NOFILE is 7",
		       gmem_fail_by_limit(-EMFILE, 0, "fd %d cannot be duplicated", 3));
	end();
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(file_descriptors_have_two_limits),
	cmocka_unit_test(address_space_is_named_if_it_is_used_up),
	cmocka_unit_test(mappings_are_counted),
	cmocka_unit_test(commit_limit_counts_only_where_it_is_kept),
	cmocka_unit_test(locked_memory_is_named_where_mappings_are_locked),
	cmocka_unit_test(data_is_counted_without_the_stack),
	cmocka_unit_test(what_is_shared_with_a_file_is_no_data),
	cmocka_unit_test(file_size_is_named_if_the_file_would_be_larger),
	cmocka_unit_test(nothing_is_claimed_without_the_numbers),
	cmocka_unit_test(sentence_says_what_was_refused_and_by_which_limit),
};

UNIT_MAIN(tests)
