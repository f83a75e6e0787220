/* SPDX-License-Identifier: MIT */
/*
 * image_unit: a MiB of an image, while it is filled with records.
 *
 * What can be put into it is asked for first; what there is no room for goes into the next unit.
 * A unit without bytes only counts, so that it can be known where the next one begins.
 *
 * In version 1 a list and what is lost are records, complete at once, and a record of data is
 * open while runs are added. In version 2 an open record takes all of it, and the end, too.
 */
#ifndef GMEM_IMAGE_UNIT_H
#define GMEM_IMAGE_UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transfer/image.h"

struct gmem_image_unit {
	char *bytes;			/* NULL: what would be in it is only counted */
	uint64_t used;			/* bytes of complete records */
	uint64_t id, number;		/* of the image, and of the next record */
	uint32_t version;

	bool is_open;			/* a record follows that is not complete */
	uint64_t filled;		/* its pages with contents */
	uint32_t checksum;		/* of them: the user's to keep */
	uint64_t tables;		/* version 2: bytes of its beginning and its tables */
	uint32_t table_count;
	uint64_t table;			/* where the table of runs is that can be added to; 0: none */
	uint64_t base;			/* from which its runs are counted */
	uint32_t run_count;
	uint32_t run_end;		/* first page behind the last run */
	uint32_t run_pages;
	bool run_is_zero;
};

/* An empty unit behind @before */
struct gmem_image_unit gmem_image_unit_after(const struct gmem_image_unit *before, char *bytes);

void gmem_image_unit_put_head(struct gmem_image_unit *unit, const struct gmem_image_origin *origin);
/*
 * Begin a list of @count entries: returns how many there is room for, at *@ret; 0: the unit is
 * full. When they are there, end the list.
 */
size_t gmem_image_unit_begin_list(struct gmem_image_unit *unit, enum image_kind kind, size_t count,
				  size_t entry_size, void **ret);
void gmem_image_unit_end_list(struct gmem_image_unit *unit, size_t bytes);

/* Returns how many pages from @gpa on there is room for; 0: the unit is full. */
uint64_t gmem_image_unit_room(struct gmem_image_unit *unit, uint64_t gpa, bool is_zero);
/* Where the contents of the next page go */
char *gmem_image_unit_next_page(const struct gmem_image_unit *unit);
/* Add pages for which there is room, and whose contents are in their place already. */
void gmem_image_unit_add(struct gmem_image_unit *unit, uint64_t gpa, uint64_t pages, bool is_zero);
/* Add that memory is lost; false: the unit is full. */
bool gmem_image_unit_add_lost(struct gmem_image_unit *unit, uint64_t gpa, uint64_t size);

/* Complete all records but the last one, which gets the end; false: the unit is full. */
bool gmem_image_unit_close(struct gmem_image_unit *unit);
/*
 * Then add the end of an image with @pages and @checksums in its complete records. @fills_unit:
 * pad it, for readers of whole units.
 */
void gmem_image_unit_put_end(struct gmem_image_unit *unit, uint64_t pages, uint32_t checksums,
			     bool fills_unit);

#endif
