/* SPDX-License-Identifier: MIT */
/*
 * mbind(2) sets the policy of a mapping; since Linux 6.19 a mapping of a guest_memfd stores
 * it in the file. Pages that exist never move, and mbind() does not report those on other
 * nodes, so each page's node is queried to find out if the policy came too late.
 *
 * mbind() does nothing if the mapping had the same policy before, even if the file has
 * another one by now. So each call uses a new mapping of the library's own.
 */
#include "pages/numa.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/mempolicy.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/wait_budget.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "pages/section.h"
#include "region/file.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"

#define NODES (GMEM_NUMA_WORDS * 64)

/* Pages queried in one call */
#define ASK_PAGES 512

/* Results of queries: counts for each node, and pages that a policy does not want there */
struct tally {
	const struct gmem_numa_opts *wanted;	/* or NULL */
	struct gmem_numa_pages *pages;		/* or NULL */
	uint64_t misplaced;			/* pages on nodes that are not wanted */
	uint64_t first_misplaced;		/* offset of the first one in the range */
	int64_t misplaced_node;			/* its node, or -1 if unknown */
};

/* A query about a range of one side */
struct query {
	const struct gmem_region_memory *side;
	char *hva;			/* where it is mapped for the query, or NULL */
	uint64_t page;
	struct tally *tally;
};

static bool has_node(const uint64_t *nodes, uint64_t node)
{
	return node < NODES && nodes[node / 64] >> node % 64 & 1;
}

/* ---- arguments ---- */

static bool is_empty(const uint64_t *nodes)
{
	for (size_t i = 0; i < GMEM_NUMA_WORDS; i++)
		if (nodes[i])
			return false;
	return true;
}

/* The kernel would silently leave out nodes that this process may not use. */
static int check_allowed(const uint64_t *nodes)
{
	uint64_t allowed[GMEM_NUMA_WORDS] = { 0 };
	int err;

	err = gmem_sys_get_mempolicy(NULL, allowed, NODES, NULL, MPOL_F_MEMS_ALLOWED);
	if (err == -ENOSYS)
		return gmem_fail(-EOPNOTSUPP, "this kernel has no NUMA: get_mempolicy(2) is ENOSYS");
	if (err)
		return gmem_fail(err, "get_mempolicy(2) does not tell which nodes may be used: %s",
				 gmem_errno_name(err));

	for (unsigned int node = 0; node < NODES; node++)
		if (has_node(nodes, node) && !has_node(allowed, node))
			return gmem_fail(-EINVAL, "node %u has no memory that this process may use",
					 node);
	return 0;
}

static int copy_opts(const struct gmem_numa_opts *user_opts, struct gmem_numa_opts *opts)
{
	int err;

	if (!user_opts)
		return gmem_fail(-EINVAL, "no policy: opts is NULL");

	err = GMEM_COPY_OPTS(gmem_numa_opts, opts, user_opts, nodes);
	if (!err)
		err = gmem_check_flags("flags", opts->flags, GMEM_NUMA_SHARED_ONLY);
	if (err)
		return err;

	if (opts->policy > GMEM_NUMA_INTERLEAVE)
		return gmem_fail(-EINVAL, "%" PRIu32 " is no policy", opts->policy);
	if (opts->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts->reserved);
	if (is_empty(opts->nodes) != (opts->policy == GMEM_NUMA_DEFAULT))
		return gmem_fail(-EINVAL, opts->policy == GMEM_NUMA_DEFAULT
						  ? "the default policy has no nodes of its own"
						  : "a policy without a node");
	return check_allowed(opts->nodes);
}

static int copy_pages_in(struct gmem_numa_pages *user_pages, struct gmem_numa_pages *pages)
{
	int err;

	if (!user_pages)
		return gmem_fail(-EINVAL, "pages is NULL");

	err = GMEM_COPY_OPTS(gmem_numa_pages, pages, user_pages, unknown);
	if (err)
		return err;

	if (pages->nodes && !pages->on_node)
		return gmem_fail(-EINVAL, "no place for the counts of %zu nodes: on_node is NULL",
				 pages->nodes);
	for (size_t i = 0; i < pages->nodes; i++)
		pages->on_node[i] = 0;
	pages->elsewhere = 0;
	pages->absent = 0;
	pages->unknown = 0;
	return 0;
}

