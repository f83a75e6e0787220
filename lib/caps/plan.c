/* SPDX-License-Identifier: MIT */
#include "caps/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/error.h"
#include "base/opts.h"
#include "caps/caps.h"

#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)
#define ALL_NEEDS                                                              \
	(GMEM_NEED_HOST_ACCESS | GMEM_NEED_CONVERSION | GMEM_NEED_DIRTY_LOG |  \
	 GMEM_NEED_NUMA | GMEM_NEED_READONLY)

/* ---- one way of backing against one request ---- */

struct verdict {
	unsigned int misses;
	uint64_t create_flags;
	char reason[sizeof(((struct gmem_plan *)NULL)->passed_over[0])];	/* the first miss */
};

static void __attribute__((format(printf, 2, 3)))
miss(struct verdict *verdict, const char *format, ...)
{
	va_list args;

	if (verdict->misses++)
		return;

	va_start(args, format);
	vsnprintf(verdict->reason, sizeof(verdict->reason), format, args);
	va_end(args);
}

/* Counts a miss if the line says no, with the reason of the line. */
static void miss_if_no(struct verdict *verdict, const struct gmem_caps *caps, enum gmem_cap cap,
		       const char *what)
{
	if (gmem_caps_says(caps, cap, GMEM_NO))
		miss(verdict, "%s: %s", what, caps->lines[cap].reason);
}

static void judge_file(struct verdict *verdict, const struct gmem_caps *caps)
{
	miss_if_no(verdict, caps, GMEM_CAP_GUEST_MEMFD, "no guest_memfd");
	miss_if_no(verdict, caps, GMEM_CAP_CREATE, "a guest_memfd cannot be made");
}

static void judge_bound_slot(struct verdict *verdict, const struct gmem_caps *caps)
{
	miss_if_no(verdict, caps, GMEM_CAP_USER_MEMORY2, "no memslots with guest_memfd");
	miss_if_no(verdict, caps, GMEM_CAP_BIND, "a guest_memfd cannot be bound");
}

/* Judges the flags that a backing implies, the required ones, and the preferred ones. */
static void judge_flags(struct verdict *verdict, const struct gmem_caps *caps,
			const struct gmem_request *request, uint64_t implied)
{
	uint64_t mask = gmem_caps_value(caps, GMEM_CAP_CREATE_FLAGS);
	uint64_t needed = implied | request->required_flags;

	if (needed & ~mask)
		miss(verdict, "it needs create flags 0x%" PRIx64 ", this VM offers 0x%" PRIx64,
		     needed, mask);

	if (implied & request->forbidden_flags)
		miss(verdict, "it needs create flags 0x%" PRIx64 ", of which 0x%" PRIx64 " are forbidden",
		     implied, implied & request->forbidden_flags);

	verdict->create_flags = needed;
	verdict->create_flags |= request->preferred_flags & mask & ~request->forbidden_flags;
}

static void miss_needs(struct verdict *verdict, uint64_t needs, uint64_t need, const char *why)
{
	if (needs & need)
		miss(verdict, "%s", why);
}

static void judge_numa_of_file(struct verdict *verdict, const struct gmem_caps *caps,
			       uint64_t needs)
{
	/* Only a yes will do: if mbind() has no effect on the file, it succeeds all the same. */
	if (needs & GMEM_NEED_NUMA && !gmem_caps_says(caps, GMEM_CAP_NUMA_POLICY, GMEM_YES))
		miss(verdict, "no NUMA policy: %s", caps->lines[GMEM_CAP_NUMA_POLICY].reason);
}

static void judge_plain_slot(struct verdict *verdict, const struct gmem_caps *caps, uint64_t needs)
{
	miss_if_no(verdict, caps, GMEM_CAP_KVM, "no KVM");
	miss_needs(verdict, needs, GMEM_NEED_CONVERSION, "its memory is always shared");
	if (needs & GMEM_NEED_DIRTY_LOG)
		miss_if_no(verdict, caps, GMEM_CAP_DIRTY_LOG, "no dirty log");
	if (needs & GMEM_NEED_READONLY)
		miss_if_no(verdict, caps, GMEM_CAP_READONLY, "no read-only memslots");
}

static void judge_gmemfd_slot(struct verdict *verdict, uint64_t needs)
{
	miss_needs(verdict, needs, GMEM_NEED_DIRTY_LOG, "memslots with guest_memfd have no dirty log");
	miss_needs(verdict, needs, GMEM_NEED_READONLY,
		   "memslots with guest_memfd cannot be read-only");
}

/* Host memory may do without the advice: it is the caller's, or GMEM_MEMORY_DUMP leaves it in. */
static void judge_mapping(struct verdict *verdict, const struct gmem_caps *caps)
{
	if (caps->madvise_refusal)
		miss(verdict, "its mapping cannot be kept out of core dumps: MADV_DONTDUMP is refused: %s",
		     gmem_errno_name(caps->madvise_refusal));
	miss_if_no(verdict, caps, GMEM_CAP_HOST_ACCESS, "no host access");
}

