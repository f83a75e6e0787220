/* SPDX-License-Identifier: MIT */
#include "state/lease.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/opts.h"
#include "base/part.h"
#include "os/sys.h"
#include "region/file.h"
#include "region/host_file.h"
#include "region/page_states.h"
#include "region/region_memory.h"
#include "region/regions.h"

/*
 * A lease of another handle on the same file does not wake those who wait here, so they
 * look again now and then.
 */
#define LOOK_AGAIN (10 * GMEM_NANOSECONDS_PER_MS)

/* One who waits for a lease to be freed; in vm->lease_waits */
struct gmem_lease_wait {
	struct gmem_lease_wait *next;
	const struct gmem_lease *lease;	/* NULL: another handle's */
	pthread_cond_t freed;
};

static struct gmem_lease *lease_of(struct gmem_interval *at)
{
	return at ? GMEM_CONTAINER_OF(at, struct gmem_lease, at) : NULL;
}

/* ---- where the memory of a range is ---- */

static bool has_memory(const struct gmem_stretch *at)
{
	return at->region && !at->region->is_device;
}

/* Add one to @places, or only count it if there is no room yet. */
static void add_place(struct gmem_memory_places *places, const struct gmem_memory_user *model,
		      struct gmem_file *file, struct gmem_host_file *host_file, uint64_t start,
		      uint64_t size)
{
	size_t index = places->count++;
	struct gmem_memory_user *user;

	if (!places->all)
		return;
	user = &places->all[index];
	*user = *model;
	user->at.start = start;
	user->at.last = start + size - 1;
	user->file = file;
	user->host_file = host_file;
}

static int add_places(const struct gmem_stretch *at, const struct gmem_memory_user *model,
		      struct gmem_memory_places *places)
{
	uint64_t offset = at->gpa - at->region->gpa.start;
	struct gmem_region_memory side;
	int err;

	/* All of the region: the stretch may have any alignment. */
	err = gmem_region_memory_get(at->region, GMEM_SIDE_SHARED, 0, at->region->gpa.size, &side);
	if (err)
		return err;
	if (side.file)
		add_place(places, model, side.file, NULL, side.offset + offset, at->size);
	if (side.host_file)
		add_place(places, model, NULL, side.host_file, side.host_offset + offset, at->size);
	if (side.hva)
		add_place(places, model, NULL, NULL, (uintptr_t)side.hva + offset, at->size);
	return 0;
}

static int add_all_places(const struct gmem_vm *vm, const struct gmem_interval *gpas,
			  const struct gmem_memory_user *model, struct gmem_memory_places *places)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpas->start, gpas->last);
	int err = 0;

	places->count = 0;
	while (!err && gmem_regions_walk_whole(&at))
		if (has_memory(&at))
			err = add_places(&at, model, places);
	return err;
}

static void free_places(struct gmem_memory_places *places)
{
	if (places->all != &places->one)
		free(places->all);
	places->all = NULL;
	places->count = 0;
}

/* Fill in @places, which are empty, with what @model says. */
static int locate(const struct gmem_vm *vm, const struct gmem_interval *gpas,
		  const struct gmem_memory_user *model, struct gmem_memory_places *places)
{
	int err = add_all_places(vm, gpas, model, places);

	if (err || !places->count)
		return err;

	places->all = places->count > 1 ? malloc(places->count * sizeof(*places->all)) : &places->one;
	if (!places->all) {
		places->count = 0;
		return gmem_fail(-ENOMEM, "no memory to note where that of gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is", gpas->start, gpas->last - gpas->start + 1);
	}
	return add_all_places(vm, gpas, model, places);
}

/* The records that @user belongs in; those of a file are locked until put_users(). */
static struct gmem_memory_users *get_users(struct gmem_vm *vm, const struct gmem_memory_user *user)
{
	if (!user->file)
		return user->host_file ? &user->host_file->memory_users : &vm->memory_users;
	gmem_lock_take(&user->file->lock);
	return &user->file->memory_users;
}

