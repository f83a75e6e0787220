/* SPDX-License-Identifier: MIT */
/* dump: a VM's memory as JSON, byte for byte, and failures on the way */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "unit.h"
#include "unit_alloc.h"

/* ---- helpers ---- */

/* A file that only grows */
static int new_file(void)
{
	int fd = memfd_create("dump", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* All of it, terminated; yours to free. Closes @fd. */
static char *contents(int fd)
{
	off_t size = lseek(fd, 0, SEEK_END);
	char *text = malloc((size_t)size + 1);

	assert_non_null(text);
	assert_int_equal(pread(fd, text, (size_t)size, 0), size);
	text[size] = '\0';
	close(fd);
	return text;
}

static char *dump_with(const struct unit *unit, const struct gmem_dump_opts *opts)
{
	int fd = new_file();

	assert_ok(gmem_vm_dump(unit->vm, fd, opts));
	return contents(fd);
}

static char *dump(const struct unit *unit)
{
	return dump_with(unit, NULL);
}

static void assert_dump_has(const struct unit *unit, const char *part)
{
	char *text = dump(unit);

	if (!strstr(text, part))
		fail_msg("the dump has no\n%s\nbut is\n%s", part, text);
	free(text);
}

static struct gmem_region *add(const struct unit *unit, uint64_t gpa_page, uint64_t pages,
			       const struct gmem_region_opts *opts)
{
	struct gmem_region *region = NULL;

	assert_ok(gmem_region_add(unit->vm, PAGES(unit, gpa_page), PAGES(unit, pages), opts,
				  &region));
	return region;
}

/* ---- what it says ---- */

static void dump_of_nothing_is_whole(void **state)
{
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	text = dump(&unit);
	assert_string_equal(text, "{\"gmem_dump\":1,\"library\":\"0.1.0\",\"name\":null,\n"
				  "\"architecture\":\"x86_64\",\"page_size\":4096,"
				  "\"address_bits\":48,\"memslots\":32764,\"address_space\":0,\n"
				  "\"regions\":[],\n\"stuck\":[],\n\"leases\":[]}\n");
	free(text);
	unit_end(&unit);
}

static void dump_tells_the_machine(void **state)
{
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "arm64-7.3-64k");
	assert_dump_has(&unit, "\"architecture\":\"arm64\",\"page_size\":65536,"
			       "\"address_bits\":40,\"memslots\":32767,");
	unit_end(&unit);
}

static void dump_has_regions_in_order_of_address(void **state)
{
	struct unit unit;
	char expected[1024], *text;
	struct gmem_file *file;
	struct gmem_plan *host, *mapped;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	mapped = unit_plan(&unit, GMEM_BACKING_MAPPED);
	file = unit_file(&unit, 8);

	GMEM_OPTS(gmem_dump_opts, opts, .flags = GMEM_DUMP_LAYOUT_ONLY);
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	GMEM_OPTS(gmem_region_opts, rom, .flags = GMEM_REGION_READONLY, .plan = host);
	GMEM_OPTS(gmem_region_opts, part, .flags = GMEM_REGION_DIRTY_LOG, .plan = mapped,
		  .file = file, .file_offset = PAGES(&unit, 4));
	add(&unit, 64, 1, &device);
	add(&unit, 32, 2, &rom);
	add(&unit, 0, 4, &part);

	snprintf(expected, sizeof(expected),
		 "\"regions\":[\n"
		 "{\"gpa\":0,\"size\":16384,\"backing\":\"mapped\",\"slot\":1,\"kind\":\"ram\",\"identity\":0,\"lost\":false,"
		 "\"readonly\":false,\"dirty_log\":true,\n"
		 " \"file\":{\"fd\":%d,\"size\":32768,\"offset\":16384,\"create_flags\":3},"
		 "\"hva\":null,\n \"ranges\":[]},\n"
		 "{\"gpa\":131072,\"size\":8192,\"backing\":\"host\",\"slot\":0,\"kind\":\"rom\",\"identity\":0,\"lost\":false,"
		 "\"readonly\":true,\"dirty_log\":false,\n \"file\":null,\"hva\":null,\n"
		 " \"ranges\":[]},\n"
		 "{\"gpa\":262144,\"size\":4096,\"backing\":\"device\",\"slot\":null,"
		 "\"kind\":null,\"identity\":0,\"lost\":false,\"readonly\":false,\"dirty_log\":false,\n"
		 " \"file\":null,\"hva\":null,\n \"ranges\":[]}],\n", gmem_file_fd(file));
	text = dump_with(&unit, &opts);
	assert_non_null(strstr(text, expected));
	free(text);

	gmem_plan_free(host);
	gmem_plan_free(mapped);
	gmem_file_free(file);
	unit_end(&unit);
}

static void dump_names_every_way_of_backing(void **state)
{
	static const struct {
		const char *kernel;
		uint32_t backing;
		const char *part;
	} ways[] = {
		{ "6.1", GMEM_BACKING_HOST, "\"backing\":\"host\"" },
		{ "6.18", GMEM_BACKING_MAPPED, "\"backing\":\"mapped\"" },
		{ "6.18", GMEM_BACKING_SHARED, "\"backing\":\"shared\"" },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE, "\"backing\":\"private\"" },
	};
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		unit_begin_vm(&unit, ways[i].kernel);
		plan = unit_plan(&unit, ways[i].backing);
		unit_region(&unit, 0, 1, plan);
		assert_dump_has(&unit, ways[i].part);
		gmem_plan_free(plan);
		unit_end(&unit);
	}
}

