/* SPDX-License-Identifier: MIT */
/* chain: images made by hand, and memory that comes and goes from one image to the next */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "dirty/tracker.h"
#include "region/dirty_pages.h"
#include "transfer/image.h"
#include "transfer/leased_memory.h"
#include "unit.h"
#include "unit_alloc.h"

#define BLOCK ((uint64_t)4096)

static int new_file(void)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* ---- images made by hand ---- */

/* A record of version 2, with tables and contents, that a test fills and may spoil */
struct made {
	int fd;
	uint64_t id, number;
	uint32_t checksums;
	uint64_t at;		/* bytes of the record so far */
	uint64_t pages;
	uint64_t all_pages;
	struct image_table *table;
	union {
		struct image_record record;
		struct image_head head;
		char bytes[IMAGE_UNIT];
	} *unit;
};

static void make(struct made *made, int fd, uint64_t id)
{
	*made = (struct made){ .fd = fd, .id = id, .unit = calloc(1, sizeof(*made->unit)) };
	assert_non_null(made->unit);
}

static void put_part(struct made *made)
{
	memset(made->unit, 0, sizeof(*made->unit));
	memcpy(made->unit->record.kind, "GMEMPART", 8);
	made->at = sizeof(struct image_record);
	made->pages = 0;
}

static void put_head(struct made *made, uint64_t regions, uint64_t privates, uint64_t parent,
		     uint64_t generation, uint64_t flags)
{
	put_part(made);
	memcpy(made->unit->record.kind, "GMEMHEAD", 8);
	made->unit->record.version = 2;
	made->unit->record.head.page_size = 4096;
	made->unit->record.head.regions = regions;
	made->unit->record.head.privates = privates;
	made->unit->head.parent = parent;
	made->unit->head.generation = generation;
	made->unit->head.flags = flags;
	made->at = sizeof(struct image_head);
}

static void put_table(struct made *made, const char *kind, uint64_t base)
{
	made->table = (void *)(made->unit->bytes + made->at);
	memcpy(made->table->kind, kind, 8);
	made->table->data.base = base;
	made->at += sizeof(*made->table);
	made->unit->record.count++;
}

static void put_entry(struct made *made, const void *entry, size_t size)
{
	memcpy(made->unit->bytes + made->at, entry, size);
	made->at += size;
	made->table->count++;
}

static void put_region(struct made *made, uint64_t page, uint64_t pages)
{
	put_entry(made, &(struct image_region){ .gpa = page * BLOCK, .size = pages * BLOCK,
						.backing = GMEM_BACKING_HOST }, sizeof(struct image_region));
}

static void put_range(struct made *made, uint64_t page, uint64_t pages)
{
	put_entry(made, &(struct image_range){ page * BLOCK, pages * BLOCK }, sizeof(struct image_range));
}

/* A run of pages full of @byte, or of zeros */
static void put_run(struct made *made, uint32_t first, uint32_t count, int byte)
{
	put_entry(made, &(struct image_run){ first, count | (byte ? 0 : IMAGE_ZEROS) }, sizeof(struct image_run));
	if (byte)
		memset(made->unit->bytes + (1 + made->pages) * BLOCK, byte, count * BLOCK);
	made->pages += byte ? count : 0;
}

static void put_record(struct made *made, void (*edit)(struct made *made))
{
	struct image_record *record = &made->unit->record;
	uint64_t size;

	record->id = made->id;
	record->number = made->number++;
	size = (made->at + BLOCK - 1) / BLOCK * BLOCK + made->pages * BLOCK;
	record->size = (uint32_t)size;
	if (edit)
		edit(made);
	if (record->size >= sizeof(*record) && record->size <= IMAGE_UNIT) {
		record->checksum = gmem_image_checksum(record);
		size = record->size;
	}
	made->checksums = gmem_crc32c(made->checksums, &record->checksum, 4);
	made->all_pages += made->pages;
	assert_int_equal(write(made->fd, record, size), size);
}

static void put_end(struct made *made, void (*edit)(struct made *made))
{
	put_table(made, "GMEM_END", 0);
	made->table->end.pages = made->all_pages + made->pages;
	made->table->end.checksums = made->checksums;
	put_record(made, edit);
	free(made->unit);
}

/* ---- a VM of two regions ---- */

#define LOW 16
#define LOW_PAGES 64
#define HIGH 200
#define HIGH_PAGES 32

struct guest {
	struct unit unit;
	struct gmem_region *low, *high;
};

static void begin(struct guest *g)
{
	unit_begin_vm(&g->unit, "6.18");
	g->low = unit_region_backed(&g->unit, LOW, LOW_PAGES, GMEM_BACKING_HOST);
	g->high = unit_region_backed(&g->unit, HIGH, HIGH_PAGES, GMEM_BACKING_HOST);
}

static void end(struct guest *g)
{
	unit_end(&g->unit);
}

static void soil(struct guest *g, int byte)
{
	memset(gmem_region_hva(g->low), byte, LOW_PAGES * BLOCK);
	memset(gmem_region_hva(g->high), byte, HIGH_PAGES * BLOCK);
}

static void check_pages(struct gmem_region *region, uint64_t page, uint64_t pages, int byte)
{
	const char *hva = gmem_region_hva(region);

	for (uint64_t i = page * BLOCK; i < (page + pages) * BLOCK; i++)
		assert_int_equal(hva[i], byte);
}

