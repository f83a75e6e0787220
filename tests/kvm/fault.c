/* SPDX-License-Identifier: MIT */
/*
 * Populating, loading, saving and restoring memory that is protected, not mapped, or lost by
 * the hardware: an error with a sentence that says where, never a signal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define PAGES 64
#define FIRST 20	/* of the pages that something happens to */
#define COUNT 3

/* Memory of our own behind a region */
struct own {
	struct lab lab;
	struct gmem_region *region;
	char *hva;
	uint64_t size;
	bool recovers;
};

static void own_new(struct own *own, int flags, uint64_t region_flags)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA | region_flags,
		  .kind = GMEM_KIND_RAM);

	lab_new(&own->lab, DEFAULT_VM);
	own->size = PAGES * own->lab.page;
	own->hva = mmap(NULL, own->size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	CHECK(own->hva != MAP_FAILED);
	memset(own->hva, 5, own->size);
	opts.hva = own->hva;
	own->region = lab_add(&own->lab, GMEM_BACKING_HOST, BASE, PAGES, &opts);
	if (own->recovers)
		OK(gmem_recovery_enable());
}

static void own_free(struct own *own)
{
	if (own->recovers)
		gmem_recovery_disable();
	lab_free(&own->lab);
	munmap(own->hva, own->size);
}

static char *at(const struct own *own, uint64_t page)
{
	return own->hva + page * own->lab.page;
}

/* The same with memory of the library's; false if this VM cannot have it. Recovery is not on yet. */
static bool own_new_of_librarys(struct own *own, uint32_t backing)
{
	if (!(expect_vm(DEFAULT_VM)->backings & 1u << backing))
		return false;
	in_case("backing %s, recovers %d", gmem_backing_name(backing), own->recovers);
	lab_new(&own->lab, DEFAULT_VM);
	own->size = PAGES * own->lab.page;
	own->region = lab_add(&own->lab, backing, BASE, PAGES, NULL);
	own->hva = gmem_region_hva(own->region);
	memset(own->hva, 5, own->size);
	return true;
}

/* With private and shared memory, with recovery and without */
static void for_each_own(uint64_t region_flags, void (*run)(struct own *))
{
	static const int kinds[] = { MAP_PRIVATE, MAP_SHARED };

	for (unsigned int i = 0; i < 4; i++) {
		struct own own = { .recovers = i / 2 };

		in_case("%s memory, %s recovery", i % 2 ? "shared" : "private",
			own.recovers ? "with" : "without");
		own_new(&own, kinds[i % 2], region_flags);
		run(&own);
		own_free(&own);
	}
}

static int new_file(void)
{
	return (int)WORKS(memfd_create("fault", MFD_CLOEXEC));
}

/* The sentence names the first bad page by both addresses, and says @why. */
static void check_sentence(const struct own *own, uint64_t page, const char *why)
{
	char text[96];

	snprintf(text, sizeof(text), "gpa 0x%llx, hva 0x%llx", (unsigned long long)BASE +
		 page * own->lab.page, (unsigned long long)(uintptr_t)at(own, page));
	if (!strstr(gmem_last_error(), text))
		FAIL("not \"%s\" in: %s", text, gmem_last_error());
	if (!strstr(gmem_last_error(), why))
		FAIL("not \"%s\" in: %s", why, gmem_last_error());
}

/* An image of all of it, and a file with as many bytes of another value */
static void make_files(struct own *own, int *image, int *file)
{
	char *bytes = malloc(own->size);

	CHECK(bytes);
	memset(bytes, 9, own->size);
	*image = new_file();
	*file = new_file();
	OK(gmem_vm_save(own->lab.vm, *image, NULL, NULL));
	WORKS(pwrite(*file, bytes, own->size, 0));
	free(bytes);
}

/* ---- mapped for reading only ---- */

