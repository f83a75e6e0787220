/* SPDX-License-Identifier: MIT */
/* region: its memory and file, options that are refused, devices, lifetimes */
#include <errno.h>
#include <string.h>

#include "region/region.h"
#include "unit.h"

#define NO_REGION	UNTOUCHED(struct gmem_region)
#define MAPPABLE	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

/* ---- add ---- */

static void region_is_backed_as_the_plan_says(void **state)
{
	static const struct {
		const char *kernel;
		uint32_t backing;
		bool has_file;
	} cases[] = {
		{ "6.1", GMEM_BACKING_HOST, false },
		{ "6.12-sev", GMEM_BACKING_HOST, false },
		{ "6.18", GMEM_BACKING_HOST, false },
		{ "6.18", GMEM_BACKING_MAPPED, true },
		{ "6.18", GMEM_BACKING_SHARED, true },
		{ "6.18-pvm", GMEM_BACKING_SHARED, true },
		{ "7.2", GMEM_BACKING_SHARED, true },
		{ "6.12-swp-t1", GMEM_BACKING_PRIVATE, true },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE, true },
		{ "7.3-swp-t1", GMEM_BACKING_HOST, false },
		{ "arm64-6.18", GMEM_BACKING_SHARED, true },
		{ "arm64-7.3-16k", GMEM_BACKING_SHARED, true },
		{ "arm64-7.3-64k", GMEM_BACKING_MAPPED, true },
	};
	struct gmem_region *region;
	struct unit unit;
	uint64_t offset;
	size_t i;
	char *hva;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		region = unit_region_backed(&unit, 16, 3, cases[i].backing);
		assert_int_equal(gmem_region_backing(region), cases[i].backing);
		assert_int_equal(gmem_region_gpa(region), PAGES(&unit, 16));
		assert_int_equal(gmem_region_size(region), PAGES(&unit, 3));
		assert_int_equal(gmem_region_file(region, &offset) != NULL, cases[i].has_file);
		unit_check_region(&unit, region);

		hva = gmem_region_hva(region);
		hva[0] = 1;
		hva[PAGES(&unit, 3) - 1] = 2;
		assert_ok(gmem_region_remove(region));
		assert_int_equal(fake_slot_count(unit.vm_fd), 0);
		assert_int_equal(fake_open_mappings(), 0);
		/* the VM's, and the handle's duplicate of it */
		assert_int_equal(fake_open_fds(), 2);
		unit_end(&unit);
	}
}

static void region_without_options_is_shared(void **state)
{
	struct gmem_region *region = NO_REGION;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, NULL, &region));
	assert_int_equal(gmem_region_backing(region), GMEM_BACKING_SHARED);
	assert_int_equal(gmem_file_size(gmem_region_file(region, NULL)), unit.page);
	unit_end(&unit);

	unit_begin_vm(&unit, "6.12");
	region = NO_REGION;
	assert_refused(-EOPNOTSUPP, "shared",
		       gmem_region_add(unit.vm, 0, unit.page, NULL, &region));
	assert_ptr_equal(region, NO_REGION);
	unit_end(&unit);
}

static void plain_regions_take_flags(void **state)
{
	static const struct {
		uint64_t flags;
		uint32_t slot_flags;
	} cases[] = {
		{ 0, 0 },
		{ GMEM_REGION_READONLY, KVM_MEM_READONLY },
		{ GMEM_REGION_DIRTY_LOG, KVM_MEM_LOG_DIRTY_PAGES },
		{ GMEM_REGION_READONLY | GMEM_REGION_DIRTY_LOG,
		  KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES },
	};
	static const uint32_t backings[] = { GMEM_BACKING_HOST, GMEM_BACKING_MAPPED };
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	size_t i, j;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		plan = unit_plan(&unit, backings[i]);
		for (j = 0; j < ARRAY_SIZE(cases); j++) {
			GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = cases[j].flags);

			assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
			assert_int_equal(unit_slot(&unit, region).flags, cases[j].slot_flags);
			/* moved, they keep them */
			assert_ok(gmem_region_move(region, unit.page));
			assert_int_equal(unit_slot(&unit, region).flags, cases[j].slot_flags);
			assert_ok(gmem_region_remove(region));
		}
		gmem_plan_free(plan);
	}
	unit_end(&unit);
}