static void host_addresses_are_told_only_when_asked_for(void **state)
{
	GMEM_OPTS(gmem_dump_opts, opts, .flags = GMEM_DUMP_HVA);
	char expected[64], *text;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	snprintf(expected, sizeof(expected), "\"hva\":%llu,",
		 (unsigned long long)(uintptr_t)gmem_region_hva(unit_region(&unit, 0, 1, NULL)));
	assert_dump_has(&unit, "\"hva\":null,");
	text = dump_with(&unit, &opts);
	assert_non_null(strstr(text, expected));
	free(text);
	unit_end(&unit);
}

static void any_name_is_a_json_string(void **state)
{
	static const char *const names[][2] = {
		{ "", "\"\"" },
		{ "web 1", "\"web 1\"" },
		{ "a\"b\\c/", "\"a\\\"b\\\\c/\"" },
		{ "\n\t\x1b[1m\x7f", "\"\\u000a\\u0009\\u001b[1m\\u007f\"" },
		{ "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa7",
		  "\"gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa7\"" },
		{ "\xff|\xc3|\xed\xa0\x80", "\"\\ufffd|\\ufffd|\\ufffd\\ufffd\\ufffd\"" },
		{ "end\xe2\x82", "\"end\\ufffd\\ufffd\"" },
		/* controls, direction, formats, lines, private use, no character, none yet */
		{ "\xc2\x85\xc2\x9b", "\"\\u0085\\u009b\"" },
		{ "\xd8\x9c\xe2\x80\xae\xe2\x81\xa6", "\"\\u061c\\u202e\\u2066\"" },
		{ "\xe2\x80\x8b\xef\xbb\xbf\xf3\xa0\x80\x81", "\"\\u200b\\ufeff\\udb40\\udc01\"" },
		{ "\xe2\x80\xa8\xe2\x80\xa9", "\"\\u2028\\u2029\"" },
		{ "\xee\x80\x80\xef\xbf\xbf\xcd\xb8", "\"\\ue000\\uffff\\u0378\"" },
		{ "\xc0\x9b\xe0\x82\x9b", "\"\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\"" },
	};
	GMEM_OPTS(gmem_dump_opts, opts, .flags = 0);
	char expected[128], *text;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		opts.name = names[i][0];
		snprintf(expected, sizeof(expected), ",\"name\":%s,\n", names[i][1]);
		text = dump_with(&unit, &opts);
		assert_non_null(strstr(text, expected));
		free(text);
	}
	unit_end(&unit);
}

static void long_names_are_whole(void **state)
{
	GMEM_OPTS(gmem_dump_opts, opts, .flags = 0);
	static char name[50001];
	struct unit unit;
	char *text;

	(void)state;
	memset(name, 'x', sizeof(name) - 1);
	opts.name = name;
	unit_begin_vm(&unit, "6.18");
	text = dump_with(&unit, &opts);
	assert_non_null(strstr(text, name));
	free(text);
	unit_end(&unit);
}

