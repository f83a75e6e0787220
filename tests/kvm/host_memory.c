/* SPDX-License-Identifier: MIT */
/* Host memory that the library makes, and regions over address space that is kept for them */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define BASE	(256 * MIB)
#define DIMMS	16
#define HUGE_MIB 2	/* of an x86 host, and of an arm64 host with pages of 4 KiB */

/* The mapping at an address, as /proc/self/smaps shows it; returns its VmFlags. */
static const char *mapping_at(const void *hva, unsigned long *ret_end)
{
	unsigned long start, end, at = (uintptr_t)hva;
	static char line[4096];
	bool here = false;
	FILE *file;

	file = fopen("/proc/self/smaps", "r");
	CHECK(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strchr(line, ':') > strchr(line, ' ')) {
			here = at >= start && at < end;
			if (here && ret_end)
				*ret_end = end;
		} else if (here && !strncmp(line, "VmFlags:", 8)) {
			fclose(file);
			line[strcspn(line, "\n")] = ' ';
			return line + 8;
		}
	}
	fclose(file);
	return NULL;
}

static bool has_flag(const void *hva, const char *flag)
{
	const char *flags = mapping_at(hva, NULL);

	return flags && strstr(flags, flag);
}

static struct gmem_region *add_memory(struct lab *lab, uint64_t gpa, uint64_t pages, uint64_t flags)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = flags);
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory);

	return lab_add(lab, GMEM_BACKING_HOST, gpa, pages, &opts);
}

static struct gmem_plan *plan_of(struct lab *lab, uint32_t backing)
{
	struct gmem_plan *plan;

	require_backing(&lab->m, backing, &plan);
	return plan;
}

/* ---- what memory is made of ---- */

static void guest_uses(struct lab *lab, struct gmem_region *region)
{
	const uint64_t gpa = gmem_region_gpa(region);

	GUEST_STORES(&lab->guest, gpa + 4, 0x11223344);
	CHECK_EQ(host_load((char *)gmem_region_hva(region) + 4), 0x11223344);
	host_store((char *)gmem_region_hva(region) + lab->page, 0x55667788);
	GUEST_LOADS(&lab->guest, gpa + lab->page, 0x55667788);
}

TEST(memory_is_as_its_options_say)
{
	static const struct {
		uint64_t flags;
		const char *has, *has_not;
	} cases[] = {
		{ 0, " dd ", " dc " },
		{ GMEM_MEMORY_MEMFD, " dd ", " dc " },
		{ GMEM_MEMORY_DUMP, " mr ", " dd " },
		{ GMEM_MEMORY_MEMFD | GMEM_MEMORY_DUMP, " sh ", " dd " },
		{ GMEM_MEMORY_DONTFORK, " dc ", " mg " },
	};
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		in_case("memory options 0x%llx", (unsigned long long)cases[i].flags);
		region = add_memory(&lab, BASE, 4, cases[i].flags);
		guest_uses(&lab, region);
		CHECK(has_flag(gmem_region_hva(region), cases[i].has));
		CHECK(!has_flag(gmem_region_hva(region), cases[i].has_not));
		OK(gmem_region_remove(region));
	}
	lab_free(&lab);
}

/* Kernels are built without them; then the sentence says so, and nothing is left. */
TEST(advice_is_taken_or_named)
{
	static const struct {
		uint64_t flags;
		const char *has;
	} cases[] = {
		{ GMEM_MEMORY_THP, " hg " },
		{ GMEM_MEMORY_NO_THP, " nh " },
		{ GMEM_MEMORY_THP | GMEM_MEMORY_MEMFD, " hg " },
		{ GMEM_MEMORY_MERGEABLE, " mg " },
	};
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		GMEM_OPTS(gmem_memory_opts, memory, .flags = cases[i].flags);
		GMEM_OPTS(gmem_region_opts, opts, .plan = plan_of(&lab, GMEM_BACKING_HOST), .memory = &memory);
		int err = gmem_region_add(lab.vm, BASE, 4 * lab.page, &opts, &region);

		if (err) {
			CHECK_RESULT(err, -EOPNOTSUPP);
			CHECK(strstr(gmem_last_error(), "this kernel has no "));
		} else {
			CHECK(has_flag(gmem_region_hva(region), cases[i].has));
			guest_uses(&lab, region);
			OK(gmem_region_remove(region));
		}
		gmem_plan_free((struct gmem_plan *)opts.plan);
	}
	lab_free(&lab);
}

