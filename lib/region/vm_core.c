/* SPDX-License-Identifier: MIT */
#include "region/vm_core.h"

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "os/sys.h"

void gmem_vm_begin(struct gmem_vm *vm)
{
	vm->users = 1;
	vm->memory_keepers = 1;
	gmem_lock_init(&vm->hook_lock, GMEM_RANK_HOOKS);
	gmem_lock_init(&vm->change_lock, GMEM_RANK_CHANGE);
	gmem_lock_init(&vm->dirty_lock, GMEM_RANK_DIRTY);
	gmem_lock_init(&vm->lock, GMEM_RANK_VM);
	gmem_lock_init(&vm->views_lock, GMEM_RANK_VIEWS);
	gmem_condition_init(&vm->hook_is_idle);
	gmem_condition_init(&vm->change_ended);
}

void gmem_vm_end(struct gmem_vm *vm)
{
	pthread_cond_destroy(&vm->change_ended);
	pthread_cond_destroy(&vm->hook_is_idle);
	gmem_lock_destroy(&vm->views_lock);
	gmem_lock_destroy(&vm->lock);
	gmem_lock_destroy(&vm->change_lock);
	gmem_lock_destroy(&vm->dirty_lock);
	gmem_lock_destroy(&vm->hook_lock);
}

struct gmem_vm *gmem_vm_ref(struct gmem_vm *vm)
{
	__atomic_add_fetch(&vm->users, 1, __ATOMIC_RELAXED);
	return vm;
}

void gmem_vm_unref(struct gmem_vm *vm)
{
	/* Pairs with itself: the last user sees what the others did. */
	if (__atomic_sub_fetch(&vm->users, 1, __ATOMIC_ACQ_REL) == 0)
		vm->dispose(vm);
}

void gmem_vm_keep_memory(struct gmem_vm *vm)
{
	__atomic_add_fetch(&vm->memory_keepers, 1, __ATOMIC_RELAXED);
}

void gmem_vm_drop_memory(struct gmem_vm *vm)
{
	/* Pairs with itself, as above. */
	if (__atomic_sub_fetch(&vm->memory_keepers, 1, __ATOMIC_ACQ_REL) == 0)
		vm->release_memory(vm);
}

int gmem_vm_check_alive(const struct gmem_vm *vm)
{
	if (__atomic_load_n(&vm->is_over, __ATOMIC_ACQUIRE))
		return gmem_fail(-ESTALE, "the VM's handle was freed: what was made of it can only be freed, too");
	return 0;
}

int gmem_vm_enter(struct gmem_vm *vm)
{
	uint32_t keepers = __atomic_load_n(&vm->memory_keepers, __ATOMIC_RELAXED);
	int err;

	/* What has been released does not come back. */
	while (keepers && !__atomic_compare_exchange_n(&vm->memory_keepers, &keepers, keepers + 1, true,
						       __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		;
	err = gmem_vm_check_alive(vm);
	if (err && keepers)
		gmem_vm_drop_memory(vm);
	return err;
}

int gmem_vm_leave(struct gmem_vm *vm, int result)
{
	int err = result < 0 ? gmem_vm_check_alive(vm) : 0;

	gmem_vm_drop_memory(vm);
	return err ? err : result;
}

static bool is_changer(const struct gmem_vm *vm)
{
	/* Another thread's value, whichever it is, is not this one's. */
	return __atomic_load_n(&vm->changer, __ATOMIC_RELAXED) == (uintptr_t)pthread_self();
}

/*
 * Make it this thread's turn. Both sides are sequentially consistent: either the one who ends
 * sees that somebody waits, or the one who waits sees that it is nobody's turn.
 */
static bool take_turn(struct gmem_vm *vm)
{
	bool is_changing = false;

	return __atomic_compare_exchange_n(&vm->is_changing, &is_changing, true, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_RELAXED);
}

/* A lock cannot be waited for in time, so whose turn it is comes before it. */
static int wait_for_change(struct gmem_vm *vm, struct gmem_wait_budget *budget)
{
	uint64_t start = gmem_sys_now(), end = gmem_wait_end(budget, start);
	bool is_mine;

	gmem_lock_take(&vm->lock);
	__atomic_add_fetch(&vm->change_waits, 1, __ATOMIC_SEQ_CST);
	while (!(is_mine = take_turn(vm)) && gmem_sys_now() < end)
		gmem_condition_wait_until(&vm->change_ended, &vm->lock, end);
	__atomic_sub_fetch(&vm->change_waits, 1, __ATOMIC_RELAXED);
	gmem_lock_drop(&vm->lock);
	gmem_wait_spend(budget, start, GMEM_WAIT_CHANGE);
	return is_mine ? 0 : gmem_fail(-EBUSY, "another change of the layout was to be waited for %" PRIu32
				       " ms, and has not ended", budget->wait_ms);
}

int gmem_vm_begin_change(struct gmem_vm *vm, struct gmem_wait_budget *budget)
{
	int err;

	if (is_changer(vm))
		return gmem_fail(-EDEADLK, "this thread is in a change of the layout already: "
				 "a callback cannot begin another");
	err = take_turn(vm) ? 0 : wait_for_change(vm, budget);
	if (err)
		return err;

	gmem_lock_take(&vm->hook_lock);
	__atomic_store_n(&vm->changer, (uintptr_t)pthread_self(), __ATOMIC_RELAXED);
	return 0;
}

void gmem_vm_end_change(struct gmem_vm *vm)
{
	__atomic_store_n(&vm->changer, 0, __ATOMIC_RELAXED);
	gmem_lock_drop(&vm->hook_lock);
	__atomic_store_n(&vm->is_changing, false, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&vm->change_waits, __ATOMIC_SEQ_CST))
		return;
	gmem_lock_take(&vm->lock);
	pthread_cond_signal(&vm->change_ended);
	gmem_lock_drop(&vm->lock);
}

int gmem_vm_add_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	int err = gmem_vm_begin_change(vm, &budget);

	if (err)
		return err;
	gmem_lock_take(&vm->lock);
	hook->next = vm->change_hooks;
	__atomic_store_n(&vm->change_hooks, hook, __ATOMIC_RELAXED);
	gmem_lock_drop(&vm->lock);
	gmem_vm_end_change(vm);
	return 0;
}

