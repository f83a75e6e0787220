/* SPDX-License-Identifier: MIT */
/*
 * Kinds of memory on a real kernel. Memory that nobody may access stands in for the
 * registers of a device: who reads it all the same gets an error.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define PAGES 16

static void *memory(struct lab *lab, int fill)
{
	void *p = mmap(NULL, PAGES * lab->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	memset(p, fill, PAGES * lab->page);
	return p;
}

static void protect(struct lab *lab, void *p, int prot)
{
	WORKS(mprotect(p, PAGES * lab->page, prot));
}

static struct gmem_region *add(struct lab *lab, uint64_t gpa, void *hva, uint32_t kind, uint64_t identity)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = hva ? GMEM_REGION_HVA : 0, .hva = hva, .kind = kind,
		  .identity = identity);

	return lab_add(lab, GMEM_BACKING_HOST, gpa, PAGES, &opts);
}

/* A VM with RAM, other memory right behind it, and RAM again */
struct site {
	struct lab lab;
	struct gmem_region *ram, *other, *more;
	void *hva;
	uint64_t size;
};

static void site_new(struct site *s, uint32_t kind, uint64_t identity)
{
	lab_new(&s->lab, DEFAULT_VM);
	s->size = PAGES * s->lab.page;
	s->hva = memory(&s->lab, 0xba);
	s->ram = add(&s->lab, BASE, NULL, GMEM_KIND_RAM, 0);
	s->other = add(&s->lab, BASE + s->size, s->hva, kind, identity);
	s->more = add(&s->lab, BASE + 2 * s->size, NULL, GMEM_KIND_RAM, 0);
	memset(gmem_region_hva(s->ram), 1, s->size);
	memset(gmem_region_hva(s->more), 2, s->size);
}

static void site_free(struct site *s)
{
	lab_free(&s->lab);
	munmap(s->hva, s->size);
}

static int new_file(void)
{
	return (int)WORKS(memfd_create("image", MFD_CLOEXEC));
}

static int save(struct gmem_vm *vm, uint64_t *ret_left_out)
{
	GMEM_OPTS(gmem_transfer_result, result);
	int fd = new_file();

	OK(gmem_vm_save(vm, fd, NULL, &result));
	*ret_left_out = result.left_out_bytes;
	return fd;
}

static int restore(struct gmem_vm *vm, int fd, uint64_t flags)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags);

	return gmem_vm_restore(vm, fd, &opts, NULL);
}

static bool says(const char *words)
{
	return strstr(gmem_last_error(), words);
}

/* ---- device memory ---- */

TEST(guest_and_host_reach_device_memory)
{
	struct gmem_view *view;
	struct site s;
	uint32_t word;

	site_new(&s, GMEM_KIND_DEVICE, 0);
	CHECK_EQ(gmem_region_kind(s.other), GMEM_KIND_DEVICE);
	GUEST_LOADS(&s.lab.guest, BASE + s.size, 0xbabababa);
	GUEST_STORES(&s.lab.guest, BASE + s.size, 0x12345678);
	OK(gmem_view_new(s.lab.vm, &view));
	OK(gmem_view_read(view, BASE + s.size, &word, 4, NULL));
	CHECK_EQ(word, 0x12345678);
	gmem_view_free(view);
	site_free(&s);
}

