/* SPDX-License-Identifier: MIT */
/* The file behind host memory, as the caller names it */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "unit.h"

#define PAGE	UINT64_C(4096)
#define SIZE	(8 * PAGE)	/* of the caller's file */
#define SEALS	(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct scene {
	struct unit unit;
	struct gmem_plan *host;
	struct gmem_export *exporter;
	struct gmem_extent extents[8];
	int memfd;
	char *mine;
};

static void scene_begin(struct scene *s)
{
	unit_begin_vm(&s->unit, "6.18");
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
	s->memfd = memfd_create("caller's", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_true(s->memfd >= 0);
	assert_ok(ftruncate(s->memfd, (off_t)SIZE));
	s->mine = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	assert_ptr_not_equal(s->mine, MAP_FAILED);
}

static void scene_end(struct scene *s)
{
	gmem_export_free(s->exporter);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->host);
	munmap(s->mine, SIZE);
	close(s->memfd);
	unit_end(&s->unit);
}

static struct gmem_region_opts opts_of(const struct scene *s, int fd, uint64_t page, uint64_t flags)
{
	return (struct gmem_region_opts){
		.size = sizeof(struct gmem_region_opts),
		.flags = GMEM_REGION_MEMORY_FD | flags,
		.plan = s->host,
		.hva = s->mine + page * PAGE,
		.memory_fd = fd,
		.memory_offset = page * PAGE,
	};
}

static int try_add(struct scene *s, uint64_t gpa_page, uint64_t pages, const struct gmem_region_opts *opts,
		   struct gmem_region **ret)
{
	return gmem_region_add(s->unit.vm, gpa_page * PAGE, pages * PAGE, opts, ret);
}

static struct gmem_region *add(struct scene *s, uint64_t gpa_page, uint64_t pages, uint64_t page,
			       uint64_t flags)
{
	const struct gmem_region_opts opts = opts_of(s, s->memfd, page, flags);
	struct gmem_region *region = NULL;

	assert_ok(try_add(s, gpa_page, pages, &opts, &region));
	return region;
}

static int table(struct scene *s)
{
	return gmem_export_table(s->exporter, s->extents, ARRAY_SIZE(s->extents));
}

/* ---- what is accepted ---- */

static void a_file_is_known_however_it_is_mapped(void **state)
{
	struct gmem_region *region;
	struct scene s;
	unsigned fds;

	(void)state;
	scene_begin(&s);
	fds = fake_open_fds();
	region = add(&s, 0, 4, 2, 0);
	strcpy(gmem_region_hva(region), "guest");
	assert_string_equal(s.mine + 2 * PAGE, "guest");
	region = add(&s, 16, 2, 6, GMEM_REGION_HVA);
	assert_ptr_equal(gmem_region_hva(region), s.mine + 6 * PAGE);
	/* one handle for both, and the list of mappings */
	assert_int_equal(fake_open_fds(), fds + 2);

	assert_refused(-EPERM, "lacks F_SEAL_SHRINK", table(&s));
	assert_ok(fcntl(s.memfd, F_ADD_SEALS, SEALS));
	assert_int_equal(table(&s), 2);
	assert_int_equal(s.extents[0].offset, 2 * PAGE);
	assert_int_equal(s.extents[1].offset, 6 * PAGE);
	assert_int_equal(s.extents[0].fd, s.extents[1].fd);
	assert_int_not_equal(s.extents[0].fd, s.memfd);
	assert_int_equal(s.extents[0].rights, GMEM_RIGHT_READ | GMEM_RIGHT_WRITE);
	scene_end(&s);
}

static void neighbours_of_one_file_are_one_entry(void **state)
{
	struct gmem_vhost_user_region regions[4];
	struct scene s;
	int fds[4];

	(void)state;
	scene_begin(&s);
	assert_ok(fcntl(s.memfd, F_ADD_SEALS, SEALS));
	for (uint64_t i = 0; i < 8; i++)
		add(&s, i, 1, i, GMEM_REGION_HVA);
	assert_int_equal(gmem_export_vhost_user(s.exporter, regions, fds, 4), 1);
	assert_int_equal(regions[0].memory_size, SIZE);
	scene_end(&s);
}

static void memory_named_in_parts_is_one_entry(void **state)
{
	struct gmem_vhost_user_region regions[4];
	struct scene s;
	int fds[4];

	(void)state;
	scene_begin(&s);
	assert_ok(fcntl(s.memfd, F_ADD_SEALS, SEALS));
	for (uint64_t i = 0; i < 8; i++) {
		struct gmem_region_opts opts = opts_of(&s, 0, i, 0);
		struct gmem_region *region;

		opts.flags = GMEM_REGION_HVA;
		opts.memory_offset = 0;
		assert_ok(gmem_export_add_memory(s.exporter, opts.hva, PAGE, s.memfd, i * PAGE));
		assert_ok(try_add(&s, i, 1, &opts, &region));
	}
	assert_int_equal(gmem_export_vhost_user(s.exporter, regions, fds, 4), 1);
	scene_end(&s);
}

