/* SPDX-License-Identifier: MIT */
/* present_pages: what exists is found, whatever the page tables, the file and mincore() say of it */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "os/sys.h"
#include "region/host_look.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "unit.h"

/* Enough for the page tables to be asked */
#define COUNT 320

enum memory { GMEM, ANONYMOUS, SHARED, MEMFD, MEMORIES };

struct scene {
	struct unit unit;
	struct gmem_region *region;
	enum memory memory;
	char *hva;
	void *own;		/* memory of the test's, or NULL */
	int fd;
	bool exists[COUNT];
	bool found[COUNT];
};

static void *map_own(struct scene *scene)
{
	uint64_t size = PAGES(&scene->unit, COUNT);
	void *hva;

	if (scene->memory == ANONYMOUS)
		hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	else if (scene->memory == SHARED)
		hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	else
		hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, scene->fd, 0);
	assert_true(hva != MAP_FAILED);
	return hva;
}

static void begin(struct scene *scene, enum memory memory)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_plan *plan;

	memset(scene, 0, sizeof(*scene));
	scene->memory = memory;
	scene->fd = -1;
	unit_begin_vm(&scene->unit, "6.18");
	if (memory == GMEM) {
		scene->region = unit_region_backed(&scene->unit, 16, COUNT, GMEM_BACKING_SHARED);
		scene->hva = gmem_region_hva(scene->region);
		return;
	}
	if (memory == MEMFD) {
		scene->fd = memfd_create("guest", MFD_CLOEXEC);
		assert_true(scene->fd >= 0);
		assert_ok(ftruncate(scene->fd, (off_t)PAGES(&scene->unit, COUNT)));
	}
	scene->own = opts.hva = map_own(scene);
	plan = unit_plan(&scene->unit, GMEM_BACKING_HOST);
	opts.plan = plan;
	assert_ok(gmem_region_add(scene->unit.vm, 0, PAGES(&scene->unit, COUNT), &opts, &scene->region));
	gmem_plan_free(plan);
	scene->hva = scene->own;
}

static void end(struct scene *scene)
{
	uint64_t size = PAGES(&scene->unit, COUNT);

	unit_end(&scene->unit);
	if (scene->own)
		munmap(scene->own, size);
	if (scene->fd >= 0)
		close(scene->fd);
}

static void touch(struct scene *scene, unsigned int page)
{
	scene->hva[PAGES(&scene->unit, page)] = 1;
	scene->exists[page] = true;
}

/* Each page of which there is one in @one_in */
static void touch_some(struct scene *scene, unsigned int one_in)
{
	for (unsigned int i = 0; i < COUNT; i++)
		if (i % one_in == 0)
			touch(scene, i);
}

static int note(void *data, uint64_t offset, uint64_t size)
{
	struct scene *scene = data;
	uint64_t page = scene->unit.page;

	assert_true(size > 0 && offset % page == 0 && size % page == 0);
	for (uint64_t i = offset / page; i < (offset + size) / page; i++) {
		assert_false(scene->found[i]);
		scene->found[i] = true;
	}
	return 0;
}

static int walk(struct scene *scene)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	int err;

	memset(scene->found, 0, sizeof(scene->found));
	err = gmem_region_present_pages(scene->region, GMEM_SIDE_SHARED, 0, PAGES(&scene->unit, COUNT), &look,
					note, scene);
	gmem_host_look_end(&look);
	return err;
}

static void assert_exact(struct scene *scene)
{
	assert_ok(walk(scene));
	assert_memory_equal(scene->found, scene->exists, sizeof(scene->found));
}

/* What exists is found; what does not may be. */
static void assert_none_missing(struct scene *scene)
{
	assert_ok(walk(scene));
	for (unsigned int i = 0; i < COUNT; i++)
		assert_true(scene->found[i] || !scene->exists[i]);
}

static uint64_t resident(struct scene *scene)
{
	uint64_t bytes = UINT64_MAX;

	assert_ok(gmem_region_memory_resident(scene->region, GMEM_SIDE_SHARED, 0,
					      PAGES(&scene->unit, COUNT), &bytes));
	return bytes;
}