static void region_that_lost_its_memslot_is_said_to(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 4, 4, NULL);
	fake_fail_kind(FAKE_SET_SLOT2, 0, 2, -ENOMEM);
	assert_int_equal(gmem_region_move(region, 0), -ENOTRECOVERABLE);
	assert_dump_has(&unit, "\"slot\":0,\"kind\":\"ram\",\"identity\":0,\"lost\":true,");
	unit_end(&unit);
}

static void memslot_that_is_stuck_stands_apart(void **state)
{
	struct gmem_region *lower, *upper;
	struct gmem_change *change;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	/* the second cannot be added, the first then not deleted */
	assert_ok(fake_add_slot(unit.vm_fd, 99, PAGES(&unit, 4), unit.page));
	assert_ok(gmem_change_new(unit.vm, &change));
	assert_ok(gmem_change_add(change, 0, unit.page, NULL, &lower));
	assert_ok(gmem_change_add(change, PAGES(&unit, 4), unit.page, NULL, &upper));
	fake_fail_kind(FAKE_DELETE_SLOT, 0, 100, -ENOMEM);
	assert_int_equal(gmem_change_apply(change), -ENOTRECOVERABLE);
	assert_true(fake_fail_struck());

	assert_dump_has(&unit, "\"regions\":[],\n\"stuck\":[\n{\"gpa\":0,\"size\":4096,");
	gmem_change_free(change);
	unit_end(&unit);
}

static void leases_are_told_with_their_holders(void **state)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "net \"0\"");
	struct gmem_lease *lease;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 4, NULL);
	assert_ok(gmem_lease_new(unit.vm, unit.page, unit.page, &opts, &lease));
	assert_dump_has(&unit, "\"leases\":[\n{\"gpa\":4096,\"size\":4096,"
			       "\"holder\":\"net \\\"0\\\"\"}]}\n");
	gmem_lease_free(lease);
	assert_dump_has(&unit, "\"leases\":[]}\n");
	unit_end(&unit);
}

static void dump_of_many_regions_is_whole(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	const char *at;
	unsigned count = 0;
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (uint64_t i = 0; i < 500; i++)
		add(&unit, 2 * i, 1, &opts);
	text = dump(&unit);
	for (at = text; (at = strstr(at, "{\"gpa\":")); at++)
		count++;
	assert_int_equal(count, 500);
	assert_string_equal(text + strlen(text) - strlen("],\n\"stuck\":[],\n\"leases\":[]}\n"),
			    "],\n\"stuck\":[],\n\"leases\":[]}\n");
	free(text);
	unit_end(&unit);
}

/* ---- what is in the memory ---- */

/* Use pages of a region, counted from its start */
static void use(const struct unit *unit, const struct gmem_region *region, uint64_t first,
		uint64_t pages)
{
	memset((char *)gmem_region_hva(region) + PAGES(unit, first), 1, PAGES(unit, pages));
}

static char *dump_cells(const struct unit *unit, uint64_t pages)
{
	GMEM_OPTS(gmem_dump_opts, opts, .cell = PAGES(unit, pages));

	return dump_with(unit, &opts);
}

/* "ranges" of the first region, from "[" to the first "]}" that ends it */
static void assert_ranges(const char *text, const char *expected)
{
	const char *ranges = strstr(text, "\"ranges\":");

	assert_non_null(ranges);
	if (strncmp(ranges, expected, strlen(expected)) != 0)
		fail_msg("not\n%s\nbut\n%s", expected, ranges);
}

static void cells_that_are_alike_are_one_range(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 16, 16, NULL);
	use(&unit, region, 4, 5);
	text = dump_cells(&unit, 2);
	assert_ranges(text,
		"\"ranges\":["
		"\n  {\"gpa\":65536,\"size\":16384,\"private\":0,\"shared_resident\":0,"
		"\"private_resident\":0,\"nodes\":[]},"
		"\n  {\"gpa\":81920,\"size\":16384,\"private\":0,\"shared_resident\":16384,"
		"\"private_resident\":0,\"nodes\":[{\"node\":0,\"pages\":4}]},"
		"\n  {\"gpa\":98304,\"size\":8192,\"private\":0,\"shared_resident\":4096,"
		"\"private_resident\":0,\"nodes\":[{\"node\":0,\"pages\":1}]},"
		"\n  {\"gpa\":106496,\"size\":24576,\"private\":0,\"shared_resident\":0,"
		"\"private_resident\":0,\"nodes\":[]}]}");
	free(text);
	unit_end(&unit);
}

