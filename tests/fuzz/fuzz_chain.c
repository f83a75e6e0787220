/* SPDX-License-Identifier: MIT */
/*
 * Chains and sequences of images of version 2, made from the input table by table with right
 * checksums, on the scripted kernel. Most of it fits together, and some numbers are those that an
 * attacker would choose. A page of the model is what the format says that it is:
 *
 *   - what is restored is exactly that, whatever thread stores it, and memory that the last image
 *     has not stays as it is;
 *   - of what does not fit together, nothing is restored by half: with GMEM_TRANSFER_VERIFY memory
 *     stays as it is if the restore fails;
 *   - a chain whose links are wrong changes nothing;
 *   - one reader finds what several find.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake.h"
#include "fuzz.h"
#include "base/crc32c.h"
#include "transfer/image.h"

#define PAGE		((uint64_t)4096)
#define PAGES		64		/* of guest addresses that are looked at */
#define MAX_IMAGES	6
#define SOIL		0xee

static struct fuzz_input input;
static bool is_as_modelled;		/* no number is an attacker's */

static unsigned take_below(unsigned limit)
{
	return (unsigned)fuzz_take_below(&input, limit);
}

/* Mostly @good */
static uint64_t number(uint64_t good)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 3, 63, 64, 4095, 4096, 4097, 1u << 20, 1u << 31, UINT32_MAX, (uint64_t)1 << 32,
		(uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 4095,
	};
	unsigned which = fuzz_take(&input);

	if (which < 240 || numbers[which - 240] == good)
		return good;
	is_as_modelled = false;
	return numbers[which - 240];
}

/* ---- the VM ---- */

static struct {
	int vm_fd;
	struct gmem_caps *caps;
	struct gmem_vm *vm;
	struct gmem_region *regions[3];
	bool has_links;			/* of the chain all are as they should be */
	unsigned file_count;
	int files[MAX_IMAGES];
} world;

static const struct { uint64_t page, pages; } layout[3] = { { 0, 16 }, { 16, 16 }, { 40, 16 } };

static void begin(void)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_vm_opts, opts);
	struct gmem_plan *plan;

	fake_boot("6.18");
	world.vm_fd = fake_new_vm();
	CHECK(gmem_caps_new(world.vm_fd, NULL, &world.caps) == 0);
	opts.caps = world.caps;
	CHECK(gmem_vm_new(world.vm_fd, &opts, &world.vm) == 0);
	CHECK(gmem_plan_new(world.caps, &request, &plan) == 0);
	for (unsigned i = 0; i < 3; i++) {
		GMEM_OPTS(gmem_region_opts, region, .plan = plan);

		CHECK(gmem_region_add(world.vm, layout[i].page * PAGE, layout[i].pages * PAGE, &region,
				      &world.regions[i]) == 0);
	}
	gmem_plan_free(plan);
	world.file_count = 0;
	world.has_links = true;
}

static void end(void)
{
	gmem_vm_free(world.vm);
	gmem_caps_free(world.caps);
	fake_close(world.vm_fd);
	for (unsigned i = 0; i < world.file_count; i++)
		close(world.files[i]);
	CHECK(fake_halt() == 0);
	CHECK(fake_complaints() == 0);
}

static void soil(void)
{
	for (unsigned i = 0; i < 3; i++)
		memset(gmem_region_hva(world.regions[i]), SOIL, layout[i].pages * PAGE);
}

static const unsigned char *memory_at(unsigned page)
{
	for (unsigned i = 0; i < 3; i++)
		if (page >= layout[i].page && page < layout[i].page + layout[i].pages)
			return (unsigned char *)gmem_region_hva(world.regions[i]) +
			       (page - layout[i].page) * PAGE;
	return NULL;
}

/* ---- the model: what the images made so far give, or that there is nothing ---- */

#define NOTHING (-1)
#define AS_BEFORE (-2)

static int model[PAGES];

static void set_model(int *pages, uint64_t first, uint64_t count, int value)
{
	for (uint64_t page = first; page < PAGES && page - first < count; page++)
		pages[page] = value;
}

/* ---- images ---- */

static struct {
	uint64_t id, parent, generation, number;
	uint64_t at, contents, pages;	/* of the record: bytes, blocks; and blocks of the image */
	uint32_t checksums;
	struct image_table *table;
	int next[PAGES];		/* what this image gives */
	union {
		struct image_record record;
		struct image_head head;
		unsigned char bytes[128 * PAGE];
	};
} made;