static void bound_regions_refuse_logs_and_read_only(void **state)
{
	static const struct {
		const char *kernel;
		uint32_t backing;
		uint64_t flag;
	} cases[] = {
		{ "6.18", GMEM_BACKING_SHARED, GMEM_REGION_DIRTY_LOG },
		{ "6.18", GMEM_BACKING_SHARED, GMEM_REGION_READONLY },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE, GMEM_REGION_DIRTY_LOG },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE, GMEM_REGION_READONLY },
		{ "negative", GMEM_BACKING_HOST, GMEM_REGION_READONLY },
	};
	struct gmem_region *region = NO_REGION;
	struct gmem_plan *plan;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		plan = unit_plan(&unit, cases[i].backing);
		GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = cases[i].flag);
		assert_refused(-EOPNOTSUPP, gmem_backing_name(cases[i].backing),
			       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
		assert_ptr_equal(region, NO_REGION);
		gmem_plan_free(plan);
		unit_end(&unit);
	}
}

static void private_region_keeps_shared_memory_beside_the_file(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	uint64_t offset;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
	region = unit_region(&unit, 0, 2, plan);
	assert_int_equal(fake_file_at(gmem_region_hva(region), &offset), 0);
	memset(gmem_region_hva(region), 1, PAGES(&unit, 2));

	/* or the caller's own */
	opts.plan = plan;
	opts.hva = unit_memory(&unit, 2);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 2), PAGES(&unit, 2), &opts, &region));
	assert_ptr_equal(gmem_region_hva(region), opts.hva);
	unit_check_region(&unit, region);
	assert_ok(gmem_region_remove(region));
	memset(opts.hva, 1, PAGES(&unit, 2));
	unit_memory_free(opts.hva);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* Borrowed memory may stand behind several regions. */
static void callers_memory_is_never_unmapped(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *a, *b;
	struct gmem_plan *host;
	struct unit unit;
	unsigned maps;

	(void)state;
	unit_begin_vm(&unit, "6.1");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	opts.plan = host;
	opts.hva = unit_memory(&unit, 2);
	maps = fake_count(FAKE_MUNMAP);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &a));
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 2), PAGES(&unit, 2), &opts, &b));
	assert_ok(gmem_region_move(b, PAGES(&unit, 8)));
	assert_ok(gmem_region_remove(a));
	assert_ok(gmem_region_remove(b));
	assert_int_equal(fake_count(FAKE_MUNMAP), maps);
	memset(opts.hva, 1, PAGES(&unit, 2));
	unit_memory_free(opts.hva);
	gmem_plan_free(host);
	unit_end(&unit);
}

static void mapping_of_a_region_goes_where_it_is_told(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	GMEM_OPTS(gmem_region_opts, aligned, .align = 1 << 21);
	struct gmem_region *region, *none = NO_REGION;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	opts.hva = unit_free_address(&unit, 2);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &region));
	assert_ptr_equal(gmem_region_hva(region), opts.hva);
	unit_check_region(&unit, region);
	assert_refused(-EEXIST, "give a plan for \"host\"", gmem_region_add(unit.vm, PAGES(&unit, 2),
						      PAGES(&unit, 2), &opts, &none));
	assert_ok(gmem_region_remove(region));

	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &aligned, &region));
	assert_int_equal((uintptr_t)gmem_region_hva(region) % (1 << 21), 0);
	assert_int_equal(fake_open_mappings(), 1);
	assert_ptr_equal(none, NO_REGION);
	unit_end(&unit);
}

static void one_file_backs_many_regions(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *regions[300];
	struct gmem_file *file;
	struct unit unit;
	uint64_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 300);
	opts.file = file;
	for (i = 0; i < 300; i++) {
		opts.file_offset = PAGES(&unit, 299 - i);
		assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 2 * i), unit.page, &opts,
					  &regions[i]));
		unit_check_region(&unit, regions[i]);
	}
	assert_ptr_equal(gmem_region_file(regions[7], &i), file);
	assert_int_equal(i, PAGES(&unit, 292));
	gmem_file_free(file);
	unit_end(&unit);
}

