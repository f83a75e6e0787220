/* SPDX-License-Identifier: MIT */
/*
 * All modules: every system call and every allocation of every public function is
 * made to fail in turn. After a failure the kernel's state is as before, the output
 * is untouched, and the same call then succeeds: the library's own state is as
 * before, too.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "unit.h"
#include "unit_alloc.h"

/* ---- one public function in one situation ---- */

struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_file *file;		/* mappable, 8 pages */
	struct gmem_region *region;	/* 2 pages at gpa page 4 */
	void *hva;			/* the file's pages, or the caller's memory */
	void *out;			/* output of the function */
	int fd;
};

struct operation {
	const char *name;
	const char *kernel;
	uint32_t backing;
	void (*prepare)(struct scene *scene);
	int (*run)(struct scene *scene);
	void (*finish)(struct scene *scene);
	bool tolerant;		/* may succeed though a call failed */
};

static void prepare_file(struct scene *s)
{
	s->file = unit_file(&s->unit, 8);
}

static void prepare_mapping(struct scene *s)
{
	prepare_file(s);
	assert_ok(gmem_file_map(s->file, 0, PAGES(&s->unit, 8), NULL, &s->hva));
}

static void prepare_region(struct scene *s)
{
	s->region = unit_region(&s->unit, 4, 2, s->plan);
}

static void prepare_rebind(struct scene *s)
{
	prepare_region(s);
	assert_ok(gmem_file_new_raw(s->unit.vm_fd, PAGES(&s->unit, 8),
				    gmem_plan_create_flags(s->plan), &s->file));
}

static void prepare_gmemfd(struct scene *s)
{
	s->fd = fake_new_gmemfd(s->unit.vm_fd, PAGES(&s->unit, 2), 3);
}

static void free_caps(struct scene *s)
{
	struct gmem_finding f;
	uint32_t i;

	/* a report with unknown lines is still a valid one */
	for (i = 0; gmem_caps_get(s->out, i, &f) == 0; i++) {
		assert_true(f.reason && *f.reason);
		assert_int_equal(f.answer == GMEM_NO, f.remedy != NULL);
	}
	gmem_caps_free(s->out);
}

static void free_plan(struct scene *s)
{
	gmem_plan_free(s->out);
}

static void free_file(struct scene *s)
{
	gmem_file_free(s->out);
}

static void free_vm(struct scene *s)
{
	gmem_vm_free(s->out);
}

static int run_caps(struct scene *s)
{
	return gmem_caps_new(s->unit.vm_fd, NULL, (struct gmem_caps **)&s->out);
}

static int run_caps_without_vm(struct scene *s)
{
	return gmem_caps_new(GMEM_NO_VM, NULL, (struct gmem_caps **)&s->out);
}

static int run_caps_with_guest(struct scene *s)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_RUN_GUEST | GMEM_CAPS_VM_TYPE,
		  .vm_type = fake.vm_type);

	return gmem_caps_new(s->unit.vm_fd, &opts, (struct gmem_caps **)&s->out);
}

static int run_plan(struct scene *s)
{
	return gmem_plan_new(s->unit.caps, NULL, (struct gmem_plan **)&s->out);
}

static int run_file_new(struct scene *s)
{
	return gmem_file_new(s->unit.vm_fd, PAGES(&s->unit, 2), s->plan,
			     (struct gmem_file **)&s->out);
}

static int run_file_new_raw(struct scene *s)
{
	return gmem_file_new_raw(s->unit.vm_fd, PAGES(&s->unit, 2), 1,
				 (struct gmem_file **)&s->out);
}

static int run_adopt(struct scene *s)
{
	return gmem_file_adopt(s->unit.vm_fd, s->fd, NULL, (struct gmem_file **)&s->out);
}

static int run_adopt_without_vm(struct scene *s)
{
	return gmem_file_adopt(GMEM_NO_VM, s->fd, NULL, (struct gmem_file **)&s->out);
}

static int run_map(struct scene *s)
{
	return gmem_file_map(s->file, s->unit.page, PAGES(&s->unit, 2), NULL, &s->out);
}

static int run_map_aligned(struct scene *s)
{
	GMEM_OPTS(gmem_map_opts, opts, .align = 1 << 21);

	return gmem_file_map(s->file, 0, PAGES(&s->unit, 2), &opts, &s->out);
}