static void private_bytes_are_those_converted(void **state)
{
	struct gmem_plan *plan;
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
	unit_region(&unit, 0, 12, plan);
	assert_ok(gmem_vm_convert(unit.vm, PAGES(&unit, 4), PAGES(&unit, 3), GMEM_STATE_PRIVATE,
				  NULL, NULL));
	text = dump_cells(&unit, 2);
	assert_ranges(text,
		"\"ranges\":["
		"\n  {\"gpa\":0,\"size\":16384,\"private\":0,\"shared_resident\":0,"
		"\"private_resident\":0,\"nodes\":[]},"
		"\n  {\"gpa\":16384,\"size\":8192,\"private\":8192,\"shared_resident\":0,"
		"\"private_resident\":0,\"nodes\":[]},"
		"\n  {\"gpa\":24576,\"size\":8192,\"private\":4096,\"shared_resident\":0,"
		"\"private_resident\":0,\"nodes\":[]},"
		"\n  {\"gpa\":32768,\"size\":16384,\"private\":0,\"shared_resident\":0,"
		"\"private_resident\":0,\"nodes\":[]}]}");
	free(text);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void last_cell_of_a_region_may_be_short(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "arm64-7.3-64k");
	region = unit_region(&unit, 0, 5, NULL);
	use(&unit, region, 4, 1);
	text = dump_cells(&unit, 4);
	assert_ranges(text,
		"\"ranges\":["
		"\n  {\"gpa\":0,\"size\":262144,\"private\":0,\"shared_resident\":0,"
		"\"private_resident\":0,\"nodes\":[]},"
		"\n  {\"gpa\":262144,\"size\":65536,\"private\":0,\"shared_resident\":65536,"
		"\"private_resident\":0,\"nodes\":[{\"node\":0,\"pages\":1}]}]}");
	free(text);
	unit_end(&unit);
}

static void nodes_are_those_of_sixteen_pages_of_a_cell(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "6.19");
	region = unit_region(&unit, 0, 64, NULL);
	fake_set_node(1);
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), 0, PAGES(&unit, 16), NULL));
	fake_set_node(3);
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), PAGES(&unit, 32),
				     PAGES(&unit, 16), NULL));
	use(&unit, region, 0, 16);
	use(&unit, region, 32, 16);
	text = dump_cells(&unit, 64);
	assert_ranges(text,
		"\"ranges\":["
		"\n  {\"gpa\":0,\"size\":262144,\"private\":0,\"shared_resident\":131072,"
		"\"private_resident\":0,\"nodes\":[{\"node\":1,\"pages\":8},"
		"{\"node\":3,\"pages\":8}]}]}");
	free(text);
	unit_end(&unit);
}

static void numbers_the_kernel_does_not_tell_are_null(void **state)
{
	struct gmem_plan *plan;
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	fake.no_cachestat = true;
	fake.no_numa = true;
	plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
	use(&unit, unit_region(&unit, 0, 4, plan), 0, 1);
	text = dump_cells(&unit, 4);
	assert_non_null(strstr(text, ",\"shared_resident\":4096,\"private_resident\":null,"
				     "\"nodes\":[]}]}"));
	free(text);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void refused_questions_are_no_failure(void **state)
{
	struct unit unit;
	unsigned n;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	use(&unit, unit_region(&unit, 0, 4, NULL), 1, 2);
	for (n = 1; n < 12; n++) {
		int fd = new_file();

		fake_fail_kind(FAKE_CACHESTAT, n - 1, 1, -EPERM);
		assert_ok(gmem_vm_dump(unit.vm, fd, NULL));
		fake_fail_kind(FAKE_MINCORE, n - 1, 1, -ENOMEM);
		assert_ok(gmem_vm_dump(unit.vm, fd, NULL));
		fake_fail_kind(FAKE_QUERY_PAGES, n - 1, 1, -EPERM);
		assert_ok(gmem_vm_dump(unit.vm, fd, NULL));
		fake_fail_kind(FAKE_MMAP, n - 1, 1, -ENOMEM);
		assert_ok(gmem_vm_dump(unit.vm, fd, NULL));
		fake_fail_struck();
		text = contents(fd);
		free(text);
	}
	unit_end(&unit);
}

static void dump_allocates_nothing_of_the_guest_s(void **state)
{
	struct gmem_region *region;
	struct fake_snapshot *before;
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 0, 64, NULL);
	file = gmem_region_file(region, NULL);
	use(&unit, region, 7, 1);
	before = fake_snapshot();
	free(dump_cells(&unit, 16));
	free(dump(&unit));
	assert_true(fake_equal(before));
	for (off_t page = 0; page < 64; page++) {
		off_t at = page * (off_t)unit.page;

		assert_int_equal(lseek(gmem_file_fd(file), at, SEEK_DATA) == at, page == 7);
	}
	unit_end(&unit);
}