/* Flags only a request can bring about reach the file. */
static void region_s_file_has_the_flags_of_the_plan(void **state)
{
	static const struct {
		const char *kernel;
		struct gmem_request request;
		uint64_t flags;
	} cases[] = {
#define REQUEST(...)	{ .size = sizeof(struct gmem_request), __VA_ARGS__ }
		{ "7.3-swp-t1", REQUEST(.backings = { GMEM_BACKING_PRIVATE },
					.required_flags = GMEM_CREATE_MMAP), 1 },
		{ "future-t0", REQUEST(.backings = { GMEM_BACKING_SHARED },
				       .preferred_flags = 4), 7 },
		{ "future-t0", REQUEST(.backings = { GMEM_BACKING_MAPPED },
				       .required_flags = 4), 7 },
#undef REQUEST
	};
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		assert_ok(gmem_plan_new(unit.caps, &cases[i].request, &plan));
		region = unit_region(&unit, 0, 2, plan);
		gmem_plan_free(plan);
		assert_int_equal(gmem_file_create_flags(gmem_region_file(region, NULL)),
				 cases[i].flags);
		unit_check_region(&unit, region);
		unit_end(&unit);
	}
}

/* ---- refusals ---- */

static void add_rejects_bad_ranges_on_every_page_size(void **state)
{
	static const char *const kernels[] = { "6.18", "arm64-7.3-16k", "arm64-7.3-64k" };
	struct gmem_region *region = NO_REGION;
	struct unit unit;
	size_t i, j;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin_vm(&unit, kernels[i]);
		const uint64_t p = unit.page;
		const uint64_t end = (uint64_t)1 << fake.address_bits;
		const struct {
			uint64_t gpa;
			uint64_t size;
			const char *sentence;
		} cases[] = {
			{ 0, 0, "size 0" },
			{ 1, p, "gpa 0x1 " },
			{ p / 2, p, "multiple" },
			{ p - 1, p, "multiple" },
			{ 0, 1, "multiple" },
			{ 0, p / 2, "multiple" },
			{ 0, p + 1, "multiple" },
			{ 0 - p, 2 * p, "wraps" },
			{ p, 0 - p, "" },
			{ 0 - p, p, "" },
			{ end, p, "address" },
			{ end - p, 2 * p, "address" },
			{ 0, end + p, "" },
			{ (uint64_t)1 << 63, p, "address" },
		};

		for (j = 0; j < ARRAY_SIZE(cases); j++)
			assert_refused(-EINVAL, cases[j].sentence,
				       gmem_region_add(unit.vm, cases[j].gpa, cases[j].size,
						       NULL, &region));
		assert_ptr_equal(region, NO_REGION);
		unit_region(&unit, (end - p) / p, 1, NULL);
		unit_end(&unit);
	}
}

static void region_has_fewer_than_2_to_the_31_pages(void **state)
{
	struct gmem_region *region = NO_REGION;
	struct unit unit;
	unsigned calls;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	calls = fake_count_all();
	assert_refused(-EINVAL, "0x80000000 pages",
		       gmem_region_add(unit.vm, 0, PAGES(&unit, 1) << 31, NULL, &region));
	assert_int_equal(fake_count_all(), calls);
	assert_ptr_equal(region, NO_REGION);
	unit_end(&unit);
}

/* A report that tried nothing does not know them: the kernel says so, its way. */
static void unknown_address_bits_are_the_kernel_s_to_refuse(void **state)
{
	static const struct {
		const char *kernel;
		int err;
	} cases[] = { { "6.18", -EINVAL }, { "arm64-6.18", -EFAULT } };
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_NO_SELFTEST);
	struct gmem_region *region = NO_REGION;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin(&unit, cases[i].kernel);
		assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
		assert_refused(cases[i].err, "memslot 0",
			       gmem_region_add(unit.vm, (uint64_t)1 << fake.address_bits,
					       unit.page, NULL, &region));
		assert_ptr_equal(region, NO_REGION);
		unit_end(&unit);
	}
}

