/* SPDX-License-Identifier: MIT */
/* import: what a hostile exporter sends, and limits */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "share/wire.h"
#include "unit.h"
#include "unit_alloc.h"
#include "unit_share.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4U
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

#define PAGE	((uint64_t)4096)
#define MIB	((uint64_t)1 << 20)
#define GIB	((uint64_t)1 << 30)
#define TIB	((uint64_t)1 << 40)
#define RW	(GMEM_RIGHT_READ | GMEM_RIGHT_WRITE)

struct scene {
	struct gmem_import *import;
	struct gmem_view *view;
	int sock;			/* the exporter's end */
	uint32_t sequence;
};

static void scene_begin(struct scene *s, struct gmem_import_opts opts)
{
	int sockets[2];

	fake_boot("6.18");
	opts.size = sizeof(opts);
	*s = (struct scene){ .sock = -1 };
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	assert_ok(gmem_import_new(sockets[1], &opts, &s->import));
	assert_ok(gmem_import_view_new(s->import, &s->view));
	close(sockets[1]);
	s->sock = sockets[0];
}

/* Returns the number of things that are left over. */
static unsigned scene_end_with(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_import_free(s->import);
	close(s->sock);
	assert_int_equal(fake_complaints(), 0);
	return fake_halt();
}

static void scene_end(struct scene *s)
{
	assert_int_equal(scene_end_with(s), 0);
}

static void send_message(struct scene *s, struct gmem_message message, int fd)
{
	uint8_t bytes[GMEM_WIRE_BYTES];

	message.sequence = ++s->sequence;
	gmem_wire_encode(&message, bytes);
	assert_int_equal(fake_send_packet(s->sock, bytes, sizeof(bytes), fd >= 0, fd), sizeof(bytes));
}

/* Send a message and let the import work until it answers: the status, or what ended it */
static int tell(struct scene *s, struct gmem_message message, int fd)
{
	struct gmem_message answer;
	int none, ret, received;

	send_message(s, message, fd);
	do {
		ret = gmem_import_dispatch(s->import);
		if (ret < 0)
			return ret;
		received = gmem_wire_receive(s->sock, &answer, &none);
		if (received < 0)
			return received;
	} while (!received);
	assert_int_equal(answer.type, GMEM_WIRE_ANSWER);
	assert_int_equal(answer.sequence, s->sequence);
	return -(int)answer.status;
}

static void greet(struct scene *s)
{
	assert_ok(tell(s, (struct gmem_message){ .type = GMEM_WIRE_HELLO, .page_size = PAGE }, -1));
}

static struct gmem_message map_of(uint64_t id, uint64_t gpa, uint64_t size, uint32_t rights)
{
	return (struct gmem_message){ .type = GMEM_WIRE_MAP, .id = id, .gpa = gpa, .size = size,
				      .file_size = size, .page_size = PAGE, .rights = rights,
				      .backing = GMEM_BACKING_PRIVATE };
}

static int part(struct scene *s, uint32_t type, uint64_t id, uint64_t gpa, uint64_t size)
{
	return tell(s, (struct gmem_message){ .type = type, .id = id, .gpa = gpa, .size = size }, -1);
}

static int unmap(struct scene *s, uint64_t id)
{
	return tell(s, (struct gmem_message){ .type = GMEM_WIRE_UNMAP, .id = id }, -1);
}

static int look(struct scene *s, uint64_t gpa)
{
	uint64_t value;

	return gmem_view_load(s->view, gpa, 8, GMEM_RELAXED, &value);
}

static bool is_mapped(const void *hva)
{
	unsigned char present;

	return mincore((void *)(uintptr_t)hva, PAGE, &present) == 0;
}

static char *hva_of(struct scene *s, uint64_t gpa)
{
	struct gmem_extent extents[16];
	int count = gmem_import_table(s->import, extents, 16);

	for (int i = 0; i < count; i++)
		if (gpa - extents[i].gpa < extents[i].size)
			return (char *)extents[i].hva + (gpa - extents[i].gpa);
	fail_msg("nothing is mapped at gpa 0x%lx", (unsigned long)gpa);
	return NULL;
}

/* ---- address space ---- */

static void file_that_cannot_be_mapped_is_refused_when_it_comes(void **state)
{
	struct gmem_extent extent;
	struct scene s;
	int vm, fd;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	vm = fake_new_vm();
	fd = fake_new_gmemfd(vm, 4 * PAGE, 0);
	greet(&s);
	assert_int_equal(tell(&s, map_of(1, 16 * PAGE, 4 * PAGE, RW | GMEM_WIRE_WITHHELD), fd), -ENODEV);
	assert_int_equal(gmem_import_table(s.import, &extent, 1), 0);
	fake_close(fd);
	fake_close(vm);
	scene_end(&s);
}