static int restore(struct gmem_vm *vm, const int *files, uint32_t count, uint64_t flags)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags, .parents = count > 1 ? files : NULL,
		  .parent_count = count - 1);

	return gmem_vm_restore(vm, files[count - 1], &opts, NULL);
}

static int verify(const int *files, uint32_t count, uint32_t workers)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .parents = count > 1 ? files : NULL, .parent_count = count - 1,
		  .workers = workers);

	return gmem_image_verify(files[count - 1], &opts, NULL);
}

/* Full of 1, as generation 0 of identity 1 */
static int base_image(uint64_t flags)
{
	struct made made;
	int fd = new_file();

	make(&made, fd, 1);
	put_head(&made, 2, 0, 0, 0, flags);
	put_table(&made, "GMEMREGN", 0);
	put_region(&made, LOW, LOW_PAGES);
	put_region(&made, HIGH, HIGH_PAGES);
	put_table(&made, "GMEMDATA", LOW * BLOCK);
	put_run(&made, 0, LOW_PAGES, 1);
	put_run(&made, HIGH - LOW, HIGH_PAGES, 1);
	put_end(&made, NULL);
	return fd;
}

/* ---- what the format has been ---- */

struct word {
	uint32_t offset;
	uint64_t value;
};

static int file_of_words(uint64_t size, const struct word *words, size_t count)
{
	int fd = new_file();

	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(pwrite(fd, &words[i].value, 8, words[i].offset), 8);
	return fd;
}

/*
 * Images of version 1 and 2, word for word: 64 pages from page 16 on, of the first the pages 0 and
 * 3 with contents, and of the second, its child, page 5, and page 0 zero. They are to be restored
 * for ever: never change them.
 */
static const struct word version_1[] = {
	{ 0, 0x444145484d454d47 }, { 8, 0x0123456789abcdef }, { 24, 0xbfbd949a00001000 },
	{ 32, 0x0000000100000000 }, { 40, 0x0000000000001000 }, { 48, 0x0000000000000001 },
	{ 4096, 0x4e4745524d454d47 }, { 4104, 0x0123456789abcdef }, { 4112, 0x0000000000000001 },
	{ 4120, 0xc2739e5900001000 }, { 4128, 0x0000000000000001 }, { 4160, 0x0000000000010000 },
	{ 4168, 0x0000000000040000 }, { 4176, 0x0000000000000001 }, { 8192, 0x415441444d454d47 },
	{ 8200, 0x0123456789abcdef }, { 8208, 0x0000000000000002 }, { 8216, 0x5239897500003000 },
	{ 8224, 0x0000000000000002 }, { 8232, 0x0000000000010000 }, { 8256, 0x0000000100000000 },
	{ 8264, 0x0000000100000003 }, { 12288, 0x0000000000001111 }, { 16376, 0xffffffffffffeeee },
	{ 16384, 0x0000000000002222 }, { 20472, 0xffffffffffffdddd },
	{ 20480, 0x444e455f4d454d47 }, { 20488, 0x0123456789abcdef },
	{ 20496, 0x0000000000000003 }, { 20504, 0x880faf2100001000 },
	{ 20520, 0x0000000000000002 }, { 20528, 0x0000000030b0f5a1 },
};

static const struct word version_2[] = {
	{ 0, 0x444145484d454d47 }, { 8, 0xfedcba9876543210 }, { 24, 0xfdadcba100002000 },
	{ 32, 0x0000000200000003 }, { 40, 0x0000000000001000 }, { 48, 0x0000000000000001 },
	{ 64, 0x0123456789abcdef }, { 72, 0x0000000000000001 }, { 128, 0x4e4745524d454d47 },
	{ 136, 0x0000000000000001 }, { 160, 0x0000000000010000 }, { 168, 0x0000000000040000 },
	{ 176, 0x0000000000000001 }, { 192, 0x415441444d454d47 }, { 200, 0x0000000000000002 },
	{ 208, 0x0000000000010000 }, { 224, 0x8000000100000000 }, { 232, 0x0000000100000005 },
	{ 240, 0x444e455f4d454d47 }, { 256, 0x0000000000000001 }, { 4096, 0x0000000000003333 },
	{ 8184, 0xffffffffffffcccc },
};

#define VERSION_1_SIZE	(6 * BLOCK)
#define VERSION_2_SIZE	(2 * BLOCK)

/* The words at the ends of a page, and zeros between them */
static void check_words(struct gmem_region *region, uint64_t page, uint64_t word)
{
	const uint64_t *at = (const void *)((const char *)gmem_region_hva(region) + page * BLOCK);

	assert_int_equal(at[0], word);
	assert_int_equal(at[511], word ? ~word : 0);
	for (unsigned i = 1; i < 511; i++)
		assert_int_equal(at[i], 0);
}

