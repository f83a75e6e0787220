/* SPDX-License-Identifier: MIT */
#include "dirty/collect.h"

#include "base/lock.h"
#include "dirty/dirty_log.h"
#include "dirty/dirty_ring.h"
#include "region/region_memory.h"
#include "region/regions.h"
#include "region/vm_core.h"

void gmem_vm_add_dirty_source(struct gmem_vm *vm, struct gmem_dirty_source *source)
{
	gmem_lock_take(&vm->dirty_lock);
	source->next = vm->dirty_sources;
	vm->dirty_sources = source;
	if (vm->dirty_sources_begun)
		source->begin(source);
	gmem_lock_drop(&vm->dirty_lock);
}

void gmem_vm_remove_dirty_source(struct gmem_vm *vm, struct gmem_dirty_source *source)
{
	struct gmem_dirty_source **link = &vm->dirty_sources;

	gmem_lock_take(&vm->dirty_lock);
	while (*link != source)
		link = &(*link)->next;
	*link = source->next;
	gmem_lock_drop(&vm->dirty_lock);
}

void gmem_vm_begin_dirty_sources(struct gmem_vm *vm)
{
	gmem_lock_take(&vm->dirty_lock);
	vm->dirty_sources_begun = true;
	for (struct gmem_dirty_source *at = vm->dirty_sources; at; at = at->next)
		at->begin(at);
	gmem_lock_drop(&vm->dirty_lock);
}

void gmem_vm_end_dirty_sources(struct gmem_vm *vm)
{
	gmem_lock_take(&vm->dirty_lock);
	vm->dirty_sources_begun = false;
	for (struct gmem_dirty_source *at = vm->dirty_sources; at; at = at->next)
		at->end(at);
	gmem_lock_drop(&vm->dirty_lock);
}

static void mark_punched(struct gmem_vm *vm)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);

	while (gmem_regions_walk_whole(&at))
		if (at.region)
			gmem_region_mark_punched(at.region);
}

int gmem_vm_collect_dirty(struct gmem_vm *vm)
{
	int err;

	mark_punched(vm);
	err = gmem_dirty_logs_mark(vm);
	if (!err)
		err = gmem_dirty_rings_mark(vm);
	gmem_lock_take(&vm->dirty_lock);
	for (struct gmem_dirty_source *source = vm->dirty_sources; source; source = source->next)
		source->collect(source);
	gmem_lock_drop(&vm->dirty_lock);
	return err;
}
