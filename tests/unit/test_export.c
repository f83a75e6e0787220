/* SPDX-License-Identifier: MIT */
/* export and extent: the table of a VM's memory that other processes can map */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "unit.h"
#include "unit_alloc.h"
#include "unit_share.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define PAGE		((uint64_t)4096)
#define MOST		8

/* A VM without memory, an export of it, and memory from a memfd */
struct scene {
	struct unit unit;
	struct gmem_plan *host;
	struct gmem_plan *mapped;
	struct gmem_export *exporter;
	struct gmem_extent extents[MOST];
	void *hva;
	int memfd;
};

static void scene_begin_sealed(struct scene *s, uint64_t flags, int seals)
{
	GMEM_OPTS(gmem_export_opts, opts, .flags = flags);

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "6.18");
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	s->mapped = unit_plan(&s->unit, GMEM_BACKING_MAPPED);
	s->memfd = unit_memfd(16 * PAGE, 0);
	s->hva = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	assert_ptr_not_equal(s->hva, MAP_FAILED);
	assert_int_equal(fcntl(s->memfd, F_ADD_SEALS, seals), 0);
	assert_ok(gmem_export_new(s->unit.vm, &opts, &s->exporter));
}

static void scene_begin(struct scene *s, uint64_t flags)
{
	scene_begin_sealed(s, flags, UNIT_SEALED);
}

static void scene_end(struct scene *s)
{
	gmem_export_free(s->exporter);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->host);
	gmem_plan_free(s->mapped);
	munmap(s->hva, 16 * PAGE);
	close(s->memfd);
	unit_end(&s->unit);
}

static struct gmem_region *add(struct scene *s, uint64_t page, uint64_t pages,
			       struct gmem_region_opts opts)
{
	struct gmem_region *region = NULL;

	opts.size = sizeof(opts);
	assert_ok(gmem_region_add(s->unit.vm, page * PAGE, pages * PAGE, &opts, &region));
	return region;
}

static int table(struct scene *s)
{
	memset(s->extents, 0, sizeof(s->extents));
	return gmem_export_table(s->exporter, s->extents, MOST);
}

static void check_extent(const struct gmem_extent *extent, uint64_t page, uint64_t pages,
			 const void *hva, uint64_t offset_page, uint64_t file_pages)
{
	assert_int_equal(extent->gpa, page * PAGE);
	assert_int_equal(extent->size, pages * PAGE);
	assert_ptr_equal(extent->hva, hva);
	assert_int_equal(extent->offset, offset_page * PAGE);
	assert_int_equal(extent->file_size, file_pages * PAGE);
	assert_int_equal(extent->page_size, PAGE);
	assert_int_equal(extent->reserved, 0);
}

/* ---- tables ---- */

static void a_table_has_every_way_of_backing_that_has_a_file(void **state)
{
	struct gmem_region *shared, *mapped;
	struct gmem_file *file;
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	assert_int_equal(table(&s), 0);
	file = unit_file(&s.unit, 12);
	shared = add(&s, 16, 4, (struct gmem_region_opts){ .file = file, .file_offset = 3 * PAGE });
	mapped = add(&s, 0, 2, (struct gmem_region_opts){ .plan = s.mapped });
	add(&s, 30, 1, (struct gmem_region_opts){ .flags = GMEM_REGION_DEVICE });
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, 8 * PAGE, s.memfd, 0));
	add(&s, 64, 3, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = (char *)s.hva + PAGE });

	assert_int_equal(table(&s), 3);
	check_extent(&s.extents[0], 0, 2, gmem_region_hva(mapped), 0, 2);
	assert_int_equal(s.extents[0].backing, GMEM_BACKING_MAPPED);
	assert_int_equal(s.extents[0].fd, gmem_file_fd(gmem_region_file(mapped, NULL)));
	check_extent(&s.extents[1], 16, 4, gmem_region_hva(shared), 3, 12);
	assert_int_equal(s.extents[1].backing, GMEM_BACKING_SHARED);
	assert_int_equal(s.extents[1].fd, gmem_file_fd(file));
	check_extent(&s.extents[2], 64, 3, (char *)s.hva + PAGE, 1, 16);
	assert_int_equal(s.extents[2].backing, GMEM_BACKING_HOST);
	assert_int_not_equal(s.extents[2].fd, s.memfd);
	assert_int_equal(s.extents[2].rights, GMEM_RIGHT_READ | GMEM_RIGHT_WRITE);
	gmem_file_free(file);
	scene_end(&s);
}