static void pages_are_found_however_many_there_are(void **state)
{
	static const unsigned int one_in[] = { COUNT, 8, 3, 2, 1 };
	struct scene scene;

	(void)state;
	for (unsigned int m = 0; m < MEMORIES; m++)
		for (unsigned int i = 0; i < ARRAY_SIZE(one_in); i++) {
			begin(&scene, m);
			assert_exact(&scene);
			touch_some(&scene, one_in[i]);
			assert_exact(&scene);
			/* All but a few */
			for (unsigned int page = 5; page < COUNT - 3; page++)
				touch(&scene, page);
			assert_exact(&scene);
			end(&scene);
		}
}

static void what_is_all_mapped_needs_no_other_question(void **state)
{
	unsigned int before[3];
	struct scene scene;

	(void)state;
	for (unsigned int m = 0; m < MEMORIES; m++) {
		begin(&scene, m);
		touch_some(&scene, 1);
		before[0] = fake_count(FAKE_CACHESTAT);
		before[1] = fake_count(FAKE_MINCORE);
		before[2] = fake_count(FAKE_PAGEMAP);
		assert_exact(&scene);
		if (m == GMEM)
			assert_int_equal(resident(&scene), PAGES(&scene.unit, COUNT));
		assert_int_equal(fake_count(FAKE_CACHESTAT), before[0]);
		assert_int_equal(fake_count(FAKE_MINCORE), before[1]);
		assert_int_equal(fake_count(FAKE_PAGEMAP), before[2]);
		end(&scene);
	}
}

static void pages_that_are_not_mapped_are_found(void **state)
{
	static const struct { unsigned int start, count; } parts[] = {
		{ 0, COUNT }, { 0, 1 }, { COUNT - 1, 1 }, { 7, 130 }, { 160, 2 },
	};
	struct scene scene;

	(void)state;
	for (unsigned int m = 0; m < MEMORIES; m++) {
		if (m == ANONYMOUS)
			continue;
		for (unsigned int i = 0; i < ARRAY_SIZE(parts); i++) {
			begin(&scene, m);
			touch_some(&scene, 4);
			fake_unmap_pages(scene.hva + PAGES(&scene.unit, parts[i].start),
					 PAGES(&scene.unit, parts[i].count));
			assert_exact(&scene);
			for (unsigned int page = 0; page < COUNT; page++)
				touch(&scene, page);
			assert_exact(&scene);
			if (m == GMEM)
				assert_int_equal(resident(&scene), PAGES(&scene.unit, COUNT));
			end(&scene);
		}
	}
}

/* As many pages come as exist without being mapped; and as many go, which nobody holds. */
static struct scene *moving;
static unsigned int moves;

static void touch_one_more(void)
{
	touch(moving, 200 + moves++);
}

static void pages_that_come_meanwhile_hide_no_other(void **state)
{
	struct scene scene;

	(void)state;
	for (unsigned int m = 0; m < MEMORIES; m++) {
		begin(&scene, m);
		touch(&scene, 3);
		touch(&scene, 90);
		if (m != ANONYMOUS)
			fake_unmap_pages(scene.hva + PAGES(&scene.unit, 90), scene.unit.page);
		moving = &scene;
		moves = 0;
		fake_after_look = touch_one_more;
		assert_ok(walk(&scene));
		fake_after_look = NULL;
		assert_true(moves > 0);
		assert_true(scene.found[3] && scene.found[90]);
		end(&scene);
	}
}

/* Once they are marked, as many pages go as exist without being mapped. */
static void punch_two(void)
{
	uint64_t start, page = moving->unit.page;
	int fd = gmem_file_fd(gmem_region_file(moving->region, &start));

	if (++moves == 2)
		assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					   (off_t)(start + 3 * page), (off_t)(2 * page)), 0);
}

static void pages_that_go_meanwhile_hide_no_other(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, GMEM);
	for (unsigned int page = 3; page < 8; page++)
		touch(&scene, page);
	touch(&scene, 90);
	touch(&scene, 95);
	fake_unmap_pages(scene.hva + PAGES(&scene.unit, 90), PAGES(&scene.unit, 6));
	moving = &scene;
	moves = 0;
	fake_after_look = punch_two;
	assert_ok(walk(&scene));
	fake_after_look = NULL;
	assert_true(moves >= 2);
	assert_true(scene.found[5] && scene.found[7] && scene.found[90] && scene.found[95]);
	end(&scene);
}

