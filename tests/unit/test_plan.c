/* SPDX-License-Identifier: MIT */
/* plan: every kernel and every request in one table */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "unit.h"

#define H	GMEM_BACKING_HOST
#define M	GMEM_BACKING_MAPPED
#define S	GMEM_BACKING_SHARED
#define P	GMEM_BACKING_PRIVATE
#define I	GMEM_BACKING_INPLACE
#define BIT2	((uint64_t)1 << 2)

/* The columns of the table */
static const struct gmem_request requests[] = {
#define REQUEST(...)	{ .size = sizeof(struct gmem_request), __VA_ARGS__ }
	/* each way alone, and nothing said at all */
	REQUEST(.backings = { H }),
	REQUEST(.backings = { M }),
	REQUEST(.backings = { S }),
	REQUEST(.backings = { P }),
	REQUEST(.backings = { I }),
	REQUEST(.needs = 0),
	/* fallbacks, in the caller's order */
	REQUEST(.backings = { S, M, H }),
	REQUEST(.backings = { M, S, P }),
	REQUEST(.backings = { I, P, S, H }),
	/* each need, any way welcome */
	REQUEST(.backings = { P, S, M, H }, .needs = GMEM_NEED_HOST_ACCESS),
	REQUEST(.backings = { P, S, M, H }, .needs = GMEM_NEED_CONVERSION),
	REQUEST(.backings = { P, S, M, H }, .needs = GMEM_NEED_DIRTY_LOG),
	REQUEST(.backings = { P, S, M, H }, .needs = GMEM_NEED_NUMA),
	REQUEST(.backings = { P, S, M, H }, .needs = GMEM_NEED_READONLY),
	/* create flags beyond what the way implies */
	REQUEST(.backings = { P }, .required_flags = GMEM_CREATE_MMAP),
	REQUEST(.backings = { P }, .preferred_flags = 3),
	REQUEST(.backings = { P }, .required_flags = GMEM_CREATE_INIT_SHARED),
	REQUEST(.backings = { P }, .required_flags = GMEM_CREATE_MMAP,
		.needs = GMEM_NEED_NUMA),
	REQUEST(.backings = { S }, .required_flags = BIT2),
	REQUEST(.backings = { S }, .preferred_flags = BIT2),
	REQUEST(.backings = { S }, .preferred_flags = BIT2, .forbidden_flags = BIT2),
	REQUEST(.backings = { S, M }, .forbidden_flags = GMEM_CREATE_INIT_SHARED),
	REQUEST(.backings = { P, S, M, H }, .forbidden_flags = GMEM_CREATE_MMAP),
	REQUEST(.backings = { P, S, M, H }, .required_flags = GMEM_CREATE_MMAP),
};

/*
 * The rows: what comes of each request, in the order above. A letter for the
 * way and a digit for its create flags; "-" is -EOPNOTSUPP. Then a piece of the
 * reason why mapped, shared and private were passed over for host memory.
 */
static const char no_gmemfd[] =
	"H0 - - - - -  H0 - H0  H0 - H0 H0 H0  - - - -  - - -  - H0 -";
static const char shared_6_18[] =
	"H0 M3 S3 - - S3  S3 M3 S3  S3 - M3 H0 M3  - - - -  - S3 S3  - H0 S3";
static const char shared_6_19[] =
	"H0 M3 S3 - - S3  S3 M3 S3  S3 - M3 S3 M3  - - - -  - S3 S3  - H0 S3";
static const char private_6_12[] =
	"H0 - - P0 - -  H0 P0 P0  H0 P0 H0 H0 H0  - P0 - -  - - -  - P0 -";
static const char private_6_18[] =
	"H0 - - P0 - -  H0 P0 P0  H0 P0 H0 H0 H0  P1 P0 - -  - - -  - P0 P1";
static const char private_7_3[] =
	"H0 - - P0 - -  H0 P0 P0  H0 P0 H0 H0 H0  P1 P0 - P1  - - -  - P0 P1";

#define ANY		"possible"
#define NO_GMEMFD	"no guest_memfd"
#define NO_PRIVATE	"no private memory"
#define NO_CONVERSION	"no VM type with memory that converts"