TEST(nobody_looks_at_device_memory)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	struct gmem_footprint print;
	uint64_t left_out;
	struct site s;
	int fd;

	site_new(&s, GMEM_KIND_DEVICE, 0);
	protect(&s.lab, s.hva, PROT_NONE);
	fd = save(s.lab.vm, &left_out);
	CHECK_EQ(left_out, s.size);
	memset(gmem_region_hva(s.ram), 3, s.size);
	OK(restore(s.lab.vm, fd, 0));
	OK(restore(s.lab.vm, fd, GMEM_TRANSFER_VERIFY));
	CHECK_EQ(*(char *)gmem_region_hva(s.ram), 1);

	OK(gmem_vm_stats(s.lab.vm, &stats));
	CHECK_EQ(stats.bytes_device, s.size);
	CHECK_EQ(stats.bytes_shared, 2 * s.size);
	CHECK_EQ(stats.resident_shared, 2 * s.size);
	OK(gmem_vm_populate(s.lab.vm, BASE, 3 * s.size, NULL, &print));
	CHECK_EQ(print.after, 2 * s.size);
	OK(gmem_vm_discard(s.lab.vm, BASE, 3 * s.size, NULL, &print));
	CHECK_EQ(print.done, 2 * s.size);
	CHECK_EQ(print.after, 0);
	protect(&s.lab, s.hva, PROT_READ);
	CHECK_EQ(*(unsigned char *)s.hva, 0xba);
	close(fd);
	site_free(&s);
}

TEST(a_range_of_device_memory_alone_is_refused)
{
	GMEM_OPTS(gmem_discard_opts, discard, .flags = GMEM_DISCARD_ALL_KINDS);
	GMEM_OPTS(gmem_populate_opts, populate, .flags = GMEM_POPULATE_ALL_KINDS);
	struct gmem_footprint print;
	struct site s;
	int fd;

	site_new(&s, GMEM_KIND_DEVICE, 0);
	REFUSED(gmem_vm_discard(s.lab.vm, BASE + s.size, s.size, NULL, &print), -EOPNOTSUPP);
	CHECK(says("\"device\"") && says("GMEM_DISCARD_ALL_KINDS"));
	CHECK_EQ(print.done, 0);
	REFUSED(gmem_vm_populate(s.lab.vm, BASE + s.size, s.size, NULL, &print), -EOPNOTSUPP);
	CHECK(says("GMEM_POPULATE_ALL_KINDS"));
	fd = new_file();
	CHECK_EQ(write(fd, "x", 1), 1);
	REFUSED(gmem_vm_load(s.lab.vm, BASE + s.size, fd, 0, 1, NULL, NULL), -EOPNOTSUPP);
	CHECK_EQ(*(unsigned char *)s.hva, 0xba);

	OK(gmem_vm_populate(s.lab.vm, BASE + s.size, s.size, &populate, &print));
	OK(gmem_vm_discard(s.lab.vm, BASE + s.size, s.size, &discard, &print));
	CHECK_EQ(print.done, s.size);
	CHECK_EQ(*(unsigned char *)s.hva, 0);
	close(fd);
	site_free(&s);
}

TEST(device_memory_in_a_list_does_not_keep_the_rest_from_being_discarded)
{
	struct gmem_footprint print;
	struct site s;

	site_new(&s, GMEM_KIND_DEVICE, 0);
	for (uint64_t apart = 0; apart < 2; apart++) {
		struct gmem_gpa_range ranges[] = {
			{ BASE + s.size + apart * s.lab.page, s.lab.page },
			{ BASE + s.size - s.lab.page, s.lab.page },
			{ BASE + 2 * s.size + apart * s.lab.page, s.lab.page },
		};

		OK(gmem_vm_discard_list(s.lab.vm, ranges, ARRAY_SIZE(ranges), NULL, &print));
		CHECK_EQ(print.done, 2 * s.lab.page);
		CHECK_EQ(*((char *)gmem_region_hva(s.more) + apart * s.lab.page), 0);
		ranges[1].gpa = BASE + s.size + 3 * s.lab.page;
		REFUSED(gmem_vm_discard_list(s.lab.vm, ranges, 2, NULL, &print), -EOPNOTSUPP);
		CHECK(says("\"device\"") && says("GMEM_DISCARD_ALL_KINDS"));
		CHECK_EQ(print.done, 0);
	}
	CHECK_EQ(*(unsigned char *)s.hva, 0xba);
	site_free(&s);
}

