/* SPDX-License-Identifier: MIT */
/*
 * Memory of hugetlb: what is asked of it goes by its pages, and there may be too few. Skips if the
 * pool cannot be set.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4
#endif

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define BASE (256 * MIB)
#define COUNT 4			/* huge pages of a region */
#define POOL 6

static uint64_t huge_page(void)
{
	return lab_read_number("/proc/meminfo", "Hugepagesize:") * 1024;
}

static uint64_t free_pages(void)
{
	return lab_read_number("/proc/meminfo", "HugePages_Free:");
}

static long set_pool(uint64_t pages)
{
	char text[32];
	int fd = (int)SYS(open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC));
	long ret = fd;

	snprintf(text, sizeof(text), "%llu", (unsigned long long)pages);
	if (fd >= 0) {
		ret = SYS(write(fd, text, strlen(text)));
		close(fd);
	}
	return ret;
}

/* Other programs may use the pool, too: ask for what is missing. */
static uint64_t old_pool;

static void begin_pool(void)
{
	old_pool = lab_read_number("/proc/meminfo", "HugePages_Total:");
	if (free_pages() < POOL && set_pool(old_pool - free_pages() + POOL) < 0)
		skip("the pool of huge pages cannot be set");
	if (free_pages() < POOL || huge_page() != 2 * MIB)
		skip("there are %llu huge pages of 0x%llx bytes", (unsigned long long)free_pages(),
		     (unsigned long long)huge_page());
}

static void end_pool(void)
{
	set_pool(old_pool);
}

static struct lab_memory map_memory(uint64_t pages, bool is_shared)
{
	struct lab_memory memory = { .size = pages * huge_page(), .fd = -1 };

	if (is_shared) {
		memory.fd = (int)WORKS(memfd_create("huge", MFD_HUGETLB | MFD_CLOEXEC | MFD_ALLOW_SEALING));
		WORKS(ftruncate(memory.fd, (off_t)memory.size));
	}
	memory.hva = mmap(NULL, memory.size, PROT_READ | PROT_WRITE, MAP_NORESERVE |
			  (is_shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB), memory.fd, 0);
	CHECK(memory.hva != MAP_FAILED);
	return memory;
}

static struct gmem_region *add(struct lab *lab, const struct lab_memory *memory)
{
	lab_new(lab, DEFAULT_VM);
	return lab_add_memory(lab, BASE, memory);
}

/* Memory of each kind, all of it allocated and not zero */
static struct gmem_region *begin(struct lab *lab, struct lab_memory *memory, int is_shared)
{
	struct gmem_region *region;

	in_case("%s", is_shared ? "shared" : "anonymous");
	*memory = map_memory(COUNT, is_shared);
	region = add(lab, memory);
	memset(memory->hva, 1, memory->size);
	return region;
}

TEST(part_of_a_huge_page_is_not_discarded_and_not_said_to_be)
{
	GMEM_OPTS(gmem_discard_opts, inward, .flags = GMEM_DISCARD_INWARD);
	struct gmem_footprint footprint;
	struct lab_memory memory;
	struct lab lab;

	begin_pool();
	for (int is_shared = 0; is_shared < 2; is_shared++) {
		uint64_t page = huge_page(), before;

		begin(&lab, &memory, is_shared);
		before = free_pages();
		REFUSED(gmem_vm_discard(lab.vm, BASE, page_size(), NULL, &footprint), -EINVAL);
		CHECK(strstr(gmem_last_error(), "huge page of 2 MiB"));
		CHECK_EQ(footprint.done, 0);
		REFUSED(gmem_vm_discard(lab.vm, BASE, page + page_size(), NULL, &footprint), -EINVAL);
		CHECK_EQ(footprint.done, 0);

		OK(gmem_vm_discard(lab.vm, BASE + page_size(), page, &inward, &footprint));
		CHECK_EQ(footprint.done, 0);
		CHECK_EQ(footprint.before, footprint.after);
		CHECK_EQ(free_pages(), before);
		for (uint64_t i = 0; i < memory.size; i += page_size())
			CHECK_EQ(memory.hva[i], 1);

		OK(gmem_vm_discard(lab.vm, BASE + page_size(), 2 * page, &inward, &footprint));
		CHECK_EQ(footprint.done, page);
		CHECK_EQ(footprint.before - footprint.after, page);
		CHECK_EQ(free_pages(), before + 1);
		CHECK_EQ(memory.hva[page - 1], 1);
		CHECK_EQ(memory.hva[page], 0);
		lab_free(&lab);
		lab_unmap_memory(&memory);
	}
	end_pool();
}