static void begin_record(const char *kind, uint64_t size)
{
	memset(made.bytes, 0, (made.at + PAGE - 1) / PAGE * PAGE + made.contents * PAGE);
	memcpy(made.record.kind, kind, 8);
	made.at = size;
	made.contents = 0;
}

static void put_record(int fd)
{
	uint64_t size = (made.at + PAGE - 1) / PAGE * PAGE + made.contents * PAGE;

	made.record.id = number(made.id);
	made.record.number = number(made.number++);
	made.record.size = (uint32_t)number(size);
	made.record.count = (uint32_t)number(made.record.count);
	if (made.record.size >= sizeof(made.record) && made.record.size <= sizeof(made.bytes))
		made.record.checksum = gmem_image_checksum(&made.record);
	made.checksums = gmem_crc32c(made.checksums, &made.record.checksum, 4);
	made.pages += made.contents;
	CHECK(write(fd, made.bytes, size) == (ssize_t)size);
}

static void put_table(const char *kind, uint64_t base)
{
	made.table = (void *)(made.bytes + made.at);
	memcpy(made.table->kind, kind, 8);
	made.table->data.base = base;
	made.at += sizeof(*made.table);
	made.record.count++;
}

static void put_entry(const void *entry, size_t size)
{
	memcpy(made.bytes + made.at, entry, size);
	made.at += size;
	made.table->count++;
}

static void put_regions(void)
{
	unsigned page = take_below(4), count = 1 + take_below(3);

	put_table("GMEMREGN", 0);
	made.record.head.regions = number(count);
	for (unsigned i = 0; i < count; i++) {
		struct image_region region = { .backing = GMEM_BACKING_HOST };
		unsigned pages = 1 + take_below(24);

		region.gpa = number(page * PAGE);
		region.size = number(pages * PAGE);
		put_entry(&region, sizeof(region));
		set_model(made.next, page, pages, AS_BEFORE);
		page += pages + (take_below(2) ? take_below(12) : 0);
	}
}

static void put_privates(void)
{
	unsigned count = take_below(4) == 0 ? 1 + take_below(2) : 0, page = 0;

	made.record.head.privates = number(count);
	if (count)
		put_table("GMEMPRIV", 0);
	for (unsigned i = 0; i < count; i++) {
		struct image_range range;
		unsigned pages = 1 + take_below(4);

		page += take_below(20);
		range.gpa = number(page * PAGE);
		range.size = number(pages * PAGE);
		put_entry(&range, sizeof(range));
		set_model(made.next, page, pages, NOTHING);
		page += pages;
	}
}

static void put_lost(unsigned page, unsigned pages)
{
	struct image_range range = { number(page * PAGE), number(pages * PAGE) };

	put_table("GMEMLOST", 0);
	put_entry(&range, sizeof(range));
	set_model(made.next, page, pages, 0);
}

static void put_runs(unsigned *page, unsigned count)
{
	unsigned base = *page;

	put_table("GMEMDATA", number(base * PAGE));
	for (unsigned i = 0; i < count; i++) {
		unsigned pages = 1 + take_below(5), byte = take_below(3) ? 1 + take_below(200) : 0;
		struct image_run run;

		*page += take_below(8);
		run.first = (uint32_t)number(*page - base);
		run.count = (uint32_t)number(pages | (byte ? 0 : IMAGE_ZEROS));
		put_entry(&run, sizeof(run));
		if (byte)
			memset(made.bytes + (1 + made.contents) * PAGE, (int)byte, pages * PAGE);
		made.contents += byte ? pages : 0;
		set_model(made.next, *page, pages, (int)byte);
		*page += pages;
	}
}

/* Runs and what was lost, in some records */
static void put_data(int fd)
{
	unsigned page = take_below(4), tables = take_below(5);

	for (unsigned i = 0; i < tables; i++) {
		if (take_below(6) == 0) {
			put_lost(page, 1 + take_below(3));
			page += 3;
		} else {
			put_runs(&page, 1 + take_below(4));
		}
		if (take_below(4) == 0) {
			put_record(fd);
			begin_record("GMEMPART", sizeof(made.record));
		}
	}
}