static void file_open_for_less_than_was_said_is_refused(void **state)
{
	static const struct { int flags; int for_both, for_reading; } cases[] = {
		{ O_RDWR, 0, 0 }, { O_RDONLY, -EACCES, 0 }, { O_WRONLY, -EBADF, -EBADF },
		{ O_PATH, -EBADF, -EBADF },
	};
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	struct gmem_extent extent;
	struct scene s;
	char path[32];

	(void)state;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		int anew = open(path, cases[i / 2].flags | O_CLOEXEC);
		int wanted = i % 2 ? cases[i / 2].for_reading : cases[i / 2].for_both;
		uint32_t rights = i % 2 ? GMEM_RIGHT_READ : RW;

		assert_true(anew >= 0);
		scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
		greet(&s);
		assert_int_equal(tell(&s, map_of(1, 16 * PAGE, 4 * PAGE, rights), anew), wanted);
		assert_int_equal(gmem_import_table(s.import, &extent, 1), wanted == 0);
		if (!wanted)
			assert_int_equal(extent.rights, rights);
		close(anew);
		scene_end(&s);
	}
	close(fd);
}

/* What is withheld stays the import's own: no other mapping can come there. */
static void addresses_stay_the_imports_own(void **state)
{
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	struct scene s;
	char *hva;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	assert_ok(tell(&s, map_of(1, 16 * PAGE, 4 * PAGE, RW | GMEM_WIRE_WITHHELD), fd));
	hva = hva_of(&s, 16 * PAGE);
	assert_int_equal(look(&s, 16 * PAGE), -EACCES);
	assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 17 * PAGE, 2 * PAGE));
	assert_int_equal(look(&s, 16 * PAGE), -EACCES);
	assert_ok(look(&s, 17 * PAGE));
	assert_ok(part(&s, GMEM_WIRE_REVOKE, 1, 16 * PAGE, 2 * PAGE));
	assert_int_equal(look(&s, 17 * PAGE), -EACCES);
	assert_ok(look(&s, 18 * PAGE));
	for (int i = 0; i < 4; i++)
		assert_true(is_mapped(hva + (uint64_t)i * PAGE));
	assert_ok(unmap(&s, 1));
	assert_int_equal(look(&s, 18 * PAGE), -ESTALE);
	for (int i = 0; i < 4; i++)
		assert_false(is_mapped(hva + (uint64_t)i * PAGE));
	close(fd);
	scene_end(&s);
}

/* A kernel that refuses: the answer says so, and views and addresses are as before. */
static void failed_revoke_or_grant_changes_nothing(void **state)
{
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	struct scene s;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	assert_ok(tell(&s, map_of(1, 16 * PAGE, 4 * PAGE, RW | GMEM_WIRE_WITHHELD), fd));
	for (int i = 0; i < 3; i++) {
		fake_fail_next(FAKE_MPROTECT, -ENOMEM);
		assert_int_equal(part(&s, GMEM_WIRE_GRANT, 1, 16 * PAGE, 4 * PAGE), -ENOMEM);
		assert_int_equal(look(&s, 17 * PAGE), -EACCES);
	}
	assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 17 * PAGE, PAGE));
	memset(hva_of(&s, 17 * PAGE), 1, PAGE);
	for (int i = 0; i < 3; i++) {
		fake_fail_next(FAKE_MPROTECT, -ENOMEM);
		assert_int_equal(part(&s, GMEM_WIRE_REVOKE, 1, 16 * PAGE, 4 * PAGE), -ENOMEM);
		assert_int_equal(look(&s, 16 * PAGE), -EACCES);
		assert_ok(look(&s, 17 * PAGE));
		assert_int_equal(*hva_of(&s, 17 * PAGE), 1);
		assert_int_equal(look(&s, 18 * PAGE), -EACCES);
	}
	assert_ok(part(&s, GMEM_WIRE_REVOKE, 1, 16 * PAGE, 4 * PAGE));
	assert_int_equal(look(&s, 17 * PAGE), -EACCES);
	close(fd);
	scene_end(&s);
}

/* If it can neither be done nor undone, the import ends, and keeps what it has. */
static void failure_to_undo_ends_the_import(void **state)
{
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	struct scene s;
	char *hva;

	(void)state;
	for (int granted = 0; granted < 2; granted++) {
		scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
		greet(&s);
		assert_ok(tell(&s, map_of(1, 16 * PAGE, 4 * PAGE, RW | GMEM_WIRE_WITHHELD), fd));
		if (granted)
			assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 16 * PAGE, 4 * PAGE));
		hva = hva_of(&s, 16 * PAGE);
		fake_fail_kind(FAKE_MPROTECT, 0, 2, -ENOMEM);
		assert_int_equal(part(&s, granted ? GMEM_WIRE_REVOKE : GMEM_WIRE_GRANT, 1, 16 * PAGE,
				      4 * PAGE), -ENOMEM);
		assert_int_equal(gmem_import_dispatch(s.import), -ENOMEM);
		assert_int_equal(look(&s, 16 * PAGE), -EACCES);
		assert_true(is_mapped(hva));
		scene_end(&s);
		assert_false(is_mapped(hva));
	}
	close(fd);
}