static uint64_t allocated(struct lab *lab, int *ret_fd)
{
	struct gmem_extent extent;
	struct gmem_export *exporter;
	struct stat st;

	OK(gmem_export_new(lab->vm, NULL, &exporter));
	CHECK_RESULT(gmem_export_table(exporter, &extent, 1), 1);
	gmem_export_free(exporter);
	WORKS(fstat(extent.fd, &st));
	*ret_fd = extent.fd;
	return (uint64_t)st.st_blocks * 512;
}

TEST(a_discard_of_a_memfd_frees_it)
{
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct lab lab;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	region = add_memory(&lab, BASE, 16, GMEM_MEMORY_MEMFD);
	OK(gmem_vm_populate(lab.vm, BASE, 16 * lab.page, NULL, NULL));
	CHECK_EQ(allocated(&lab, &fd), 16 * lab.page);
	GUEST_STORES(&lab.guest, BASE, 1);
	memset(&footprint, 0, sizeof(footprint));
	OK(gmem_vm_discard(lab.vm, BASE, 15 * lab.page, NULL, &footprint));
	CHECK_EQ(allocated(&lab, &fd), lab.page);
	GUEST_LOADS(&lab.guest, BASE, 0);
	CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
	CHECK_EQ(fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
		 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	OK(gmem_region_remove(region));
	lab_free(&lab);
}

/* With a pool of huge pages there is memory; without, a sentence */
TEST(huge_pages_are_had_at_once_or_not_at_all)
{
	static const uint64_t flags[] = { 0, GMEM_MEMORY_MEMFD };
	struct gmem_region *region, *upper;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (int i = 0; i < 2; i++) {
		GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_HUGETLB | flags[i],
			  .page_size = HUGE_MIB * MIB);
		GMEM_OPTS(gmem_region_opts, opts, .plan = plan_of(&lab, GMEM_BACKING_HOST), .memory = &memory);
		int err = gmem_region_add(lab.vm, BASE, 2 * HUGE_MIB * MIB, &opts, &region);

		if (err) {
			CHECK(*gmem_last_error());
			CHECK(err == -ENOMEM || err == -EINVAL || err == -ENODEV || err == -ENOSYS ||
			      err == -EOPNOTSUPP);
		} else {
			CHECK(has_flag(gmem_region_hva(region), " ht "));
			CHECK(has_flag(gmem_region_hva(region), " dd "));
			guest_uses(&lab, region);
			REFUSED(gmem_region_split(region, lab.page, &upper), -EINVAL);
			OK(gmem_region_split(region, HUGE_MIB * MIB, &upper));
			OK(gmem_region_remove(upper));
			OK(gmem_region_remove(region));
		}
		/* More than any pool has: nothing is left behind. */
		CHECK(gmem_region_add(lab.vm, BASE, 512 * GIB, &opts, &region) < 0);
		gmem_plan_free((struct gmem_plan *)opts.plan);
	}
	lab_free(&lab);
}

/* ---- children ---- */