static void images_of_long_ago_are_restored(void **state)
{
	GMEM_OPTS(gmem_image_summary, summary, .id = 0);
	struct gmem_region *region;
	struct unit unit;
	int files[2];

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region_backed(&unit, LOW, LOW_PAGES, GMEM_BACKING_HOST);
	files[0] = file_of_words(VERSION_1_SIZE, version_1, ARRAY_SIZE(version_1));
	files[1] = file_of_words(VERSION_2_SIZE, version_2, ARRAY_SIZE(version_2));
	for (uint32_t count = 1; count <= 2; count++) {
		memset(gmem_region_hva(region), 9, LOW_PAGES * BLOCK);
		assert_ok(restore(unit.vm, files, count, 0));
		for (uint64_t page = 0; page < LOW_PAGES; page++)
			check_words(region, page, page == 0 ? count == 1 ? 0x1111 : 0
						  : page == 3 ? 0x2222
						  : page == 5 && count == 2 ? 0x3333 : 0);
	}
	assert_int_equal(gmem_image_info(files[0], NULL, &summary, NULL, 0), 1);
	assert_int_equal(summary.version, 1);
	assert_int_equal(summary.generation, 0);
	assert_int_equal(gmem_image_info(files[1], NULL, &summary, NULL, 0), 1);
	assert_int_equal(summary.version, 2);
	assert_int_equal(summary.id, 0xfedcba9876543210);
	assert_int_equal(summary.parent, 0x0123456789abcdef);
	assert_int_equal(summary.generation, 1);
	assert_int_equal(summary.memory_bytes, LOW_PAGES * BLOCK);
	close(files[0]);
	close(files[1]);
	unit_end(&unit);
}

/* ---- memory that comes and goes ---- */

struct changing {
	struct unit unit;
	struct gmem_dirty *dirty;
	int files[16];
	unsigned count;
};

static void save_next(struct changing *c)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .dirty = c->dirty, .flags = GMEM_TRANSFER_OMIT_PRIVATE);

	c->files[c->count] = new_file();
	assert_ok(gmem_vm_save(c->unit.vm, c->files[c->count++], &opts, NULL));
}

static void write_pages(struct changing *c, struct gmem_region *region, uint64_t page, uint64_t pages, int byte)
{
	memset((char *)gmem_region_hva(region) + page * BLOCK, byte, pages * BLOCK);
	gmem_vm_mark_dirty(c->unit.vm, gmem_region_gpa(region) + page * BLOCK, pages * BLOCK);
}

static void begin_changing(struct changing *c, const char *kernel)
{
	*c = (struct changing){ 0 };
	unit_begin_vm(&c->unit, kernel);
}

static void track(struct changing *c, uint64_t flags)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW | flags);

	assert_ok(gmem_dirty_new(c->unit.vm, &opts, &c->dirty));
}

static void end_changing(struct changing *c)
{
	for (unsigned i = 0; i < c->count; i++)
		close(c->files[i]);
	gmem_dirty_free(c->dirty);
	unit_end(&c->unit);
}

static void regions_come_and_go_between_images(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_VERIFY, GMEM_TRANSFER_NO_RING };
	struct gmem_region *stays, *goes, *comes;
	struct changing c;

	(void)state;
	begin_changing(&c, "6.18");
	stays = unit_region_backed(&c.unit, 0, 32, GMEM_BACKING_HOST);
	goes = unit_region_backed(&c.unit, 100, 32, GMEM_BACKING_HOST);
	track(&c, 0);
	write_pages(&c, stays, 0, 32, 1);
	write_pages(&c, goes, 0, 32, 2);
	save_next(&c);
	assert_ok(gmem_region_remove(goes));
	write_pages(&c, stays, 3, 1, 3);
	save_next(&c);
	/* New memory at an old address is zero but for what was written. */
	goes = unit_region_backed(&c.unit, 100, 16, GMEM_BACKING_HOST);
	write_pages(&c, goes, 5, 1, 4);
	comes = unit_region_backed(&c.unit, 200, 8, GMEM_BACKING_HOST);
	save_next(&c);
	write_pages(&c, comes, 7, 1, 5);
	save_next(&c);

	for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i], .parents = c.files, .parent_count = 3,
			  .workers = i);

		memset(gmem_region_hva(stays), 9, 32 * BLOCK);
		memset(gmem_region_hva(goes), 9, 16 * BLOCK);
		memset(gmem_region_hva(comes), 9, 8 * BLOCK);
		assert_ok(gmem_vm_restore(c.unit.vm, c.files[3], &opts, NULL));
		check_pages(stays, 0, 3, 1);
		check_pages(stays, 3, 1, 3);
		check_pages(stays, 4, 28, 1);
		check_pages(goes, 0, 5, 0);
		check_pages(goes, 5, 1, 4);
		check_pages(goes, 6, 10, 0);
		check_pages(comes, 0, 7, 0);
		check_pages(comes, 7, 1, 5);
	}
	end_changing(&c);
}

static void memory_that_only_older_images_have_is_left_alone(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .parent_count = 1);
	struct gmem_region *stays, *goes;
	struct changing c;

	(void)state;
	begin_changing(&c, "6.18");
	stays = unit_region_backed(&c.unit, 0, 32, GMEM_BACKING_HOST);
	goes = unit_region_backed(&c.unit, 100, 32, GMEM_BACKING_HOST);
	track(&c, 0);
	write_pages(&c, stays, 0, 32, 1);
	write_pages(&c, goes, 0, 32, 2);
	save_next(&c);
	assert_ok(gmem_region_remove(goes));
	write_pages(&c, stays, 3, 1, 3);
	save_next(&c);

	goes = unit_region_backed(&c.unit, 110, 32, GMEM_BACKING_HOST);
	memset(gmem_region_hva(goes), 9, 32 * BLOCK);
	memset(gmem_region_hva(stays), 9, 32 * BLOCK);
	opts.parents = c.files;
	assert_refused(-EEXIST, "0x6e000", gmem_vm_restore(c.unit.vm, c.files[1], &opts, NULL));
	check_pages(stays, 0, 32, 9);
	opts.flags = GMEM_TRANSFER_LEAVE_REST;
	assert_ok(gmem_vm_restore(c.unit.vm, c.files[1], &opts, NULL));
	check_pages(goes, 0, 32, 9);
	check_pages(stays, 3, 1, 3);
	check_pages(stays, 4, 28, 1);
	end_changing(&c);
}

