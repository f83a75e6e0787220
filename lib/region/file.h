/* SPDX-License-Identifier: MIT */
/*
 * file: one guest_memfd, its mappings, and which parts of it are in memslots.
 *
 * A file handle is shared by its creator and by every region that has part of it.
 * It is freed when the last of them lets go.
 */
#ifndef GMEM_FILE_H
#define GMEM_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/lock.h"
#include "base/part.h"
#include "base/range_map.h"
#include "caps/plan.h"
#include "os/sys.h"
#include "region/file_map.h"
#include "region/memory_users.h"
#include "region/vm_identity.h"

struct gmem_file {
	int fd;
	unsigned int users;		/* atomic: its creator, and every region */
	uint64_t size;
	uint64_t create_flags;
	struct gmem_file_maps maps;
	struct gmem_lock lock;		/* rank FILE: vm, bound, memory_users, punched */
	struct gmem_vm_identity *vm;	/* the VM it belongs to; NULL: not known yet */
	struct gmem_vm_file known;	/* on the list of @vm; what is known, not said */
	struct gmem_range_map bound;	/* offsets that are in a memslot */
	struct gmem_memory_users memory_users;	/* by offset */
	struct gmem_part punched;	/* from the first to the last offset that the user punched a hole at */
	uint64_t punches;		/* atomic: how often; 0: never */
};

/* gmem_file_new() for the VM of @vm, which the file shares */
int gmem_file_new_of_vm(struct gmem_vm_identity *vm, uint64_t size, const struct gmem_plan *plan,
			struct gmem_file **ret);

/*
 * -EXDEV if the file belongs to another VM. Known once, it costs nothing: the file then
 * shares @vm.
 */
int gmem_file_check_vm(struct gmem_file *file, struct gmem_vm_identity *vm);
/* Note that KVM has taken a memslot with the file: it is of the VM that it was checked for. */
static inline void gmem_file_prove_vm(struct gmem_file *file)
{
	gmem_vm_identity_prove_file(&file->known);
}

/* Whether @facts can be those of a guest_memfd; before Linux 6.19, of any anonymous inode */
bool gmem_file_is_gmemfd(const struct gmem_sys_facts *facts);

/* gmem_file_punch() through a region, which says what its memory is no more */
int gmem_file_punch_region(struct gmem_file *file, uint64_t offset, uint64_t size, uint64_t *ret_done);
/* What was punched, whichever region has it, if anything was since *@seen, which is updated */
bool gmem_file_punched_since(struct gmem_file *file, uint64_t *seen, struct gmem_part *ret);

void gmem_file_ref(struct gmem_file *file);
void gmem_file_unref(struct gmem_file *file);

/* gmem_maps_pin() on the file's mappings */
int gmem_file_pin(struct gmem_file *file, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map);

/* Record that a range is in a memslot: -EEXIST if part of it is already. */
int gmem_file_bind(struct gmem_file *file, struct gmem_range *range);
/* 0, or what gmem_file_bind() would say */
int gmem_file_check_unbound(struct gmem_file *file, uint64_t offset, uint64_t size);
void gmem_file_unbind(struct gmem_file *file, struct gmem_range *range);
/* Put @to in the place of @from. */
void gmem_file_move_bound(struct gmem_file *file, struct gmem_range *from, struct gmem_range *to);
/* Move what is above @offset of @range over to @upper. */
void gmem_file_split_bound(struct gmem_file *file, struct gmem_range *range, uint64_t offset,
			   struct gmem_range *upper);

#endif
