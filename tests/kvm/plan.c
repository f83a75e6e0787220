/* SPDX-License-Identifier: MIT */
/* Plans on this kernel keep what they promise. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "lab.h"

#define BASE ((uint64_t)256 << 20)
#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

static const uint32_t all_backings[] = {
	GMEM_BACKING_HOST, GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED, GMEM_BACKING_PRIVATE,
	GMEM_BACKING_INPLACE,
};

/* The plan of each way of backing, the same wherever that way is possible */
static const struct {
	uint64_t create_flags;
	int needs_region2;
	uint32_t attributes;
	uint64_t can;		/* GMEM_NEED_* that it fulfils everywhere */
} nature[] = {
	[GMEM_BACKING_HOST] = {
		.can = GMEM_NEED_HOST_ACCESS | GMEM_NEED_DIRTY_LOG | GMEM_NEED_READONLY |
		       GMEM_NEED_NUMA,
	},
	[GMEM_BACKING_MAPPED] = {
		.create_flags = SHARED_FLAGS,
		.can = GMEM_NEED_HOST_ACCESS | GMEM_NEED_DIRTY_LOG | GMEM_NEED_READONLY,
	},
	[GMEM_BACKING_SHARED] = {
		.create_flags = SHARED_FLAGS,
		.needs_region2 = 1,
		.can = GMEM_NEED_HOST_ACCESS,
	},
	[GMEM_BACKING_PRIVATE] = {
		.needs_region2 = 1,
		.attributes = GMEM_ATTRIBUTES_VM,
		.can = GMEM_NEED_CONVERSION,
	},
};

static bool is_possible(const struct machine *m, uint32_t backing)
{
	return expect_vm(m->type)->backings & (1u << backing);
}

/* ---- what a plan says ---- */

static void check_reasons(const struct gmem_plan *plan)
{
	uint32_t chosen = gmem_plan_backing(plan);

	for (size_t i = 0; i < ARRAY_SIZE(all_backings); i++) {
		const char *reason = gmem_plan_passed_over(plan, all_backings[i]);

		if (all_backings[i] == chosen)
			CHECK(!reason);
		else
			CHECK(reason && reason[0]);
	}
	CHECK(!gmem_plan_passed_over(plan, GMEM_BACKING_NONE));
	CHECK(!gmem_plan_passed_over(plan, 99));
}

static void check_each_backing(int type)
{
	struct gmem_plan *plan = NULL;
	struct machine m;

	machine_new(&m, type);
	for (size_t i = 0; i < ARRAY_SIZE(all_backings); i++) {
		uint32_t backing = all_backings[i];
		GMEM_OPTS(gmem_request, request, .backings = { backing });

		in_case("%s", gmem_backing_name(backing));
		if (!is_possible(&m, backing)) {
			REFUSED(gmem_plan_new(m.caps, &request, &plan), -EOPNOTSUPP);
			CHECK(!plan);
			CHECK(strstr(gmem_last_error(), gmem_backing_name(backing)));
			continue;
		}
		OK(gmem_plan_new(m.caps, &request, &plan));
		CHECK_EQ(gmem_plan_backing(plan), backing);
		CHECK_EQ(gmem_plan_create_flags(plan), nature[backing].create_flags);
		CHECK_EQ(gmem_plan_needs_region2(plan), nature[backing].needs_region2);
		CHECK_EQ(gmem_plan_attributes(plan), nature[backing].attributes);
		check_reasons(plan);
		gmem_plan_free(plan);
		plan = NULL;
	}
	machine_free(&m);
}

TEST(exactly_the_possible_ways_of_backing_are_granted)
{
	check_each_backing(DEFAULT_VM);
}

TEST(exactly_the_possible_ways_of_backing_are_granted_with_private_memory)
{
	check_each_backing(PRIVATE_VM);
}

static void check_need(const struct machine *m, uint32_t backing, uint64_t need, bool possible)
{
	GMEM_OPTS(gmem_request, request, .backings = { backing }, .needs = need);
	struct gmem_plan *plan = NULL;

	in_case("%s, need 0x%llx", gmem_backing_name(backing), (unsigned long long)need);
	if (possible) {
		OK(gmem_plan_new(m->caps, &request, &plan));
		CHECK_EQ(gmem_plan_backing(plan), backing);
	} else {
		REFUSED(gmem_plan_new(m->caps, &request, &plan), -EOPNOTSUPP);
	}
	gmem_plan_free(plan);
}