static void add_rejects_bad_options(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region = NO_REGION;
	struct gmem_plan *host;
	struct unit unit;
	void *memory;
	int bit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	memory = unit_memory(&unit, 2);
#define REFUSED(err, sentence)                                                          \
	assert_refused(err, sentence,                                                   \
		       gmem_region_add(unit.vm, 0, unit.page, &opts, &region))
	for (bit = 9; bit < 64; bit++) {
		opts.flags = (uint64_t)1 << bit;
		REFUSED(-EINVAL, "flags");
	}
	opts.flags = GMEM_REGION_KEEP_STATE;
	REFUSED(-EINVAL, "no state to keep");
	opts.flags = 0;
	opts.kind = 9;
	REFUSED(-EINVAL, "9");
	opts.kind = 0;
	opts.file_offset = unit.page;
	REFUSED(-EINVAL, "without a file");
	opts.file_offset = 0;
	opts.align = unit.page / 2;
	REFUSED(-EINVAL, "align");
	opts.align = unit.page * 3;
	REFUSED(-EINVAL, "align");
	opts.align = 0;

	opts.flags = GMEM_REGION_HVA;
	opts.plan = host;
	REFUSED(-EINVAL, "hva");
	opts.hva = unit_at(memory, 1);
	REFUSED(-EINVAL, "hva");
	opts.hva = (void *)(uintptr_t)(0 - unit.page / 2);
	REFUSED(-EINVAL, "hva");
	opts.hva = memory;
	opts.align = unit.page;
	REFUSED(-EINVAL, "align");
#undef REFUSED

	assert_refused(-EINVAL, "NULL", gmem_region_add(unit.vm, 0, unit.page, NULL, NULL));
	assert_ptr_equal(region, NO_REGION);
	gmem_plan_free(host);
	unit_memory_free(memory);
	unit_end(&unit);
}

static void add_rejects_a_file_the_plan_does_not_fit(void **state)
{
	struct gmem_region *region = NO_REGION;
	struct gmem_file *file, *bare;
	struct gmem_plan *host;
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	file = unit_file(&unit, 4);
	assert_ok(gmem_file_new_raw(unit.vm_fd, PAGES(&unit, 4), 0, &bare));
	const uint64_t p = unit.page;
	const struct {
		struct gmem_region_opts opts;
		uint64_t size;
		const char *sentence;
	} cases[] = {
#define OPTS(...)	{ .size = sizeof(struct gmem_region_opts), __VA_ARGS__ }
		{ OPTS(.file = bare), p, "0x3" },
		{ OPTS(.file = file, .plan = host), p, "host" },
		{ OPTS(.file = file), 5 * p, "the end of the file" },
		{ OPTS(.file = file, .file_offset = p), 4 * p, "the end of the file" },
		{ OPTS(.file = file, .file_offset = 4 * p), p, "the end of the file" },
		{ OPTS(.file = file, .file_offset = 0 - p), p, "the end of the file" },
		{ OPTS(.file = file, .file_offset = 0 - p), 2 * p, "wraps" },
		{ OPTS(.file = file, .file_offset = 1), p, "multiple" },
		{ OPTS(.file = file, .file_offset = p / 2), p, "multiple" },
#undef OPTS
	};

	for (i = 0; i < ARRAY_SIZE(cases); i++)
		assert_refused(-EINVAL, cases[i].sentence,
			       gmem_region_add(unit.vm, 0, cases[i].size, &cases[i].opts,
					       &region));
	assert_ptr_equal(region, NO_REGION);
	gmem_plan_free(host);
	gmem_file_free(file);
	gmem_file_free(bare);
	unit_end(&unit);
}

static void add_rejects_the_file_of_another_vm(void **state)
{
	static const char *const kernels[] = { "6.18", "7.2", "arm64-6.18" };
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region = NO_REGION;
	struct gmem_file *file = NULL;
	struct unit unit;
	size_t i;
	int other;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin_vm(&unit, kernels[i]);
		other = fake_new_vm();
		assert_ok(gmem_file_new_raw(other, PAGES(&unit, 2), MAPPABLE, &file));
		opts.file = file;
		assert_refused(-EXDEV, "another VM", gmem_region_add(unit.vm, 0, unit.page, &opts,
							   &region));
		assert_ptr_equal(region, NO_REGION);
		gmem_file_free(file);
		fake_close(other);
		unit_end(&unit);
	}
}

