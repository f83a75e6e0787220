/* SPDX-License-Identifier: MIT */
#include "transfer/contents.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "gmem.h"
#include "base/bits.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/part.h"
#include "dirty/tracker.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "region/host_mapping.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "region/vm_core.h"
#include "transfer/batch.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes read to see whether a block needs to be read at all */
#define HEAD 64

/* Bytes read at once where each read is a system call */
#define CHUNK ((uint64_t)16 << 10)

_Static_assert(CONTENTS_WORDS * 64 * IMAGE_BLOCK == CONTENTS_WINDOW, "a bit for each block");
_Static_assert(GMEM_MAX_HANDS * CHUNK <= GMEM_IO_UNIT, "a chunk for each thread");

/* ---- blocks ---- */

static const char *block_at(const struct gmem_contents_window *window, uint64_t block)
{
	return window->range->hva + window->offset + block * IMAGE_BLOCK;
}

static int fail_block(uint64_t gpa, const char *hva, int err)
{
	const char *why = gmem_nofault_why(hva, false, err);
	uint64_t page = gmem_sys_page_size();
	struct gmem_host_nature nature;

	if (err != -EHWPOISON)
		return gmem_fail(err, "gpa 0x%" PRIx64 ", hva 0x%" PRIxPTR ", cannot be read: %s, %s", gpa,
				 (uintptr_t)hva, gmem_errno_name(err), why ? why : "but the page came meanwhile");
	if (!gmem_host_mapping_learn(NULL, hva, page, GMEM_MAPPING_HUGETLB, &nature))
		page = nature.page_size;
	return gmem_fail(err, "gpa 0x%" PRIx64 ", hva 0x%" PRIxPTR ": the hardware lost the page, 0x%" PRIx64
			 " bytes; only with GMEM_TRANSFER_ALLOW_LOST can the rest be saved", gpa,
			 (uintptr_t)hva, page);
}

/* Note that @block is lost, with its page from @first on, or fail. */
static int lose(const struct gmem_transfer *transfer, struct gmem_contents_window *window,
		uint64_t first, uint64_t block, int err)
{
	uint64_t blocks = gmem_sys_page_size() / IMAGE_BLOCK, start = block / blocks * blocks;
	const char *hva = block_at(window, block);

	if (gmem_nofault_is_lost(hva, err))
		err = -EHWPOISON;
	if (err != -EHWPOISON || !(transfer->opts.flags & GMEM_TRANSFER_ALLOW_LOST))
		return fail_block(window->range->gpa + window->offset + block * IMAGE_BLOCK, hva, err);

	start = start > first ? start : first;
	gmem_bits_set(window->data, start, block / blocks * blocks + blocks, false);
	gmem_bits_set(window->lost, start, block / blocks * blocks + blocks, true);
	return 0;
}

int gmem_contents_lose(struct gmem_contents *contents, struct gmem_contents_place place, int err)
{
	/* Of a page larger than a block, what comes before may be in the image already. */
	return lose(contents->transfer, &contents->windows[place.window], place.block, place.block, err);
}

/* ---- looking ---- */

static int note_present(void *data, uint64_t offset, uint64_t size)
{
	struct gmem_contents_window *window = data;
	uint64_t first = (offset - window->range->offset - window->offset) / IMAGE_BLOCK;

	gmem_bits_set(window->data, first, first + size / IMAGE_BLOCK, true);
	return 0;
}

static bool begins_with_zeros(const char *hva)
{
	uint64_t head[HEAD / sizeof(uint64_t)], all = 0;
	bool is_read;
	int err;

	is_read = gmem_nofault_copy(true, head, hva, HEAD, &err) == HEAD;
	for (size_t i = 0; is_read && i < HEAD / sizeof(uint64_t); i++)
		all |= head[i];
	/* For core dumps, which have the stack. */
	explicit_bzero(head, sizeof(head));
	return !all;
}

/* Leave out blocks of zeros in [@first, @end), which all exist. */
static int test_run(const struct gmem_transfer *transfer, struct gmem_contents_window *window,
		    char *chunk, uint64_t first, uint64_t end)
{
	bool fast = transfer->memory.fast;
	uint64_t most = fast ? 1 : CHUNK / IMAGE_BLOCK, now;
	int err;

	for (; first < end; first += now) {
		now = end - first < most ? end - first : most;
		if (fast && !begins_with_zeros(block_at(window, first)))
			continue;
		now = gmem_nofault_copy(fast, chunk, block_at(window, first), now * IMAGE_BLOCK, &err) /
		      IMAGE_BLOCK;
		for (uint64_t i = 0; i < now; i++)
			if (gmem_is_zero(chunk + i * IMAGE_BLOCK, IMAGE_BLOCK))
				gmem_bits_set(window->data, first + i, first + i + 1, false);
		if (now)
			continue;
		err = lose(transfer, window, 0, first, err);
		if (err)
			return err;
		now = 1;
	}
	return 0;
}