static void put_users(const struct gmem_memory_user *user)
{
	if (user->file)
		gmem_lock_drop(&user->file->lock);
}

/* Tell whether part of the range is shared: what is private has no lease, nor is discarded. */
static bool is_shared_somewhere(const struct gmem_vm *vm, const struct gmem_interval *gpas)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpas->start, gpas->last);
	struct gmem_part part;
	uint64_t offset;

	while (gmem_regions_walk_whole(&at)) {
		if (!has_memory(&at))
			continue;
		offset = at.gpa - at.region->gpa.start;
		if (gmem_states_find(&at.region->states, GMEM_PAGE_PRIVATE, false, offset,
				     offset + at.size - 1, &part))
			return true;
	}
	return false;
}

/* ---- leases that are in the way ---- */

static int fail_leased(const struct gmem_lease *lease, uint64_t gpa, uint64_t size)
{
	return gmem_fail(-EBUSY,
			 "\"%s\" holds a lease on gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, which 0x%" PRIx64 ", 0x%" PRIx64 " bytes, overlaps",
			 lease->holder, lease->at.start, lease->at.last - lease->at.start + 1, gpa, size);
}

static int check_gpas(const struct gmem_vm *vm, const struct gmem_interval *gpas,
		      const struct gmem_lease **ret)
{
	const struct gmem_lease *lease;

	lease = lease_of(gmem_interval_find(&vm->leases, gpas->start, gpas->last));
	*ret = lease;
	return lease ? fail_leased(lease, gpas->start, gpas->last - gpas->start + 1) : 0;
}

static int fail_leased_place(const struct gmem_memory_user *lease, uint64_t gpa, uint64_t size)
{
	if (lease->gpa <= gpa + (size - 1) && gpa <= lease->gpa + (lease->size - 1))
		return fail_leased(lease->lease, gpa, size);
	return gmem_memory_fail_leased(lease, "gpa", gpa, size);
}

static int check_place(struct gmem_vm *vm, const struct gmem_memory_user *user,
		       const struct gmem_lease **ret)
{
	const struct gmem_memory_user *lease;
	int err = 0;

	lease = gmem_memory_find_lease(get_users(vm, user), user->at.start, user->at.last);
	if (lease) {
		err = fail_leased_place(lease, user->gpa, user->size);
		/* Outside of the lock, a lease of another handle may be freed. */
		*ret = lease->lease->vm == vm ? lease->lease : NULL;
	}
	put_users(user);
	return err;
}

/*
 * -EBUSY, with a lease of this VM's in @ret, or NULL if it is of another handle on it. All
 * leases on the guest addresses are on their memory, too.
 */
static int check_all(struct gmem_vm *vm, const struct gmem_interval *gpas,
		     const struct gmem_memory_places *places, const struct gmem_lease **ret)
{
	int err = places->count ? 0 : check_gpas(vm, gpas, ret);

	for (size_t i = 0; i < places->count && !err; i++)
		err = check_place(vm, &places->all[i], ret);
	return err;
}

int gmem_lease_check(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_interval gpas = { .start = gpa, .last = gpa + size - 1 };
	const struct gmem_lease *lease;

	return check_gpas(vm, &gpas, &lease);
}

int gmem_lease_check_memory(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_interval gpas = { .start = gpa, .last = gpa + size - 1 };
	const struct gmem_memory_user model = { .gpa = gpa, .size = size };
	struct gmem_memory_places places = { .count = 0 };
	const struct gmem_lease *lease;
	int err = 0;

	if (is_shared_somewhere(vm, &gpas))
		err = locate(vm, &gpas, &model, &places);
	if (!err)
		err = check_all(vm, &gpas, &places, &lease);
	free_places(&places);
	return err;
}

/* ---- bars ---- */

void gmem_lease_bar_begin(struct gmem_vm *vm, struct gmem_lease_bar *bar, uint64_t gpa,
			  uint64_t size, const char *purpose)
{
	bar->at = (struct gmem_interval){ .start = gpa, .last = gpa + size - 1 };
	bar->purpose = purpose;
	bar->memory.all = NULL;
	bar->memory.count = 0;
	gmem_interval_insert(&vm->lease_bars, &bar->at);
}

