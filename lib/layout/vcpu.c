/* SPDX-License-Identifier: MIT */
#include "layout/vcpu.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/wait_budget.h"
#include "caps/caps.h"
#include "dirty/dirty_ring.h"
#include "layout/convert.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"

/* Exits in a row that may make no progress, unless the caller says otherwise */
#define MAX_STUCK_FAULTS 16

/*
 * Bytes of a request that are converted at once. Between two pieces others get their
 * turn at the range, and the VMM can have its thread back.
 */
#define REQUEST_PIECE (UINT64_C(1) << 30)

/* How often a pre-fault is tried again that was interrupted before it did anything */
#define MAX_INTERRUPTIONS 16

/* An instruction can access two pages, which then fault by turns. */
#define PLACES 2

struct place {
	uint64_t gpa;
	uint32_t state;
	uint32_t stuck;		/* exits in a row that changed nothing */
};

struct gmem_vcpu {
	struct gmem_vm *vm;
	int fd;
	struct gmem_vcpu_opts opts;
	struct place places[PLACES];	/* the latest first */
	uint64_t last_gpa;
	uint32_t repeats;
};

GMEM_API int gmem_vcpu_new(struct gmem_vm *vm, int vcpu_fd, const struct gmem_vcpu_opts *user_opts,
			   struct gmem_vcpu **ret)
{
	struct gmem_vcpu_opts opts;
	struct gmem_vcpu *vcpu;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = GMEM_COPY_OPTS(gmem_vcpu_opts, &opts, user_opts, max_repeats);
	if (!err)
		err = gmem_check_flags("flags", opts.flags, GMEM_VCPU_EXPLICIT);
	if (err)
		return err;
	if (vm->address_space)
		return gmem_fail(-EOPNOTSUPP, "a vCPU's exits do not say of which address space they are: "
				 "its handle is that of address space 0, not %" PRIu32, vm->address_space);
	if (opts.discard > GMEM_DISCARD_NEVER)
		return gmem_fail(-EINVAL, "discard %" PRIu32 " is no policy", opts.discard);

	vcpu = calloc(1, sizeof(*vcpu));
	if (!vcpu)
		return gmem_fail(-ENOMEM, "no memory for a vCPU's record");

	vcpu->vm = gmem_vm_ref(vm);
	vcpu->fd = vcpu_fd;
	vcpu->opts = opts;
	vcpu->last_gpa = UINT64_MAX;
	if (!opts.max_stuck_faults)
		vcpu->opts.max_stuck_faults = MAX_STUCK_FAULTS;
	*ret = vcpu;
	return 0;
}

GMEM_API void gmem_vcpu_free(struct gmem_vcpu *vcpu)
{
	if (!vcpu)
		return;
	gmem_vm_unref(vcpu->vm);
	free(vcpu);
}

/* ---- the record ---- */

static void forget(struct gmem_vcpu *vcpu)
{
	for (int i = 0; i < PLACES; i++)
		vcpu->places[i] = (struct place){ .state = 0 };
	vcpu->last_gpa = UINT64_MAX;
	vcpu->repeats = 0;
}

/* The record of an access; the one not seen for longest is replaced. */
static struct place *find_place(struct gmem_vcpu *vcpu, const struct gmem_exit *exit)
{
	struct place found = { .gpa = exit->gpa, .state = exit->state };
	int i;

	for (i = 0; i < PLACES - 1; i++)
		if (vcpu->places[i].gpa == exit->gpa && vcpu->places[i].state == exit->state)
			break;
	if (vcpu->places[i].gpa == exit->gpa && vcpu->places[i].state == exit->state)
		found = vcpu->places[i];
	for (; i > 0; i--)
		vcpu->places[i] = vcpu->places[i - 1];
	vcpu->places[0] = found;
	return &vcpu->places[0];
}

static void count_repeat(struct gmem_vcpu *vcpu, struct gmem_exit *exit)
{
	if (exit->gpa == vcpu->last_gpa && vcpu->repeats < UINT32_MAX)
		vcpu->repeats++;
	else if (exit->gpa != vcpu->last_gpa)
		vcpu->repeats = 0;
	vcpu->last_gpa = exit->gpa;
	exit->repeats = vcpu->repeats;
}