static void copy_pages_out(const struct gmem_numa_pages *pages, struct gmem_numa_pages *user_pages)
{
	user_pages->elsewhere = pages->elsewhere;
	user_pages->absent = pages->absent;
	user_pages->unknown = pages->unknown;
}

/* ---- where the pages are ---- */

static void add_misplaced(struct tally *tally, uint64_t at, int64_t node)
{
	if (tally->misplaced++)
		return;
	tally->first_misplaced = at;
	tally->misplaced_node = node;
}

static void add_on_node(struct tally *tally, uint64_t at, uint64_t node)
{
	struct gmem_numa_pages *pages = tally->pages;

	if (tally->wanted && !has_node(tally->wanted->nodes, node))
		add_misplaced(tally, at, (int64_t)node);
	if (!pages)
		return;
	if (node < pages->nodes)
		pages->on_node[node]++;
	else
		pages->elsewhere++;
}

static void add_unknown(struct query *query, uint64_t at, uint64_t size)
{
	for (; size; at += query->page, size -= query->page) {
		if (query->tally->wanted)
			add_misplaced(query->tally, at, -1);
		if (query->tally->pages)
			query->tally->pages->unknown++;
	}
}

static void add_absent(struct query *query, uint64_t size)
{
	if (query->tally->pages)
		query->tally->pages->absent += size / query->page;
}

/*
 * Makes a call for each page, for kernels where move_pages(2) is missing or forbidden. The
 * call would allocate an absent page, hence @in_memory; the zero page counts as present.
 */
static int ask_one_by_one(const void *const *pages, const unsigned char *in_memory,
			  uint64_t count, int *nodes)
{
	int err = 0;

	for (uint64_t i = 0; i < count; i++) {
		nodes[i] = -ENOENT;
		if (in_memory[i] & 1)
			err = gmem_sys_get_mempolicy(&nodes[i], NULL, 0, pages[i],
						     MPOL_F_NODE | MPOL_F_ADDR);
		if (err == -ENOSYS || err == -EPERM)
			return err;
		if (err)
			nodes[i] = err;
	}
	return 0;
}

/* Fill in @nodes with the node of each page, or with -errno if it is not mapped. */
static int ask_nodes(const struct query *query, uint64_t start, uint64_t size,
		     const unsigned char *in_memory, int *nodes)
{
	const void *pages[ASK_PAGES] = { NULL };
	uint64_t count = size / query->page;
	int err;

	for (uint64_t i = 0; i < count; i++)
		pages[i] = query->hva + start + i * query->page;

	err = gmem_sys_query_pages(pages, count, nodes);
	if (err == -ENOSYS || err == -EPERM)
		err = ask_one_by_one(pages, in_memory, count, nodes);
	if (err)
		return gmem_fail(err == -ENOSYS ? -EOPNOTSUPP : err,
				 "the nodes of pages cannot be had: %s", gmem_errno_name(err));
	return 0;
}

/*
 * Query pages of a file, all of which exist. They must be mapped for it, which fails only
 * for private and poisoned pages.
 */
static int query_file_pages(struct query *query, uint64_t start, uint64_t size)
{
	unsigned char in_memory[ASK_PAGES];
	int nodes[ASK_PAGES], err = -EFAULT;

	if (query->hva)
		err = gmem_sys_madvise(query->hva + start, size, MADV_POPULATE_READ);
	if (err == -EFAULT || err == -EHWPOISON) {
		add_unknown(query, start, size);
		return 0;
	}
	if (err)
		return gmem_fail(err, "pages that exist cannot be mapped: %s", gmem_errno_name(err));

	memset(in_memory, 1, sizeof(in_memory));
	err = ask_nodes(query, start, size, in_memory, nodes);
	if (err)
		return err;

	for (uint64_t i = 0; i < size / query->page; i++) {
		if (nodes[i] >= 0)
			add_on_node(query->tally, start + i * query->page, (uint64_t)nodes[i]);
		else
			add_unknown(query, start + i * query->page, query->page);
	}
	return 0;
}

