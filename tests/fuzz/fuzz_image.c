/* SPDX-License-Identifier: MIT */
/*
 * Images nobody wrote, on the scripted kernel. The input edits a good image:
 * fields set, blocks moved, the end cut off; checksums are put right again, so
 * that what is behind them is reached, or left wrong. Whatever comes of it,
 * memory that the image has no right to stays as it is, and what one reader
 * takes for an image the other does, too.
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
#define MAX_IMAGE	(64 * PAGE)
#define CANARY		0x5a

/* ---- the input ---- */

static struct fuzz_input input;

static uint8_t take(void)
{
	return fuzz_take(&input);
}

static uint64_t take_below(uint64_t limit)
{
	return fuzz_take_below(&input, limit);
}

static uint64_t take_number(void)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 4095, 4096, 8192, 65536, 1 << 20, UINT32_MAX, (uint64_t)1 << 32,
		(uint64_t)1 << 47, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 4095, 0x10000, 0x18000,
	};
	uint8_t which = take();

	return which < 128 ? numbers[which % 16] + (uint64_t)(which / 16) : take_below(65536);
}

/* ---- the world: an image that is good, and a guest to put it into ---- */

static struct {
	int vm_fd;
	struct gmem_caps *caps;
	struct gmem_vm *vm;
	/* the image has the first two; nothing may change the third */
	struct gmem_region *regions[3];
	int file;
} world;

static union {
	unsigned char bytes[MAX_IMAGE];
	struct image_record aligned;
} image;
static uint64_t image_size;

/* What a device has, which no image has contents for */
static unsigned char registers[4 * PAGE] __attribute__((aligned(4096)));

static struct gmem_region *add(uint64_t page, uint64_t pages, void *device)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts, .flags = device ? GMEM_REGION_HVA : 0, .hva = device,
		  .kind = device ? GMEM_KIND_DEVICE : GMEM_KIND_RAM);
	struct gmem_region *region;
	struct gmem_plan *plan;

	CHECK(gmem_plan_new(world.caps, &request, &plan) == 0);
	opts.plan = plan;
	CHECK(gmem_region_add(world.vm, page * PAGE, pages * PAGE, &opts, &region) == 0);
	gmem_plan_free(plan);
	return region;
}

static void begin(void)
{
	GMEM_OPTS(gmem_vm_opts, opts);
	char *hva;

	fake_boot("6.18");
	world.vm_fd = fake_new_vm();
	CHECK(gmem_caps_new(world.vm_fd, NULL, &world.caps) == 0);
	opts.caps = world.caps;
	CHECK(gmem_vm_new(world.vm_fd, &opts, &world.vm) == 0);
	world.regions[0] = add(16, 16, NULL);
	world.regions[1] = add(40, 8, NULL);
	add(56, 4, registers);
	memset(registers, CANARY, sizeof(registers));
	world.file = memfd_create("image", MFD_CLOEXEC);
	CHECK(world.file >= 0);

	hva = gmem_region_hva(world.regions[0]);
	for (unsigned page = 0; page < 15; page += 3)
		memset(hva + page * PAGE, (int)page + 1, PAGE + 100);
	memset(gmem_region_hva(world.regions[1]), 99, 2 * PAGE);
	CHECK(gmem_vm_save(world.vm, world.file, NULL, NULL) == 0);
	image_size = (uint64_t)pread(world.file, image.bytes, MAX_IMAGE, 0);
	CHECK(image_size > 8 * PAGE && image_size < MAX_IMAGE);
	memset(hva, 0, 16 * PAGE);

	world.regions[2] = add(32, 8, NULL);
	memset(gmem_region_hva(world.regions[2]), CANARY, 8 * PAGE);
}

static void end(void)
{
	gmem_vm_free(world.vm);
	gmem_caps_free(world.caps);
	fake_close(world.vm_fd);
	close(world.file);
	CHECK(fake_halt() == 0);
	CHECK(fake_complaints() == 0);
}

/* ---- edits ---- */

static struct image_record *block(uint64_t i)
{
	return (void *)(image.bytes + i * PAGE);
}

static uint64_t blocks(void)
{
	return image_size / PAGE;
}

/* The next record as the sizes have it, as far as they make sense */
static uint64_t next_record(uint64_t i)
{
	uint64_t size = block(i)->size / PAGE;

	return i + (size && size < blocks() - i ? size : 1);
}

static uint64_t take_record(void)
{
	uint64_t i = 0;

	for (uint64_t n = take_below(8); n && next_record(i) < blocks(); n--)
		i = next_record(i);
	return i;
}

static void set_field(void)
{
	unsigned char *at = image.bytes + take_record() * PAGE;
	uint64_t number, width = (uint64_t)1 << take_below(4);

	at += take_below(128 / width) * width;
	number = take_number();
	memcpy(at, &number, width);
}

static void copy_block(void)
{
	uint64_t from = take_below(blocks()), to = take_below(blocks());

	memmove(image.bytes + to * PAGE, image.bytes + from * PAGE, PAGE);
}

static void insert_block(void)
{
	uint64_t at = take_below(blocks());

	if (image_size + PAGE > MAX_IMAGE)
		return;
	memmove(image.bytes + (at + 1) * PAGE, image.bytes + at * PAGE, image_size - at * PAGE);
	image_size += PAGE;
}