TEST(small_ranges_that_make_up_huge_pages_free_them)
{
	struct gmem_gpa_range ranges[512];
	struct gmem_footprint footprint;
	struct lab_memory memory;
	struct lab lab;

	begin_pool();
	for (int is_shared = 0; is_shared < 2; is_shared++) {
		uint64_t small = huge_page() / ARRAY_SIZE(ranges), before;

		begin(&lab, &memory, is_shared);
		before = free_pages();
		for (uint64_t i = 0; i < ARRAY_SIZE(ranges); i++)
			ranges[i] = (struct gmem_gpa_range){ BASE + huge_page() + (511 - i) * small, small };
		OK(gmem_vm_discard_list(lab.vm, ranges, ARRAY_SIZE(ranges), NULL, &footprint));
		CHECK_EQ(footprint.done, huge_page());
		CHECK_EQ(free_pages(), before + 1);
		lab_free(&lab);
		lab_unmap_memory(&memory);
	}
	end_pool();
}

TEST(region_is_not_split_inside_a_huge_page)
{
	struct gmem_region *region, *upper;
	struct lab_memory memory;
	struct lab lab;

	begin_pool();
	region = begin(&lab, &memory, 1);
	REFUSED(gmem_region_split(region, page_size(), &upper), -EINVAL);
	CHECK(strstr(gmem_last_error(), "huge page of 2 MiB"));
	CHECK_EQ(gmem_region_size(region), memory.size);
	OK(gmem_region_split(region, huge_page(), &upper));
	lab_free(&lab);
	lab_unmap_memory(&memory);
	end_pool();
}

TEST(populate_says_how_many_huge_pages_are_missing_before_it_takes_one)
{
	struct gmem_footprint footprint;
	char wanted[64];
	struct lab lab;

	begin_pool();
	for (int is_shared = 0; is_shared < 2; is_shared++) {
		uint64_t before = free_pages();
		struct lab_memory memory = map_memory(before + 2, is_shared);

		add(&lab, &memory);
		REFUSED(gmem_vm_populate(lab.vm, BASE, memory.size, NULL, &footprint), -ENOMEM);
		snprintf(wanted, sizeof(wanted), "%llu huge pages of 2 MiB are missing: %llu are free",
			 (unsigned long long)before + 2, (unsigned long long)before);
		CHECK(strstr(gmem_last_error(), wanted));
		CHECK_EQ(footprint.done, 0);
		CHECK_EQ(free_pages(), before);

		OK(gmem_vm_populate(lab.vm, BASE, 2 * huge_page(), NULL, &footprint));
		CHECK_EQ(footprint.after, 2 * huge_page());
		CHECK_EQ(free_pages(), before - 2);
		lab_free(&lab);
		lab_unmap_memory(&memory);
	}
	end_pool();
}