static void what_was_private_in_an_older_image_comes_from_a_later_one(void **state)
{
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct changing c;
	char *hva;

	(void)state;
	begin_changing(&c, "7.3-swp-t1");
	plan = unit_plan(&c.unit, GMEM_BACKING_PRIVATE);
	region = unit_region(&c.unit, 0, 64, plan);
	hva = gmem_region_hva(region);
	track(&c, GMEM_DIRTY_ALLOW_UNLOGGED);
	write_pages(&c, region, 0, 64, 1);
	assert_ok(gmem_vm_convert(c.unit.vm, 10 * BLOCK, 20 * BLOCK, GMEM_STATE_PRIVATE, NULL, NULL));
	save_next(&c);
	assert_ok(gmem_vm_convert(c.unit.vm, 10 * BLOCK, 10 * BLOCK, GMEM_STATE_SHARED, NULL, NULL));
	write_pages(&c, region, 12, 1, 2);
	assert_ok(gmem_vm_convert(c.unit.vm, 40 * BLOCK, 4 * BLOCK, GMEM_STATE_PRIVATE, NULL, NULL));
	save_next(&c);

	memset(hva, 9, 64 * BLOCK);
	assert_refused(-EACCES, "private", restore(c.unit.vm, c.files, 2, 0));
	check_pages(region, 0, 10, 9);
	assert_ok(restore(c.unit.vm, c.files, 2, GMEM_TRANSFER_OMIT_PRIVATE));
	check_pages(region, 0, 10, 1);
	check_pages(region, 12, 1, 2);
	check_pages(region, 20, 10, 9);		/* still private */
	check_pages(region, 30, 10, 1);
	check_pages(region, 40, 4, 9);
	check_pages(region, 44, 20, 1);
	gmem_plan_free(plan);
	end_changing(&c);
}

struct lost {
	unsigned count;
	uint64_t bytes;
};

static void hear_lost(void *data, uint64_t gpa, uint64_t size)
{
	struct lost *lost = data;

	(void)gpa;
	lost->count++;
	lost->bytes += size;
}

static void lost_pages_are_named_of_all_images(void **state)
{
	struct lost lost = { 0 };
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_ALLOW_LOST, .lost = hear_lost, .lost_data = &lost);
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct gmem_region *region;
	struct changing c;
	char *hva;

	(void)state;
	begin_changing(&c, "6.18");
	region = unit_region_backed(&c.unit, 0, 64, GMEM_BACKING_HOST);
	hva = gmem_region_hva(region);
	track(&c, 0);
	write_pages(&c, region, 0, 64, 1);
	save_next(&c);
	write_pages(&c, region, 2, 4, 2);
	write_pages(&c, region, 50, 1, 2);
	/* The real kernel cannot copy what is protected, and the scripted one says why. */
	assert_int_equal(mprotect(hva + 3 * BLOCK, 2 * BLOCK, PROT_NONE), 0);
	fake_fail_kind(FAKE_MADVISE, 0, UINT_MAX, -EHWPOISON);
	opts.dirty = c.dirty;
	c.files[c.count] = new_file();
	assert_ok(gmem_vm_save(c.unit.vm, c.files[c.count++], &opts, &result));
	assert_int_equal(result.lost_bytes, 2 * BLOCK);
	assert_int_equal(result.data_bytes, 3 * BLOCK);
	assert_int_equal(lost.bytes, 2 * BLOCK);
	fake_fail_struck();
	fake_fail_kind(FAKE_MADVISE, 0, 0, 0);
	assert_int_equal(mprotect(hva + 3 * BLOCK, 2 * BLOCK, PROT_READ | PROT_WRITE), 0);

	memset(hva, 9, 64 * BLOCK);
	assert_int_equal(restore(c.unit.vm, c.files, 2, 0), -EHWPOISON);
	lost = (struct lost){ 0 };
	opts.dirty = NULL;
	opts.parents = c.files;
	opts.parent_count = 1;
	opts.flags |= GMEM_TRANSFER_VERIFY;
	assert_ok(gmem_vm_restore(c.unit.vm, c.files[1], &opts, &result));
	assert_int_equal(lost.count, 1);
	assert_int_equal(lost.bytes, 2 * BLOCK);
	assert_int_equal(result.lost_bytes, 2 * BLOCK);
	check_pages(region, 0, 2, 1);
	check_pages(region, 2, 1, 2);
	check_pages(region, 3, 2, 0);
	check_pages(region, 5, 1, 2);
	check_pages(region, 6, 44, 1);
	check_pages(region, 50, 1, 2);
	end_changing(&c);
}

static void lists_longer_than_a_block_stand_alone(void **state)
{
	struct gmem_region *regions[300];
	struct changing c;

	(void)state;
	begin_changing(&c, "6.18");
	for (unsigned i = 0; i < 300; i++)
		regions[i] = unit_region_backed(&c.unit, 3 * i, 1, GMEM_BACKING_HOST);
	track(&c, 0);
	save_next(&c);
	for (unsigned i = 0; i < 300; i += 7)
		write_pages(&c, regions[i], 0, 1, (int)i % 100 + 1);
	save_next(&c);
	for (unsigned i = 0; i < 300; i++)
		memset(gmem_region_hva(regions[i]), 0x7f, BLOCK);
	assert_ok(restore(c.unit.vm, c.files, 2, 0));
	for (unsigned i = 0; i < 300; i++)
		check_pages(regions[i], 0, 1, i % 7 ? 0 : (int)i % 100 + 1);
	end_changing(&c);
}

