/* SPDX-License-Identifier: MIT */
#include "region/host_look.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "base/limit.h"
#include "os/sys.h"

/* File descriptors of the process that are looked at for a mapping's file */
#define MAX_FDS 4096

/* ---- the mapping ---- */

static void forget_file(struct gmem_host_look *look)
{
	if (look->has_file && look->file >= 0)
		gmem_sys_close(look->file);
	look->has_file = false;
	look->file = -1;
	look->data = (struct gmem_host_data){ 0 };
}

void gmem_host_look_end(struct gmem_host_look *look)
{
	forget_file(look);
	free(look->owed);
	*look = (struct gmem_host_look)GMEM_HOST_LOOK;
}

static int keep_first(void *data, const struct gmem_host_mapping *mapping)
{
	*(struct gmem_host_mapping *)data = *mapping;
	return 1;
}

/* The first mapping that ends above @hva; 0: there is none */
static int find_first(uint64_t hva, struct gmem_host_mapping *ret)
{
	const void *start = (const void *)(uintptr_t)hva;
	int found = gmem_host_mappings(start, UINT64_MAX - hva, false, keep_first, ret);

	/* Before Linux 6.11, of memory that is locked, a device's or hugetlb's */
	if (found > 0 && ret->start <= hva && !ret->page_size)
		found = gmem_host_mappings(start, 1, true, keep_first, ret);
	return found == -ENOENT ? -ENODATA : found;
}

int gmem_host_look_at(struct gmem_host_look *look, uint64_t hva, uint64_t *ret_next)
{
	struct gmem_host_mapping first;
	int found;

	if (hva >= look->mapping.start && hva < look->mapping.end)
		return 0;

	found = find_first(hva, &first);
	if (found < 0)
		return found;
	if (!found || first.start > hva) {
		*ret_next = found ? first.start : UINT64_MAX;
		return -ENOENT;
	}

	forget_file(look);
	look->mapping = first;
	look->is_tried = false;
	return 0;
}

/* ---- its file ---- */

static bool is_file_of(const struct gmem_host_mapping *mapping, int fd, uint64_t *ret_size)
{
	struct gmem_sys_facts facts;

	if (gmem_sys_facts(fd, &facts) || !facts.is_regular || facts.inode != mapping->inode ||
	    facts.device != mapping->device)
		return false;
	*ret_size = facts.size;
	return true;
}

/* An fd of our own, with an offset of its own; or -errno. @fd may be anything by now. */
static int open_again(const struct gmem_host_mapping *mapping, int fd, uint64_t *ret_size)
{
	int own;

	if (!is_file_of(mapping, fd, ret_size))
		return -ENOENT;
	own = gmem_sys_reopen(fd, O_RDONLY);
	if (own >= 0 && !is_file_of(mapping, own, ret_size)) {
		gmem_sys_close(own);
		own = -ENOENT;
	}
	return own;
}

static void note_limit(int err, int *limit)
{
	if (!*limit && gmem_is_about_limit(err))
		*limit = err;
}

/*
 * Privileged processes can open what they map. Others mostly have an fd of it still. A limit that
 * one way met is told unless another way leads there: there may be a file.
 */
static int find_file(const struct gmem_host_mapping *mapping, int hint, uint64_t *ret_size)
{
	int fd, limit = 0, own = hint < 0 ? -ENOENT : open_again(mapping, hint, ret_size);

	if (own >= 0)
		return own;
	note_limit(own, &limit);
	fd = gmem_sys_open_mapped(mapping->start, mapping->end);
	note_limit(fd, &limit);
	if (fd >= 0) {
		own = open_again(mapping, fd, ret_size);
		gmem_sys_close(fd);
		note_limit(own, &limit);
	}
	for (fd = mapping->flags & GMEM_MAPPING_NAMELESS ? MAX_FDS : 0; own < 0 && fd < MAX_FDS; fd++) {
		own = open_again(mapping, fd, ret_size);
		note_limit(own, &limit);
	}
	return own < 0 && limit ? limit : own;
}

int gmem_host_look_file(struct gmem_host_look *look)
{
	if (!look->has_file) {
		look->file = look->mapping.flags & GMEM_MAPPING_FILE
				     ? find_file(&look->mapping, look->hint, &look->file_size) : -ENOENT;
		/* A limit may be out of the way the next time. */
		look->has_file = !gmem_is_about_limit(look->file);
	}
	return look->file < 0 ? look->file : 0;
}

/* ---- userfaultfd ---- */

static int keep_owed(void *data, const struct gmem_host_mapping *mapping)
{
	struct gmem_host_look *look = data;
	struct gmem_part *more;

	if (!(mapping->known & GMEM_MAPPING_UFFD_MISSING))
		return -ENODATA;
	if (!(mapping->flags & GMEM_MAPPING_UFFD_MISSING))
		return 0;

	/* The room is the count rounded up to a power of two. */
	if (!(look->owed_count & (look->owed_count - 1))) {
		more = realloc(look->owed, (look->owed_count ? 2 * look->owed_count : 1) * sizeof(*more));
		if (!more)
			return -ENOMEM;
		look->owed = more;
	}
	look->owed[look->owed_count++] = (struct gmem_part){ mapping->start, mapping->end - 1 };
	return 0;
}

bool gmem_host_look_is_owed(struct gmem_host_look *look, uint64_t hva)
{
	if (!look->has_owed) {
		look->owed_err = gmem_host_mappings(NULL, UINT64_MAX, true, keep_owed, look);
		look->has_owed = true;
	}
	if (look->owed_err)
		return true;
	for (size_t i = 0; i < look->owed_count; i++)
		if (hva >= look->owed[i].start && hva <= look->owed[i].last)
			return true;
	return false;
}