static void a_read_only_file_is_for_read_only_memory(void **state)
{
	struct gmem_region_opts opts;
	struct gmem_region *region;
	struct scene s;
	char path[64];
	int fd;

	(void)state;
	scene_begin(&s);
	assert_ok(fcntl(s.memfd, F_ADD_SEALS, SEALS));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s.memfd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	opts = opts_of(&s, fd, 0, 0);
	assert_refused(-EBADF, "open for reading only", try_add(&s, 0, 1, &opts, &region));
	opts.flags |= GMEM_REGION_READONLY;
	assert_ok(try_add(&s, 0, 1, &opts, &region));
	assert_int_equal(fake_protection_at(gmem_region_hva(region)), PROT_READ);
	/* the same file, open for more */
	add(&s, 1, 1, 1, 0);
	assert_int_equal(table(&s), 2);
	assert_int_equal(s.extents[0].rights, GMEM_RIGHT_READ);
	assert_int_equal(s.extents[1].rights, GMEM_RIGHT_READ | GMEM_RIGHT_WRITE);
	close(fd);
	scene_end(&s);
}

static void a_memfd_sealed_against_writing_is_for_read_only_regions(void **state)
{
	struct gmem_region_opts opts;
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_ok(fcntl(s.memfd, F_ADD_SEALS, SEALS | 0x0010 /* F_SEAL_FUTURE_WRITE */));
	opts = opts_of(&s, s.memfd, 0, 0);
	assert_refused(-EPERM, "sealed against writing", try_add(&s, 0, 1, &opts, &region));
	opts.flags |= GMEM_REGION_READONLY;
	assert_ok(try_add(&s, 0, 1, &opts, &region));
	scene_end(&s);
}

static void a_file_of_another_file_system_is_not_given_to_others(void **state)
{
	const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct gmem_region_opts opts;
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	opts = opts_of(&s, file, 0, GMEM_REGION_READONLY);
	assert_ok(try_add(&s, 4, 1, &opts, &region));
	assert_refused(-EOPNOTSUPP, "the region at gpa 0x4000 is part of a file that is no memfd", table(&s));
	assert_refused(-EOPNOTSUPP, "GMEM_EXPORT_SKIP leaves it out", gmem_export_vhost_user(s.exporter, NULL, NULL, 0));
	close(file);
	scene_end(&s);
}

/* ---- what is refused ---- */

static void no_other_fd_is_accepted(void **state)
{
	struct gmem_region_opts opts;
	struct gmem_region *region;
	struct gmem_file *file;
	char name[32];
	int pipes[2], path;
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_ok(pipe(pipes));
	snprintf(name, sizeof(name), "/proc/self/fd/%d", s.memfd);
	path = open(name, O_PATH | O_CLOEXEC);
	file = unit_file(&s.unit, 4);
#define REFUSED(err, sentence) assert_refused(err, sentence, try_add(&s, 0, 2, &opts, &region))
	opts = opts_of(&s, -1, 0, 0);
	REFUSED(-EBADF, "memory_fd -1 cannot be looked at");
	opts = opts_of(&s, pipes[0], 0, 0);
	REFUSED(-EINVAL, "is no file");
	opts = opts_of(&s, path, 0, 0);
	REFUSED(-EBADF, "not open for reading");
	opts = opts_of(&s, gmem_file_fd(file), 0, 0);
	REFUSED(-EINVAL, "is a guest_memfd");
	opts = opts_of(&s, s.memfd, 7, 0);
	REFUSED(-EINVAL, "has 0x8000 bytes, not 0x7000 + 0x2000");
	opts = opts_of(&s, s.memfd, 0, 0);
	opts.memory_offset = 1;
	REFUSED(-EINVAL, "memory offset");
	opts.memory_offset = UINT64_MAX - PAGE + 1;
	REFUSED(-EINVAL, "memory offset");
	opts.memory_offset = 0;
	opts.reserved = 1;
	REFUSED(-EINVAL, "reserved is 1");
	opts = opts_of(&s, s.memfd, 0, 0);
	opts.flags = 0;
	REFUSED(-EINVAL, "without GMEM_REGION_MEMORY_FD");
	opts = opts_of(&s, s.memfd, 0, 0);
	opts.plan = NULL;
	REFUSED(-EINVAL, "\"shared\" has no host memory, so no memory_fd");
	close(pipes[0]);
	close(pipes[1]);
	close(path);
	gmem_file_free(file);
	scene_end(&s);
}

