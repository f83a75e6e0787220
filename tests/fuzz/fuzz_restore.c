/* SPDX-License-Identifier: MIT */
/*
 * Images made from the input record by record, with right checksums, on the scripted kernel:
 * lists of regions and of private ranges, and runs of data, with numbers that an attacker
 * would choose. The harness knows from its own lists what such an image may do:
 *
 *   - memory that no entry of the list of regions covers stays as it is, and so does what the
 *     image calls private;
 *   - an image that is restored gives exactly the bytes that it has, and zeros;
 *   - with GMEM_TRANSFER_VERIFY nothing changes unless the image is verified;
 *   - memory and time are bounded by the file and the VM, not by numbers in the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fake.h"
#include "fuzz.h"
#include "base/crc32c.h"
#include "transfer/image.h"

#define PAGE		((uint64_t)4096)
#define MIB		((uint64_t)1 << 20)
#define PAGES		64		/* of guest addresses that are looked at */
#define MAX_BLOCKS	240
#define MAX_ENTRIES	64
#define SECONDS		5		/* far more than any of it takes, with sanitizers */

static struct fuzz_input input;

static unsigned take(void)
{
	return fuzz_take(&input);
}

/* ---- the VM ---- */

struct ram {
	uint64_t page;
	uint64_t pages;
	uint32_t backing;
};

/* The third has neighbours on both sides, and is in no image that does not name it. */
static const struct ram rams[] = {
	{ 16, 16, GMEM_BACKING_PRIVATE }, { 32, 8, GMEM_BACKING_HOST }, { 40, 8, GMEM_BACKING_HOST },
	{ 52, 4, GMEM_BACKING_PRIVATE },
};
#define RAMS (sizeof(rams) / sizeof(rams[0]))

static struct {
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_region *regions[RAMS];
	bool is_private[PAGES];
} world;

static unsigned char *bytes_at(uint64_t page)
{
	for (size_t i = 0; i < RAMS; i++)
		if (page - rams[i].page < rams[i].pages)
			return (unsigned char *)gmem_region_hva(world.regions[i]) +
			       (page - rams[i].page) * PAGE;
	return NULL;
}

static void begin(void)
{
	fake_boot("7.3-swp-t1");
	world.vm_fd = fake_new_vm();
	CHECK(gmem_vm_new(world.vm_fd, NULL, &world.vm) == 0);
	for (size_t i = 0; i < RAMS; i++) {
		GMEM_OPTS(gmem_request, request, .backings = { rams[i].backing });
		GMEM_OPTS(gmem_region_opts, opts);
		struct gmem_plan *plan;

		CHECK(gmem_plan_new(gmem_vm_caps(world.vm), &request, &plan) == 0);
		opts.plan = plan;
		CHECK(gmem_region_add(world.vm, rams[i].page * PAGE, rams[i].pages * PAGE, &opts,
				      &world.regions[i]) == 0);
		gmem_plan_free(plan);
	}
	for (uint64_t page = 0; page < PAGES; page++) {
		world.is_private[page] = false;
		if (!bytes_at(page))
			continue;
		memset(bytes_at(page), (int)(0x40 + page), PAGE);
	}
}

static void convert_some(void)
{
	uint64_t page = 16 + take() % 16, pages = take() % 4;

	if (page + pages > 32 || !pages)
		return;
	CHECK(gmem_vm_convert(world.vm, page * PAGE, pages * PAGE, GMEM_STATE_PRIVATE, NULL, NULL) == 0);
	for (uint64_t i = page; i < page + pages; i++)
		world.is_private[i] = true;
}

static void end(void)
{
	gmem_vm_free(world.vm);
	fake_close(world.vm_fd);
	CHECK(fake_complaints() == 0);
	CHECK(fake_halt() == 0);
}

/* ---- the image ---- */

static struct {
	_Alignas(4096) unsigned char bytes[MAX_BLOCKS * PAGE];
	uint64_t blocks;
	uint64_t records;
	uint64_t pages;			/* of data, as the last record should say */
	uint32_t checksums;
	struct image_range regions[MAX_ENTRIES], privates[MAX_ENTRIES];
	size_t region_count, private_count;
	unsigned char data[PAGES];	/* what a page of the guest gets; 0: zeros */
} image;

/* Mostly what makes sense, to get far */
static uint64_t take_number(uint64_t sensible)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 4095, 4096, 8192, 65536, MIB, UINT32_MAX, (uint64_t)1 << 32, (uint64_t)1 << 33,
		(uint64_t)1 << 47, (uint64_t)1 << 52, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 4095,
	};
	unsigned which = take();

	return which < 224 ? sensible : which < 240 ? numbers[which % 16] : sensible + (which % 16) * PAGE;
}

/* Some pages of the VM's memory, or some of no memory */
static struct image_range take_range(void)
{
	const struct ram *ram = &rams[take() % RAMS];
	uint64_t within = take() % ram->pages, pages = 1 + take() % (ram->pages - within);
	struct image_range range;

