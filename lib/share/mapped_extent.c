/* SPDX-License-Identifier: MIT */
#include "share/mapped_extent.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/bits.h"
#include "base/error.h"
#include "base/limit.h"
#include "os/sys.h"
#include "region/file_map.h"
#include "region/host_memory.h"
#include "region/page_states.h"

/* The lookup table has 4 KiB for each GiB in use, and as much for each 512 GiB. */
#define TABLE_ARRAY ((uint64_t)4096)

uint64_t gmem_mapped_extent_cost(uint64_t size)
{
	uint64_t bits = gmem_bits_words(size / gmem_sys_page_size()) * sizeof(uint64_t);

	return sizeof(struct gmem_mapped_extent) + bits +
	       ((size >> 30) + (size >> 39) + 4) * TABLE_ARRAY;
}

static int prot_of(const struct gmem_mapped_extent *extent)
{
	return PROT_READ | (extent->rights & GMEM_RIGHT_WRITE ? PROT_WRITE : 0);
}

static int map(struct gmem_mapped_extent *extent, int fd)
{
	struct gmem_region *region = &extent->region;
	uint64_t size = region->gpa.size;
	void *hva;
	int err;

	/* Read-only at first, if it will be so in the end: more cannot be had later either. */
	err = gmem_sys_mmap(NULL, size, prot_of(extent), MAP_SHARED | MAP_NORESERVE, fd,
			    region->file_offset, &hva);
	if (err)
		return gmem_fail_to_map(err, size, true, "0x%" PRIx64 " bytes of a file cannot be mapped", size);

	region->hva = (struct gmem_range){ .start = (uintptr_t)hva, .size = size };
	gmem_maps_pin_mapped(hva, size, &region->pin);
	return 0;
}

int gmem_mapped_extent_new(struct gmem_vm *vm, const struct gmem_message *message, int fd,
			   struct gmem_mapped_extent **ret)
{
	struct gmem_mapped_extent *extent = malloc(sizeof(*extent));
	int err;

	if (!extent)
		return gmem_fail(-ENOMEM, "no memory for an extent");

	*extent = (struct gmem_mapped_extent){
		.region = {
			.vm = vm,
			.gpa = { .start = message->gpa, .size = message->size },
			.file_offset = message->offset,
			.backing = GMEM_BACKING_HOST,	/* for this process it is a mapping */
			.read_only = !(message->rights & GMEM_RIGHT_WRITE),
		},
		.id = { .start = message->id, .size = 1 },
		.file_size = message->file_size,
		.page_size = message->page_size,
		.rights = message->rights & ~GMEM_WIRE_WITHHELD,
		.backing = message->backing,
		.runs = 1,
	};
	err = gmem_states_new(&extent->region.states, message->size, 1);
	if (!err)
		err = map(extent, fd);
	if (err) {
		gmem_states_free(&extent->region.states);
		free(extent);
		return err;
	}
	*ret = extent;
	return 0;
}

int gmem_mapped_extent_prepare(struct gmem_mapped_extent *extent, const struct gmem_message *message)
{
	const struct gmem_host_params no_options = { .flags = 0 };
	int err = gmem_host_memory_advise(&no_options, &extent->region.pin);

	if (!err && message->rights & GMEM_WIRE_WITHHELD)
		err = gmem_mapped_extent_protect(extent, 0, message->size, false);
	return err;
}

void gmem_mapped_extent_free(struct gmem_mapped_extent *extent)
{
	(void)gmem_maps_unpin(&extent->region.pin);
	gmem_states_free(&extent->region.states);
	free(extent);
}

int gmem_mapped_extent_unmap_some(struct gmem_mapped_extent *extent, uint64_t size)
{
	uint64_t left = extent->region.pin.hva.size;
	int ret = gmem_maps_unpin_some(&extent->region.pin, size);

	if (!ret)
		ret = gmem_maps_unpin(&extent->region.pin);
	if (ret < 0)
		return gmem_fail(ret, "0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " stay mapped: %s",
				 left < size ? left : size, extent->region.gpa.start, gmem_errno_name(ret));
	return ret;
}

static bool is_withheld(const struct gmem_mapped_extent *extent, uint64_t offset)
{
	uint64_t page = gmem_sys_page_size();

	return gmem_states_count(&extent->region.states, GMEM_PAGE_PRIVATE, offset, page) != 0;
}

/* Tell whether two runs meet at @offset. */
static bool border(const struct gmem_mapped_extent *extent, uint64_t offset)
{
	if (offset == 0 || offset == extent->region.gpa.size)
		return false;
	return is_withheld(extent, offset - gmem_sys_page_size()) != is_withheld(extent, offset);
}

/* Tell whether two runs will meet at @offset, an end of a range that becomes granted or withheld. */
static bool border_after(const struct gmem_mapped_extent *extent, uint64_t offset, uint64_t beyond,
			 bool granted)
{
	return offset && offset != extent->region.gpa.size && is_withheld(extent, beyond) == granted;
}

unsigned int gmem_mapped_extent_growth(const struct gmem_mapped_extent *extent, uint64_t offset,
				       uint64_t size, bool granted)
{
	uint64_t end = offset + size;
	unsigned int before, after;

	before = border(extent, offset);
	before += border(extent, end);
	after = border_after(extent, offset, offset - gmem_sys_page_size(), granted);
	after += border_after(extent, end, end, granted);
	return after > before ? after - before : 0;
}

void gmem_mapped_extent_note(struct gmem_mapped_extent *extent, uint64_t offset, uint64_t size,
			     bool granted)
{
	struct gmem_states *states = &extent->region.states;
	struct gmem_states_walk at = GMEM_STATES_WALK(states, GMEM_PAGE_PRIVATE, granted, offset, size);
	uint64_t borders = 0, end = offset + size;

	/* Inside there will be none. */
	while (gmem_states_walk(&at)) {
		borders += at.offset > offset;
		borders += at.offset + at.size < end;
	}
	borders += border(extent, offset);
	borders += border(extent, end);

	gmem_states_set(states, GMEM_PAGE_PRIVATE, offset, size, !granted);
	extent->runs -= borders;
	extent->runs += border(extent, offset);
	extent->runs += border(extent, end);
}

int gmem_mapped_extent_protect(const struct gmem_mapped_extent *extent, uint64_t offset,
			       uint64_t size, bool granted)
{
	void *hva = (void *)(uintptr_t)(extent->region.hva.start + offset);
	int err = gmem_sys_mprotect(hva, size, granted ? prot_of(extent) : PROT_NONE);

	if (err)
		return gmem_fail(err, "0x%" PRIx64 " bytes at gpa 0x%" PRIx64
				 " cannot be made %saccessible: %s", size,
				 extent->region.gpa.start + offset, granted ? "" : "in",
				 gmem_errno_name(err));
	/* The pages have no users here any more: give back the page tables. A hint. */
	if (!granted)
		gmem_sys_madvise(hva, size, MADV_DONTNEED);
	return 0;
}