static void read_only_memory_is_not_written(struct own *own)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	int image, file;

	make_files(own, &image, &file);
	WORKS(mprotect(at(own, FIRST), COUNT * own->lab.page, PROT_READ));
	REFUSED(gmem_vm_load(own->lab.vm, BASE, file, 0, 0, NULL, &result), -EFAULT);
	check_sentence(own, FIRST, "cannot be written: EFAULT, it is mapped for reading only");
	CHECK(*at(own, FIRST - 1) == 9 && *at(own, FIRST) == 5 && *at(own, FIRST + COUNT) == 5);
	REFUSED(gmem_vm_restore(own->lab.vm, image, NULL, NULL), -EFAULT);
	check_sentence(own, FIRST, "it is mapped for reading only");
	CHECK(*at(own, FIRST - 1) == 5);

	/* To read it is enough for a save. */
	OK(gmem_vm_save(own->lab.vm, image, NULL, NULL));
	WORKS(mprotect(own->hva, own->size, PROT_READ | PROT_WRITE));
	OK(gmem_vm_load(own->lab.vm, BASE, file, 0, 0, NULL, &result));
	OK(gmem_vm_restore(own->lab.vm, image, NULL, NULL));
	CHECK(*at(own, FIRST) == 5);
	close(image);
	close(file);
}

TEST(memory_that_may_only_be_read_is_not_loaded_or_restored_to)
{
	for_each_own(0, read_only_memory_is_not_written);
}

static void a_rom_is_populated_for_reading(struct own *own)
{
	WORKS(mprotect(own->hva, own->size, PROT_READ));
	OK(gmem_vm_populate(own->lab.vm, BASE, own->size, NULL, NULL));
	GUEST_LOADS(&own->lab.guest, BASE + 5 * own->lab.page, 0x05050505);
}

TEST(a_rom_that_is_mapped_for_reading_is_populated)
{
	for_each_own(GMEM_REGION_READONLY, a_rom_is_populated_for_reading);
}

static void read_only_memory_is_not_populated(struct own *own)
{
	WORKS(mprotect(at(own, FIRST), COUNT * own->lab.page, PROT_READ));
	REFUSED(gmem_vm_populate(own->lab.vm, BASE, own->size, NULL, NULL), -EFAULT);
	check_sentence(own, FIRST, "it is mapped for reading only");
	OK(gmem_vm_populate(own->lab.vm, BASE, FIRST * own->lab.page, NULL, NULL));
}

TEST(ram_that_is_mapped_for_reading_cannot_be_populated)
{
	for_each_own(0, read_only_memory_is_not_populated);
}

/* ---- without permission, or not mapped ---- */

static void check_out_of_reach(struct own *own, int image, int file, bool is_mapped)
{
	const char *why = is_mapped ? "no page of memory is there, or it is mapped without the permission"
				    : "nothing was mapped there";

	REFUSED(gmem_vm_load(own->lab.vm, BASE, file, 0, 0, NULL, NULL), -EFAULT);
	check_sentence(own, FIRST, why);
	REFUSED(gmem_vm_restore(own->lab.vm, image, NULL, NULL), -EFAULT);
	check_sentence(own, FIRST, why);
	REFUSED(gmem_vm_populate(own->lab.vm, BASE, own->size, NULL, NULL), -EFAULT);
	if (is_mapped)
		check_sentence(own, FIRST, why);
}

static void protected_memory_is_not_reached(struct own *own)
{
	int image, file, out = new_file();

	make_files(own, &image, &file);
	WORKS(mprotect(at(own, FIRST), COUNT * own->lab.page, PROT_NONE));
	check_out_of_reach(own, image, file, true);
	REFUSED(gmem_vm_save(own->lab.vm, out, NULL, NULL), -EFAULT);
	check_sentence(own, FIRST, "no page of memory is there");
	WORKS(mprotect(own->hva, own->size, PROT_READ | PROT_WRITE));
	OK(gmem_vm_save(own->lab.vm, out, NULL, NULL));
	close(image);
	close(file);
	close(out);
}

TEST(memory_without_permission_is_an_error_of_every_transfer)
{
	for_each_own(0, protected_memory_is_not_reached);
}

static void unmapped_memory_is_not_reached(struct own *own)
{
	int image, file, out = new_file();

	make_files(own, &image, &file);
	WORKS(munmap(at(own, FIRST), COUNT * own->lab.page));
	check_out_of_reach(own, image, file, false);
	REFUSED(gmem_vm_save(own->lab.vm, out, NULL, NULL), -EFAULT);
	close(image);
	close(file);
	close(out);
}

TEST(memory_that_is_not_mapped_is_an_error_of_every_transfer)
{
	for_each_own(0, unmapped_memory_is_not_reached);
}