static int check_repeats(const struct gmem_vcpu *vcpu, const struct gmem_exit *exit)
{
	if (!vcpu->opts.max_repeats || exit->repeats < vcpu->opts.max_repeats)
		return 1;
	return gmem_fail(-ELOOP, "the vCPU left at gpa 0x%" PRIx64 " %" PRIu32 " times in a row",
			 exit->gpa, exit->repeats + 1);
}

/* Count for the VM, and for the region if there is one. */
static void count(struct gmem_vcpu *vcpu, const struct gmem_exit *exit, enum gmem_counter which)
{
	struct gmem_vm *vm = vcpu->vm;
	struct gmem_region *region;

	gmem_count(&vm->counters, which, 1);
	if (!exit->size)
		return;

	gmem_lock_take(&vm->lock);
	region = gmem_regions_at(vm, exit->gpa);
	if (region)
		gmem_count(&region->counters, which, 1);
	gmem_lock_drop(&vm->lock);
}

/* An exit takes several conversions: all of them share @budget. */
static int convert(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t size, uint32_t state,
		   struct gmem_wait_budget *budget, struct gmem_conversion *ret)
{
	GMEM_OPTS(gmem_convert_opts, opts, .discard = vcpu->opts.discard,
		  .wait_ms = vcpu->opts.wait_ms);

	return gmem_convert_within(vcpu->vm, gpa, size, state, &opts, budget, ret);
}

/* ---- faults ---- */

static int fail_stuck(struct gmem_vcpu *vcpu, const struct gmem_exit *exit, struct place *place)
{
	place->stuck++;
	if (place->stuck < vcpu->opts.max_stuck_faults) {
		count(vcpu, exit, GMEM_COUNT_FAULTS_LATE);
		return 1;
	}

	count(vcpu, exit, GMEM_COUNT_FAULTS_STUCK);
	return gmem_fail(-ELOOP, "the vCPU faults at gpa 0x%" PRIx64 " for the %" PRIu32
			 ". time, and the memory is %s, as the vCPU wants it",
			 exit->gpa, place->stuck,
			 exit->state == GMEM_STATE_PRIVATE ? "private" : "shared");
}

static enum gmem_counter cause_of(int err)
{
	return err == -ENOENT || err == -ENXIO ? GMEM_COUNT_FAULTS_HOLE : GMEM_COUNT_FAULTS_REFUSED;
}

static int handle_fault(struct gmem_vcpu *vcpu, const struct gmem_exit *exit)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vcpu->vm, vcpu->opts.wait_ms);
	struct place *place = find_place(vcpu, exit);
	struct gmem_conversion done;
	int err;

	if (vcpu->opts.flags & GMEM_VCPU_EXPLICIT)
		err = gmem_fail(-EACCES, "the vCPU touched gpa 0x%" PRIx64 " as %s memory, and touching "
				"shall convert nothing", exit->gpa,
				exit->state == GMEM_STATE_PRIVATE ? "private" : "shared");
	else
		err = convert(vcpu, exit->gpa, exit->size, exit->state, &budget, &done);
	if (err) {
		count(vcpu, exit, cause_of(err));
		return err;
	}
	if (!done.converted)
		return fail_stuck(vcpu, exit, place);

	place->stuck = 0;
	count(vcpu, exit, exit->state == GMEM_STATE_PRIVATE ? GMEM_COUNT_FAULTS_PRIVATE
							    : GMEM_COUNT_FAULTS_SHARED);
	return 1;
}

static int report_poison(struct gmem_vcpu *vcpu, const struct gmem_exit *exit)
{
	count(vcpu, exit, GMEM_COUNT_FAULTS_POISON);
	if (!exit->size)
		return gmem_fail(-EHWPOISON, "the hardware lost memory that the vCPU touched; KVM does "
				 "not say where");
	return gmem_fail(-EHWPOISON, "the hardware lost the memory at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes", exit->gpa, exit->size);
}