/* The kernel works in pages of the file: less than one, and it would take neighbours' memory. */
static void parts_of_a_files_pages_end_the_import(void **state)
{
	static const struct { uint64_t start, size; } cases[] = {
		{ 0, PAGE }, { 0, MIB }, { PAGE, 2 * MIB }, { 2 * MIB, 4 * MIB - PAGE }, { 4 * MIB - PAGE, PAGE },
	};
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB);
	struct gmem_message map = map_of(1, GIB, 8 * MIB, RW | GMEM_WIRE_WITHHELD);
	struct gmem_message unaligned = map_of(2, 2 * GIB + PAGE, 8 * MIB, RW | GMEM_WIRE_WITHHELD);
	struct scene s;

	(void)state;
	if (fd < 0) {
		print_message("skipped: no memfd of huge pages: %s\n", strerror(errno));
		skip();
	}
	map.page_size = 2 * MIB;
	unaligned.page_size = 2 * MIB;
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
		greet(&s);
		assert_int_equal(tell(&s, unaligned, fd), -EINVAL);
		assert_ok(tell(&s, map, fd));
		assert_int_equal((uintptr_t)hva_of(&s, map.gpa) % (2 * MIB), 0);
		assert_ok(part(&s, GMEM_WIRE_GRANT, 1, map.gpa + 2 * MIB, 4 * MIB));
		assert_int_equal(part(&s, i % 2 ? GMEM_WIRE_GRANT : GMEM_WIRE_REVOKE, 1,
				      map.gpa + cases[i / 2].start, cases[i / 2].size), -EPROTO);
		scene_end(&s);
	}
	close(fd);
}

/* ---- limits ---- */

static void mappings_are_counted_and_limited(void **state)
{
	GMEM_OPTS(gmem_import_opts, opts, .max_mappings = 5);
	int fd = unit_memfd(64 * PAGE, F_SEAL_SHRINK);
	struct scene s;

	(void)state;
	scene_begin(&s, opts);
	greet(&s);
	assert_ok(tell(&s, map_of(1, 0, 64 * PAGE, RW | GMEM_WIRE_WITHHELD), fd));
	/* two runs of granted pages make five mappings */
	assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 10 * PAGE, PAGE));
	assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 20 * PAGE, 4 * PAGE));
	assert_int_equal(part(&s, GMEM_WIRE_GRANT, 1, 30 * PAGE, PAGE), -ENOMEM);
	assert_int_equal(part(&s, GMEM_WIRE_REVOKE, 1, 21 * PAGE, PAGE), -ENOMEM);
	assert_int_equal(look(&s, 30 * PAGE), -EACCES);
	assert_ok(look(&s, 21 * PAGE));
	assert_int_equal(tell(&s, map_of(2, GIB, 64 * PAGE, RW), fd), -ENOMEM);
	/* what makes no more of them is done: growing, repeating, merging */
	assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 11 * PAGE, PAGE));
	assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 20 * PAGE, 4 * PAGE));
	assert_ok(part(&s, GMEM_WIRE_REVOKE, 1, 23 * PAGE, PAGE));
	assert_ok(part(&s, GMEM_WIRE_GRANT, 1, 12 * PAGE, 8 * PAGE));
	/* from 10 to 23 now: one run, three mappings */
	assert_ok(part(&s, GMEM_WIRE_REVOKE, 1, 15 * PAGE, PAGE));
	assert_int_equal(part(&s, GMEM_WIRE_REVOKE, 1, 18 * PAGE, PAGE), -ENOMEM);
	assert_ok(part(&s, GMEM_WIRE_REVOKE, 1, 0, 64 * PAGE));
	assert_ok(tell(&s, map_of(2, GIB, 64 * PAGE, RW), fd));
	assert_ok(tell(&s, map_of(3, 2 * GIB, 64 * PAGE, RW), fd));
	assert_ok(unmap(&s, 1));
	assert_ok(tell(&s, map_of(4, 3 * GIB, 64 * PAGE, RW), fd));
	assert_ok(tell(&s, map_of(5, 4 * GIB, 64 * PAGE, RW), fd));
	assert_ok(tell(&s, map_of(6, 5 * GIB, 64 * PAGE, RW), fd));
	assert_int_equal(tell(&s, map_of(7, 6 * GIB, 64 * PAGE, RW), fd), -ENOMEM);
	close(fd);
	scene_end(&s);
}

