/* SPDX-License-Identifier: MIT */
/*
 * Memory the host cannot reach, and its shared side. Ranges are converted by
 * raw KVM: attributes belong to guest addresses, whatever is bound there.
 */
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#define BASE ((uint64_t)256 << 20)
#define FAR (2 * GIB)
#define MAKE_PRIVATE KVM_MEMORY_ATTRIBUTE_PRIVATE
#define MAKE_SHARED 0

static void *at(void *hva, uint64_t offset)
{
	return (char *)hva + offset;
}

static void convert(struct lab *lab, uint64_t gpa, uint64_t pages, uint64_t attributes)
{
	CHECK_RESULT(lab_convert(lab, gpa, pages * lab->page, attributes), 0);
}

/* what the access was to KVM */
#define WAS_PRIVATE (1 << 3)

static void check_fault(const struct lab *lab, const struct guest_access *access, uint64_t gpa,
			uint64_t flags)
{
	if (access->outcome != GUEST_FAULT)
		FAIL("%s", guest_describe(access));
	CHECK_RESULT(access->error, -EFAULT);
	CHECK_EQ(access->fault_flags, flags);
	CHECK_EQ(access->fault_gpa, gpa);
	CHECK_EQ(access->fault_size, lab->page);
}

/* loads and stores at private memory that has no file behind it */
static void check_faults(struct lab *lab, uint64_t gpa)
{
	struct guest_access access = guest_load(&lab->guest, gpa);

	check_fault(lab, &access, gpa, WAS_PRIVATE);
	access = guest_store(&lab->guest, gpa, 1);
	check_fault(lab, &access, gpa, WAS_PRIVATE);
}

/* ---- the VM ---- */

/* A VM with a private region of so many pages at BASE */
static struct gmem_region *new_private(struct lab *lab, uint64_t pages)
{
	lab_new(lab, PRIVATE_VM);
	return lab_add(lab, GMEM_BACKING_PRIVATE, BASE, pages, NULL);
}

TEST(a_vm_without_private_memory_converts_nothing)
{
	struct lab lab;
	int wanted;

	lab_new(&lab, DEFAULT_VM);
	wanted = kvm_cap(lab.m.kvm_fd, KVM_CAP_MEMORY_ATTRIBUTES) > 0 ? -EINVAL : -ENOTTY;
#ifdef __aarch64__
	wanted = -EINVAL;	/* as arm64 says of every ioctl it does not know */
#endif
	CHECK_RESULT(lab_convert(&lab, BASE, lab.page, MAKE_PRIVATE), wanted);
	lab_free(&lab);
}

TEST(a_vm_with_private_memory_has_no_other_guest_memfd)
{
	static const uint32_t ways[] = { GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED };
	struct gmem_plan *plan = NULL;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		GMEM_OPTS(gmem_request, request, .backings = { ways[i] });

		REFUSED(gmem_plan_new(lab.m.caps, &request, &plan), -EOPNOTSUPP);
		CHECK(!plan);
	}
	lab_free(&lab);
}

/* ---- two memories, by turns ---- */

TEST(what_the_guest_stores_in_private_is_not_visible_to_the_host)
{
	struct gmem_region *region;
	struct lab lab;
	char *hva;

	region = new_private(&lab, 2);
	hva = gmem_region_hva(region);
	host_store(hva, 0x11);
	convert(&lab, BASE, 2, MAKE_PRIVATE);
	GUEST_LOADS(&lab.guest, BASE, 0);
	GUEST_STORES(&lab.guest, BASE, 0x22);
	GUEST_STORES(&lab.guest, BASE + lab.page, 0x23);
	CHECK_EQ(host_load(hva), 0x11);
	CHECK_EQ(host_load(at(hva, lab.page)), 0);

	/* nor the other way round */
	host_store(hva, 0x33);
	GUEST_LOADS(&lab.guest, BASE, 0x22);
	lab_free(&lab);
}

