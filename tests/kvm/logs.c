/* SPDX-License-Identifier: MIT */
/* What a guest writes is told by KVM's logs and rings, whatever is done to memslots meanwhile. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lab.h"

#define BASE	(256 * MIB)
#define PAGES	64u

static struct gmem_dirty *begin(struct gmem_vm *vm, uint64_t flags)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = flags);
	struct gmem_dirty *dirty = NULL;

	OK(gmem_dirty_new(vm, &opts, &dirty));
	return dirty;
}

/* The pages of @region that were collected, a bit each */
static uint64_t collect(struct gmem_dirty *dirty, const struct gmem_region *region)
{
	uint64_t word = 0;

	OK(gmem_dirty_collect(dirty, NULL));
	OK(gmem_dirty_get_bitmap(dirty, gmem_region_gpa(region), gmem_region_size(region), &word, 1));
	return word;
}

static void store(struct lab *lab, const struct gmem_region *region, uint64_t page, uint32_t value)
{
	GUEST_STORES(&lab->guest, gmem_region_gpa(region) + page * lab->page, value);
}

static void enable(const struct lab *lab, uint32_t cap, uint64_t value)
{
	struct kvm_enable_cap args = { .cap = cap, .args = { value } };

	WORKS(ioctl(lab->m.vm_fd, KVM_ENABLE_CAP, &args));
}

/* ---- logs ---- */

#define MANUAL	1	/* KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE */
#define FULL	2	/* KVM_DIRTY_LOG_INITIALLY_SET */

static void check_log(uint32_t backing, uint64_t protect)
{
	struct gmem_dirty *a, *b;
	struct gmem_region *region;
	struct lab lab;
	uint64_t word;

	lab_new(&lab, DEFAULT_VM);
	if (protect)
		enable(&lab, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, protect);
	region = lab_add(&lab, backing, BASE, PAGES, NULL);
	a = begin(lab.vm, GMEM_DIRTY_FROM_NOW);
	CHECK_EQ(collect(a, region), 0);
	for (uint32_t i = 0; i < 5; i++) {
		/* pages that were written before, too: they are protected anew */
		store(&lab, region, 3, i);
		store(&lab, region, 10 + i, i);
		CHECK_EQ(collect(a, region), UINT64_C(1) << 3 | UINT64_C(1) << (10 + i));
		CHECK_EQ(host_load((char *)gmem_region_hva(region) + 3 * lab.page), i);
	}

	/* beside the user's log, and another tracker */
	store(&lab, region, 1, 1);
	OK(gmem_region_set_dirty_log(region, 1));
	b = begin(lab.vm, GMEM_DIRTY_FROM_NOW);
	store(&lab, region, 2, 1);
	OK(gmem_region_get_dirty_log(region, &word, 1));
	CHECK_EQ(word, 4);
	store(&lab, region, 4, 1);
	CHECK_EQ(collect(b, region), 4 | 16);
	CHECK_EQ(collect(a, region), 2 | 4 | 16);
	OK(gmem_region_get_dirty_log(region, &word, 1));
	CHECK_EQ(word, 16);
	gmem_dirty_free(a);
	store(&lab, region, 63, 1);
	CHECK_EQ(collect(b, region), UINT64_C(1) << 63);
	gmem_dirty_free(b);
	OK(gmem_region_get_dirty_log(region, &word, 1));
	CHECK_EQ(word, UINT64_C(1) << 63);
	lab_free(&lab);
}

TEST(what_the_guest_writes_to_host_memory_is_logged)
{
	for (uint64_t protect = 0; protect < 4; protect++)
		if (protect != FULL)	/* which KVM takes only beside the other */
			check_log(GMEM_BACKING_HOST, protect);
}

TEST(what_the_guest_writes_to_mapped_memory_is_logged)
{
	check_log(GMEM_BACKING_MAPPED, 0);
	check_log(GMEM_BACKING_MAPPED, MANUAL | FULL);
}