static const struct {
	const char *kernel;
	const char *plans;
	const char *why_not_mapped;
	const char *why_not_shared;
	const char *why_not_private;
} table[] = {
	{ "6.1", no_gmemfd, NO_GMEMFD, NO_GMEMFD, NO_PRIVATE },
	{ "6.12", no_gmemfd, NO_GMEMFD, NO_GMEMFD, NO_PRIVATE },
	{ "6.17", no_gmemfd, NO_GMEMFD, NO_GMEMFD, NO_PRIVATE },
	{ "6.12-sev", no_gmemfd, NO_GMEMFD, NO_GMEMFD, NO_PRIVATE },
	{ "6.17-sev", no_gmemfd, NO_GMEMFD, NO_GMEMFD, NO_PRIVATE },
	{ "6.12-swp-t0", no_gmemfd, NO_GMEMFD, NO_GMEMFD, NO_PRIVATE },
	{ "6.12-swp-t1", private_6_12, "0x3", "0x3", ANY },
	{ "6.18-rc1", no_gmemfd, "0x1", "0x1", NO_PRIVATE },
	{ "6.18", shared_6_18, ANY, ANY, NO_PRIVATE },
	{ "6.18-swp-t0", shared_6_18, ANY, ANY, NO_PRIVATE },
	{ "6.18-swp-t1", private_6_18, "0x1", "0x1", ANY },
	{ "6.19", shared_6_19, ANY, ANY, NO_PRIVATE },
	{ "7.2", shared_6_19, ANY, ANY, NO_PRIVATE },
	{ "7.3-swp-t0", shared_6_19, ANY, ANY, NO_PRIVATE },
	{ "7.3-swp-t1", private_7_3, "0x1", "0x1", ANY },
	{ "7.3-npt0", shared_6_19, ANY, ANY, NO_PRIVATE },
	{ "6.18-pvm", shared_6_18, ANY, ANY, NO_PRIVATE },
	{ "arm64-6.17", no_gmemfd, NO_GMEMFD, NO_GMEMFD, NO_CONVERSION },
	{ "arm64-6.18", shared_6_18, ANY, ANY, NO_CONVERSION },
	{ "arm64-7.3-4k", shared_6_19, ANY, ANY, NO_CONVERSION },
	{ "arm64-7.3-16k", shared_6_19, ANY, ANY, NO_CONVERSION },
	{ "arm64-7.3-64k", shared_6_19, ANY, ANY, NO_CONVERSION },
	{
		"future-t0",
		"H0 M3 S3 - - S3  S3 M3 S3  S3 - M3 S3 M3  - - - -  S7 S7 S3  - H0 S3",
		ANY, ANY, NO_PRIVATE,
	},
	/* This kernel knows both create flags and has private memory, too. */
	{
		"future-t1",
		"H0 M3 S3 P0 - S3  S3 M3 P0  S3 P0 M3 S3 M3  P1 P0 - P1  - S3 S3  - P0 P1",
		ANY, ANY, ANY,
	},
	{
		"negative",
		"H0 - - - - -  H0 - H0  H0 - H0 H0 -  - - - -  - - -  - H0 -",
		NO_GMEMFD, NO_GMEMFD, NO_PRIVATE,
	},
};

/* The part of a plan that follows from the way of backing alone */
static const struct {
	char letter;
	int region2;
	uint32_t attributes;
} ways[] = {
	[H] = { 'H', 0, GMEM_ATTRIBUTES_NONE },
	[M] = { 'M', 0, GMEM_ATTRIBUTES_NONE },
	[S] = { 'S', 1, GMEM_ATTRIBUTES_NONE },
	[P] = { 'P', 1, GMEM_ATTRIBUTES_VM },
	[I] = { 'I', 1, GMEM_ATTRIBUTES_FILE },
};

static const char *next_cell(const char **cells, char *buf)
{
	size_t length;

	*cells += strspn(*cells, " ");
	length = strcspn(*cells, " ");
	memcpy(buf, *cells, length);
	buf[length] = '\0';
	*cells += length;
	return buf;
}

static const char *outcome(int err, const struct gmem_plan *plan, char *buf)
{
	if (err == -EOPNOTSUPP)
		return strcpy(buf, "-");
	if (err)
		snprintf(buf, 16, "%d", err);
	else
		snprintf(buf, 16, "%c%llu", ways[gmem_plan_backing(plan)].letter,
			 (unsigned long long)gmem_plan_create_flags(plan));
	return buf;
}

