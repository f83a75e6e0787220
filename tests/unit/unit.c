/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "base/error.h"
#include "os/kvm_compat.h"
#include "unit.h"

void unit_begin(struct unit *unit, const char *kernel)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_VM_TYPE);

	memset(unit, 0, sizeof(*unit));
	fake_boot(kernel);
	unit->vm_fd = fake_new_vm();
	unit->page = fake.page_size;
	opts.vm_type = fake.vm_type;
	assert_ok(gmem_caps_new(unit->vm_fd, &opts, &unit->caps));
}

static void make_vm(struct unit *unit)
{
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit->caps);

	assert_ok(gmem_vm_new(unit->vm_fd, &opts, &unit->vm));
}

void unit_begin_vm(struct unit *unit, const char *kernel)
{
	unit_begin(unit, kernel);
	make_vm(unit);
}

void unit_begin_vm_pages(struct unit *unit, const char *kernel, uint64_t page_size)
{
	unit_begin(unit, kernel);
	fake_set_page_size(page_size);
	unit->page = page_size;
	make_vm(unit);
}

void unit_free_vm(struct unit *unit, bool with_vm)
{
	if (with_vm) {
		fake_kill_vm(unit->vm_fd);
		fake_close(unit->vm_fd);
		unit->vm_fd = -1;
		gmem_vm_free_with_vm(unit->vm);
	} else {
		gmem_vm_free(unit->vm);
	}
	unit->vm = NULL;
}

void unit_end(struct unit *unit)
{
	gmem_vm_free(unit->vm);
	gmem_caps_free(unit->caps);
	if (unit->vm_fd >= 0)
		fake_close(unit->vm_fd);
	assert_int_equal(fake_complaints(), 0);
	assert_int_equal(fake_halt(), 0);
}

struct gmem_plan *unit_plan(const struct unit *unit, uint32_t backing)
{
	GMEM_OPTS(gmem_request, request, .backings = { backing });
	struct gmem_plan *plan = NULL;

	assert_ok(gmem_plan_new(unit->caps, &request, &plan));
	return plan;
}

struct gmem_plan *unit_plan_mappable_private(const struct unit *unit)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE },
		  .required_flags = GMEM_CREATE_MMAP);
	struct gmem_plan *plan = NULL;

	assert_ok(gmem_plan_new(unit->caps, &request, &plan));
	return plan;
}

struct gmem_file *unit_file(const struct unit *unit, uint64_t pages)
{
	struct gmem_file *file = NULL;

	assert_ok(gmem_file_new_raw(unit->vm_fd, PAGES(unit, pages),
				    GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED, &file));
	return file;
}

struct gmem_region *unit_region(const struct unit *unit, uint64_t gpa_page, uint64_t pages,
				const struct gmem_plan *plan)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	struct gmem_region *region = NULL;

	assert_ok(gmem_region_add(unit->vm, PAGES(unit, gpa_page), PAGES(unit, pages), &opts,
				  &region));
	return region;
}

struct gmem_region *unit_region_backed(const struct unit *unit, uint64_t gpa_page, uint64_t pages,
				       uint32_t backing)
{
	struct gmem_plan *plan = unit_plan(unit, backing);
	struct gmem_region *region = unit_region(unit, gpa_page, pages, plan);

	gmem_plan_free(plan);
	return region;
}

struct fake_slot unit_slot(const struct unit *unit, const struct gmem_region *region)
{
	struct fake_slot slot;

	assert_true(fake_get_slot(unit->vm_fd, gmem_region_slot(region), &slot));
	return slot;
}

void unit_check_region(const struct unit *unit, const struct gmem_region *region)
{
	struct fake_slot slot = unit_slot(unit, region);
	uint64_t file_offset = 0, map_offset = 0;
	struct gmem_file *file = gmem_region_file(region, &file_offset);
	uint32_t backing = gmem_region_backing(region);
	bool bound = backing == GMEM_BACKING_SHARED || backing == GMEM_BACKING_PRIVATE;
	bool is_map = backing == GMEM_BACKING_SHARED || backing == GMEM_BACKING_MAPPED;
	int id = file ? fake_file_of_fd(gmem_file_fd(file)) : 0;

	assert_int_equal(slot.gpa, gmem_region_gpa(region));
	assert_int_equal(slot.size, gmem_region_size(region));
	assert_int_equal(slot.hva, (uintptr_t)gmem_region_hva(region));
	assert_int_equal(slot.flags & KVM_MEM_GUEST_MEMFD, bound ? KVM_MEM_GUEST_MEMFD : 0);
	assert_int_equal(slot.file, bound ? id : 0);
	if (bound)
		assert_int_equal(slot.offset, file_offset);
	if (is_map) {
		assert_int_equal(fake_file_at(gmem_region_hva(region), &map_offset), id);
		assert_int_equal(map_offset, file_offset);
	}
}

const struct unit_way unit_ways[UNIT_WAYS] = {
	{ "6.18", GMEM_BACKING_HOST },
	{ "6.18", GMEM_BACKING_MAPPED },
	{ "6.18", GMEM_BACKING_SHARED },
	{ "arm64-7.3-16k", GMEM_BACKING_SHARED },
	{ "arm64-7.3-64k", GMEM_BACKING_HOST },
	{ "7.3-swp-t1", GMEM_BACKING_PRIVATE },
};

void unit_check_footprint(const struct gmem_footprint *footprint, uint64_t done, uint64_t before,
			  uint64_t after)
{
	assert_int_equal(footprint->done, done);
	assert_int_equal(footprint->before, before);
	assert_int_equal(footprint->after, after);
	assert_int_equal(footprint->counted, 1);
	assert_int_equal(footprint->reserved, 0);
}

void *unit_free_address(const struct unit *unit, uint64_t pages)
{
	void *space = mmap(NULL, PAGES(unit, pages + 16), PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uintptr_t hva = (uintptr_t)space;

	assert_ptr_not_equal(space, MAP_FAILED);
	munmap(space, PAGES(unit, pages + 16));
	return (void *)((hva + unit->page - 1) / unit->page * unit->page);
}

void *unit_memory(const struct unit *unit, uint64_t pages)
{
	void *memory = NULL;

	if (posix_memalign(&memory, unit->page, PAGES(unit, pages)))
		fail_msg("no memory for the test");
	memset(memory, 0, PAGES(unit, pages));
	return memory;
}

void unit_memory_free(void *memory)
{
	free(memory);
}

int unit_no_huge_pages(void **state)
{
	(void)state;
	return prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

void unit_check_refusal(int ret, int err, const char *fragment,
			struct fake_snapshot *before, const char *call, const char *file,
			int line)
{
	const char *sentence = gmem_last_error();

	if (ret == err && gmem_error_of_sentence() != err) {
		print_error("%s\ngives %d with the sentence of %d: %s\n", call, ret,
			    gmem_error_of_sentence(), sentence);
		_fail(file, line);
	}
	if (ret != err) {
		print_error("%s\ngives %d (%s), not %d (%s); the sentence: %s\n", call, ret,
			    strerror(-ret), err, strerror(-err), sentence);
		_fail(file, line);
	}
	if (!fake_equal(before)) {
		print_error("%s\nchanged something\n", call);
		_fail(file, line);
	}
	if (!*sentence || strchr(sentence, '\n') || !strstr(sentence, fragment)) {
		print_error("%s\nsays \"%s\", not \"%s\"\n", call, sentence, fragment);
		_fail(file, line);
	}
}