/* ---- layout ---- */

TEST(changes_of_the_layout_lose_nothing)
{
	struct gmem_region *region, *upper;
	struct gmem_dirty *dirty;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	dirty = begin(lab.vm, GMEM_DIRTY_FROM_NOW);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, PAGES, NULL);
	CHECK_EQ(collect(dirty, region), UINT64_MAX);
	store(&lab, region, 5, 1);
	store(&lab, region, 40, 1);
	OK(gmem_region_split(region, 32 * lab.page, &upper));
	store(&lab, upper, 9, 1);
	CHECK_EQ(collect(dirty, region), 32);
	OK(gmem_dirty_put_back(dirty));
	CHECK_EQ(collect(dirty, upper), 0x300);
	OK(gmem_region_move(upper, BASE + GIB));
	CHECK_EQ(collect(dirty, upper), UINT32_MAX);
	store(&lab, upper, 31, 1);
	CHECK_EQ(collect(dirty, upper), UINT64_C(1) << 31);
	gmem_dirty_free(dirty);
	lab_free(&lab);
}

struct scribbler {
	struct lab *lab;
	atomic_bool ends;
	atomic_uint stores;
};

/* Memory that is away for a moment is MMIO, and the store is lost. */
static void *scribble(void *data)
{
	struct scribbler *s = data;

	for (uint32_t i = 1; !atomic_load(&s->ends); i++) {
		guest_store(&s->lab->guest, BASE + i * 7 % PAGES * s->lab->page, i);
		atomic_fetch_add(&s->stores, 1);
	}
	return NULL;
}

static void copy_pages(char *copy, const char *hva, uint64_t told, uint64_t page)
{
	for (uint64_t i = 0; i < PAGES; i++)
		if (told >> i & 1)
			memcpy(copy + i * page, hva + i * page, page);
}

/* A copy of what is told is what is there when the guest has stopped. */
TEST(a_guest_may_write_while_the_layout_changes)
{
	struct gmem_region *region;
	struct gmem_dirty *dirty;
	struct scribbler s = { .ends = false };
	struct lab lab;
	pthread_t thread;
	char *copy, *hva;

	lab_new(&lab, DEFAULT_VM);
	s.lab = &lab;
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, PAGES, NULL);
	hva = gmem_region_hva(region);
	copy = calloc(PAGES, lab.page);
	CHECK(copy);
	dirty = begin(lab.vm, 0);
	CHECK_EQ(pthread_create(&thread, NULL, scribble, &s), 0);
	for (unsigned int i = 0; i < 200; i++) {
		copy_pages(copy, hva, collect(dirty, region), lab.page);
		if (i % 4 == 0) {
			OK(gmem_region_move(region, BASE + GIB));
			copy_pages(copy, hva, collect(dirty, region), lab.page);
			OK(gmem_region_move(region, BASE));
		}
		if (i % 8 == 1)
			OK(gmem_region_set_dirty_log(region, i % 16 == 1));
	}
	while (atomic_load(&s.stores) < 100)
		sched_yield();
	atomic_store(&s.ends, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	copy_pages(copy, hva, collect(dirty, region), lab.page);
	CHECK_EQ(memcmp(copy, hva, PAGES * lab.page), 0);
	gmem_dirty_free(dirty);
	free(copy);
	lab_free(&lab);
}

/* ---- shared memory, whose memslot is replaced ---- */