/*
 * Halve the range until all of a part exists or none of it. mincore(2) would be faster but
 * wrong: it does not see pages that were allocated and never used.
 */
static int query_file(struct query *query, uint64_t start, uint64_t size)
{
	uint64_t half = size / query->page / 2 * query->page, pages;
	int err;

	err = gmem_sys_cachestat(query->side->file->fd, query->side->offset + start, size, &pages);
	if (err)
		return gmem_fail(err == -ENOSYS ? -EOPNOTSUPP : err,
				 "which pages of the file exist only cachestat(2) can say: %s",
				 gmem_errno_name(err));

	if (pages == 0) {
		add_absent(query, size);
		return 0;
	}
	if (pages >= size / query->page && size / query->page <= ASK_PAGES)
		return query_file_pages(query, start, size);

	err = query_file(query, start, half);
	return err ? err : query_file(query, start + half, size - half);
}

/*
 * For host memory, -ENOENT means that the page is not mapped in this process; any other
 * -errno means the zero page or no page.
 */
static int query_host_pages(struct query *query, uint64_t start, uint64_t size)
{
	unsigned char in_memory[ASK_PAGES];
	int nodes[ASK_PAGES], err;

	err = gmem_sys_mincore(query->hva + start, size, in_memory);
	if (err)
		return gmem_fail(err, "mincore(2) does not tell what is in memory: %s", gmem_errno_name(err));
	err = ask_nodes(query, start, size, in_memory, nodes);
	if (err)
		return err;

	for (uint64_t i = 0; i < size / query->page; i++) {
		uint64_t at = start + i * query->page;

		if (nodes[i] >= 0)
			add_on_node(query->tally, at, (uint64_t)nodes[i]);
		else if (nodes[i] == -ENOENT && in_memory[i] & 1)
			add_unknown(query, at, query->page);
		else
			add_absent(query, query->page);
	}
	return 0;
}

static int query_host_memory(struct query *query, uint64_t size)
{
	uint64_t start, now;
	int err = 0;

	for (start = 0; start < size && !err; start += now) {
		now = size - start < ASK_PAGES * query->page ? size - start : ASK_PAGES * query->page;
		err = query_host_pages(query, start, now);
	}
	return err;
}

static int map_side(const struct gmem_region_memory *side, uint64_t size, void **ret)
{
	int err;

	err = gmem_sys_mmap(NULL, size, PROT_READ, MAP_SHARED, side->file->fd, side->offset, ret);
	if (err)
		return gmem_fail(err, "file offset 0x%" PRIx64 " + 0x%" PRIx64
				 " cannot be mapped to see or set its policy: %s",
				 side->offset, size, gmem_errno_name(err));
	return 0;
}

static bool is_mappable(const struct gmem_region_memory *side)
{
	return side->file->create_flags & GMEM_CREATE_MMAP;
}

static int query_side(const struct gmem_region_memory *side, uint64_t size, struct tally *tally)
{
	struct query query = { .side = side, .page = gmem_sys_page_size(), .tally = tally };
	void *hva;
	int err;

	if (!side->file) {
		query.hva = side->hva;
		return query_host_memory(&query, size);
	}
	if (!is_mappable(side))
		return query_file(&query, 0, size);

	err = map_side(side, size, &hva);
	if (err)
		return err;
	query.hva = hva;
	err = query_file(&query, 0, size);
	gmem_sys_munmap(hva, size);
	return err;
}

int gmem_region_count_nodes(const struct gmem_region *region, uint32_t which, uint64_t offset,
			    uint64_t size, struct gmem_numa_pages *pages)
{
	struct tally tally = { .pages = pages };
	struct gmem_region_memory side;
	int err = gmem_region_memory_get(region, which, offset, size, &side);

	return err ? err : query_side(&side, size, &tally);
}

/* ---- policies ---- */

