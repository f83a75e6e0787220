/* SPDX-License-Identifier: MIT */
/*
 * NUMA: policies of mappings and of files, and where pages are. As on real
 * kernels mbind() is content, and does nothing, where the mapping remembers the
 * policy already; and asking about a page takes that it is mapped.
 */
#include <errno.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_internal.h"

static const struct policy none = { MPOL_DEFAULT, 0 };

static uint64_t nodes_allowed(void)
{
	return ((uint64_t)1 << fake.nodes) - 1;
}

static bool is_same(struct policy a, struct policy b)
{
	return a.mode == b.mode && a.nodes == b.nodes;
}

/* ------------------------------------------------------- what mappings have -- */

/* The last that holds an address counts */
static struct mapping_policy {
	uint64_t start;
	uint64_t end;
	struct policy policy;
} of_mappings[256];
static size_t of_mappings_count;

static void remember(uint64_t start, uint64_t end, struct policy policy)
{
	if (of_mappings_count == sizeof(of_mappings) / sizeof(of_mappings[0]))
		complain("more policies than the fake can keep, at", (int)of_mappings_count);
	else
		of_mappings[of_mappings_count++] =
			(struct mapping_policy){ start, end, policy };
}

void forget_policies(uint64_t start, uint64_t end)
{
	size_t i, kept = 0;

	for (i = 0; i < of_mappings_count; i++)
		if (of_mappings[i].start < start || of_mappings[i].end > end)
			of_mappings[kept++] = of_mappings[i];
	of_mappings_count = kept;
}

static struct policy policy_of_mapping(uint64_t addr)
{
	struct policy policy = none;
	size_t i;

	for (i = 0; i < of_mappings_count; i++)
		if (addr >= of_mappings[i].start && addr < of_mappings[i].end)
			policy = of_mappings[i].policy;
	return policy;
}

/* ------------------------------------------------------------ what files have -- */

static bool keeps_policy(const struct file *file)
{
	return file && fake.filesystem_type == FAKE_GMEM_MAGIC && !fake.forgets_policy;
}

static struct policy policy_of_file(const struct file *file, uint64_t offset)
{
	uint64_t i = offset / fake.page_size;

	return i < TRACKED_PAGES && keeps_policy(file) ? file->policies[i] : none;
}

uint8_t node_to_allocate(const struct file *file, uint64_t page)
{
	struct policy policy = policy_of_file(file, page * fake.page_size);
	uint64_t nodes = policy.nodes;
	int skip;

	if (!nodes)
		return kernel.node;
	skip = policy.mode == MPOL_INTERLEAVE ? (int)page % __builtin_popcountll(nodes) : 0;
	while (skip--)
		nodes &= nodes - 1;
	return (uint8_t)__builtin_ctzll(nodes);
}

/* -------------------------------------------------------------------- mbind -- */

static int check_mode(int mode, uint64_t nodes)
{
	switch (mode) {
	case MPOL_DEFAULT:
	case MPOL_LOCAL:
		return nodes ? -EINVAL : 0;
	case MPOL_BIND:
	case MPOL_PREFERRED:
	case MPOL_PREFERRED_MANY:
	case MPOL_INTERLEAVE:
		return nodes & nodes_allowed() ? 0 : -EINVAL;
	default:
		return -EINVAL;
	}
}

static int do_mbind(uint64_t start, uint64_t size, struct policy policy)
{
	const struct mapping *map = map_at(start);
	uint64_t i, first;
	int err;

	if (fake.no_numa)
		return -ENOSYS;
	err = is_aligned(start) ? check_mode(policy.mode, policy.nodes) : -EINVAL;
	if (err)
		return err;
	if (map && size > map->start + map->size - start)
		return -EFAULT;
	if (map && map->file && kernel.races) {
		map->file->allocated[map->offset / fake.page_size] = 1;
		map->file->node[map->offset / fake.page_size] = kernel.node;
	}
	policy.nodes &= nodes_allowed();
	if (is_same(policy_of_mapping(start), policy))
		return 0;

	remember(start, start + size, policy);
	if (!map || !keeps_policy(map->file))
		return 0;
	first = (map->offset + (start - map->start)) / fake.page_size;
	for (i = first; i < first + size / fake.page_size && i < TRACKED_PAGES; i++)
		map->file->policies[i] = policy;
	return 0;
}

int gmem_sys_mbind(void *addr, uint64_t size, int mode, const uint64_t *mask, uint64_t nodes)
{
	const struct policy policy = { mode, mask[0] };
	uint64_t i;
	int err;

	enter();
	err = attempt(FAKE_MBIND);
	for (i = 1; i < nodes / 64 && !err; i++)
		err = mask[i] ? -EINVAL : 0;
	if (!err)
		err = do_mbind((uintptr_t)addr, size, policy);
	return leave(err);
}

/* -------------------------------------------------------- where pages are -- */