/* ---- images that nobody wrote ---- */

static void no_edit(struct made *m) { (void)m; }
static void other_version(struct made *m) { m->unit->record.version = 3; }
static void no_generation(struct made *m) { m->unit->head.generation = 0; }
static void late_generation(struct made *m) { m->unit->head.generation = UINT64_MAX; }
static void early_parent(struct made *m) { m->unit->head.parent = 77; }
static void own_parent(struct made *m) { m->unit->head.parent = m->id; }
static void no_parent(struct made *m) { m->unit->head.parent = 0; }
static void unknown_flag(struct made *m) { m->unit->head.flags = 2; }
static void is_followed(struct made *m) { m->unit->head.flags = IMAGE_FOLLOWED; }
static void many_tables(struct made *m) { m->unit->record.count = UINT32_MAX; }
static void fewer_tables(struct made *m) { m->unit->record.count--; }
static void more_tables(struct made *m) { m->unit->record.count++; }
static void larger(struct made *m) { m->unit->record.size += 4096; }
static void smaller(struct made *m) { m->unit->record.size -= 4096; }
static void odd_size(struct made *m) { m->unit->record.size -= 64; }
static void huge(struct made *m) { m->unit->record.size = 2 << 20; }
static void no_size(struct made *m) { m->unit->record.size = 0; }
static void table_kind(struct made *m) { m->table->kind[5] = 'X'; }
static void no_table_kind(struct made *m) { m->table->kind[0] = 'X'; }
static void head_as_table(struct made *m) { memcpy(m->table->kind, "GMEMHEAD", 8); }
static void part_as_table(struct made *m) { memcpy(m->table->kind, "GMEMPART", 8); }
static void end_with_entries(struct made *m) { m->table->count = 1; }
static void other_pages(struct made *m) { m->table->end.pages++; }
static void other_checksums(struct made *m) { m->table->end.checksums++; }
static void record_of_version_1(struct made *m) { memcpy(m->unit->record.kind, "GMEMDATA", 8); }

static struct image_table *runs_of(struct made *m)
{
	return (void *)(m->unit->bytes + sizeof(struct image_head) + sizeof(struct image_table) +
			2 * sizeof(struct image_region));
}

static struct image_run *run(struct made *m, unsigned i)
{
	return (struct image_run *)(void *)(runs_of(m) + 1) + i;
}

static void no_runs(struct made *m) { runs_of(m)->count = 0; }
static void many_runs(struct made *m) { runs_of(m)->count = UINT32_MAX; }
static void odd_base(struct made *m) { runs_of(m)->data.base++; }
static void far_base(struct made *m) { runs_of(m)->data.base = UINT64_MAX - 4095; }
static void low_base(struct made *m) { runs_of(m)->data.base = 0; }
static void empty_zeros(struct made *m) { run(m, 1)->count = IMAGE_ZEROS; }
static void endless_zeros(struct made *m) { run(m, 1)->count = UINT32_MAX; }
static void zeros_outside(struct made *m) { run(m, 1)->count = IMAGE_ZEROS | LOW_PAGES; }
static void zeros_before(struct made *m) { run(m, 1)->first = 0; }
static void zeros_over(struct made *m) { run(m, 1)->first = 3; }
static void data_as_zeros(struct made *m) { run(m, 0)->count |= IMAGE_ZEROS; }
static void zeros_as_data(struct made *m) { run(m, 1)->count &= ~IMAGE_ZEROS; }
static void far_run(struct made *m) { run(m, 2)->first = UINT32_MAX; }
static void larger_region(struct made *m)
{
	((struct image_region *)(void *)((char *)&m->unit->head + sizeof(struct image_head) +
					 sizeof(struct image_table)))[1].size += BLOCK;
}

/* Child of the base: pages 2 to 4 of the low region are 5, 10 to 19 zero, the last of the high one is 6 */
static int child_image(void (*edit)(struct made *made))
{
	struct made made;
	int fd = new_file();

	make(&made, fd, 2);
	put_head(&made, 2, 0, 1, 1, 0);
	put_table(&made, "GMEMREGN", 0);
	put_region(&made, LOW, LOW_PAGES);
	put_region(&made, HIGH, HIGH_PAGES);
	put_table(&made, "GMEMDATA", LOW * BLOCK);
	put_run(&made, 2, 3, 5);
	put_run(&made, 10, 10, 0);
	put_run(&made, HIGH - LOW + HIGH_PAGES - 1, 1, 6);
	put_end(&made, edit);
	return fd;
}

static void check_child(struct guest *g)
{
	check_pages(g->low, 0, 2, 1);
	check_pages(g->low, 2, 3, 5);
	check_pages(g->low, 5, 5, 1);
	check_pages(g->low, 10, 10, 0);
	check_pages(g->low, 20, LOW_PAGES - 20, 1);
	check_pages(g->high, 0, HIGH_PAGES - 1, 1);
	check_pages(g->high, HIGH_PAGES - 1, 1, 6);
}