static void default_cells_are_some_five_hundred(void **state)
{
	struct gmem_region *region;
	const char *at;
	unsigned count = 0;
	struct unit unit;
	char *text;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 0, 4000, NULL);
	/* so that no two cells are alike */
	for (uint64_t i = 0; i < 4000; i += 16)
		use(&unit, region, i, 8);
	text = dump(&unit);
	for (at = text; (at = strstr(at, "{\"gpa\":")); at++)
		count++;
	assert_in_range(count, 256, 512);
	free(text);
	unit_end(&unit);
}

/* ---- how it is written ---- */

static void short_and_interrupted_writes_go_on(void **state)
{
	struct unit unit;
	char *whole, *pieces;
	int fd;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (uint64_t i = 0; i < 40; i++)
		unit_region(&unit, 2 * i, 1, NULL);
	whole = dump(&unit);

	fake_shorten_writes(7);
	fake_fail_kind(FAKE_WRITE, 3, 5, -EINTR);
	fd = new_file();
	assert_ok(gmem_vm_dump(unit.vm, fd, NULL));
	assert_true(fake_fail_struck());
	fake_shorten_writes(0);
	pieces = contents(fd);
	assert_string_equal(pieces, whole);
	free(pieces);
	free(whole);
	unit_end(&unit);
}

static void refused_write_says_how_far_it_came(void **state)
{
	static const int errors[] = { -EPIPE, -ENOSPC, -EAGAIN, -EIO };
	struct unit unit;
	char *text;
	int fd;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (uint64_t i = 0; i < 100; i++)
		unit_region(&unit, 2 * i, 1, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		fd = new_file();
		fake_shorten_writes(100);
		fake_fail_kind(FAKE_WRITE, 2, 1, errors[i]);
		assert_refused(errors[i], "took 200 bytes", gmem_vm_dump(unit.vm, fd, NULL));
		assert_true(fake_fail_struck());
		fake_shorten_writes(0);
		text = contents(fd);
		assert_int_equal(strlen(text), 200);
		free(text);
	}
	/* and no further write was tried */
	assert_dump_has(&unit, "\"stuck\":[],\n\"leases\":[]}\n");
	unit_end(&unit);
}

static void dump_of_the_layout_alone_asks_the_kernel_for_nothing(void **state)
{
	GMEM_OPTS(gmem_dump_opts, opts, .flags = GMEM_DUMP_LAYOUT_ONLY);
	struct fake_snapshot *before;
	unsigned calls, writes;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 4, NULL);
	before = fake_snapshot();
	calls = fake_count_all();
	writes = fake_count(FAKE_WRITE);
	free(dump_with(&unit, &opts));
	assert_int_equal(fake_count_all() - calls, fake_count(FAKE_WRITE) - writes);
	assert_true(fake_equal(before));
	unit_end(&unit);
}

static void dump_without_memory_is_refused(void **state)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "test");
	struct gmem_lease *lease;
	struct unit unit;
	int fd = new_file();
	unsigned n;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 1, NULL);
	assert_ok(gmem_lease_new(unit.vm, 0, unit.page, &opts, &lease));
	for (n = 1;; n++) {
		unit_fail_alloc(n);
		if (gmem_vm_dump(unit.vm, fd, NULL) == 0)
			break;
		assert_true(unit_alloc_struck());
		assert_int_equal(lseek(fd, 0, SEEK_END), 0);
	}
	assert_false(unit_alloc_struck());
	assert_int_equal(n, 4);
	gmem_lease_free(lease);
	close(fd);
	unit_end(&unit);
}