/* One reason for every way not chosen, none for the one that was */
static void check_plan(const struct gmem_plan *plan)
{
	uint32_t chosen = gmem_plan_backing(plan), i;
	const char *reason;

	assert_int_equal(gmem_plan_needs_region2(plan), ways[chosen].region2);
	assert_int_equal(gmem_plan_attributes(plan), ways[chosen].attributes);
	for (i = H; i <= I; i++) {
		reason = gmem_plan_passed_over(plan, i);
		if (i == chosen)
			assert_null(reason);
		else
			assert_true(reason && *reason && !strchr(reason, '\n'));
	}
	assert_null(gmem_plan_passed_over(plan, GMEM_BACKING_NONE));
	assert_null(gmem_plan_passed_over(plan, I + 1));
	assert_null(gmem_plan_passed_over(plan, UINT32_MAX));
}

static bool check_row(const struct unit *unit, const char *cells)
{
	char expected[16], got[16];
	struct gmem_plan *plan;
	bool same = true;
	size_t i;
	int err;

	for (i = 0; i < ARRAY_SIZE(requests); i++) {
		plan = NULL;
		err = gmem_plan_new(unit->caps, &requests[i], &plan);
		next_cell(&cells, expected);
		if (strcmp(outcome(err, plan, got), expected) != 0) {
			print_error("%s, request %zu: %s, not %s (%s)\n", fake.name, i, got,
				    expected, err ? gmem_last_error() : "a plan");
			same = false;
		}
		if (!err)
			check_plan(plan);
		gmem_plan_free(plan);
	}
	assert_int_equal(*cells, '\0');
	return same;
}

static void every_kernel_answers_every_request(void **state)
{
	struct unit unit;
	bool same = true;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(table); i++) {
		unit_begin(&unit, table[i].kernel);
		same &= check_row(&unit, table[i].plans);
		unit_end(&unit);
	}
	assert_true(same);
}

static void every_kernel_has_a_row(void **state)
{
	size_t i, j;

	(void)state;
	for (i = 0; i < fake_kernel_count; i++) {
		for (j = 0; j < ARRAY_SIZE(table); j++)
			if (strcmp(table[j].kernel, fake_kernels[i].name) == 0)
				break;
		if (j == ARRAY_SIZE(table) && !fake_kernels[i].kvm_errno)
			fail_msg("no plans for %s", fake_kernels[i].name);
	}
}

static void check_reason(const struct gmem_plan *plan, uint32_t backing, const char *fragment)
{
	const char *reason = gmem_plan_passed_over(plan, backing);

	if (!reason || !strstr(reason, fragment))
		fail_msg("%s: \"%s\" was passed over because \"%s\", not \"%s\"", fake.name,
			 gmem_backing_name(backing), reason, fragment);
}

static void each_way_passed_over_has_its_reason(void **state)
{
	struct gmem_plan *plan;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(table); i++) {
		unit_begin(&unit, table[i].kernel);
		plan = unit_plan(&unit, H);
		check_reason(plan, M, table[i].why_not_mapped);
		check_reason(plan, S, table[i].why_not_shared);
		check_reason(plan, P, table[i].why_not_private);
		check_reason(plan, I, "no kernel had it");
		gmem_plan_free(plan);
		unit_end(&unit);
	}
}

static void reasons_tell_what_the_request_ruled_out(void **state)
{
	static const struct {
		struct gmem_request request;
		uint32_t chosen;
		uint32_t other;
		const char *reason;
	} cases[] = {
		{ REQUEST(.backings = { S, M }), S, M, "wanted less" },
		{ REQUEST(.backings = { S }), S, H, "not asked for" },
		{ REQUEST(.backings = { S, M }, .needs = GMEM_NEED_DIRTY_LOG), M, S, "dirty log" },
		{ REQUEST(.backings = { S, M }, .needs = GMEM_NEED_READONLY), M, S, "read-only" },
		{ REQUEST(.backings = { S, H }, .needs = GMEM_NEED_NUMA), H, S, "mbind" },
		{ REQUEST(.backings = { S, H }, .forbidden_flags = 2), H, S, "0x2" },
		{ REQUEST(.backings = { M }, .required_flags = 1), M, H, "create flags 0x1" },
	};
	struct gmem_plan *plan;
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin(&unit, "6.18");
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_ok(gmem_plan_new(unit.caps, &cases[i].request, &plan));
		assert_int_equal(gmem_plan_backing(plan), cases[i].chosen);
		check_reason(plan, cases[i].other, cases[i].reason);
		gmem_plan_free(plan);
	}
	unit_end(&unit);
}