static void page_tables_that_cannot_be_read_change_no_answer(void **state)
{
	static const enum fake_call calls[] = { FAKE_FIND_ABSENT, FAKE_FIND_MAPPED };
	static const int errors[] = { -EPERM, -ENOMEM, -EINTR };
	struct scene scene;

	(void)state;
	for (unsigned int m = 0; m < MEMORIES; m++) {
		begin(&scene, m);
		touch_some(&scene, 3);
		fake.no_page_scan = true;
		assert_exact(&scene);
		fake.no_page_scan = false;
		for (unsigned int i = 0; i < ARRAY_SIZE(calls); i++)
			for (unsigned int k = 0; k < ARRAY_SIZE(errors); k++)
				for (unsigned int skip = 0; skip < 2; skip++) {
					fake_fail_kind(calls[i], skip, 100, errors[k]);
					assert_exact(&scene);
					fake_fail_struck();
				}
		/* The first file that is opened */
		fake_fail_kind(FAKE_OPEN, 0, 1, -EMFILE);
		assert_exact(&scene);
		assert_true(fake_fail_struck());

		for (unsigned int page = 0; page < COUNT; page++)
			touch(&scene, page);
		fake.no_page_scan = true;
		assert_exact(&scene);
		end(&scene);
	}
}

static void mincore_that_hides_is_found_out(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, GMEM);
	fake.mincore_hides = true;
	touch_some(&scene, 5);
	assert_exact(&scene);
	/* most of it mapped */
	for (unsigned int page = 0; page < COUNT - 9; page++)
		touch(&scene, page);
	assert_exact(&scene);
	fake_fail_next(FAKE_CACHESTAT, -EPERM);
	assert_none_missing(&scene);
	fake_unmap_pages(scene.hva, PAGES(&scene.unit, COUNT));
	assert_exact(&scene);
	fake.no_cachestat = true;
	assert_none_missing(&scene);
	end(&scene);
}

/* The kernel says nothing of what is not mapped at all. */
static void gaps_do_not_count_as_mapped(void **state)
{
	struct scene scene;
	uint64_t bytes;

	(void)state;
	begin(&scene, GMEM);
	touch_some(&scene, 1);
	assert_ok(munmap(scene.hva + PAGES(&scene.unit, 100), PAGES(&scene.unit, 20)));
	assert_ok(gmem_file_punch(gmem_region_file(scene.region, NULL), PAGES(&scene.unit, 100),
				  PAGES(&scene.unit, 20), NULL));
	assert_ok(gmem_region_memory_resident(scene.region, GMEM_SIDE_SHARED, 0, PAGES(&scene.unit, COUNT),
					      &bytes));
	assert_int_equal(bytes, PAGES(&scene.unit, COUNT - 20));
	end(&scene);
}

/* The file says only once where its data ends, but each time where a hole is. */
static void holes_are_asked_for_again(void **state)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	struct scene scene;

	(void)state;
	begin(&scene, MEMFD);
	fake_unmap_pages(scene.hva, PAGES(&scene.unit, COUNT));
	for (unsigned int round = 0; round < 3; round++) {
		touch(&scene, 10 + 100 * round);
		memset(scene.found, 0, sizeof(scene.found));
		assert_ok(gmem_region_present_pages(scene.region, GMEM_SIDE_SHARED, 0,
						    PAGES(&scene.unit, COUNT), &look, note, &scene));
		assert_memory_equal(scene.found, scene.exists, sizeof(scene.found));
	}
	gmem_host_look_end(&look);
	end(&scene);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(pages_are_found_however_many_there_are),
	cmocka_unit_test(what_is_all_mapped_needs_no_other_question),
	cmocka_unit_test(pages_that_are_not_mapped_are_found),
	cmocka_unit_test(pages_that_go_meanwhile_hide_no_other),
	cmocka_unit_test(pages_that_come_meanwhile_hide_no_other),
	cmocka_unit_test(page_tables_that_cannot_be_read_change_no_answer),
	cmocka_unit_test(mincore_that_hides_is_found_out),
	cmocka_unit_test(gaps_do_not_count_as_mapped),
	cmocka_unit_test(holes_are_asked_for_again),
};

UNIT_MAIN_SMALL_PAGES(tests)
