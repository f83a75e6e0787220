/* SPDX-License-Identifier: MIT */
#include "region/vm_core.h"

#include "base/error.h"

void gmem_vm_begin(struct gmem_vm *vm)
{
	gmem_lock_init(&vm->hook_lock, GMEM_RANK_HOOKS);
	gmem_lock_init(&vm->change_lock, GMEM_RANK_CHANGE);
	gmem_lock_init(&vm->lock, GMEM_RANK_VM);
	gmem_lock_init(&vm->views_lock, GMEM_RANK_VIEWS);
	gmem_condition_init(&vm->released);
}

void gmem_vm_end(struct gmem_vm *vm)
{
	pthread_cond_destroy(&vm->released);
	gmem_lock_destroy(&vm->views_lock);
	gmem_lock_destroy(&vm->lock);
	gmem_lock_destroy(&vm->change_lock);
	gmem_lock_destroy(&vm->hook_lock);
}

void gmem_vm_add_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook)
{
	gmem_lock_take(&vm->hook_lock);
	hook->next = vm->change_hooks;
	vm->change_hooks = hook;
	gmem_lock_drop(&vm->hook_lock);
}

void gmem_vm_remove_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook)
{
	struct gmem_change_hook **link;

	gmem_lock_take(&vm->hook_lock);
	for (link = &vm->change_hooks; *link != hook; link = &(*link)->next)
		;
	*link = hook->next;
	gmem_lock_drop(&vm->hook_lock);
}

/* The log may call libgmem with other VMs, and fail there. */
int gmem_vm_log_error(struct gmem_vm *vm, int err)
{
	struct gmem_locks_aside aside;
	struct gmem_failure failure;

	if (err >= 0)
		return err;
	gmem_error_check(err);
	if (!vm->log)
		return err;

	gmem_failure_keep(&failure, err);
	gmem_locks_set_aside(&aside);
	vm->log(vm->log_data, err, failure.sentence);
	gmem_locks_restore(&aside);
	return gmem_failure_restore(&failure);
}