struct slow_reader {
	struct unit unit;
	int write_fd;
	int result;
};

static void *dump_to_slow_reader(void *data)
{
	struct slow_reader *r = data;

	r->result = gmem_vm_dump(r->unit.vm, r->write_fd, NULL);
	close(r->write_fd);
	return NULL;
}

static void layout_changes_while_a_slow_reader_reads(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct slow_reader r;
	pthread_t thread;
	char buf[4096], text[5] = "";
	int pipe_fds[2];
	ssize_t n;

	(void)state;
	unit_begin_vm(&r.unit, "6.18");
	for (uint64_t i = 0; i < 1000; i++)
		add(&r.unit, 2 * i, 1, &opts);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	assert_true(fcntl(pipe_fds[1], F_SETPIPE_SZ, 4096) > 0);
	r.write_fd = pipe_fds[1];
	assert_int_equal(pthread_create(&thread, NULL, dump_to_slow_reader, &r), 0);

	/* The dump has begun, and cannot end before this region is added. */
	assert_int_equal(read(pipe_fds[0], buf, 1), 1);
	add(&r.unit, 5000, 1, &opts);

	while ((n = read(pipe_fds[0], buf, sizeof(buf))) > 0)
		if (n >= 4)
			memcpy(text, buf + n - 4, 4);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_ok(r.result);
	assert_string_equal(text + 2, "}\n");
	close(pipe_fds[0]);
	unit_end(&r.unit);
}

static void region_removed_meanwhile_has_no_more_ranges(void **state)
{
	struct gmem_region *last = NULL;
	struct slow_reader r;
	char buf[4096], *text;
	int pipe_fds[2], fd = new_file();
	pthread_t thread;
	ssize_t n;

	(void)state;
	unit_begin_vm(&r.unit, "6.18");
	for (uint64_t i = 0; i < 200; i++)
		last = unit_region(&r.unit, 2 * i, 1, NULL);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	assert_true(fcntl(pipe_fds[1], F_SETPIPE_SZ, 4096) > 0);
	r.write_fd = pipe_fds[1];
	assert_int_equal(pthread_create(&thread, NULL, dump_to_slow_reader, &r), 0);

	/* The dump has begun, and is far from the last region. */
	assert_int_equal(read(pipe_fds[0], buf, 1), 1);
	assert_ok(gmem_region_remove(last));

	while ((n = read(pipe_fds[0], buf, sizeof(buf))) > 0)
		assert_int_equal(write(fd, buf, (size_t)n), n);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_ok(r.result);
	close(pipe_fds[0]);
	text = contents(fd);
	assert_non_null(strstr(text, "\"hva\":null,\n \"ranges\":[]}],\n\"stuck\":[],\n\"leases\":[]}\n"));
	free(text);
	unit_end(&r.unit);
}

/* ---- readers that connect ---- */

static int listening_socket(struct sockaddr_un *ret_address)
{
	socklen_t size = sizeof(*ret_address);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	/* The kernel chooses an abstract name. */
	*ret_address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)ret_address, sizeof(sa_family_t)), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)ret_address, &size), 0);
	assert_int_equal(listen(fd, 8), 0);
	return fd;
}

static int connect_to(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (const struct sockaddr *)address,
				 sizeof(sa_family_t) + 6), 0);
	return fd;
}

static void who_connects_gets_a_dump(void **state)
{
	GMEM_OPTS(gmem_dump_opts, opts, .name = "served");
	struct sockaddr_un address;
	struct unit unit;
	int sock, readers[3];
	char buf[65536];
	ssize_t n;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 4, NULL);
	sock = listening_socket(&address);
	assert_int_equal(gmem_vm_serve_dump(unit.vm, sock, &opts, 0), 0);
	for (size_t i = 0; i < ARRAY_SIZE(readers); i++)
		readers[i] = connect_to(&address);
	for (size_t i = 0; i < ARRAY_SIZE(readers); i++) {
		assert_int_equal(gmem_vm_serve_dump(unit.vm, sock, &opts, 0), 1);
		n = recv(readers[i], buf, sizeof(buf) - 1, MSG_WAITALL);
		assert_in_range(n, 100, sizeof(buf) - 1);
		buf[n] = '\0';
		assert_non_null(strstr(buf, "\"name\":\"served\""));
		assert_string_equal(buf + n - 3, "]}\n");
		close(readers[i]);
	}
	assert_int_equal(gmem_vm_serve_dump(unit.vm, sock, &opts, 0), 0);
	close(sock);
	unit_end(&unit);
}