/* Over memory of the test's own; that is lost, as the header says */
static int run_map_replace(struct scene *s)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE, .hva = s->hva);

	return gmem_file_map(s->file, 0, PAGES(&s->unit, 2), &opts, &s->out);
}

static void prepare_replace(struct scene *s)
{
	prepare_file(s);
	s->hva = mmap(NULL, PAGES(&s->unit, 2), PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(s->hva, MAP_FAILED);
}

static int unmap(struct scene *s, uint64_t first, uint64_t pages)
{
	int err = gmem_file_unmap(s->file, (char *)s->hva + PAGES(&s->unit, first),
				  PAGES(&s->unit, pages));
	uint64_t offset;

	/* the lookup knows what happened, and what did not */
	assert_int_equal(gmem_file_find_hva(s->file, (char *)s->hva +
					    PAGES(&s->unit, first), &offset),
			 err ? 0 : -ENOENT);
	return err;
}

static int run_unmap_head(struct scene *s)
{
	return unmap(s, 0, 2);
}

static int run_unmap_middle(struct scene *s)
{
	return unmap(s, 3, 2);
}

static int run_unmap_tail(struct scene *s)
{
	return unmap(s, 6, 2);
}

static int run_unmap_all(struct scene *s)
{
	return unmap(s, 0, 8);
}

static int run_allocate(struct scene *s)
{
	return gmem_file_allocate(s->file, 0, PAGES(&s->unit, 8), NULL);
}

static int run_punch(struct scene *s)
{
	return gmem_file_punch(s->file, 0, PAGES(&s->unit, 8), NULL);
}

static int run_vm_new(struct scene *s)
{
	return gmem_vm_new(s->unit.vm_fd, NULL, (struct gmem_vm **)&s->out);
}

static int run_vm_new_with_caps(struct scene *s)
{
	GMEM_OPTS(gmem_vm_opts, opts, .caps = s->unit.caps);

	return gmem_vm_new(s->unit.vm_fd, &opts, (struct gmem_vm **)&s->out);
}

static int run_reserve(struct scene *s)
{
	return gmem_vm_reserve_slots(s->unit.vm, 5, 500);
}

static int add(struct scene *s, const struct gmem_region_opts *opts)
{
	return gmem_region_add(s->unit.vm, PAGES(&s->unit, 4), PAGES(&s->unit, 2), opts,
			       (struct gmem_region **)&s->out);
}

static int run_add(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);

	return add(s, &opts);
}

static int run_add_memfd(struct scene *s)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD | GMEM_MEMORY_DONTFORK);
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .memory = &memory);

	return add(s, &opts);
}

static int run_add_memory_fd(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_MEMORY_FD,
		  .memory_fd = memfd_create("caller's", MFD_CLOEXEC));
	int err;

	assert_int_equal(ftruncate(opts.memory_fd, 64 << 20), 0);
	err = add(s, &opts);
	close(opts.memory_fd);
	return err;
}

static int run_add_aligned(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .align = 1 << 21);

	return add(s, &opts);
}

static int run_add_at_slot(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_SLOT,
		  .slot = 99);

	return add(s, &opts);
}

static int run_add_of_file(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .file = s->file,
		  .file_offset = s->unit.page);

	return add(s, &opts);
}

static int run_remove(struct scene *s)
{
	return gmem_region_remove(s->region);
}

static int run_move(struct scene *s)
{
	int err = gmem_region_move(s->region, PAGES(&s->unit, 5));

	assert_int_equal(gmem_region_gpa(s->region), PAGES(&s->unit, err ? 4 : 5));
	return err;
}

static int run_rebind(struct scene *s)
{
	struct gmem_file *before = gmem_region_file(s->region, NULL);
	int err = gmem_region_rebind(s->region, s->file, s->unit.page);

	assert_ptr_equal(gmem_region_file(s->region, NULL), err ? before : s->file);
	return err;
}

static int run_split(struct scene *s)
{
	int err = gmem_region_split(s->region, s->unit.page, (struct gmem_region **)&s->out);

	assert_int_equal(gmem_region_size(s->region), PAGES(&s->unit, err ? 2 : 1));
	return err;
}

static void prepare_device(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);

	assert_ok(gmem_region_add(s->unit.vm, PAGES(&s->unit, 4), PAGES(&s->unit, 2), &opts,
				  &s->region));
}

