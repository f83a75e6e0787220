/* SPDX-License-Identifier: MIT */
/*
 * image_layout: which memory an image says that it has, and whether the target has it, too.
 *
 * An image begins with lists: its regions, the regions whose contents are elsewhere, and the
 * private ranges, which are not in the image either. Each entry is checked as it arrives, and
 * what no entry can tell alone when the lists are complete.
 */
#ifndef GMEM_IMAGE_LAYOUT_H
#define GMEM_IMAGE_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/part.h"
#include "transfer/image.h"

struct gmem_image_region;
struct gmem_transfer;

/*
 * Zeroed, and with the two counts of the head and whether there is a target to compare with, it
 * is ready for the first list.
 */
struct gmem_image_layout {
	uint64_t region_count, private_count;	/* according to the head */
	bool has_target;
	struct image_region *regions;
	size_t regions_read, region_room;
	struct image_elsewhere *elsewhere;
	size_t elsewhere_read, elsewhere_room;
	struct image_range *privates;
	uint64_t privates_read;
	size_t private_ranges, private_room;	/* entries in privates: ranges that touch are one */
	uint64_t checked;			/* the target has the image's memory below this gpa */
	bool is_complete;			/* all lists are read, and compared with the target */
};

/* Use a table of kind REGIONS, ELSEWHERE or PRIVATE. */
int gmem_image_layout_read(struct gmem_transfer *transfer, struct gmem_image_layout *layout,
			   const struct gmem_image_table *table);
/*
 * @number: of the record with the first table that is no list. Takes its time in steps: unless it
 * fails, call it again while it does not set is_complete.
 */
int gmem_image_layout_end(struct gmem_transfer *transfer, struct gmem_image_layout *layout,
			  uint64_t number);
void gmem_image_layout_free(struct gmem_image_layout *layout);

/* Find the next shared range of the image's memory in [@start, @last]; false if there is none. */
bool gmem_image_layout_next_shared(const struct gmem_image_layout *layout, uint64_t start,
				   uint64_t last, struct gmem_part *ret);
/* Is the whole range in the image's regions and not private? */
bool gmem_image_layout_is_shared(const struct gmem_image_layout *layout, uint64_t gpa, uint64_t size);

/* List all regions, with contents and without, in the order of their addresses. */
void gmem_image_layout_list(const struct gmem_image_layout *layout, struct gmem_image_region *ret);

/* 0, or -EBADMSG if it is no range, or begins below @after; @number: of the record */
int gmem_image_check_range(uint64_t number, uint64_t gpa, uint64_t size, uint64_t after);

#endif
