/* SPDX-License-Identifier: MIT */
/* NUMA policies, where they decide and where they cannot */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lab.h"

#define BASE ((uint64_t)256 << 20)
#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

static bool has_two_nodes(void)
{
	return access("/sys/devices/system/node/node1", F_OK) == 0;
}

static struct gmem_numa_opts policy_of(uint32_t policy, uint64_t nodes)
{
	GMEM_OPTS(gmem_numa_opts, opts, .policy = policy, .nodes = { nodes });

	return opts;
}

static int set(struct gmem_file *file, uint64_t offset, uint64_t size, uint32_t policy,
	       uint64_t nodes)
{
	struct gmem_numa_opts opts = policy_of(policy, nodes);

	return gmem_file_set_numa(file, offset, size, &opts);
}

struct counts {
	uint64_t on_node[2];
	uint64_t absent;
	uint64_t unknown;
};

static struct counts count(struct gmem_file *file)
{
	struct counts counts;
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = counts.on_node, .nodes = 2);

	OK(gmem_file_numa(file, 0, gmem_file_size(file), &pages));
	CHECK_EQ(pages.elsewhere, 0);
	counts.absent = pages.absent;
	counts.unknown = pages.unknown;
	return counts;
}

static char *at(void *hva, uint64_t offset)
{
	return (char *)hva + offset;
}

struct fixture {
	struct machine m;
	struct gmem_file *file;
	char *hva;
	uint64_t page;
	unsigned int here, there;
};

static void machine_with_policies(struct machine *m, int type)
{
	machine_new(m, type);
	require_guest_memfd(m);
	if (!expect()->mbind_works)
		skip("guest_memfd pages of this kernel follow no policy");
	if (!has_two_nodes())
		skip("this machine has one NUMA node");
}

static void fixture_new(struct fixture *f, uint64_t pages)
{
	f->page = page_size();
	machine_with_policies(&f->m, DEFAULT_VM);
	f->here = stay_on_node();
	f->there = !f->here;
	OK(gmem_file_new_raw(f->m.vm_fd, pages * f->page, SHARED_FLAGS, &f->file));
	f->hva = map_file(f->file);
}

static void fixture_free(struct fixture *f)
{
	gmem_file_free(f->file);
	machine_free(&f->m);
}

/* ---- where the kernel does not obey ---- */

TEST(a_kernel_that_does_not_obey_is_not_believed)
{
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_guest_memfd(&m);
	if (expect()->mbind_works)
		skip("guest_memfd pages of this kernel follow mbind()");
	require_create_flags(&m, SHARED_FLAGS);
	OK(gmem_file_new_raw(m.vm_fd, page_size(), SHARED_FLAGS, &file));
	REFUSED(set(file, 0, page_size(), GMEM_NUMA_BIND, 1), -EOPNOTSUPP);
	CHECK(strstr(gmem_last_error(), "6.19"));
	gmem_file_free(file);
	machine_free(&m);
}

/* Works for ordinary memory on every kernel. */
TEST(host_memory_follows_its_policy)
{
	unsigned int there = has_two_nodes() ? !stay_on_node() : 0;
	struct gmem_numa_opts opts = policy_of(GMEM_NUMA_BIND, UINT64_C(1) << there);
	uint64_t on_node[2], done = 0;
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = on_node, .nodes = 2);
	struct gmem_region *region;
	struct lab lab;
	char *hva;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 8, NULL);
	hva = gmem_region_hva(region);
	host_store(at(hva, lab.page), 1);
	if (has_two_nodes())
		REFUSED(gmem_vm_set_numa(lab.vm, BASE, 8 * lab.page, &opts, NULL), -EBUSY);
	OK(gmem_vm_set_numa(lab.vm, BASE + 2 * lab.page, 6 * lab.page, &opts, &done));
	CHECK_EQ(done, 6 * lab.page);
	for (uint64_t i = 2; i < 5; i++)
		host_store(at(hva, i * lab.page), 1);
	CHECK_EQ(node_of_page(at(hva, 2 * lab.page)), there);
	OK(gmem_vm_numa(lab.vm, BASE, 8 * lab.page, &pages));
	CHECK_EQ(on_node[there], has_two_nodes() ? 3 : 4);
	CHECK_EQ(on_node[0] + on_node[1], 4);
	CHECK_EQ(pages.absent, 4);
	CHECK_EQ(pages.unknown, 0);
	lab_free(&lab);
}

/* ---- where it does ---- */