static void judge_host(struct verdict *verdict, const struct gmem_caps *caps,
		       const struct gmem_request *request)
{
	judge_plain_slot(verdict, caps, request->needs);
	if (request->needs & GMEM_NEED_NUMA && caps->mbind_refusal)
		miss(verdict, "no NUMA policy: mbind(2) is refused: %s",
		     gmem_errno_name(caps->mbind_refusal));
	if (request->required_flags)
		miss(verdict, "it has no guest_memfd to give create flags 0x%" PRIx64 " to",
		     request->required_flags);
}

static void judge_mapped(struct verdict *verdict, const struct gmem_caps *caps,
			 const struct gmem_request *request)
{
	judge_file(verdict, caps);
	judge_flags(verdict, caps, request, SHARED_FLAGS);
	judge_mapping(verdict, caps);
	judge_plain_slot(verdict, caps, request->needs);
	judge_numa_of_file(verdict, caps, request->needs);
}

static void judge_shared(struct verdict *verdict, const struct gmem_caps *caps,
			 const struct gmem_request *request)
{
	judge_file(verdict, caps);
	judge_flags(verdict, caps, request, SHARED_FLAGS);
	judge_mapping(verdict, caps);
	judge_bound_slot(verdict, caps);
	judge_gmemfd_slot(verdict, request->needs);
	miss_needs(verdict, request->needs, GMEM_NEED_CONVERSION, "its memory is always shared");
	judge_numa_of_file(verdict, caps, request->needs);
}

static void judge_private(struct verdict *verdict, const struct gmem_caps *caps,
			  const struct gmem_request *request)
{
	uint64_t mask = gmem_caps_value(caps, GMEM_CAP_CREATE_FLAGS);
	uint64_t unoffered = request->required_flags & ~mask;

	if (gmem_caps_says(caps, GMEM_CAP_PRIVATE_MEMORY, GMEM_NO))
		miss(verdict, "%s", caps->lines[GMEM_CAP_PRIVATE_MEMORY].reason);
	judge_file(verdict, caps);
	judge_bound_slot(verdict, caps);
	judge_gmemfd_slot(verdict, request->needs);
	miss_needs(verdict, request->needs, GMEM_NEED_HOST_ACCESS,
		   "the host cannot reach what is private");

	if (request->required_flags & GMEM_CREATE_INIT_SHARED)
		miss(verdict, "a file with INIT_SHARED begins shared, not private");
	else if (unoffered)
		miss(verdict, "it needs create flags 0x%" PRIx64 ", this VM offers 0x%" PRIx64,
		     request->required_flags, mask);

	/*
	 * A policy is set on a mapping, so the file needs MMAP. But with MMAP the guest uses
	 * the file for shared memory, too, so the caller must ask for that by name.
	 */
	if (request->needs & GMEM_NEED_NUMA) {
		judge_numa_of_file(verdict, caps, request->needs);
		if (!(request->required_flags & GMEM_CREATE_MMAP))
			miss(verdict, "a NUMA policy reaches a private file only with MMAP, "
				      "which must be required by name");
	}

	verdict->create_flags = request->required_flags;
	verdict->create_flags |= request->preferred_flags & mask & ~SHARED_FLAGS &
				 ~request->forbidden_flags;
}

static void judge_inplace(struct verdict *verdict, const struct gmem_caps *caps,
			  const struct gmem_request *request)
{
	uint64_t flags = gmem_caps_value(caps, GMEM_CAP_IN_PLACE);

	if (!gmem_caps_says(caps, GMEM_CAP_IN_PLACE, GMEM_YES)) {
		miss(verdict, "%s", caps->lines[GMEM_CAP_IN_PLACE].reason);
		/* No kernel supports this backing, so every other one is nearer. */
		verdict->misses = UINT_MAX;
		return;
	}

	judge_bound_slot(verdict, caps);
	judge_gmemfd_slot(verdict, request->needs);
	judge_numa_of_file(verdict, caps, request->needs);
	miss_needs(verdict, request->needs, GMEM_NEED_HOST_ACCESS,
		   "the host cannot reach what is private");
	judge_flags(verdict, caps, request, flags);
}

_Static_assert(GMEM_BACKINGS == 6, "a new way of backing needs a judge");

static void (*const judges[GMEM_BACKINGS])(struct verdict *verdict, const struct gmem_caps *caps,
					   const struct gmem_request *request) = {
	[GMEM_BACKING_HOST] = judge_host,
	[GMEM_BACKING_MAPPED] = judge_mapped,
	[GMEM_BACKING_SHARED] = judge_shared,
	[GMEM_BACKING_PRIVATE] = judge_private,
	[GMEM_BACKING_INPLACE] = judge_inplace,
};

/* ---- the request ---- */