static void add_rejects_every_overlap_before_asking_the_kernel(void **state)
{
	static const struct {
		uint64_t page;
		uint64_t pages;
	} cases[] = { { 10, 4 }, { 9, 2 }, { 13, 2 }, { 11, 1 }, { 8, 8 }, { 10, 1 }, { 13, 1 } };
	struct gmem_region *region = NO_REGION;
	struct unit unit;
	unsigned calls;
	size_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 10, 4, NULL);
	calls = fake_count_all();
	for (i = 0; i < ARRAY_SIZE(cases); i++)
		assert_refused(-EEXIST, "0xa000",
			       gmem_region_add(unit.vm, PAGES(&unit, cases[i].page),
					       PAGES(&unit, cases[i].pages), NULL, &region));
	assert_int_equal(fake_count_all(), calls);
	assert_ptr_equal(region, NO_REGION);
	/* neighbours are welcome */
	unit_region(&unit, 9, 1, NULL);
	unit_region(&unit, 14, 1, NULL);
	unit_end(&unit);
}

/* The kernel's errno for this changed in 7.2; ours did not. */
static void bound_pages_of_a_file_are_not_bound_again(void **state)
{
	static const char *const kernels[] = { "6.18", "6.19", "7.2", "arm64-6.18" };
	static const struct {
		uint64_t page;
		uint64_t pages;
	} cases[] = { { 2, 4 }, { 1, 2 }, { 5, 2 }, { 3, 1 }, { 0, 8 } };
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *first, *region = NO_REGION;
	struct gmem_file *file;
	struct unit unit;
	size_t i, j;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin_vm(&unit, kernels[i]);
		file = unit_file(&unit, 8);
		opts.file = file;
		opts.file_offset = PAGES(&unit, 2);
		assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 4), &opts, &first));
		for (j = 0; j < ARRAY_SIZE(cases); j++) {
			opts.file_offset = PAGES(&unit, cases[j].page);
			assert_refused(-EEXIST, "0x2000",
				       gmem_region_add(unit.vm, PAGES(&unit, 100),
						       PAGES(&unit, cases[j].pages), &opts,
						       &region));
		}
		assert_ptr_equal(region, NO_REGION);
		/* free again once the region is gone */
		assert_ok(gmem_region_remove(first));
		assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 8), &opts, &first));
		gmem_file_free(file);
		unit_end(&unit);
	}
}

/* A plain slot on the mapping may coexist with a bound one on the same pages. */
static void mapped_region_may_share_pages_with_a_bound_one(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *bound, *mapped;
	struct gmem_file *file;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 4);
	plan = unit_plan(&unit, GMEM_BACKING_MAPPED);
	opts.file = file;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 4), &opts, &bound));
	opts.plan = plan;
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 4), PAGES(&unit, 4), &opts, &mapped));
	strcpy(gmem_region_hva(bound), "same pages");
	assert_string_equal(gmem_region_hva(mapped), "same pages");
	gmem_plan_free(plan);
	gmem_file_free(file);
	unit_end(&unit);
}