static int check_reach(const struct gmem_region_memory *side)
{
	uint64_t type;
	int err;

	if (!side->file)
		return 0;
	if (!is_mappable(side))
		return gmem_fail(-EOPNOTSUPP,
				 "a guest_memfd without GMEM_CREATE_MMAP cannot be told a policy: "
				 "set_mempolicy(2) of the thread that touches it first decides");

	err = gmem_sys_filesystem_type(side->file->fd, &type);
	if (err)
		return gmem_fail(err, "statfs of a guest_memfd: %s", gmem_errno_name(err));
	if (type != GUEST_MEMFD_MAGIC)
		return gmem_fail(-EOPNOTSUPP, "mbind() would succeed, and guest_memfd pages would not "
				 "follow it: that needs Linux 6.19 or a backport");
	return 0;
}

static int mpol_mode(const struct gmem_numa_opts *opts)
{
	unsigned int count = 0;

	for (size_t i = 0; i < GMEM_NUMA_WORDS; i++)
		count += (unsigned int)__builtin_popcountll(opts->nodes[i]);

	switch (opts->policy) {
	case GMEM_NUMA_BIND:
		return MPOL_BIND;
	case GMEM_NUMA_INTERLEAVE:
		return MPOL_INTERLEAVE;
	case GMEM_NUMA_PREFERRED:
		return count > 1 ? MPOL_PREFERRED_MANY : MPOL_PREFERRED;
	default:
		return MPOL_DEFAULT;
	}
}

static int set_policy(void *hva, uint64_t size, const struct gmem_numa_opts *opts)
{
	static const uint64_t none[GMEM_NUMA_WORDS];
	int err = 0;

	/* A new mapping already has the default policy, so setting that would do nothing. */
	if (opts->policy == GMEM_NUMA_DEFAULT)
		err = gmem_sys_mbind(hva, size, MPOL_LOCAL, none, NODES);
	if (!err)
		err = gmem_sys_mbind(hva, size, mpol_mode(opts), opts->nodes, NODES);
	if (err)
		return gmem_fail(err == -ENOSYS ? -EOPNOTSUPP : err,
				 "mbind of 0x%" PRIx64 " bytes: %s", size, gmem_errno_name(err));
	return 0;
}

static int check_policy_at(const void *hva, const struct gmem_numa_opts *opts)
{
	uint64_t nodes[GMEM_NUMA_WORDS] = { 0 };
	int mode = 0, err;

	err = gmem_sys_get_mempolicy(&mode, nodes, NODES, hva, MPOL_F_ADDR);
	if (err)
		return gmem_fail(err, "the policy that was set cannot be read back: %s",
				 gmem_errno_name(err));
	if (mode != mpol_mode(opts) || memcmp(nodes, opts->nodes, sizeof(nodes)) != 0)
		return gmem_fail(-EOPNOTSUPP, "the kernel took the policy and did not keep it: it says "
				 "mode %d, not %d", mode, mpol_mode(opts));
	return 0;
}

static int check_policy(const void *hva, uint64_t size, const struct gmem_numa_opts *opts)
{
	int err;

	/* Kernels report the default policy in different ways. */
	if (opts->policy == GMEM_NUMA_DEFAULT)
		return 0;

	err = check_policy_at(hva, opts);
	return err ? err : check_policy_at((const char *)hva + size - gmem_sys_page_size(), opts);
}

static int set_on_file(const struct gmem_region_memory *side, uint64_t size,
		       const struct gmem_numa_opts *opts)
{
	void *hva, *other;
	int err;

	err = map_side(side, size, &hva);
	if (err)
		return err;

	/* A second mapping shows the policy that the file has, not that of the first mapping. */
	err = map_side(side, size, &other);
	if (err)
		goto unmap;

	err = set_policy(hva, size, opts);
	if (!err)
		err = check_policy(other, size, opts);
	gmem_sys_munmap(other, size);
unmap:
	gmem_sys_munmap(hva, size);
	return err;
}

static int fail_misplaced(const struct tally *tally, const struct gmem_region_memory *side,
			  const char *state)
{
	uint64_t start = side->file ? side->offset : (uintptr_t)side->hva;
	const char *what = side->file ? "file offset" : "hva";
	char where[48] = "where nobody can ask";

	if (tally->misplaced_node >= 0)
		snprintf(where, sizeof(where), "on node %" PRId64, tally->misplaced_node);
	return gmem_fail(-EBUSY, "too late: %" PRIu64 " pages came before the policy, the first at %s 0x%"
			 PRIx64 ", %s; %s", tally->misplaced, what, start + tally->first_misplaced, where, state);
}