static void check_needs(int type)
{
	static const uint64_t needs[] = {
		GMEM_NEED_HOST_ACCESS, GMEM_NEED_CONVERSION, GMEM_NEED_DIRTY_LOG, GMEM_NEED_NUMA,
		GMEM_NEED_READONLY,
	};
	struct machine m;

	machine_new(&m, type);
	for (uint32_t backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_PRIVATE; backing++) {
		for (size_t i = 0; i < ARRAY_SIZE(needs); i++) {
			uint64_t can = nature[backing].can;

			/* private memory takes no policy without being mappable */
			if (expect()->mbind_works && backing != GMEM_BACKING_PRIVATE)
				can |= GMEM_NEED_NUMA;
			check_need(&m, backing, needs[i],
				   is_possible(&m, backing) && (can & needs[i]));
		}
	}
	machine_free(&m);
}

TEST(a_need_is_granted_only_where_it_can_be_met)
{
	check_needs(DEFAULT_VM);
}

TEST(a_need_is_granted_only_where_it_can_be_met_with_private_memory)
{
	check_needs(PRIVATE_VM);
}

TEST(the_default_plan_is_a_shared_file_or_nothing)
{
	struct gmem_plan *plan = NULL;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	if (is_possible(&m, GMEM_BACKING_SHARED)) {
		OK(gmem_plan_new(m.caps, NULL, &plan));
		CHECK_EQ(gmem_plan_backing(plan), GMEM_BACKING_SHARED);
	} else {
		REFUSED(gmem_plan_new(m.caps, NULL, &plan), -EOPNOTSUPP);
		CHECK(!plan);
	}
	gmem_plan_free(plan);
	machine_free(&m);
}

static void check_first_possible(int type)
{
	static const uint32_t orders[][4] = {
		{ GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED, GMEM_BACKING_PRIVATE, GMEM_BACKING_HOST },
		{ GMEM_BACKING_INPLACE, GMEM_BACKING_PRIVATE, GMEM_BACKING_SHARED,
		  GMEM_BACKING_HOST },
		{ GMEM_BACKING_MAPPED, GMEM_BACKING_HOST },
		{ GMEM_BACKING_HOST, GMEM_BACKING_SHARED },
	};
	struct machine m;

	machine_new(&m, type);
	for (size_t i = 0; i < ARRAY_SIZE(orders); i++) {
		GMEM_OPTS(gmem_request, request);
		struct gmem_plan *plan;
		size_t first = 0;

		memcpy(request.backings, orders[i], sizeof(orders[i]));
		while (!is_possible(&m, orders[i][first]))
			first++;
		OK(gmem_plan_new(m.caps, &request, &plan));
		CHECK_EQ(gmem_plan_backing(plan), orders[i][first]);
		check_reasons(plan);
		gmem_plan_free(plan);
	}
	machine_free(&m);
}

TEST(the_first_possible_way_is_taken)
{
	check_first_possible(DEFAULT_VM);
}

TEST(the_first_possible_way_is_taken_with_private_memory)
{
	check_first_possible(PRIVATE_VM);
}

TEST(flags_are_required_preferred_and_forbidden)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED });
	struct gmem_plan *plan = NULL;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	request.preferred_flags = (uint64_t)1 << 40;
	OK(gmem_plan_new(m.caps, &request, &plan));
	CHECK_EQ(gmem_plan_create_flags(plan), SHARED_FLAGS);
	gmem_plan_free(plan);
	plan = NULL;

	request.required_flags = (uint64_t)1 << 40;
	REFUSED(gmem_plan_new(m.caps, &request, &plan), -EOPNOTSUPP);
	request.required_flags = 0;
	request.forbidden_flags = GMEM_CREATE_MMAP;
	REFUSED(gmem_plan_new(m.caps, &request, &plan), -EOPNOTSUPP);
	request.required_flags = GMEM_CREATE_MMAP;
	REFUSED(gmem_plan_new(m.caps, &request, &plan), -EINVAL);
	CHECK(!plan);
	machine_free(&m);
}