static void remove_block(void)
{
	uint64_t at = take_below(blocks());

	if (image_size < 2 * PAGE)
		return;
	memmove(image.bytes + at * PAGE, image.bytes + (at + 1) * PAGE, image_size - (at + 1) * PAGE);
	image_size -= PAGE;
}

static void cut(void)
{
	uint64_t size = take_below(blocks()) * PAGE + take_below(2) * 100;

	image_size = size > PAGE && size < image_size ? size : image_size;
}

/* Correct the checksums, as an attacker would. */
static void put_right(bool numbers)
{
	uint64_t records = 0, pages = 0, i = 0;
	uint32_t checksums = 0;

	for (; i < blocks(); i = next_record(i)) {
		struct image_record *record = block(i);

		if (numbers) {
			record->number = records++;
			if (memcmp(record->kind, "GMEM_END", 8) == 0) {
				record->end.pages = pages;
				record->end.checksums = checksums;
			}
			if (memcmp(record->kind, "GMEMDATA", 8) == 0)
				pages += record->size / PAGE - 1;
		}
		if (record->size < sizeof(*record) || record->size > image_size - i * PAGE)
			continue;
		record->checksum = gmem_image_checksum(record);
		checksums = gmem_crc32c(checksums, &record->checksum, sizeof(record->checksum));
	}
}

static void edit(void)
{
	static void (*const edits[])(void) = {
		set_field, set_field, set_field, set_field, copy_block, insert_block, remove_block, cut,
	};
	unsigned count = (unsigned)take_below(16);

	while (count--)
		edits[take_below(8)]();
	switch (take_below(4)) {
	case 0:
		break;
	case 1:
		put_right(false);
		break;
	default:
		put_right(true);
	}
}

/* ---- what must hold ---- */

static bool is_refusal_of_target(int err)
{
	return err == -ENOENT || err == -EEXIST || err == -EACCES;
}

static void check_canary(void)
{
	const unsigned char *bytes = gmem_region_hva(world.regions[2]);

	for (uint64_t i = 0; i < 8 * PAGE; i++)
		CHECK(bytes[i] == CANARY);
}

/* The lists of a whole image can be told; what they have does not overlap. */
static void check_info(int verified)
{
	static struct gmem_image_region regions[1024];
	GMEM_OPTS(gmem_image_summary, summary, .id = 0);
	int count = gmem_image_info(world.file, NULL, &summary, regions, 1024);
	uint64_t end = 0;

	CHECK(count >= 0 || count == -ENOSPC || verified != 0);
	CHECK(count < 0 || (uint32_t)count == summary.region_count);
	for (int i = 0; i < count; i++) {
		CHECK(regions[i].gpa >= end && regions[i].size && regions[i].private_bytes <= regions[i].size);
		CHECK(!regions[i].backing == (regions[i].kind != GMEM_KIND_DEFAULT));
		end = regions[i].gpa + regions[i].size;
	}
}

static void use(void)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_LEAVE_REST);
	GMEM_OPTS(gmem_transfer_opts, plain, .flags = GMEM_TRANSFER_NO_RING);
	GMEM_OPTS(gmem_transfer_opts, many, .workers = 3);
	bool has_the_canarys_place;
	int verified, restored;

	CHECK(ftruncate(world.file, 0) == 0);
	CHECK(pwrite(world.file, image.bytes, image_size, 0) == (ssize_t)image_size);
	if (take() & 1)
		opts.flags |= GMEM_TRANSFER_OMIT_PRIVATE;
	if (take() & 1)
		opts.flags |= GMEM_TRANSFER_VERIFY;

	verified = gmem_image_verify(world.file, NULL, NULL);
	CHECK(verified == 0 || verified == -ENOMSG || verified == -EBADMSG || verified == -ENODATA ||
	      verified == -EOPNOTSUPP);
	CHECK(gmem_image_verify(world.file, &plain, NULL) == verified);
	CHECK(gmem_image_verify(world.file, &many, NULL) == verified);
	check_info(verified);

	restored = gmem_vm_restore(world.vm, world.file, &opts, NULL);
	CHECK(restored == verified || is_refusal_of_target(restored));
	restored = gmem_vm_restore(world.vm, world.file, &plain, NULL);
	CHECK(restored == verified || is_refusal_of_target(restored));
	many.flags = opts.flags;
	CHECK(gmem_vm_restore(world.vm, world.file, &many, NULL) == gmem_vm_restore(world.vm, world.file, &opts, NULL));
	for (size_t i = 0; i < sizeof(registers); i++)
		CHECK(registers[i] == CANARY);

	/* An edited list of regions may name the third one, too; then it is fair game. */
	has_the_canarys_place = false;
	for (uint64_t i = 0; i < blocks(); i = next_record(i)) {
		const struct image_region *entries = (const void *)(block(i) + 1);

		if (memcmp(block(i)->kind, "GMEMREGN", 8) != 0)
			continue;
		for (uint32_t e = 0; e < 126 && e < block(i)->count; e++)
			has_the_canarys_place |= entries[e].gpa < 40 * PAGE &&
						 entries[e].gpa + entries[e].size > 32 * PAGE;
	}
	if (!has_the_canarys_place)
		check_canary();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	input = (struct fuzz_input){ data, size };
	begin();
	edit();
	use();
	end();
	return 0;
}