/* Find the blocks in [@first, @end) whose pages exist, and that are not zero, among those of @among. */
static int look_for_data(struct gmem_transfer *transfer, const struct gmem_hand *hand,
			 struct gmem_contents_window *window, const uint64_t *among, uint64_t first,
			 uint64_t end)
{
	const struct gmem_leased_range *range = window->range;
	char *chunk = transfer->io.small + hand->number * CHUNK;
	uint64_t run_end;
	int err;

	err = gmem_region_present_pages(range->region, GMEM_SIDE_SHARED,
					range->offset + window->offset + first * IMAGE_BLOCK,
					(end - first) * IMAGE_BLOCK, hand->look, note_present, window);
	for (size_t i = 0; i < CONTENTS_WORDS && among; i++)
		window->data[i] &= among[i];

	while (!err && (first = gmem_bits_find(window->data, true, first, end)) < end) {
		run_end = gmem_bits_find(window->data, false, first, end);
		err = test_run(transfer, window, chunk, first, run_end);
		first = run_end;
	}
	return err;
}

/* Find the first run that changed in [@offset, @end) of a range; with the VM's lock. */
static bool find_changed(const struct gmem_dirty_image *image, const struct gmem_leased_range *range,
			 uint64_t offset, uint64_t end, struct gmem_part *ret)
{
	if (offset == end ||
	    !gmem_dirty_find(image, range->region, range->gpa + offset, range->gpa + (end - 1), ret))
		return false;
	*ret = (struct gmem_part){ ret->start - range->gpa, ret->last - range->gpa };
	return true;
}

/* Which blocks of a window changed. Later changes may be among them, and count again next time. */
static void find_changes(const struct gmem_dirty_image *image, const struct gmem_contents_window *window,
			 uint64_t *changed)
{
	uint64_t end = window->offset + window->size;
	struct gmem_part part = { .last = window->offset - 1 };

	memset(changed, 0, CONTENTS_WORDS * sizeof(*changed));
	gmem_lock_take(&image->dirty->vm->lock);
	while (find_changed(image, window->range, part.last + 1, end, &part))
		gmem_bits_set(changed, (part.start - window->offset) / IMAGE_BLOCK,
			      (part.last + 1 - window->offset) / IMAGE_BLOCK, true);
	gmem_lock_drop(&image->dirty->vm->lock);
}

static int look_for_changes(struct gmem_contents *contents, const struct gmem_hand *hand,
			    struct gmem_contents_window *window)
{
	uint64_t changed[CONTENTS_WORDS], blocks = window->size / IMAGE_BLOCK, first, end;
	int err;

	find_changes(&contents->image, window, changed);
	first = gmem_bits_find(changed, true, 0, blocks);
	if (first == blocks)
		return 0;
	for (end = blocks; !gmem_bits_get(changed, end - 1); end--)
		;
	err = look_for_data(contents->transfer, hand, window, changed, first, end);
	for (size_t i = 0; i < CONTENTS_WORDS; i++)
		window->zero[i] = changed[i] & ~window->data[i] & ~window->lost[i];
	return err;
}

static int look_at(struct gmem_contents *contents, const struct gmem_hand *hand,
		   struct gmem_contents_window *window)
{
	memset(window->data, 0, sizeof(window->data));
	memset(window->lost, 0, sizeof(window->lost));
	memset(window->zero, 0, sizeof(window->zero));
	if (contents->image.parent)
		return look_for_changes(contents, hand, window);
	return look_for_data(contents->transfer, hand, window, NULL, 0, window->size / IMAGE_BLOCK);
}

static bool look_at_piece(void *data, struct gmem_hand *hand, size_t piece)
{
	struct gmem_contents *contents = data;
	struct gmem_contents_window *window = &contents->windows[piece];

	gmem_hand_come(hand, block_at(window, 0));
	return look_at(contents, hand, window) == 0;
}

static void move_on(struct gmem_contents *contents, const struct gmem_leased_range *range, uint64_t size)
{
	contents->looked += size;
	if (contents->looked == range->size) {
		contents->range++;
		contents->looked = 0;
	}
}

/* Bytes that are looked through at once for something that changed: the VM's lock is held for it */
#define SKIP ((uint64_t)64 << 30)

/*
 * How much did not change from contents->looked on, in whole windows: of this range, and not all
 * of much. A window is asked for alone first, so that a long run is not searched for its end
 * each time.
 */
static uint64_t count_unchanged(const struct gmem_contents *contents, const struct gmem_leased_range *range)
{
	uint64_t start = contents->looked, left = range->size - start;
	uint64_t window = start + (left < CONTENTS_WINDOW ? left : CONTENTS_WINDOW);
	uint64_t end = start + (left < SKIP ? left : SKIP);
	struct gmem_part part;

	if (find_changed(&contents->image, range, start, window, &part))
		return 0;
	if (find_changed(&contents->image, range, window, end, &part))
		return (part.start - start) / CONTENTS_WINDOW * CONTENTS_WINDOW;
	return end - start;
}