static void tables_are_limited(void **state)
{
	GMEM_OPTS(gmem_import_opts, opts, .max_table_bytes = 128 << 10);
	int sparse = unit_memfd(16 * TIB, F_SEAL_SHRINK), fd = unit_memfd(2 * GIB, F_SEAL_SHRINK);
	struct scene s;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	assert_int_equal(tell(&s, map_of(1, 0, 16 * TIB, RW), sparse), -ENOSPC);
	assert_ok(tell(&s, map_of(1, 0, 2 * GIB, RW), fd));
	scene_end(&s);

	scene_begin(&s, opts);
	greet(&s);
	assert_ok(tell(&s, map_of(1, 0, 2 * GIB, RW), fd));
	assert_int_equal(tell(&s, map_of(2, TIB, 2 * GIB, RW), fd), -ENOSPC);
	assert_ok(unmap(&s, 1));
	assert_ok(tell(&s, map_of(3, TIB, 2 * GIB, RW), fd));
	scene_end(&s);
	close(sparse);
	close(fd);
}

/* However large a range is, a call does only a piece of it. */
static void large_ranges_take_several_calls(void **state)
{
	int fd = unit_memfd(3 * GIB, F_SEAL_SHRINK);
	struct gmem_message answer, steps[] = {
		map_of(1, 0, 3 * GIB, RW | GMEM_WIRE_WITHHELD),
		{ .type = GMEM_WIRE_GRANT, .id = 1, .size = 3 * GIB },
		{ .type = GMEM_WIRE_REVOKE, .id = 1, .size = 3 * GIB },
		{ .type = GMEM_WIRE_GRANT, .id = 1, .gpa = GIB, .size = 2 * GIB },
		{ .type = GMEM_WIRE_UNMAP, .id = 1 },
	};
	struct pollfd ready;
	struct scene s;
	int none, calls;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	ready = (struct pollfd){ .fd = gmem_import_fd(s.import), .events = POLLIN };
	/* each look at the clock finds it 5 ms later: one piece is enough for a call */
	fake.clock_step = 5000000;
	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		send_message(&s, steps[i], i ? -1 : fd);
		for (calls = 0; gmem_wire_receive(s.sock, &answer, &none) == 0; calls++) {
			assert_int_equal(poll(&ready, 1, 0), 1);
			assert_true(gmem_import_dispatch(s.import) >= 0);
		}
		assert_int_equal(answer.status, 0);
		assert_true(calls > 2);
		assert_int_equal(poll(&ready, 1, 0), 0);
		assert_int_equal(look(&s, 2 * GIB),
				 i == 4 ? -ESTALE : i == 1 || i == 3 ? 0 : -EACCES);
	}
	fake.clock_step = 0;
	close(fd);
	scene_end(&s);
}

static void import_may_end_in_the_middle_of_a_large_range(void **state)
{
	int fd = unit_memfd(2 * GIB, F_SEAL_SHRINK);
	struct gmem_message steps[] = {
		map_of(1, 0, 2 * GIB, RW | GMEM_WIRE_WITHHELD),
		{ .type = GMEM_WIRE_GRANT, .id = 1, .size = 2 * GIB },
		{ .type = GMEM_WIRE_REVOKE, .id = 1, .size = 2 * GIB },
		{ .type = GMEM_WIRE_UNMAP, .id = 1 },
	};
	struct scene s;

	(void)state;
	for (size_t last = 0; last < ARRAY_SIZE(steps); last++) {
		for (int calls = 0; calls < 6; calls += 2) {
			scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
			greet(&s);
			for (size_t i = 0; i < last; i++)
				assert_ok(tell(&s, steps[i], i ? -1 : fd));
			fake.clock_step = 5000000;
			send_message(&s, steps[last], last ? -1 : fd);
			for (int i = 0; i < calls; i++)
				assert_true(gmem_import_dispatch(s.import) >= 0);
			fake.clock_step = 0;
			scene_end(&s);
		}
	}
	close(fd);
}