TEST(exports_leave_device_memory_out)
{
	struct gmem_region *other;
	struct gmem_extent extents[4];
	struct gmem_export *exporter;
	struct lab lab;
	void *p;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	fd = new_file();
	WORKS(ftruncate(fd, (off_t)(PAGES * lab.page)));
	p = mmap(NULL, PAGES * lab.page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	other = add(&lab, BASE, p, GMEM_KIND_DEVICE, 0);
	GMEM_OPTS(gmem_export_opts, opts, .flags = GMEM_EXPORT_UNSEALED);
	OK(gmem_export_new(lab.vm, &opts, &exporter));
	CHECK_RESULT(gmem_export_table(exporter, extents, 4), 0);
	OK(gmem_export_add_memory(exporter, p, PAGES * lab.page, fd, 0));
	CHECK_RESULT(gmem_export_table(exporter, extents, 4), 1);
	gmem_export_free(exporter);
	OK(gmem_region_remove(other));
	munmap(p, PAGES * lab.page);
	close(fd);
	lab_free(&lab);
}

TEST(kind_moves_and_is_split_with_its_region)
{
	struct gmem_region *upper;
	uint64_t left_out;
	struct site s;
	int fd, again;

	site_new(&s, GMEM_KIND_DEVICE, 5);
	protect(&s.lab, s.hva, PROT_NONE);
	fd = save(s.lab.vm, &left_out);
	OK(gmem_region_split(s.other, s.lab.page, &upper));
	CHECK_EQ(gmem_region_kind(upper), GMEM_KIND_DEVICE);
	CHECK_EQ(gmem_region_identity(upper), 5);
	OK(restore(s.lab.vm, fd, 0));

	OK(gmem_region_move(upper, BASE + 64 * MIB));
	REFUSED(restore(s.lab.vm, fd, 0), -ENOENT);
	again = save(s.lab.vm, &left_out);
	CHECK_EQ(left_out, s.size);
	OK(restore(s.lab.vm, again, 0));
	close(fd);
	close(again);
	site_free(&s);
}

/* ---- restore compares ---- */

static void check_target(uint32_t kind, uint64_t identity, int fd, int wanted, const char *words)
{
	struct site s;
	int err;

	in_case("restored over kind %u, identity %lu", kind, (unsigned long)identity);
	site_new(&s, kind, identity);
	err = restore(s.lab.vm, fd, 0);
	CHECK_RESULT(err, wanted);
	CHECK(!words || says(words));
	CHECK_EQ(*(unsigned char *)s.hva, 0xba);
	site_free(&s);
}

TEST(restore_needs_the_same_kind_and_identity)
{
	static const uint32_t kinds[] = { GMEM_KIND_DEVICE, GMEM_KIND_EXTERNAL };
	uint64_t left_out;
	struct site s;
	int fd;

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		site_new(&s, kinds[i], 77);
		fd = save(s.lab.vm, &left_out);
		site_free(&s);

		check_target(kinds[i], 77, fd, 0, NULL);
		check_target(kinds[i], 78, fd, -ENOENT, "identity 0x4e");
		check_target(kinds[!i], 77, fd, -ENOENT, gmem_kind_name(kinds[!i]));
		check_target(GMEM_KIND_RAM, 0, fd, -ENOENT, gmem_kind_name(kinds[i]));
		OK(gmem_image_verify(fd, NULL, NULL));
		close(fd);
	}

	/* no identity was given when it was saved */
	site_new(&s, GMEM_KIND_EXTERNAL, 0);
	fd = save(s.lab.vm, &left_out);
	site_free(&s);
	check_target(GMEM_KIND_EXTERNAL, 3, fd, 0, NULL);
	close(fd);
}