TEST(pages_come_from_the_node_they_are_bound_to)
{
	struct counts counts;
	struct fixture f;

	fixture_new(&f, 8);
	OK(set(f.file, 2 * f.page, 4 * f.page, GMEM_NUMA_BIND, UINT64_C(1) << f.there));
	for (uint64_t i = 0; i < 7; i++)
		host_store(at(f.hva, i * f.page), 1);
	CHECK_EQ(node_of_page(at(f.hva, 1 * f.page)), f.here);
	for (uint64_t i = 2; i < 6; i++)
		CHECK_EQ(node_of_page(at(f.hva, i * f.page)), f.there);
	CHECK_EQ(node_of_page(at(f.hva, 6 * f.page)), f.here);
	counts = count(f.file);
	CHECK_EQ(counts.on_node[f.there], 4);
	CHECK_EQ(counts.on_node[f.here], 3);
	CHECK_EQ(counts.absent, 1);
	CHECK_EQ(counts.unknown, 0);
	fixture_free(&f);
}

/* Found though they were never mapped here, and allocated but never used */
TEST(pages_are_counted_whoever_made_them)
{
	struct counts counts;
	struct fixture f;

	fixture_new(&f, 2048);
	OK(set(f.file, 0, 1024 * f.page, GMEM_NUMA_BIND, UINT64_C(1) << f.there));
	OK(gmem_file_allocate(f.file, 100 * f.page, 1100 * f.page, NULL));
	counts = count(f.file);
	CHECK_EQ(counts.on_node[f.there], 924);
	CHECK_EQ(counts.on_node[f.here], 176);
	CHECK_EQ(counts.absent, 948);
	CHECK_EQ(allocated_pages(gmem_file_fd(f.file)), 1100);
	fixture_free(&f);
}

TEST(interleaving_takes_turns)
{
	struct counts counts;
	struct fixture f;

	fixture_new(&f, 64);
	OK(set(f.file, 0, 64 * f.page, GMEM_NUMA_INTERLEAVE, 3));
	OK(gmem_file_allocate(f.file, 0, 64 * f.page, NULL));
	counts = count(f.file);
	CHECK_EQ(counts.on_node[0], 32);
	CHECK_EQ(counts.on_node[1], 32);
	fixture_free(&f);
}

TEST(a_preferred_node_is_taken)
{
	struct counts counts;
	struct fixture f;

	fixture_new(&f, 16);
	OK(set(f.file, 0, 16 * f.page, GMEM_NUMA_PREFERRED, UINT64_C(1) << f.there));
	OK(gmem_file_allocate(f.file, 0, 8 * f.page, NULL));
	OK(set(f.file, 8 * f.page, 8 * f.page, GMEM_NUMA_PREFERRED, 3));
	OK(gmem_file_allocate(f.file, 8 * f.page, 8 * f.page, NULL));
	counts = count(f.file);
	CHECK_EQ(counts.on_node[f.there], 8);
	CHECK_EQ(counts.on_node[f.here], 8);
	fixture_free(&f);
}

TEST(a_policy_that_comes_too_late_is_an_error)
{
	uint64_t here, there;
	struct fixture f;

	fixture_new(&f, 8);
	here = UINT64_C(1) << f.here;
	there = UINT64_C(1) << f.there;
	host_store(at(f.hva, 3 * f.page), 1);
	REFUSED(set(f.file, 0, 8 * f.page, GMEM_NUMA_BIND, there), -EBUSY);
	REFUSED(set(f.file, 0, 8 * f.page, GMEM_NUMA_PREFERRED, there), -EBUSY);

	/* nothing was set, and what was there is */
	host_store(at(f.hva, 4 * f.page), 1);
	CHECK_EQ(node_of_page(at(f.hva, 4 * f.page)), f.here);
	CHECK_EQ(host_load(at(f.hva, 3 * f.page)), 1);

	OK(set(f.file, 0, 8 * f.page, GMEM_NUMA_BIND, here));
	OK(gmem_file_punch(f.file, 3 * f.page, 2 * f.page, NULL));
	OK(set(f.file, 0, 8 * f.page, GMEM_NUMA_BIND, there));
	host_store(at(f.hva, 3 * f.page), 1);
	CHECK_EQ(node_of_page(at(f.hva, 3 * f.page)), f.there);
	fixture_free(&f);
}

/* The kernel compares with what a mapping remembers, which misleads it. */
TEST(policies_replace_each_other_through_any_mapping)
{
	unsigned long mask;
	struct fixture f;

	fixture_new(&f, 8);
	mask = 1UL << f.there;
	WORKS(syscall(SYS_mbind, f.hva, 8 * f.page, (unsigned long)MPOL_BIND, &mask,
		      8 * sizeof(mask), 0UL));
	OK(set(f.file, 0, 8 * f.page, GMEM_NUMA_DEFAULT, 0));
	host_store(at(f.hva, 0), 1);
	CHECK_EQ(node_of_page(at(f.hva, 0)), f.here);

	OK(set(f.file, f.page, 7 * f.page, GMEM_NUMA_BIND, UINT64_C(1) << f.there));
	OK(set(f.file, f.page, 7 * f.page, GMEM_NUMA_BIND, UINT64_C(1) << f.here));
	OK(set(f.file, f.page, 7 * f.page, GMEM_NUMA_BIND, UINT64_C(1) << f.there));
	host_store(at(f.hva, f.page), 1);
	CHECK_EQ(node_of_page(at(f.hva, f.page)), f.there);
	OK(set(f.file, 2 * f.page, 6 * f.page, GMEM_NUMA_DEFAULT, 0));
	host_store(at(f.hva, 2 * f.page), 1);
	CHECK_EQ(node_of_page(at(f.hva, 2 * f.page)), f.here);
	fixture_free(&f);
}

