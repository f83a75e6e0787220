/* SPDX-License-Identifier: MIT */
/*
 * collect: what others have noted of changes, brought into the marks of the VM's pages.
 *
 * KVM notes what guests write, in logs and rings, and peers of an export what they write. All
 * of it goes into the marks (region/dirty_pages.h), whoever asks, so trackers lose nothing to
 * each other.
 */
#ifndef GMEM_COLLECT_H
#define GMEM_COLLECT_H

#include <stdint.h>

struct gmem_vm;

/* Somebody else who notes what is written. The functions are called with dirty_lock. */
struct gmem_dirty_source {
	struct gmem_dirty_source *next;
	/* There is a first tracker: begin to note; there is none any more: end it. */
	void (*begin)(struct gmem_dirty_source *source);
	void (*end)(struct gmem_dirty_source *source);
	/* Mark what was noted. Cannot fail: what is not known counts as written. */
	void (*collect)(struct gmem_dirty_source *source);
};

/* If there is a tracker, @begin is called. */
void gmem_vm_add_dirty_source(struct gmem_vm *vm, struct gmem_dirty_source *source);
/* Its functions are not called any more, and none is under way. */
void gmem_vm_remove_dirty_source(struct gmem_vm *vm, struct gmem_dirty_source *source);
/* Call @begin of all, and of those that come, or @end of all. */
void gmem_vm_begin_dirty_sources(struct gmem_vm *vm);
void gmem_vm_end_dirty_sources(struct gmem_vm *vm);

/*
 * Mark all that was noted until now. With the hook lock. On failure nothing is lost: what was
 * read is marked.
 */
int gmem_vm_collect_dirty(struct gmem_vm *vm);

#endif