static void contradictory_children_are_refused(void **state)
{
	static const struct { void (*edit)(struct made *made); int err, err_alone; } cases[] = {
		{ no_edit, 0, 0 },
		{ other_version, -EOPNOTSUPP, -EOPNOTSUPP }, { no_generation, -EBADMSG, -EBADMSG },
		{ late_generation, -EBADMSG, -EBADMSG }, { early_parent, -ENOLINK, 0 }, { own_parent, -EBADMSG, -EBADMSG },
		{ no_parent, -ENOLINK, 0 }, { unknown_flag, -EOPNOTSUPP, -EOPNOTSUPP },
		{ is_followed, -ENODATA, -ENODATA },
		{ many_tables, -EBADMSG, -EBADMSG }, { fewer_tables, -ENODATA, -ENODATA },
		{ more_tables, -EBADMSG, -EBADMSG }, { larger, -EBADMSG, -EBADMSG },
		{ smaller, -EBADMSG, -EBADMSG }, { odd_size, -EBADMSG, -EBADMSG }, { huge, -EBADMSG, -EBADMSG },
		{ no_size, -EBADMSG, -EBADMSG }, { table_kind, -EOPNOTSUPP, -EOPNOTSUPP },
		{ no_table_kind, -EBADMSG, -EBADMSG }, { head_as_table, -EBADMSG, -EBADMSG },
		{ part_as_table, -EBADMSG, -EBADMSG }, { end_with_entries, -EBADMSG, -EBADMSG },
		{ other_pages, -EBADMSG, -EBADMSG }, { other_checksums, -EBADMSG, -EBADMSG },
		{ no_runs, -EBADMSG, -EBADMSG }, { many_runs, -EBADMSG, -EBADMSG }, { odd_base, -EBADMSG, -EBADMSG },
		{ far_base, -EBADMSG, -EBADMSG }, { low_base, -EBADMSG, -EBADMSG },
		{ empty_zeros, -EBADMSG, -EBADMSG }, { endless_zeros, -EBADMSG, -EBADMSG },
		{ zeros_outside, -EBADMSG, -EBADMSG }, { zeros_before, -EBADMSG, -EBADMSG },
		{ zeros_over, -EBADMSG, -EBADMSG }, { data_as_zeros, -EBADMSG, -EBADMSG },
		{ zeros_as_data, -EBADMSG, -EBADMSG }, { far_run, -EBADMSG, -EBADMSG },
		{ larger_region, -ENOENT, 0 },
	};
	struct guest g;

	(void)state;
	begin(&g);
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		int files[2] = { base_image(0), child_image(cases[i].edit) }, ret;

		for (uint32_t workers = 0; workers < 3; workers++)
			assert_int_equal(verify(files + 1, 1, workers), cases[i].err_alone);
		soil(&g, 9);
		ret = restore(g.unit.vm, files, 2, GMEM_TRANSFER_VERIFY);
		assert_int_equal(ret, cases[i].err);
		if (ret == 0)
			check_child(&g);
		else
			check_pages(g.low, 0, LOW_PAGES, 9);
		assert_int_equal(restore(g.unit.vm, files, 2, 0), ret);
		close(files[0]);
		close(files[1]);
	}
	end(&g);
}

/* Records behind the first */
static void parts_of_an_image_are_checked(void **state)
{
	static const struct { void (*edit)(struct made *made); int err; } cases[] = {
		{ no_edit, 0 }, { record_of_version_1, -EOPNOTSUPP }, { other_version, -EBADMSG },
	};

	(void)state;
	fake_boot("6.18");
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct made made;
		int fd = new_file();

		make(&made, fd, 2);
		put_head(&made, 1, 0, 1, 1, 0);
		put_table(&made, "GMEMREGN", 0);
		put_region(&made, LOW, LOW_PAGES);
		put_record(&made, NULL);
		put_part(&made);
		put_table(&made, "GMEMDATA", LOW * BLOCK);
		put_run(&made, 0, 1, 4);
		put_record(&made, cases[i].edit);
		put_part(&made);
		put_end(&made, NULL);
		for (uint32_t workers = 0; workers < 3; workers++)
			assert_int_equal(verify(&fd, 1, workers), cases[i].err);
		close(fd);
	}
	assert_int_equal(fake_halt(), 0);
}

/* ---- sequences ---- */

/* Behind the base, which says that another image follows */
static void append(int fd, uint64_t id, uint64_t parent, uint64_t generation, uint64_t flags, int byte)
{
	struct made made;

	make(&made, fd, id);
	put_head(&made, 2, 0, parent, generation, flags);
	put_table(&made, "GMEMREGN", 0);
	put_region(&made, LOW, LOW_PAGES);
	put_region(&made, HIGH, HIGH_PAGES);
	put_table(&made, "GMEMDATA", LOW * BLOCK);
	put_run(&made, (uint32_t)id, 1, byte);
	put_end(&made, NULL);
}

static void a_wrong_follower_is_found_before_memory_changes(void **state)
{
	static const struct { uint64_t id, parent, generation; int err; } cases[] = {
		{ 3, 2, 2, 0 }, { 3, 1, 2, -ENOLINK }, { 3, 2, 1, -ENOLINK }, { 3, 0, 0, -ENOLINK },
		{ 3, 77, 1, -ENOLINK }, { 3, 2, 7, 0 },
	};
	struct guest g;

	(void)state;
	begin(&g);
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		int fd = base_image(IMAGE_FOLLOWED), ends[2], ret;
		char *bytes;
		uint64_t size;

		append(fd, 2, 1, 1, IMAGE_FOLLOWED, 4);
		append(fd, cases[i].id, cases[i].parent, cases[i].generation, 0, 5);
		soil(&g, 9);
		assert_int_equal(verify(&fd, 1, 0), cases[i].err);
		assert_int_equal(restore(g.unit.vm, &fd, 1, 0), cases[i].err);
		check_pages(g.low, 2, 1, cases[i].err ? 9 : 4);
		check_pages(g.low, 3, 1, cases[i].err ? 9 : 5);

		/* In a pipe it is found when it comes. */
		size = (uint64_t)lseek(fd, 0, SEEK_END);
		bytes = malloc(size);
		assert_int_equal(pread(fd, bytes, size, 0), size);
		assert_int_equal(pipe(ends), 0);
		assert_true(fcntl(ends[0], F_SETPIPE_SZ, 1 << 20) >= 1 << 20);
		assert_int_equal(write(ends[1], bytes, size), size);
		close(ends[1]);
		ret = restore(g.unit.vm, ends, 1, 0);
		assert_int_equal(ret, cases[i].err);
		check_pages(g.low, 2, 1, 4);
		close(ends[0]);
		free(bytes);
		close(fd);
	}
	end(&g);
}