static int in_child(const char *hva)
{
	unsigned char in_memory;
	int status, ret;
	pid_t pid;

	pid = (pid_t)WORKS(fork());
	if (!pid) {
		ret = mincore((void *)(uintptr_t)hva, 1, &in_memory) ? 2 : *hva;
		_exit(ret);
	}
	WORKS(waitpid(pid, &status, 0));
	CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

TEST(a_child_has_the_memory_unless_it_must_not)
{
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (uint64_t flags = 0; flags <= GMEM_MEMORY_MEMFD; flags++) {
		region = add_memory(&lab, BASE, 4, flags);
		*(char *)gmem_region_hva(region) = 1;
		CHECK_EQ(in_child(gmem_region_hva(region)), 1);
		OK(gmem_region_remove(region));
		region = add_memory(&lab, BASE, 4, flags | GMEM_MEMORY_DONTFORK);
		*(char *)gmem_region_hva(region) = 1;
		CHECK_EQ(in_child(gmem_region_hva(region)), 2);
		OK(gmem_region_remove(region));
	}
	lab_free(&lab);
}

/* ---- address space that is kept ---- */

static char *reserve(uint64_t size)
{
	char *space = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(space != MAP_FAILED);
	return space;
}

static int entries(struct gmem_export *exporter)
{
	struct gmem_vhost_user_region regions[DIMMS];
	int fds[DIMMS], count, ret;

	count = gmem_export_vhost_user(exporter, NULL, NULL, 0);
	if (count > 1) {
		ret = gmem_export_vhost_user(exporter, regions, fds, (size_t)count - 1);
		CHECK_RESULT(ret, -ENOSPC);
	}
	CHECK_RESULT(gmem_export_vhost_user(exporter, regions, fds, DIMMS), count);
	return count;
}

/* Sixteen DIMMs side by side, in one file, are one entry; every second one is eight. */
static void put_dimms(struct lab *lab, struct gmem_region_opts *opts, char *space, uint64_t *offset)
{
	struct gmem_region *dimms[DIMMS];
	struct gmem_export *exporter;
	unsigned long end;

	OK(gmem_export_new(lab->vm, NULL, &exporter));
	for (unsigned int i = 0; i < DIMMS; i++) {
		opts->hva = space + i * MIB;
		*offset = i * MIB;
		OK(gmem_region_add(lab->vm, BASE + i * MIB, MIB, opts, &dimms[i]));
		CHECK_EQ((uintptr_t)gmem_region_hva(dimms[i]), (uintptr_t)opts->hva);
		GUEST_STORES(&lab->guest, BASE + i * MIB, i + 1);
	}
	CHECK_EQ(entries(exporter), 1);
	for (unsigned int i = 1; i < DIMMS; i += 2)
		OK(gmem_region_remove(dimms[i]));
	CHECK_EQ(entries(exporter), 8);
	for (unsigned int i = 0; i < DIMMS; i += 2) {
		GUEST_LOADS(&lab->guest, BASE + i * MIB, i + 1);
		OK(gmem_region_remove(dimms[i]));
	}
	/* One mapping again, as it was. */
	CHECK(mapping_at(space, &end));
	CHECK((uintptr_t)space + DIMMS * MIB <= end);
	gmem_export_free(exporter);
}

TEST(dimms_of_a_guest_memfd_fill_a_reservation)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_RESERVED);
	struct gmem_plan *plan;
	struct lab lab;
	char *space;

	lab_new(&lab, DEFAULT_VM);
	plan = plan_of(&lab, GMEM_BACKING_SHARED);
	OK(gmem_file_new(lab.m.vm_fd, DIMMS * MIB, plan, &opts.file));
	opts.plan = plan;
	space = reserve(DIMMS * MIB);
	put_dimms(&lab, &opts, space, &opts.file_offset);
	CHECK(!has_flag(space, " rd "));

	in_case("over gmem_file_map()");
	GMEM_OPTS(gmem_map_opts, map, .flags = GMEM_MAP_REPLACE, .hva = space);
	OK(gmem_file_map(opts.file, 0, DIMMS * MIB, &map, (void **)&space));
	put_dimms(&lab, &opts, space, &opts.file_offset);
	for (unsigned int i = 0; i < DIMMS; i++)
		CHECK_EQ(host_load(space + i * MIB), i + 1);
	OK(gmem_file_unmap(opts.file, space, DIMMS * MIB));
	gmem_file_free(opts.file);
	gmem_plan_free(plan);
	lab_free(&lab);
}

TEST(nothing_is_reserved_among_the_kernels_addresses)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_RESERVED);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	plan = plan_of(&lab, GMEM_BACKING_HOST);
	opts.plan = plan;
	opts.hva = (void *)0xffff800000000000;
	REFUSED(gmem_region_add(lab.vm, BASE, MIB, &opts, &region), -EINVAL);
	CHECK(strstr(gmem_last_error(), "nothing is mapped"));
	gmem_plan_free(plan);
	lab_free(&lab);
}