void gmem_vm_remove_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook)
{
	struct gmem_change_hook **link;

	gmem_lock_take(&vm->lock);
	for (link = &vm->change_hooks; *link != hook; link = &(*link)->next)
		;
	__atomic_store_n(link, hook->next, __ATOMIC_RELAXED);
	/* Inside of a callback the thread would wait for itself. */
	while (vm->busy_hook == hook && !is_changer(vm))
		gmem_condition_wait(&vm->hook_is_idle, &vm->lock);
	gmem_lock_drop(&vm->lock);
}

/*
 * The next hook that this round has not called yet; the one before is idle. From the start of
 * the list each time: the one before may be off it.
 */
static struct gmem_change_hook *next_hook(struct gmem_vm *vm, uint64_t round)
{
	struct gmem_change_hook *hook;

	gmem_lock_take(&vm->lock);
	if (vm->busy_hook)
		pthread_cond_broadcast(&vm->hook_is_idle);
	for (hook = vm->change_hooks; hook && hook->called == round; hook = hook->next)
		;
	if (hook)
		hook->called = round;
	vm->busy_hook = hook;
	gmem_lock_drop(&vm->lock);
	return hook;
}

static void end_round(struct gmem_vm *vm)
{
	gmem_lock_take(&vm->lock);
	vm->busy_hook = NULL;
	pthread_cond_broadcast(&vm->hook_is_idle);
	gmem_lock_drop(&vm->lock);
}

/* None comes while this change has the hook lock. One that goes meanwhile need not be called. */
static bool has_hooks(const struct gmem_vm *vm)
{
	return __atomic_load_n(&vm->change_hooks, __ATOMIC_RELAXED);
}

int gmem_vm_ask_change_hooks(struct gmem_vm *vm, const struct gmem_step *steps, size_t count,
			     struct gmem_wait_budget *budget)
{
	uint64_t round = ++vm->hook_rounds;
	struct gmem_change_hook *hook;
	int err = 0;

	if (!has_hooks(vm))
		return 0;
	while (!err && (hook = next_hook(vm, round)))
		err = hook->before(hook, steps, count, budget);
	if (err)
		end_round(vm);
	return err;
}

void gmem_vm_tell_change_hooks(struct gmem_vm *vm)
{
	uint64_t round = ++vm->hook_rounds;
	struct gmem_change_hook *hook;

	if (!has_hooks(vm))
		return;
	while ((hook = next_hook(vm, round)))
		hook->after(hook);
}

/* The log may call libgmem with other VMs, and fail there. */
int gmem_vm_log_error(struct gmem_vm *vm, int err)
{
	struct gmem_locks_aside aside;
	struct gmem_failure failure;
	gmem_log_fn log;

	if (err >= 0)
		return err;
	gmem_error_check(err);
	log = __atomic_load_n(&vm->log, __ATOMIC_RELAXED);
	if (!log)
		return err;

	gmem_failure_keep(&failure, err);
	gmem_locks_set_aside(&aside);
	log(vm->log_data, err, failure.sentence);
	gmem_locks_restore(&aside);
	return gmem_failure_restore(&failure);
}