/* Allocations and calls that fail in the middle: the import ends, or goes on as before. */
static void failures_in_the_middle_leave_nothing_behind(void **state)
{
	int fd = unit_memfd(96 * MIB, F_SEAL_SHRINK);
	struct gmem_message steps[] = {
		map_of(1, 0, 96 * MIB, RW | GMEM_WIRE_WITHHELD),
		{ .type = GMEM_WIRE_GRANT, .id = 1, .size = 96 * MIB },
		{ .type = GMEM_WIRE_REVOKE, .id = 1, .size = 96 * MIB },
		{ .type = GMEM_WIRE_UNMAP, .id = 1 },
	};
	unsigned left;
	struct scene s;
	bool struck;
	int ret;

	(void)state;
	for (unsigned n = 1, going_on = 1; going_on; n++) {
		for (int allocation = 0; allocation < 2; allocation++) {
			scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
			greet(&s);
			if (allocation)
				unit_fail_alloc(n);
			else
				fake_fail_call(n, -ENOMEM);
			ret = 0;
			for (size_t i = 0; i < ARRAY_SIZE(steps) && !ret; i++)
				ret = tell(&s, steps[i], i ? -1 : fd);
			struck = allocation ? unit_alloc_struck() : fake_fail_struck();
			assert_true(struck || !ret);
			if (!allocation)
				going_on = struck;
			/* Memory that could not be unmapped is never touched again. */
			left = scene_end_with(&s);
			assert_true(left == 0 || (left == 1 && !allocation && ret == -ENOMEM));
		}
	}
	close(fd);
}

/* The exporter would take it for unmapped: the import ends, and answers nothing. */
static void memory_that_stays_mapped_is_not_said_to_be_gone(void **state)
{
	const struct gmem_message unmap_it = { .type = GMEM_WIRE_UNMAP, .id = 1 };
	const struct gmem_message withheld = map_of(1, 0, 4 * PAGE, RW | GMEM_WIRE_WITHHELD);
	const struct {
		struct gmem_message message;
		enum fake_call call;	/* that fails, and what it did is undone */
		bool allocation;
		const char *sentence;
	} cases[] = {
		{ unmap_it, FAKE_CALLS, false, "0x4000 bytes at gpa 0x0 stay mapped: ENOMEM" },
		{ withheld, FAKE_MADVISE, false, "MADV_DONTDUMP" },
		{ withheld, FAKE_MPROTECT, false, "cannot be made inaccessible" },
		{ withheld, FAKE_CALLS, true, "" },
	};
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK), none;
	struct gmem_message answer;
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
		greet(&s);
		if (cases[i].message.type == GMEM_WIRE_UNMAP)
			assert_ok(tell(&s, map_of(1, 0, 4 * PAGE, RW), fd));
		send_message(&s, cases[i].message, cases[i].message.type == GMEM_WIRE_MAP ? fd : -1);
		fake.cannot_unmap = true;
		if (cases[i].call != FAKE_CALLS)
			fake_fail_next(cases[i].call, -ENOMEM);
		if (cases[i].allocation)
			unit_fail_alloc(3);
		for (int calls = 0; calls < 8 && gmem_import_dispatch(s.import) >= 0; calls++)
			;
		assert_non_null(strstr(gmem_last_error(), cases[i].sentence));
		assert_true(!cases[i].allocation || unit_alloc_struck());
		assert_true(gmem_wire_receive(s.sock, &answer, &none) < 0);
		fake.cannot_unmap = false;
		assert_int_equal(gmem_import_dispatch(s.import), -ENOMEM);
		assert_non_null(strstr(gmem_last_error(), "ended before"));
		assert_int_equal(scene_end_with(&s), 1);
	}
	close(fd);
}

static void file_that_does_not_arrive_is_not_the_end(void **state)
{
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	struct scene s;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	fake_fail_next(FAKE_RECEIVE_FD, -EMFILE);
	assert_int_equal(tell(&s, map_of(1, 0, 4 * PAGE, RW), fd), -EMFILE);
	assert_ok(tell(&s, map_of(2, 0, 4 * PAGE, RW), fd));
	assert_ok(look(&s, 0));
	close(fd);
	scene_end(&s);
}

/* The kernel is short of memory for a moment: the message is still there. */
static void message_that_cannot_be_received_now_is_received_later(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	fake_fail_next(FAKE_RECEIVE, -ENOMEM);
	greet(&s);
	assert_true(fake_fail_struck());
	scene_end(&s);
}

/* An event loop that keeps the import for its views has nothing to do for it. */
static void import_that_has_ended_is_quiet_and_says_what_it_refused(void **state)
{
	GMEM_OPTS(gmem_import_opts, opts, .max_bytes = PAGE);
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	struct pollfd ready;
	struct scene s;

	(void)state;
	scene_begin(&s, opts);
	greet(&s);
	assert_int_equal(tell(&s, map_of(1, 0, 4 * PAGE, RW), fd), -ENOSPC);
	ready = (struct pollfd){ .fd = gmem_import_fd(s.import), .events = POLLIN };
	shutdown(s.sock, SHUT_RDWR);
	assert_int_equal(poll(&ready, 1, 0), 1);
	assert_int_equal(gmem_import_dispatch(s.import), -EPIPE);
	assert_non_null(strstr(gmem_last_error(), "after it was told ENOSPC"));
	assert_int_equal(poll(&ready, 1, 0), 0);
	assert_int_equal(gmem_import_dispatch(s.import), -EPIPE);
	close(fd);
	scene_end(&s);
}