static void a_file_sealed_against_writing_is_for_reading(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_sealed(&s, 0, UNIT_SEALED | F_SEAL_FUTURE_WRITE);
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, 16 * PAGE, s.memfd, 0));
	add(&s, 0, 16, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = s.hva });
	assert_int_equal(table(&s), 1);
	assert_int_equal(s.extents[0].rights, GMEM_RIGHT_READ);
	scene_end(&s);
}

static int open_anew(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

static void an_fd_gives_no_more_rights_than_it_has(void **state)
{
	static const struct { int flags; uint32_t rights; } cases[] = {
		{ O_RDWR, GMEM_RIGHT_READ | GMEM_RIGHT_WRITE }, { O_RDONLY, GMEM_RIGHT_READ },
		{ O_WRONLY, 0 }, { O_PATH, 0 },
	};

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		uint32_t rights = cases[i / 2].rights;
		struct scene s;
		int fd, err;

		/* a file that can still change is looked at again for each table */
		scene_begin_sealed(&s, i % 2 ? GMEM_EXPORT_UNSEALED : 0, i % 2 ? 0 : UNIT_SEALED);
		fd = open_anew(s.memfd, cases[i / 2].flags);
		assert_true(fd >= 0);
		err = gmem_export_add_memory(s.exporter, s.hva, 16 * PAGE, fd, 0);
		assert_int_equal(err, rights ? 0 : -EBADF);
		if (err)
			assert_non_null(strstr(gmem_last_error(), "not open for reading"));
		close(fd);
		if (!err) {
			add(&s, 0, 16, (struct gmem_region_opts){ .plan = s.host, .hva = s.hva,
								  .flags = GMEM_REGION_HVA });
			assert_int_equal(table(&s), 1);
			assert_int_equal(s.extents[0].rights, rights);
		}
		scene_end(&s);
	}
}

static void memory_without_a_file_is_refused_or_left_out(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	add(&s, 0, 1, (struct gmem_region_opts){ .plan = s.mapped });
	add(&s, 16, 1, (struct gmem_region_opts){ .plan = s.host });
	assert_refused(-EOPNOTSUPP, "at gpa 0x10000, backing host, is memory no other process can map",
		       table(&s));
	assert_int_equal(s.extents[0].size, 0);
	scene_end(&s);

	scene_begin(&s, GMEM_EXPORT_SKIP);
	add(&s, 0, 1, (struct gmem_region_opts){ .plan = s.host });
	add(&s, 16, 1, (struct gmem_region_opts){ .plan = s.mapped });
	/* named, but one page too few */
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, PAGE, s.memfd, 0));
	add(&s, 32, 2, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = s.hva });
	assert_int_equal(table(&s), 1);
	assert_int_equal(s.extents[0].gpa, 16 * PAGE);
	scene_end(&s);
}

static void a_table_that_does_not_fit_is_not_filled(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	add(&s, 0, 1, (struct gmem_region_opts){ .plan = s.mapped });
	add(&s, 16, 1, (struct gmem_region_opts){ .plan = s.mapped });
	assert_refused(-ENOSPC, "takes 2 entries, and there is room for 1", gmem_export_table(s.exporter, s.extents, 1));
	assert_int_equal(s.extents[0].size, 0);
	assert_refused(-EINVAL, "exporter is NULL", gmem_export_table(NULL, s.extents, 1));
	assert_refused(-EINVAL, "extents is NULL", gmem_export_table(s.exporter, NULL, 1));
	scene_end(&s);
}

/* ---- memory of the caller's ---- */

