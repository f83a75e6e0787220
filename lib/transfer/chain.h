/* SPDX-License-Identifier: MIT */
/*
 * chain: the images that are read as one, and which of them comes next.
 *
 * They are in files of their own, or follow each other in one, or both. Each is based on the one
 * before it, which its head says. Where the files can be read twice, all heads are looked at
 * before anything else is.
 */
#ifndef GMEM_CHAIN_H
#define GMEM_CHAIN_H

#include <stdbool.h>
#include <stdint.h>

#include "transfer/image.h"

struct gmem_io_params;
struct gmem_transfer_opts;

struct gmem_chain {
	struct gmem_io_params *files;	/* the oldest first */
	uint32_t count, file;		/* all of them, and the one that is read */
	bool may_begin_inside;		/* the first image may be based on one that is not given */

	/* The image before the one that comes next; none at first */
	bool has_before;
	uint64_t id, generation;
	size_t entered;			/* how many were */

	/* The look at all heads */
	uint64_t at;			/* offset in the file of the next record */
	uint64_t image;			/* and of the image that it is in */
	uint64_t number;		/* that the record should have */
	bool has_looked;
	uint64_t *ends;			/* of the images seen, but for the last */
	size_t end_count, end_room;
};

/* Which images there are. On failure, too, call gmem_chain_free(). */
int gmem_chain_new(struct gmem_chain *chain, const struct gmem_transfer_opts *opts, int fd);
void gmem_chain_free(struct gmem_chain *chain);
/* Go back to the first image. */
void gmem_chain_rewind(struct gmem_chain *chain);
/* The file that is read */
const struct gmem_io_params *gmem_chain_file(const struct gmem_chain *chain);

/*
 * An image begins with @origin: it must be based on the one before it. Then that is the one
 * before the next.
 */
int gmem_chain_enter(struct gmem_chain *chain, const struct gmem_image_origin *origin);
/*
 * Where an image ends of which that is known, UINT64_MAX otherwise: @number of them come before it.
 */
uint64_t gmem_chain_end(const struct gmem_chain *chain, size_t number);
/* Is the image with @origin the last one? */
bool gmem_chain_is_last(const struct gmem_chain *chain, const struct gmem_image_origin *origin);

/*
 * Look at some heads, with room for a block at @block: 0 and *@ret_all when at all of them. The
 * last image is then in the file that is read, at chain->image.
 */
int gmem_chain_look(struct gmem_chain *chain, void *block, bool *ret_all);

#endif