TEST(a_plan_needs_the_report_of_a_vm)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	struct gmem_plan *plan = NULL;
	struct gmem_caps *caps;

	OK(gmem_caps_new(GMEM_NO_VM, NULL, &caps));
	REFUSED(gmem_plan_new(caps, &request, &plan), -EINVAL);
	CHECK(!plan);
	gmem_caps_free(caps);
}

/* ---- what a plan is worth ---- */

/* The host's side and the guest's, through whatever the plan made */
static void use_region(struct lab *lab, struct gmem_region *region)
{
	uint64_t size = gmem_region_size(region);
	char *hva = gmem_region_hva(region);

	for (uint64_t offset = 0; offset < size; offset += lab->page) {
		host_store(hva + offset, 0xa0 + (uint32_t)(offset / lab->page));
		GUEST_LOADS(&lab->guest, BASE + offset, 0xa0 + (uint32_t)(offset / lab->page));
		GUEST_STORES(&lab->guest, BASE + offset, 0xb0);
		CHECK_EQ(host_load(hva + offset), 0xb0);
	}
}

static void check_plan_works(int type, uint32_t backing)
{
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct gmem_file *file;
	struct lab lab;

	lab_new(&lab, type);
	require_backing(&lab.m, backing, &plan);
	if (backing != GMEM_BACKING_HOST) {
		OK(gmem_file_new(lab.m.vm_fd, 4 * lab.page, plan, &file));
		CHECK_EQ(gmem_file_create_flags(file), gmem_plan_create_flags(plan));
		gmem_file_free(file);
	}
	gmem_plan_free(plan);

	region = lab_add(&lab, backing, BASE, 4, NULL);
	CHECK_EQ(gmem_region_file(region, NULL) != NULL, backing != GMEM_BACKING_HOST);
	use_region(&lab, region);
	OK(gmem_region_remove(region));
	lab_free(&lab);
}

TEST(a_host_plan_works)
{
	check_plan_works(DEFAULT_VM, GMEM_BACKING_HOST);
}

TEST(a_mapped_plan_works)
{
	check_plan_works(DEFAULT_VM, GMEM_BACKING_MAPPED);
}

TEST(a_shared_plan_works)
{
	check_plan_works(DEFAULT_VM, GMEM_BACKING_SHARED);
}

TEST(a_host_plan_works_with_private_memory)
{
	check_plan_works(PRIVATE_VM, GMEM_BACKING_HOST);
}

TEST(a_private_plan_works)
{
	check_plan_works(PRIVATE_VM, GMEM_BACKING_PRIVATE);
}

TEST(what_is_refused_is_refused_by_the_kernel_too)
{
	struct lab lab;
	int fd;

	/* A refusal of every way with a file is right: the kernel makes no such file. */
	lab_new(&lab, DEFAULT_VM);
	if (is_possible(&lab.m, GMEM_BACKING_SHARED))
		skip("shared guest_memfd is granted here");
	CHECK(raw_create(lab.m.vm_fd, lab.page, GMEM_CREATE_MMAP) < 0);
	CHECK(raw_create(lab.m.vm_fd, lab.page, SHARED_FLAGS) < 0);
	fd = raw_create(lab.m.vm_fd, lab.page, 0);
	CHECK_EQ(fd >= 0, expect_vm(DEFAULT_VM)->creates);
	if (fd >= 0) {
		CHECK_RESULT(raw_gmem_slot(lab.m.vm_fd, 0, 0, BASE, lab.page, NULL, fd, 0), -EINVAL);
		close(fd);
	}
	lab_free(&lab);
}

TEST(ways_of_backing_have_names)
{
	static const char *const names[] = { "host", "mapped", "shared", "private", "in-place" };

	for (size_t i = 0; i < ARRAY_SIZE(all_backings); i++) {
		CHECK_STR(gmem_backing_name(all_backings[i]), names[i]);
		CHECK_EQ(gmem_backing_from_name(names[i]), all_backings[i]);
	}
	CHECK(!gmem_backing_name(GMEM_BACKING_NONE));
	CHECK(!gmem_backing_name(6));
	CHECK_EQ(gmem_backing_from_name("Shared"), GMEM_BACKING_NONE);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