TEST(each_side_keeps_its_bytes_across_conversions)
{
	struct gmem_region *region;
	struct lab lab;
	char *hva;

	region = new_private(&lab, 1);
	hva = gmem_region_hva(region);
	GUEST_STORES(&lab.guest, BASE, 0x11);
	CHECK_EQ(host_load(hva), 0x11);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_STORES(&lab.guest, BASE, 0x22);
	convert(&lab, BASE, 1, MAKE_SHARED);
	GUEST_LOADS(&lab.guest, BASE, 0x11);
	GUEST_STORES(&lab.guest, BASE, 0x33);
	CHECK_EQ(host_load(hva), 0x33);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_LOADS(&lab.guest, BASE, 0x22);
	lab_free(&lab);
}

TEST(a_conversion_leaves_its_neighbours_alone)
{
	struct gmem_region *region;
	struct lab lab;
	char *hva;

	region = new_private(&lab, 3);
	hva = gmem_region_hva(region);
	convert(&lab, BASE + lab.page, 1, MAKE_PRIVATE);
	for (uint64_t i = 0; i < 3; i++)
		GUEST_STORES(&lab.guest, BASE + i * lab.page, 0x40 + (uint32_t)i);
	CHECK_EQ(host_load(hva), 0x40);
	CHECK_EQ(host_load(at(hva, lab.page)), 0);
	CHECK_EQ(host_load(at(hva, 2 * lab.page)), 0x42);
	lab_free(&lab);
}

TEST(converting_allocates_and_frees_nothing)
{
	struct gmem_region *region;
	struct lab lab;
	int fd;

	region = new_private(&lab, 4);
	require_cachestat();
	fd = gmem_file_fd(gmem_region_file(region, NULL));
	GUEST_STORES(&lab.guest, BASE, 1);
	CHECK_EQ(allocated_pages(fd), 0);
	convert(&lab, BASE, 4, MAKE_PRIVATE);
	CHECK_EQ(allocated_pages(fd), 0);
	GUEST_STORES(&lab.guest, BASE, 1);
	GUEST_STORES(&lab.guest, BASE + 2 * lab.page, 1);
	CHECK_EQ(allocated_pages(fd), 2);
	convert(&lab, BASE, 4, MAKE_SHARED);
	CHECK_EQ(allocated_pages(fd), 2);
	lab_free(&lab);
}

TEST(a_hole_in_private_memory_leaves_the_shared_side_alone)
{
	struct gmem_region *region;
	struct lab lab;

	region = new_private(&lab, 1);
	host_store(gmem_region_hva(region), 0x11);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_STORES(&lab.guest, BASE, 0x22);
	OK(gmem_file_punch(gmem_region_file(region, NULL), 0, lab.page, NULL));
	GUEST_LOADS(&lab.guest, BASE, 0);
	convert(&lab, BASE, 1, MAKE_SHARED);
	GUEST_LOADS(&lab.guest, BASE, 0x11);
	lab_free(&lab);
}

TEST(host_memory_of_ones_own_is_the_shared_side)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	opts.hva = mmap(NULL, lab.page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	region = lab_add(&lab, GMEM_BACKING_PRIVATE, BASE, 1, &opts);
	CHECK(gmem_region_hva(region) == opts.hva);
	GUEST_STORES(&lab.guest, BASE, 0x11);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_STORES(&lab.guest, BASE, 0x22);
	OK(gmem_region_remove(region));
	CHECK_EQ(host_load(opts.hva), 0x11);
	munmap(opts.hva, lab.page);
	lab_free(&lab);
}

/* ---- the file of a private region ---- */

TEST(a_private_region_has_a_file_the_host_cannot_map)
{
	struct gmem_region *region;
	struct gmem_file *file;
	void *hva = NULL;
	struct lab lab;

	region = new_private(&lab, 2);
	file = gmem_region_file(region, NULL);
	CHECK(file);
	CHECK_EQ(gmem_file_create_flags(file), 0);
	REFUSED(gmem_file_map(file, 0, lab.page, NULL, &hva), -ENODEV);
	CHECK(!hva);
	lab_free(&lab);
}