TEST(a_node_that_is_not_there_is_refused)
{
	struct fixture f;

	fixture_new(&f, 1);
	REFUSED(set(f.file, 0, f.page, GMEM_NUMA_BIND, 1 << 2), -EINVAL);
	REFUSED(set(f.file, 0, f.page, GMEM_NUMA_INTERLEAVE, 1 | UINT64_C(1) << 63), -EINVAL);
	fixture_free(&f);
}

TEST(what_the_guest_touches_comes_from_there_too)
{
	struct gmem_numa_opts opts;
	struct gmem_region *region;
	uint64_t on_node[2];
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = on_node, .nodes = 2);
	unsigned int there;
	struct machine m;
	struct lab lab;

	machine_with_policies(&m, DEFAULT_VM);
	machine_free(&m);
	there = !stay_on_node();
	opts = policy_of(GMEM_NUMA_BIND, UINT64_C(1) << there);
	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, 8, NULL);
	OK(gmem_vm_set_numa(lab.vm, BASE, 8 * lab.page, &opts, NULL));
	for (uint64_t i = 0; i < 5; i++)
		GUEST_STORES(&lab.guest, BASE + i * lab.page, 7);
	OK(gmem_vm_numa(lab.vm, BASE, 8 * lab.page, &pages));
	CHECK_EQ(on_node[there], 5);
	CHECK_EQ(on_node[!there], 0);
	CHECK_EQ(pages.absent, 3);
	CHECK_EQ(node_of_page((host_load(gmem_region_hva(region)), gmem_region_hva(region))), there);
	lab_free(&lab);
}

/* ---- private memory ---- */

static uint64_t free_bytes_of(unsigned int node)
{
	unsigned long long kib = 0;
	char path[64], line[128];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/meminfo", node);
	file = fopen(path, "re");
	CHECK(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "Node %*u MemFree: %llu kB", &kib) == 1)
			break;
	fclose(file);
	CHECK(kib);
	return kib * 1024;
}

/* The kernel does not say where private pages are, so the node's free memory has to. */
TEST(private_pages_come_from_the_node_they_are_bound_to)
{
	uint64_t page = page_size(), size = 64 * MIB, before, after;
	struct gmem_file *file;
	struct machine m;
	unsigned int there;

	machine_with_policies(&m, PRIVATE_VM);
	there = !stay_on_node();
	OK(gmem_file_new_raw(m.vm_fd, size, GMEM_CREATE_MMAP, &file));
	OK(set(file, 0, size, GMEM_NUMA_BIND, UINT64_C(1) << there));
	before = free_bytes_of(there);
	OK(gmem_file_allocate(file, 0, size, NULL));
	after = free_bytes_of(there);
	note("node %u had %llu KiB less after %llu KiB were allocated", there,
	     (unsigned long long)(before - after) / 1024, (unsigned long long)size / 1024);
	CHECK(before > after && before - after > size / 2);
	CHECK_EQ(count(file).unknown, size / page);

	/* now it is too late for any node */
	REFUSED(set(file, 0, size, GMEM_NUMA_BIND, UINT64_C(1) << there), -EBUSY);
	REFUSED(set(file, 0, size, GMEM_NUMA_BIND, UINT64_C(1) << !there), -EBUSY);
	gmem_file_free(file);
	machine_free(&m);
}

TEST(private_memory_that_cannot_be_mapped_has_no_policy)
{
	struct gmem_numa_opts opts = policy_of(GMEM_NUMA_BIND, 1);
	struct gmem_region *region;
	struct machine m;
	struct lab lab;

	machine_with_policies(&m, PRIVATE_VM);
	machine_free(&m);
	lab_new(&lab, PRIVATE_VM);
	region = lab_add(&lab, GMEM_BACKING_PRIVATE, BASE, 4, NULL);
	REFUSED(gmem_vm_set_numa(lab.vm, BASE, 4 * lab.page, &opts, NULL), -EOPNOTSUPP);
	opts.flags = GMEM_NUMA_SHARED_ONLY;
	OK(gmem_vm_set_numa(lab.vm, BASE, 4 * lab.page, &opts, NULL));
	host_store(gmem_region_hva(region), 1);
	CHECK_EQ(node_of_page(gmem_region_hva(region)), 0);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