static void kernel_refusal_keeps_its_errno_and_changes_nothing(void **state)
{
	static const int errnos[] = { ENOMEM, EINVAL, EFAULT, EIO, EPERM };
	struct gmem_region *region = NO_REGION;
	struct gmem_plan *host;
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	GMEM_OPTS(gmem_region_opts, opts, .plan = host);
	for (i = 0; i < ARRAY_SIZE(errnos); i++) {
		fake_fail_next(FAKE_SET_SLOT2, -errnos[i]);
		assert_refused(-errnos[i], "memslot 0",
			       gmem_region_add(unit.vm, 0, unit.page, NULL, &region));
		fake_fail_next(FAKE_SET_SLOT, -errnos[i]);
		assert_refused(-errnos[i], "memslot 0",
			       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	}
	assert_ptr_equal(region, NO_REGION);
	gmem_plan_free(host);
	unit_region(&unit, 0, 1, NULL);
	unit_end(&unit);
}

static void closed_vm_fd_does_not_matter(void **state)
{
	struct gmem_region *region, *more;
	struct fake_slot slot;
	struct unit unit;
	int other;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 0, 1, NULL);
	fake_close(unit.vm_fd);
	/* the number is another VM's, which has a memslot 0 of its own */
	other = fake_new_vm();
	assert_int_equal(other, unit.vm_fd);
	assert_ok(fake_add_slot(other, 0, 0, unit.page));

	assert_ok(gmem_region_add(unit.vm, unit.page, unit.page, NULL, &more));
	assert_ok(gmem_region_move(region, PAGES(&unit, 2)));
	assert_ok(gmem_region_remove(more));
	gmem_vm_free(unit.vm);
	assert_int_equal(fake_slot_count(other), 1);
	assert_true(fake_get_slot(other, 0, &slot));
	assert_int_equal(slot.gpa, 0);
	unit.vm = NULL;
	unit_end(&unit);
}

static void accessors_accept_null(void **state)
{
	struct gmem_region *region;
	uint64_t offset = 77;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 0, 1, NULL);
	assert_ok(gmem_region_remove(NULL));
	assert_int_equal(gmem_region_gpa(NULL), 0);
	assert_int_equal(gmem_region_size(NULL), 0);
	assert_null(gmem_region_hva(NULL));
	assert_int_equal(gmem_region_slot(NULL), UINT32_MAX);
	assert_int_equal(gmem_region_backing(NULL), GMEM_BACKING_NONE);
	assert_null(gmem_region_file(NULL, &offset));
	assert_int_equal(offset, 77);
	assert_refused(-EINVAL, "NULL", gmem_region_move(NULL, 0));
	assert_refused(-EINVAL, "NULL", gmem_region_rebind(NULL, NULL, 0));
	assert_refused(-EINVAL, "NULL", gmem_region_rebind(region, NULL, 0));
	unit_end(&unit);
}

/* ---- lifetimes ---- */

static void region_keeps_its_file_alive(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *a, *b;
	struct gmem_file *file;
	struct unit unit;
	void *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 4);
	assert_ok(gmem_file_map(file, 0, PAGES(&unit, 4), NULL, &hva));
	opts.file = file;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &a));
	opts.file_offset = PAGES(&unit, 2);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 2), PAGES(&unit, 2), &opts, &b));

	/* the file's own mappings go, the regions' stay */
	assert_int_equal(fake_open_mappings(), 3);
	gmem_file_free(file);
	assert_int_equal(fake_open_mappings(), 2);
	strcpy(gmem_region_hva(b), "still here");
	unit_check_region(&unit, a);
	assert_ok(gmem_region_remove(a));
	unit_check_region(&unit, b);
	assert_string_equal(gmem_region_hva(b), "still here");
	assert_ok(gmem_region_remove(b));
	assert_int_equal(fake_open_fds(), 2);
	unit_end(&unit);
}

static void callers_file_keeps_its_contents(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region;
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 1);
	opts.file = file;
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	strcpy(gmem_region_hva(region), "kept");
	assert_ok(gmem_region_remove(region));
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	assert_string_equal(gmem_region_hva(region), "kept");
	gmem_vm_free(unit.vm);
	unit.vm = NULL;
	/* nothing of the library holds the VM but the file */
	fake_close(unit.vm_fd);
	assert_true(fake_vm_exists(unit.vm_fd));
	gmem_file_free(file);
	assert_false(fake_vm_exists(unit.vm_fd));
	unit.vm_fd = -1;
	unit_end(&unit);
}

/* The memslot goes before its mapping and its file: a guest never sees it torn. */
static void slot_is_deleted_first(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 0, 1, NULL);
	fake_fail_next(FAKE_DELETE_SLOT, -EIO);
	assert_refused(-EIO, "memslot 0", gmem_region_remove(region));
	unit_check_region(&unit, region);
	assert_ok(gmem_region_remove(region));
	unit_end(&unit);
}

