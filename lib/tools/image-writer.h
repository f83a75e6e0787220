/* SPDX-License-Identifier: MIT */
/*
 * image-writer: an image, written from front to back.
 *
 * The order is that of the format: the three lists, what there is by address, the end. What
 * cannot be written ends the program.
 */
#ifndef TOOLS_IMAGE_WRITER_H
#define TOOLS_IMAGE_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image-chain.h"
#include "transfer/image_unit.h"

struct image_writer {
	int fd;
	const char *name;	/* of the file, for messages */
	struct gmem_image_unit unit;	/* that is being filled */
	uint64_t pages;		/* with contents, in all records */
	uint64_t counted;	/* bytes of the unit's records that are in @checksums, with all before */
	uint32_t checksums;
};

void writer_begin(struct image_writer *writer, const struct gmem_image_origin *origin);
/* Entries of one of the lists, of @size bytes each */
void writer_list(struct image_writer *writer, enum image_kind kind, const void *entries, size_t count,
		 size_t size);
/* What is in a range behind all others: contents, zeros, or that it is lost */
void writer_put(struct image_writer *writer, const struct piece *piece);
void writer_end(struct image_writer *writer);

#endif