static int run_add_congruent(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_CONGRUENT,
		  .align = 1 << 21);

	return add(s, &opts);
}

static int run_set_dirty_log(struct scene *s)
{
	return gmem_region_set_dirty_log(s->region, 1);
}

static void prepare_dirty_log(struct scene *s)
{
	prepare_region(s);
	assert_ok(gmem_region_set_dirty_log(s->region, 1));
}

static int run_get_dirty_log(struct scene *s)
{
	uint64_t bitmap[1];

	return gmem_region_get_dirty_log(s->region, bitmap, 1);
}

/* membarrier() is not needed, only better */
static int run_view(struct scene *s)
{
	return gmem_view_new(s->unit.vm, (struct gmem_view **)&s->out);
}

static void free_view(struct scene *s)
{
	gmem_view_free(s->out);
}

#define HOST	GMEM_BACKING_HOST
#define MAPPED	GMEM_BACKING_MAPPED
#define SHARED	GMEM_BACKING_SHARED
#define PRIVATE	GMEM_BACKING_PRIVATE

static const struct operation operations[] = {
	{ "report", "6.18", HOST, NULL, run_caps, free_caps, true },
	{ "report", "6.12-sev", HOST, NULL, run_caps, free_caps, true },
	{ "report", "arm64-7.3-16k", HOST, NULL, run_caps, free_caps, true },
	{ "report", "7.3-swp-t1", HOST, NULL, run_caps, free_caps, true },
	{ "report of the host", "6.18", HOST, NULL, run_caps_without_vm, free_caps, true },
	{ "report with guest", "6.18", HOST, NULL, run_caps_with_guest, free_caps, true },
	{ "report with guest", "7.3-swp-t1", HOST, NULL, run_caps_with_guest, free_caps, true },
	{ "plan", "6.18", HOST, NULL, run_plan, free_plan, false },
	{ "file", "6.18", SHARED, NULL, run_file_new, free_file, false },
	{ "file", "6.12-swp-t1", PRIVATE, NULL, run_file_new, free_file, false },
	{ "raw file", "6.18", HOST, NULL, run_file_new_raw, free_file, false },
	/* tolerant: -EFAULT for a touch is an answer, the file is private then */
	{ "adopt", "6.18", HOST, prepare_gmemfd, run_adopt, free_file, true },
	{ "adopt", "7.2", HOST, prepare_gmemfd, run_adopt, free_file, true },
	{ "adopt without VM", "6.18", HOST, prepare_gmemfd, run_adopt_without_vm, free_file,
	  true },
	{ "map", "6.18", HOST, prepare_file, run_map, NULL, false },
	{ "map aligned", "6.18", HOST, prepare_file, run_map_aligned, NULL, false },
	{ "map aligned", "arm64-7.3-64k", HOST, prepare_file, run_map_aligned, NULL, false },
	{ "map replacing", "6.18", HOST, prepare_replace, run_map_replace, NULL, false },
	{ "unmap head", "6.18", HOST, prepare_mapping, run_unmap_head, NULL, false },
	{ "unmap middle", "6.18", HOST, prepare_mapping, run_unmap_middle, NULL, false },
	{ "unmap tail", "6.18", HOST, prepare_mapping, run_unmap_tail, NULL, false },
	{ "unmap all", "6.18", HOST, prepare_mapping, run_unmap_all, NULL, false },
	{ "allocate", "6.18", HOST, prepare_file, run_allocate, NULL, false },
	{ "punch", "6.18", HOST, prepare_file, run_punch, NULL, false },
	{ "VM", "6.18", HOST, NULL, run_vm_new, free_vm, true },
	{ "VM with report", "6.18", HOST, NULL, run_vm_new_with_caps, free_vm, false },
	{ "reserve", "6.18", HOST, NULL, run_reserve, NULL, false },
	{ "add host", "6.1", HOST, NULL, run_add, NULL, false },
	{ "add host memfd", "6.1", HOST, NULL, run_add_memfd, NULL, true },
	{ "add part of a file", "6.1", HOST, NULL, run_add_memory_fd, NULL, false },
	{ "add private memfd", "7.3-swp-t1", PRIVATE, NULL, run_add_memfd, NULL, true },
	{ "add mapped", "6.18", MAPPED, NULL, run_add, NULL, false },
	{ "add shared", "6.18", SHARED, NULL, run_add, NULL, false },
	{ "add shared", "arm64-7.3-64k", SHARED, NULL, run_add, NULL, false },
	{ "add private", "7.3-swp-t1", PRIVATE, NULL, run_add, NULL, false },
	{ "add aligned host", "6.18", HOST, NULL, run_add_aligned, NULL, false },
	{ "add aligned shared", "6.18", SHARED, NULL, run_add_aligned, NULL, false },
	{ "add at slot", "6.18", SHARED, NULL, run_add_at_slot, NULL, false },
	{ "add mapped of file", "6.18", MAPPED, prepare_file, run_add_of_file, NULL, false },
	{ "add shared of file", "6.18", SHARED, prepare_file, run_add_of_file, NULL, false },
	{ "remove host", "6.18", HOST, prepare_region, run_remove, NULL, false },
	{ "remove mapped", "6.18", MAPPED, prepare_region, run_remove, NULL, false },
	{ "remove shared", "6.18", SHARED, prepare_region, run_remove, NULL, false },
	{ "remove private", "7.3-swp-t1", PRIVATE, prepare_region, run_remove, NULL, false },
	/* tolerant: what KVM does not move is deleted and added */
	{ "move host", "6.18", HOST, prepare_region, run_move, NULL, true },
	{ "move shared", "6.18", SHARED, prepare_region, run_move, NULL, false },
	{ "move private", "7.3-swp-t1", PRIVATE, prepare_region, run_move, NULL, false },
	{ "rebind mapped", "6.18", MAPPED, prepare_rebind, run_rebind, NULL, false },
	{ "rebind shared", "7.2", SHARED, prepare_rebind, run_rebind, NULL, false },
	{ "rebind private", "7.3-swp-t1", PRIVATE, prepare_rebind, run_rebind, NULL, false },
	{ "split host", "6.18", HOST, prepare_region, run_split, NULL, false },
	{ "split mapped", "6.18", MAPPED, prepare_region, run_split, NULL, false },
	{ "split shared", "6.18", SHARED, prepare_region, run_split, NULL, false },
	{ "split private", "7.3-swp-t1", PRIVATE, prepare_region, run_split, NULL, false },
	{ "split device", "6.18", HOST, prepare_device, run_split, NULL, false },
	{ "add congruent host", "6.18", HOST, NULL, run_add_congruent, NULL, false },
	{ "add congruent shared", "6.18", SHARED, NULL, run_add_congruent, NULL, false },
	{ "begin dirty log", "6.18", HOST, prepare_region, run_set_dirty_log, NULL, false },
	{ "get dirty log", "6.18", MAPPED, prepare_dirty_log, run_get_dirty_log, NULL, false },
	{ "view", "6.18", HOST, prepare_region, run_view, free_view, true },
};