TEST(restore_needs_neither_more_nor_less)
{
	struct gmem_region *more;
	uint64_t left_out;
	struct site s;
	void *p;
	int fd;

	site_new(&s, GMEM_KIND_DEVICE, 0);
	fd = save(s.lab.vm, &left_out);
	p = memory(&s.lab, 1);
	more = add(&s.lab, BASE + 64 * MIB, p, GMEM_KIND_DEVICE, 0);
	REFUSED(restore(s.lab.vm, fd, 0), -EEXIST);
	OK(restore(s.lab.vm, fd, GMEM_TRANSFER_LEAVE_REST));
	OK(gmem_region_remove(more));

	OK(gmem_region_remove(s.other));
	memset(gmem_region_hva(s.ram), 9, s.size);
	REFUSED(restore(s.lab.vm, fd, 0), -ENOENT);
	CHECK(says("\"device\""));
	CHECK_EQ(*(char *)gmem_region_hva(s.ram), 9);
	OK(restore(s.lab.vm, fd, GMEM_TRANSFER_LEAVE_REST));
	CHECK_EQ(*(char *)gmem_region_hva(s.ram), 1);
	close(fd);
	munmap(p, PAGES * s.lab.page);
	site_free(&s);
}

TEST(contents_do_not_go_where_none_belong)
{
	uint64_t left_out;
	struct site s;
	int fd;

	site_new(&s, GMEM_KIND_RAM, 0);
	fd = save(s.lab.vm, &left_out);
	CHECK_EQ(left_out, 0);
	site_free(&s);
	check_target(GMEM_KIND_DEVICE, 0, fd, -ENOENT, "\"device\"");
	check_target(GMEM_KIND_ROM, 0, fd, 0, NULL);
	close(fd);
}

/* ---- ROM ---- */

static void *map_rom(struct lab *lab, int fill)
{
	int fd = new_file();
	char byte = (char)fill;
	void *p;

	for (uint64_t at = 0; at < PAGES * lab->page; at += lab->page)
		CHECK_EQ(pwrite(fd, &byte, 1, (off_t)at), 1);
	WORKS(ftruncate(fd, (off_t)(PAGES * lab->page)));
	p = mmap(NULL, PAGES * lab->page, PROT_READ, MAP_PRIVATE, fd, 0);
	CHECK(p != MAP_FAILED);
	close(fd);
	return p;
}

static struct gmem_region *add_rom(struct lab *lab, void *hva)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA | GMEM_REGION_READONLY, .hva = hva);

	return lab_add(lab, GMEM_BACKING_HOST, BASE, PAGES, &opts);
}

TEST(rom_is_restored_where_it_is_the_same)
{
	struct gmem_footprint print;
	struct gmem_region *rom;
	uint64_t left_out;
	struct lab lab;
	void *right, *wrong;
	int fd, image;

	lab_new(&lab, DEFAULT_VM);
	right = map_rom(&lab, 'R');
	wrong = map_rom(&lab, 'W');
	rom = add_rom(&lab, right);
	CHECK_EQ(gmem_region_kind(rom), GMEM_KIND_ROM);
	OK(gmem_vm_populate(lab.vm, BASE, PAGES * lab.page, NULL, &print));
	REFUSED(gmem_vm_discard(lab.vm, BASE, PAGES * lab.page, NULL, &print), -EOPNOTSUPP);
	fd = save(lab.vm, &left_out);
	CHECK_EQ(left_out, 0);
	OK(restore(lab.vm, fd, 0));
	OK(gmem_region_remove(rom));

	rom = add_rom(&lab, wrong);
	REFUSED(restore(lab.vm, fd, 0), -EROFS);
	CHECK(says("\"rom\"") && says("other contents"));
	OK(gmem_region_remove(rom));

	/* Zeros differ, too. */
	rom = add_rom(&lab, memory(&lab, 0));
	image = save(lab.vm, &left_out);
	munmap(gmem_region_hva(rom), PAGES * lab.page);
	OK(gmem_region_remove(rom));
	rom = add_rom(&lab, right);
	REFUSED(restore(lab.vm, image, 0), -EROFS);
	CHECK(says("other contents"));
	OK(gmem_region_remove(rom));
	close(image);

	rom = add_rom(&lab, memory(&lab, 0));
	OK(restore(lab.vm, fd, 0));
	CHECK_EQ(*(char *)gmem_region_hva(rom), 'R');
	munmap(gmem_region_hva(rom), PAGES * lab.page);
	munmap(right, PAGES * lab.page);
	munmap(wrong, PAGES * lab.page);
	close(fd);
	lab_free(&lab);
}