static int report_unknown_reason(struct gmem_vcpu *vcpu, const struct gmem_exit *exit)
{
	count(vcpu, exit, GMEM_COUNT_FAULTS_UNKNOWN_REASON);
	return gmem_fail(-EPROTO, "the vCPU faults at gpa 0x%" PRIx64 " with flags 0x%" PRIx64
			 " that libgmem %s does not know", exit->gpa, exit->unknown, gmem_version());
}

static int report_no_address(struct gmem_vcpu *vcpu, const struct gmem_exit *exit)
{
	count(vcpu, exit, GMEM_COUNT_FAULTS_NO_ADDRESS);
	return gmem_fail(-EFAULT, "the vCPU faults and KVM does not say where: a memslot's host address "
			 "is not mapped");
}

/* ---- what a guest asks for ---- */

/* The guest caused it, so the VMM is not bothered. */
static bool is_guests_fault(int err)
{
	return err == -EINVAL || err == -ENOENT || err == -ENXIO || err == -EOPNOTSUPP ||
	       err == -EBUSY || err == -EPERM || err == -EACCES;
}

/* Guests ask for device ranges to be shared, which they always are. */
static bool is_no_memory(struct gmem_vm *vm, const struct gmem_exit *exit)
{
	struct gmem_state_range range;

	return gmem_vm_state(vm, exit->gpa, exit->size, &range, 1) == 1 && range.state == 0 &&
	       range.size == exit->size;
}

static int answer(struct gmem_vcpu *vcpu, const struct gmem_exit *exit, struct kvm_run *run,
		  int err)
{
	count(vcpu, exit, err ? GMEM_COUNT_REQUESTS_REFUSED : GMEM_COUNT_REQUESTS);
	gmem_exit_reply(run, gmem_caps_vm_type(&vcpu->vm->caps), err);
	return err && !is_guests_fault(err) ? err : 1;
}

/* The VMM wants its thread. If it runs the vCPU before it calls again, the guest tries again. */
static int interrupt_request(struct gmem_vcpu *vcpu, const struct gmem_exit *exit,
			     struct kvm_run *run, uint64_t gpa)
{
	gmem_exit_reply(run, gmem_caps_vm_type(&vcpu->vm->caps), -EAGAIN);
	return gmem_fail(-EINTR, "immediate_exit is set; of the guest's request for 0x%" PRIx64
			 " bytes at gpa 0x%" PRIx64 " the part from gpa 0x%" PRIx64 " is not done",
			 exit->size, exit->gpa, gpa);
}

/* A guest that asks for what cannot be has nothing changed. */
static int check_request(struct gmem_vm *vm, const struct gmem_exit *exit)
{
	if (exit->size <= REQUEST_PIECE)
		return 0;
	return gmem_vm_log_error(vm, gmem_convert_check(vm, exit->gpa, exit->size));
}

/* What is done of a request that was interrupted, or refused, costs next to nothing again. */
static int convert_request(struct gmem_vcpu *vcpu, const struct gmem_exit *exit,
			   struct kvm_run *run)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vcpu->vm, vcpu->opts.wait_ms);
	uint64_t gpa = exit->gpa, end = exit->gpa + exit->size, size;
	struct gmem_conversion done;
	int err;

	err = check_request(vcpu->vm, exit);
	for (; !err && gpa < end; gpa += size) {
		/* Pairs with the VMM's store, in another thread or a signal handler. */
		if (gpa > exit->gpa && __atomic_load_n(&run->immediate_exit, __ATOMIC_RELAXED))
			return interrupt_request(vcpu, exit, run, gpa);
		size = end - gpa;
		if (exit->size > REQUEST_PIECE && size > REQUEST_PIECE - gpa % REQUEST_PIECE)
			size = REQUEST_PIECE - gpa % REQUEST_PIECE;
		err = convert(vcpu, gpa, size, exit->state, &budget, &done);
	}
	return answer(vcpu, exit, run, err);
}

static int handle_request(struct gmem_vcpu *vcpu, const struct gmem_exit *exit,
			  struct kvm_run *run)
{
	if (exit->kind == GMEM_EXIT_BAD_CONVERT)
		return answer(vcpu, exit, run, gmem_vm_log_error(vcpu->vm, exit->error));

	if (exit->state == GMEM_STATE_SHARED && is_no_memory(vcpu->vm, exit))
		return answer(vcpu, exit, run, 0);