/* ---- the play ---- */

static char untouched;

static void raise_curtain(struct scene *s, const struct operation *op)
{
	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, op->kernel);
	s->plan = unit_plan(&s->unit, op->backing);
	s->out = &untouched;
	s->fd = -1;
	if (op->prepare)
		op->prepare(s);
}

static void drop_curtain(struct scene *s, const struct operation *op)
{
	if (op->finish)
		op->finish(s);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_file_free(s->file);
	gmem_plan_free(s->plan);
	if (s->fd >= 0)
		fake_close(s->fd);
	unit_end(&s->unit);
}

static void check_failure(struct scene *s, const struct operation *op,
			  struct fake_snapshot *before, const char *what, unsigned n, int err)
{
	if (!fake_equal(before))
		fail_msg("%s on %s: failing %s, call %u, changed something", op->name,
			 op->kernel, what, n);
	if (s->out != &untouched)
		fail_msg("%s on %s: failing %s, call %u, touched the output", op->name,
			 op->kernel, what, n);
	if (!*gmem_last_error())
		fail_msg("%s on %s: failing %s, call %u, has no sentence", op->name,
			 op->kernel, what, n);
	if (err != gmem_error_of_sentence())
		fail_msg("%s on %s: failing %s, call %u, gives %d with the sentence of %d: %s",
			 op->name, op->kernel, what, n, err, gmem_error_of_sentence(),
			 gmem_last_error());
	if (op->run(s))
		fail_msg("%s on %s: after failing %s, call %u: %s", op->name, op->kernel,
			 what, n, gmem_last_error());
}