static int node_of_file_page(const struct mapping *map, uint64_t addr)
{
	uint64_t i = (map->offset + (addr - map->start)) / fake.page_size;

	if (addr < kernel.populated_start || addr >= kernel.populated_end)
		return -ENOENT;
	return i < TRACKED_PAGES && map->file->allocated[i] ? map->file->node[i] : kernel.node;
}

static int node_of_page(uint64_t addr)
{
	const struct mapping *map = map_at(addr);
	unsigned char in_memory = 0;

	if (map && map->file)
		return node_of_file_page(map, addr);
	if (mincore((void *)(uintptr_t)addr, (size_t)sysconf(_SC_PAGESIZE), &in_memory) < 0)
		return -EFAULT;
	return in_memory & 1 ? kernel.node : -ENOENT;
}

/* ------------------------------------------------------------ get_mempolicy -- */

static struct policy policy_at(uint64_t addr)
{
	const struct mapping *map = map_at(addr);

	if (map && keeps_policy(map->file))
		return policy_of_file(map->file, map->offset + (addr - map->start));
	return policy_of_mapping(addr);
}

static int do_get_mempolicy(int *ret_mode, uint64_t *ret_mask, const void *addr,
			    unsigned long flags)
{
	struct policy policy;
	int node;

	if (fake.no_numa)
		return -ENOSYS;
	if (flags == MPOL_F_MEMS_ALLOWED) {
		ret_mask[0] = nodes_allowed();
		return 0;
	}
	if (flags == (MPOL_F_NODE | MPOL_F_ADDR)) {
		node = node_of_page((uintptr_t)addr);
		*ret_mode = node < 0 ? *ret_mode : node;
		return node < 0 ? -EFAULT : 0;
	}
	if (flags != MPOL_F_ADDR)
		return -EINVAL;
	policy = policy_at((uintptr_t)addr);
	*ret_mode = policy.mode;
	ret_mask[0] = policy.nodes;
	return 0;
}

int gmem_sys_get_mempolicy(int *ret_mode, uint64_t *ret_mask, uint64_t nodes, const void *addr,
			   unsigned long flags)
{
	int err;

	enter();
	err = attempt(FAKE_GET_MEMPOLICY);
	if (!err) {
		if (ret_mask)
			memset(ret_mask, 0, nodes / 8);
		err = do_get_mempolicy(ret_mode, ret_mask, addr, flags);
	}
	return leave(err);
}

/* --------------------------------------------------------------- move_pages -- */

int gmem_sys_query_pages(const void *const *pages, uint64_t count, int *ret_nodes)
{
	uint64_t i;
	int err;

	enter();
	err = attempt(FAKE_QUERY_PAGES);
	if (!err && (fake.no_numa || fake.no_move_pages))
		err = -ENOSYS;
	for (i = 0; i < count && !err; i++)
		ret_nodes[i] = node_of_page((uintptr_t)pages[i]);
	return leave(err);
}

/* -------------------------------------------------------- what tests ask for -- */

void fake_set_node(unsigned node)
{
	enter();
	kernel.node = (uint8_t)node;
	leave(0);
}

void fake_race_mbind(bool yes)
{
	enter();
	kernel.races = yes;
	leave(0);
}

int fake_policy_of_file(int fd, uint64_t offset, uint64_t *ret_nodes)
{
	struct policy policy;

	enter();
	policy = policy_of_file(must(handle_of(fd)->file), offset);
	*ret_nodes = policy.nodes;
	return leave(policy.mode);
}

int fake_policy_at(const void *hva, uint64_t *ret_nodes)
{
	struct policy policy;

	enter();
	policy = policy_of_mapping((uintptr_t)hva);
	*ret_nodes = policy.nodes;
	return leave(policy.mode);
}

/* ----------------------------------------------------------------- affinity -- */

static uint64_t cpus_allowed = 0xff, last_cpus;
static pthread_t last_thread;

void fake_set_cpus(uint64_t cpus)
{
	enter();
	cpus_allowed = cpus;
	leave(0);
}

uint64_t fake_last_affinity(bool *ret_is_ours)
{
	uint64_t cpus;

	enter();
	cpus = last_cpus;
	*ret_is_ours = cpus && pthread_equal(last_thread, pthread_self());
	leave(0);
	return cpus;
}

int gmem_sys_get_affinity(uint64_t *ret, size_t size)
{
	int err;

	enter();
	err = attempt(FAKE_GET_AFFINITY);
	if (!err) {
		memset(ret, 0, size);
		ret[0] = cpus_allowed;
	}
	return leave(err);
}

int gmem_sys_set_affinity(const uint64_t *cpus, size_t size)
{
	int err;

	(void)size;
	enter();
	err = attempt(FAKE_SET_AFFINITY);
	if (!err) {
		last_cpus = cpus[0];
		last_thread = pthread_self();
	}
	return leave(err);
}
