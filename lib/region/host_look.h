/* SPDX-License-Identifier: MIT */
/*
 * host_look: what one call, or one transfer, has learned of host memory.
 *
 * It keeps answers of the kernel that would otherwise be asked for piece by piece: the last
 * mapping, its file, and where userfaultfd is asked for pages that are not there. The memory
 * is in use meanwhile, so that nobody puts another mapping in its place.
 *
 * What cannot be learned, as without /proc, is not assumed either way: each question says so.
 */
#ifndef GMEM_HOST_LOOK_H
#define GMEM_HOST_LOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/part.h"
#include "region/host_mapping.h"

/* What a file has from @from on: nothing up to @start, then something up to @end */
struct gmem_host_data {
	uint64_t from;
	uint64_t start;
	uint64_t end;
};

struct gmem_host_look {
	struct gmem_host_mapping mapping;	/* the last one; end 0: none yet */
	bool is_tried;				/* @mapping is not userfaultfd's */
	bool has_file;				/* @file is that of @mapping: the fd, or -errno */
	int file;
	int hint;				/* an fd that may be of the file, or -1 */
	uint64_t file_size;
	struct gmem_host_data data;		/* of @file, as far as somebody asked */
	bool has_owed;				/* @owed is filled in, or @owed_err is not 0 */
	int owed_err;				/* why nothing is known of userfaultfd */
	struct gmem_part *owed;			/* host addresses */
	size_t owed_count;
};

/* A look that has seen nothing; gmem_host_look_end() ends it. */
#define GMEM_HOST_LOOK { .file = -1, .hint = -1 }

void gmem_host_look_end(struct gmem_host_look *look);
/*
 * Find the mapping at @hva: look->mapping. -ENOENT: nothing is mapped there, and @ret_next is
 * where something is, or UINT64_MAX. Another errno: it cannot be known.
 */
int gmem_host_look_at(struct gmem_host_look *look, uint64_t hva, uint64_t *ret_next);
/*
 * Open the file of look->mapping for reading: look->file and its size, until another mapping is
 * looked at. -errno: it is no file, or cannot be had; of a limit, not for now.
 */
int gmem_host_look_file(struct gmem_host_look *look);
/*
 * Is userfaultfd asked for the page at @hva if it is not there? True also if that cannot be known.
 * Asks for all memory of the process at once, and only once.
 */
bool gmem_host_look_is_owed(struct gmem_host_look *look, uint64_t hva);

#endif