	return convert_request(vcpu, exit, run);
}

/* ---- all exits ---- */

static int handle_memory(struct gmem_vcpu *vcpu, const struct gmem_exit *exit, struct kvm_run *run)
{
	switch (exit->kind) {
	case GMEM_EXIT_FAULT:
		return handle_fault(vcpu, exit);
	case GMEM_EXIT_POISON:
		return report_poison(vcpu, exit);
	case GMEM_EXIT_UNKNOWN_REASON:
		return report_unknown_reason(vcpu, exit);
	case GMEM_EXIT_NO_ADDRESS:
		return report_no_address(vcpu, exit);
	default:
		return handle_request(vcpu, exit, run);
	}
}

GMEM_API int gmem_vcpu_handle_exit(struct gmem_vcpu *vcpu, struct kvm_run *run, int result,
				   int error, struct gmem_exit *ret)
{
	struct gmem_exit exit;
	int err;

	if (!vcpu)
		return gmem_fail(-EINVAL, "vcpu is NULL");

	err = gmem_vm_check_alive(vcpu->vm);
	if (!err)
		err = gmem_exit_decode(run, result, error, &exit);
	if (err)
		return err;

	if (exit.kind == GMEM_EXIT_OTHER && result >= 0 && run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
		err = gmem_dirty_rings_make_room(vcpu->vm, vcpu->fd);
	} else if (exit.kind == GMEM_EXIT_OTHER) {
		/* After EINTR and the like the guest made no progress. */
		if (result >= 0)
			forget(vcpu);
	} else {
		err = handle_memory(vcpu, &exit, run);
		if (err != -EINTR)
			count_repeat(vcpu, &exit);
		if (err == 1)
			err = check_repeats(vcpu, &exit);
	}
	if (ret)
		*ret = exit;
	return err;
}

/* ---- pre-faulting ---- */

static int fail_to_prefault(uint64_t gpa, int err)
{
	switch (err) {
	case -ENOENT:
		return gmem_fail(err, "there is no memory to pre-fault at gpa 0x%" PRIx64, gpa);
	case -EFAULT:
		return gmem_fail(err, "gpa 0x%" PRIx64 " cannot be pre-faulted: its file is gone, its host "
				 "address is not mapped, or it is private without a guest_memfd", gpa);
	default:
		return gmem_fail(err, "pre-faulting at gpa 0x%" PRIx64 ": %s", gpa,
				 gmem_errno_name(err));
	}
}

/* One call may do only a part and report success. */
static int prefault(int fd, uint64_t gpa, uint64_t size, uint64_t *ret_done)
{
	uint64_t done = 0, now;
	int err, interruptions = 0;

	while (done < size) {
		err = gmem_kvm_prefault(fd, gpa + done, size - done, &now);
		done += now;
		*ret_done = done;
		if (now) {
			interruptions = 0;
			continue;
		}

		if ((err == -EINTR || err == -EAGAIN) && ++interruptions < MAX_INTERRUPTIONS)
			continue;
		return fail_to_prefault(gpa + done, err ? err : -EIO);
	}
	return 0;
}

GMEM_API int gmem_vcpu_prefault(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t size,
				uint64_t *ret_done)
{
	uint64_t done = 0;
	int err;

	if (ret_done)
		*ret_done = 0;
	if (!vcpu)
		return gmem_fail(-EINVAL, "vcpu is NULL");

	err = gmem_vm_check_alive(vcpu->vm);
	if (!err)
		err = gmem_check_range("gpa", gpa, size);
	if (!err && vcpu->fd < 0)
		err = gmem_fail(-EBADF, "%d is no vCPU fd", vcpu->fd);
	if (!err && gmem_caps_says(&vcpu->vm->caps, GMEM_CAP_PRE_FAULT, GMEM_NO))
		err = gmem_fail(-EOPNOTSUPP, "this VM has no KVM_PRE_FAULT_MEMORY");
	if (!err)
		err = prefault(vcpu->fd, gpa, size, &done);
	if (ret_done)
		*ret_done = done;
	return gmem_vm_log_error(vcpu->vm, err);
}