/* Count as done what did not change up to the next window in which something did, in this range. */
static void skip_unchanged(struct gmem_contents *contents, const struct gmem_leased_range *range)
{
	struct gmem_vm *vm = contents->image.dirty->vm;
	uint64_t skipped;

	do {
		gmem_lock_take(&vm->lock);
		skipped = count_unchanged(contents, range);
		gmem_lock_drop(&vm->lock);
		contents->transfer->done += skipped;
		move_on(contents, range, skipped);
	} while (skipped && &contents->transfer->memory.all[contents->range] == range);
}

/* Cut the next windows off the memory, up to @most. */
static void take_windows(struct gmem_contents *contents, size_t most)
{
	const struct gmem_leased_memory *memory = &contents->transfer->memory;
	uint64_t left;

	contents->count = 0;
	while (contents->count < most && contents->range < memory->count) {
		const struct gmem_leased_range *range = &memory->all[contents->range];
		struct gmem_contents_window *window = &contents->windows[contents->count];

		if (contents->image.parent) {
			skip_unchanged(contents, range);
			if (&memory->all[contents->range] != range)
				continue;
		}
		left = range->size - contents->looked;
		window->range = range;
		window->done = contents->transfer->done;
		window->offset = contents->looked;
		window->size = left < CONTENTS_WINDOW ? left : CONTENTS_WINDOW;
		contents->count++;
		move_on(contents, range, window->size);
	}
}

/* Forget the windows from @first on: the next look takes them again. */
static void put_back(struct gmem_contents *contents, size_t first)
{
	const struct gmem_contents_window *window = &contents->windows[first];

	contents->range = (size_t)(window->range - contents->transfer->memory.all);
	contents->looked = window->offset;
	contents->transfer->done = window->done;
	contents->count = first;
}

static int look_at_windows(struct gmem_contents *contents)
{
	struct gmem_transfer *transfer = contents->transfer;
	size_t done = gmem_hands_run(&transfer->hands, look_at_piece, contents, contents->count);
	int err = 0;

	/* What was not done, this thread does, which so learns the reason. */
	while (done < contents->count && !err) {
		err = look_at(contents, transfer->hands.all, &contents->windows[done]);
		done += !err;
	}
	if (err)
		put_back(contents, done);
	return err;
}

/* Count what was found in the progress; returns the number of blocks that are to be saved. */
static uint64_t count_blocks(struct gmem_contents *contents)
{
	uint64_t blocks, zero, all = 0;

	for (size_t i = 0; i < contents->count; i++) {
		const struct gmem_contents_window *window = &contents->windows[i];
		uint64_t size = window->size / IMAGE_BLOCK;

		blocks = gmem_bits_count(window->data, 0, size) + gmem_bits_count(window->lost, 0, size);
		zero = contents->image.parent ? gmem_bits_count(window->zero, 0, size) : size - blocks;
		contents->transfer->done += window->size;
		contents->transfer->bytes.zero += zero * IMAGE_BLOCK;
		all += contents->image.parent ? blocks + zero : blocks;
	}
	return all;
}

/* One thread reads what it has found before it has left the caches. */
int gmem_contents_look(struct gmem_contents *contents, bool *ret_any)
{
	size_t most = contents->transfer->hands.count > 1 ? CONTENTS_WINDOWS : 1, looked = 0;
	int err;

	do {
		take_windows(contents, most);
		*ret_any = contents->count != 0;
		err = look_at_windows(contents);
		looked += contents->count;
	} while (count_blocks(contents) == 0 && *ret_any && !err && looked < CONTENTS_WINDOWS);
	/* What was found before is saved first, as one thread does. The next look fails, too. */
	return contents->count ? 0 : err;
}

/* The kind of the first block from *@block on that has one, and where it is; *@block == @end: none has. */
static enum gmem_contents_kind next_kind(const struct gmem_contents_window *window, uint64_t *block,
					 uint64_t end)
{
	uint64_t data = gmem_bits_find(window->data, true, *block, end);
	uint64_t lost = gmem_bits_find(window->lost, true, *block, data);
	uint64_t zero = gmem_bits_find(window->zero, true, *block, lost);

	*block = zero;
	return zero < lost ? CONTENTS_ZERO : lost < data ? CONTENTS_LOST : CONTENTS_DATA;
}

bool gmem_contents_next(const struct gmem_contents *contents, struct gmem_contents_place *place,
			struct gmem_contents_run *ret)
{
	for (; place->window < contents->count; place->window++, place->block = 0) {
		const struct gmem_contents_window *window = &contents->windows[place->window];
		uint64_t end = window->size / IMAGE_BLOCK;
		enum gmem_contents_kind kind = next_kind(window, &place->block, end);
		const uint64_t *bits = kind == CONTENTS_DATA ? window->data
				       : kind == CONTENTS_LOST ? window->lost : window->zero;

		if (place->block == end)
			continue;
		*ret = (struct gmem_contents_run){
			.gpa = window->range->gpa + window->offset + place->block * IMAGE_BLOCK,
			.hva = block_at(window, place->block),
			.blocks = gmem_bits_find(bits, false, place->block, end) - place->block,
			.kind = kind,
		};
		return true;
	}
	return false;
}