static int check_placement(const struct gmem_region_memory *side, uint64_t size,
			   const struct gmem_numa_opts *opts, const char *state)
{
	struct tally tally = { .wanted = opts };
	int err;

	if (opts->policy == GMEM_NUMA_DEFAULT)
		return 0;

	err = query_side(side, size, &tally);
	if (err)
		return err;
	return tally.misplaced ? fail_misplaced(&tally, side, state) : 0;
}

static const char policy_is_set[] = "the policy is set";

static int check_side(const struct gmem_region_memory *side, uint64_t size,
		      const struct gmem_numa_opts *opts)
{
	int err = check_reach(side);

	return err ? err : check_placement(side, size, opts, "nothing was set");
}

static int set_on_side(const struct gmem_region_memory *side, uint64_t size,
		       const struct gmem_numa_opts *opts)
{
	int err;

	if (side->file)
		err = set_on_file(side, size, opts);
	else
		err = set_policy(side->hva, size, opts);
	if (!err && !side->file)
		err = check_policy(side->hva, size, opts);
	return err;
}

/* ---- files ---- */

static int side_of_file(struct gmem_file *file, uint64_t offset, uint64_t size,
			struct gmem_region_memory *ret)
{
	if (!file)
		return gmem_fail(-EINVAL, "file is NULL");

	*ret = (struct gmem_region_memory){ .file = file, .offset = offset };
	return gmem_check_range_within("offset", offset, size, file->size, "the end of the file");
}

GMEM_API int gmem_file_set_numa(struct gmem_file *file, uint64_t offset, uint64_t size,
				const struct gmem_numa_opts *user_opts)
{
	struct gmem_numa_opts opts;
	struct gmem_region_memory side;
	int err;

	err = side_of_file(file, offset, size, &side);
	if (!err)
		err = copy_opts(user_opts, &opts);
	if (!err)
		err = check_side(&side, size, &opts);
	if (!err)
		err = set_on_side(&side, size, &opts);
	return err ? err : check_placement(&side, size, &opts, policy_is_set);
}

GMEM_API int gmem_file_numa(struct gmem_file *file, uint64_t offset, uint64_t size,
			    struct gmem_numa_pages *user_pages)
{
	struct gmem_numa_pages pages;
	struct tally tally = { .pages = &pages };
	struct gmem_region_memory side;
	int err;

	err = side_of_file(file, offset, size, &side);
	if (!err)
		err = copy_pages_in(user_pages, &pages);
	if (!err)
		err = query_side(&side, size, &tally);
	if (!err)
		copy_pages_out(&pages, user_pages);
	return err;
}

/* ---- guest memory ---- */

/* Work on guest memory: a function to call for each part of each side */
struct walk {
	struct gmem_vm *vm;
	const struct gmem_numa_opts *opts;	/* or NULL */
	struct tally *tally;			/* or NULL */
	struct gmem_wait_budget *budget;
	int (*do_side)(const struct walk *walk, const struct gmem_region_memory *side, uint64_t size);
};

static int check_one(const struct walk *walk, const struct gmem_region_memory *side, uint64_t size)
{
	return check_side(side, size, walk->opts);
}

static int set_one(const struct walk *walk, const struct gmem_region_memory *side, uint64_t size)
{
	return set_on_side(side, size, walk->opts);
}

static int check_again(const struct walk *walk, const struct gmem_region_memory *side, uint64_t size)
{
	return check_placement(side, size, walk->opts, policy_is_set);
}

static int query_one(const struct walk *walk, const struct gmem_region_memory *side, uint64_t size)
{
	return query_side(side, size, walk->tally);
}

static int do_part(const struct walk *walk, const struct gmem_region *region, uint32_t which,
		   uint64_t offset, uint64_t size)
{
	struct gmem_region_memory side;
	int err = gmem_region_memory_get(region, which, offset, size, &side);

	return err ? err : walk->do_side(walk, &side, size);
}