/* ---- devices ---- */

static struct gmem_region *add_device(const struct unit *unit, uint64_t page, uint64_t pages)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region = NULL;

	assert_ok(gmem_region_add(unit->vm, PAGES(unit, page), PAGES(unit, pages), &opts, &region));
	return region;
}

static void device_has_a_place_and_nothing_else(void **state)
{
	struct gmem_region *device, *upper, *none = NO_REGION;
	struct unit unit;
	uint64_t offset = 77;
	unsigned calls;

	(void)state;
	/* also where no way of backing is possible, and by no call to the kernel */
	unit_begin_vm(&unit, "6.1");
	calls = fake_count_all();
	device = add_device(&unit, 4, 4);
	assert_int_equal(gmem_region_gpa(device), PAGES(&unit, 4));
	assert_int_equal(gmem_region_size(device), PAGES(&unit, 4));
	assert_int_equal(gmem_region_backing(device), GMEM_BACKING_NONE);
	assert_null(gmem_region_hva(device));
	assert_null(gmem_region_file(device, &offset));
	assert_refused(-EEXIST, "0x4000", gmem_region_add(unit.vm, PAGES(&unit, 7), unit.page,
		       &(struct gmem_region_opts){ .size = sizeof(struct gmem_region_opts),
						   .flags = GMEM_REGION_DEVICE }, &none));
	assert_ok(gmem_region_move(device, PAGES(&unit, 6)));
	assert_ok(gmem_region_split(device, unit.page, &upper));
	assert_int_equal(gmem_region_gpa(upper), PAGES(&unit, 7));
	assert_int_equal(gmem_region_size(upper), PAGES(&unit, 3));
	assert_ok(gmem_region_remove(device));
	assert_ok(gmem_region_move(upper, PAGES(&unit, 5)));
	assert_refused(-EOPNOTSUPP, "device", gmem_region_set_dirty_log(upper, 1));
	assert_refused(-EOPNOTSUPP, "device", gmem_region_get_dirty_log(upper, &offset, 1));
	assert_int_equal(fake_count_all(), calls);
	assert_int_equal(offset, 77);
	unit_end(&unit);
}

static void device_takes_no_other_option(void **state)
{
	struct gmem_region *device, *region = NO_REGION;
	struct gmem_plan *host;
	struct gmem_file *file;
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	file = unit_file(&unit, 4);
	const struct gmem_region_opts cases[] = {
#define OPTS(bits, ...)	{ .size = sizeof(struct gmem_region_opts), \
			  .flags = GMEM_REGION_DEVICE | (bits), __VA_ARGS__ }
		OPTS(GMEM_REGION_READONLY),
		OPTS(GMEM_REGION_DIRTY_LOG),
		OPTS(GMEM_REGION_SLOT),
		OPTS(GMEM_REGION_HVA),
		OPTS(GMEM_REGION_CONGRUENT),
		OPTS(0, .plan = host),
		OPTS(0, .file = file),
		OPTS(0, .file_offset = unit.page),
		OPTS(0, .align = unit.page),
#undef OPTS
	};

	for (i = 0; i < ARRAY_SIZE(cases); i++)
		assert_refused(-EINVAL, "device",
			       gmem_region_add(unit.vm, 0, unit.page, &cases[i], &region));
	assert_ptr_equal(region, NO_REGION);
	device = add_device(&unit, 0, 1);
	assert_refused(-EOPNOTSUPP, "device", gmem_region_rebind(device, file, 0));
	gmem_plan_free(host);
	gmem_file_free(file);
	unit_end(&unit);
}

/* ---- congruent addresses ---- */

#define MIB ((uint64_t)1 << 20)