static void memory_is_named_only_if_it_can_be_given(void **state)
{
	int unsealed = unit_memfd(PAGE, 0), sockets[2];
	struct gmem_file *file;
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	file = unit_file(&s.unit, 1);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
	assert_refused(-EINVAL, "is a guest_memfd",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, gmem_file_fd(file), 0));
	assert_refused(-EINVAL, "is no memfd",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, sockets[0], 0));
	assert_refused(-EBADF, "cannot be looked at",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, 9999, 0));
	assert_refused(-EINVAL, "0x10000 bytes, not 0xf000 + 0x2000",
		       gmem_export_add_memory(s.exporter, s.hva, 2 * PAGE, s.memfd, 15 * PAGE));
	assert_refused(-EINVAL, "not a multiple",
		       gmem_export_add_memory(s.exporter, (char *)s.hva + 1, PAGE, s.memfd, 0));
	assert_refused(-EINVAL, "not a multiple",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, s.memfd, 1));
	assert_refused(-EINVAL, "size 0", gmem_export_add_memory(s.exporter, s.hva, 0, s.memfd, 0));
	assert_refused(-EINVAL, "hva is NULL",
		       gmem_export_add_memory(s.exporter, NULL, PAGE, s.memfd, 0));
	assert_refused(-EINVAL, "exporter is NULL",
		       gmem_export_add_memory(NULL, s.hva, PAGE, s.memfd, 0));
	gmem_file_free(file);
	scene_end(&s);

	scene_begin(&s, GMEM_EXPORT_UNSEALED);
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, PAGE, unsealed, 0));
	scene_end(&s);
	close(unsealed);
	close(sockets[0]);
	close(sockets[1]);
}

/* Any process that has the file could do what a missing seal allows. */
static void memory_is_named_only_with_the_seals_that_keep_others_from_it(void **state)
{
	static const struct {
		int seals;
		const char *lacks, *help;
	} cases[] = {
		{ 0, "lacks F_SEAL_SHRINK, so any process that has it can cut it", "add F_SEAL_SHRINK |" },
		{ F_SEAL_GROW, "lacks F_SEAL_SHRINK", "add F_SEAL_SHRINK |" },
		{ F_SEAL_SHRINK, "lacks F_SEAL_GROW, so any process that has it can grow it",
		  "add F_SEAL_SHRINK |" },
		{ F_SEAL_SHRINK | F_SEAL_GROW, "lacks F_SEAL_SEAL, so any process that has it can seal it",
		  "add F_SEAL_SHRINK |" },
		{ F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE, "lacks F_SEAL_SEAL",
		  "GMEM_EXPORT_UNSEALED" },
		{ F_SEAL_SEAL, "lacks F_SEAL_SHRINK", "it takes no more seals" },
		{ F_SEAL_SHRINK | F_SEAL_SEAL, "lacks F_SEAL_GROW", "it takes no more seals" },
	};
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		int fd = unit_memfd(16 * PAGE, cases[i].seals);

		assert_refused(-EPERM, cases[i].lacks,
			       gmem_export_add_memory(s.exporter, s.hva, PAGE, fd, 0));
		assert_non_null(strstr(gmem_last_error(), cases[i].help));
		close(fd);
	}
	scene_end(&s);

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scene_begin_sealed(&s, GMEM_EXPORT_UNSEALED, cases[i].seals);
		assert_ok(gmem_export_add_memory(s.exporter, s.hva, PAGE, s.memfd, 0));
		scene_end(&s);
	}
}

/* Files that memfd_create() did not make have no seals, whatever file system they are on. */
static void a_file_that_cannot_be_sealed_is_named_only_by_choice(void **state)
{
	int fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	struct scene s;

	(void)state;
	if (fd < 0)
		return;	/* no tmpfs here */
	assert_int_equal(ftruncate(fd, (off_t)PAGE), 0);
	scene_begin(&s, 0);
	assert_refused(-EPERM, "it takes no more seals: a memfd with MFD_ALLOW_SEALING does",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, fd, 0));
	scene_end(&s);
	scene_begin(&s, GMEM_EXPORT_UNSEALED);
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, PAGE, fd, 0));
	scene_end(&s);
	close(fd);
}

static void memory_is_named_once_and_forgotten(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, 2 * PAGE, s.memfd, 0));
	assert_refused(-EEXIST, "was named already",
		       gmem_export_add_memory(s.exporter, (char *)s.hva + PAGE, PAGE, s.memfd, PAGE));
	assert_refused(-ENOENT, "no memory was named",
		       gmem_export_remove_memory(s.exporter, (char *)s.hva + PAGE));
	assert_refused(-EINVAL, "exporter is NULL", gmem_export_remove_memory(NULL, s.hva));
	assert_ok(gmem_export_remove_memory(s.exporter, s.hva));
	assert_refused(-ENOENT, "no memory was named", gmem_export_remove_memory(s.exporter, s.hva));
	assert_ok(gmem_export_add_memory(s.exporter, (char *)s.hva + PAGE, PAGE, s.memfd, PAGE));
	scene_end(&s);
}

