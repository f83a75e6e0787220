/* SPDX-License-Identifier: MIT */
/* Helpers of the unit tests: a scripted kernel with a VM, and assertions on refusals */
#ifndef GMEM_UNIT_H
#define GMEM_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake.h"
#include "gmem.h"

/* A bit no kernel and no header names yet */
#define UNIT_UNKNOWN_BIT	((uint64_t)1 << 40)

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* One VM on one kernel, with what most tests need */
struct unit {
	int vm_fd;
	uint64_t page;
	struct gmem_caps *caps;
	struct gmem_vm *vm;
};

/* Boot the kernel and make a VM; @vm is left NULL by the first */
void unit_begin(struct unit *unit, const char *kernel);
void unit_begin_vm(struct unit *unit, const char *kernel);
/* The same, as if the kernel's pages had another size */
void unit_begin_vm_pages(struct unit *unit, const char *kernel, uint64_t page_size);
/* Free all of it; nothing may be left in the kernel */
void unit_end(struct unit *unit);
/* Frees the handle alone, before unit_end(): with gmem_vm_free_with_vm() the VM has ended, too. */
void unit_free_vm(struct unit *unit, bool with_vm);

struct gmem_plan *unit_plan(const struct unit *unit, uint32_t backing);
/* Private memory in files that can be mapped: both states have the same pages */
struct gmem_plan *unit_plan_mappable_private(const struct unit *unit);
struct gmem_file *unit_file(const struct unit *unit, uint64_t pages);
/* A region of a new file, or of @plan */
struct gmem_region *unit_region(const struct unit *unit, uint64_t gpa_page, uint64_t pages,
				const struct gmem_plan *plan);
/* A region that is backed this way; its plan is made and freed */
struct gmem_region *unit_region_backed(const struct unit *unit, uint64_t gpa_page, uint64_t pages,
				       uint32_t backing);
/* The memslot of a region as the kernel has it */
struct fake_slot unit_slot(const struct unit *unit, const struct gmem_region *region);
/* Fails unless the memslot, the file and the host address of a region agree */
void unit_check_region(const struct unit *unit, const struct gmem_region *region);

/* A way of backing, and a kernel that has it */
struct unit_way {
	const char *kernel;
	uint32_t backing;
};

/* Every way of backing, and host pages of every size */
#define UNIT_WAYS	6
extern const struct unit_way unit_ways[UNIT_WAYS];

/* Fails unless the footprint was counted and has these numbers of bytes */
void unit_check_footprint(const struct gmem_footprint *footprint, uint64_t done, uint64_t before,
			  uint64_t after);

/* An address, aligned to the fake's page, with @pages unmapped pages behind it */
void *unit_free_address(const struct unit *unit, uint64_t pages);
/* Memory of the test's own at an address aligned to the fake's page */
void *unit_memory(const struct unit *unit, uint64_t pages);
void unit_memory_free(void *memory);

/* A page count as bytes */
#define PAGES(unit, n)	((uint64_t)(n) * (unit)->page)

/*
 * The call fails with exactly @err, its sentence holds @fragment, and nothing
 * the kernel can see has changed.
 */
#define assert_refused(err, fragment, call)                                             \
	do {                                                                            \
		struct fake_snapshot *before_ = fake_snapshot();                        \
		unit_check_refusal((call), (err), (fragment), before_, #call,           \
				   __FILE__, __LINE__);                                 \
	} while (0)

void unit_check_refusal(int ret, int err, const char *fragment,
			struct fake_snapshot *before, const char *call, const char *file,
			int line);

#define assert_ok(call)	assert_int_equal((call), 0)

/* The value of an output that nobody has written to */
#define UNTOUCHED(type)	((type *)(uintptr_t)0x5a5a5a50)

/* An address so many bytes further */
static inline void *unit_at(void *hva, uint64_t offset)
{
	return (char *)hva + offset;
}

/*
 * Ordinary memory comes in small pages from now on: with huge ones, touching one page
 * brings in hundreds.
 */
int unit_no_huge_pages(void **state);

#define UNIT_MAIN(tests)                                                                \
	int main(void)                                                                  \
	{                                                                               \
		return cmocka_run_group_tests((tests), NULL, NULL);                     \
	}

/* For tests that count pages of ordinary memory */
#define UNIT_MAIN_SMALL_PAGES(tests)                                                    \
	int main(void)                                                                  \
	{                                                                               \
		return cmocka_run_group_tests((tests), unit_no_huge_pages, NULL);       \
	}

#endif