static void an_image_that_should_be_followed_and_is_not_has_no_end(void **state)
{
	int fd = base_image(IMAGE_FOLLOWED);
	struct guest g;

	(void)state;
	begin(&g);
	soil(&g, 9);
	assert_refused(-ENODATA, "ends", restore(g.unit.vm, &fd, 1, 0));
	assert_int_equal(verify(&fd, 1, 2), -ENODATA);
	check_pages(g.low, 0, LOW_PAGES, 9);
	append(fd, 2, 1, 1, 0, 4);
	assert_ok(restore(g.unit.vm, &fd, 1, 0));
	/* What is in one file can be in the middle of a chain. */
	{
		int files[2] = { fd, new_file() };

		append(files[1], 3, 2, 2, 0, 7);
		soil(&g, 9);
		assert_ok(restore(g.unit.vm, files, 2, 0));
		check_pages(g.low, 2, 1, 4);
		check_pages(g.low, 3, 1, 7);
		check_pages(g.high, 0, HIGH_PAGES, 1);
		close(files[1]);
	}
	close(fd);
	end(&g);
}

static int stop_at_the_tenth(void *data, uint64_t done, uint64_t all)
{
	unsigned *calls = data;

	(void)done;
	(void)all;
	return ++*calls == 10;
}

static void a_sequence_without_end_can_be_stopped(void **state)
{
	unsigned calls = 0;
	GMEM_OPTS(gmem_transfer_opts, opts, .progress = stop_at_the_tenth, .progress_data = &calls);
	int fd = base_image(IMAGE_FOLLOWED);
	struct guest g;

	(void)state;
	begin(&g);
	for (uint64_t id = 2; id < 1000; id++) {
		struct made made;

		make(&made, fd, id);
		put_head(&made, 2, 0, id - 1, id - 1, IMAGE_FOLLOWED);
		put_table(&made, "GMEMREGN", 0);
		put_region(&made, LOW, LOW_PAGES);
		put_region(&made, HIGH, HIGH_PAGES);
		put_end(&made, NULL);
	}
	assert_int_equal(gmem_vm_restore(g.unit.vm, fd, &opts, NULL), -ECANCELED);
	assert_int_equal(calls, 10);
	calls = 0;
	assert_int_equal(gmem_image_verify(fd, &opts, NULL), -ECANCELED);
	close(fd);
	end(&g);
}

/* A merged chain stands for its last image. */
static void an_image_without_a_parent_may_have_a_generation(void **state)
{
	int files[2] = { new_file(), new_file() };
	struct made made;
	struct guest g;

	(void)state;
	make(&made, files[0], 5);
	put_head(&made, 2, 0, 0, 4, 0);
	put_table(&made, "GMEMREGN", 0);
	put_region(&made, LOW, LOW_PAGES);
	put_region(&made, HIGH, HIGH_PAGES);
	put_table(&made, "GMEMDATA", LOW * BLOCK);
	put_run(&made, 7, 1, 3);
	put_end(&made, NULL);
	append(files[1], 6, 5, 5, 0, 4);
	begin(&g);
	soil(&g, 9);
	assert_ok(restore(g.unit.vm, files, 2, 0));
	check_pages(g.low, 6, 1, 4);
	check_pages(g.low, 7, 1, 3);
	check_pages(g.low, 8, LOW_PAGES - 8, 0);
	close(files[0]);
	close(files[1]);
	end(&g);
}

/* A child may have less in its entries than changed: what its parent has nothing for is zero. */
static void what_the_parent_does_not_have_is_zero(void **state)
{
	int files[2] = { new_file(), new_file() };
	struct made made;
	struct guest g;

	(void)state;
	make(&made, files[0], 1);
	put_head(&made, 1, 1, 0, 0, 0);
	put_table(&made, "GMEMREGN", 0);
	put_region(&made, LOW, LOW_PAGES);
	put_table(&made, "GMEMPRIV", 0);
	put_range(&made, LOW + 5, 5);
	put_table(&made, "GMEMDATA", LOW * BLOCK);
	put_run(&made, 0, 5, 1);
	put_run(&made, 10, 5, 1);
	put_end(&made, NULL);
	append(files[1], 7, 1, 1, 0, 4);
	begin(&g);
	for (unsigned workers = 0; workers < 3; workers++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers, .parents = files, .parent_count = 1);

		soil(&g, 9);
		assert_ok(gmem_vm_restore(g.unit.vm, files[1], &opts, NULL));
		check_pages(g.low, 0, 5, 1);
		check_pages(g.low, 5, 2, 0);
		check_pages(g.low, 7, 1, 4);
		check_pages(g.low, 8, 2, 0);
		check_pages(g.low, 10, 5, 1);
		check_pages(g.low, 15, LOW_PAGES - 15, 0);
		check_pages(g.high, 0, HIGH_PAGES, 0);
	}
	close(files[0]);
	close(files[1]);
	end(&g);
}