TEST(access_to_a_huge_page_that_nobody_has_is_an_error)
{
	struct gmem_view *view;
	struct lab_memory memory;
	struct lab lab;

	begin_pool();
	memory = map_memory(free_pages() + 1, true);
	add(&lab, &memory);
	memset(memory.hva, 1, memory.size - huge_page());
	OK(gmem_view_new(lab.vm, &view));
	for (int recover = 0; recover < 2; recover++) {
		if (recover)
			OK(gmem_recovery_enable());
		REFUSED(gmem_view_write(view, BASE + memory.size - huge_page(), "x", 1, NULL), -EFAULT);
	}
	gmem_recovery_disable();
	REFUSED(gmem_vm_populate(lab.vm, BASE, memory.size,
				 &(struct gmem_populate_opts){ .size = sizeof(struct gmem_populate_opts),
							       .flags = GMEM_POPULATE_UNCHECKED }, NULL), -EFAULT);
	gmem_view_free(view);
	lab_free(&lab);
	lab_unmap_memory(&memory);
	end_pool();
}

/* Also what another mapping of the file put there, and this one has not touched */
TEST(sparse_memory_of_hugetlb_stays_sparse_and_is_saved_whole)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct lab_memory memory;
	struct lab lab;

	begin_pool();
	for (int is_shared = 0; is_shared < 2; is_shared++) {
		int fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));
		uint64_t before = free_pages();
		char *other;

		in_case("%s", is_shared ? "shared" : "anonymous");
		memory = map_memory(COUNT, is_shared);
		add(&lab, &memory);
		memory.hva[0] = 1;
		if (is_shared) {
			other = mmap(NULL, memory.size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
			CHECK(other != MAP_FAILED);
			other[3 * huge_page()] = 3;
			WORKS(munmap(other, memory.size));
		}
		OK(gmem_vm_save(lab.vm, fd, NULL, &result));
		CHECK_EQ(result.data_bytes, (is_shared ? 2 : 1) * page_size());
		CHECK_EQ(free_pages(), before - (is_shared ? 2 : 1));
		OK(gmem_vm_restore(lab.vm, fd, NULL, NULL));
		CHECK_EQ(free_pages(), before - (is_shared ? 2 : 1));
		CHECK_EQ(memory.hva[0], 1);
		CHECK_EQ(memory.hva[3 * huge_page()], is_shared ? 3 : 0);
		close(fd);
		lab_free(&lab);
		lab_unmap_memory(&memory);
	}
	end_pool();
}

/* ---- pages of a file that this mapping of it has not touched ---- */

static void fill_elsewhere(const struct lab_memory *memory, uint64_t first, uint64_t pages)
{
	char *other = mmap(NULL, memory->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory->fd, 0);

	CHECK(other != MAP_FAILED);
	memset(other + first * huge_page(), 3, pages * huge_page());
	WORKS(munmap(other, memory->size));
}

TEST(pages_that_others_put_into_the_file_are_there)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	struct gmem_footprint footprint;
	struct lab_memory memory;
	uint64_t pages, page;
	struct lab lab;

	begin_pool();
	pages = free_pages();
	page = huge_page();
	memory = map_memory(pages, true);
	add(&lab, &memory);
	fill_elsewhere(&memory, 0, pages);
	OK(gmem_vm_stats(lab.vm, &stats));
	CHECK_EQ(stats.resident_shared, memory.size);
	OK(gmem_vm_discard(lab.vm, BASE, 2 * page, NULL, &footprint));
	CHECK_EQ(footprint.before, 2 * page);
	CHECK_EQ(footprint.after, 0);
	CHECK_EQ(free_pages(), 2);

	OK(gmem_vm_populate(lab.vm, BASE, memory.size, NULL, &footprint));
	CHECK_EQ(footprint.before, memory.size - 2 * page);
	CHECK_EQ(footprint.after, memory.size);
	CHECK_EQ(memory.hva[0], 0);
	CHECK_EQ(memory.hva[memory.size - 1], 3);

	/* Beside a gap, too */
	WORKS(madvise(memory.hva, memory.size, MADV_DONTNEED));
	WORKS(munmap(memory.hva, page));
	OK(gmem_vm_stats(lab.vm, &stats));
	CHECK_EQ(stats.resident_shared, memory.size - page);
	CHECK(mmap(memory.hva, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory.hva);
	lab_free(&lab);
	lab_unmap_memory(&memory);
	end_pool();
}