static void enter_discard(struct gmem_vm *vm, struct gmem_memory_user *user)
{
	gmem_interval_insert(&get_users(vm, user)->discards, &user->at);
	put_users(user);
}

static void leave_discard(struct gmem_vm *vm, struct gmem_memory_user *user)
{
	gmem_interval_remove(&get_users(vm, user)->discards, &user->at);
	put_users(user);
}

int gmem_lease_bar_memory(struct gmem_vm *vm, struct gmem_lease_bar *bar)
{
	const struct gmem_memory_user model = {
		.name = bar->purpose,
		.gpa = bar->at.start,
		.size = bar->at.last - bar->at.start + 1,
	};
	int err;

	if (!is_shared_somewhere(vm, &bar->at))
		return 0;
	err = locate(vm, &bar->at, &model, &bar->memory);
	if (err) {
		free_places(&bar->memory);
		return err;
	}
	for (size_t i = 0; i < bar->memory.count; i++)
		enter_discard(vm, &bar->memory.all[i]);
	return 0;
}

static void wait_for_lease(struct gmem_vm *vm, struct gmem_lease_wait *wait, uint64_t until)
{
	struct gmem_lease_wait **link;

	wait->next = vm->lease_waits;
	vm->lease_waits = wait;
	gmem_condition_wait_until(&wait->freed, &vm->lock, until);
	for (link = &vm->lease_waits; *link != wait; link = &(*link)->next)
		;
	*link = wait->next;
}

int gmem_lease_bar_wait(struct gmem_vm *vm, struct gmem_lease_bar *bar, uint64_t deadline)
{
	struct gmem_lease_wait wait;
	uint64_t now, until;
	int err;

	err = check_all(vm, &bar->at, &bar->memory, &wait.lease);
	if (!err || !deadline)
		return err;

	gmem_condition_init(&wait.freed);
	while (err) {
		now = gmem_sys_now();
		if (now >= deadline)
			break;
		until = !wait.lease && deadline - now > LOOK_AGAIN ? now + LOOK_AGAIN : deadline;
		wait_for_lease(vm, &wait, until);
		err = check_all(vm, &bar->at, &bar->memory, &wait.lease);
	}
	pthread_cond_destroy(&wait.freed);
	return err;
}

void gmem_lease_bar_end(struct gmem_vm *vm, struct gmem_lease_bar *bar)
{
	for (size_t i = 0; i < bar->memory.count; i++)
		leave_discard(vm, &bar->memory.all[i]);
	free_places(&bar->memory);
	gmem_interval_remove(&vm->lease_bars, &bar->at);
}

/* ---- granting and freeing a lease ---- */

static int check_is_shared(const struct gmem_vm *vm, const struct gmem_lease *lease)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, lease->at.start, lease->at.last);
	int err;

	while (gmem_regions_walk(&at)) {
		if (at.is_private)
			return gmem_fail(-EACCES, "gpa 0x%" PRIx64 " is private: no lease is given on it",
					 at.gpa);
		err = gmem_regions_check_memory(at.region, at.gpa);
		if (err)
			return err;
		if (gmem_region_is_both_sides(at.region))
			return gmem_fail(-EACCES, "gpa 0x%" PRIx64
					 " is in a file that the host cannot read, shared or private", at.gpa);
	}
	return 0;
}

static int check_bars(const struct gmem_vm *vm, const struct gmem_lease *lease)
{
	struct gmem_interval *at = gmem_interval_find(&vm->lease_bars, lease->at.start, lease->at.last);
	const struct gmem_lease_bar *bar;

	if (!at)
		return 0;
	bar = GMEM_CONTAINER_OF(at, const struct gmem_lease_bar, at);
	return gmem_fail(-EBUSY, "gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes, is being %s", at->start,
			 at->last - at->start + 1, bar->purpose);
}