TEST(a_moved_private_region_keeps_both_sides)
{
	struct gmem_region *region;
	struct lab lab;

	region = new_private(&lab, 1);
	host_store(gmem_region_hva(region), 0x11);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_STORES(&lab.guest, BASE, 0x22);
	OK(gmem_region_move(region, FAR));
	GUEST_LOADS(&lab.guest, FAR, 0x11);
	convert(&lab, FAR, 1, MAKE_PRIVATE);
	GUEST_LOADS(&lab.guest, FAR, 0x22);
	lab_free(&lab);
}

TEST(private_memory_has_no_dirty_log_and_is_not_read_only)
{
	static const uint64_t flags[] = { GMEM_REGION_DIRTY_LOG, GMEM_REGION_READONLY };
	struct gmem_region *region = NULL;
	struct gmem_plan *plan;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	require_backing(&lab.m, GMEM_BACKING_PRIVATE, &plan);
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		GMEM_OPTS(gmem_region_opts, opts, .flags = flags[i], .plan = plan);

		REFUSED(gmem_region_add(lab.vm, BASE, lab.page, &opts, &region), -EOPNOTSUPP);
		CHECK(!region);
	}
	gmem_plan_free(plan);
	lab_free(&lab);
}

/* ---- faults ---- */

TEST(private_accesses_to_host_memory_fault)
{
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 2, NULL);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	check_faults(&lab, BASE);
	GUEST_LOADS(&lab.guest, BASE + lab.page, 0);
	/* it goes on where it is converted back */
	convert(&lab, BASE, 1, MAKE_SHARED);
	GUEST_LOADS(&lab.guest, BASE, 0);
	GUEST_STORES(&lab.guest, BASE, 5);
	CHECK_EQ(host_load(gmem_region_hva(region)), 5);
	lab_free(&lab);
}

TEST(private_accesses_without_memory_fault)
{
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	check_faults(&lab, BASE);
	convert(&lab, BASE, 1, MAKE_SHARED);
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	GUEST_GETS(&lab.guest, BASE + lab.page, GUEST_MMIO);
	lab_free(&lab);
}

/*
 * KVM remembers that an address is MMIO, and converting an address without a
 * memslot does not make it forget; any change of the memslots does. Even then
 * the access counts as a shared one: MMIO is never private.
 */
TEST(an_address_seen_as_mmio_stays_so_until_the_memslots_change)
{
	struct guest_access access;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	lab_add(&lab, GMEM_BACKING_HOST, FAR, 1, NULL);
	access = guest_load(&lab.guest, BASE);
	check_fault(&lab, &access, BASE, 0);
	lab_free(&lab);
}

TEST(attributes_stay_when_a_region_goes)
{
	struct gmem_region *region;
	struct lab lab;

	region = new_private(&lab, 1);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_STORES(&lab.guest, BASE, 1);
	OK(gmem_region_remove(region));
	check_faults(&lab, BASE);
	region = lab_add(&lab, GMEM_BACKING_PRIVATE, BASE, 1, NULL);
	GUEST_LOADS(&lab.guest, BASE, 0);
	GUEST_STORES(&lab.guest, BASE, 2);
	CHECK_EQ(host_load(gmem_region_hva(region)), 0);
	lab_free(&lab);
}

TEST(only_whole_pages_and_known_attributes_are_converted)
{
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	CHECK_RESULT(lab_convert(&lab, BASE, lab.page / 2, MAKE_PRIVATE), -EINVAL);
	CHECK_RESULT(lab_convert(&lab, BASE + lab.page / 2, lab.page, MAKE_PRIVATE), -EINVAL);
	CHECK_RESULT(lab_convert(&lab, BASE, 0, MAKE_PRIVATE), -EINVAL);
	CHECK_RESULT(lab_convert(&lab, UINT64_MAX - lab.page + 1, 2 * lab.page, MAKE_PRIVATE), -EINVAL);
	for (int bit = 0; bit < 64; bit++) {
		uint64_t attribute = (uint64_t)1 << bit;

		CHECK_RESULT(lab_convert(&lab, BASE, lab.page, attribute),
			     attribute == MAKE_PRIVATE ? 0 : -EINVAL);
	}
	lab_free(&lab);
}