static void the_caller_s_mapping_must_be_of_that_part(void **state)
{
	struct gmem_region_opts opts;
	struct gmem_region *region;
	struct scene s;
	int other;

	(void)state;
	scene_begin(&s);
	/* From now on the list of mappings is open. */
	assert_ok(gmem_region_remove(add(&s, 16, 2, 6, GMEM_REGION_HVA)));
	opts = opts_of(&s, s.memfd, 2, GMEM_REGION_HVA);
	opts.memory_offset = PAGE;
	REFUSED(-EINVAL, "a mapping of another part of it");
	opts.memory_offset = 2 * PAGE;
	mmap(s.mine + 3 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, s.memfd, 3 * PAGE);
	REFUSED(-EINVAL, "a private mapping");
	mmap(s.mine + 3 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	REFUSED(-EINVAL, "is anonymous memory");
	other = memfd_create("other", MFD_CLOEXEC);
	assert_ok(ftruncate(other, (off_t)SIZE));
	mmap(s.mine + 3 * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, other, 3 * PAGE);
	REFUSED(-EINVAL, "a mapping of another file");
	munmap(s.mine + 3 * PAGE, PAGE);
	REFUSED(-EINVAL, "is not mapped");
	/* any protection, and in pieces */
	mmap(s.mine + 3 * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, s.memfd, 3 * PAGE);
	fake.no_proc = true;
	REFUSED(-EOPNOTSUPP, "only /proc/self/maps tells");
	fake.no_proc = false;
	fake_set_limit(RLIMIT_NOFILE, 9);
	fake_fail_kind(FAKE_MAPPING_AT, 0, 16, -EMFILE);
	REFUSED(-EMFILE, "RLIMIT_NOFILE is 9");
	assert_true(fake_fail_struck());
	assert_ok(try_add(&s, 0, 2, &opts, &region));
	close(other);
	scene_end(&s);
}

/* ---- one memory ---- */

static void a_lease_keeps_the_memory_at_another_host_address(void **state)
{
	struct gmem_lease *lease;
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 4, 0, 0);
	add(&s, 16, 4, 2, 0);
	strcpy(s.mine + 2 * PAGE, "guest");
	assert_ok(gmem_lease_new(s.unit.vm, 2 * PAGE, PAGE, NULL, &lease));
	assert_refused(-EBUSY, "which has memory of gpa 0x10000",
		       gmem_vm_discard(s.unit.vm, 16 * PAGE, PAGE, NULL, NULL));
	assert_ok(gmem_vm_discard(s.unit.vm, 17 * PAGE, PAGE, NULL, NULL));
	assert_string_equal(s.mine + 2 * PAGE, "guest");
	gmem_lease_free(lease);
	assert_ok(gmem_vm_discard(s.unit.vm, 16 * PAGE, PAGE, NULL, NULL));
	assert_string_equal(s.mine + 2 * PAGE, "");
	scene_end(&s);
}

static void kept_state_follows_the_file(void **state)
{
	struct gmem_region_opts opts;
	struct gmem_region *region;
	struct gmem_change *change;
	uint64_t bits = 0;
	struct scene s;

	(void)state;
	scene_begin(&s);
	region = add(&s, 0, 4, 0, GMEM_REGION_DIRTY_LOG);
	fake_write_page(s.unit.vm_fd, gmem_region_slot(region), 1);
	assert_ok(gmem_change_new(s.unit.vm, &change));
	assert_ok(gmem_change_remove(change, region));
	opts = opts_of(&s, s.memfd, 1, GMEM_REGION_DIRTY_LOG | GMEM_REGION_KEEP_STATE);
	assert_ok(gmem_change_add(change, PAGE, 3 * PAGE, &opts, &region));
	assert_ok(gmem_change_apply(change));
	gmem_change_free(change);
	assert_ok(gmem_region_get_dirty_log(region, &bits, 1));
	assert_int_equal(bits, 1);
	scene_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_is_known_however_it_is_mapped),
		cmocka_unit_test(neighbours_of_one_file_are_one_entry),
		cmocka_unit_test(memory_named_in_parts_is_one_entry),
		cmocka_unit_test(a_read_only_file_is_for_read_only_memory),
		cmocka_unit_test(a_memfd_sealed_against_writing_is_for_read_only_regions),
		cmocka_unit_test(a_file_of_another_file_system_is_not_given_to_others),
		cmocka_unit_test(no_other_fd_is_accepted),
		cmocka_unit_test(the_caller_s_mapping_must_be_of_that_part),
		cmocka_unit_test(a_lease_keeps_the_memory_at_another_host_address),
		cmocka_unit_test(kept_state_follows_the_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