	range.gpa = take_number((ram->page + within) * PAGE);
	range.size = take_number(pages * PAGE);
	return range;
}

static struct image_record *new_record(enum image_kind kind, uint64_t blocks)
{
	struct image_record *record = (void *)(image.bytes + image.blocks * PAGE);

	if (image.blocks + blocks + 1 > MAX_BLOCKS)
		return NULL;
	memset(record, 0, blocks * PAGE);
	memcpy(record->kind, gmem_image_kinds[kind], sizeof(record->kind));
	record->id = 77;
	record->number = image.records++;
	record->size = (uint32_t)(blocks * PAGE);
	image.blocks += blocks;
	return record;
}

static void seal(struct image_record *record)
{
	record->checksum = gmem_image_checksum(record);
	image.checksums = gmem_crc32c(image.checksums, &record->checksum, sizeof(record->checksum));
}

static void make_head(uint64_t regions, uint64_t privates)
{
	struct image_record *record = new_record(IMAGE_HEAD, 1);

	record->version = IMAGE_VERSION;
	record->head.page_size = take_number(PAGE);
	record->head.regions = take_number(regions);
	record->head.privates = take_number(privates);
	seal(record);
}

/* In records of a few entries each */
static void make_regions(void)
{
	for (size_t i = 0; i < image.region_count;) {
		struct image_record *record = new_record(IMAGE_REGIONS, 1);
		struct image_region *entry = record ? (void *)(record + 1) : NULL;
		size_t now = 1 + take() % 8;

		for (size_t n = 0; record && n < now && i < image.region_count; n++, i++)
			entry[record->count++] = (struct image_region){ .gpa = image.regions[i].gpa,
				.size = image.regions[i].size, .backing = 1 + take() % 5 };
		if (!record)
			return;
		record->count = (uint32_t)take_number(record->count);
		seal(record);
	}
}

static void make_privates(void)
{
	for (size_t i = 0; i < image.private_count;) {
		struct image_record *record = new_record(IMAGE_PRIVATE, 1);
		struct image_range *entry = record ? (void *)(record + 1) : NULL;
		size_t now = 1 + take() % 16;

		for (size_t n = 0; record && n < now && i < image.private_count; n++, i++)
			entry[record->count++] = image.privates[i];
		if (!record)
			return;
		record->count = (uint32_t)take_number(record->count);
		seal(record);
	}
}

static void note_data(uint64_t gpa, uint64_t pages, unsigned char byte)
{
	for (uint64_t page = 0; page < PAGES; page++)
		if (page - gpa / PAGE < pages)
			image.data[page] = byte;
}

static void make_data(void)
{
	uint64_t base = take() % 3 ? take() % 32 * PAGE : 0, total = 0, at = base / PAGE;
	unsigned runs = take() % 6;
	struct image_run list[6];
	struct image_record *record;

	for (unsigned i = 0; i < runs; i++) {
		list[i].first = (uint32_t)take_number(at - base / PAGE + take() % 12);
		list[i].count = (uint32_t)take_number(1 + take() % 4);
		at = base / PAGE + list[i].first + list[i].count;
		total += list[i].count;
	}
	record = new_record(IMAGE_DATA, 1 + (total < 32 ? total : take() % 8));
	if (!record)
		return;
	record->data.base = take_number(base);
	record->count = (uint32_t)take_number(runs);
	memcpy(record + 1, list, sizeof(list[0]) * runs);
	memset((unsigned char *)record + PAGE, (int)record->number, record->size - PAGE);
	for (unsigned i = 0; i < runs; i++)
		note_data(record->data.base + list[i].first * PAGE, list[i].count,
			  (unsigned char)record->number);
	image.pages += record->size / PAGE - 1;
	seal(record);
}

static void make_lost(void)
{
	struct image_record *record = new_record(IMAGE_LOST, 1);
	struct image_range *entry = record ? (void *)(record + 1) : NULL;

	if (!record)
		return;
	for (unsigned n = 1 + take() % 3; n--;)
		entry[record->count++] = take_range();
	record->count = (uint32_t)take_number(record->count);
	seal(record);
}

static void make_end(void)
{
	struct image_record *record = new_record(IMAGE_END, 1);
	uint32_t checksums = image.checksums;

	record->end.pages = take_number(image.pages);
	record->end.checksums = checksums;
	seal(record);
}

static void take_lists(void)
{
	unsigned how = take();

	/* All of the VM's memory but one region, or what the input says */
	for (size_t i = 0; how & 1 && i < RAMS; i++)
		if (i != (how >> 1) % (RAMS + 1))
			image.regions[image.region_count++] =
				(struct image_range){ rams[i].page * PAGE, rams[i].pages * PAGE };
	for (unsigned n = how >> 4 & (how & 1 ? 1 : 15); n--;)
		image.regions[image.region_count++] = take_range();
	for (unsigned n = take() % 8; n--;)
		image.privates[image.private_count++] = take_range();
}