/* A hole that is as large as a transfer's own buffers is where the kernel puts them. */
TEST(buffers_of_a_transfer_do_not_pass_for_memory_that_is_not_mapped)
{
	for (unsigned int mib = 1; mib <= 64; mib *= 2) {
		GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
		struct lab lab;
		int image = new_file(), out = new_file();
		char *hva = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		CHECK(hva != MAP_FAILED);
		lab_new(&lab, DEFAULT_VM);
		opts.hva = hva;
		lab_add(&lab, GMEM_BACKING_HOST, BASE, mib * MIB / lab.page, &opts);
		memset(hva, 5, mib * MIB);
		OK(gmem_vm_save(lab.vm, image, NULL, NULL));
		WORKS(munmap(hva, mib * MIB));
		REFUSED(gmem_vm_save(lab.vm, out, NULL, NULL), -EFAULT);
		REFUSED(gmem_vm_restore(lab.vm, image, NULL, NULL), -EFAULT);
		REFUSED(gmem_vm_load(lab.vm, BASE, image, 0, MIB, NULL, NULL), -EFAULT);
		close(image);
		close(out);
		lab_free(&lab);
	}
}

/* The library's own mappings, protected by somebody else in the program */
TEST(memory_of_the_library_may_be_protected_too)
{
	static const uint32_t backings[] = {
		GMEM_BACKING_HOST, GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED,
	};

	for (size_t i = 0; i < 2 * ARRAY_SIZE(backings); i++) {
		struct own own = { .recovers = i % 2 };
		int image, file;

		if (!own_new_of_librarys(&own, backings[i / 2]))
			continue;
		if (own.recovers)
			OK(gmem_recovery_enable());
		make_files(&own, &image, &file);
		WORKS(mprotect(at(&own, FIRST), own.lab.page, PROT_NONE));
		check_out_of_reach(&own, image, file, true);
		REFUSED(gmem_vm_save(own.lab.vm, image, NULL, NULL), -EFAULT);
		check_sentence(&own, FIRST, "cannot be read: EFAULT");
		WORKS(mprotect(at(&own, FIRST), own.lab.page, PROT_READ | PROT_WRITE));
		if (own.recovers)
			gmem_recovery_disable();
		lab_free(&own.lab);
		close(image);
		close(file);
	}
}

/* ---- lost by the hardware ---- */

struct lost {
	unsigned int count;
	uint64_t gpa, size;	/* of all, which touch */
};

static void hear_lost(void *data, uint64_t gpa, uint64_t size)
{
	struct lost *lost = data;

	CHECK(lost->count == 0 || lost->gpa + lost->size == gpa);
	if (lost->count++ == 0)
		lost->gpa = gpa;
	lost->size += size;
}

/*
 * Pages from the page @first on are lost, @bytes in all. What holds them is discarded in the
 * end, and then has other pages.
 */
static void check_lost(struct own *own, uint64_t first, uint64_t bytes)
{
	struct lost lost = { 0 };
	GMEM_OPTS(gmem_transfer_opts, allow, .flags = GMEM_TRANSFER_ALLOW_LOST, .lost = hear_lost,
		  .lost_data = &lost);
	GMEM_OPTS(gmem_discard_opts, discard, .flags = 0);
	struct gmem_transfer_result out = { .size = sizeof(out) }, in = out;
	uint64_t gpa = BASE + first * own->lab.page;
	struct gmem_vm *vm = own->lab.vm;
	int image = new_file();

	REFUSED(gmem_vm_save(vm, image, NULL, NULL), -EHWPOISON);
	check_sentence(own, first, "the hardware lost the page");
	OK(gmem_vm_save(vm, image, &allow, &out));
	CHECK_EQ(out.lost_bytes, bytes);
	CHECK_EQ(lost.gpa, gpa);
	CHECK_EQ(lost.size, bytes);
	CHECK_EQ(out.data_bytes + out.zero_bytes + out.lost_bytes, own->size);

	REFUSED(gmem_image_verify(image, NULL, NULL), -EHWPOISON);
	lost = (struct lost){ 0 };
	OK(gmem_image_verify(image, &allow, &in));
	CHECK(lost.gpa == gpa && lost.size == bytes && in.lost_bytes == bytes);

	REFUSED(gmem_vm_populate(vm, BASE, own->size, NULL, NULL), -EHWPOISON);
	check_sentence(own, first, "the hardware lost the page");
	lost = (struct lost){ 0 };
	REFUSED(gmem_vm_restore(vm, image, &allow, NULL), -EHWPOISON);
	check_sentence(own, first, "the hardware lost the page");

	OK(gmem_vm_discard(vm, gpa, bytes, &discard, NULL));
	REFUSED(gmem_vm_restore(vm, image, NULL, NULL), -EHWPOISON);
	lost = (struct lost){ 0 };
	OK(gmem_vm_restore(vm, image, &allow, &in));
	CHECK_EQ(in.lost_bytes, bytes);
	CHECK_EQ(in.zero_bytes + in.data_bytes + in.lost_bytes, own->size);
	for (uint64_t page = 0; page < own->size / own->lab.page; page++)
		CHECK_EQ(*at(own, page), page >= first && page < first + bytes / own->lab.page ? 0 : 5);
	OK(gmem_vm_populate(vm, BASE, own->size, NULL, NULL));
	close(image);
}

