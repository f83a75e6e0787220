/* SPDX-License-Identifier: MIT */
#include "base/numa_thread.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gmem.h"
#include "os/sys.h"

#define NODES		(GMEM_NUMA_WORDS * 64)
#define CPUS		(GMEM_NUMA_CPU_WORDS * 64)

/* The policy in the mode that get_mempolicy() returns; the other bits are flags. */
#define MODE_BITS	0xff

static bool has_bit(const uint64_t *words, uint64_t bit)
{
	return words[bit / 64] >> bit % 64 & 1;
}

/* Find the only node that the policy at @hva names; -1: none, or more than one. */
static int64_t node_of(const void *hva)
{
	uint64_t nodes[GMEM_NUMA_WORDS];
	int64_t found = -1;
	int mode;

	if (gmem_sys_get_mempolicy(&mode, nodes, NODES, hva, MPOL_F_ADDR))
		return -1;
	mode &= MODE_BITS;
	if (mode != MPOL_BIND && mode != MPOL_PREFERRED && mode != MPOL_PREFERRED_MANY)
		return -1;

	for (uint64_t node = 0; node < NODES; node++) {
		if (has_bit(nodes, node) && found >= 0)
			return -1;
		if (has_bit(nodes, node))
			found = (int64_t)node;
	}
	return found;
}

/* Parse a list like "0-3,8" into @ret, without processors that are not in @among; false: none. */
static bool parse_cpus(const char *list, const uint64_t *among, uint64_t *ret)
{
	uint64_t first, last;
	bool any = false;
	char *end;

	memset(ret, 0, GMEM_NUMA_CPU_WORDS * sizeof(*ret));
	for (; *list >= '0' && *list <= '9'; list = *end == ',' ? end + 1 : end) {
		first = strtoull(list, &end, 10);
		last = *end == '-' ? strtoull(end + 1, &end, 10) : first;
		for (; first <= last && first < CPUS; first++) {
			if (!has_bit(among, first))
				continue;
			ret[first / 64] |= UINT64_C(1) << first % 64;
			any = true;
		}
	}
	return any;
}

static bool cpus_of(int64_t node, const uint64_t *among, uint64_t *ret)
{
	char path[80], list[4096];

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%" PRId64 "/cpulist", node);
	return gmem_sys_read_file(path, list, sizeof(list)) > 0 && parse_cpus(list, among, ret);
}

bool gmem_numa_has_several_nodes(void)
{
	uint64_t nodes[GMEM_NUMA_WORDS];
	int count = 0;

	if (gmem_sys_get_mempolicy(NULL, nodes, NODES, NULL, MPOL_F_MEMS_ALLOWED))
		return false;
	for (size_t i = 0; i < GMEM_NUMA_WORDS; i++)
		count += __builtin_popcountll(nodes[i]);
	return count > 1;
}

void gmem_numa_move_thread(struct gmem_numa_thread *thread, const void *hva)
{
	int64_t node = hva ? node_of(hva) : -1;
	uint64_t cpus[GMEM_NUMA_CPU_WORDS];

	if (node < 0 || (thread->is_known && node == thread->node))
		return;

	/* Keep to the processors that this thread was allowed at first. */
	if (!thread->is_known) {
		memset(thread->allowed, 0, sizeof(thread->allowed));
		if (gmem_sys_get_affinity(thread->allowed, sizeof(thread->allowed)))
			return;
		thread->is_known = true;
	}
	thread->node = node;
	if (cpus_of(node, thread->allowed, cpus))
		gmem_sys_set_affinity(cpus, sizeof(cpus));
}