/* ---- MMAP, by request alone ---- */

static struct gmem_plan *mmap_plan(struct lab *lab)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE },
		  .required_flags = GMEM_CREATE_MMAP);
	struct gmem_plan *plan = NULL;

	require_create_flags(&lab->m, GMEM_CREATE_MMAP);
	OK(gmem_plan_new(lab->m.caps, &request, &plan));
	CHECK_EQ(gmem_plan_create_flags(plan), GMEM_CREATE_MMAP);
	return plan;
}

/*
 * The host's word at the region's address: its own memory, untouched by the
 * guest, or nothing.
 */
static uint32_t shared_side(const void *hva)
{
	uint32_t value = 0;
	int pipes[2];

	/* write() says EFAULT where a load would raise SIGBUS */
	WORKS(pipe(pipes));
	if (write(pipes[1], hva, sizeof(value)) == (ssize_t)sizeof(value))
		CHECK_EQ(read(pipes[0], &value, sizeof(value)), sizeof(value));
	close(pipes[0]);
	close(pipes[1]);
	return value;
}

TEST(a_mappable_private_file_is_used_in_both_states_and_the_host_sees_neither)
{
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct gmem_file *file;
	struct lab lab;
	char *hva, *mapping;

	lab_new(&lab, PRIVATE_VM);
	opts.plan = plan = mmap_plan(&lab);
	if (expect()->reaches == GUEST_REACHES_EITHER)
		skip("with shadow paging some accesses go to the host address");
	OK(gmem_region_add(lab.vm, BASE, lab.page, &opts, &region));
	gmem_plan_free(plan);
	hva = gmem_region_hva(region);
	file = gmem_region_file(region, NULL);
	CHECK_EQ(gmem_file_create_flags(file), GMEM_CREATE_MMAP);

	GUEST_STORES(&lab.guest, BASE, 0x11);
	mapping = map_file(file);
	EXPECT_SIGBUS(mapping, host_load(mapping));
	CHECK_EQ(shared_side(hva), 0);
	convert(&lab, BASE, 1, MAKE_PRIVATE);
	GUEST_LOADS(&lab.guest, BASE, 0x11);
	GUEST_STORES(&lab.guest, BASE, 0x22);
	EXPECT_SIGBUS(mapping, host_load(mapping));
	convert(&lab, BASE, 1, MAKE_SHARED);
	GUEST_LOADS(&lab.guest, BASE, 0x22);
	unmap_file(file, mapping);
	lab_free(&lab);
}

TEST(mmap_is_not_taken_for_private_memory_unasked)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE },
		  .preferred_flags = GMEM_CREATE_MMAP);
	struct gmem_plan *plan;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	if (!gmem_plan_new(lab.m.caps, &request, &plan)) {
		CHECK_EQ(gmem_plan_create_flags(plan), 0);
		gmem_plan_free(plan);
	}
	request.preferred_flags = 0;
	OK(gmem_plan_new(lab.m.caps, &request, &plan));
	CHECK_EQ(gmem_plan_create_flags(plan), 0);
	gmem_plan_free(plan);
	lab_free(&lab);
}

TEST(an_older_kernel_has_no_mappable_private_file)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE },
		  .required_flags = GMEM_CREATE_MMAP);
	struct gmem_plan *plan = NULL;
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	if (expect_vm(PRIVATE_VM)->create_flags & (int)GMEM_CREATE_MMAP)
		skip("this kernel has");
	REFUSED(gmem_plan_new(lab.m.caps, &request, &plan), -EOPNOTSUPP);
	CHECK(!plan);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