TEST(lost_pages_of_every_backing_are_named_and_can_be_left_out)
{
	static const uint32_t backings[] = {
		GMEM_BACKING_HOST, GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED,
	};

	lab_require_poison();
	for (size_t i = 0; i < 2 * ARRAY_SIZE(backings); i++) {
		struct own own = { .recovers = i % 2 };

		if (!own_new_of_librarys(&own, backings[i / 2]))
			continue;
		CHECK_RESULT(lab_poison(at(&own, FIRST), own.lab.page), 0);
		CHECK_RESULT(lab_poison(at(&own, FIRST + 1), own.lab.page), 0);
		if (own.recovers)
			OK(gmem_recovery_enable());
		check_lost(&own, FIRST, 2 * own.lab.page);
		if (own.recovers)
			gmem_recovery_disable();
		lab_free(&own.lab);
	}
}

/* Memory of our own, private and shared, which are found in different ways */
static void own_memory_is_lost(struct own *own)
{
	if (own->recovers)
		gmem_recovery_disable();
	CHECK_RESULT(lab_poison(at(own, FIRST), own->lab.page), 0);
	if (own->recovers)
		OK(gmem_recovery_enable());
	check_lost(own, FIRST, own->lab.page);
}

TEST(a_lost_page_of_memory_of_ones_own_is_named)
{
	lab_require_poison();
	for_each_own(0, own_memory_is_lost);
}

static bool set_huge_pages(unsigned int count)
{
	FILE *file = fopen("/proc/sys/vm/nr_hugepages", "w");

	return file && fprintf(file, "%u", count) > 0 && fclose(file) == 0;
}

/* Bytes of a huge page, of which the machine now has some; or skip */
static uint64_t require_huge_pages(void)
{
	uint64_t kib;

	if (!set_huge_pages(6))
		skip("no huge pages can be had");
	kib = lab_read_number("/proc/meminfo", "Hugepagesize:");
	if (!kib || kib > 32 * 1024)
		skip("no huge pages of a size to be wasted: %llu KiB", (unsigned long long)kib);
	return kib * KIB;
}

TEST(a_lost_huge_page_is_lost_as_a_whole)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	char text[64];

	lab_require_poison();
	for (int recovers = 0; recovers < 2; recovers++) {
		struct own own = { .recovers = recovers };
		uint64_t huge = require_huge_pages();
		int image = new_file();

		lab_new(&own.lab, DEFAULT_VM);
		own.size = 3 * huge;
		own.hva = mmap(NULL, own.size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
		if (own.hva == MAP_FAILED)
			skip("three huge pages cannot be had: %s", result_text(-errno));
		memset(own.hva, 5, own.size);
		opts.hva = own.hva;
		own.region = lab_add(&own.lab, GMEM_BACKING_HOST, BASE, own.size / own.lab.page, &opts);
		CHECK_RESULT(lab_poison(own.hva + huge + 5 * own.lab.page, own.lab.page), 0);
		if (recovers)
			OK(gmem_recovery_enable());
		REFUSED(gmem_vm_save(own.lab.vm, image, NULL, NULL), -EHWPOISON);
		snprintf(text, sizeof(text), "lost the page, 0x%llx bytes", (unsigned long long)huge);
		CHECK(strstr(gmem_last_error(), text));
		check_lost(&own, huge / own.lab.page, huge);
		own_free(&own);
		close(image);
	}
	set_huge_pages(0);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