static void forge(void)
{
	unsigned how;

	image.blocks = image.records = image.pages = image.region_count = image.private_count = 0;
	image.checksums = 0;
	memset(image.data, 0, sizeof(image.data));

	take_lists();
	make_head(image.region_count, image.private_count);
	make_regions();
	make_privates();
	how = take();
	for (unsigned n = how % 12; n--;) {
		make_data();
		if (how >> 7 && take() % 2)
			make_lost();
	}
	if (take() % 16)
		make_end();
}

/* ---- what such an image may do ---- */

static bool is_covered(const struct image_range *ranges, size_t count, uint64_t gpa)
{
	for (size_t i = 0; i < count; i++)
		if (gpa - ranges[i].gpa < ranges[i].size)
			return true;
	return false;
}

static bool is_filled(const unsigned char *bytes, unsigned char with)
{
	return bytes[0] == with && memcmp(bytes, bytes + 1, PAGE - 1) == 0;
}

static void check_memory(bool changed, bool restored)
{
	for (uint64_t page = 0; page < PAGES; page++) {
		const unsigned char *bytes = bytes_at(page);
		bool is_its = is_covered(image.regions, image.region_count, page * PAGE) &&
			      !is_covered(image.privates, image.private_count, page * PAGE);

		/* The shared side of what is private was given back, and is nobody's. */
		if (!bytes || world.is_private[page])
			continue;
		if (!is_its || !changed)
			CHECK(is_filled(bytes, (unsigned char)(0x40 + page)));
		else if (restored)
			CHECK(is_filled(bytes, image.data[page]));
	}
}

/* ---- bounds: what the library allocates at once, and for how long it computes ---- */

static uint64_t allocation_limit = UINT64_MAX;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

void *__wrap_malloc(size_t size)
{
	CHECK(size <= allocation_limit);
	return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	CHECK(!size || count <= allocation_limit / size);
	return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	CHECK(size <= allocation_limit);
	return __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	CHECK(size <= allocation_limit);
	return __real_aligned_alloc(align, size);
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- all of it ---- */

static int new_file(uint64_t offset, uint64_t size)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	CHECK(fd >= 0 && pwrite(fd, image.bytes, size, (off_t)offset) == (ssize_t)size);
	return fd;
}

/* What it reads can be read once only; the pipe has room for all of it. */
static int new_pipe(uint64_t size)
{
	int ends[2];

	CHECK(pipe2(ends, O_CLOEXEC) == 0);
	CHECK(fcntl(ends[1], F_SETPIPE_SZ, (int)MIB) >= (int)size);
	CHECK(write(ends[1], image.bytes, size) == (ssize_t)size);
	close(ends[1]);
	return ends[0];
}

static void use(void)
{
	unsigned how = take();
	GMEM_OPTS(gmem_transfer_opts, opts, .depth = 1 + (how >> 6), .workers = how >> 7 ? 3 : 0,
		  .flags = (how & 1 ? GMEM_TRANSFER_OMIT_PRIVATE : 0) |
			   (how & 2 ? GMEM_TRANSFER_LEAVE_REST : 0) | (how & 4 ? GMEM_TRANSFER_VERIFY : 0) |
			   (how & 64 ? GMEM_TRANSFER_ALLOW_LOST : 0));
	uint64_t offset = how & 8 ? take() * PAGE : 0;
	uint64_t size = image.blocks * PAGE - (how & 16 ? take() * 16 : 0);
	int fd = new_file(offset, size), pipe = how & 32 ? new_pipe(size) : -1, verified, restored;
	GMEM_OPTS(gmem_transfer_opts, verify_opts, .depth = 1, .image_offset = offset,
		  .flags = opts.flags & GMEM_TRANSFER_ALLOW_LOST);
	double start = seconds();

	opts.image_offset = offset;
	/* Buffers of 1 MiB, lists as long as the file has entries, and what a VM of this size costs */
	allocation_limit = (1 + opts.depth) * MIB + 8 * size + 64 * PAGES + MIB;
	verified = gmem_image_verify(fd, &verify_opts, NULL);
	CHECK(verified == 0 || verified == -ENOMSG || verified == -EBADMSG || verified == -ENODATA ||
	      verified == -EOPNOTSUPP ||
	      (verified == -EHWPOISON && !verify_opts.flags));
	check_memory(false, false);

	if (pipe >= 0) {
		opts.flags &= ~GMEM_TRANSFER_VERIFY;
		opts.image_offset = 0;
	}
	restored = gmem_vm_restore(world.vm, pipe >= 0 ? pipe : fd, &opts, NULL);
	allocation_limit = UINT64_MAX;
	CHECK(restored == verified || restored == -ENOENT || restored == -EEXIST || restored == -EACCES);
	CHECK(restored || !verified);
	check_memory(!(opts.flags & GMEM_TRANSFER_VERIFY && restored), !restored);
	CHECK(seconds() - start < SECONDS);
	close(fd);
	if (pipe >= 0)
		close(pipe);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	input = (struct fuzz_input){ data, size };
	begin();
	convert_some();
	forge();
	use();
	end();
	return 0;
}