static void refusal_names_the_nearest_miss(void **state)
{
	static const struct {
		const char *kernel;
		struct gmem_request request;
		const char *nearest;
		const char *lacks;
	} cases[] = {
		{ "6.12", REQUEST(.backings = { S }), "\"shared\"", "guest_memfd" },
		{ "6.12", REQUEST(.needs = 0), "\"shared\"", "guest_memfd" },
		{ "6.18", REQUEST(.backings = { P }), "\"private\"", "private memory" },
		{ "6.18", REQUEST(.backings = { I }), "\"in-place\"", "no kernel had it" },
		{ "6.18", REQUEST(.backings = { P, S }, .needs = GMEM_NEED_DIRTY_LOG),
		  "\"shared\"", "dirty log" },
		{ "7.3-swp-t1", REQUEST(.backings = { S, P }, .needs = GMEM_NEED_HOST_ACCESS),
		  "\"private\"", "cannot reach" },
		/* a way that no kernel has is never named as the nearest */
		{ "6.12", REQUEST(.backings = { S, I }), "\"shared\"", "guest_memfd" },
	};
	struct gmem_plan *plan = UNTOUCHED(struct gmem_plan);
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin(&unit, cases[i].kernel);
		assert_refused(-EOPNOTSUPP, cases[i].nearest,
			       gmem_plan_new(unit.caps, &cases[i].request, &plan));
		assert_refused(-EOPNOTSUPP, cases[i].lacks,
			       gmem_plan_new(unit.caps, &cases[i].request, &plan));
		assert_ptr_equal(plan, UNTOUCHED(struct gmem_plan));
		unit_end(&unit);
	}
}

static void default_request_is_shared_and_nothing_else(void **state)
{
	struct gmem_plan *plan = UNTOUCHED(struct gmem_plan);
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.12");
	assert_refused(-EOPNOTSUPP, "shared", gmem_plan_new(unit.caps, NULL, &plan));
	unit_end(&unit);

	unit_begin(&unit, "6.18");
	assert_ok(gmem_plan_new(unit.caps, NULL, &plan));
	assert_int_equal(gmem_plan_backing(plan), S);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* The first 0 ends the list, so nothing was named here. */
static void way_behind_the_end_of_the_list_is_no_fallback(void **state)
{
	GMEM_OPTS(gmem_request, request, .backings = { 0, H });
	struct gmem_plan *plan = NULL;
	struct unit unit;
	int err;

	(void)state;
	unit_begin(&unit, "6.12");
	err = gmem_plan_new(unit.caps, &request, &plan);
	if (!err)
		gmem_plan_free(plan);
	assert_true(err == -EOPNOTSUPP || err == -EINVAL);
	unit_end(&unit);
}

static void eight_ways_are_a_full_list(void **state)
{
	GMEM_OPTS(gmem_request, request, .backings = { I, I, P, P, I, P, I, H });
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_ok(gmem_plan_new(unit.caps, &request, &plan));
	assert_int_equal(gmem_plan_backing(plan), H);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void plan_is_a_pure_function(void **state)
{
	struct gmem_plan *a, *b;
	struct unit unit;
	unsigned calls;
	uint32_t way;
	size_t i;
	int err;

	(void)state;
	unit_begin(&unit, "6.19");
	calls = fake_count_all();
	for (i = 0; i < ARRAY_SIZE(requests); i++) {
		a = b = NULL;
		err = gmem_plan_new(unit.caps, &requests[i], &a);
		assert_int_equal(gmem_plan_new(unit.caps, &requests[i], &b), err);
		if (err)
			continue;
		assert_int_equal(gmem_plan_backing(a), gmem_plan_backing(b));
		assert_int_equal(gmem_plan_create_flags(a), gmem_plan_create_flags(b));
		for (way = H; way <= I; way++)
			if (way != gmem_plan_backing(a))
				assert_string_equal(gmem_plan_passed_over(a, way),
						    gmem_plan_passed_over(b, way));
		gmem_plan_free(a);
		gmem_plan_free(b);
	}
	assert_int_equal(fake_count_all(), calls);
	unit_end(&unit);
}

static void plan_outlives_the_report(void **state)
{
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	plan = unit_plan(&unit, S);
	gmem_caps_free(unit.caps);
	unit.caps = NULL;
	check_plan(plan);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* A report without self-test leaves lines unknown; what was not refuted may be planned. */
static void unproven_report_still_gives_the_same_ways(void **state)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_NO_SELFTEST);
	static const struct {
		const char *kernel;
		uint32_t backing;
		int err;
	} cases[] = {
		{ "6.18", S, 0 },
		{ "6.18", M, 0 },
		{ "6.18", P, -EOPNOTSUPP },
		{ "6.12-sev", S, -EOPNOTSUPP },
		{ "6.18-rc1", S, -EOPNOTSUPP },
		{ "6.18-swp-t1", S, -EOPNOTSUPP },
		{ "6.18-swp-t1", P, 0 },
		{ "6.1", H, 0 },
	};
	struct gmem_plan *plan;
	struct gmem_caps *caps;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		GMEM_OPTS(gmem_request, request, .backings = { cases[i].backing });

		fake_boot(cases[i].kernel);
		fd = fake_new_vm();
		plan = NULL;
		assert_ok(gmem_caps_new(fd, &opts, &caps));
		assert_int_equal(gmem_plan_new(caps, &request, &plan), cases[i].err);
		gmem_plan_free(plan);
		gmem_caps_free(caps);
		fake_close(fd);
	}
	fake_halt();
}

