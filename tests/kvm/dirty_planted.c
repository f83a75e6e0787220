/* SPDX-License-Identifier: MIT */
/*
 * Is the proof (proof.h) one? Each kind of change is left out of what trackers tell, one after
 * the other, and memory and copy must differ. The functions of the library that mark are
 * wrapped (--wrap), so the library has nothing for it: a mark is dropped by what the thread
 * that makes it says it is doing.
 */
#include "expect.h"
#include "proof.h"

struct gmem_dirty_pages;

#define MOST_ROUNDS 2000	/* it takes 1 to 150 */

static enum scribble_kind planted;

/* Threads of the library's own help to load and to restore. */
static bool is_dropped(void)
{
	if (!scribble_is_own_thread)
		return planted == SCRIBBLE_LOAD || planted == SCRIBBLE_RESTORE;
	return scribble_now == planted;
}

/* ---- instead of the library's ---- */

#define WRAP(name, args, ...)                  \
	void __real_##name args;               \
	void __wrap_##name args;               \
	void __wrap_##name args                \
	{                                      \
		if (!is_dropped())             \
			__real_##name(__VA_ARGS__); \
	}

WRAP(gmem_view_mark, (const struct gmem_view *view, uint64_t gpa, uint64_t size), view, gpa, size)
WRAP(gmem_dirty_pages_mark_in_view, (struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size),
     dirty, gpa, size)
WRAP(gmem_dirty_pages_mark, (struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size), dirty,
     gpa, size)
WRAP(gmem_vm_mark_dirty, (struct gmem_vm *vm, uint64_t gpa, uint64_t size), vm, gpa, size)

void __real_gmem_dirty_pages_mark_bits(struct gmem_dirty_pages *dirty, uint64_t gpa,
				       const uint64_t *bitmap, uint64_t pages);
void __wrap_gmem_dirty_pages_mark_bits(struct gmem_dirty_pages *dirty, uint64_t gpa,
				       const uint64_t *bitmap, uint64_t pages);

/* Who reads KVM's logs is not who wrote. */
void __wrap_gmem_dirty_pages_mark_bits(struct gmem_dirty_pages *dirty, uint64_t gpa,
				       const uint64_t *bitmap, uint64_t pages)
{
	if (planted != SCRIBBLE_GUEST)
		__real_gmem_dirty_pages_mark_bits(dirty, gpa, bitmap, pages);
}

/* ---- faults ---- */

static void must_differ(enum scribble_kind kind, const struct proof_way *way)
{
	char difference[200];

	if (emulated_machine())
		skip("hundreds of rounds take too long on an emulated processor");
	planted = kind;
	if (proof_run(way, PROOF_ALL_KINDS, MOST_ROUNDS, difference))
		FAIL("nothing differs without marks of a %s", scribble_name(kind));
	note("%s", difference);
}

#define NOTICED(name_, kind_)                                                             \
	TEST(name_)                                                                       \
	{                                                                                 \
		must_differ((kind_), &(struct proof_way){ .backing = GMEM_BACKING_HOST }); \
	}

NOTICED(a_missed_log_of_the_guest_is_noticed, SCRIBBLE_GUEST)
NOTICED(a_missed_write_of_a_view_is_noticed, SCRIBBLE_WRITE)
NOTICED(a_missed_store_of_a_view_is_noticed, SCRIBBLE_STORE)
NOTICED(a_missed_fill_is_noticed, SCRIBBLE_FILL)
NOTICED(a_missed_copy_is_noticed, SCRIBBLE_COPY)
NOTICED(a_missed_compare_exchange_is_noticed, SCRIBBLE_EXCHANGE)
NOTICED(a_missed_mark_of_a_raw_write_is_noticed, SCRIBBLE_RAW)
NOTICED(a_missed_mark_of_a_write_of_the_kernel_is_noticed, SCRIBBLE_KERNEL)
NOTICED(a_missed_load_is_noticed, SCRIBBLE_LOAD)
NOTICED(a_missed_discard_is_noticed, SCRIBBLE_DISCARD)
NOTICED(a_missed_restore_is_noticed, SCRIBBLE_RESTORE)
NOTICED(a_missed_region_that_was_added_is_noticed, SCRIBBLE_ADD)
NOTICED(a_missed_region_that_was_moved_is_noticed, SCRIBBLE_MOVE)
NOTICED(a_missed_write_of_a_peer_is_noticed, SCRIBBLE_PEER_WRITE)
NOTICED(a_missed_store_of_a_peer_is_noticed, SCRIBBLE_PEER_STORE)
NOTICED(a_missed_raw_write_of_a_peer_is_noticed, SCRIBBLE_PEER_RAW)

TEST(a_missed_region_that_was_rebound_is_noticed)
{
	if (!(expect_vm(DEFAULT_VM)->backings & 1u << GMEM_BACKING_MAPPED))
		skip("no memory that is bound to a file can be had here, with a log");
	must_differ(SCRIBBLE_REBIND, &(struct proof_way){ .backing = GMEM_BACKING_HOST });
}

int main(int argc, char **argv)
{
	argc = proof_arguments(argc, argv);
	return run_tests(argc, argv);
}