static void put_image(int fd, bool is_followed)
{
	uint64_t parent = number(made.id), generation = number(made.id ? made.generation + 1 : 0);
	bool is_child = made.id != 0;

	world.has_links &= parent == made.id && (!is_child || generation == made.generation + 1);
	made.id = 100 + made.id;
	made.generation = generation;
	made.number = 0;
	made.pages = 0;
	made.checksums = 0;
	set_model(made.next, 0, PAGES, NOTHING);
	begin_record("GMEMHEAD", sizeof(made.head));
	made.record.version = (uint32_t)number(2);
	made.record.head.page_size = 4096;
	made.head.parent = parent;
	made.head.generation = generation;
	made.head.flags = number(is_followed ? IMAGE_FOLLOWED : 0);
	put_regions();
	put_privates();
	put_data(fd);
	put_table("GMEM_END", 0);
	made.table->end.pages = number(made.pages + made.contents);
	made.table->end.checksums = made.checksums;
	put_record(fd);

	for (unsigned page = 0; page < PAGES; page++)
		if (made.next[page] == AS_BEFORE)
			made.next[page] = is_child && model[page] != NOTHING ? model[page] : 0;
	memcpy(model, made.next, sizeof(model));
}

static void put_images(void)
{
	unsigned images = 1 + take_below(MAX_IMAGES);
	bool follows = false;

	made.id = 0;
	for (unsigned i = 0; i < images; i++) {
		bool is_followed = i < images - 1 && take_below(2);

		if (!follows) {
			world.files[world.file_count] = memfd_create("image", MFD_CLOEXEC);
			CHECK(world.files[world.file_count] >= 0);
			world.file_count++;
		}
		put_image(world.files[world.file_count - 1], is_followed);
		follows = is_followed;
	}
}

/* ---- what must hold ---- */

static bool is_unchanged(void)
{
	for (unsigned page = 0; page < PAGES; page++) {
		const unsigned char *bytes = memory_at(page);

		for (unsigned i = 0; bytes && i < PAGE; i += 61)
			if (bytes[i] != SOIL)
				return false;
	}
	return true;
}

static void check_restored(void)
{
	for (unsigned page = 0; page < PAGES; page++) {
		const unsigned char *bytes = memory_at(page);
		unsigned char value = model[page] == NOTHING ? SOIL : (unsigned char)model[page];

		CHECK(bytes || model[page] == NOTHING);
		for (unsigned i = 0; bytes && i < PAGE; i += 61)
			CHECK(bytes[i] == value);
	}
}

static bool is_refusal_of_image(int err)
{
	return err == -ENOMSG || err == -EBADMSG || err == -ENODATA || err == -EOPNOTSUPP || err == -ENOLINK ||
	       err == -EHWPOISON || err == -ENOMEM;
}

static bool is_refusal_of_target(int err)
{
	return err == -ENOENT || err == -EEXIST || err == -EACCES;
}

static void use(uint64_t flags)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags & GMEM_TRANSFER_ALLOW_LOST,
		  .parents = world.file_count > 1 ? world.files : NULL, .parent_count = world.file_count - 1);
	int last = world.files[world.file_count - 1], verified, restored = 0;

	verified = gmem_image_verify(last, &opts, NULL);
	CHECK(verified == 0 || is_refusal_of_image(verified));
	opts.workers = 3;
	CHECK(gmem_image_verify(last, &opts, NULL) == verified);
	CHECK(gmem_image_info(last, NULL, NULL, NULL, 0) >= 0 || verified);

	for (unsigned way = 0; way < 4; way++) {
		opts.flags = flags | (way & 1 ? GMEM_TRANSFER_NO_RING : 0);
		opts.workers = way & 2 ? 3 : 0;
		soil();
		restored = gmem_vm_restore(world.vm, last, &opts, NULL);
		/* Of a chain, the last image is looked at first. */
		CHECK(restored == verified || is_refusal_of_target(restored) || restored == -ENOLINK ||
		      (verified && is_refusal_of_image(restored)));
		if (restored == 0 && is_as_modelled)
			check_restored();
		else if (restored == 0)
			continue;
		else if (flags & GMEM_TRANSFER_VERIFY || !world.has_links)
			CHECK(is_unchanged());
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t flags;

	input = (struct fuzz_input){ data, size };
	begin();
	is_as_modelled = true;
	flags = (take_below(8) ? GMEM_TRANSFER_LEAVE_REST : 0) | (take_below(8) ? GMEM_TRANSFER_OMIT_PRIVATE : 0) |
		(take_below(8) ? GMEM_TRANSFER_ALLOW_LOST : 0) | (take_below(2) ? GMEM_TRANSFER_VERIFY : 0);
	put_images();
	use(flags);
	end();
	return 0;
}