static void request_rejects_what_is_malformed(void **state)
{
	GMEM_OPTS(gmem_request, request, .backings = { S });
	struct gmem_plan *plan = UNTOUCHED(struct gmem_plan);
	struct gmem_caps *host = NULL;
	struct unit unit;
	int bit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_refused(-EINVAL, "NULL", gmem_plan_new(NULL, &request, &plan));
	assert_refused(-EINVAL, "NULL", gmem_plan_new(unit.caps, &request, NULL));

	for (bit = 5; bit < 64; bit++) {
		request.needs = (uint64_t)1 << bit;
		assert_refused(-EINVAL, "needs", gmem_plan_new(unit.caps, &request, &plan));
	}
	request.needs = 0;

	request.backings[0] = I + 1;
	assert_refused(-EINVAL, "6", gmem_plan_new(unit.caps, &request, &plan));
	request.backings[0] = S;
	request.backings[1] = UINT32_MAX;
	assert_refused(-EINVAL, "4294967295", gmem_plan_new(unit.caps, &request, &plan));
	request.backings[1] = 0;

	for (bit = 0; bit < 64; bit++) {
		request.required_flags = (uint64_t)1 << bit;
		request.forbidden_flags = (uint64_t)1 << bit;
		assert_refused(-EINVAL, "required and forbidden",
			       gmem_plan_new(unit.caps, &request, &plan));
	}
	request.required_flags = 0;
	request.forbidden_flags = 0;

	assert_ok(gmem_caps_new(GMEM_NO_VM, NULL, &host));
	assert_refused(-EINVAL, "VM", gmem_plan_new(host, &request, &plan));
	gmem_caps_free(host);
	assert_ptr_equal(plan, UNTOUCHED(struct gmem_plan));
	gmem_plan_free(NULL);
	unit_end(&unit);
}

/* Flags nobody offers are refused with both masks in the sentence. */
static void flags_the_vm_does_not_offer_are_refused(void **state)
{
	GMEM_OPTS(gmem_request, request, .backings = { S });
	struct gmem_plan *plan = UNTOUCHED(struct gmem_plan);
	struct unit unit;
	int bit;

	(void)state;
	unit_begin(&unit, "6.18");
	for (bit = 2; bit < 64; bit++) {
		request.required_flags = (uint64_t)1 << bit;
		assert_refused(-EOPNOTSUPP, "offers 0x3",
			       gmem_plan_new(unit.caps, &request, &plan));
	}
	assert_ptr_equal(plan, UNTOUCHED(struct gmem_plan));
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(every_kernel_answers_every_request),
	cmocka_unit_test(every_kernel_has_a_row),
	cmocka_unit_test(each_way_passed_over_has_its_reason),
	cmocka_unit_test(reasons_tell_what_the_request_ruled_out),
	cmocka_unit_test(refusal_names_the_nearest_miss),
	cmocka_unit_test(default_request_is_shared_and_nothing_else),
	cmocka_unit_test(way_behind_the_end_of_the_list_is_no_fallback),
	cmocka_unit_test(eight_ways_are_a_full_list),
	cmocka_unit_test(plan_is_a_pure_function),
	cmocka_unit_test(plan_outlives_the_report),
	cmocka_unit_test(unproven_report_still_gives_the_same_ways),
	cmocka_unit_test(request_rejects_what_is_malformed),
	cmocka_unit_test(flags_the_vm_does_not_offer_are_refused),
};

UNIT_MAIN(tests)