/* Extents are mapped once: however many there are, they take no file descriptors. */
static void extents_keep_no_file_descriptors(void **state)
{
	int fd = unit_memfd(256 * PAGE, F_SEAL_SHRINK), first, last;
	struct scene s;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	first = dup(fd);
	close(first);
	for (uint64_t i = 0; i < 256; i++) {
		struct gmem_message map = map_of(i + 1, i * PAGE, PAGE, RW);

		map.offset = i * PAGE;
		map.file_size = 256 * PAGE;
		assert_ok(tell(&s, map, fd));
	}
	last = dup(fd);
	close(last);
	assert_int_equal(first, last);
	close(fd);
	scene_end(&s);
}

/* It was waited for in vain. The connection ends at once, the memory with the view. */
static void section_that_outlives_its_import_keeps_the_memory(void **state)
{
	int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	uint64_t value = 0;
	char *hva, byte;
	struct scene s;

	(void)state;
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	assert_ok(tell(&s, map_of(1, 16 * PAGE, 4 * PAGE, RW), fd));
	hva = hva_of(&s, 16 * PAGE);
	gmem_view_begin(s.view);
	assert_ok(gmem_view_store(s.view, 16 * PAGE, 8, 0, 0x600d));

	gmem_import_free(s.import);
	s.import = NULL;
	assert_int_equal(recv(s.sock, &byte, 1, MSG_DONTWAIT), 0);
	assert_true(is_mapped(hva));
	assert_ok(gmem_view_load(s.view, 16 * PAGE, 8, 0, &value));
	assert_int_equal(value, 0x600d);
	gmem_view_end(s.view);
	assert_int_equal(look(&s, 16 * PAGE), -ESTALE);
	gmem_view_free(s.view);
	s.view = NULL;
	assert_false(is_mapped(hva));
	close(fd);
	scene_end(&s);
}

/* ---- marks of what is written ---- */

/* For guest addresses up to 4 GiB: a byte for each page, then one for each chunk of 2 MiB */
#define MARKS_BYTES	(4 * GIB / PAGE + 4 * GIB / (2 * MIB))

static struct gmem_message mark_to(uint64_t size)
{
	return (struct gmem_message){ .type = GMEM_WIRE_MARK, .size = size, .page_size = PAGE,
				      .offset = size / PAGE, .file_size = size / PAGE + size / (2 * MIB) };
}

static int end_mark(struct scene *s)
{
	return tell(s, (struct gmem_message){ .type = GMEM_WIRE_END_MARK }, -1);
}

static void scene_begin_mapped(struct scene *s, struct gmem_import_opts opts, int fd)
{
	scene_begin(s, opts);
	greet(s);
	assert_ok(tell(s, map_of(1, GIB, 4 * PAGE, RW), fd));
}