static int enter_lease(struct gmem_vm *vm, struct gmem_memory_user *user)
{
	struct gmem_memory_users *users = get_users(vm, user);
	int err = gmem_memory_check_discards(users, user);

	if (!err)
		gmem_interval_insert(&users->leases, &user->at);
	put_users(user);
	return err;
}

static void leave_lease(struct gmem_vm *vm, struct gmem_memory_user *user)
{
	gmem_interval_remove(&get_users(vm, user)->leases, &user->at);
	put_users(user);
}

static int enter_all(struct gmem_lease *lease)
{
	struct gmem_memory_places *places = &lease->memory;
	const struct gmem_memory_user model = {
		.lease = lease,
		.name = lease->holder,
		.gpa = lease->at.start,
		.size = lease->at.last - lease->at.start + 1,
	};
	size_t done = 0;
	int err;

	err = locate(lease->vm, &lease->at, &model, places);
	while (!err && done < places->count) {
		err = enter_lease(lease->vm, &places->all[done]);
		done += !err;
	}
	if (err) {
		while (done-- > 0)
			leave_lease(lease->vm, &places->all[done]);
		free_places(places);
	}
	return err;
}

static int grant(struct gmem_lease *lease)
{
	struct gmem_vm *vm = lease->vm;
	int err;

	err = check_is_shared(vm, lease);
	if (!err)
		err = check_bars(vm, lease);
	if (!err)
		err = enter_all(lease);
	if (err)
		return err;

	gmem_interval_insert(&vm->leases, &lease->at);
	return 0;
}

GMEM_API int gmem_lease_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			    const struct gmem_lease_opts *user_opts, struct gmem_lease **ret)
{
	struct gmem_lease_opts opts;
	struct gmem_lease *lease;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = GMEM_COPY_OPTS(gmem_lease_opts, &opts, user_opts, holder);
	if (err)
		return err;
	if (size == 0 || gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range", gpa,
				 size);

	lease = calloc(1, sizeof(*lease));
	if (!lease)
		return gmem_fail(-ENOMEM, "no memory for a lease");
	lease->vm = gmem_vm_ref(vm);
	lease->at.start = gpa;
	lease->at.last = gpa + size - 1;
	snprintf(lease->holder, sizeof(lease->holder), "%s", opts.holder ? opts.holder : "unnamed");

	gmem_lock_take(&vm->lock);
	err = grant(lease);
	gmem_lock_drop(&vm->lock);
	if (err) {
		gmem_vm_unref(vm);
		free(lease);
	} else {
		*ret = lease;
	}
	return err;
}

GMEM_API void gmem_lease_free(struct gmem_lease *lease)
{
	struct gmem_lease_wait *wait;
	struct gmem_vm *vm;

	if (!lease)
		return;

	vm = lease->vm;
	gmem_lock_take(&vm->lock);
	gmem_interval_remove(&vm->leases, &lease->at);
	for (size_t i = 0; i < lease->memory.count; i++)
		leave_lease(vm, &lease->memory.all[i]);
	for (wait = vm->lease_waits; wait; wait = wait->next)
		if (wait->lease == lease)
			pthread_cond_signal(&wait->freed);
	gmem_lock_drop(&vm->lock);
	free_places(&lease->memory);
	free(lease);
	gmem_vm_unref(vm);
}

void gmem_leases_end(struct gmem_vm *vm)
{
	struct gmem_interval *at = NULL;

	gmem_lock_take(&vm->lock);
	while ((at = gmem_interval_find_next(&vm->leases, at, 0, UINT64_MAX))) {
		struct gmem_memory_places *places = &lease_of(at)->memory;

		for (size_t i = 0; i < places->count; i++)
			leave_lease(vm, &places->all[i]);
		places->count = 0;
	}
	gmem_lock_drop(&vm->lock);
}

const struct gmem_lease *gmem_lease_next(const struct gmem_vm *vm, const struct gmem_lease *previous)
{
	return lease_of(gmem_interval_find_next(&vm->leases, previous ? &previous->at : NULL, 0,
						UINT64_MAX));
}
