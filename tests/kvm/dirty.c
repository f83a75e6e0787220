/* SPDX-License-Identifier: MIT */
/*
 * Trackers against a stopped copy, while a guest, views, a device process and changes of the
 * layout scribble: not a byte may differ. "--rounds N" and "--seed N" say how long, and which
 * random numbers; "--kinds MASK" leaves out some (1 << enum scribble_kind).
 */
#include "proof.h"

#define MANUAL_PROTECT 1u	/* KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE */
#define INITIALLY_SET 2u	/* KVM_DIRTY_LOG_INITIALLY_SET */

static void run(const struct proof_way *way)
{
	char difference[200];

	if (!proof_run(way, PROOF_ALL_KINDS, proof_rounds, difference))
		FAIL("%s", difference);
}

TEST(a_copy_of_what_is_told_is_the_memory)
{
	run(&(struct proof_way){ .backing = GMEM_BACKING_HOST });
}

TEST(so_it_is_with_manual_protection)
{
	run(&(struct proof_way){ .backing = GMEM_BACKING_HOST, .manual_protect = MANUAL_PROTECT });
}

TEST(so_it_is_with_manual_protection_and_logs_that_begin_full)
{
	run(&(struct proof_way){ .backing = GMEM_BACKING_HOST,
				 .manual_protect = MANUAL_PROTECT | INITIALLY_SET });
}

TEST(so_it_is_with_mapped_memory)
{
	run(&(struct proof_way){ .backing = GMEM_BACKING_MAPPED });
}

TEST(so_it_is_with_dirty_rings)
{
	run(&(struct proof_way){ .backing = GMEM_BACKING_HOST, .ring_bytes = 16384,
				 .tracker_flags = GMEM_DIRTY_RINGS });
}

TEST(so_it_is_with_shared_memory_whose_memslots_are_replaced)
{
	run(&(struct proof_way){ .backing = GMEM_BACKING_SHARED,
				 .tracker_flags = GMEM_DIRTY_VCPUS_STOPPED });
}

TEST(so_it_is_with_shared_memory_without_a_log)
{
	run(&(struct proof_way){ .backing = GMEM_BACKING_SHARED,
				 .tracker_flags = GMEM_DIRTY_ALLOW_UNLOGGED });
}

TEST(so_it_is_with_what_is_shared_of_private_memory)
{
	run(&(struct proof_way){ .type = PRIVATE_VM, .backing = GMEM_BACKING_PRIVATE,
				 .tracker_flags = GMEM_DIRTY_ALLOW_UNLOGGED });
}

TEST(so_it_is_with_host_memory_beside_private)
{
	run(&(struct proof_way){ .type = PRIVATE_VM, .backing = GMEM_BACKING_HOST });
}

int main(int argc, char **argv)
{
	argc = proof_arguments(argc, argv);
	return run_tests(argc, argv);
}
