/* SPDX-License-Identifier: MIT */
/*
 * file: one guest_memfd, its mappings, and which parts of it are in memslots.
 *
 * A file handle is shared by its creator and by every region that has part of it.
 * It is freed when the last of them lets go.
 */
#ifndef GMEM_FILE_H
#define GMEM_FILE_H

#include <stdint.h>

#include "base/lock.h"
#include "base/range_map.h"
#include "region/file_map.h"
#include "region/memory_users.h"

struct gmem_file {
	int fd;
	int vm_fd;			/* number of the VM fd it was made with */
	unsigned int users;		/* atomic: its creator, and every region */
	uint64_t size;
	uint64_t create_flags;
	struct gmem_file_maps maps;
	struct gmem_lock lock;		/* rank FILE: bound, memory_users */
	struct gmem_range_map bound;	/* offsets that are in a memslot */
	struct gmem_memory_users memory_users;	/* by offset */
};

/* -EXDEV if the file belongs to another VM */
int gmem_file_check_vm(const struct gmem_file *file, int vm_fd);

void gmem_file_ref(struct gmem_file *file);
void gmem_file_unref(struct gmem_file *file);

/* gmem_maps_pin() on the file's mappings */
int gmem_file_pin(struct gmem_file *file, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map);

/* Record that a range is in a memslot: -EEXIST if part of it is already. */
int gmem_file_bind(struct gmem_file *file, struct gmem_range *range);
void gmem_file_unbind(struct gmem_file *file, struct gmem_range *range);
/* Put @to in the place of @from. */
void gmem_file_move_bound(struct gmem_file *file, struct gmem_range *from, struct gmem_range *to);
/* Move what is above @offset of @range over to @upper. */
void gmem_file_split_bound(struct gmem_file *file, struct gmem_range *range, uint64_t offset,
			   struct gmem_range *upper);

#endif