/* ---- vhost-user ---- */

static void a_vhost_user_table_joins_what_is_one_piece(void **state)
{
	struct gmem_vhost_user_region regions[MOST] = { { 0 } };
	struct gmem_region *low, *upper, *high;
	struct gmem_extent first;
	int fds[MOST] = { 0 };
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	low = add(&s, 0, 4, (struct gmem_region_opts){ .plan = s.mapped });
	assert_ok(gmem_region_split(low, PAGE, &upper));
	/* beside it for the guest, in another file */
	high = add(&s, 4, 2, (struct gmem_region_opts){ .plan = s.mapped });
	assert_int_equal(table(&s), 3);
	first = s.extents[0];

	assert_refused(-ENOSPC, "takes 2 entries, and there is room for 1", gmem_export_vhost_user(s.exporter, regions, fds, 1));
	assert_int_equal(regions[0].memory_size, 0);
	assert_int_equal(gmem_export_vhost_user(s.exporter, regions, fds, MOST), 2);
	assert_int_equal(regions[0].guest_phys_addr, 0);
	assert_int_equal(regions[0].memory_size, 4 * PAGE);
	assert_int_equal(regions[0].userspace_addr, (uintptr_t)gmem_region_hva(low));
	assert_int_equal(regions[0].mmap_offset, 0);
	assert_int_equal(fds[0], first.fd);
	assert_int_equal(regions[1].guest_phys_addr, 4 * PAGE);
	assert_int_equal(regions[1].userspace_addr, (uintptr_t)gmem_region_hva(high));
	assert_refused(-EINVAL, "fds is NULL", gmem_export_vhost_user(s.exporter, regions, NULL, 1));
	scene_end(&s);
}

static void a_vhost_user_table_has_only_what_may_be_written(void **state)
{
	struct gmem_vhost_user_region regions[MOST];
	int fds[MOST];
	struct scene s;

	(void)state;
	scene_begin_sealed(&s, 0, UNIT_SEALED | F_SEAL_FUTURE_WRITE);
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, 16 * PAGE, s.memfd, 0));
	add(&s, 0, 16, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = s.hva });
	assert_refused(-EOPNOTSUPP, "may only be read",
		       gmem_export_vhost_user(s.exporter, regions, fds, MOST));
	scene_end(&s);
}

static void what_the_guest_may_only_read_is_given_for_reading_whatever_its_kind(void **state)
{
	struct gmem_vhost_user_region regions[MOST];
	int fds[MOST];
	struct scene s;

	(void)state;
	for (int skips = 0; skips < 2; skips++) {
		scene_begin(&s, skips ? GMEM_EXPORT_SKIP : 0);
		assert_ok(gmem_export_add_memory(s.exporter, s.hva, 16 * PAGE, s.memfd, 0));
		add(&s, 0, 8, (struct gmem_region_opts){ .plan = s.host, .hva = s.hva, .kind = GMEM_KIND_RAM,
			.flags = GMEM_REGION_HVA | GMEM_REGION_READONLY });
		add(&s, 8, 8, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
			.hva = (char *)s.hva + 8 * PAGE, .kind = GMEM_KIND_ROM });
		assert_int_equal(table(&s), 2);
		assert_int_equal(s.extents[0].rights, GMEM_RIGHT_READ);
		assert_int_equal(s.extents[1].rights, GMEM_RIGHT_READ | GMEM_RIGHT_WRITE);
		if (!skips) {
			assert_refused(-EOPNOTSUPP, "gpa 0x0 may only be read",
				       gmem_export_vhost_user(s.exporter, regions, fds, MOST));
		} else {
			assert_int_equal(gmem_export_vhost_user(s.exporter, regions, fds, MOST), 1);
			assert_int_equal(regions[0].guest_phys_addr, 8 * PAGE);
		}
		scene_end(&s);
	}
}