static uint8_t *map_marks(int fd)
{
	uint8_t *marks = mmap(NULL, MARKS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_ptr_not_equal(marks, MAP_FAILED);
	return marks;
}

static int write_page(struct scene *s, uint64_t page)
{
	return gmem_view_store(s->view, GIB + page * PAGE, 8, GMEM_RELEASE, page);
}

/* Fails unless just this page and its chunk have marks, none if it is UINT64_MAX; takes them. */
static void check_marks(uint8_t *marks, uint64_t page)
{
	for (uint64_t i = 0; i < MARKS_BYTES; i++) {
		const bool is_page = i == page;
		const bool is_chunk = page != UINT64_MAX && i == 4 * GIB / PAGE + page / 512;

		if (marks[i] != (is_page || is_chunk))
			fail_msg("mark %lu is %u", (unsigned long)i, marks[i]);
		marks[i] = 0;
	}
}

static void what_is_written_is_marked_in_the_last_map(void **state)
{
	int memory = unit_memfd(4 * PAGE, F_SEAL_SHRINK), fds[2];
	struct scene s;
	uint8_t *a, *b;

	(void)state;
	for (int i = 0; i < 2; i++)
		fds[i] = unit_memfd(MARKS_BYTES, UNIT_SEALED);
	a = map_marks(fds[0]);
	b = map_marks(fds[1]);
	scene_begin_mapped(&s, (struct gmem_import_opts){ .flags = 0 }, memory);
	/* to end what never began does nothing */
	assert_ok(end_mark(&s));
	assert_ok(write_page(&s, 0));
	check_marks(a, UINT64_MAX);

	assert_ok(tell(&s, mark_to(4 * GIB), fds[0]));
	assert_ok(write_page(&s, 1));
	check_marks(a, GIB / PAGE + 1);
	/* whatever is in it already */
	memset(a, 1, MARKS_BYTES);
	assert_ok(write_page(&s, 1));
	memset(a, 0, MARKS_BYTES);

	assert_ok(tell(&s, mark_to(4 * GIB), fds[1]));
	assert_ok(write_page(&s, 2));
	check_marks(a, UINT64_MAX);
	check_marks(b, GIB / PAGE + 2);
	/* what it does not cover is not marked */
	{
		struct gmem_message small = mark_to(GIB);

		small.file_size = MARKS_BYTES;
		assert_ok(tell(&s, small, fds[0]));
	}
	assert_ok(write_page(&s, 3));
	check_marks(a, UINT64_MAX);
	check_marks(b, UINT64_MAX);
	/* refused, it goes on with the one before */
	assert_ok(tell(&s, mark_to(4 * GIB), fds[1]));
	assert_int_equal(tell(&s, mark_to(8 * GIB), fds[0]), -EINVAL);
	assert_ok(write_page(&s, 3));
	check_marks(b, GIB / PAGE + 3);
	assert_ok(end_mark(&s));
	assert_ok(write_page(&s, 1));
	check_marks(b, UINT64_MAX);

	/* an exporter that is gone may still look */
	assert_ok(tell(&s, mark_to(4 * GIB), fds[0]));
	close(s.sock);
	s.sock = -1;
	assert_int_equal(gmem_import_dispatch(s.import), -EPIPE);
	assert_ok(write_page(&s, 1));
	check_marks(a, GIB / PAGE + 1);
	munmap(a, MARKS_BYTES);
	munmap(b, MARKS_BYTES);
	close(fds[0]);
	close(fds[1]);
	close(memory);
	gmem_view_free(s.view);
	gmem_import_free(s.import);
	assert_int_equal(fake_halt(), 0);
}

/* Refused, and everything else goes on: the exporter then counts all as written. */
static void maps_for_marks_are_checked(void **state)
{
	static const struct { uint64_t size; int seals, flags; bool is_huge; int err; } cases[] = {
		{ MARKS_BYTES, 0, O_RDWR, false, -EPERM },
		{ MARKS_BYTES, F_SEAL_GROW | F_SEAL_SEAL, O_RDWR, false, -EPERM },
		{ MARKS_BYTES, UNIT_SEALED | F_SEAL_WRITE, O_RDWR, false, -EPERM },
		{ MARKS_BYTES, F_SEAL_SHRINK, O_RDONLY, false, -EPERM },
		{ MARKS_BYTES, F_SEAL_SHRINK, O_WRONLY, false, -EBADF },
		{ MARKS_BYTES - 1, F_SEAL_SHRINK, O_RDWR, false, -EINVAL },
		{ MARKS_BYTES + 1, F_SEAL_SHRINK, O_RDWR, false, -EINVAL },
		{ MARKS_BYTES, F_SEAL_SHRINK, O_RDWR, true, -EINVAL },
		{ MARKS_BYTES, F_SEAL_SHRINK, O_RDWR, false, 0 },
	};
	int memory = unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	struct gmem_message larger = mark_to(4 * GIB);
	int fd, anew, vm;
	struct scene s;
	char path[32];

	(void)state;
	larger.page_size = 16384;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		fd = unit_memfd(cases[i].size, cases[i].seals);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		anew = open(path, cases[i].flags | O_CLOEXEC);
		assert_true(anew >= 0);
		/* no option has it take a file that shrinks */
		scene_begin_mapped(&s, (struct gmem_import_opts){ .flags = GMEM_IMPORT_UNSEALED }, memory);
		if (cases[i].is_huge)
			fake_pretend_huge(fd, 2 * MIB);
		assert_int_equal(tell(&s, mark_to(4 * GIB), anew), cases[i].err);
		/* nor pages that are not the host's */
		assert_int_equal(tell(&s, larger, fd), -EINVAL);
		assert_ok(write_page(&s, 1));
		assert_ok(unmap(&s, 1));
		close(anew);
		close(fd);
		scene_end(&s);
	}

	/* a guest_memfd, which has no seals and may lack pages; and what is no file of memory */
	scene_begin_mapped(&s, (struct gmem_import_opts){ .flags = 0 }, memory);
	vm = fake_new_vm();
	fd = fake_new_gmemfd(vm, 1 << 20, 0);
	{
		struct gmem_message message = mark_to(GIB);

		message.file_size = 1 << 20;
		assert_int_equal(tell(&s, message, fd), -EINVAL);
	}
	fake_close(fd);
	fake_close(vm);
	anew = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(tell(&s, mark_to(4 * GIB), anew), -EINVAL);
	close(anew);
	assert_ok(write_page(&s, 1));
	scene_end(&s);
	close(memory);
}