static void congruent_addresses_are_alike(void **state)
{
	static const uint64_t aligns[] = { 64 << 10, 2 * MIB, 8 * MIB };
	static const uint32_t backings[] = { GMEM_BACKING_HOST, GMEM_BACKING_MAPPED,
					     GMEM_BACKING_SHARED };
	struct gmem_region *region;
	struct gmem_file *file;
	struct unit unit;
	uint64_t gpa;
	size_t i, j;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 16);
	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		struct gmem_plan *plan = unit_plan(&unit, backings[i]);

		for (j = 0; j < ARRAY_SIZE(aligns); j++) {
			GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_CONGRUENT,
				  .align = aligns[j], .plan = plan);

			for (gpa = 0; gpa < PAGES(&unit, 900); gpa += PAGES(&unit, 37)) {
				assert_ok(gmem_region_add(unit.vm, gpa, PAGES(&unit, 3), &opts,
							  &region));
				assert_int_equal((gpa - (uintptr_t)gmem_region_hva(region)) % aligns[j],
						 0);
				assert_int_equal(fake_open_mappings(), 1);
				memset(gmem_region_hva(region), 1, PAGES(&unit, 3));
				assert_ok(gmem_region_remove(region));
				assert_int_equal(fake_open_mappings(), 0);
			}
		}

		/* and they stay congruent after a rebind */
		GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_CONGRUENT,
			  .align = 2 * MIB, .plan = plan);
		assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 5), PAGES(&unit, 3), &opts, &region));
		if (backings[i] != GMEM_BACKING_HOST) {
			assert_ok(gmem_region_rebind(region, file, PAGES(&unit, 2)));
			assert_int_equal((uintptr_t)gmem_region_hva(region) % (2 * MIB),
					 PAGES(&unit, 5));
		}
		assert_ok(gmem_region_remove(region));
		gmem_plan_free(plan);
	}
	gmem_file_free(file);
	unit_end(&unit);
}

static void congruence_needs_an_alignment_and_no_address(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_CONGRUENT);
	struct gmem_region *region = NO_REGION;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_refused(-EINVAL, "alignment", gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	opts.align = unit.page / 2;
	assert_refused(-EINVAL, "alignment", gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	opts.align = 3 * unit.page;
	assert_refused(-EINVAL, "alignment", gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	opts.align = 2 * MIB;
	opts.flags |= GMEM_REGION_HVA;
	opts.hva = &opts;
	assert_refused(-EINVAL, "exclude", gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	assert_ptr_equal(region, NO_REGION);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(region_is_backed_as_the_plan_says),
	cmocka_unit_test(region_without_options_is_shared),
	cmocka_unit_test(plain_regions_take_flags),
	cmocka_unit_test(bound_regions_refuse_logs_and_read_only),
	cmocka_unit_test(private_region_keeps_shared_memory_beside_the_file),
	cmocka_unit_test(callers_memory_is_never_unmapped),
	cmocka_unit_test(mapping_of_a_region_goes_where_it_is_told),
	cmocka_unit_test(one_file_backs_many_regions),
	cmocka_unit_test(region_s_file_has_the_flags_of_the_plan),
	cmocka_unit_test(add_rejects_bad_ranges_on_every_page_size),
	cmocka_unit_test(region_has_fewer_than_2_to_the_31_pages),
	cmocka_unit_test(unknown_address_bits_are_the_kernel_s_to_refuse),
	cmocka_unit_test(add_rejects_bad_options),
	cmocka_unit_test(add_rejects_a_file_the_plan_does_not_fit),
	cmocka_unit_test(add_rejects_the_file_of_another_vm),
	cmocka_unit_test(add_rejects_every_overlap_before_asking_the_kernel),
	cmocka_unit_test(bound_pages_of_a_file_are_not_bound_again),
	cmocka_unit_test(mapped_region_may_share_pages_with_a_bound_one),
	cmocka_unit_test(kernel_refusal_keeps_its_errno_and_changes_nothing),
	cmocka_unit_test(closed_vm_fd_does_not_matter),
	cmocka_unit_test(accessors_accept_null),
	cmocka_unit_test(region_keeps_its_file_alive),
	cmocka_unit_test(callers_file_keeps_its_contents),
	cmocka_unit_test(slot_is_deleted_first),
	cmocka_unit_test(device_has_a_place_and_nothing_else),
	cmocka_unit_test(device_takes_no_other_option),
	cmocka_unit_test(congruent_addresses_are_alike),
	cmocka_unit_test(congruence_needs_an_alignment_and_no_address),
};

UNIT_MAIN(tests)