static void what_cannot_be_written_may_be_left_out_of_it(void **state)
{
	struct gmem_vhost_user_region regions[MOST];
	struct gmem_file *file;
	int fds[MOST];
	struct scene s;

	(void)state;
	scene_begin_sealed(&s, GMEM_EXPORT_SKIP, UNIT_SEALED | F_SEAL_FUTURE_WRITE);
	file = unit_file(&s.unit, 4);
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, 16 * PAGE, s.memfd, 0));
	add(&s, 0, 16, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = s.hva });
	add(&s, 32, 4, (struct gmem_region_opts){ .file = file });
	assert_int_equal(gmem_export_vhost_user(s.exporter, regions, fds, MOST), 1);
	assert_int_equal(regions[0].guest_phys_addr, 32 * PAGE);
	gmem_file_free(file);
	scene_end(&s);
}

static void memory_of_a_device_is_given_if_it_is_named(void **state)
{
	struct gmem_vhost_user_region regions[MOST];
	int fds[MOST];
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	add(&s, 0, 16, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = s.hva, .kind = GMEM_KIND_DEVICE });
	assert_int_equal(table(&s), 0);
	assert_int_equal(gmem_export_vhost_user(s.exporter, regions, fds, MOST), 0);
	assert_ok(gmem_export_add_memory(s.exporter, s.hva, 16 * PAGE, s.memfd, 0));
	assert_int_equal(table(&s), 1);
	scene_end(&s);
}

/* ---- failures ---- */

static void options_are_checked(void **state)
{
	GMEM_OPTS(gmem_export_opts, unknown, .flags = UNIT_UNKNOWN_BIT);
	struct gmem_export *exporter = UNTOUCHED(struct gmem_export);
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	assert_refused(-EINVAL, "does not know", gmem_export_new(s.unit.vm, &unknown, &exporter));
	assert_refused(-EINVAL, "vm is NULL", gmem_export_new(NULL, NULL, &exporter));
	assert_refused(-EINVAL, "ret is NULL", gmem_export_new(s.unit.vm, NULL, NULL));
	assert_ptr_equal(exporter, UNTOUCHED(struct gmem_export));
	gmem_export_free(NULL);
	scene_end(&s);
}

static void failures_leave_nothing_behind(void **state)
{
	struct gmem_export *exporter = UNTOUCHED(struct gmem_export);
	struct scene s;

	(void)state;
	scene_begin(&s, 0);
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "no memory", gmem_export_new(s.unit.vm, NULL, &exporter));
	assert_true(unit_alloc_struck());
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "no memory",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, s.memfd, 0));
	assert_true(unit_alloc_struck());
	fake_fail_next(FAKE_DUP, -EMFILE);
	assert_refused(-EMFILE, "cannot be duplicated",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, s.memfd, 0));
	fake_fail_next(FAKE_FACTS, -EACCES);
	assert_refused(-EACCES, "cannot be looked at",
		       gmem_export_add_memory(s.exporter, s.hva, PAGE, s.memfd, 0));
	scene_end(&s);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(a_table_has_every_way_of_backing_that_has_a_file),
	cmocka_unit_test(a_file_sealed_against_writing_is_for_reading),
	cmocka_unit_test(an_fd_gives_no_more_rights_than_it_has),
	cmocka_unit_test(memory_without_a_file_is_refused_or_left_out),
	cmocka_unit_test(a_table_that_does_not_fit_is_not_filled),
	cmocka_unit_test(memory_is_named_only_if_it_can_be_given),
	cmocka_unit_test(memory_is_named_only_with_the_seals_that_keep_others_from_it),
	cmocka_unit_test(a_file_that_cannot_be_sealed_is_named_only_by_choice),
	cmocka_unit_test(memory_is_named_once_and_forgotten),
	cmocka_unit_test(a_vhost_user_table_joins_what_is_one_piece),
	cmocka_unit_test(a_vhost_user_table_has_only_what_may_be_written),
	cmocka_unit_test(what_the_guest_may_only_read_is_given_for_reading_whatever_its_kind),
	cmocka_unit_test(what_cannot_be_written_may_be_left_out_of_it),
	cmocka_unit_test(memory_of_a_device_is_given_if_it_is_named),
	cmocka_unit_test(options_are_checked),
	cmocka_unit_test(failures_leave_nothing_behind),
};

UNIT_MAIN(tests)