TEST(rom_is_loaded_where_it_is_the_same)
{
	GMEM_OPTS(gmem_transfer_result, result);
	char byte = 'R';
	struct lab lab;
	void *rom;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	rom = map_rom(&lab, byte);
	add_rom(&lab, rom);
	fd = new_file();
	CHECK_EQ(write(fd, &byte, 1), 1);
	OK(gmem_vm_load(lab.vm, BASE, fd, 0, 1, NULL, &result));
	CHECK_EQ(result.data_bytes, 1);
	REFUSED(gmem_vm_load(lab.vm, BASE + 1, fd, 0, 1, NULL, NULL), -EROFS);
	CHECK(says("\"rom\"") && says("other contents"));
	CHECK_EQ(((char *)rom)[1], 0);
	close(fd);
	munmap(rom, PAGES * lab.page);
	lab_free(&lab);
}

/* ---- found out ---- */

/* What smaps says of one of the kernel's own mappings, whose pages may be none of memory's */
static void *find_device_memory(void)
{
	unsigned long start, at = 0, end;
	char line[512];
	FILE *smaps = fopen("/proc/self/smaps", "re");
	void *found = NULL;

	CHECK(smaps);
	while (!found && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			at = start;
		if (!strncmp(line, "VmFlags:", 8) && (strstr(line, " pf") || strstr(line, " io")))
			found = (void *)at;
	}
	fclose(smaps);
	return found;
}

static uint32_t found_kind(struct lab *lab, void *hva, uint64_t pages, uint64_t flags)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA | flags, .hva = hva);
	struct gmem_region *region = lab_add(lab, GMEM_BACKING_HOST, BASE, pages, &opts);
	uint32_t kind = gmem_region_kind(region);

	OK(gmem_region_remove(region));
	return kind;
}

TEST(memory_of_a_device_is_found_out)
{
	struct lab lab;
	void *p = find_device_memory();

	if (!p)
		skip("no mapping of the kernel's own is like a device's");
	lab_new(&lab, DEFAULT_VM);
	CHECK_EQ(found_kind(&lab, p, 1, GMEM_REGION_READONLY), GMEM_KIND_DEVICE);
	lab_free(&lab);
}

TEST(page_of_dev_mem_is_found_out)
{
	int fd = open("/dev/mem", O_RDONLY | O_CLOEXEC);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA | GMEM_REGION_READONLY);
	uint64_t left_out;
	struct lab lab;
	int image;

	if (fd < 0)
		skip("/dev/mem cannot be opened");
	lab_new(&lab, DEFAULT_VM);
	opts.hva = mmap(NULL, lab.page, PROT_READ, MAP_SHARED, fd, 0xf0000);
	close(fd);
	if (opts.hva == MAP_FAILED)
		skip("/dev/mem cannot be mapped");
	CHECK_EQ(gmem_region_kind(lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, &opts)), GMEM_KIND_DEVICE);
	image = save(lab.vm, &left_out);
	CHECK_EQ(left_out, lab.page);
	OK(restore(lab.vm, image, 0));
	close(image);
	munmap(opts.hva, lab.page);
	lab_free(&lab);
}

TEST(memory_that_looks_like_a_device_s_is_ram)
{
	struct lab lab;
	uint64_t huge = 2 * MIB;
	void *p;

	lab_new(&lab, DEFAULT_VM);
	p = memory(&lab, 1);
	CHECK_EQ(found_kind(&lab, p, PAGES, 0), GMEM_KIND_RAM);
	if (syscall(SYS_mlock, p, PAGES * lab.page) == 0)
		CHECK_EQ(found_kind(&lab, p, PAGES, 0), GMEM_KIND_RAM);
	munmap(p, PAGES * lab.page);

	p = mmap(NULL, huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (p != MAP_FAILED) {
		CHECK_EQ(found_kind(&lab, p, huge / lab.page, 0), GMEM_KIND_RAM);
		munmap(p, huge);
	}
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
