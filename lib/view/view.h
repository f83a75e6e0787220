/* SPDX-License-Identifier: MIT */
/*
 * view: a thread's look at guest memory, and the wait for those who look.
 *
 * A reader makes its epoch odd, then loads the VM's table; whoever changes the
 * layout publishes a new table, then waits until each epoch that was odd has
 * changed.
 */
#ifndef GMEM_VIEW_H
#define GMEM_VIEW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "gmem.h"
#include "base/macros.h"
#include "region/vm_core.h"

struct gmem_reader {
	struct gmem_view view;
	struct gmem_vm *vm;
	struct gmem_reader *next;
	bool fast;	/* the fault handler recovers from pages that cannot be reached */
};

static inline bool gmem_view_is_fast(const struct gmem_view *view)
{
	return GMEM_CONTAINER_OF(view, struct gmem_reader, view)->fast;
}

/* Readers that begin from now on see @table; NULL if there have been none. */
void gmem_vm_publish(struct gmem_vm *vm, const struct gmem_table *table);
/* Wait until no reader holds an older table. */
void gmem_vm_wait_for_views(struct gmem_vm *vm);
/* Free the table of a VM that has no views any more. */
void gmem_vm_drop_table(struct gmem_vm *vm);

/*
 * The memory at @gpa, as much of @size as is contiguous for the host; -errno and its
 * sentence. Between gmem_view_begin() and gmem_view_end().
 */
int gmem_view_contiguous(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			 struct iovec *ret);
/* The same, to write there: -EROFS where the memory may only be read */
int gmem_view_contiguous_to_write(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				  struct iovec *ret);

#endif
