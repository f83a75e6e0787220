/* SPDX-License-Identifier: MIT */
/* A listener keeps mappings of guest memory of its own, and a guest's stores arrive there. */
#include <string.h>
#include <sys/mman.h>

#include "lab.h"

#define BASE		(256 * MIB)
#define REGION_PAGES	4
#define WINDOW_PAGES	32

#define WAY(backing)	(1u << (backing))

/* A device's window of guest addresses from BASE on, mapped page by page */
struct device {
	struct lab lab;
	struct gmem_plan *plan;
	uint32_t backing;
	char *window;
	bool is_mapped[WINDOW_PAGES];
	unsigned int mapped;
	uint32_t found;		/* in memory that is about to be discarded */
	bool refuses;
};

static uint64_t place(const struct device *d, unsigned int page)
{
	return BASE + page * d->lab.page;
}

static void map(struct device *d, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	bool is_file = d->backing == GMEM_BACKING_MAPPED || d->backing == GMEM_BACKING_SHARED;
	int fd = is_file ? region->gmemfd : region->host_fd;
	uint64_t start = is_file ? region->gmemfd_offset : region->host_offset;

	for (uint64_t end = gpa + size; gpa < end; gpa += d->lab.page) {
		uint64_t i = (gpa - BASE) / d->lab.page;

		if (d->is_mapped[i])
			continue;
		CHECK(mmap(d->window + (gpa - BASE), d->lab.page, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, fd, (off_t)(start + gpa - region->gpa)) != MAP_FAILED);
		d->is_mapped[i] = true;
		d->mapped++;
	}
}

static void unmap(struct device *d, uint64_t gpa, uint64_t size)
{
	for (uint64_t end = gpa + size; gpa < end; gpa += d->lab.page) {
		uint64_t i = (gpa - BASE) / d->lab.page;

		CHECK(mmap(d->window + (gpa - BASE), d->lab.page, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		d->mapped -= d->is_mapped[i];
		d->is_mapped[i] = false;
	}
}

static void added(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	map(data, region, gpa, size);
}

static void removed(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	(void)region;
	unmap(data, gpa, size);
}

static int before_discard(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct device *d = data;

	d->found = host_load((char *)region->hva + (gpa - region->gpa));
	unmap(d, gpa, size);
	return d->refuses ? -EPERM : 0;
}

static int before_private(void *data, uint64_t gpa, uint64_t size)
{
	unmap(data, gpa, size);
	return 0;
}

static void after_shared(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_region_info region;
	struct device *d = data;

	OK(gmem_vm_find_gpa(d->lab.vm, gpa, &region));
	map(d, &region, gpa, size);
}

static struct gmem_region *add(struct device *d, unsigned int page)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .plan = d->plan);
	struct gmem_region *region = NULL;

	if (d->backing == GMEM_BACKING_HOST || d->backing == GMEM_BACKING_PRIVATE)
		opts.memory = &memory;
	OK(gmem_region_add(d->lab.vm, place(d, page), REGION_PAGES * d->lab.page, &opts, &region));
	return region;
}

/* A guest's store is what the device sees, and the other way round. */
static void check_page(struct device *d, unsigned int page, uint32_t value)
{
	char *seen = d->window + page * d->lab.page;

	CHECK(d->is_mapped[page]);
	GUEST_STORES(&d->lab.guest, place(d, page), value);
	CHECK_EQ(host_load(seen), value);
	host_store(seen, value + 1);
	GUEST_LOADS(&d->lab.guest, place(d, page), value + 1);
}

static void check_discards(struct device *d, unsigned int page)
{
	uint64_t gpa = place(d, page), size = 2 * d->lab.page;

	GUEST_STORES(&d->lab.guest, gpa, 0x77);
	d->refuses = true;
	REFUSED(gmem_vm_discard(d->lab.vm, gpa, size, NULL, NULL), -EPERM);
	d->refuses = false;
	GUEST_LOADS(&d->lab.guest, gpa, 0x77);
	OK(gmem_vm_populate(d->lab.vm, gpa, size, NULL, NULL));
	check_page(d, page, 0x10);

	OK(gmem_vm_discard(d->lab.vm, gpa, size, NULL, NULL));
	CHECK_EQ(d->found, 0x11);
	CHECK(!d->is_mapped[page] && !d->is_mapped[page + 1] && d->is_mapped[page + 2]);
	OK(gmem_vm_populate(d->lab.vm, gpa, size, NULL, NULL));
	CHECK_EQ(host_load(d->window + page * d->lab.page), 0);
	check_page(d, page, 0x20);
}

static void check_conversions(struct device *d, unsigned int page)
{
	uint64_t gpa = place(d, page), size = d->lab.page;

	OK(gmem_vm_convert(d->lab.vm, gpa, size, GMEM_STATE_PRIVATE, NULL, NULL));
	CHECK(!d->is_mapped[page] && d->is_mapped[page + 1]);
	OK(gmem_vm_convert(d->lab.vm, gpa, size, GMEM_STATE_SHARED, NULL, NULL));
	check_page(d, page, 0x40);
}

static void check_all(struct device *d)
{
	struct gmem_region *first = add(d, 0), *second, *upper = NULL;
	struct gmem_region_info info[4], one;
	GMEM_OPTS(gmem_listener_opts, opts, .data = d, .before_private = before_private,
		  .undo_private = after_shared, .after_shared = after_shared, .region_added = added,
		  .region_removed = removed, .before_discard = before_discard, .undo_discard = added,
		  .populated = added);
	struct gmem_listener *listener = NULL;

	OK(gmem_listener_new(d->lab.vm, &opts, &listener));
	CHECK_EQ(d->mapped, REGION_PAGES);
	check_page(d, 0, 1);
	second = add(d, 8);
	check_page(d, 8, 2);
	OK(gmem_region_move(second, place(d, 16)));
	CHECK(!d->is_mapped[8]);
	check_page(d, 16, 3);
	check_page(d, 19, 4);
	check_discards(d, 16);
	if (d->backing == GMEM_BACKING_PRIVATE)
		check_conversions(d, 17);

	OK(gmem_region_split(second, d->lab.page, &upper));
	CHECK_EQ(d->mapped, 2 * REGION_PAGES);
	check_page(d, 18, 5);
	CHECK_RESULT(gmem_vm_regions(d->lab.vm, info, 4), 3);
	CHECK(info[0].region == first && info[1].region == second && info[2].region == upper);
	OK(gmem_vm_find_slot(d->lab.vm, gmem_region_slot(upper), &one));
	CHECK(one.region == upper && one.gpa == place(d, 17));

	OK(gmem_region_remove(second));
	OK(gmem_region_remove(first));
	CHECK_EQ(d->mapped, REGION_PAGES - 1);
	gmem_listener_free(listener);
	OK(gmem_region_remove(upper));
}

static void follow(int type, uint32_t backing, void *data)
{
	struct device d = { .backing = backing };
	uint64_t size;

	(void)data;
	lab_new(&d.lab, type);
	require_backing(&d.lab.m, backing, &d.plan);
	size = WINDOW_PAGES * d.lab.page;
	d.window = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(d.window != MAP_FAILED);
	check_all(&d);
	munmap(d.window, size);
	gmem_plan_free(d.plan);
	lab_free(&d.lab);
}

TEST(mappings_of_a_device_follow_the_guests_memory)
{
	lab_for_each_way(WAY(GMEM_BACKING_HOST) | WAY(GMEM_BACKING_MAPPED) | WAY(GMEM_BACKING_SHARED) |
			 WAY(GMEM_BACKING_PRIVATE), follow, NULL);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