/* Only the kernel knows which pages of the file there are. */
TEST(what_may_be_in_the_file_is_not_refused)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	struct gmem_footprint footprint;
	struct lab_memory memory;
	uint64_t pages, page;
	struct lab lab;

	begin_pool();
	pages = free_pages();
	page = huge_page();
	memory = map_memory(pages + 2, true);
	add(&lab, &memory);
	fill_elsewhere(&memory, 1, pages);
	REFUSED(gmem_vm_populate(lab.vm, BASE, memory.size, NULL, &footprint), -ENOMEM);
	CHECK(strstr(gmem_last_error(), "2 huge pages of 2 MiB are missing: 0 are free"));
	OK(gmem_vm_stats(lab.vm, &stats));
	CHECK_EQ(stats.resident_shared, pages * page);
	OK(gmem_vm_populate(lab.vm, BASE + page, pages * page, NULL, &footprint));
	CHECK_EQ(footprint.after, pages * page);
	REFUSED(gmem_vm_populate(lab.vm, BASE, page, NULL, &footprint), -EFAULT);
	CHECK_EQ(footprint.done, 0);
	lab_free(&lab);
	lab_unmap_memory(&memory);
	end_pool();
}

TEST(refused_discard_of_sealed_huge_pages_counts_none_as_freed)
{
	struct gmem_footprint footprint;
	struct lab_memory memory;
	struct lab lab;

	begin_pool();
	begin(&lab, &memory, true);
	if (SYS(fcntl(memory.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)) < 0)
		skip("no F_SEAL_FUTURE_WRITE");
	REFUSED(gmem_vm_discard(lab.vm, BASE, memory.size, NULL, &footprint), -EPERM);
	CHECK_EQ(footprint.done, 0);
	CHECK_EQ(footprint.before, memory.size);
	CHECK_EQ(footprint.after, memory.size);
	lab_free(&lab);
	lab_unmap_memory(&memory);
	end_pool();
}

/* ---- load and restore ---- */

static int save_ordinary(uint64_t size)
{
	int fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, size / page_size(), NULL);
	memset(gmem_region_hva(region), 5, size);
	OK(gmem_vm_save(lab.vm, fd, NULL, NULL));
	lab_free(&lab);
	return fd;
}

TEST(load_and_restore_ask_for_huge_pages_before_the_first_byte)
{
	GMEM_OPTS(gmem_transfer_opts, unchecked, .flags = GMEM_TRANSFER_UNCHECKED);
	struct lab_memory memory;
	struct lab lab;

	begin_pool();
	for (int is_shared = 0; is_shared < 2; is_shared++) {
		GMEM_OPTS(gmem_transfer_result, result);
		uint64_t before = free_pages(), size = (before + 2) * huge_page();
		int fd = save_ordinary(size);

		in_case("%s", is_shared ? "shared" : "anonymous");
		memory = map_memory(before + 2, is_shared);
		add(&lab, &memory);
		memory.hva[0] = 1;
		REFUSED(gmem_vm_restore(lab.vm, fd, NULL, &result), -ENOMEM);
		CHECK(strstr(gmem_last_error(), "huge pages of 2 MiB are missing"));
		CHECK_EQ(result.data_bytes, 0);
		REFUSED(gmem_vm_load(lab.vm, BASE, fd, 0, size, NULL, &result), -ENOMEM);
		CHECK_EQ(result.data_bytes, 0);
		CHECK_EQ(memory.hva[0], 1);
		CHECK_EQ(free_pages(), before - 1);

		/* Half of it fits. */
		OK(gmem_vm_load(lab.vm, BASE, fd, 0, size / 2, NULL, NULL));
		REFUSED(gmem_vm_load(lab.vm, BASE, fd, 0, size, &unchecked, NULL), -EFAULT);
		close(fd);
		lab_free(&lab);
		lab_unmap_memory(&memory);
	}
	end_pool();
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