static void marks_that_find_no_room_are_refused(void **state)
{
	GMEM_OPTS(gmem_import_opts, opts, .max_mappings = 2);
	int memory = unit_memfd(4 * PAGE, F_SEAL_SHRINK), fd = unit_memfd(MARKS_BYTES, UNIT_SEALED);
	struct scene s;

	(void)state;
	scene_begin_mapped(&s, opts, memory);
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	assert_int_equal(tell(&s, mark_to(4 * GIB), fd), -ENOMEM);
	fake_fail_next(FAKE_RECEIVE_FD, -EMFILE);
	assert_int_equal(tell(&s, mark_to(4 * GIB), fd), -EMFILE);
	unit_fail_alloc(1);
	assert_int_equal(tell(&s, mark_to(4 * GIB), fd), -ENOMEM);
	assert_true(unit_alloc_struck());
	/* They are one mapping, which counts as long as it is there. */
	assert_ok(tell(&s, mark_to(4 * GIB), fd));
	assert_int_equal(tell(&s, mark_to(4 * GIB), fd), -ENOMEM);
	assert_non_null(strstr(gmem_last_error(), "max_mappings"));
	assert_int_equal(tell(&s, map_of(2, 2 * GIB, 4 * PAGE, RW), memory), -ENOMEM);
	assert_ok(end_mark(&s));
	assert_ok(tell(&s, map_of(2, 2 * GIB, 4 * PAGE, RW), memory));
	assert_int_equal(tell(&s, mark_to(4 * GIB), fd), -ENOMEM);
	assert_ok(write_page(&s, 1));
	scene_end(&s);
	close(fd);
	close(memory);
}

static void messages_for_marks_that_are_none_end_the_import(void **state)
{
	int fd = unit_memfd(MARKS_BYTES, UNIT_SEALED);
	struct scene s;

	(void)state;
	for (int i = 0; i < 12; i++) {
		struct gmem_message message = mark_to(4 * GIB);

		switch (i) {
		case 0: message.gpa = 2 * MIB; break;
		case 1: message.size -= PAGE; break;
		case 2: message.size = 0; break;
		case 3: message.offset--; break;
		case 4: message.file_size--; break;
		case 5: message.offset = message.file_size + 1; break;
		case 6: message.size = UINT64_C(1) << 53; break;
		case 7: message.page_size = 0; break;
		case 8: message.page_size = 4 * MIB; break;
		case 9: message.rights = RW; break;
		case 10: message.id = 1; break;
		default: message.type = GMEM_WIRE_END_MARK;
		}
		scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
		greet(&s);
		assert_int_equal(tell(&s, message, fd), -EPROTO);
		scene_end(&s);
	}
	/* without a greeting, and with a file where none may be */
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	assert_int_equal(tell(&s, mark_to(4 * GIB), fd), -EPROTO);
	scene_end(&s);
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	assert_int_equal(tell(&s, mark_to(4 * GIB), -1), -EPROTO);
	scene_end(&s);
	scene_begin(&s, (struct gmem_import_opts){ .flags = 0 });
	greet(&s);
	assert_int_equal(tell(&s, (struct gmem_message){ .type = GMEM_WIRE_END_MARK }, fd), -EPROTO);
	scene_end(&s);
	close(fd);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(file_that_cannot_be_mapped_is_refused_when_it_comes),
	cmocka_unit_test(file_open_for_less_than_was_said_is_refused),
	cmocka_unit_test(addresses_stay_the_imports_own),
	cmocka_unit_test(failed_revoke_or_grant_changes_nothing),
	cmocka_unit_test(failure_to_undo_ends_the_import),
	cmocka_unit_test(parts_of_a_files_pages_end_the_import),
	cmocka_unit_test(mappings_are_counted_and_limited),
	cmocka_unit_test(tables_are_limited),
	cmocka_unit_test(large_ranges_take_several_calls),
	cmocka_unit_test(import_may_end_in_the_middle_of_a_large_range),
	cmocka_unit_test(failures_in_the_middle_leave_nothing_behind),
	cmocka_unit_test(memory_that_stays_mapped_is_not_said_to_be_gone),
	cmocka_unit_test(file_that_does_not_arrive_is_not_the_end),
	cmocka_unit_test(message_that_cannot_be_received_now_is_received_later),
	cmocka_unit_test(import_that_has_ended_is_quiet_and_says_what_it_refused),
	cmocka_unit_test(extents_keep_no_file_descriptors),
	cmocka_unit_test(section_that_outlives_its_import_keeps_the_memory),
	cmocka_unit_test(what_is_written_is_marked_in_the_last_map),
	cmocka_unit_test(maps_for_marks_are_checked),
	cmocka_unit_test(marks_that_find_no_room_are_refused),
	cmocka_unit_test(messages_for_marks_that_are_none_end_the_import),
};

int main(void)
{
	return cmocka_run_group_tests(tests, NULL, NULL);
}