TEST(shared_memory_is_logged_and_bound_again)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = 0);
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_dirty *dirty = NULL;
	struct gmem_region *region, *added;
	struct lab lab;
	uint64_t ns = 0;
	char *hva;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, PAGES, NULL);
	hva = gmem_region_hva(region);
	store(&lab, region, 0, 0x11);
	REFUSED(gmem_dirty_new(lab.vm, &opts, &dirty), -EOPNOTSUPP);
	dirty = begin(lab.vm, GMEM_DIRTY_VCPUS_STOPPED | GMEM_DIRTY_FROM_NOW);
	CHECK_EQ(gmem_region_backing(region), GMEM_BACKING_SHARED);
	CHECK(gmem_region_hva(region) == hva);
	CHECK_EQ(collect(dirty, region), 0);
	/* KVM may report a page that is only read. */
	GUEST_LOADS(&lab.guest, BASE, 0x11);
	CHECK_EQ(collect(dirty, region) & ~UINT64_C(1), 0);
	store(&lab, region, 7, 0x77);
	CHECK_EQ(collect(dirty, region), 0x80);
	CHECK_EQ(host_load(hva + 7 * lab.page), 0x77);
	host_store(hva + 8 * lab.page, 0x88);
	GUEST_LOADS(&lab.guest, BASE + 8 * lab.page, 0x88);
	OK(gmem_dirty_collect(dirty, &info));
	CHECK(info.stopped_ns > 0);

	added = lab_add(&lab, GMEM_BACKING_SHARED, BASE + GIB, PAGES, NULL);
	collect(dirty, added);
	store(&lab, added, 2, 1);
	CHECK_EQ(collect(dirty, added), 4);
	OK(gmem_region_move(region, BASE + 2 * GIB));
	CHECK_EQ(collect(dirty, region), UINT64_MAX);
	store(&lab, region, 1, 1);
	CHECK_EQ(collect(dirty, region), 2);
	REFUSED(gmem_vm_bind_shared(lab.vm, NULL), -EBUSY);

	gmem_dirty_free(dirty);
	OK(gmem_vm_bind_shared(lab.vm, &ns));
	CHECK(ns > 0);
	GUEST_LOADS(&lab.guest, BASE + 2 * GIB + 7 * lab.page, 0x77);
	store(&lab, region, 9, 0x99);
	CHECK_EQ(host_load(hva + 9 * lab.page), 0x99);
	OK(gmem_region_remove(added));
	lab_free(&lab);
}

TEST(private_memory_is_told_as_such)
{
	struct gmem_dirty_range range;
	struct gmem_dirty *dirty;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	lab_add(&lab, GMEM_BACKING_PRIVATE, BASE, PAGES, NULL);
	dirty = begin(lab.vm, GMEM_DIRTY_ALLOW_UNLOGGED | GMEM_DIRTY_FROM_NOW);
	OK(gmem_vm_convert(lab.vm, BASE, lab.page, GMEM_STATE_PRIVATE, NULL, NULL));
	for (int i = 0; i < 2; i++) {
		OK(gmem_dirty_collect(dirty, NULL));
		OK(gmem_dirty_next(dirty, 0, &range));
		CHECK_EQ(range.flags, GMEM_DIRTY_RANGE_PRIVATE);
		CHECK_EQ(range.size, lab.page);
		OK(gmem_dirty_next(dirty, BASE + lab.page, &range));
		CHECK_EQ(range.flags, GMEM_DIRTY_RANGE_UNLOGGED);
		CHECK_EQ(range.size, (PAGES - 1) * lab.page);
	}
	gmem_dirty_free(dirty);
	lab_free(&lab);
}

/* ---- rings ---- */

#define CAP_RING		192
#define CAP_RING_ACQ_REL	223
#define RING_PAGES		2

