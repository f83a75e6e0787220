/* SPDX-License-Identifier: MIT */
/*
 * KVM's description of a fault is trusted as far as KVM says that it gave one; a
 * hypercall's arguments are the guest's.
 */
#include "layout/exit.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/kvm_para.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "base/macros.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "os/usdt.h"

/* Hypercalls count pages of this size, whatever the host's page is. */
#define GUEST_PAGE	UINT64_C(4096)
/* No x86 processor has more bits of physical address. */
#define MAX_ADDRESS	(UINT64_C(1) << 52)

/* The attributes of KVM_HC_MAP_GPA_RANGE: two fields, the rest is reserved */
#define ATTRIBUTES_SIZE		UINT64_C(0x0f)
#define ATTRIBUTES_PRIVATE	UINT64_C(0x10)

/* ---- faults ---- */

/* Headers before Linux 6.8 do not name this part of struct kvm_run. */
static struct gmem_kvm_memory_fault memory_fault(const struct kvm_run *run)
{
	struct gmem_kvm_memory_fault fault;

	memcpy(&fault, &run->hw, sizeof(fault));
	return fault;
}

/*
 * Round out to whole pages. On arm64 the address is the access's own with the page's
 * size beside it: that is one page, not two.
 */
static void round_out(uint64_t gpa, uint64_t size, struct gmem_exit *exit)
{
	uint64_t mask = gmem_sys_page_size() - 1, last = (size ? size - 1 : 0) | mask;

	exit->gpa = gpa & ~mask;
	if (last > UINT64_MAX - exit->gpa)
		last = UINT64_MAX - exit->gpa;
	if (last == UINT64_MAX)
		last -= mask + 1;
	exit->size = last + 1;
}

static void decode_fault(const struct kvm_run *run, int error, struct gmem_exit *exit)
{
	struct gmem_kvm_memory_fault fault;

	exit->error = -error;
	exit->kind = error == EHWPOISON ? GMEM_EXIT_POISON : GMEM_EXIT_NO_ADDRESS;
	if (run->exit_reason != KVM_EXIT_MEMORY_FAULT)
		return;

	fault = memory_fault(run);
	round_out(fault.gpa, fault.size, exit);
	exit->unknown = fault.flags & ~KVM_MEMORY_EXIT_FLAG_PRIVATE;
	if (error == EFAULT)
		exit->kind = exit->unknown ? GMEM_EXIT_UNKNOWN_REASON : GMEM_EXIT_FAULT;
	if (!exit->unknown)
		exit->state = fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE ? GMEM_STATE_PRIVATE
									 : GMEM_STATE_SHARED;
}

/* ---- hypercalls ---- */

/* On other architectures the hypercall number means something else, or nothing. */
static bool asks_to_convert(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_HYPERCALL &&
	       run->hypercall.nr == KVM_HC_MAP_GPA_RANGE &&
	       strcmp(gmem_sys_architecture(), "x86_64") == 0;
}

/* Undefined encodings of the page-size hint are no hint. */
static uint64_t preferred_page(uint64_t attributes)
{
	static const uint64_t pages[] = { GUEST_PAGE, UINT64_C(2) << 20, UINT64_C(1) << 30 };
	uint64_t encoding = attributes & ATTRIBUTES_SIZE;

	return encoding < GMEM_ARRAY_SIZE(pages) ? pages[encoding] : 0;
}

static int check_request(uint64_t gpa, uint64_t pages, uint64_t unknown)
{
	if (unknown)
		return gmem_fail(-EINVAL, "the guest asks for a conversion with reserved bits, 0x%"
				 PRIx64, unknown);
	if (gpa % GUEST_PAGE)
		return gmem_fail(-EINVAL, "the guest asks for a conversion at gpa 0x%" PRIx64
				 ", which is not a multiple of %" PRIu64, gpa, GUEST_PAGE);
	if (pages == 0)
		return gmem_fail(-EINVAL, "the guest asks for a conversion of no pages at gpa 0x%"
				 PRIx64, gpa);
	if (gpa >= MAX_ADDRESS || pages > (MAX_ADDRESS - gpa) / GUEST_PAGE)
		return gmem_fail(-EINVAL, "the guest asks for a conversion of 0x%" PRIx64
				 " pages at gpa 0x%" PRIx64 ": no processor has such addresses",
				 pages, gpa);
	return 0;
}

static void decode_hypercall(const struct kvm_run *run, struct gmem_exit *exit)
{
	uint64_t pages = run->hypercall.args[1], attributes = run->hypercall.args[2];

	exit->gpa = run->hypercall.args[0];
	exit->unknown = attributes & ~(ATTRIBUTES_SIZE | ATTRIBUTES_PRIVATE);
	exit->error = check_request(exit->gpa, pages, exit->unknown);
	exit->kind = exit->error ? GMEM_EXIT_BAD_CONVERT : GMEM_EXIT_CONVERT;
	if (exit->error)
		return;

	exit->size = pages * GUEST_PAGE;
	exit->page_size = preferred_page(attributes);
	exit->state = attributes & ATTRIBUTES_PRIVATE ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED;
}

/* ---- both ---- */

GMEM_API int gmem_exit_decode(const struct kvm_run *run, int result, int error,
			      struct gmem_exit *ret)
{
	if (!run || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", run ? "ret" : "run");

	*ret = (struct gmem_exit){ .kind = GMEM_EXIT_OTHER };
	if (result < 0 && (error == EFAULT || error == EHWPOISON))
		decode_fault(run, error, ret);
	else if (result >= 0 && asks_to_convert(run))
		decode_hypercall(run, ret);
	if (ret->kind != GMEM_EXIT_OTHER)
		GMEM_PROBE(fault, ret->gpa, ret->size, ret->kind, ret->state, ret->error);
	return 0;
}

/* The errnos a guest knows have the numbers of x86's Linux, everywhere. */
static int guests_errno(int error)
{
	switch (error) {
	case 0:
	case -EPERM:
	case -E2BIG:
	case -EAGAIN:
	case -EFAULT:
	case -EOPNOTSUPP:
		return error;
	case -EBUSY:
	case -EINTR:
		return -EAGAIN;
	default:
		return -EINVAL;
	}
}

/*
 * KVM translates the answer for SNP and TDX guests: it takes these numbers, positive,
 * and KVM_RUN fails with EINVAL on any other. Other guests find the answer in RAX as it is.
 */
static uint64_t translate_answer(uint64_t vm_type, int answer)
{
	if (vm_type != KVM_X86_SNP_VM && vm_type != KVM_X86_TDX_VM)
		return (uint64_t)(int64_t)answer;
	if (answer == 0 || answer == -EAGAIN)
		return (uint64_t)-answer;
	return EINVAL;
}

GMEM_API int gmem_exit_reply(struct kvm_run *run, uint64_t vm_type, int error)
{
	if (!run)
		return gmem_fail(-EINVAL, "run is NULL");
	if (error > 0)
		return gmem_fail(-EINVAL, "error is %d, not a negative errno", error);
	if (!asks_to_convert(run))
		return gmem_fail(-EINVAL, "exit reason %" PRIu32 " is no question about a conversion",
				 run->exit_reason);

	run->hypercall.ret = translate_answer(vm_type, guests_errno(error));
	return 0;
}
