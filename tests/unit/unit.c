/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

void unit_begin_vm(struct unit *unit, const char *kernel)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = 0);

	unit_begin(unit, kernel);
	opts.caps = unit->caps;
	assert_ok(gmem_vm_new(unit->vm_fd, &opts, &unit->vm));
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

void unit_check_refusal(int ret, int err, const char *fragment,
			struct fake_snapshot *before, const char *call, const char *file,
			int line)
{
	const char *sentence = gmem_last_error();

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