/* One reads nothing, one has gone, one sends much, one reads a byte now and then. */
static void a_bad_reader_costs_no_more_than_it_may(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct sockaddr_un address;
	struct timespec before, after;
	struct unit unit;
	int sock, slow, other, spent;
	char byte;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (uint64_t i = 0; i < 3000; i++)
		add(&unit, 2 * i, 1, &device);
	sock = listening_socket(&address);
	slow = connect_to(&address);
	assert_refused(-EAGAIN, "no more", gmem_vm_serve_dump(unit.vm, sock, NULL, 0));
	close(slow);

	slow = connect_to(&address);
	clock_gettime(CLOCK_MONOTONIC, &before);
	assert_refused(-EAGAIN, "no more", gmem_vm_serve_dump(unit.vm, sock, NULL, 200));
	clock_gettime(CLOCK_MONOTONIC, &after);
	spent = (int)((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000);
	assert_true(spent >= 199);
	assert_int_equal(read(slow, &byte, 1), 1);
	close(slow);

	/* The scripted kernel writes as any program; tests/kvm/dump.c sees that no signal comes. */
	signal(SIGPIPE, SIG_IGN);
	other = connect_to(&address);
	close(other);
	assert_refused(-EPIPE, "EPIPE", gmem_vm_serve_dump(unit.vm, sock, NULL, 200));
	signal(SIGPIPE, SIG_DFL);
	close(sock);
	unit_end(&unit);
}

static void *read_all_slowly(void *data)
{
	static char buf[4096];
	size_t *sum = data;
	int fd = (int)*sum;
	ssize_t n;

	for (*sum = 0; (n = read(fd, buf, sizeof(buf))) > 0; usleep(500))
		*sum += (size_t)n;
	return NULL;
}

static void a_reader_that_goes_on_reading_is_waited_for(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct sockaddr_un address;
	pthread_t thread;
	struct unit unit;
	int sock, reader;
	size_t sum;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (uint64_t i = 0; i < 3000; i++)
		add(&unit, 2 * i, 1, &device);
	sock = listening_socket(&address);
	reader = connect_to(&address);
	sum = (size_t)reader;
	assert_int_equal(pthread_create(&thread, NULL, read_all_slowly, &sum), 0);
	assert_int_equal(gmem_vm_serve_dump(unit.vm, sock, NULL, UINT32_MAX), 1);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_true(sum > 500000);
	close(reader);
	close(sock);
	unit_end(&unit);
}

static void only_sockets_that_listen_and_never_block_serve(void **state)
{
	struct sockaddr_un address;
	struct unit unit;
	int sock, reader, pair[2];

	(void)state;
	unit_begin_vm(&unit, "6.18");
	sock = listening_socket(&address);
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_serve_dump(NULL, sock, NULL, 0));
	assert_refused(-EBADF, "-1", gmem_vm_serve_dump(unit.vm, -1, NULL, 0));
	assert_refused(-EBADF, "900", gmem_vm_serve_dump(unit.vm, 900, NULL, 0));
	assert_int_equal(fcntl(sock, F_SETFL, 0), 0);
	assert_refused(-EINVAL, "O_NONBLOCK", gmem_vm_serve_dump(unit.vm, sock, NULL, 0));
	assert_int_equal(fcntl(sock, F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(pipe2(pair, O_NONBLOCK), 0);
	assert_refused(-ENOTSOCK, "ENOTSOCK", gmem_vm_serve_dump(unit.vm, pair[0], NULL, 0));
	close(pair[0]);
	close(pair[1]);

	/* without a number for the connection, it goes on waiting */
	reader = connect_to(&address);
	fake_fail_kind(FAKE_ACCEPT, 0, 1, -EMFILE);
	assert_refused(-EMFILE, "accepting", gmem_vm_serve_dump(unit.vm, sock, NULL, 0));
	fake_fail_kind(FAKE_ACCEPT, 0, 1, -ECONNABORTED);
	assert_int_equal(gmem_vm_serve_dump(unit.vm, sock, NULL, 0), 0);
	assert_int_equal(gmem_vm_serve_dump(unit.vm, sock, NULL, 0), 1);
	close(reader);
	close(sock);
	unit_end(&unit);
}

/* ---- refusals ---- */

static void dump_rejects_bad_arguments(void **state)
{
	struct {
		struct gmem_dump_opts opts;
		uint64_t more;
	} newer = { .opts = { .size = sizeof(newer) } };
	GMEM_OPTS(gmem_dump_opts, opts, .flags = 0);
	struct unit unit;
	int fd = new_file(), bit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_dump(NULL, fd, NULL));
	assert_refused(-EBADF, "-1", gmem_vm_dump(unit.vm, -1, NULL));
	assert_refused(-EBADF, "took 0 bytes", gmem_vm_dump(unit.vm, 900, NULL));
	for (bit = 2; bit < 64; bit++) {
		opts.flags = (uint64_t)1 << bit;
		assert_refused(-EINVAL, "flags", gmem_vm_dump(unit.vm, fd, &opts));
	}
	opts.flags = 0;
	opts.cell = unit.page / 2;
	assert_refused(-EINVAL, "alignment 0x800", gmem_vm_dump(unit.vm, fd, &opts));
	opts.cell = 3 * unit.page;
	assert_refused(-EINVAL, "alignment 0x3000", gmem_vm_dump(unit.vm, fd, &opts));
	opts.cell = 0;
	opts.size = sizeof(opts) - 1;
	assert_refused(-EINVAL, "gmem_dump_opts", gmem_vm_dump(unit.vm, fd, &opts));
	assert_ok(gmem_vm_dump(unit.vm, fd, &newer.opts));
	newer.more = 1;
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_refused(-E2BIG, "gmem_dump_opts", gmem_vm_dump(unit.vm, fd, &newer.opts));
	assert_int_equal(lseek(fd, 0, SEEK_END), 0);
	close(fd);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(dump_of_nothing_is_whole),
	cmocka_unit_test(dump_tells_the_machine),
	cmocka_unit_test(dump_has_regions_in_order_of_address),
	cmocka_unit_test(dump_names_every_way_of_backing),
	cmocka_unit_test(host_addresses_are_told_only_when_asked_for),
	cmocka_unit_test(any_name_is_a_json_string),
	cmocka_unit_test(long_names_are_whole),
	cmocka_unit_test(region_that_lost_its_memslot_is_said_to),
	cmocka_unit_test(memslot_that_is_stuck_stands_apart),
	cmocka_unit_test(leases_are_told_with_their_holders),
	cmocka_unit_test(private_bytes_are_those_converted),
	cmocka_unit_test(dump_of_many_regions_is_whole),
	cmocka_unit_test(cells_that_are_alike_are_one_range),
	cmocka_unit_test(last_cell_of_a_region_may_be_short),
	cmocka_unit_test(nodes_are_those_of_sixteen_pages_of_a_cell),
	cmocka_unit_test(numbers_the_kernel_does_not_tell_are_null),
	cmocka_unit_test(refused_questions_are_no_failure),
	cmocka_unit_test(dump_allocates_nothing_of_the_guest_s),
	cmocka_unit_test(default_cells_are_some_five_hundred),
	cmocka_unit_test(short_and_interrupted_writes_go_on),
	cmocka_unit_test(refused_write_says_how_far_it_came),
	cmocka_unit_test(dump_of_the_layout_alone_asks_the_kernel_for_nothing),
	cmocka_unit_test(dump_without_memory_is_refused),
	cmocka_unit_test(layout_changes_while_a_slow_reader_reads),
	cmocka_unit_test(region_removed_meanwhile_has_no_more_ranges),
	cmocka_unit_test(who_connects_gets_a_dump),
	cmocka_unit_test(a_bad_reader_costs_no_more_than_it_may),
	cmocka_unit_test(a_reader_that_goes_on_reading_is_waited_for),
	cmocka_unit_test(only_sockets_that_listen_and_never_block_serve),
	cmocka_unit_test(dump_rejects_bad_arguments),
};

UNIT_MAIN(tests)