static int do_region(const struct walk *walk, const struct gmem_region *region, uint64_t offset,
		     uint64_t size)
{
	int err = 0;

	if (!gmem_region_is_both_sides(region))
		err = do_part(walk, region, GMEM_SIDE_SHARED, offset, size);
	if (err || !gmem_region_traits(region)->has_sides ||
	    (walk->opts && walk->opts->flags & GMEM_NUMA_SHARED_ONLY))
		return err;
	return do_part(walk, region, GMEM_SIDE_PRIVATE, offset, size);
}

/*
 * Work on what is at @gpa, at most @max bytes in one region, under a shared claim: without a
 * lock, for each page may have to be looked at.
 */
static int do_piece(const struct walk *walk, uint64_t gpa, uint64_t last, uint64_t max,
		    uint64_t *ret_size)
{
	struct gmem_vm *vm = walk->vm;
	struct gmem_region *region;
	struct gmem_claim claim;
	int err;

	gmem_lock_take(&vm->lock);
	err = gmem_section_claim(vm, gpa, last, max, walk->budget, &claim, &region);
	gmem_lock_drop(&vm->lock);
	if (err)
		return err;
	if (!region)
		return gmem_fail_no_region(gpa);

	if (claim.gpa != gpa)
		err = gmem_fail_no_region(gpa);
	else if (region->is_device || gmem_region_has_use(region, GMEM_USE_PLACE))
		err = do_region(walk, region, gpa - region->gpa.start, claim.size);

	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, &claim);
	gmem_lock_drop(&vm->lock);
	*ret_size = claim.size;
	return err;
}

/* The layout may change between the pieces. */
static int do_range(const struct walk *walk, uint64_t gpa, uint64_t size)
{
	uint64_t done, now = 0;
	int err = 0;

	for (done = 0; done < size && !err; done += now)
		err = do_piece(walk, gpa + done, gpa + size - 1, GMEM_SECTION_PIECE, &now);
	return err;
}

/* Setting a policy is one call for all of a region; looking at its pages takes time. */
static int set_on_region(const struct walk *setting, uint64_t gpa, uint64_t last, uint64_t *ret_size)
{
	struct walk checking = *setting;
	int err;

	err = do_piece(setting, gpa, last, UINT64_MAX, ret_size);
	if (err)
		return err;
	checking.do_side = check_again;
	return do_range(&checking, gpa, *ret_size);
}

static int set_on_range(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			const struct gmem_numa_opts *opts, uint64_t *ret_done)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	struct walk walk = { .vm = vm, .opts = opts, .budget = &budget, .do_side = check_one };
	uint64_t done, now;
	int err;

	err = gmem_vm_check_memory(vm, gpa, size, GMEM_USE_PLACE, "which has no NUMA policy", &now);
	if (!err)
		err = do_range(&walk, gpa, size);
	walk.do_side = set_one;
	for (done = 0; done < size && !err; done += now) {
		err = set_on_region(&walk, gpa + done, gpa + size - 1, &now);
		if (!err && ret_done)
			*ret_done = done + now;
	}
	return err;
}

GMEM_API int gmem_vm_set_numa(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			      const struct gmem_numa_opts *user_opts, uint64_t *ret_done)
{
	struct gmem_numa_opts opts;
	int err;

	if (ret_done)
		*ret_done = 0;
	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	err = gmem_check_range("gpa", gpa, size);
	if (!err)
		err = copy_opts(user_opts, &opts);
	if (err)
		return err;

	return gmem_vm_log_error(vm, set_on_range(vm, gpa, size, &opts, ret_done));
}

GMEM_API int gmem_vm_numa(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			  struct gmem_numa_pages *user_pages)
{
	struct gmem_numa_pages pages;
	struct tally tally = { .pages = &pages };
	struct gmem_wait_budget budget;
	const struct walk walk = { .vm = vm, .tally = &tally, .budget = &budget, .do_side = query_one };
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	err = gmem_check_range("gpa", gpa, size);
	if (!err)
		err = copy_pages_in(user_pages, &pages);
	if (err)
		return err;

	budget = gmem_vm_budget(vm, 0);
	err = gmem_vm_log_error(vm, do_range(&walk, gpa, size));
	if (!err)
		copy_pages_out(&pages, user_pages);
	return err;
}