/* As on a kernel without guest_memfd that can be mapped */
TEST(dimms_of_a_memfd_fill_a_reservation)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_RESERVED | GMEM_REGION_MEMORY_FD);
	struct gmem_plan *plan;
	struct lab lab;
	char *space;

	lab_new(&lab, DEFAULT_VM);
	plan = plan_of(&lab, GMEM_BACKING_HOST);
	opts.plan = plan;
	opts.memory_fd = (int)WORKS(memfd_create("dimms", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	WORKS(ftruncate(opts.memory_fd, DIMMS * MIB));
	WORKS(fcntl(opts.memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
	space = reserve(DIMMS * MIB);
	put_dimms(&lab, &opts, space, &opts.memory_offset);
	CHECK(!has_flag(space, " rd "));

	in_case("over a mapping of the caller's");
	CHECK(mmap(space, DIMMS * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, opts.memory_fd, 0) ==
	      space);
	put_dimms(&lab, &opts, space, &opts.memory_offset);
	for (unsigned int i = 0; i < DIMMS; i++)
		CHECK_EQ(host_load(space + i * MIB), i + 1);

	in_case("in a mapping of the caller's");
	opts.flags = GMEM_REGION_HVA | GMEM_REGION_MEMORY_FD;
	put_dimms(&lab, &opts, space, &opts.memory_offset);
	WORKS(munmap(space, DIMMS * MIB));
	close(opts.memory_fd);
	gmem_plan_free(plan);
	lab_free(&lab);
}

static int remove_and_reserve(struct lab *lab, struct gmem_region *old, struct gmem_region_opts *opts,
			      struct gmem_region **ret)
{
	struct gmem_change *change;
	int err;

	OK(gmem_change_new(lab->vm, &change));
	OK(gmem_change_remove(change, old));
	OK(gmem_change_add(change, BASE, MIB, opts, ret));
	err = gmem_change_apply(change);
	gmem_change_free(change);
	return err;
}

TEST(a_change_takes_the_place_of_memory_it_removes_if_that_is_the_callers)
{
	const uint64_t flags = GMEM_REGION_MEMORY_FD | GMEM_REGION_KEEP_STATE;
	GMEM_OPTS(gmem_region_opts, opts, .flags = flags | GMEM_REGION_HVA);
	struct gmem_region *callers, *made, *other;
	struct gmem_plan *plan;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	plan = plan_of(&lab, GMEM_BACKING_HOST);
	opts.plan = plan;
	opts.memory_fd = (int)WORKS(memfd_create("memory", MFD_CLOEXEC));
	WORKS(ftruncate(opts.memory_fd, MIB));
	opts.hva = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, opts.memory_fd, 0);
	CHECK(opts.hva != MAP_FAILED);
	OK(gmem_region_add(lab.vm, BASE, MIB, &opts, &callers));
	GUEST_STORES(&lab.guest, BASE, 7);

	opts.flags = flags | GMEM_REGION_RESERVED;
	OK(remove_and_reserve(&lab, callers, &opts, &made));
	GUEST_LOADS(&lab.guest, BASE, 7);
	REFUSED(remove_and_reserve(&lab, made, &opts, &other), -EEXIST);
	GUEST_LOADS(&lab.guest, BASE, 7);
	OK(gmem_region_remove(made));
	WORKS(munmap(opts.hva, MIB));
	close(opts.memory_fd);
	gmem_plan_free(plan);
	lab_free(&lab);
}

/* MAP_FIXED of huge pages unmaps what is there before it finds that there are too few. */
TEST(a_region_that_cannot_be_had_leaves_the_reservation)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_HUGETLB, .page_size = HUGE_MIB * MIB);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_RESERVED, .memory = &memory);
	const uint64_t size = 64 * GIB;
	struct gmem_region *region;
	struct gmem_plan *plan;
	unsigned long end = 0;
	struct lab lab;
	char *space, *at;

	lab_new(&lab, DEFAULT_VM);
	plan = plan_of(&lab, GMEM_BACKING_HOST);
	opts.plan = plan;
	space = reserve(size + HUGE_MIB * MIB);
	at = space + (-(uintptr_t)space & (HUGE_MIB * MIB - 1));
	for (int memfd = 0; memfd <= 1; memfd++) {
		memory.flags = GMEM_MEMORY_HUGETLB | (memfd ? GMEM_MEMORY_MEMFD : 0);
		opts.hva = at;
		CHECK(gmem_region_add(lab.vm, BASE, size, &opts, &region) < 0);
		CHECK(mapping_at(space, &end));
		CHECK((uintptr_t)space + size + HUGE_MIB * MIB <= end);
		opts.hva = at + lab.page;
		CHECK(gmem_region_add(lab.vm, BASE, HUGE_MIB * MIB, &opts, &region) < 0);
		CHECK(mapping_at(space, &end));
		CHECK((uintptr_t)space + size + HUGE_MIB * MIB <= end);
	}
	WORKS(munmap(space, size + HUGE_MIB * MIB));
	gmem_plan_free(plan);
	lab_free(&lab);
}

/* ---- the shared side of private memory ---- */

static void convert_and_see(int type, uint32_t backing, void *data)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory);
	struct gmem_region *region;
	struct lab lab;
	int fd;

	(void)data;
	lab_new(&lab, type);
	region = lab_add(&lab, backing, BASE, 8, &opts);
	memset(gmem_region_hva(region), 1, 8 * lab.page);
	CHECK_EQ(allocated(&lab, &fd), 8 * lab.page);
	OK(gmem_vm_convert(lab.vm, BASE, 4 * lab.page, GMEM_STATE_PRIVATE, NULL, NULL));
	CHECK_EQ(allocated(&lab, &fd), 4 * lab.page);
	OK(gmem_vm_convert(lab.vm, BASE, 4 * lab.page, GMEM_STATE_SHARED, NULL, NULL));
	CHECK_EQ(host_load(gmem_region_hva(region)), 0);
	CHECK_EQ(host_load((char *)gmem_region_hva(region) + 4 * lab.page), 0x01010101);
	lab_free(&lab);
}

TEST(the_shared_side_can_be_a_memfd)
{
	lab_for_each_way(1u << GMEM_BACKING_PRIVATE, convert_and_see, NULL);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