/* ---- failures ---- */

static void every_call_may_fail_and_nothing_leaks(void **state)
{
	struct guest g;
	int ret;

	(void)state;
	begin(&g);
	for (unsigned n = 1;; n++) {
		int files[2] = { base_image(0), child_image(NULL) };
		struct fake_snapshot *before = fake_snapshot();
		bool struck;

		soil(&g, 9);
		fake_fail_call(n, -ENOMEM);
		ret = restore(g.unit.vm, files, 2, n % 2 ? GMEM_TRANSFER_VERIFY : 0);
		struck = fake_fail_struck();
		assert_true(fake_equal(before));
		if (ret == 0)
			check_child(&g);
		close(files[0]);
		close(files[1]);
		if (!struck)
			break;
	}
	assert_int_equal(ret, 0);
	for (unsigned n = 1;; n++) {
		int files[2] = { base_image(0), child_image(NULL) };
		bool struck;

		unit_fail_alloc(n);
		ret = restore(g.unit.vm, files, 2, 0);
		struck = unit_alloc_struck();
		assert_true(ret == 0 || ret == -ENOMEM);
		close(files[0]);
		close(files[1]);
		if (!struck)
			break;
	}
	end(&g);
}

static void saving_may_fail_anywhere_and_loses_nothing(void **state)
{
	(void)state;
	for (unsigned n = 1;; n++) {
		struct gmem_region *region;
		struct changing c;
		bool struck;
		int fd = new_file(), ret;

		begin_changing(&c, "6.18");
		region = unit_region_backed(&c.unit, 0, 64, GMEM_BACKING_HOST);
		track(&c, 0);
		write_pages(&c, region, 0, 64, 1);
		save_next(&c);
		write_pages(&c, region, 3, 2, 2);
		write_pages(&c, region, 33, 5, 0);
		{
			GMEM_OPTS(gmem_transfer_opts, opts, .dirty = c.dirty);

			fake_fail_call(n, -ENOMEM);
			ret = gmem_vm_save(c.unit.vm, fd, &opts, NULL);
			struck = fake_fail_struck();
		}
		if (ret == 0)
			c.files[c.count++] = fd;
		else
			save_next(&c);
		memset(gmem_region_hva(region), 9, 64 * BLOCK);
		assert_ok(restore(c.unit.vm, c.files, 2, 0));
		check_pages(region, 0, 3, 1);
		check_pages(region, 3, 2, 2);
		check_pages(region, 5, 28, 1);
		check_pages(region, 33, 5, 0);
		check_pages(region, 38, 26, 1);
		if (ret)
			close(fd);
		end_changing(&c);
		if (!struck)
			break;
	}
}

static void what_did_not_change_is_not_looked_at(void **state)
{
	struct gmem_region *region;
	struct changing c;
	unsigned before, one, many;
	int fd;

	(void)state;
	begin_changing(&c, "6.18");
	region = unit_region_backed(&c.unit, 0, 1, GMEM_BACKING_HOST);
	track(&c, 0);
	write_pages(&c, region, 0, 1, 1);
	save_next(&c);
	before = fake_count_all();
	save_next(&c);
	one = fake_count_all() - before;
	/* 8 GiB more, of which nothing is written but what is new is once */
	unit_region_backed(&c.unit, 1 << 20, 1 << 21, GMEM_BACKING_HOST);
	assert_ok(gmem_dirty_collect(c.dirty, NULL));
	assert_ok(gmem_dirty_set_parent(c.dirty, c.dirty->parent, c.dirty->generation));
	{
		GMEM_OPTS(gmem_transfer_opts, opts, .dirty = c.dirty);

		fd = new_file();
		before = fake_count_all();
		assert_ok(gmem_vm_save(c.unit.vm, fd, &opts, NULL));
		many = fake_count_all() - before;
		assert_int_equal(lseek(fd, 0, SEEK_END), BLOCK);
		close(fd);
	}
	/* The log of one more region, and its leases, but nothing for each window */
	assert_true(many < one + 20);
	end_changing(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(images_of_long_ago_are_restored),
		cmocka_unit_test(regions_come_and_go_between_images),
		cmocka_unit_test(memory_that_only_older_images_have_is_left_alone),
		cmocka_unit_test(what_was_private_in_an_older_image_comes_from_a_later_one),
		cmocka_unit_test(lost_pages_are_named_of_all_images),
		cmocka_unit_test(lists_longer_than_a_block_stand_alone),
		cmocka_unit_test(contradictory_children_are_refused),
		cmocka_unit_test(parts_of_an_image_are_checked),
		cmocka_unit_test(a_wrong_follower_is_found_before_memory_changes),
		cmocka_unit_test(an_image_that_should_be_followed_and_is_not_has_no_end),
		cmocka_unit_test(a_sequence_without_end_can_be_stopped),
		cmocka_unit_test(an_image_without_a_parent_may_have_a_generation),
		cmocka_unit_test(what_the_parent_does_not_have_is_zero),
		cmocka_unit_test(every_call_may_fail_and_nothing_leaks),
		cmocka_unit_test(saving_may_fail_anywhere_and_loses_nothing),
		cmocka_unit_test(what_did_not_change_is_not_looked_at),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