static int check_request(const struct gmem_request *request)
{
	uint64_t clash = request->required_flags & request->forbidden_flags;
	int err;

	for (int i = 0; i < GMEM_REQUEST_BACKINGS; i++)
		if (request->backings[i] >= GMEM_BACKINGS)
			return gmem_fail(-EINVAL, "%" PRIu32 " is no way of backing",
					 request->backings[i]);

	err = gmem_check_flags("needs", request->needs, ALL_NEEDS);
	if (err)
		return err;

	if (clash)
		return gmem_fail(-EINVAL, "create flags 0x%" PRIx64 " are required and forbidden",
				 clash);
	return 0;
}

static int fail_with_nearest(const struct gmem_request *request, const struct verdict *verdicts)
{
	uint32_t nearest = request->backings[0];

	for (int i = 1; i < GMEM_REQUEST_BACKINGS && request->backings[i]; i++)
		if (verdicts[request->backings[i]].misses < verdicts[nearest].misses)
			nearest = request->backings[i];

	if (!request->backings[1])
		return gmem_fail(-EOPNOTSUPP, "backing \"%s\" is not possible: %s",
				 gmem_backing_name(nearest), verdicts[nearest].reason);

	return gmem_fail(-EOPNOTSUPP, "no acceptable backing is possible; nearest is \"%s\": %s",
			 gmem_backing_name(nearest), verdicts[nearest].reason);
}

static void explain(struct gmem_plan *plan, const struct gmem_request *request,
		    const struct verdict *verdicts)
{
	for (uint32_t backing = 1; backing < GMEM_BACKINGS; backing++) {
		const struct verdict *verdict = &verdicts[backing];
		char *reason = plan->passed_over[backing];
		size_t size = sizeof(plan->passed_over[backing]);
		bool asked = false;

		for (int i = 0; i < GMEM_REQUEST_BACKINGS && request->backings[i]; i++)
			asked = asked || request->backings[i] == backing;

		if (backing == plan->backing)
			reason[0] = '\0';
		else if (verdict->misses)
			snprintf(reason, size, "%s", verdict->reason);
		else if (asked)
			snprintf(reason, size, "possible, but wanted less than \"%s\"",
				 gmem_backing_name(plan->backing));
		else
			snprintf(reason, size, "possible, but not asked for");
	}
}

int gmem_plan_make(const struct gmem_caps *caps, const struct gmem_request *user_request,
		   struct gmem_plan *ret)
{
	struct verdict verdicts[GMEM_BACKINGS] = { 0 };
	struct gmem_request request;
	uint32_t chosen = GMEM_BACKING_NONE;
	int err;

	err = GMEM_COPY_OPTS(gmem_request, &request, user_request, forbidden_flags);
	if (!err)
		err = check_request(&request);
	if (err)
		return err;

	if (!request.backings[0]) {
		memset(request.backings, 0, sizeof(request.backings));
		request.backings[0] = GMEM_BACKING_SHARED;
	}

	for (uint32_t backing = 1; backing < GMEM_BACKINGS; backing++)
		judges[backing](&verdicts[backing], caps, &request);

	for (int i = 0; i < GMEM_REQUEST_BACKINGS && request.backings[i] && !chosen; i++)
		if (!verdicts[request.backings[i]].misses)
			chosen = request.backings[i];
	if (!chosen)
		return fail_with_nearest(&request, verdicts);

	memset(ret, 0, sizeof(*ret));
	ret->backing = chosen;
	ret->create_flags = verdicts[chosen].create_flags;
	explain(ret, &request, verdicts);
	return 0;
}

GMEM_API int gmem_plan_new(const struct gmem_caps *caps, const struct gmem_request *request,
			   struct gmem_plan **ret)
{
	struct gmem_plan *plan;
	int err;

	if (!caps || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", caps ? "ret" : "caps");

	if (!caps->has_vm)
		return gmem_fail(-EINVAL, "a plan needs the report of a VM, this one was made without");

	plan = malloc(sizeof(*plan));
	if (!plan)
		return gmem_fail(-ENOMEM, "no memory for a plan");

	err = gmem_plan_make(caps, request, plan);
	if (err) {
		free(plan);
		return err;
	}

	*ret = plan;
	return 0;
}

GMEM_API void gmem_plan_free(struct gmem_plan *plan)
{
	free(plan);
}

GMEM_API uint32_t gmem_plan_backing(const struct gmem_plan *plan)
{
	return plan ? plan->backing : GMEM_BACKING_NONE;
}

GMEM_API uint64_t gmem_plan_create_flags(const struct gmem_plan *plan)
{
	return plan ? plan->create_flags : 0;
}

GMEM_API int gmem_plan_needs_region2(const struct gmem_plan *plan)
{
	return plan && gmem_backing_traits(plan->backing)->is_bound;
}

GMEM_API uint32_t gmem_plan_attributes(const struct gmem_plan *plan)
{
	return plan ? gmem_backing_traits(plan->backing)->attributes : GMEM_ATTRIBUTES_NONE;
}

GMEM_API const char *gmem_plan_passed_over(const struct gmem_plan *plan, uint32_t backing)
{
	if (!plan || backing >= GMEM_BACKINGS || !plan->passed_over[backing][0])
		return NULL;
	return plan->passed_over[backing];
}