/* A failure that a call tolerates leaves nothing in the kernel. */
static void check_success(const struct operation *op, struct fake_snapshot *before)
{
	bool is_object_only = op->run == run_caps || op->run == run_caps_with_guest ||
			      op->run == run_caps_without_vm || op->run == run_vm_new;

	if (is_object_only && !fake_equal(before))
		fail_msg("%s on %s: a tolerated failure of %s left something", op->name,
			 op->kernel, fake_call_name(fake_fail_victim()));
	if (!is_object_only)
		fake_forget(before);
}

static bool fail_call(const struct operation *op, unsigned n, int err)
{
	struct fake_snapshot *before;
	const char *victim;
	struct scene s;
	bool struck;
	int ret;

	raise_curtain(&s, op);
	before = fake_snapshot();
	fake_fail_call(n, err);
	ret = op->run(&s);
	struck = fake_fail_struck();
	victim = struck ? fake_call_name(fake_fail_victim()) : "nothing";

	if (!struck && ret)
		fail_msg("%s on %s: %s", op->name, op->kernel, gmem_last_error());
	if (struck && !ret && !op->tolerant)
		fail_msg("%s on %s: succeeds though %s failed", op->name, op->kernel, victim);
	if (ret)
		check_failure(&s, op, before, victim, n, ret);
	else
		check_success(op, before);
	drop_curtain(&s, op);
	return struck;
}

static void every_system_call_may_fail(void **state)
{
	static const int errnos[] = { ENOMEM, EINVAL, EMFILE, EIO, EFAULT, EPERM };
	unsigned n, most = 0;
	size_t i, j;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(operations); i++) {
		for (j = 0; j < ARRAY_SIZE(errnos); j++) {
			for (n = 1; fail_call(&operations[i], n, -errnos[j]); n++)
				;
			most = n > most ? n : most;
		}
	}
	/* it did find calls to fail */
	assert_true(most > 10);
}

static bool fail_malloc(const struct operation *op, unsigned n)
{
	struct fake_snapshot *before;
	struct scene s;
	bool struck;
	int ret;

	raise_curtain(&s, op);
	before = fake_snapshot();
	unit_fail_alloc(n);
	ret = op->run(&s);
	struck = unit_alloc_struck();

	if (ret != (struck ? -ENOMEM : 0))
		fail_msg("%s on %s: allocation %u gives %d", op->name, op->kernel, n, ret);
	if (ret)
		check_failure(&s, op, before, "an allocation", n, ret);
	else
		check_success(op, before);
	drop_curtain(&s, op);
	return struck;
}

static void every_allocation_may_fail(void **state)
{
	unsigned n, sum = 0;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(operations); i++)
		for (n = 1; fail_malloc(&operations[i], n); n++)
			sum++;
	assert_true(sum > 10);
}

/* Freeing cannot say no: whatever fails, nothing of the library's is left. */
static void free_leaves_nothing_whatever_fails(void **state)
{
	static const uint32_t backings[] = { HOST, MAPPED, SHARED };
	struct gmem_file *file;
	struct unit unit;
	bool struck = true;
	void *hva;
	unsigned n;
	size_t i;

	(void)state;
	for (n = 1; struck; n++) {
		unit_begin_vm(&unit, "6.18");
		for (i = 0; i < ARRAY_SIZE(backings); i++) {
			unit_region_backed(&unit, 2 * i, 2, backings[i]);
		}
		file = unit_file(&unit, 2);
		assert_ok(gmem_file_map(file, 0, unit.page, NULL, &hva));
		fake_fail_call(n, -ENOMEM);
		gmem_vm_free(unit.vm);
		gmem_file_free(file);
		struck = fake_fail_struck();
		gmem_caps_free(unit.caps);
		assert_int_equal(fake_open_mappings(), 0);
		assert_int_equal(fake_open_fds(), 1);
		fake_close(unit.vm_fd);
		assert_int_equal(fake_halt(), 0);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(every_system_call_may_fail),
	cmocka_unit_test(every_allocation_may_fail),
	cmocka_unit_test(free_leaves_nothing_whatever_fails),
};

UNIT_MAIN(tests)