/* A VM with rings, before it has a vCPU. Skips if there are none. */
static void ring_lab(struct lab *lab)
{
	GMEM_OPTS(gmem_vm_opts, opts);
	uint32_t cap;

	*lab = (struct lab){ .page = page_size() };
	machine_new(&lab->m, DEFAULT_VM);
	cap = kvm_cap(lab->m.vm_fd, CAP_RING_ACQ_REL) > 0 ? CAP_RING_ACQ_REL : CAP_RING;
	if (kvm_cap(lab->m.vm_fd, cap) <= 0)
		skip("KVM has no dirty rings");
	enable(lab, cap, RING_PAGES * lab->page);
	if (kvm_cap(lab->m.vm_fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0)
		enable(lab, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0);
	OK(gmem_vm_new(lab->m.vm_fd, &opts, &lab->vm));
	guest_new(&lab->guest, lab->m.vm_fd, lab->m.kvm_fd);
}

TEST(what_the_guest_writes_is_read_from_its_ring)
{
	struct gmem_region *region, *upper;
	struct gmem_dirty *dirty;
	struct lab lab;

	ring_lab(&lab);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, PAGES, NULL);
	REFUSED(gmem_dirty_new(lab.vm, NULL, &dirty), -EOPNOTSUPP);
	REFUSED(gmem_vm_add_dirty_ring(lab.vm, lab.guest.vcpu_fd, lab.page), -EINVAL);
	REFUSED(gmem_vm_add_dirty_ring(lab.vm, lab.guest.vcpu_fd, 4 * lab.page), -EINVAL);
	OK(gmem_vm_add_dirty_ring(lab.vm, lab.guest.vcpu_fd, RING_PAGES * lab.page));
	dirty = begin(lab.vm, GMEM_DIRTY_RINGS | GMEM_DIRTY_FROM_NOW);
	CHECK_EQ(collect(dirty, region), 0);
	for (uint32_t i = 0; i < 5; i++) {
		store(&lab, region, 3, i);
		store(&lab, region, 10 + i, i);
		CHECK_EQ(collect(dirty, region), UINT64_C(1) << 3 | UINT64_C(1) << (10 + i));
	}
	store(&lab, region, 40, 1);
	OK(gmem_region_split(region, 32 * lab.page, &upper));
	store(&lab, upper, 1, 1);
	CHECK_EQ(collect(dirty, upper), UINT32_MAX);
	store(&lab, upper, 2, 1);
	CHECK_EQ(collect(dirty, upper), 4);
	gmem_dirty_free(dirty);
	OK(gmem_vm_remove_dirty_ring(lab.vm, lab.guest.vcpu_fd));
	lab_free(&lab);
}

/* One store, however often the vCPU leaves because its ring is full. Returns how often. */
static unsigned int store_through_exits(struct lab *lab, struct gmem_vcpu *vcpu, uint64_t gpa)
{
	unsigned int exits = 0;
	uint32_t value;
	int ret;

	guest_aim_store(&lab->guest, gpa, 1);
	for (;;) {
		ret = (int)SYS(ioctl(lab->guest.vcpu_fd, KVM_RUN, 0));
		if (ret == -EINTR)
			continue;
		CHECK_EQ(ret, 0);
		if (guest_finish(&lab->guest, &value))
			return exits;
		CHECK_EQ(lab->guest.run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
		CHECK_RESULT(gmem_vcpu_handle_exit(vcpu, lab->guest.run, ret, 0, NULL), 1);
		exits++;
	}
}

TEST(a_full_ring_is_read_at_the_exit)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_dirty *dirty;
	struct gmem_vcpu *vcpu = NULL;
	struct lab lab;
	unsigned int exits = 0;
	uint64_t pages;

	ring_lab(&lab);
	pages = 4 * RING_PAGES * lab.page / 16;
	lab_add(&lab, GMEM_BACKING_HOST, BASE, pages, NULL);
	OK(gmem_vcpu_new(lab.vm, lab.guest.vcpu_fd, NULL, &vcpu));
	OK(gmem_vm_add_dirty_ring(lab.vm, lab.guest.vcpu_fd, RING_PAGES * lab.page));
	dirty = begin(lab.vm, GMEM_DIRTY_RINGS | GMEM_DIRTY_FROM_NOW);
	for (uint64_t i = 0; i < pages; i++)
		exits += store_through_exits(&lab, vcpu, BASE + i * lab.page);
	CHECK(exits > 0);
	OK(gmem_dirty_collect(dirty, &info));
	CHECK_EQ(info.bytes, pages * lab.page);
	gmem_dirty_free(dirty);
	gmem_vcpu_free(vcpu);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
